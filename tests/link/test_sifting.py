# SPDX-License-Identifier: Apache-2.0
"""Sifting over a link that loses frames, and the statistics of the source, in small."""

import pytest

from keyrail_sim import sifting

pytestmark = pytest.mark.xdist_group("stations")


@pytest.mark.parametrize("kind", ["sim", "sim-model"])
def test_sifted_bits_are_identical_whatever_frames_are_lost(kind):
    """A round trip past the ring: every announced slot comes from the control PC's copy."""
    found = sifting.sift(
        sifting.Experiment(
            slots=600_000,
            detections=6_000,
            frame_slots=1 << 14,
            delay_slots=200_000,
            loss=0.2,
            kind=kind,
        )
    )
    assert found["frames_lost"] > 2
    assert found["detections_in_lost_frames"] > 200
    assert found["sifted_bits"] > 2_500
    assert found["recalled_from_the_copy"] > 1_500
    assert found["expired"] == 0
    tally = found["receiver_tally"]
    assert tally["z"] + tally["x_zero"] + tally["x_one"] == found["sifted_bits"]
    looked_up = found["detections"] - found["detections_in_lost_frames"]
    assert found["dropped_at_the_receiver"] == found["detections"] - found["sifted_bits"]
    assert looked_up > found["sifted_bits"]


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
