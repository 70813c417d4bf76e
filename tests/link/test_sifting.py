# SPDX-License-Identifier: Apache-2.0
"""Sifting over a link that loses frames, and the statistics of the source, in small."""

import numpy as np
import pytest

from keyrail_sim import sifting

pytestmark = pytest.mark.xdist_group("stations")


@pytest.mark.parametrize(("kind", "paced"), [("sim", True), ("sim-model", False)])
def test_sifted_bits_are_identical_whatever_frames_are_lost(kind, paced):
    """A round trip past the ring: every announced slot comes from the control PC's copy."""
    found = sifting.sift(
        sifting.Experiment(
            slots=600_000,
            detections=6_000,
            frame_slots=1 << 14,
            delay_slots=200_000,
            loss=0.2,
            kind=kind,
            paced=paced,
        )
    )
    assert found["frames_lost"] > 2
    assert found["detections_in_lost_frames"] > 200
    assert found["sifted_bits"]["sender"] == found["sifted_bits"]["receiver"] > 2_500
    assert found["sifted_bits_differ"] == found["test_errors"] == 0
    assert found["recalled_from_the_copy"] > 1_500
    assert found["expired"] == 0
    if paced:
        # A slot a clock: the source was never behind, and no clock was spent on anything else.
        assert found["ledgers"]["source"] == {"in": 37_500, "out": 37_500, "sync": 0, "surplus": 0}
        assert 600_000 < found["simulated_clocks"]["sim:alice"] < 1_400_000


def test_a_bit_that_differs_is_found(monkeypatch):
    """The experiment has teeth: some states go to the board with their bit flipped."""
    exact = sifting.state_words

    def flipped(states):
        return exact(np.where(np.arange(len(states)) < 4_000, states ^ 2, states))

    monkeypatch.setattr(sifting, "state_words", flipped)
    small = sifting.Experiment(
        slots=1 << 15,
        detections=300,
        frame_slots=1 << 15,
        delay_slots=0,
        loss=0,
        kind="sim-model",
        paced=False,
    )
    with pytest.raises(sifting.SiftingError, match="differ in bit"):
        sifting.sift(small)
    monkeypatch.undo()
    assert sifting.sift(small)["sifted_bits"]["sender"] > 100


def test_statistics_of_the_source():
    """Chi-square of 2^20 draws; the seeds are fixed, so that it cannot fail by chance."""
    results = sifting.statistics(1 << 20)["results"]
    assert [result["source"] for result in results] == ["host", "generator"]
    for result in results:
        assert sum(result["counts"]) == 1 << 20
        assert result["p_value"] > 1e-3, result


def test_a_bias_that_is_off_by_little_is_seen(monkeypatch):
    """The test has teeth: 2^20 draws of a probability that is 0.004 off."""
    exact = sifting.random_states
    monkeypatch.setattr(
        sifting, "random_states", lambda draw, n, z, signal: exact(draw, n, z - 0.004, signal)
    )
    host = sifting.statistics(1 << 20)["results"][0]
    assert host["p_value"] < 1e-12
