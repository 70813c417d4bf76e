# SPDX-License-Identifier: Apache-2.0
"""Recovery of period and phase: real recordings where they are at hand, written ones everywhere."""

from pathlib import Path

import numpy as np
import pytest

from keyrail.acquire import NoPeriodError, acquire, window
from keyrail.recordings import read
from keyrail_sim.photonics import synthetic_recording

DATA = Path(__file__).parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"no recordings in {DATA.name}")


@needs_data
def test_real_pulsed_source():
    recording = read(DATA / "qutag_80MHz_hbt.qutag")
    found = acquire(recording.times, recording.channels)
    assert found.period_ps == pytest.approx(12_495.60289, abs=1e-5)
    assert found.period_ps_uncertainty < 1e-5
    assert found.visibility_by_channel[1] >= 0.97
    assert found.visibility_by_channel[2] >= 0.97
    assert found.visibility_by_channel[5] >= 0.98
    assert not found.divided
    alone = recording.channels == 5
    divided = acquire(recording.times[alone], recording.channels[alone])
    assert divided.period_ps == pytest.approx(8 * 12_495.60289, abs=1e-4)
    assert divided.divided
    assert "divided" in divided.note


@needs_data
def test_real_continuous_source_has_no_period():
    recording = read(DATA / "timestamp7_c1234.Aa1.ts")
    with pytest.raises(NoPeriodError, match="no pulse period found"):
        acquire(recording.times, recording.channels)


def test_written_recording():
    times, channels = synthetic_recording(5)
    found = acquire(np.sort(times), channels[np.argsort(times, kind="stable")])
    assert found.period_ps == pytest.approx(12_495.602886, rel=1e-8)


@pytest.mark.parametrize("period", [850.0, 1_000.1, 12_345.678, 640_000.3])
def test_any_period_is_found(period):
    rng = np.random.default_rng(int(period))
    span = 4_000_000_000 if period < 100_000 else 40_000_000_000
    pulses = np.sort(rng.choice(int(span / period), 8_000, replace=False))
    times = np.round(pulses * period + rng.normal(0, period / 30, 8_000) + 1e9).astype(np.int64)
    times.sort()
    found = acquire(times, np.ones(8_000, np.uint8))
    # Five times the standard error of a slope through as many points of this jitter.
    assert abs(found.period_ps / period - 1) < 5 * np.sqrt(12 / 8_000) * (period / 30) / span
    assert found.visibility > 0.9
    # Pulses lie in the middle of their slots.
    phase = (times - found.origin_ps) % found.period_ps / found.period_ps
    assert 0.45 < np.median(phase) < 0.55
    assert found.origin_ps <= times[0]


@pytest.mark.parametrize("offset_ppm", [-90.0, 0.0, 77.0])
def test_hint_is_right_to_100_ppm(offset_ppm):
    rng = np.random.default_rng(7)
    period = 10_000 * (1 + offset_ppm * 1e-6)
    pulses = np.sort(rng.choice(1_000_000, 300, replace=False))
    times = np.round(pulses * period + rng.normal(0, 50, 300)).astype(np.int64)
    found = acquire(times, np.ones(300, np.uint8), frequency_hint=1e8)
    assert found.period_ps == pytest.approx(period, rel=1e-8)


def test_noise_has_no_period():
    rng = np.random.default_rng(3)
    times = np.sort(rng.integers(0, 10**10, 5_000))
    for hint in (None, 8e7):
        with pytest.raises(NoPeriodError, match="no pulse period found"):
            acquire(times, np.ones(5_000, np.uint8), hint)
    with pytest.raises(NoPeriodError, match="5 tags, needed are 10"):
        acquire(times[:5], np.ones(5, np.uint8))


@pytest.mark.parametrize("centre", [5_000, 100, 9_900])
def test_window_holds_the_pulse(centre):
    rng = np.random.default_rng(1)
    phases = (rng.normal(centre, 100, 20_000) % 10_000).astype(int)
    phases = np.concatenate([phases, rng.integers(0, 10_000, 500)])
    histogram = np.bincount(phases // 16, minlength=1024)
    start, stop = window(histogram, 16, 10_000.0)
    width = (stop - start) % 10_000
    assert 400 <= width <= 900
    inside = (phases - start) % 10_000 < width
    assert inside[:20_000].mean() > 0.97
    assert window(np.zeros(1024, np.int64), 16, 10_000.0) == (0, 10_000)
