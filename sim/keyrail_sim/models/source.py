# SPDX-License-Identifier: Apache-2.0
"""Twin of `keyrail_gateware.source`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from keyrail.contract import STATES_PER_WORD, sync_pattern
from keyrail.layouts import Structured
from keyrail.source import word_states

from .ledger import Ledger

_NO_FRAMES = np.zeros(0, np.int64)


@dataclass(frozen=True)
class Modulator:
    """Settings of one output, the fields of the contract's ``modulator_0`` without ``fine``."""

    codes: int = 0
    frame: int = 0
    start: int = 0
    stop: int = 0
    delay: int = 0
    invert: int = 0


class Source:
    """Sync slots, the block's end, and the patterns of the modulators, as the gateware has them.

    Words come in chunks here and time does not pass: a paced source ends with the block's last
    word; that it starves is said by `starve`.

    Parameters
    ----------
    first_word, last_word
        First and last word of sixteen slots.
    paced
        The source stops after its last word.
    words_log2, sync_words
        Frame of 2^words_log2 words that begins with so many words of sync slots.
    """

    def __init__(
        self,
        first_word: int = 0,
        last_word: int = 0,
        paced: bool = False,
        words_log2: int = 0,
        sync_words: int = 0,
    ) -> None:
        self.last_word = last_word
        self.paced = paced
        self.words_log2, self.sync_words = words_log2, sync_words
        self.ledger = Ledger("source")
        self.following = first_word
        self.ended = self.starved = False

    def in_sync(self, words: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Whether words of those numbers hold sync slots."""
        return np.asarray((words & ((1 << self.words_log2) - 1)) < self.sync_words)

    def starve(self) -> None:
        """No word came in time: the source stops for the rest of the block."""
        self.starved = not self.ended

    def process(self, words: Structured) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
        """Pass ``state_word`` records.

        Returns
        -------
        tuple
            State codes of the slots emitted, and whether they may be used.
        """
        count = len(words)
        if self.ended or self.starved:
            room = 0
        else:
            room = self.last_word + 1 - self.following if self.paced else count
        taken = min(count, room)
        numbers = self.following + np.arange(taken, dtype=np.int64)
        self.following += taken
        self.ended |= self.paced and self.following > self.last_word and not self.starved
        sync = self.in_sync(numbers)
        step = np.arange(count) < taken
        self.ledger.count(
            _NO_FRAMES, **{"in": np.ones(count, bool), "surplus": ~step, "sync": sync, "out": ~sync}
        )
        states = word_states(words[:taken])
        place = numbers[sync] & ((1 << self.words_log2) - 1)
        pattern = np.array(sync_pattern())[place, None] >> np.arange(STATES_PER_WORD) & 1
        states.reshape(-1, STATES_PER_WORD)[sync] = pattern << 1
        return states, ~np.repeat(sync, STATES_PER_WORD)

    def samples(
        self,
        states: npt.NDArray[np.uint8],
        first_word: int,
        modulator: Modulator,
        clocks: int,
        gear: int,
    ) -> npt.NDArray[np.uint8]:
        """Samples of one output over the slots of `states`, from ``begins`` of the first on.

        Parameters
        ----------
        states
            State codes of slots in a row, whole words.
        first_word
            Number of their first word.
        modulator
            Settings of the output.
        clocks, gear
            Clocks a slot, and samples a clock.

        Returns
        -------
        numpy.ndarray
            uint8, shape (slots * clocks * gear + 15,): what a delay holds back comes last.
        """
        slots = len(states)
        high = modulator.codes >> states.astype(np.int64) & 1
        if modulator.frame and self.words_log2:
            number = first_word * STATES_PER_WORD + np.arange(slots)
            high |= number % (STATES_PER_WORD << self.words_log2) == 0
        at = np.arange(clocks * gear)
        window = (at >= modulator.start) & (at < modulator.stop)
        levels = (high[:, None] & window[None, :]).astype(np.uint8).reshape(-1)
        line = np.zeros(len(levels) + 15, np.uint8)
        line[modulator.delay : modulator.delay + len(levels)] = levels
        return line ^ np.uint8(modulator.invert)
