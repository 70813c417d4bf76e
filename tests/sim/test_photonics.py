# SPDX-License-Identifier: Apache-2.0
"""The photonic simulator against the formulas: five sigma, every draw seeded."""

import math
import sys
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from keyrail.distil.estimate import DecoyCounts, DecoySource, expected_counts
from keyrail.randomness import TestRandom
from keyrail.source import BASIS_BIT, BIT_BIT, DECOY_BIT, PRESENT_BIT, quantised, random_states
from keyrail_sim import photonics
from keyrail_sim.photonics import DETECTORS, LinkSettings, Photonics, Tags, synthetic_recording

BARE = LinkSettings(
    dead_time_ps=0,
    afterpulse_probability=0,
    jitter_ps=0,
    jitter_tail_fraction=0,
    clock_offset_ppm=0,
    clock_drift_ppm_per_s=0,
    origin_ps=0,
)
"""Nothing but clicks in the middle of their slots."""


def run(settings: LinkSettings, states: np.ndarray, seed: int = 1) -> Tags:
    link = Photonics(settings, seed)
    tags, rest = link.detect(states, 0), link.flush()
    return Tags(
        np.concatenate([tags.times, rest.times]), np.concatenate([tags.channels, rest.channels])
    )


def click_matrix(settings: LinkSettings, states: np.ndarray, seed: int = 1) -> np.ndarray:
    """Which detector clicked in which slot, for settings without clock errors."""
    tags = run(settings, states, seed)
    clicks = np.zeros((len(states), DETECTORS), np.bool_)
    clicks[tags.times // settings.period_ps, tags.channels] = True
    assert clicks.sum() == len(tags.times)
    return clicks


def near(count: float, trials: float, p: float) -> bool:
    return abs(count - trials * p) <= 5 * math.sqrt(trials * p * (1 - p)) + 1e-9


def states_of(slots: int, seed: int = 3, p_z: float = 0.7, p_signal: float = 0.3) -> np.ndarray:
    return random_states(TestRandom(seed, "states").bytes, slots, p_z, p_signal)


def error_rates(clicks: np.ndarray, states: np.ndarray) -> list[tuple[int, int]]:
    """(errors, detections) in Z and X, of slots with one click in the state's basis."""
    rates = []
    basis, bit = states & BASIS_BIT, (states & BIT_BIT) >> 1
    for b in range(2):
        one = (basis == b) & (clicks[:, 2 * b] ^ clicks[:, 2 * b + 1])
        rates.append((int(np.sum(clicks[one, 2 * b + 1] != bit[one])), int(one.sum())))
    return rates


def test_click_rates_of_every_state_follow_the_formula() -> None:
    settings = replace(
        BARE,
        efficiency=(0.5, 0.4, 0.6, 0.3),
        dark_counts_per_slot=(1e-3, 2e-3, 0.0, 5e-4),
        misalignment=0.05,
    )
    slots = 150_000
    clicks = click_matrix(settings, np.repeat(np.arange(16, dtype=np.uint8), slots))
    counts = clicks.reshape(16, slots, DETECTORS).sum(axis=1)
    transmission = 10 ** (-(25 * 0.2 + 3) / 10)
    for code in range(16):
        mu = (0.2 if code & DECOY_BIT else 0.6) if code & PRESENT_BIT else 0.0
        for channel in range(DETECTORS):
            split = 0.3 if channel >= 2 else 0.7
            share = 0.5
            if (channel >= 2) == bool(code & BASIS_BIT):
                share = 0.95 if channel % 2 == bool(code & BIT_BIT) else 0.05
            dark = (1e-3, 2e-3, 0.0, 5e-4)[channel]
            mean = transmission * (0.5, 0.4, 0.6, 0.3)[channel] * mu * share * split
            p = 1 - (1 - dark) * math.exp(-mean)
            assert settings.click_probabilities()[channel, code] == pytest.approx(p, rel=1e-12)
            assert near(counts[code, channel], slots, p), (code, channel)


def test_several_clicks_in_a_slot_are_independent() -> None:
    settings = replace(BARE, distance_km=0, receiver_loss_db=0, efficiency=1.0, receiver_p_z=0.4)
    slots = 300_000
    code = PRESENT_BIT | BASIS_BIT
    clicks = click_matrix(settings, np.full(slots, code, np.uint8))
    p = settings.click_probabilities()[:, code]
    patterns = np.bincount(clicks @ (1 << np.arange(DETECTORS)), minlength=16)
    for pattern in range(16):
        expected = math.prod(
            p[channel] if pattern >> channel & 1 else 1 - p[channel] for channel in range(DETECTORS)
        )
        assert near(patterns[pattern], slots, expected), pattern


@pytest.mark.parametrize(("misalignment", "dark"), [(0.0, 0.0), (0.03, 0.0), (0.01, 3e-4)])
def test_errors_from_misalignment_and_dark_counts(misalignment: float, dark: float) -> None:
    settings = replace(BARE, misalignment=misalignment, dark_counts_per_slot=dark)
    states = states_of(2_000_000, p_z=0.5)
    rates = error_rates(click_matrix(settings, states), states)
    table = settings.click_probabilities()
    for basis, (errors, detections) in enumerate(rates):
        signal = PRESENT_BIT | basis
        right = wrong = 0.0
        for code, weight in ((signal, quantised(0.3)), (signal | DECOY_BIT, 1 - quantised(0.3))):
            good, bad = table[2 * basis, code], table[2 * basis + 1, code]
            right, wrong = right + weight * good * (1 - bad), wrong + weight * bad * (1 - good)
        assert near(errors, detections, wrong / (right + wrong))
        assert detections > 5_000
    if misalignment == dark == 0:
        assert [errors for errors, _ in rates] == [0, 0]


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_eve_makes_errors_in_both_bases_and_keeps_the_rates(share: float) -> None:
    settings = replace(BARE, misalignment=0.0, dark_counts_per_slot=0.0, eve_share=share)
    states = states_of(2_000_000, p_z=0.5)
    clicks = click_matrix(settings, states)
    # Over single clicks of weak light; twofold ones move the rate by less than the sigma below.
    for errors, detections in error_rates(clicks, states):
        qber = errors / detections
        sigma = math.sqrt(share / 4 * (1 - share / 4) / detections)
        assert abs(qber - share / 4) < 5 * sigma + 0.003
    if share == 0.5:
        errors, detections = np.sum(error_rates(clicks, states), axis=0)
        assert errors / detections > 0.12
    honest = click_matrix(replace(settings, eve_share=0.0), states, seed=2)
    for mask in (DECOY_BIT, 0):
        where = states & DECOY_BIT == mask
        n = [clicks[where].sum(), honest[where].sum()]
        assert abs(n[0] - n[1]) < 5 * math.sqrt(n[0] + n[1])


def test_eve_leaves_what_was_not_sent_alone() -> None:
    settings = replace(BARE, eve_share=1.0, dark_counts_per_slot=0.0)
    assert len(run(settings, np.zeros(1_000_000, np.uint8)).times) == 0


def test_eve_chooses_slot_by_slot() -> None:
    """With certain clicks, slots show one of the four states each; errors do not cluster."""
    settings = replace(
        BARE,
        distance_km=0,
        receiver_loss_db=0,
        efficiency=1.0,
        misalignment=0.0,
        dark_counts_per_slot=0.0,
        intensities=(100.0, 100.0),
        receiver_p_z=0.5,
        eve_share=1.0,
    )
    slots = 200_000
    clicks = click_matrix(settings, np.full(slots, PRESENT_BIT, np.uint8))
    left_alone = clicks[:, 0] & ~clicks[:, 1]  # Z with bit 0: both X detectors click as well
    resent = clicks[:, 0] & clicks[:, 1]
    assert np.all(left_alone ^ resent)
    assert np.all(clicks[left_alone, 2] & clicks[left_alone, 3])
    assert near(resent.sum(), slots, 0.5)
    assert near(clicks[resent, 3].sum(), resent.sum(), 0.5)
    assert np.array_equal(clicks[resent, 2], ~clicks[resent, 3])
    assert near(np.sum(resent[1:] & resent[:-1]), slots - 1, 0.25)


def dead_by_hand(times: np.ndarray, dead: int) -> list[int]:
    kept: list[int] = []
    for moment in times.tolist():
        if not kept or moment >= kept[-1] + dead:
            kept.append(moment)
    return kept


@pytest.mark.parametrize("dead", [45_000, 1_000_000])
@pytest.mark.parametrize("distance", [0.0, 25.0])
def test_dead_time_takes_just_the_clicks_it_should(dead: int, distance: float) -> None:
    states = states_of(300_000)
    free = replace(LinkSettings(), distance_km=distance, afterpulse_probability=0, dead_time_ps=0)
    raw, tags = run(free, states), run(replace(free, dead_time_ps=dead), states)
    for channel in range(DETECTORS):
        times = tags.times[tags.channels == channel]
        assert np.diff(times).min() >= dead
        assert times.tolist() == dead_by_hand(raw.times[raw.channels == channel], dead)


def test_afterpulses_have_their_share_delay_and_chains() -> None:
    p, decay, dead = 0.2, 30_000.0, 45_000
    dark = replace(BARE, dark_counts_per_slot=(1e-4, 0.0, 0.0, 0.0))  # 100 us apart: no collisions
    states = np.zeros(100_000_000 // 4, np.uint8)
    raw = run(dark, states).times
    settings = replace(dark, dead_time_ps=dead, afterpulse_probability=p, afterpulse_decay_ps=decay)
    times = run(settings, states).times
    followers = len(times) - len(raw)
    # Chains are geometric: mean p / (1 - p), variance p / (1 - p)^2; 1 % for what dead time takes.
    mean, sigma = len(raw) * p / (1 - p), math.sqrt(len(raw) * p) / (1 - p)
    assert abs(followers - mean) < 5 * sigma + 0.01 * len(raw)
    is_raw = np.isin(times, raw)
    delays = np.diff(times)[~is_raw[1:]] - dead
    assert delays.min() >= 0
    assert abs(delays.mean() - decay) < 5 * decay / math.sqrt(len(delays)) + 0.02 * decay


def test_afterpulses_of_lost_clicks_do_not_happen() -> None:
    """Every click that is none of the raw ones has one given before it, dead time or more ago."""
    settings = LinkSettings(
        distance_km=0, afterpulse_probability=0.5, afterpulse_decay_ps=20_000, dead_time_ps=45_000
    )
    states = states_of(300_000)
    free = replace(settings, afterpulse_probability=0, dead_time_ps=0)
    raw, tags = run(free, states), run(settings, states)
    for channel in range(DETECTORS):
        own = raw.times[raw.channels == channel]
        times = tags.times[tags.channels == channel]
        assert np.diff(times).min() >= 45_000
        follower = ~np.isin(times, own)
        assert 0.2 < follower.mean() < 0.5
        # A raw click that is not given was blocked by one that was.
        lost = own[~np.isin(own, times)]
        before = times[np.searchsorted(times, lost) - 1]
        assert np.all(lost - before < 45_000)


def residuals(settings: LinkSettings, states: np.ndarray) -> np.ndarray:
    """Arrival less the middle of the slot, ps."""
    tags = run(settings, states)
    slots = (tags.times - settings.origin_ps) // settings.period_ps
    return tags.times - settings.slot_start(slots) - settings.period_ps / 2


def test_jitter_has_its_width_and_tail() -> None:
    states = np.full(1_000_000, PRESENT_BIT, np.uint8)
    settings = replace(BARE, dark_counts_per_slot=0.0, jitter_ps=40.0)
    plain = residuals(settings, states)
    n = len(plain)
    sigma = math.sqrt(40**2 + 1 / 12)  # rounding to 1 ps
    assert n > 10_000
    assert abs(plain.mean()) < 5 * sigma / math.sqrt(n)
    assert abs(plain.std() - sigma) < 5 * sigma / math.sqrt(2 * n)
    fraction, tail = 0.2, 150.0
    tailed = residuals(
        replace(settings, jitter_tail_fraction=fraction, jitter_tail_ps=tail), states
    )
    variance = 40**2 + fraction * 2 * tail**2 - (fraction * tail) ** 2
    assert abs(tailed.mean() - fraction * tail) < 5 * math.sqrt(variance / n)
    late = np.sum(tailed > 300)  # the Gaussian part does not get there
    p = fraction * math.exp(-300 / tail + 40**2 / (2 * tail**2))
    assert near(late, n, p)


def test_dark_counts_fall_evenly() -> None:
    settings = replace(BARE, dark_counts_per_slot=0.01)
    offsets = run(settings, np.zeros(1_000_000, np.uint8)).times % settings.period_ps
    counts = np.histogram(offsets, bins=20, range=(0, settings.period_ps))[0]
    assert all(near(count, counts.sum(), 1 / 20) for count in counts)


def test_clock_offset_and_drift_show_in_the_tags() -> None:
    settings = replace(
        BARE,
        dark_counts_per_slot=0.0,
        clock_offset_ppm=-0.1,
        clock_drift_ppm_per_s=20.0,
        origin_ps=987_654_321,
    )
    slots = 2_000_000
    tags = run(settings, np.full(slots, PRESENT_BIT, np.uint8))
    number = (tags.times - settings.origin_ps) // settings.period_ps
    lag = tags.times - number * settings.period_ps - settings.origin_ps - 5_000
    seconds = number * 1e-8
    offset, drift = np.linalg.lstsq(
        np.stack([seconds * 1e6, 0.5 * seconds**2 * 1e6], axis=1), lag, rcond=None
    )[0]
    assert offset == pytest.approx(-0.1, abs=1e-4)
    assert drift == pytest.approx(20.0, abs=0.01)


def test_slot_start_is_right_to_a_picosecond_far_out() -> None:
    settings = LinkSettings(clock_offset_ppm=3.2, clock_drift_ppm_per_s=0.01, origin_ps=77)
    for slot in (0, 1, 999_999, 10**10, 2**40):
        second = Fraction(slot * 10_000, 10**12)
        rate = Fraction(32, 10) + Fraction(1, 200) * second
        exact = slot * 10_000 + 77 + rate * second * 10**6
        assert abs(int(settings.slot_start(slot)) - exact) < 2
    assert settings.slot_start(np.array([5, 6])).dtype == np.int64


def test_wander_comes_back() -> None:
    settings = replace(BARE, wander_ps=400.0, wander_period_s=0.01)
    quarter = 250_000
    lags = settings.slot_start(np.arange(5) * quarter) - np.arange(5) * quarter * 10_000
    assert lags.tolist() == [0, 400, 0, -400, 0]


@pytest.mark.parametrize("seed", range(4))
def test_cuts_between_calls_do_not_show(seed: int) -> None:
    rng = np.random.default_rng(seed)
    settings = LinkSettings(
        distance_km=float(rng.choice([0, 25])),
        afterpulse_probability=0.3,
        jitter_ps=float(rng.choice([40, 4_000])),
        jitter_tail_fraction=0.2,
        jitter_tail_ps=20_000,
        dark_counts_per_slot=1e-3,
        eve_share=0.5,
    )
    states = states_of(100_000, seed)
    whole = run(settings, states, seed)
    link, parts, at = Photonics(settings, seed), [], 0
    while at < len(states):
        size = int(rng.integers(0, rng.choice([3, 300, 1_000])))
        parts.append(link.detect(states[at : at + size], at))
        at = min(at + size, len(states))
    parts.append(link.flush())
    assert np.array_equal(np.concatenate([part.times for part in parts]), whole.times)
    assert np.array_equal(np.concatenate([part.channels for part in parts]), whole.channels)
    assert np.all(np.diff(whole.times) >= 0)
    assert whole.times.dtype == np.int64
    assert whole.channels.dtype == np.uint8


def test_cut_inside_is_not_seen_either(monkeypatch: pytest.MonkeyPatch) -> None:
    states = states_of(50_000)
    whole = run(LinkSettings(), states)
    monkeypatch.setattr(photonics, "_BLOCK", 777)
    small = run(LinkSettings(), states)
    assert np.array_equal(whole.times, small.times)


def test_seed_decides() -> None:
    states = states_of(100_000)
    first, again, other = (run(LinkSettings(), states, seed) for seed in (5, 5, 6))
    assert np.array_equal(first.times, again.times)
    assert np.array_equal(first.channels, again.channels)
    assert not np.array_equal(first.times, other.times)


def test_slots_left_out_give_no_clicks() -> None:
    settings = replace(LinkSettings(), distance_km=0, afterpulse_probability=0)
    link = Photonics(settings, 1)
    states = states_of(1_000)
    far = 2**47 // settings.period_ps
    times = np.concatenate(
        [link.detect(states, 0).times, link.detect(states, far).times, link.flush().times]
    )
    inside = (times < settings.slot_start(1_001)) | (times > settings.slot_start(far) - 1)
    assert np.all(inside)
    assert np.sum(times < settings.slot_start(1_001)) > 20
    assert np.sum(times > settings.slot_start(far)) > 20


def test_counts_agree_with_the_plan() -> None:
    """Two models of one link: the analytic one of the host, and this one with a simple squash."""
    slots = 3_000_000
    states = states_of(slots, seed=8)
    settings = replace(BARE, distance_km=5.0, dark_counts_per_slot=1e-5)
    clicks = click_matrix(settings, states)
    rng = np.random.default_rng(1)
    in_z, in_x = clicks[:, :2].any(axis=1), clicks[:, 2:].any(axis=1)
    basis, bit = states & BASIS_BIT, (states & BIT_BIT) >> 1
    counts = {}
    for b, name in enumerate("zx"):
        seen = (in_x & ~in_z if b else in_z & ~in_x) & (basis == b)
        both = clicks[:, 2 * b] & clicks[:, 2 * b + 1]
        outcome = np.where(both, rng.integers(0, 2, slots), clicks[:, 2 * b + 1])
        for letter, mask in (("n", seen), ("m", seen & (outcome != bit))):
            decoy = states & DECOY_BIT != 0
            counts[f"{letter}_{name}"] = (int(np.sum(mask & ~decoy)), int(np.sum(mask & decoy)))
    measured = DecoyCounts(**counts)
    source = DecoySource((0.6, 0.2), (quantised(0.3), 1 - quantised(0.3)))
    planned = expected_counts(
        slots, source, distance_km=5.0, dark_counts_per_slot=1e-5, cross_clicks="discard"
    )
    for name in ("n_z", "m_z", "n_x", "m_x"):
        for have, want in zip(getattr(measured, name), getattr(planned, name), strict=True):
            assert abs(have - want) < 5 * math.sqrt(want) + 5, name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("distance_km", -1),
        ("distance_km", math.nan),
        ("misalignment", 0.6),
        ("intensities", (0.6, -0.1)),
        ("intensities", (0.6,)),
        ("efficiency", (0.5, 0.5, 0.5)),
        ("efficiency", 1.5),
        ("dark_counts_per_slot", 0.9),
        ("dead_time_ps", -1),
        ("dead_time_ps", 0.5),
        ("afterpulse_probability", 1.0),
        ("period_ps", 100),
        ("clock_offset_ppm", 1e6),
        ("wander_ps", 1e6),
        ("origin_ps", -1),
        ("receiver_p_z", 2),
        ("eve_share", 1.1),
    ],
)
def test_nonsense_settings_are_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{name}: "):
        LinkSettings(**{"wander_period_s": 0.001, name: value})  # type: ignore[arg-type]


def test_nonsense_calls_are_refused() -> None:
    with pytest.raises(ValueError, match="seed"):
        Photonics(BARE, -1)
    link = Photonics(BARE, 1)
    states = states_of(10)
    link.detect(states, 5)
    with pytest.raises(ValueError, match="first_slot: 14; at least 15"):
        link.detect(states, 14)
    with pytest.raises(ValueError, match="code 16"):
        link.detect(np.array([16], np.uint8), 20)
    with pytest.raises(ValueError, match="one row"):
        link.detect(states.astype(np.int64), 20)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="clocks"):
        link.detect(states, 2**50)
    link.flush()
    with pytest.raises(RuntimeError, match="flushed"):
        link.detect(states, 20)


def test_synthetic_recording_looks_like_a_real_one() -> None:
    period = 12_495.602886
    times, channels = synthetic_recording(2, steps_back=17)
    assert np.sum(np.diff(times) < 0) == 17
    assert times.min() >= 0
    assert set(channels.tolist()) == {1, 2, 5}
    for channel, least in ((1, 0.97), (2, 0.97), (5, 0.98)):
        own = times[channels == channel]
        assert least < abs(np.exp(2j * np.pi * own / period).mean()) < 0.999
        assert len(own) > 1000
    order = np.argsort(times, kind="stable")
    times, channels = times[order], channels[order]
    sync, clicks = times[channels == 5], times[channels == 2]
    multiples = np.diff(sync) / (8 * period)
    assert np.all(np.abs(multiples - np.rint(multiples)) < 0.02)
    # Kept only before a click on channel 2: one within the eight pulses that follow.
    following = clicks[np.minimum(np.searchsorted(clicks, sync), len(clicks) - 1)] - sync
    assert np.mean((following > 0) & (following < 9 * period)) > 0.98
    again = synthetic_recording(2, steps_back=17)
    assert np.array_equal(np.sort(again[0]), times)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("duration_s", 0),
        ("period_ps", -1),
        ("rates_hz", (0, 1)),
        ("background_share", 2),
        ("sync_divider", 0),
        ("steps_back", 10**9),
    ],
)
def test_nonsense_recordings_are_refused(setting: str, value: object) -> None:
    with pytest.raises(ValueError, match=setting):
        synthetic_recording(1, **{setting: value})  # type: ignore[arg-type]


def test_benchmark_prints_a_rate(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["photonics", "--benchmark", "--slots", "200000"])
    photonics.main()
    assert "slots/s at 25 km" in capsys.readouterr().out
