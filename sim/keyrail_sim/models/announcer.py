# SPDX-License-Identifier: Apache-2.0
"""Twin of `keyrail_gateware.announcer`."""

from __future__ import annotations

import numpy as np

from keyrail.contract import ANNOUNCEMENT, RECEIVER_ENTRY, TagKind
from keyrail.layouts import Structured, zeros

from .ledger import Ledger

_PART = 15
_PARTS = 4


class Announcer:
    """Announce the slots of detections, and keep their basis and bit, as the gateware does.

    Parameters
    ----------
    first_slot, last_slot
        Slots of the block, both included.
    """

    def __init__(self, first_slot: int = 0, last_slot: int = 0) -> None:
        self.first_slot = first_slot
        self.last_slot = last_slot
        self.past_end = False
        self.ledger = Ledger("announcer")
        self._last: int | None = None

    def process(
        self, detections: Structured, is_open: bool = True, room: int | None = None
    ) -> tuple[Structured, Structured]:
        """Pass a chunk of ``detection`` records; state is kept for the next chunk.

        Parameters
        ----------
        detections
            Detections and markers, slots rising.
        is_open
            The block takes detections.
        room
            Entries that block memory can still take; None for any number.

        Returns
        -------
        tuple
            ``announcement`` and ``receiver_entry`` records.
        """
        slot = detections["slot"].astype(np.int64)
        click = detections["kind"] == TagKind.CLICK
        inside = (slot >= self.first_slot) & (slot <= self.last_slot) & click & is_open
        fits = inside.copy()
        if room is not None:
            fits &= np.cumsum(inside) <= room
        self.ledger.count(
            np.flatnonzero(detections["kind"] == TagKind.FRAME),
            **{
                "in": click,
                "out": fits,
                "outside_block": click & ~inside,
                "memory_full": inside & ~fits,
            },
        )
        if is_open and len(slot):
            self.past_end |= bool((slot > self.last_slot).any())

        announced = slot[fits]
        before = self.first_slot if self._last is None else self._last
        difference = np.diff(announced, prepend=before)
        if len(announced):
            self._last = int(announced[-1])
        parts = [difference >> (_PART * k) & ((1 << _PART) - 1) for k in range(_PARTS)]
        needed = np.ones(len(difference), np.int64)
        for k in range(1, _PARTS):
            needed[(difference >> (_PART * k)) > 0] = k + 1
        ends = np.cumsum(needed)
        announcements = zeros(ANNOUNCEMENT, int(ends[-1]) if len(ends) else 0)
        for k in range(_PARTS):
            sent = needed > k
            announcements["difference"][ends[sent] - 1 - k] = parts[k][sent]
            announcements["more"][ends[sent] - 1 - k] = k > 0
        entries = zeros(RECEIVER_ENTRY, len(announced))
        entries["basis"], entries["bit"] = detections["basis"][fits], detections["bit"][fits]
        return announcements, entries
