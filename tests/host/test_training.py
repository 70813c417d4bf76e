# SPDX-License-Identifier: Apache-2.0
"""The training pattern is found at any offset, and never in noise."""

import numpy as np
import pytest

from keyrail.training import TrainingError, find_first_slot, training_states
from keyrail_sim.acquisition import SLOTS_LOG2, attempt

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


def test_bounds_on_the_start():
    rng = np.random.default_rng(9)
    pattern = training_states(SLOTS)
    present = np.flatnonzero(pattern >> 3)
    slots = np.sort(rng.choice(present, 100, replace=False)) + 5_000
    for within in (None, (0, 10_000), (5_000, 5_000), (-70_000, 5_000), (5_000, 200_000)):
        assert find_first_slot(slots, pattern, within) == 5_000
    for within in ((0, 4_999), (5_001, 9_000), (100_000, 101_000)):
        with pytest.raises(TrainingError, match="not found"):
            find_first_slot(slots, pattern, within)
    with pytest.raises(TrainingError, match="the lower one first"):
        find_first_slot(slots, pattern, (2, 1))
    # The same clicks are too few for a search over many slots, and enough for a search of few.
    few = slots[:30]
    with pytest.raises(TrainingError, match="not found"):
        find_first_slot(few, pattern)
    assert find_first_slot(few, pattern, (4_990, 5_010)) == 5_000


@pytest.mark.parametrize(("loss_db", "dark"), [(20.0, 1e-5), (40.0, 1e-6)])
def test_slots_are_acquired(loss_db, dark):
    """A few seeds of `make figure-acquisition`: any period, 100 ppm off, at 20 and 40 dB."""
    attempts = [attempt(seed, loss_db, dark, SLOTS_LOG2[loss_db]) for seed in range(4)]
    assert all(a.right for a in attempts), attempts


def test_noise_is_never_taken_for_the_pattern():
    attempts = [attempt(seed, 60.0, 1e-4, 16) for seed in range(4)]
    assert not any(a.found for a in attempts)
