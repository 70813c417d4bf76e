# SPDX-License-Identifier: Apache-2.0
"""Twin of `keyrail_gateware.state_memory`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from keyrail.contract import SENDER_ENTRY, STATE_BITS, STATES_PER_WORD
from keyrail.layouts import Structured, zeros

from .ledger import Ledger

_NO_FRAMES = np.zeros(0, np.int64)


class StateMemory:
    """Remember the states of the last slots and answer announced ones, as the gateware does.

    States and look-ups come one chunk after the other here; where the gateware takes both in one
    clock, it answers as if the state word had come first, except that slots of that very word
    are still ahead.

    Parameters
    ----------
    horizon_slots
        Slots in the ring.
    """

    def __init__(self, horizon_slots: int = 1 << 17) -> None:
        self.horizon_slots = horizon_slots
        self.first_state = 0
        self.first_slot = 0
        self.wipe()

    def wipe(self) -> None:
        """Forget everything; counters begin again."""
        self.ledger = Ledger("state_memory")
        self._ring = np.zeros(self.horizon_slots, np.uint8)
        self._next: int | None = None
        self._last: int | None = None
        self._upper = 0

    @property
    def next_slot(self) -> int:
        """Slot of the next state fed."""
        return self.first_state if self._next is None else self._next

    def feed(self, words: Structured) -> None:
        """Take ``state_word`` records."""
        states = np.empty(len(words) * STATES_PER_WORD, np.uint8)
        for i in range(STATES_PER_WORD):
            states[i::STATES_PER_WORD] = words[f"state_{i}"] & ((1 << STATE_BITS) - 1)
        start = self.next_slot
        self._next = start + len(states)
        kept = states[-self.horizon_slots :]
        at = (self._next - len(kept) + np.arange(len(kept))) % self.horizon_slots
        self._ring[at] = kept

    def look_up(self, announcements: Structured, room: int | None = None) -> Structured:
        """Answer ``announcement`` records with ``sender_entry`` records.

        Parameters
        ----------
        announcements
            Records; the last slot may be incomplete, and goes on with the next chunk.
        room
            Entries that block memory can still take; None for any number.
        """
        slots = self._slots(announcements)
        fits = np.ones(len(slots), bool)
        if room is not None:
            fits[room:] = False
        expired = (slots < self.first_state) | (slots + self.horizon_slots < self.next_slot)
        ahead = ~expired & (slots >= self.next_slot)
        state = np.where(expired | ahead, 0, self._ring[slots % self.horizon_slots])
        present = (state >> 3 & 1) == 1
        state = np.where(present, state, 0)
        known = fits & ~expired & ~ahead
        self.ledger.count(
            _NO_FRAMES,
            **{
                "in": np.ones(len(slots), bool),
                "memory_full": ~fits,
                "expired": fits & expired,
                "ahead": fits & ahead,
                "out": known & present,
                "absent": known & ~present,
            },
        )
        state = state[fits]
        entries = zeros(SENDER_ENTRY, len(state))
        for shift, name in enumerate(("basis", "bit", "intensity", "present")):
            entries[name] = state >> shift & 1
        return entries

    def _slots(self, announcements: Structured) -> npt.NDArray[np.int64]:
        last = np.flatnonzero(announcements["more"] == 0)
        parts = announcements["difference"].astype(np.int64)
        if len(last) == 0:
            for part in parts:
                self._upper = self._upper << 15 | int(part)
            return np.zeros(0, np.int64)
        starts = np.concatenate([[0], last[:-1] + 1])
        complete = last[-1] + 1
        behind = np.repeat(last, last - starts + 1) - np.arange(complete)
        difference = np.add.reduceat(parts[:complete] << (15 * behind), starts)
        difference[0] += self._upper << (15 * int(last[0] - starts[0] + 1))
        self._upper = 0
        for part in parts[complete:]:
            self._upper = self._upper << 15 | int(part)
        slots = (self.first_slot if self._last is None else self._last) + np.cumsum(difference)
        self._last = int(slots[-1])
        return slots
