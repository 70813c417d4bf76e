# SPDX-License-Identifier: Apache-2.0
"""Twin of `keyrail_gateware.blanking`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from keyrail.contract import CHANNELS, SLOT_BITS, TagKind
from keyrail.layouts import Structured

from .ledger import Ledger

_MASK = (1 << SLOT_BITS) - 1


class Blanking:
    """Drop clicks in slots in which some detector may not be live, as the gateware does.

    Parameters
    ----------
    slots
        By channel: slots that stay blanked after a raw click of it; the gateware is built for as
        many channels.
    """

    def __init__(self, slots: Sequence[int] = (0,) * CHANNELS) -> None:
        self.slots = tuple(slots)
        self.ledger = Ledger("blanking")
        self._slot = 0  # of the last record
        self._left = 0  # slots after it that are blanked
        self._blank = False  # whether it is blanked itself

    def process(self, tags: Structured) -> Structured:
        """Pass a chunk of ``slot_tag`` records; state is kept for the next chunk."""
        if not len(tags):
            return tags
        click = tags["kind"] == TagKind.CLICK
        loss = tags["kind"] == TagKind.LOSS
        lengths = np.zeros(1 << 6, np.int64)
        lengths[: len(self.slots)] = self.slots
        new = np.where(click, lengths[tags["channel"]], np.where(loss, max(self.slots), 0))

        # Slots from the last record of the chunk before; slots rise, so differences do not wrap.
        slots = np.concatenate([[self._slot], tags["slot"].astype(np.int64)])
        steps = (slots[1:] - slots[:-1]) & _MASK
        place = np.cumsum(steps)
        # The last slot blanked, by all records so far; and by those of earlier slots alone.
        end = np.maximum(np.maximum.accumulate(place + new), self._left)
        first = np.maximum.accumulate(np.where(steps > 0, np.arange(len(tags)), 0))
        before = np.where(first > 0, end[first - 1], self._left)
        blank = place <= before
        blank[place == 0] = self._blank

        self._slot = int(tags["slot"][-1])
        self._left = int(end[-1] - place[-1])
        self._blank = bool(blank[-1])
        blanked = click & blank
        self.ledger.count(
            np.flatnonzero(tags["kind"] == TagKind.FRAME),
            **{"in": click, "out": click & ~blanked, "blanked": blanked, "losses": loss},
        )
        passed: Structured = tags[~blanked]
        return passed
