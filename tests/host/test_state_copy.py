# SPDX-License-Identifier: Apache-2.0
"""The control PC's copy of the states: right, or not known; never another slot's."""

import numpy as np
import pytest

from keyrail.errors import SettingError
from keyrail.state_copy import StateCopy


@pytest.mark.parametrize("first", [0, 16 * 5, (1 << 48) - 16 * 300])
def test_every_answer_is_the_state_fed_or_not_known(first):
    rng = np.random.default_rng(first % 97)
    copy = StateCopy(256)
    copy.begin(first)
    fed = np.zeros(0, np.uint8)
    for words in (0, 1, 3, 16, 17, 2, 40, 1):
        drawn = rng.integers(0, 16, 16 * words).astype(np.uint8)
        copy.feed(drawn)
        fed = np.concatenate([fed, drawn & 7])
        assert copy.next_slot == first + len(fed)
        slots = np.arange(first - 5, first + len(fed) + 5)
        answers = copy.answer(slots)
        index = slots - first
        known = (index >= 0) & (index < len(fed)) & (index >= len(fed) - 256)
        assert np.array_equal(answers["known"] == 1, known)
        assert np.array_equal(answers["present"] == 1, known)
        code = answers["basis"] | answers["bit"] << 1 | answers["intensity"] << 2
        assert np.array_equal(code[known], fed[index[known]])
        assert not code[~known].any()


def test_a_new_block_and_a_wipe_leave_nothing():
    copy = StateCopy(64)
    for count in (16, 48, 64, 160):
        copy.begin(32)
        copy.feed(np.full(count, 7, np.uint8))
        copy.wipe()
        assert not copy._pairs.any()
        assert not copy.answer(np.arange(32, 32 + count))["known"].any()


def test_horizon_that_is_no_whole_word_is_refused():
    with pytest.raises(SettingError, match="multiples of 16"):
        StateCopy(40)
