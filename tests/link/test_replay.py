# SPDX-License-Identifier: Apache-2.0
"""Recordings through the receiver's tag path: gateware and twin alike."""

from pathlib import Path

import numpy as np
import pytest

from keyrail.contract import TagKind
from keyrail.correlation import Correlation
from keyrail.errors import SettingError
from keyrail.recordings import write_qutag
from keyrail.replay import replay
from keyrail.report import replay_report
from keyrail.tag_path import decoded_times
from keyrail_sim.photonics import synthetic_recording

pytestmark = pytest.mark.xdist_group("stations")

DATA = Path(__file__).parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"no recordings in {DATA.name}")


REFERENCES = [("hist1", 1, 2, 4), ("hist2", 2, 1, 5)]
"""Histogram of the reference, its channels, and the pairs by which a plain count exceeds it."""


@pytest.fixture(scope="module")
def fixed():
    """The real recording without tracking."""
    return replay(DATA / "qutag_80MHz_hbt.qutag", "model", tracking=False)


def both(path, **settings):
    real, twin = replay(path, "rtl", **settings), replay(path, "model", **settings)
    assert real.stream_sha256 == twin.stream_sha256
    assert np.array_equal(real.gated, twin.gated)
    one, other = real.as_dict(), twin.as_dict()
    assert one.pop("backend") != other.pop("backend")
    assert one == other
    assert one["tags_in"] == one["tags_out"] + one["dropped"]
    assert sum(map(sum, one["tags_per_slot_offset"].values())) == one["tags_out"]
    return one, real


@needs_data
def test_real_pulsed_source():
    data, real = both(DATA / "qutag_80MHz_hbt.qutag")
    assert data["tags_in"] == 267_801
    assert data["out_of_order"] == 173
    assert data["period_ps"] == pytest.approx(12_495.60289, abs=1e-5)
    assert data["visibility"]["1"] >= 0.97
    assert data["visibility"]["2"] >= 0.97
    assert data["visibility"]["5"] >= 0.98
    assert data["tags_out"] > 0.9 * data["tags_in"]
    # The loop follows the source's wander of 0.3 rad: what is left is the detectors' jitter.
    assert data["tracking"]["locked"]
    assert data["tracking"]["lock_losses"] == 0
    assert data["visibility_decoded"]["1"] > data["visibility"]["1"] + 0.009
    assert data["visibility_decoded"]["2"] > data["visibility"]["2"] + 0.009
    assert data["visibility_decoded"]["5"] > 0.999
    # Channel 5 is the sync divided by 8: one slot offset only.
    offsets = data["tags_per_slot_offset"]["5"]
    assert max(offsets) > 0.99 * sum(offsets)
    assert replay_report(real).count("<svg") == 2


@needs_data
@pytest.mark.parametrize(("name", "start", "stop", "more"), REFERENCES)
def test_correlation_of_decoded_tags(fixed, name, start, stop, more):
    clicks = fixed.decoded[fixed.decoded["kind"] == TagKind.CLICK]
    assert len(clicks) == len(fixed.recording.times)
    times = decoded_times(clicks, fixed.acquisition.period_fixed)
    # With one period the decoded times are the stamped ones, to the ps.
    assert np.array_equal(times, fixed.recording.times - fixed.acquisition.origin_ps)
    measured = Correlation(start, stop, 16, 10_000)
    measured.add(times, clicks["channel"])
    expected = np.load(DATA / "qutag_80MHz_hbt_g2.npz")[name]
    # The file has 173 steps back, put in order before the count; these pairs more come of it.
    difference = measured.get_data() - expected
    assert difference.sum() == more
    assert set(difference.tolist()) == {0, 1}


@needs_data
def test_one_period_for_all(fixed):
    data = fixed.as_dict()
    assert data["tracking"] is None
    for channel, visibility in data["visibility"].items():
        assert data["visibility_decoded"][channel] == pytest.approx(visibility, abs=1e-4)


@needs_data
def test_real_divided_sync_alone():
    found = replay(DATA / "qutag_80MHz_hbt.qutag", "model", channels=[5])
    assert found.acquisition.period_ps == pytest.approx(8 * 12_495.60289, abs=1e-4)
    assert "divided" in found.as_dict()["period_note"]


def test_written_recording(tmp_path):
    times, channels = synthetic_recording(5, steps_back=20)
    path = tmp_path / "written.qutag"
    write_qutag(path, times, channels)
    data, _ = both(path)
    assert data["tags_in"] == len(times)
    assert data["tracking"]["locked"]
    for channel, visibility in data["visibility"].items():
        assert data["visibility_decoded"][channel] > visibility + 0.004
    assert data["out_of_order"] > 0
    assert data["period_ps"] == pytest.approx(12_495.602886, rel=1e-8)
    chosen = replay(path, "model", channels=[1, 2]).as_dict()
    assert set(chosen["visibility"]) == {"1", "2"}
    with pytest.raises(SettingError, match="a channel of the file: 1, 2, 5"):
        replay(path, "model", channels=[3])
    with pytest.raises(SettingError, match="rtl or model"):
        replay(path, "fpga")


def test_channels_beyond_the_receiver_are_refused(tmp_path):
    path = tmp_path / "many.qutag"
    times, channels = synthetic_recording(5)
    write_qutag(path, times, channels + 5)
    with pytest.raises(SettingError, match="choose with --channels"):
        replay(path, "model")


@needs_data
@pytest.mark.parametrize(
    ("name", "events", "dummies", "multi_clicks"),
    [
        ("timestamp7_c1234.Aa1.ts", 2_000, 0, 12),
        ("timestamp7_c14_rollover.Aa0f.ts", 862, 138, 0),
        ("timestamp7_c14_rollover.Aa1fX.ts", 862, 138, 0),
        ("timestamp7_c14_rollover.Aa2f.ts", 862, 138, 0),
    ],
)
def test_real_continuous_sources(name, events, dummies, multi_clicks):
    data, _ = both(DATA / name)
    assert (data["events"], data["dummies"]) == (events, dummies)
    assert data["multi_clicks"] == multi_clicks
    assert data["tags_out"] == data["tags_in"] == events + multi_clicks
    assert data["period_ps"] is None
    assert "no pulse period" in data["period_note"]
