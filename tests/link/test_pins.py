# SPDX-License-Identifier: Apache-2.0
"""Stations on boards whose light is at their own pins: time does not wait for the host."""

import os
from dataclasses import replace

import pytest

from keyrail import messages
from keyrail.board import BoardError
from keyrail.calibration import CalibrationError
from keyrail.contract import Role, TdcResult
from keyrail.errors import SettingError
from keyrail.pin_operation import DetectorPins, PinReceiverRunner, SourcePins
from keyrail_sim.model_board import open_station
from keyrail_sim.pin_boards import PinStations
from keyrail_sim.two_stations import KEY_PLAN, SHORT_PLAN

pytestmark = pytest.mark.xdist_group("stations")

SENDER, RECEIVER = Role.SENDER, Role.RECEIVER
OUTPUT = {"codes": 0xFF, "start": 0, "stop": 2}
PINS = SourcePins(outputs=(OUTPUT,), gap_slots=450_000, ahead_slots=1 << 17)


def test_two_stations_come_to_the_same_key(tmp_path):
    """The sender's source is the gateware, a slot a clock, from training to the block's end."""
    link = PinStations(tmp_path, KEY_PLAN, pins=PINS, blocks=1)
    link.run(PinStations.finished, 1_000)
    keys = link.keys()
    assert keys[SENDER] == keys[RECEIVER], link.lines
    assert len(keys[SENDER]) == 1
    for runner in link.runners.values():
        report = runner.reports[-1]
        assert report.detections > 30_000
        assert report.frames_lost == 0
        assert report.result.qber_z < 0.02
    counts = link.world.sender.ledger("source")
    assert counts == {"in": counts["in"], "out": counts["in"], "sync": 0, "surplus": 0}
    # Training, gap and block were one run; the ring's horizon is shorter than any of them.
    assert 16 * counts["in"] == KEY_PLAN.training_slots + PINS.gap_slots + KEY_PLAN.block_slots
    link.close()


@pytest.mark.skipif(
    "KEYRAIL_FULL_SIZE" not in os.environ, reason="a minute or two: make test-full-size"
)
def test_both_boards_are_the_gateware(tmp_path):
    link = PinStations(tmp_path, SHORT_PLAN, pins=PINS, blocks=1, gateware=True)
    link.run(PinStations.finished, 1_000)
    for runner in link.runners.values():
        assert runner.totals["blocks sifted"] == 1, link.lines
        assert runner.reports[-1].detections > 1_500
    link.close()


def test_blocks_that_time_runs_out_for_are_lost_and_no_more(tmp_path):
    """The source starves, then the receiver is not ready in time; the third block is sifted."""
    hopeless = replace(PINS, ahead_slots=1 << 12, gap_slots=1 << 14)
    link = PinStations(tmp_path, SHORT_PLAN, pins=hopeless)
    sender, receiver = link.runners[SENDER], link.runners[RECEIVER]
    link.run(lambda link: sender.totals["blocks"] == 1, 300)
    sender._pins = PINS  # the second block has begun, with the short gap
    link.run(lambda link: all(r.totals["blocks sifted"] for r in link.runners.values()), 1_000)
    reasons = [report.reason for report in sender.reports]
    assert "states came too late, and the source stopped" in reasons[0]
    assert "a longer gap is needed" in reasons[1]
    assert "its board failed" in receiver.reports[0].reason
    assert sender.totals["sessions"] == 1
    link.run(lambda link: all(len(r.reports) >= 3 for r in link.runners.values()), 1_000)
    # States of a block that was given up are not taken for the next one's.
    assert sender.reports[2].result.qber_x < 0.1
    link.close()


def test_a_station_starts_anew_on_a_board_that_goes_on(tmp_path):
    """The process ends, the board does not: the block that it held open is wiped."""
    link = PinStations(tmp_path, SHORT_PLAN, pins=PINS)
    board = link.world.sender
    link.run(lambda link: board.read("block_count") > 100, 300)
    board.drop("states")  # as a board on USB does when it is opened anew
    link.start(SENDER)
    link.run(lambda link: all(r.totals["blocks sifted"] for r in link.runners.values()), 1_000)
    assert link.runners[SENDER].totals["blocks"] <= 1
    link.close()


def test_inputs_are_calibrated_before_each_training():
    """By the oscillator, those of the detectors; where one has no table, nothing is listened to."""
    board = open_station(RECEIVER, "sim-model:bob")
    registers, asked, results = board.registers, [], [TdcResult.DONE] * 5 + [TdcResult.TOO_FEW] * 5
    read, write = board.read_word, board.write_word

    def read_word(offset):
        if offset == registers["inputs"].offset:
            return 6
        if offset == registers["tdc_status"].offset:  # its low word
            return 1 << 20 | (results[len(asked) - 1] << 22 if asked else 0)
        return read(offset)

    def write_word(offset, value):
        if offset == registers["tdc_command"].offset:
            asked.append(value)
        write(offset, value)

    pins = DetectorPins(delays_ps=(0, 0, 0, 0, 17))
    pins.calibrate(board)  # no converter
    board.read_word, board.write_word = read_word, write_word
    # As another process may have left it: the training slots would not be heard.
    board.write("tdc_control", **board.read_fields("tdc_control") | {"oscillator": 1})
    pins.calibrate(board)
    assert asked == [0, 1, 2, 3, 4]
    assert board.read_fields("tdc_control")["oscillator"] == 0
    runner = PinReceiverRunner.__new__(PinReceiverRunner)
    runner.board, runner._pins = board, pins
    before = board.read("tag_input")
    with pytest.raises(CalibrationError, match="input 0: the calibration ended with too_few"):
        next(runner._trained(messages.Train(1, 0, 16)))
    assert len(asked) == 10
    assert board.read("tag_input") == before


def test_settings_that_the_board_cannot_follow_are_refused(tmp_path):
    sender = open_station(SENDER, "sim-model:alice")
    with pytest.raises(BoardError, match="7 modulators set, it has 6"):
        SourcePins(outputs=(OUTPUT,) * 7).apply(sender)
    with pytest.raises(SettingError, match=r"modulator_0.stop = 128"):
        SourcePins(outputs=({"stop": 128},)).apply(sender)
    receiver = open_station(RECEIVER, "sim-model:bob")
    with pytest.raises(BoardError, match="no inputs of its own"):
        DetectorPins().apply(receiver)
    with pytest.raises(SettingError, match="multiples of 16"):
        PinStations(tmp_path, SHORT_PLAN, pins=SourcePins(gap_slots=5))
