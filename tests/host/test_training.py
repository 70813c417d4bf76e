# SPDX-License-Identifier: Apache-2.0
"""The training pattern is found at any offset, and never in noise."""

import numpy as np
import pytest

from keyrail.training import TrainingError, find_first_slot, training_states

SLOTS = 1 << 16


@pytest.mark.parametrize("offset", [0, 1, 17, 4096, -1, -1000])
def test_offset_is_found(offset):
    rng = np.random.default_rng(abs(offset))
    pattern = training_states(SLOTS)
    present = np.flatnonzero(pattern >> 3)
    clicks = np.sort(rng.choice(present, 600, replace=False)) + offset
    dark = rng.integers(0, SLOTS, 60)
    slots = np.concatenate([clicks[clicks >= 0], dark])
    assert find_first_slot(slots, pattern) == offset


def test_noise_is_refused():
    rng = np.random.default_rng(5)
    pattern = training_states(SLOTS)
    for count in (1, 10, 1000):
        with pytest.raises(TrainingError, match="not found"):
            find_first_slot(rng.integers(0, SLOTS, count), pattern)
    with pytest.raises(TrainingError, match="no click"):
        find_first_slot(np.zeros(0, np.int64), pattern)


def test_pattern_is_fixed_and_balanced():
    pattern = training_states(SLOTS)
    assert np.array_equal(pattern, training_states(2 * SLOTS)[:SLOTS])
    present = (pattern >> 3).mean()
    assert abs(present - 0.5) < 5 * 0.5 / np.sqrt(SLOTS)
    assert set(np.unique(pattern)) == {0, 8, 9, 10, 11}
