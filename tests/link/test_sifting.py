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


def test_one_record_a_clock_on_both_sides_in_both_phases():
    """No clock is lost on the whole path of either station, but where the cipher is the path."""
    sender, receiver = sifting.sender_clocks(8_192), sifting.receiver_clocks(8_192)
    assert 0.64 <= sender.pop("slot made by the generator") <= 0.66
    assert 20 <= sender.pop("announcement, made again by the generator") <= 20.5
    assert len(sender) == len(receiver) == 3
    for path, clocks in (sender | receiver).items():
        assert 1 <= clocks <= 1.01, path


def test_latencies_are_those_that_the_blocks_state():
    from keyrail_gateware import state_memory

    found = sifting.latencies()
    assert found["announcement to entry, from the ring"] == state_memory.LATENCY
    assert found["basis to reply"] == found["reply to test result"] == 1


def test_rates_are_limited_by_what_the_states_come_from():
    """By hand: 20 Mb/s beside the states, of 24 bits an announcement, or 80 with its recall."""
    clocks = dict.fromkeys(
        ("announcement, from the ring", "announcement, from the control PC's copy"), 1.0
    ) | {"announcement, made again by the generator": 20.0}
    rows = {
        (row["round_trip_ms"], row["states_from"], row["memory"]): row
        for row in sifting.rates(clocks, 5_000_000)
    }
    small, large, copy = (memory for source, memory, _ in sifting.MEMORIES if source == "host")
    assert rows[1, "host", small]["announcements_per_second"] == 833_333
    assert rows[25, "host", large]["announcements_per_second"] == 0
    assert rows[500, "host", copy]["announcements_per_second"] == 250_000
    assert rows[500, "host", copy]["limited_by"] == "cable"
    again = rows[500, "generator", sifting.MEMORIES[-1][1]]
    # 10 M blocks a second, of which 100 M slots take 1/16 and 1/512 each; two for an answer.
    assert again["announcements_per_second"] == round((10e6 - 100e6 * 33 / 512) / 2)
    assert again["limited_by"] == "cipher"


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
