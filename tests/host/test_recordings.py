# SPDX-License-Identifier: Apache-2.0
"""Recordings: real ones where they are at hand, written ones everywhere."""

from pathlib import Path

import numpy as np
import pytest

from keyrail.errors import RecordingError
from keyrail.recordings import FORMATS, read, write_qcrypto, write_qutag

DATA = Path(__file__).parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"no recordings in {DATA.name}")


@needs_data
def test_real_qutag():
    recording = read(DATA / "qutag_80MHz_hbt.qutag")
    assert len(recording.times) == 267_801
    assert recording.out_of_order == 173
    assert set(np.unique(recording.channels)) == {1, 2, 5}
    assert (np.diff(recording.times) >= 0).all()
    assert (recording.times[-1] - recording.times[0]) / 1e12 == pytest.approx(5.04, abs=0.01)


@needs_data
def test_real_calibration():
    recording = read(DATA / "timestamp7_c1234.Aa1.ts")
    assert (recording.events, recording.multi_clicks) == (2_000, 12)
    assert recording.dummies == recording.void == 0
    assert set(np.unique(recording.channels)) == {1, 2, 3, 4}
    assert (recording.times[-1] - recording.times[0]) / 1e6 == pytest.approx(935, abs=1)


@needs_data
def test_real_encodings_agree():
    names = ("Aa0f", "Aa1fX", "Aa2f")
    recordings = [read(DATA / f"timestamp7_c14_rollover.{name}.ts") for name in names]
    for recording in recordings:
        assert recording.events + recording.dummies == 1_000
        assert recording.dummies == 138
        assert np.array_equal(recording.times, recordings[0].times)
        assert np.array_equal(recording.channels, recordings[0].channels)


def words(seed, count=500):
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.integers(1, 1 << 20, count)).astype(np.uint64)
    pattern = rng.integers(1, 16, count).astype(np.uint64)
    dummy = rng.random(count) < 0.1
    return times << np.uint64(10) | np.where(dummy, np.uint64(16), pattern), times, pattern, dummy


@pytest.mark.parametrize("name", FORMATS[1:])
def test_qcrypto_round_trip(tmp_path, name):
    drawn, times, pattern, dummy = words(3)
    write_qcrypto(tmp_path / "file.dat", drawn, name)
    recording = read(tmp_path / "file.dat", name)
    clicks = [bin(int(p)).count("1") for p in pattern[~dummy]]
    assert recording.events == (~dummy).sum()
    assert recording.dummies == dummy.sum()
    assert recording.multi_clicks == sum(c > 1 for c in clicks)
    assert len(recording.times) == sum(clicks)
    expected = [int(t) * 1000 // 256 for t in times[~dummy]]
    assert np.array_equal(recording.times, np.repeat(expected, clicks))


def test_qutag_round_trip_and_order(tmp_path):
    times = np.array([5, 3, 3, 9, 8], np.int64)
    write_qutag(tmp_path / "a.qutag", times, np.arange(5))
    recording = read(tmp_path / "a.qutag")
    assert recording.out_of_order == 2
    assert recording.times.tolist() == [3, 3, 5, 8, 9]
    assert recording.channels.tolist() == [1, 2, 0, 4, 3]


def refused(path, text, format=None):
    with pytest.raises(RecordingError) as error:
        read(path, format)
    assert text in str(error.value)
    assert "\n" not in str(error.value)


def test_bad_files_say_where(tmp_path):
    good = tmp_path / "good.qutag"
    write_qutag(good, np.arange(10), np.ones(10, int))
    raw = good.read_bytes()
    bad = tmp_path / "bad.qutag"
    for data, text in (
        (b"", "byte 0: the file is empty"),
        (raw[:20], "byte 20: the header is cut short"),
        (raw[:40], "byte 40: the file holds no tags"),
        (raw[:-3], "byte 130: 7 bytes are left, the file is truncated"),
        (raw[:58] + b"\xff\xff" + raw[60:], "byte 50: channel 65535 is out of range"),
        (raw[:47] + b"\xff" + raw[48:], "byte 40: time"),
    ):
        bad.write_bytes(data)
        refused(bad, text)
    refused(tmp_path / "none.qutag", "No such file")
    refused(tmp_path, "Is a directory", "a1")
    text = tmp_path / "x.Aa2.ts"
    text.write_text("0000000000000401\nzz\n")
    refused(text, "byte 17 (line 2): 'zz' is no record")
    text.write_text("")
    refused(text, "empty")
    half = tmp_path / "x.Aa0.ts"
    half.write_text("00000401\n")
    refused(half, "half a record")
    binary = tmp_path / "x.Aa1.ts"
    binary.write_bytes(b"1234567")
    refused(binary, "byte 0: 7 bytes are left")
    binary.write_bytes(b"\x00\x04\x00\x00\x00\x00\x00\x00")
    refused(binary, "without a detector")
    binary.write_bytes(bytes(8))
    refused(binary, "no events")
    refused(good, "unknown", "a7")
    (tmp_path / "noname").write_bytes(raw)
    refused(tmp_path / "noname", "tells no format")
