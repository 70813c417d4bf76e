# SPDX-License-Identifier: Apache-2.0
"""The world between the sender's modulator and the receiver's stamped tags.

Polarisation BB84 with one decoy over a lossy fibre into a passive receiver: a beam splitter
chooses the basis, four threshold detectors click. Channel 0 is Z bit 0, 1 is Z bit 1, 2 is X bit 0,
3 is X bit 1. Detections are drawn directly: phase-randomised coherent light makes the detectors
click independently, each with

    p = 1 - (1 - d) exp(-eta mu f)

(d dark counts, eta transmission times efficiency, mu the intensity, f the share of the light that
this state sends to this detector), so candidates are drawn at the highest p of any state and
thinned by the p of the state at hand. Several clicks in one slot come out with their exact
probabilities.

Not modelled: photon statistics other than Poisson's, correlations between pulses, light changed in
flight by anything but the settings. ``python -m keyrail_sim.photonics --benchmark`` measures the
speed.
"""

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from keyrail.randomness import TestRandom
from keyrail.source import BASIS_BIT, BIT_BIT, DECOY_BIT, PRESENT_BIT, random_states

__all__ = ["DETECTORS", "LinkSettings", "Photonics", "Tags", "synthetic_recording"]

DETECTORS = 4
"""Detectors of the receiver: Z bit 0, Z bit 1, X bit 0, X bit 1."""

Int64s = NDArray[np.int64]
Floats = NDArray[np.float64]
Codes = NDArray[np.uint8]

_BLOCK = 1 << 21  # slots worked on at once; results do not depend on it
_JITTER_LIMIT = 8.0  # sigma; the Gaussian is cut there, so that the hold-back is bounded
_FLOOR = 1e-12  # lowest candidate rate, so that gaps stay far from 64 bits
_RATE_LIMIT_PPM = 100_000  # the clocks may come apart by this much

_RANGES: dict[str, tuple[float, float]] = {
    "distance_km": (0, 1000),
    "attenuation_db_per_km": (0, 10),
    "receiver_loss_db": (0, 100),
    "misalignment": (0, 0.5),
    "jitter_ps": (0, 100_000),
    "jitter_tail_fraction": (0, 1),
    "jitter_tail_ps": (0, 1_000_000),
    "dead_time_ps": (0, 10**9),
    "afterpulse_probability": (0, 0.9),
    "afterpulse_decay_ps": (0, 10**9),
    "period_ps": (800, 1_000_000),
    "clock_offset_ppm": (-1000, 1000),
    "clock_drift_ppm_per_s": (-100, 100),
    "wander_ps": (0, 1_000_000),
    "wander_period_s": (0.001, 1_000_000),
    "origin_ps": (0, 2**47),
    "receiver_p_z": (0, 1),
    "eve_share": (0, 1),
}


@dataclass(frozen=True)
class LinkSettings:
    """A link. Every field is checked; the allowed range is in the error's text.

    Parameters
    ----------
    distance_km : float
        Length of the fibre.
    attenuation_db_per_km : float
        Its loss.
    receiver_loss_db : float
        Loss inside the receiver, before the detectors.
    misalignment : float
        Share of the light that goes to the wrong detector of its own basis.
    intensities : tuple of float
        Mean photon numbers of signal and decoy at the sender's exit, 0 to 100.
    efficiency : float or tuple of four
        Of the detectors, by channel, 0 to 1.
    dark_counts_per_slot : float or tuple of four
        Probability of a dark count in a slot, by channel, 0 to 0.5; even over the slot.
    jitter_ps : float
        Standard deviation of the Gaussian part; cut at 8 sigma.
    jitter_tail_fraction, jitter_tail_ps : float
        Share of the clicks that come later, by an exponential time of this mean.
    dead_time_ps : int
        After a click a detector gives no other one for this long (not paralysable).
    afterpulse_probability : float
        Chance that a click is followed by one more after the dead time, 0 to 0.9; the follower can
        have one of its own.
    afterpulse_decay_ps : float
        Mean time from the end of the dead time to the afterpulse.
    period_ps : int
        Slot period in the sender's clock.
    clock_offset_ppm, clock_drift_ppm_per_s : float
        The receiver's clock against the sender's: at +1 ppm intervals come out longer by 10^-6.
    wander_ps, wander_period_s : float
        A sine on top of the receiver's clock.
    origin_ps : int
        When slot 0 begins in the receiver's clock. Pulses arrive in the middle of their slots.
    receiver_p_z : float
        Share of the light that the beam splitter sends to basis Z.
    eve_share : float
        Share of the pulses that Eve intercepts and resends, 0 to 1. She measures in a basis chosen
        by a fair coin and sends what she found, in her basis, as a coherent pulse of the intensity
        class that was sent: click rates stay as they were, and the errors rise by a quarter of the
        share in both bases. That is kinder to her than nature (she always finds something and
        knows the class), so it shows the errors, not how she does it.

    Raises
    ------
    ValueError
        If a value is out of its range.
    """

    distance_km: float = 25.0
    attenuation_db_per_km: float = 0.2
    receiver_loss_db: float = 3.0
    misalignment: float = 0.01
    intensities: tuple[float, float] = (0.6, 0.2)
    efficiency: float | tuple[float, ...] = 0.5
    dark_counts_per_slot: float | tuple[float, ...] = 1e-6
    jitter_ps: float = 40.0
    jitter_tail_fraction: float = 0.05
    jitter_tail_ps: float = 150.0
    dead_time_ps: int = 45_000
    afterpulse_probability: float = 0.005
    afterpulse_decay_ps: float = 30_000.0
    period_ps: int = 10_000
    clock_offset_ppm: float = 3.2
    clock_drift_ppm_per_s: float = 0.01
    wander_ps: float = 0.0
    wander_period_s: float = 1.0
    origin_ps: int = 123_456_789
    receiver_p_z: float = 0.7
    eve_share: float = 0.0

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name}: {value}; allowed is {low:g} to {high:g}")
        for name in ("dead_time_ps", "period_ps", "origin_ps"):
            value = getattr(self, name)
            if value != int(value):
                raise ValueError(f"{name}: {value}; a whole number of ps")
        if len(self.intensities) != 2 or not all(0 <= mu <= 100 for mu in self.intensities):
            raise ValueError(
                f"intensities: {self.intensities}; two numbers (signal, decoy) from 0 to 100"
            )
        for name, high in (("efficiency", 1.0), ("dark_counts_per_slot", 0.5)):
            values = _by_channel(getattr(self, name))
            if len(values) != DETECTORS or not all(0 <= value <= high for value in values):
                raise ValueError(
                    f"{name}: {getattr(self, name)}; "
                    f"one number or {DETECTORS}, each from 0 to {high:g}"
                )
        highest = 1e-3 * self.wander_period_s * 1e12 / (2 * math.pi)  # slope of 10^-3
        if self.wander_ps > highest:
            raise ValueError(
                f"wander_ps: {self.wander_ps}; allowed is 0 to {highest:g} with this period"
            )

    @property
    def transmission(self) -> float:
        """Share of the light that reaches the detectors, their efficiency left out."""
        loss_db = self.distance_km * self.attenuation_db_per_km + self.receiver_loss_db
        return float(10 ** (-loss_db / 10))

    def photon_click_probabilities(self) -> Floats:
        """Probability that the light of a state makes a detector click, dark counts left out.

        Returns
        -------
        ndarray of float, shape (4, 16)
            By channel and code of the state; 0 for states that are not present.
        """
        code = np.arange(16)
        intensity = np.where(code & DECOY_BIT, self.intensities[1], self.intensities[0])
        table = np.zeros((DETECTORS, 16))
        for channel, efficiency in enumerate(_by_channel(self.efficiency)):
            basis, bit = divmod(channel, 2)
            split = 1 - self.receiver_p_z if basis else self.receiver_p_z
            same_basis = (code & BASIS_BIT != 0) == bool(basis)
            same_bit = (code & BIT_BIT != 0) == bool(bit)
            share = np.where(same_bit, 1 - self.misalignment, self.misalignment)
            share = np.where(same_basis, share, 0.5) * split
            mean = self.transmission * efficiency * intensity * share
            table[channel] = np.where(code & PRESENT_BIT, -np.expm1(-mean), 0.0)
        return table

    def click_probabilities(self) -> Floats:
        """Probability that a detector clicks in a slot, before dead time and afterpulses.

        Returns
        -------
        ndarray of float, shape (4, 16)
            By channel and code of the state.
        """
        dark = np.array(_by_channel(self.dark_counts_per_slot))[:, None]
        photon = self.photon_click_probabilities()
        table: Floats = photon + dark * (1 - photon)
        return table

    def slot_start(self, slots: Int64s | int) -> Int64s:
        """When slots begin in the receiver's clock, ps (int64), rounded to the nearest."""
        number = np.asarray(slots, dtype=np.int64)
        lag = np.rint(self.lag(number)).astype(np.int64)
        return number * np.int64(self.period_ps) + np.asarray(lag)

    def lag(self, slots: Int64s) -> Floats:
        """How far the receiver's clock is ahead of the sender's at slots, ps; origin included."""
        seconds = slots * (self.period_ps * 1e-12)
        ppm = self.clock_offset_ppm + 0.5 * self.clock_drift_ppm_per_s * seconds
        sine = self.wander_ps * np.sin(2 * math.pi / self.wander_period_s * seconds)
        lag: Floats = ppm * seconds * 1e6 + sine + self.origin_ps
        return lag


def _by_channel(value: float | tuple[float, ...]) -> tuple[float, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,) * DETECTORS


class Tags(NamedTuple):
    """Stamped clicks, in time order."""

    times: Int64s
    """Time in the receiver's clock, ps."""
    channels: NDArray[np.uint8]
    """Detector, 0 to 3."""


class Photonics:
    """One run of a link: states go in, slot by slot, and tags come out.

    The tags depend on the settings, the seed and the states alone; how the states are cut into
    calls does not matter. More than 10 million slots a second at 25 km on one core.

    Parameters
    ----------
    settings : LinkSettings
        The link.
    seed : int
        Seed of nature (and of Eve); at least 0. The states are drawn elsewhere.

    Raises
    ------
    ValueError
        If the seed is negative.
    """

    def __init__(self, settings: LinkSettings, seed: int) -> None:
        if seed < 0:
            raise ValueError(f"seed: {seed}; at least 0")
        self.settings = settings
        photon, total = settings.photon_click_probabilities(), settings.click_probabilities()
        self._detectors = [
            _Detector(settings, seed, channel, photon[channel], total[channel])
            for channel in range(DETECTORS)
        ]
        stream = np.random.SeedSequence(seed, spawn_key=(DETECTORS,))
        self._eve_key = np.uint64(stream.generate_state(1, np.uint64)[0])
        self._next_slot = 0
        self._done = False

    def detect(self, states: Codes, first_slot: int) -> Tags:
        """Send slots in a row.

        Parameters
        ----------
        states : ndarray of uint8, shape (n,)
            Codes as in the contract's ``state``; not present means that no light was sent.
        first_slot : int
            Number of the first one. Slots left out since the last call are passed over without
            any click of their own.

        Returns
        -------
        Tags
            Those that nothing can come before any more; the others are held back.

        Raises
        ------
        ValueError
            If the slots go backwards, a code is above 15, or the clocks are too far apart.
        RuntimeError
            If the run has been flushed.
        """
        if self._done:
            raise RuntimeError("the run has been flushed; a new one needs a new object")
        if first_slot < self._next_slot:
            raise ValueError(f"first_slot: {first_slot}; at least {self._next_slot}")
        if states.dtype != np.uint8 or states.ndim != 1:
            raise ValueError(f"states: {states.dtype} {states.shape}; one row of uint8")
        if len(states) and states.max() > 15:
            raise ValueError(f"states: code {states.max()}; allowed is 0 to 15")
        end = first_slot + len(states)
        seconds = end * self.settings.period_ps * 1e-12
        ppm = self.settings.clock_offset_ppm + self.settings.clock_drift_ppm_per_s * seconds
        if abs(ppm) > _RATE_LIMIT_PPM or end * self.settings.period_ps >= 1 << 61:
            raise ValueError(f"first_slot: {first_slot}; the clocks are out of range there")
        parts = [Tags(np.empty(0, np.int64), np.empty(0, np.uint8))]
        for start in range(0, len(states), _BLOCK):
            block = states[start : start + _BLOCK]
            for detector in self._detectors:
                detector.illuminate(block, first_slot + start, self._intercepted)
            parts.append(self._release(self._horizon(first_slot + start + len(block))))
        self._next_slot = end
        return Tags(
            np.concatenate([part.times for part in parts]),
            np.concatenate([part.channels for part in parts]),
        )

    def flush(self) -> Tags:
        """End the run.

        Returns
        -------
        Tags
            All that was held back.
        """
        self._done = True
        return self._release(None)

    def _horizon(self, slot: int) -> int:
        """Before this time no raw click of this slot or a later one can come, ps."""
        early = self.settings.period_ps / 2 - _JITTER_LIMIT * self.settings.jitter_ps
        return int(self.settings.slot_start(slot)) + min(0, math.floor(early)) - 2

    def _release(self, horizon: int | None) -> Tags:
        released = [detector.release(horizon) for detector in self._detectors]
        times = np.concatenate(released)
        channels = np.repeat(np.arange(DETECTORS, dtype=np.uint8), [len(part) for part in released])
        order = np.argsort(times, kind="stable")
        return Tags(times[order], channels[order])

    def _intercepted(self, codes: Codes, slots: Int64s) -> Codes:
        """Codes as they are after Eve: the other basis and a random bit where she guessed wrong.

        Her choices are a hash of the slot number (the finaliser of SplitMix64; Steele et al.,
        OOPSLA 2014), so that all detectors see the same one and nobody draws for every slot.
        """
        if self.settings.eve_share == 0:
            return codes
        word = slots.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + self._eve_key
        word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        word ^= word >> np.uint64(31)
        wrong = (word >> np.uint64(11)) * 2.0**-53 < self.settings.eve_share / 2
        bit = (word & np.uint64(1)).astype(np.uint8)
        resent = ((codes ^ np.uint8(BASIS_BIT)) & np.uint8(~BIT_BIT & 15)) | (bit << np.uint8(1))
        return np.where(wrong, resent, codes)


class _Detector:
    """One detector: candidates, thinning, jitter, afterpulses, dead time, hold-back.

    Every random variable has a generator of its own that is read in the order of the candidates
    (or of the raw clicks), which is why the cuts between calls do not show.
    """

    def __init__(
        self, settings: LinkSettings, seed: int, channel: int, photon: Floats, total: Floats
    ) -> None:
        self.settings = settings
        self.photon, self.total = photon, total
        self.rate = max(float(total.max()), _FLOOR)
        (
            self.gaps,
            self.thinning,
            self.gauss,
            self.tails,
            self.tail_times,
            self.dark_times,
            self.chains,
            self.chain_times,
        ) = (
            np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=key)))
            for key in ((channel, variable) for variable in range(8))
        )
        self.simulated = 0  # slots so far; those passed over do not count
        self.ahead: Int64s = np.empty(0, np.int64)  # candidates drawn, not yet reached
        self.drawn = -1  # position of the last candidate drawn
        self.dead = max(1, int(settings.dead_time_ps))
        self.last = -(1 << 62)  # time of the last click given
        self.times: Int64s = np.empty(0, np.int64)  # clicks that may still come, sorted
        self.parents: Int64s = np.empty(0, np.int64)  # index of the click they follow, or -1

    def candidates(self, slots: int) -> Int64s:
        """Indices of the candidates among the next slots; at most one a slot."""
        end = self.simulated + slots
        parts = [self.ahead]
        while self.drawn < end:
            count = int((end - self.drawn) * self.rate * 1.02) + 64
            fresh = self.drawn + np.cumsum(self.gaps.geometric(self.rate, count))
            self.drawn = int(fresh[-1])
            parts.append(fresh)
        positions = np.concatenate(parts)
        reached = int(np.searchsorted(positions, end))
        self.ahead = positions[reached:]
        found: Int64s = positions[:reached] - self.simulated
        self.simulated = end
        return found

    def illuminate(
        self, states: Codes, first_slot: int, intercepted: Callable[[Codes, Int64s], Codes]
    ) -> None:
        """Add the raw clicks of these slots, and the afterpulses they may have."""
        settings = self.settings
        where = self.candidates(len(states))
        codes = intercepted(states[where], where + first_slot)
        u = self.thinning.random(len(where)) * self.rate
        clicked = u < self.total[codes]
        slots, light = (where + first_slot)[clicked], (u < self.photon[codes])[clicked]
        n = len(slots)

        gauss = np.clip(self.gauss.standard_normal(n), -_JITTER_LIMIT, _JITTER_LIMIT)
        delay = settings.period_ps / 2 + settings.jitter_ps * gauss
        tail = self.tails.random(n) < settings.jitter_tail_fraction
        exponential = self.tail_times.standard_exponential(int(tail.sum()))
        delay[tail] += settings.jitter_tail_ps * exponential
        delay = np.where(light, delay, settings.period_ps * self.dark_times.random(n))
        lag = settings.lag(slots) + delay
        raw = slots * settings.period_ps + np.rint(lag).astype(np.int64)

        offset = len(self.times)
        followers, leaders = self.afterpulses(raw, offset)
        times = np.concatenate([self.times, raw, followers])
        parents = np.concatenate([self.parents, np.full(n, -1, np.int64), leaders])
        order = np.argsort(times, kind="stable")
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        parents = parents[order]
        self.times = times[order]
        self.parents = np.where(parents < 0, -1, rank[parents])

    def afterpulses(self, raw: Int64s, offset: int) -> tuple[Int64s, Int64s]:
        """Clicks that follow raw ones, should those be given, and what each of them follows.

        Chains of any length: each link follows the one before. Indices count from `offset`, raw
        clicks first, then the followers.
        """
        p = self.settings.afterpulse_probability
        lengths = np.zeros(len(raw), np.int64)
        if p > 0:
            draw = np.log1p(-self.chains.random(len(raw))) / math.log(p)
            lengths = np.floor(draw).astype(np.int64)
        count = int(lengths.sum())
        origin = np.repeat(np.arange(len(raw)), lengths)
        decay = self.settings.afterpulse_decay_ps
        waits = decay * self.chain_times.standard_exponential(count)
        steps = self.dead + np.floor(waits).astype(np.int64)
        sums = np.cumsum(steps)
        ends = np.cumsum(lengths)
        before = np.r_[0, sums][np.repeat(ends - lengths, lengths)]
        first = np.arange(count) == np.repeat(ends - lengths, lengths)
        chained = offset + len(raw) + np.arange(count) - 1
        return raw[origin] + sums - before, np.where(first, offset + origin, chained)

    def release(self, horizon: int | None) -> Int64s:
        """Give the clicks before the horizon (all of them if None)."""
        n = len(self.times) if horizon is None else int(np.searchsorted(self.times, horizon))
        times, parents = self.times[:n], self.parents[:n]
        given = np.ones(n, np.bool_)
        # Whether a click is given depends on earlier ones only, so repeating settles it.
        while True:
            possible = np.flatnonzero((parents < 0) | given[parents])
            settled = np.zeros(n, np.bool_)
            settled[possible[self.survivors(times[possible])]] = True
            if np.array_equal(settled, given):
                break
            given = settled

        # Of the rest, those go whose leader was lost, and in turn what follows them.
        rest = self.parents[n:]
        kept = np.ones(len(rest), np.bool_)
        for i in np.flatnonzero(rest >= 0):  # few: followers not yet due, leaders first
            kept[i] = given[rest[i]] if rest[i] < n else kept[rest[i] - n]
        index = np.cumsum(kept) - 1
        self.times, rest = self.times[n:][kept], rest[kept]
        self.parents = np.where(rest >= n, index[np.maximum(rest - n, 0)], -1)
        released: Int64s = times[given]
        if len(released):
            self.last = int(released[-1])
        return released

    def survivors(self, times: Int64s) -> NDArray[np.bool_]:
        """Which of the sorted clicks the dead time lets through."""
        alive = np.zeros(len(times), np.bool_)
        start = int(np.searchsorted(times, self.last + self.dead))
        if start == len(times):
            return alive
        # A click that far behind its neighbour is always given: runs are independent.
        heads = np.flatnonzero(np.diff(times[start:]) >= self.dead) + start + 1
        active = np.r_[start, heads]
        ends = np.r_[heads, len(times)]
        while len(active):
            alive[active] = True
            several = ends - active > 1
            active, ends = active[several], ends[several]
            active = np.searchsorted(times, times[active] + self.dead)
            inside = active < ends
            active, ends = active[inside], ends[inside]
        return alive


def synthetic_recording(
    seed: int,
    *,
    duration_s: float = 0.2,
    period_ps: float = 12_495.602886,
    rates_hz: tuple[float, float] = (25_000.0, 25_000.0),
    background_share: float = 0.005,
    jitter_ps: float = 150.0,
    wander_ps: float = 300.0,
    wander_cycles: int = 2,
    sync_divider: int = 8,
    sync_jitter_ps: float = 20.0,
    steps_back: int = 0,
) -> tuple[Int64s, NDArray[np.uint16]]:
    """Make a small recording of a pulsed source, like a Hanbury Brown-Twiss one at 80 MHz.

    Two detectors on channels 1 and 2 click on Poisson light, with Gaussian jitter around a period
    that wanders; channel 5 is the source's sync, divided, kept only where it is the last one
    before a click on channel 2. The wander is a cosine, even about the middle of the recording, so
    that it does not shift the one period that fits best.

    Parameters
    ----------
    seed : int
        Seed; at least 0.
    duration_s : float
        Length, s.
    period_ps : float
        Pulse period.
    rates_hz : tuple of float
        Clicks a second on channels 1 and 2.
    background_share : float
        Share of the clicks that fall evenly, 0 to 1.
    jitter_ps, sync_jitter_ps : float
        Standard deviations of the clicks and of the sync.
    wander_ps : float
        Amplitude of the wander; `wander_cycles` whole cycles in the recording.
    sync_divider : int
        Pulses to a sync.
    steps_back : int
        How many tags to put before their predecessor, as in recordings that are not perfectly
        ordered.

    Returns
    -------
    times : ndarray of int64
        ps, from 0 up; in order but for the steps back.
    channels : ndarray of uint16
        1, 2 and 5.

    Raises
    ------
    ValueError
        If a value makes no sense, or the recording has no room for the steps back.
    """
    pulses = int(duration_s * 1e12 / period_ps) if period_ps > 0 else 0
    if not 1 <= pulses <= 10**9:
        raise ValueError(f"duration_s: {duration_s}, period_ps: {period_ps}; from 1 to 10^9 pulses")
    if sync_divider < 1:
        raise ValueError(f"sync_divider: {sync_divider}; at least 1")
    if not 0 <= background_share <= 1:
        raise ValueError(f"background_share: {background_share}; allowed is 0 to 1")
    clicks = [rate * period_ps * 1e-12 for rate in rates_hz]
    if len(clicks) != 2 or not all(0 < click < 1 for click in clicks):
        raise ValueError(f"rates_hz: {rates_hz}; two, above 0 and below one click a pulse")
    rng = np.random.default_rng(seed)
    length = pulses * period_ps

    def wandered(times: Floats) -> Floats:
        angle = 2 * math.pi * wander_cycles * (times / length - 0.5)
        result: Floats = times + wander_ps * np.cos(angle)
        return result

    parts: list[Int64s] = []
    hit: Int64s = np.empty(0, np.int64)
    for delay, click in zip((3_000.0, 6_000.0), clicks, strict=True):
        room = int(pulses * click + 10 * math.sqrt(pulses * click)) + 100  # ends past the last
        hit = np.cumsum(rng.geometric(click, room)) - 1
        hit = hit[hit < pulses]
        times = wandered(hit.astype(np.float64) * period_ps) + rng.normal(
            delay, jitter_ps, len(hit)
        )
        even = rng.random(len(hit)) < background_share
        times = np.where(even, rng.random(len(hit)) * length, times)
        parts.append(np.rint(times).astype(np.int64))
    syncs = np.unique(hit // sync_divider) * sync_divider
    times = wandered(syncs.astype(np.float64) * period_ps) + rng.normal(
        1_000.0, sync_jitter_ps, len(syncs)
    )
    parts.append(np.rint(times).astype(np.int64))

    times_ps = np.concatenate(parts)
    times_ps -= min(0, int(times_ps.min()))
    channels = np.repeat(np.array([1, 2, 5], np.uint16), [len(part) for part in parts])
    order = np.argsort(times_ps, kind="stable")
    times_ps, channels = times_ps[order], channels[order]
    # Disjoint pairs of unequal times: swapping one makes one step back, and only one.
    pairs = np.arange(0, len(times_ps) - 1, 2)
    pairs = pairs[times_ps[pairs] < times_ps[pairs + 1]]
    if not 0 <= steps_back <= len(pairs):
        raise ValueError(f"steps_back: {steps_back}; allowed is 0 to {len(pairs)} here")
    chosen = rng.permutation(pairs)[:steps_back]
    times_ps[chosen], times_ps[chosen + 1] = times_ps[chosen + 1], times_ps[chosen]
    channels[chosen], channels[chosen + 1] = channels[chosen + 1], channels[chosen]
    return times_ps, channels


def _benchmark(slots: int, distance_km: float) -> None:
    settings = LinkSettings(distance_km=distance_km)
    states = random_states(TestRandom(0, "states").bytes, slots, 0.7, 0.3)
    photonics = Photonics(settings, 0)
    start = time.perf_counter()
    clicks = len(photonics.detect(states, 0).times) + len(photonics.flush().times)
    elapsed = time.perf_counter() - start
    print(
        f"{slots / elapsed:,.0f} slots/s at {distance_km:g} km on one core "
        f"({slots:,} slots, {clicks:,} clicks, {elapsed:.2f} s)"
    )


def main() -> None:
    """Command line: measure the speed."""
    parser = argparse.ArgumentParser(prog="python -m keyrail_sim.photonics", description=__doc__)
    parser.add_argument("--benchmark", action="store_true", required=True, help="print slots/s")
    parser.add_argument("--slots", type=int, default=20_000_000)
    parser.add_argument("--distance", type=float, default=25.0, help="km")
    arguments = parser.parse_args()
    _benchmark(arguments.slots, arguments.distance)


if __name__ == "__main__":
    main()
