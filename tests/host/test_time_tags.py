# SPDX-License-Identifier: Apache-2.0
"""T2 records, ``.ptu`` files that other readers open, and the settings of inputs."""

import csv
import math

import numpy as np
import pytest
from click.testing import CliRunner

from keyrail import calibration, ptu, recordings, t2, tag_input, tag_path
from keyrail.board import Board, BoardError
from keyrail.contract import LOSS, TAG, Mode, Role, T2Marker, TagKind, TdcResult
from keyrail.errors import KeyrailError, SettingError
from keyrail.layouts import zeros

DAY_PS = 86_400 * 10**12


def some_tags(seed: int, count: int = 5000, longest: float = 1e9):
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.exponential(longest, count).astype(np.int64) + 1)
    tags = zeros(TAG, count)
    tags["time"], tags["channel"] = times % (1 << 48), rng.integers(0, 8, count)
    return tags, times


def test_t2_survives_any_cut_of_the_stream():
    tags, times = some_tags(1)
    tags["kind"][[100, 200]], tags["channel"][[100, 200]] = TagKind.LOSS, (1, 2)
    click = tags["kind"] == TagKind.CLICK
    raw = t2.Encoder().encode(tags).tobytes()
    rng = np.random.default_rng(2)
    decoder, parts = t2.Decoder(), []
    cuts = np.sort(rng.integers(0, len(raw), 50)).tolist()
    for start, stop in zip([0, *cuts], [*cuts, len(raw)], strict=True):
        parts.append(decoder.feed(raw[start:stop]))
    assert np.array_equal(np.concatenate([p.times for p in parts]), times[click])
    assert np.array_equal(np.concatenate([p.channels for p in parts]), tags["channel"][click])
    markers = np.concatenate([p.markers for p in parts]).tolist()
    assert markers == [T2Marker.LOSS_BEGIN, T2Marker.LOSS_END]
    assert np.concatenate([p.marker_times for p in parts]).tolist() == times[[100, 200]].tolist()


def test_two_days_over_wraps_of_every_clock():
    """614 wraps of 48 bits and 5 x 10^9 of T2's 25: times stay exact, in a new epoch as well."""
    encoder, decoder = t2.Encoder(), t2.Decoder()
    rng = np.random.default_rng(3)
    reached = 0
    for _ in range(8):
        gaps = rng.integers(0, 1 << 46, 640)
        gaps[rng.integers(0, 640, 20)] = rng.integers(0, 1000, 20)
        times = reached + np.cumsum(gaps)
        reached = int(times[-1])
        tags = zeros(TAG, len(times))
        tags["time"] = times & ((1 << 48) - 1)
        events = decoder.feed(encoder.encode(tags))
        assert np.array_equal(events.times, times)
        assert events.until == reached
    assert reached > 1.95 * DAY_PS
    assert reached >> 48 > 590
    # Time starts again at 0 with an epoch: the host adds where it began.
    encoder = t2.Encoder()
    decoder.restart(2 * DAY_PS)
    tags, times = some_tags(4, 100)
    assert np.array_equal(decoder.feed(encoder.encode(tags)).times, times + 2 * DAY_PS)


def test_time_records_move_the_end_of_a_dark_measurement():
    tags = zeros(TAG, 5)
    tags["time"] = np.arange(1, 6) << 29
    tags["kind"] = TagKind.TIME
    words = t2.Encoder().encode(tags)
    events = t2.decode(words)
    assert len(events.times) == 0
    assert events.until == 5 << 29
    # One record each: dark time costs 1,900 records a second.
    assert len(words) == 5


def test_nonsense_is_refused():
    for word, wrong in ((63 << 25 | 1 << 31, "0xfe000000"), (16 << 25 | 1 << 31, "0xa0000000")):
        with pytest.raises(t2.T2Error, match=wrong):
            t2.decode(np.array([word], np.uint32))
    with pytest.raises(t2.T2Error, match="3 bytes are left"):
        t2.decode(b"1234567")
    with pytest.raises(t2.T2Error, match="new epoch"):
        t2.decode(np.array([127 | 63 << 25 | 1 << 31], np.uint32), epoch_ps=(1 << 63) - 10)


def test_other_readers_open_what_is_written(tmp_path):
    ptufile, tttrlib = pytest.importorskip("ptufile"), pytest.importorskip("tttrlib")
    tags, times = some_tags(5, 20_000, 3e8)
    tags["kind"][[50, 60]], tags["channel"][[50, 60]] = TagKind.LOSS, (1, 2)
    click = tags["kind"] == TagKind.CLICK
    words = t2.Encoder().encode(tags)
    path = tmp_path / "tags.ptu"
    with ptu.PtuWriter(path, "a comment") as file:
        for part in np.array_split(words.view(np.uint8), 7):
            file.write(part)
    with ptufile.PtuFile(path) as opened:
        assert opened.number_records == len(words)
        assert opened.number_photons == int(click.sum())
        assert opened.number_markers == 2
        assert opened.global_resolution == 1e-12
        assert opened.comment == "a comment"
        records = opened.decode_records()
    photons = records[records["channel"] >= 0]
    assert np.array_equal(photons["time"].astype(np.int64), times[click])
    assert np.array_equal(photons["channel"], tags["channel"][click])
    marked = records[records["marker"] > 0]
    assert marked["marker"].tolist() == [T2Marker.LOSS_BEGIN, T2Marker.LOSS_END]
    read = tttrlib.TTTR(str(path), "PTU")
    photon = np.asarray(read.event_types) == 0
    assert np.array_equal(np.asarray(read.macro_times, np.int64)[photon], times[click])
    assert np.array_equal(np.asarray(read.routing_channels)[photon], tags["channel"][click])
    assert read.header.macro_time_resolution == 1e-12


def test_the_loss_ledger_lies_beside_the_file(tmp_path):
    losses = zeros(LOSS, 2)
    losses["begin"], losses["end"], losses["missed"] = (10, 30), (20, 44), (7, 1 << 40)
    path = ptu.write_losses(tmp_path / "tags.ptu", losses)
    assert path == tmp_path / "tags.ptu.losses.csv"
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert [{k: int(v) for k, v in row.items()} for row in rows] == [
        {"begin_ps": 10, "end_ps": 20, "missed": 7},
        {"begin_ps": 30, "end_ps": 44, "missed": 1 << 40},
    ]


def test_a_file_that_cannot_be_is_refused(tmp_path):
    with pytest.raises(KeyrailError, match="No such file"):
        ptu.PtuWriter(tmp_path / "absent" / "tags.ptu")
    file = ptu.PtuWriter(tmp_path / "cut.ptu")
    file.write(b"1234567")
    with pytest.raises(KeyrailError, match="3 bytes into a record"):
        file.close()
    assert (tmp_path / "cut.ptu").read_bytes()[-4:] == b"1234"


def test_convert_writes_a_recording_as_ptu(tmp_path):
    from keyrail.cli import cli

    _, times = some_tags(6, 300)
    channels = np.arange(300) % 7
    source, target = tmp_path / "tags.qutag", tmp_path / "tags.ptu"
    recordings.write_qutag(source, times, channels)
    done = CliRunner().invoke(cli, ["convert", str(source), str(target)])
    assert done.exit_code == 0, done.output
    raw = target.read_bytes()
    events = t2.decode(raw[raw.index(b"Header_End") + 48 :])
    assert np.array_equal(events.times, times)
    assert np.array_equal(events.channels, channels)
    wrong = CliRunner().invoke(cli, ["convert", str(source), str(tmp_path / "tags.txt")])
    assert isinstance(wrong.exception, KeyrailError)


class Registers(Board):
    """A receiver's registers alone, with ten inputs."""

    def __init__(self) -> None:
        super().__init__(Role.RECEIVER, "test")
        self.words: dict[int, int] = {self.registers["inputs"].offset: 10}

    def read_word(self, offset):
        return self.words.get(offset, 0)

    def write_word(self, offset, value):
        self.words[offset] = value

    def send_bytes(self, stream, data):
        raise NotImplementedError

    def receive_bytes(self, stream):
        raise NotImplementedError

    def pending(self, name):
        raise NotImplementedError

    def run(self):
        pass

    def close(self):
        pass


def test_settings_of_inputs():
    board = Registers()
    one = tag_input.Input(True, -123, 50_000, True, 3, 1e6)
    tag_input.set_inputs(board, {4: one})
    fields = board.read_fields("condition_4")
    assert fields["delay"] - (1 << 21) == -123
    assert (fields["dead_time"], fields["paralysable"], fields["divider"]) == (50_000, 1, 3)
    assert board.read("rate_limit_4") == round(1e6 * (1 << 36) * 1e-12)
    assert board.read_fields("condition_5")["enable"] == 0
    for setting, wrong in (
        (tag_input.Input(delay_ps=1_000_001), "delay_ps"),
        (tag_input.Input(dead_time_ps=1 << 28), "dead_time"),
        (tag_input.Input(divider=0), "divider"),
        (tag_input.Input(rate_limit=1e12), "rate_limit"),
    ):
        with pytest.raises(SettingError, match=wrong):
            tag_input.set_inputs(board, {0: setting})
    with pytest.raises(BoardError, match="inputs 0 to 9"):
        tag_input.set_inputs(board, {10: one})
    board.write("mode", Mode.KEY)
    with pytest.raises(BoardError, match="off in key mode"):
        tag_input.set_inputs(board, {0: one})
    with pytest.raises(BoardError, match="stay inside"):
        tag_input.set_raw(board, True)
    assert math.isnan(tag_input.read_rates(board)[0][3])
    board.words[board.registers["rate_3"].offset] = 3 * 68_719
    board.words[board.registers["rate_windows_3"].offset] = 3
    board.words[board.registers["rate_alarm"].offset] = 8
    rates, alarms = tag_input.read_rates(board)
    assert rates[3] == pytest.approx(1e6, rel=1e-4)
    assert alarms == [3]


class Converter(Registers):
    """Registers whose converter ends each calibration with the results given, or never."""

    def __init__(self, results: list[TdcResult]) -> None:
        super().__init__()
        self.results, self.asked, self.background = results, [], []
        self.write("tdc_control", rising=0b11, falling=0b10, photons=1, oscillator=1, hits_log2=9)

    def write(self, name, value=0, **fields):
        super().write(name, value, **fields)
        if name == "tdc_command":
            self.asked.append(fields)
            self.background.append(self.read_fields("tdc_control"))
            busy = not fields.get("abort") and not self.results
            self.words[self.registers["tdc_status"].offset] = busy << 21 | (
                self.results.pop(0) << 22 if self.results else 0
            )


def test_inputs_are_calibrated_on_command():
    board = Converter([TdcResult.DONE, TdcResult.UNEVEN])
    board.words[board.registers["tdc_change"].offset] = 300 << 14 | 17
    control = board.read_fields("tdc_control")
    found = calibration.calibrate(board, [1], photons=True)
    assert found == [
        calibration.Calibration(1, False, TdcResult.DONE, 17, 300),
        calibration.Calibration(1, True, TdcResult.UNEVEN, 17, 300),
    ]
    assert board.asked == [{"input": 1, "falling": n, "photons": 1} for n in (0, 1)]
    # What runs in the background stands back meanwhile.
    assert {(one["oscillator"], one["photons"]) for one in board.background} == {(0, 0)}
    assert board.read_fields("tdc_control") == control
    with pytest.raises(calibration.CalibrationError, match="input 0: the calibration does not end"):
        calibration.calibrate(board, timeout_s=0.0)
    assert board.asked[-1] == {"abort": 1}
    assert board.read_fields("tdc_control") == control
    with pytest.raises(SettingError, match="allowed is 0 to 9"):
        calibration.calibrate(board, [10])
    calibration.run_in_background(board, oscillator=False)
    assert board.read_fields("tdc_control") == control | {"oscillator": 0, "photons": 0}


def test_a_board_without_inputs_says_so(tmp_path):
    import keyrail

    with keyrail.open("sim-model:bob") as bob:
        with pytest.raises(BoardError, match="no inputs of its own"):
            tag_input.set_inputs(bob, {})
        for call in (calibration.calibrate, calibration.run_in_background):
            with pytest.raises(BoardError, match="no time-to-digital converter"):
                call(bob)
        tag_input.set_raw(bob, True)
        times = np.arange(1, 1000) * 10**6
        bob.send("tags", tag_path.tag_records(times, times % 3))
        bob.run()
        with ptu.PtuWriter(tmp_path / "bob.ptu") as file:
            assert len(tag_input.take_raw(bob, file)) == 0
        assert file.records >= len(times)
