# SPDX-License-Identifier: Apache-2.0
"""Dark counts, afterpulses and blinding, from what the twins of the gateware count."""

import numpy as np
import pytest

from keyrail.contract import CHANNELS, GATE_WINDOWS, GATED_TAG, SLOT_TAG
from keyrail.detectors import multiple_clicks, noise
from keyrail.errors import SettingError
from keyrail.layouts import zeros
from keyrail_sim.models.blanking import Blanking
from keyrail_sim.models.gaps import Gaps, Outcomes
from keyrail_sim.models.gate import Window
from keyrail_sim.models.squash import Squash

PERIOD, GATE, DEAD = 1000, (400, 600), 10


def detector(rng, slots, signal, dark, afterpulse, memory):
    """Slots and phases of one detector's clicks: signal in the gate, noise anywhere, dead time."""
    every = [np.flatnonzero(rng.random(slots) < signal), np.flatnonzero(rng.random(slots) < dark)]
    phases = [rng.integers(*GATE, len(every[0])), rng.integers(0, PERIOD, len(every[1]))]
    queue = sorted(
        zip(np.concatenate(every).tolist(), np.concatenate(phases).tolist(), strict=True)
    )
    clicks, late = [], []
    for slot, phase in queue:
        while late and late[0][0] <= slot:
            event = late.pop(0)
            if not clicks or event[0] > clicks[-1][0] + DEAD:
                clicks.append(event)
        if clicks and slot <= clicks[-1][0] + DEAD:
            continue
        clicks.append((slot, phase))
        if rng.random() < afterpulse:
            delay = DEAD + 1 + int(rng.exponential(memory))
            late = sorted([*late, (slot + delay, int(rng.integers(0, PERIOD)))])
    return np.array(sorted(clicks)).T


def test_dark_counts_and_afterpulses_come_back():
    rng = np.random.default_rng(5)
    slots, dark, afterpulse = 4_000_000, 2e-4, 0.03
    slot, phase = detector(rng, slots, 2e-3, dark, afterpulse, 30)
    tags = zeros(SLOT_TAG, len(slot))
    tags["slot"], tags["phase"] = slot, phase
    windows = [Window(*GATE, 1)] * (CHANNELS * GATE_WINDOWS)
    twin = Gaps(windows, 3)
    twin.process(tags)
    counts = twin.dump()["count"].astype(np.int64).reshape(CHANNELS, 2, -1)[0]
    found = noise(counts, 3, 0.8, DEAD + 1, far_bin=25)
    assert found.dark_per_slot == pytest.approx(dark, abs=4 * found.dark_per_slot_sigma)
    assert found.afterpulse == pytest.approx(afterpulse, abs=4 * found.afterpulse_sigma)
    # The errors stated are of use: a detector without afterpulses is told apart.
    assert found.afterpulse > 5 * found.afterpulse_sigma
    assert found.dark_per_slot_sigma < 0.1 * dark


def test_settings_of_the_estimate_are_checked():
    counts = np.zeros((2, 64), np.int64)
    with pytest.raises(SettingError, match="some gaps reach"):
        noise(counts, 0, 0.5)
    with pytest.raises(SettingError, match="outside_share"):
        noise(counts, 0, 0.0)
    with pytest.raises(SettingError, match="far_bin"):
        noise(counts, 0, 0.5, far_bin=63)


def clicks(slots, channels):
    """Clicks of a passive receiver with four detectors through blanking and squash."""
    order = np.lexsort((channels, slots))
    tags = zeros(SLOT_TAG, len(slots))
    tags["slot"], tags["channel"] = slots[order], channels[order]
    live = Blanking((DEAD,) * CHANNELS).process(tags)
    gated = zeros(GATED_TAG, len(live))
    gated["slot"], gated["channel"] = live["slot"], live["channel"]
    gated["basis"], gated["bit"] = live["channel"] >> 1, live["channel"] & 1
    squash = Squash(discard_cross=True)
    squash.process(gated, np.zeros(0, gated.dtype))
    twin = Outcomes(4)
    twin.process(*squash.groups)
    return twin.dump()["count"].astype(np.int64).reshape(4, -1)[:3]


def weak_light(rng, slots=400_000, rate=5e-3):
    hits = np.flatnonzero(rng.random(slots * 4) < rate)
    return clicks(hits // 4, hits % 4)


def blinded(rng, slots=400_000, rate=2e-2, lasts=3_000):
    """Naive blinding: bright light sets in anew each time, then detectors click one by one.

    Its period is not constant, so that no count by slot number modulo anything shows it.
    """
    onsets = np.cumsum(rng.integers(lasts // 2, 3 * lasts // 2, 2 * slots // lasts))
    onsets = onsets[onsets < slots]
    triggers = np.flatnonzero(rng.random(slots) < rate)
    # For a while after its onset the light only blinds.
    since = triggers - onsets[np.maximum(np.searchsorted(onsets, triggers) - 1, 0)]
    triggers = triggers[(since > 0) & (since < lasts // 3)]
    every = np.concatenate([np.repeat(onsets, 4), triggers])
    channels = np.concatenate([np.tile(np.arange(4), len(onsets)), triggers * 7 % 4])
    return clicks(every, channels)


def test_naive_blinding_shows_and_weak_light_does_not():
    rng = np.random.default_rng(9)
    honest = [multiple_clicks(weak_light(rng)) for _ in range(12)]
    # Twelve values of p that are even have no 1e-3 among them but once in eighty times.
    assert min(one.p_value for one in honest) > 1e-3
    assert max(one.p_value for one in honest) > 0.3
    attacked = [multiple_clicks(blinded(rng)) for _ in range(5)]
    assert max(one.p_value for one in attacked) < 1e-9
    assert all(one.cross_share > 0 for one in attacked)


def test_nothing_to_test():
    assert multiple_clicks(np.zeros((3, 64), np.int64)).p_value == 1
    few = np.zeros((3, 64), np.int64)
    few[0, 10], few[2, 10] = 100, 1
    assert multiple_clicks(few).p_value == 1
