# SPDX-License-Identifier: Apache-2.0
"""Correlation of channels: against every pair counted one by one."""

import numpy as np
import pytest

from keyrail.correlation import Correlation
from keyrail.errors import SettingError


@pytest.mark.parametrize("first", [0, -400, -35, 70, -2_000])
@pytest.mark.parametrize("channels", [(1, 2), (2, 1), (1, 1)])
def test_every_pair_counts_however_the_tags_are_cut(first, channels):
    rng = np.random.default_rng(abs(first) + channels[0])
    times = np.cumsum(rng.integers(0, 25, 400))
    numbers = rng.integers(0, 4, 400)
    a, b = channels
    expected = np.zeros(50, int)
    for i in np.flatnonzero(numbers == a):
        for j in np.flatnonzero(numbers == b):
            bin_number = (times[j] - times[i] - first) // 8
            if i != j and 0 <= bin_number < 50:
                expected[bin_number] += 1
    measured = Correlation(a, b, 8, 50, first)
    cuts = np.sort(rng.integers(0, 400, 12))
    for part in np.split(np.arange(400), cuts):
        measured.add(times[part], numbers[part])
    assert measured.get_data().tolist() == expected.tolist()
    assert expected.sum() > 0 or first == -2_000
    assert measured.get_index()[:2].tolist() == [first, first + 8]
    measured.clear()
    assert measured.get_data().sum() == 0


def test_independent_clicks_are_normalised_to_one():
    rng = np.random.default_rng(4)
    times = np.sort(rng.integers(0, 10**9, 60_000))
    measured = Correlation(0, 1, 1_000, 100, -50_000)
    measured.add(times, rng.integers(0, 2, 60_000))
    assert measured.get_normalised().mean() == pytest.approx(1, abs=0.02)
    assert np.isnan(Correlation(0, 1, 10, 10).get_normalised()).all()


def test_wrong_use_is_refused():
    measured = Correlation(0, 1, 10, 10)
    measured.add(np.array([5, 9]), np.array([0, 1]))
    with pytest.raises(ValueError, match="times fall"):
        measured.add(np.array([8]), np.array([0]))
    with pytest.raises(ValueError, match="times fall"):
        measured.add(np.array([18, 17]), np.array([0, 1]))
    with pytest.raises(ValueError, match="as many"):
        measured.add(np.array([18]), np.array([0, 1]))
    for settings in ((64, 0, 1, 1), (0, -1, 1, 1), (0, 0, 0, 1), (0, 0, 1, 0)):
        with pytest.raises(SettingError, match="allowed"):
            Correlation(*settings)
