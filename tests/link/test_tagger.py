# SPDX-License-Identifier: Apache-2.0
"""A whole receiver from the samples of its pins to detections. `make test-full-size`."""

import os

import numpy as np
import pytest

from keyrail.contract import TDC_INPUTS, Mode
from keyrail_sim import tagger

pytestmark = pytest.mark.xdist_group("tagger")
built = pytest.mark.skipif(
    "KEYRAIL_FULL_SIZE" not in os.environ,
    reason="builds a station of its own, some minutes: make test-full-size",
)


@pytest.fixture(scope="module")
def board():
    with tagger.opened() as opened:
        yield opened


@built
def test_eight_detectors_at_once_a_tag_a_clock_from_the_pins_to_the_announcer(board):
    passage = tagger.all_at_once(board, 10_000)
    assert passage.clocks == 80_000
    assert passage.slotted == passage.edges == 80_001
    assert passage.refused == passage.missed == 0
    assert passage.detections == 10_000


@built
@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize("seed", [1, 2])
def test_nonsense_from_the_pins_is_counted_to_the_single_edge(board, mode, seed):
    passage = tagger.under_nonsense(board, 30_000, seed, mode)
    assert passage.refused > 1000
    assert passage.missed > 1000
    assert passage.stamped == passage.edges
    if mode is Mode.INSTRUMENT:
        assert passage.in_stream + passage.in_losses == passage.edges


@built
def test_an_edge_is_a_gated_tag_within_a_bounded_time(board):
    assert 20 < tagger.latency(board) < 80


def test_samples_of_pins():
    """Youngest sample in bit 0; an edge is seen from the first sample at its time on."""
    toggles = [np.array([10_000, 22_500]), np.array([1, 9_999])]
    rows = tagger.sampled(toggles, 4)
    assert rows.shape == (4, TDC_INPUTS)
    assert rows[:, 0].tolist() == [0x00, 0xFF, 0xC0, 0x00]
    assert rows[:, 1].tolist() == [0x7F, 0x00, 0x00, 0x00]
    rose, fell = tagger.edges_of(rows)
    assert np.argwhere(rose).tolist() == [[0, 1], [1, 0]]
    assert np.argwhere(fell).tolist() == [[1, 1], [2, 0]]
    noise = tagger.nonsense(5000, np.random.default_rng(3))
    assert not noise[-1].any()
    rose, fell = tagger.edges_of(noise)
    assert rose.sum() == fell.sum() > 5000
