# SPDX-License-Identifier: Apache-2.0
"""The control PC's copy of the states that it fed, for slots that have left the board's ring."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from keyrail.contract import RECALLED, STATES_PER_WORD
from keyrail.errors import SettingError
from keyrail.layouts import Structured, zeros

HORIZON_SLOTS = 1 << 27
"""Slots that a copy holds unless another number is given: 1.3 s at 100 M slots/s, 64 MiB."""


class StateCopy:
    """Remember the last states fed, and answer the board's missed slots.

    Half a byte a slot. Answers take about 0.1 us each, and states about 1 ns each, on one core.

    Parameters
    ----------
    horizon_slots
        Slots it holds, a multiple of 16.

    Raises
    ------
    SettingError
        If the number of slots is no multiple of 16.
    """

    def __init__(self, horizon_slots: int = HORIZON_SLOTS) -> None:
        if horizon_slots < STATES_PER_WORD or horizon_slots % STATES_PER_WORD:
            raise SettingError("horizon_slots", horizon_slots, "multiples of 16")
        self.horizon_slots = horizon_slots
        self._pairs = np.zeros(horizon_slots // 2, np.uint8)
        self.begin(0)

    def begin(self, first_slot: int) -> None:
        """Begin a block whose first state is that of `first_slot`; what it held is overwritten."""
        self.wipe()
        self._first = self._next = first_slot

    def wipe(self) -> None:
        """Overwrite every state."""
        held = min(getattr(self, "_next", 0) - getattr(self, "_first", 0), self.horizon_slots)
        if held == self.horizon_slots:
            self._pairs[:] = 0
        elif held:
            at = (self._first // 2 + np.arange(held // 2)) % len(self._pairs)
            self._pairs[at] = 0
        self._first = self._next = 0

    @property
    def bytes(self) -> int:
        """Memory it takes."""
        return self._pairs.nbytes

    @property
    def next_slot(self) -> int:
        """Slot of the next state."""
        return self._next

    def feed(self, states: npt.NDArray[np.uint8]) -> None:
        """Take the states of the next slots, as they go to the board.

        Parameters
        ----------
        states
            State codes, shape (16 n,); what lies above bit 2 is left out.
        """
        pairs = states[::2] & 7 | (states[1::2] & 7) << 4
        start = self._next // 2
        self._next += len(states)
        skip = max(0, len(pairs) - len(self._pairs))
        pairs = pairs[skip:]
        at = (start + skip) % len(self._pairs)
        room = len(self._pairs) - at
        self._pairs[at : at + len(pairs)] = pairs[:room]
        self._pairs[: max(0, len(pairs) - room)] = pairs[room:]

    def answer(self, slots: npt.NDArray[np.int64]) -> Structured:
        """Answer missed slots.

        Parameters
        ----------
        slots
            Slots of ``missed_slot`` records, in their order.

        Returns
        -------
        numpy.ndarray
            ``recalled`` records, one each. A slot that this copy does not hold any more, or never
            held, is not known: the board counts it as expired.
        """
        slots = slots.astype(np.int64)
        known = (slots >= self._first) & (slots < self._next)
        known &= slots + self.horizon_slots >= self._next
        pair = self._pairs[(slots // 2) % len(self._pairs)]
        code = np.where(known, pair >> (slots % 2 * 4).astype(np.uint8) & 7, 0)
        answers = zeros(RECALLED, len(slots))
        for shift, name in enumerate(("basis", "bit", "intensity")):
            answers[name] = code >> shift & 1
        answers["present"] = answers["known"] = known
        return answers
