# SPDX-License-Identifier: Apache-2.0
"""Twin of `keyrail_gateware.state_memory`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from keyrail.contract import RECALLED, SENDER_ENTRY, STATES_PER_WORD
from keyrail.layouts import Structured, zeros

from .ledger import Ledger

_NO_FRAMES = np.zeros(0, np.int64)
_KNOWN, _ASKED, _EXPIRED, _AHEAD = range(4)


class StateMemory:
    """Remember the states of the last slots and answer announced ones, as the gateware does.

    States and look-ups come one chunk after the other here; where the gateware takes both at once,
    a word's slots are ahead until it is written, and those that it overwrites expired a clock
    before.

    Parameters
    ----------
    horizon_slots
        Slots in the ring.
    """

    def __init__(self, horizon_slots: int = 1 << 17) -> None:
        self.horizon_slots = horizon_slots
        self.first_state = 0
        self.first_slot = 0
        self.recall = False
        self.stopped = False
        self.words_log2 = self.sync_words = 0
        self.wipe()

    def wipe(self) -> None:
        """Forget everything; counters begin again."""
        self.ledger = Ledger("state_memory")
        self._ring = np.zeros(self.horizon_slots, np.uint8)
        self._next: int | None = None
        self._last: int | None = None
        self._upper = 0
        self._kinds = np.zeros(0, np.uint8)
        self._codes = np.zeros(0, np.uint8)
        self._answers = zeros(RECALLED, 0)

    @property
    def next_slot(self) -> int:
        """Slot of the next state fed."""
        return self.first_state if self._next is None else self._next

    def feed(self, states: npt.NDArray[np.uint8], present: npt.NDArray[np.bool_]) -> None:
        """Take the states of slots in a row, and whether each may be used."""
        self._next = self.next_slot + len(states)
        kept = (states | present.astype(np.uint8) << 3)[-self.horizon_slots :]
        at = (self._next - len(kept) + np.arange(len(kept))) % self.horizon_slots
        self._ring[at] = kept

    def look_up(self, announcements: Structured) -> npt.NDArray[np.int64]:
        """Take ``announcement`` records; the entries come from `entries`.

        Parameters
        ----------
        announcements
            Records; the last slot may be incomplete, and goes on with the next chunk.

        Returns
        -------
        numpy.ndarray
            Slots that are asked for, in order.
        """
        slots = self._slots(announcements)
        words = slots // STATES_PER_WORD
        sync = (words & ((1 << self.words_log2) - 1)) < self.sync_words
        before = slots < self.first_state
        ahead = ~before & (slots >= self.next_slot)
        left = ~before & ~ahead & (slots + self.horizon_slots < self.next_slot)
        kinds = np.full(len(slots), _KNOWN, np.uint8)
        kinds[before] = _EXPIRED
        kinds[ahead] = _KNOWN if self.stopped else _AHEAD
        kinds[left & ~sync] = _ASKED if self.recall else _EXPIRED
        held = (kinds == _KNOWN) & ~ahead & ~sync
        codes = np.where(held, self._ring[slots % self.horizon_slots], 0).astype(np.uint8)
        codes[codes < 8] = 0
        self.ledger.count(_NO_FRAMES, **{"in": np.ones(len(slots), bool)})
        self._kinds = np.concatenate([self._kinds, kinds])
        self._codes = np.concatenate([self._codes, codes])
        asked: npt.NDArray[np.int64] = slots[kinds == _ASKED]
        return asked

    def answer(self, recalled: Structured) -> None:
        """Take ``recalled`` records, the answers to what `look_up` has asked for."""
        self._answers = np.concatenate([self._answers, recalled])

    def entries(self, room: int | None = None) -> Structured:
        """Give the ``sender_entry`` records of all announcements whose turn has come.

        Parameters
        ----------
        room
            Entries that block memory can still take; None for any number.
        """
        asked = np.flatnonzero(self._kinds == _ASKED)
        answered = min(len(asked), len(self._answers))
        count = int(asked[answered]) if answered < len(asked) else len(self._kinds)
        kinds, codes = self._kinds[:count], self._codes[:count].copy()
        answers, self._answers = self._answers[:answered], self._answers[answered:]
        self._kinds, self._codes = self._kinds[count:], self._codes[count:]
        asked = asked[:answered]
        code = answers["basis"] | answers["bit"] << 1 | answers["intensity"] << 2 | 8
        known = answers["known"] == 1
        codes[asked] = np.where(known & (answers["present"] == 1), code, 0)
        lost = kinds == _EXPIRED
        lost[asked] = ~known
        ahead = kinds == _AHEAD
        present = codes >= 8
        fits = np.ones(count, bool)
        if room is not None:
            fits[room:] = False
        self.ledger.count(
            _NO_FRAMES,
            memory_full=~fits,
            expired=fits & lost,
            ahead=fits & ahead,
            out=fits & present,
            absent=fits & ~present & ~lost & ~ahead,
        )
        entries = zeros(SENDER_ENTRY, int(fits.sum()))
        for shift, name in enumerate(("basis", "bit", "intensity", "present")):
            entries[name] = codes[fits] >> shift & 1
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
