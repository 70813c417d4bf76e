# SPDX-License-Identifier: Apache-2.0
"""Twin of `keyrail_gateware.blanking`."""

from __future__ import annotations

import numpy as np

from keyrail.contract import TagKind
from keyrail.layouts import Structured

from .ledger import Ledger

_MASK = np.uint64((1 << 48) - 1)


class Blanking:
    """Drop clicks in the slots that follow a raw click, bit for bit as the gateware does.

    Parameters
    ----------
    slots
        Slots that stay blanked after each raw click.
    """

    def __init__(self, slots: int = 0) -> None:
        self.slots = slots
        self.ledger = Ledger("blanking")
        self._present: int | None = None
        self._former: int | None = None

    def process(self, tags: Structured) -> Structured:
        """Pass a chunk of ``slot_tag`` records; state is kept for the next chunk."""
        click = tags["kind"] == TagKind.CLICK
        raw = np.flatnonzero(click | (tags["kind"] == TagKind.LOSS))
        blanked = np.zeros(len(tags), bool)
        if len(raw):
            slot = tags["slot"][raw].astype(np.uint64)
            history = [s for s in (self._former, self._present) if s is not None]
            known = np.concatenate([np.array(history, np.uint64), slot])
            # Index of the first of the run of equal slots that each element belongs to.
            starts = np.concatenate([[True], known[1:] != known[:-1]])
            first = np.maximum.accumulate(np.where(starts, np.arange(len(known)), 0))
            last = first[len(history) :] - 1
            gap = (slot - known[np.maximum(last, 0)]) & _MASK
            blanked[raw] = (last >= 0) & (gap <= np.uint64(self.slots))
            blanked &= click
            self._present = int(known[-1])
            self._former = int(known[first[-1] - 1]) if first[-1] > 0 else None
        self.ledger.count(
            np.flatnonzero(tags["kind"] == TagKind.FRAME),
            **{"in": click, "out": click & ~blanked, "blanked": blanked},
        )
        return tags[~blanked]
