# SPDX-License-Identifier: Apache-2.0
"""States drawn from bytes: exact thresholds, frequencies, refusals."""

import math

import numpy as np
import pytest

from keyrail.contract.records import STATE
from keyrail.randomness import TestRandom
from keyrail.source import (
    BASIS_BIT,
    BIT_BIT,
    DECOY_BIT,
    PRESENT_BIT,
    quantised,
    random_states,
)


def test_masks_are_those_of_the_contract() -> None:
    offsets, offset = {}, 0
    for field in STATE.fields:
        offsets[field.name] = 1 << offset
        offset += field.bits
    masks = [BASIS_BIT, BIT_BIT, DECOY_BIT, PRESENT_BIT]
    assert [offsets[name] for name in ("basis", "bit", "intensity", "present")] == masks


@pytest.mark.parametrize("slots", [0, 1, 7, 8, 1 << 18, (1 << 18) + 3, 1_000_000])
def test_frequencies_and_independence(slots: int) -> None:
    states = random_states(TestRandom(4, "states").bytes, slots, 0.7, 0.3)
    assert states.shape == (slots,)
    assert states.dtype == np.uint8
    assert np.all(states & 0xF8 == PRESENT_BIT)
    p_z, p_signal = quantised(0.7), quantised(0.3)
    counts = np.bincount(states & 7, minlength=8)
    for code in range(8):
        p = 0.5
        p *= 1 - p_z if code & BASIS_BIT else p_z
        p *= 1 - p_signal if code & DECOY_BIT else p_signal
        assert abs(counts[code] - slots * p) <= 5 * math.sqrt(slots * p * (1 - p)) + 1


def test_thresholds_are_exact() -> None:
    """All 65,536 words once each: as many Z and signals as the quantised probability says."""
    words = np.arange(65536, dtype="<u2").tobytes()

    def every_word(n: int) -> bytes:
        return words if n == len(words) else bytes(n)

    states = random_states(every_word, 65536, 0.7, 0.3)
    assert np.sum(states & BASIS_BIT == 0) == 65536 * quantised(0.7) == 45875
    assert np.sum(states & DECOY_BIT == 0) == 65536 * quantised(0.3) == 19661


@pytest.mark.parametrize(("p", "expected"), [(0.0, BASIS_BIT), (1.0, 0)])
def test_ends_are_certain(p: float, expected: int) -> None:
    states = random_states(TestRandom(4, "states").bytes, 100_000, p, 0.5)
    assert np.all(states & BASIS_BIT == expected)


def test_nonsense_is_refused() -> None:
    source = TestRandom(4, "states").bytes
    with pytest.raises(ValueError, match="slots"):
        random_states(source, -1, 0.5, 0.5)
    with pytest.raises(ValueError, match="p_z"):
        random_states(source, 1, 1.5, 0.5)
    with pytest.raises(ValueError, match="p_signal"):
        random_states(source, 1, 0.5, math.nan)
    with pytest.raises(ValueError, match="gave 3 bytes"):
        random_states(lambda n: b"abc", 100, 0.5, 0.5)
