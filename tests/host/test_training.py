# SPDX-License-Identifier: Apache-2.0
"""The training pattern is found at any offset, and never in noise."""

import numpy as np
import pytest

from keyrail.training import TrainingError, find_first_slot, synchronise, training_states
from keyrail_sim.acquisition import (
    SLOTS_LOG2,
    attempt,
    information_bits,
    needed_bits,
    needed_signal,
    shortest_period,
)

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
    assert set(np.unique(pattern)) == {4, 8, 9, 10, 11}


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


def test_slots_are_acquired_among_thirteen_times_as_many_dark_counts():
    """No line of the spectrum stands out: the pattern says which of many candidates is right."""
    attempts = [attempt(seed, 40.0, 1e-4, 22) for seed in (0, 3, 6)]
    assert [a.period_ps for a in attempts] == [9375, 78949, 886]
    assert [a.right for a in attempts] == [True, True, False]
    assert not attempts[2].found
    # At 0.9 ns the clicks hold too little, and twice as many hold enough.
    limit = shortest_period(40.0, 22, 1e-4)
    assert 886 < limit < 2500
    assert attempt(6, 40.0, 1e-4, 23).right


def test_noise_is_never_taken_for_the_pattern():
    attempts = [attempt(seed, 60.0, 1e-4, 16) for seed in range(4)]
    attempts += [attempt(seed, 70.0, 1e-4, 20) for seed in range(3)]
    assert not any(a.found for a in attempts)


def test_pulses_without_the_pattern_are_refused():
    """Light of the right period in every slot: no start fits, whatever the period's evidence."""
    rng = np.random.default_rng(2)
    pattern = training_states(SLOTS)
    for seed in (0, 3):
        slots = np.sort(rng.choice(SLOTS, 400 + 100 * seed, replace=False))
        times = slots * 50_000 + np.round(rng.normal(25_000, 40, len(slots))).astype(np.int64)
        dark = rng.integers(0, SLOTS * 50_000, 2000)
        times = np.sort(np.concatenate([times, dark]))
        with pytest.raises(TrainingError, match="not found"):
            synchronise(times, np.zeros(len(times), np.uint8), pattern, 2e7, (0, SLOTS * 50_000))


def test_information_of_clicks():
    # Without dark counts each click is worth a bit; with the same number in the window, 0.19 of it.
    assert information_bits(50, 0, 10_000.0) == pytest.approx(50, rel=1e-3)
    assert information_bits(50, 1e9, 10_000.0) < 0.01
    assert needed_signal(0) == np.ceil(needed_bits()) == 37
    assert needed_signal(100) == pytest.approx(100, abs=15)
    least = [needed_signal(background) for background in (0, 10, 100, 1000)]
    assert least == sorted(least)
