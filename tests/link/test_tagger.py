# SPDX-License-Identifier: Apache-2.0
"""A whole receiver from the samples of its pins to detections. `make test-full-size`."""

import os
from dataclasses import replace

import numpy as np
import pytest

from keyrail import selftest, t2, tag_input, tag_path
from keyrail.calibration import calibrate, run_in_background
from keyrail.contract import PERIOD_FRACTION_BITS, TDC_INPUTS, Mode, TdcResult
from keyrail.errors import SettingError
from keyrail_sim import tagger
from keyrail_sim.verilated import CLOCK_PS, VerilatedBoard

EVERY = (1 << TDC_INPUTS) - 1
FALLING, UNCALIBRATED = 16, 32
"""What a channel number has on top for such an edge."""

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


@pytest.fixture
def bare():
    """The station as it comes up: nothing calibrated, nothing set."""
    with VerilatedBoard(tagger.design(), "sim:tagger") as board:
        yield board


def pulses(period_ps, count, first_ps=500 * CLOCK_PS, high_ps=12_000):
    """When one input's level turns over."""
    rising = first_ps + np.arange(count) * period_ps
    return np.stack([rising, rising + high_ps], 1).ravel()


def stamped(board, toggles, clocks):
    """T2 events of what the pins show, and how many of them are clicks of a detector."""
    tag_input.set_raw(board, True)
    board.drive(tagger.sampled(toggles, clocks))
    board.step(clocks + 2 * tagger.TIME_RECORD_CLOCKS)
    events = t2.decode(board.receive_bytes(board.streams["raw"]).tobytes())
    clicks = board.ledger("slotter")["out"]
    tag_input.set_raw(board, False)
    return events, clicks


@built
def test_self_test_of_a_bare_board(bare):
    """The real oscillator path: every input switched to it, counted, its table swapped in."""
    control = bare.registers["tdc_control"]
    hits = control.reset >> 22
    assert hits == 20
    # 2^10 edges an input instead of 2^20.
    bare.registers["tdc_control"] = replace(control, reset=control.reset - (10 << 22))
    result = selftest.run(bare)
    assert result.passed, result.summary()
    (oscillator,) = [check for check in result.checks if check.name == "Oscillator"]
    assert oscillator.outcome is selftest.Outcome.PASS
    assert oscillator.detail.startswith(f"{TDC_INPUTS} inputs calibrated from ")
    assert bare.read_fields("tdc_status")["rising_calibrated"] == EVERY


@built
def test_data_say_which_edge_it_was_and_whether_its_table_was_ever_calibrated(bare):
    every = {"rising": EVERY, "falling": EVERY, "hits_log2": 10}
    bare.write("tdc_control", **every)
    tag_input.set_inputs(bare, {n: tag_input.Input() for n in range(TDC_INPUTS)})
    tag_path.set_slots(bare, 80_000 << PERIOD_FRACTION_BITS, 0)
    toggles = [pulses(50_000, 20, (500 + 3 * n) * CLOCK_PS) for n in range(TDC_INPUTS)]
    number = np.arange(TDC_INPUTS)

    def channels():
        events, clicks = stamped(bare, toggles, 1000)
        assert len(events.times) == 40 * TDC_INPUTS
        for n in range(TDC_INPUTS):
            mine = events.channels % 16 == n
            gaps = np.diff(events.times[mine] - toggles[n])
            assert np.abs(gaps).max() <= 2 * CLOCK_PS / tagger.SAMPLES
            assert np.array_equal(events.channels[mine] & FALLING, np.resize([0, FALLING], 40))
        return set(events.channels.tolist()), clicks

    before = set((number + UNCALIBRATED).tolist() + (number + UNCALIBRATED + FALLING).tolist())
    # No detector to the slotter: nothing uncalibrated becomes a click of key.
    assert channels() == (before, 0)
    made = calibrate(bare, [3, 9])
    assert [(one.input, one.falling) for one in made] == [
        (3, False), (3, True), (9, False), (9, True)
    ]  # fmt: skip
    assert {one.result for one in made} == {TdcResult.DONE}
    now = {3, 9, 3 + FALLING, 9 + FALLING}
    # Nor do falling edges, or those of sync and pulse per second: 20 of input 3 are left.
    assert channels() == ({c for c in before if c % 16 not in (3, 9)} | now, 20)
    with pytest.raises(SettingError, match="0 to 9"):
        calibrate(bare, [10])


@built
def test_inputs_are_calibrated_between_measurements_alone(bare):
    bare.write("tdc_control", rising=EVERY, hits_log2=8)
    tag_input.set_inputs(bare, {n: tag_input.Input() for n in range(TDC_INPUTS)})
    run_in_background(bare)
    bare.step(50_000)
    status = bare.read_fields("tdc_status")
    assert status["rising_calibrated"] == EVERY
    assert status["busy"]
    # A measurement: every edge is stamped, though calibration in turn is left on.
    toggles = [pulses(100_000, 2_000)] * TDC_INPUTS
    taken = bare.ledger("tdc")
    for _ in range(2):
        events, _ = stamped(bare, toggles, 21_000)
        assert np.array_equal(np.bincount(events.channels), [2_000] * TDC_INPUTS)
        missed = bare.ledger("tdc")["not_pin"]
        assert missed > taken["not_pin"]  # of the oscillator, until it began
        tag_input.set_raw(bare, True)
        before = bare.ledger("tdc")["not_pin"]
        bare.step(50_000)
        assert bare.ledger("tdc")["not_pin"] == before
        assert not bare.read_fields("tdc_status")["busy"]
        tag_input.set_raw(bare, False)
        # And it goes on by itself.
        bare.step(5_000)
        assert bare.ledger("tdc")["not_pin"] > before
    # On command meanwhile: what runs in the background stands back, and comes again.
    made = calibrate(bare, [0])
    assert [(one.input, one.result) for one in made] == [(0, TdcResult.DONE)]
    assert bare.read_fields("tdc_control")["oscillator"] == 1
    run_in_background(bare, oscillator=False)
    bare.step(2_000)
    assert not bare.read_fields("tdc_status")["busy"]


@built
def test_photons_refine_what_they_fall_evenly_on_and_locked_light_is_refused(bare):
    bare.write("tdc_control", rising=EVERY, hits_log2=13)
    bare.drive(tagger.sampled([pulses(37_013, 9_000)] * TDC_INPUTS, 40_000))
    (first,) = calibrate(bare, [2], photons=True)
    assert first.result == TdcResult.REFUSED  # photons cannot make the first table
    bare.run()
    (by_oscillator,) = calibrate(bare, [2])
    assert by_oscillator.result == TdcResult.DONE
    # Light that has nothing to do with the clock.
    bare.drive(tagger.sampled([pulses(37_013, 9_000)] * TDC_INPUTS, 40_000))
    (even,) = calibrate(bare, [2], photons=True)
    assert even.result == TdcResult.DONE
    assert even.moved_ps < 40
    # Light locked to the board's reference, at one phase.
    bare.run()
    bare.drive(tagger.sampled([pulses(4 * CLOCK_PS, 9_000)] * TDC_INPUTS, 40_000))
    (locked,) = calibrate(bare, [2], photons=True)
    assert locked.result == TdcResult.UNEVEN
    assert locked.moved_ps > 1_000
    # In turn, as a measurement goes on: the one that is calibrated is refined.
    bare.run()
    run_in_background(bare, oscillator=False, photons=True)
    before = bare.ledger("tdc")
    bare.drive(tagger.sampled([pulses(37_013, 9_000)] * TDC_INPUTS, 40_000))
    bare.run()
    counts = bare.ledger("tdc")
    assert counts["out"] - before["out"] == 9_000 * TDC_INPUTS
    assert counts["not_pin"] == before["not_pin"]
    status = bare.read_fields("tdc_status")
    assert (status["result"], status["input"]) == (TdcResult.DONE, 2)


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
