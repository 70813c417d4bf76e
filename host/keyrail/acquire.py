# SPDX-License-Identifier: Apache-2.0
"""Recovery of the pulse period and phase from detector tags alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.signal import czt
from scipy.stats import gamma

from keyrail.contract import PERIOD_FRACTION_BITS, PERIOD_MAXIMUM_PS, PERIOD_MINIMUM_PS
from keyrail.errors import KeyrailError

Times = npt.NDArray[np.int64]

HINT_TOLERANCE = 1e-4
"""A hinted frequency is right to this share."""
_BIN_PS = 125
_LAGS = 1 << 18  # differences of up to 33 us enter the first search
_TAGS = 30_000  # tags that the search round a hint looks at
_MARGIN = 16.0  # natural logarithm of how much likelier than by chance a period must be
_DIVISION = 8  # harmonics that must be visible for a period to be suspected of being divided
_HARMONICS = 4  # of every frequency near a hint
_HARMONICS_MOST = 32  # of those that stand out


class NoPeriodError(KeyrailError):
    """The tags show no pulse period."""


@dataclass(frozen=True)
class Acquisition:
    """A pulse period and its phase.

    Attributes
    ----------
    period_fixed
        Period, ps in 20.44 fixed point.
    period_ps, period_ps_uncertainty
        Period, and its standard uncertainty, ps: of the slope of a line through the phases of 64
        equal parts of the run, from the scatter round it, so that a wandering clock counts.
    visibility
        Mean visibility over the channels, weighted by tags.
    visibility_by_channel
        |mean of exp(2 pi i t / P)| of each channel, 0 to 1.
    phase_by_channel
        Phase of each channel's pulses within their slots, ps.
    origin_ps
        Beginning of a slot, at or before the first tag, ps; the pulses of the channel with most
        tags lie in the middle of their slots.
    divided
        The period may be that of a divided source: its pulses are so short that a source of
        several times the frequency would look the same.
    note
        Says so in words, else empty.
    """

    period_fixed: int
    period_ps: float
    period_ps_uncertainty: float
    visibility: float
    visibility_by_channel: dict[int, float]
    phase_by_channel: dict[int, float]
    origin_ps: int
    divided: bool
    note: str


def _phasors(times: Times, frequency: float) -> npt.NDArray[np.complex128]:
    """exp(2 pi i f t), t in ps counted from the run's beginning, f in 1/ps."""
    turns = times * frequency
    result: npt.NDArray[np.complex128] = np.exp(2j * np.pi * (turns - np.floor(turns)))
    return result


def _search(times: Times) -> float:
    """Lowest strong line in the spectrum of one channel's differences, 1/ps; 0 if none."""
    spectrum_of = np.zeros(_LAGS)
    for lag in (1, 2, 3):
        difference = times[lag:] - times[:-lag]
        near = difference[(difference > 0) & (difference < _LAGS * _BIN_PS)]
        spectrum_of += np.bincount(near // _BIN_PS, minlength=_LAGS)
    count = spectrum_of.sum()
    if count < 20:
        return 0.0
    # Differences thin out with length; without the smooth part only lines are left.
    power = np.abs(np.fft.rfft(spectrum_of, 2 * _LAGS)) ** 2 / count
    frequency = np.fft.rfftfreq(2 * _LAGS, _BIN_PS)
    # The longest period is tried to 5 % beyond, so that it has a peak of its own.
    power[frequency < 0.95 / PERIOD_MAXIMUM_PS] = 0
    power[frequency > 1.05 / PERIOD_MINIMUM_PS] = 0
    best = power.max()
    if best < np.log(len(power)) + _MARGIN:
        return 0.0
    strong = np.flatnonzero(power >= 0.6 * best)
    first = strong[0]
    run = first + np.flatnonzero(np.diff(strong, prepend=first - 1)[: len(strong)] == 1)
    peak = int(first + np.argmax(power[first : run[-1] + 2 if len(run) else first + 2]))
    a, b, c = power[peak - 1 : peak + 2]
    return float(frequency[peak] + (a - c) / (2 * (a - 2 * b + c)) * frequency[1])


def _searched(frequency: float) -> float:
    """Longest span that the search round a hint looks at, ps: 4,000 steps of a quarter line."""
    return 4000 / (4 * 2 * HINT_TOLERANCE * frequency)


def _search_near(channels: list[Times], frequency: float) -> float:
    """Strongest line within the tolerance of a hint, 1/ps; 0 if none stands out."""
    width = 2 * HINT_TOLERANCE * frequency
    longest = _searched(frequency)
    parts = [times[times < longest][:_TAGS] for times in channels]
    span = max((int(part[-1]) for part in parts if len(part)), default=0)
    if span == 0:
        return 0.0
    # Round the hint the phasors turn slowly: in bins of 1/16 turn at most, one transform gives
    # the lines in steps of a quarter of their width.
    bins = 1 << max(6, int(np.ceil(np.log2(16 * width * span))))
    places = np.arange(-int(2 * width * span) - 4, int(2 * width * span) + 5)
    grid = frequency + places / (4 * (span + 1))
    power = np.zeros(len(grid))
    for part in parts:
        if len(part) > 1:
            turning = _phasors(part, frequency)
            where = (part * bins) // (span + 1)
            slow = np.bincount(where, turning.real, bins) + 1j * np.bincount(
                where, turning.imag, bins
            )
            # exp(+2 pi i d t), as the phasors have it
            lines = np.fft.ifft(slow, 4 * bins) * 4 * bins
            power += np.abs(lines[places % (4 * bins)]) ** 2 / len(part)
    peak = int(power.argmax())
    if power[peak] < np.log(len(grid)) + _MARGIN + len(parts):
        return 0.0
    return float(grid[peak])


def _refine(channels: list[Times], frequency: float, lag: float, span: int) -> float:
    """Follow the phase over ever longer lags until they reach the whole run."""
    while True:
        bins = max(2, int(span / lag) + 1)
        product = 0j
        for times in channels:
            where = np.minimum((times / lag).astype(np.int64), bins - 1)
            phasors = _phasors(times, frequency)
            sums = np.bincount(where, phasors.real, bins) + 1j * np.bincount(
                where, phasors.imag, bins
            )
            product += (sums[1:] * np.conj(sums[:-1])).sum()
        frequency -= float(np.angle(product)) / (2 * np.pi * lag)
        if lag >= span / 4:
            break
        lag = min(lag * 4, span / 4)
    # One fixed period for the whole run: the one that gives the most visibility.
    step = 0.25 / span
    for _ in range(40):
        trial = [
            sum(abs(_phasors(times, frequency + d).sum()) for times in channels)
            for d in (-step, 0, step)
        ]
        best = int(np.argmax(trial))
        frequency += (best - 1) * step
        if best == 1:
            step /= 2
        if step < 1e-6 / span:
            break
    return frequency


def acquire(
    times: npt.NDArray[np.int64],
    channels: npt.NDArray[np.integer],
    frequency_hint: float | None = None,
) -> Acquisition:
    """Find the pulse period and phase of tags.

    Without a hint, the spectrum of each channel's own differences is searched for its lowest
    strong line; the shortest of the channels' periods counts. Then phases are followed over ever
    longer lags, and at last the visibility over the whole run is made largest.

    Parameters
    ----------
    times
        Tags in time order, ps.
    channels
        Their channels.
    frequency_hint
        Frequency, Hz, right to 100 ppm; none needed.

    Returns
    -------
    Acquisition
        Period and phase.

    Raises
    ------
    NoPeriodError
        If no period stands out.
    """
    if len(times) < 10:
        raise NoPeriodError(f"no pulse period: {len(times)} tags, needed are 10 at least")
    start = int(times[0])
    relative = times - start
    span = max(int(relative[-1]), 1)
    numbers = [int(c) for c in np.unique(channels)]
    parts = [relative[channels == number] for number in numbers]
    if frequency_hint is not None:
        frequency = _search_near(parts, frequency_hint * 1e-12)
        # The search left an eighth of a turn at most over the span it looked at.
        lag = min(_searched(frequency_hint * 1e-12) / 2, span / 4)
    else:
        frequency = max(_search(part) for part in parts)
        lag = min(16e6, span / 4)
    if not frequency:
        raise NoPeriodError(
            f"no pulse period found in {len(times)} tags between "
            f"{PERIOD_MINIMUM_PS / 1000} and {PERIOD_MAXIMUM_PS / 1000} ns"
            + (f" near {frequency_hint} Hz" if frequency_hint else "")
            + "; a continuous source has none"
        )
    frequency = _refine(parts, frequency, lag, span)
    period_fixed = round((1 << PERIOD_FRACTION_BITS) / frequency)
    period = period_fixed / (1 << PERIOD_FRACTION_BITS)

    means = [_phasors(part, 1 / period).mean() for part in parts]
    visibility = {n: float(abs(mean)) for n, mean in zip(numbers, means, strict=True)}
    weights = np.array([len(part) for part in parts])
    strongest = int(weights.argmax())
    pulse = float(np.angle(means[strongest]) / (2 * np.pi)) % 1 * period
    origin = start + round(pulse - period / 2)
    while origin > start:
        origin -= round(period)
    phases = {
        n: float((np.angle(mean) / (2 * np.pi) * period - (origin - start)) % period)
        for n, mean in zip(numbers, means, strict=True)
    }
    # Lines as strong as the first at its multiples: pulses much shorter than the period.
    harmonics = [
        min(abs(_phasors(part, k / period).mean()) for k in range(2, _DIVISION + 1))
        for part in parts
        if len(part) > 20
    ]
    divided = bool(harmonics and min(harmonics) > 0.5)
    note = (
        f"may be a divided period: sources of up to {_DIVISION} times its frequency fit as well"
        if divided
        else ""
    )
    return Acquisition(
        period_fixed,
        period,
        _uncertainty(parts, period, span),
        float(np.average(list(visibility.values()), weights=weights)),
        visibility,
        phases,
        origin,
        divided,
        note,
    )


@dataclass(frozen=True)
class Candidate:
    """A frequency at which tags may have pulses, and where in their slots.

    Attributes
    ----------
    frequency
        1/ps.
    phase
        Of the pulses, turns from the run's first tag.
    half_width
        Turns on either side of it that hold the pulses, 1/2 at most.
    """

    frequency: float
    phase: float
    half_width: float

    def turns(self, relative: Times) -> npt.NDArray[np.float64]:
        """Pulses from that of the run's first tag on to each time, counted from that tag, ps."""
        turns = relative.astype(np.float64) * self.frequency - self.phase
        return np.asarray(turns, np.float64)


def candidates(times: Times, frequency_hint: float, count: int = 16) -> list[Candidate]:
    """Frequencies near a hint at which pulses may lie, the likeliest first; none need be right.

    For few tags of pulses among many that fall evenly, where no line of the spectrum stands out by
    itself. Pulses that are short against their period show at its harmonics as well: powers of
    1, 2, 4, ... 32 of them are added (the Z^2_m statistic; Buccheri et al., Astronomy and
    Astrophysics 128, 245 (1983)), and that number counts at which chance is least. All channels are
    taken together: their pulses must lie within a small share of the period of each other.

    Parameters
    ----------
    times
        Tags in time order, ps.
    frequency_hint
        Frequency, Hz, right to 100 ppm.
    count
        How many at most.
    """
    relative = times - times[0]
    centre = frequency_hint * 1e-12
    span = int(relative[-1]) + 1
    reach = HINT_TOLERANCE * centre * 1.05
    step = 1 / (4 * _HARMONICS * span)
    places = np.arange(-int(reach / step) - 1, int(reach / step) + 2)
    grid: npt.NDArray[np.float64] = places.astype(np.float64) * step
    total = np.zeros(len(grid))
    score: npt.NDArray[np.float64] = np.zeros(len(grid))
    for harmonic in range(1, _HARMONICS + 1):
        total += _line_powers(relative, harmonic * centre, harmonic * grid, span)
        if harmonic & (harmonic - 1) == 0:
            np.maximum(score, -gamma.logsf(total, harmonic), out=score)
    peaks = 1 + np.flatnonzero((score[1:-1] >= score[:-2]) & (score[1:-1] > score[2:]))
    peaks = peaks[np.argsort(-score[peaks])][: 2 * count]
    found = [
        _narrowed(relative, centre + float(grid[peak]), float(score[peak]), span) for peak in peaks
    ]
    found.sort(key=lambda pair: -pair[0])
    return [_placed(relative, frequency) for _, frequency in found[:count]]


def _line_powers(
    times: Times, frequency: float, offsets: npt.NDArray[np.float64], span: int
) -> npt.NDArray[np.float64]:
    """abs(sum of phasors)^2 / tags at evenly spaced offsets from a frequency, 1/ps."""
    # In bins of 1/16 turn at most at the largest offset.
    bins = max(64, int(16 * abs(offsets).max() * span))
    length = span / bins
    turning = _phasors(times, frequency)
    where = np.minimum((times / length).astype(np.int64), bins - 1)
    # The middle of each bin: an offset turns it by half a bin, all alike, which powers do not see.
    slow = np.bincount(where, turning.real, bins) + 1j * np.bincount(where, turning.imag, bins)
    turn = 2j * np.pi * length
    sums = czt(
        slow,
        len(offsets),
        np.exp(turn * (offsets[1] - offsets[0])),
        np.exp(-turn * offsets[0]),
    )
    powers: npt.NDArray[np.float64] = np.abs(sums) ** 2 / len(times)
    return powers


def _narrowed(times: Times, frequency: float, score: float, span: int) -> tuple[float, float]:
    """Best score, and its frequency, with ever more harmonics."""
    best = score, frequency
    harmonics = _HARMONICS
    while harmonics < _HARMONICS_MOST:
        harmonics *= 2
        # A line of the former number is 1 / (former number x span) wide.
        trial = frequency + np.arange(-8, 9) / (4 * harmonics * span)
        phasors = np.exp(2j * np.pi * np.modf(times[:, None] * trial)[0])
        power, product = np.zeros(len(trial)), np.ones_like(phasors)
        for _ in range(harmonics):
            product *= phasors
            power += np.abs(product.sum(axis=0)) ** 2
        scores = -gamma.logsf(power / len(times), harmonics)
        at = int(scores.argmax())
        frequency = float(trial[at])
        best = max(best, (float(scores[at]), frequency))
    return best


def _placed(times: Times, frequency: float) -> Candidate:
    """Where the tags gather, in a window that makes most of tags over the root of their number."""
    turns = np.sort(np.modf(times * frequency)[0])
    count = len(turns)
    around = np.concatenate([turns, turns + 1])
    best = (0.0, 0.0, 0.5)
    half_width = 0.5
    while half_width > 0.25 / _HARMONICS_MOST:
        half_width /= math.sqrt(2)
        held = np.searchsorted(around, turns + 2 * half_width, side="right") - np.arange(count)
        at = int(held.argmax())
        inside = int(held[at])
        excess = (inside - 2 * half_width * count) / (1 - 2 * half_width)
        # The window begins with a tag: its middle is that of those inside.
        middle = float(np.median(around[at : at + inside]))
        best = max(best, (excess / np.sqrt(inside), middle % 1, half_width))
    return Candidate(frequency, best[1], best[2])


def _uncertainty(parts: list[Times], period: float, span: int) -> float:
    pieces = 64
    total = np.zeros(pieces, complex)
    for part in parts:
        phasors = _phasors(part, 1 / period)
        phasors *= np.conj(phasors.sum()) / max(abs(phasors.sum()), 1e-30)
        where = np.minimum(part * pieces // (span + 1), pieces - 1)
        total += np.bincount(where, phasors.real, pieces) + 1j * np.bincount(
            where, phasors.imag, pieces
        )
    used = np.abs(total) > 0
    if used.sum() < 3:
        return float(period / 4 / span * period)
    centre = (np.flatnonzero(used) + 0.5) * span / pieces
    turns = np.unwrap(np.angle(total[used])) / (2 * np.pi)
    slope, offset = np.polyfit(centre - centre.mean(), turns, 1)
    residual = turns - offset - slope * (centre - centre.mean())
    scatter = np.sqrt((residual**2).sum() / (used.sum() - 2))
    deviation = scatter / np.sqrt(((centre - centre.mean()) ** 2).sum())
    return float(max(deviation, 1e-12 / span) * period**2)


def window(
    histogram: npt.NDArray[np.int64], bin_ps: int, period_ps: float, share: float = 0.95
) -> tuple[int, int]:
    """Place a gate round the pulse of a phase histogram.

    Parameters
    ----------
    histogram
        Clicks by phase bin; bins past the period are empty.
    bin_ps
        Width of a bin, ps.
    period_ps
        Slot period, ps.
    share
        Share of the clicks above the background that the gate is to hold, with a quarter of its
        width added on either side.

    Returns
    -------
    tuple of int
        First phase accepted and first phase past the gate, ps; the gate wraps where the second is
        the lower. The whole slot where there is no pulse.
    """
    used = min(len(histogram), int(np.ceil(period_ps / bin_ps)))
    counts = histogram[:used].astype(np.float64)
    top = int(np.ceil(period_ps))
    background = np.median(counts)
    signal = np.clip(counts - background, 0, None)
    if signal.sum() <= 0:
        return 0, top
    angle = np.angle((signal * np.exp(2j * np.pi * np.arange(used) / used)).sum())
    centre = round(angle / (2 * np.pi) * used) % used
    turned = np.roll(signal, used // 2 - centre)
    cumulated = np.cumsum(turned) / turned.sum()
    low = int(np.searchsorted(cumulated, (1 - share) / 2))
    high = int(np.searchsorted(cumulated, (1 + share) / 2)) + 1
    margin = max(1, (high - low) // 4)
    low, high = low - margin, high + margin
    if high - low >= used:
        return 0, top
    shift = centre - used // 2
    start = int((low + shift) % used) * bin_ps
    stop = min(int((high + shift) % used) * bin_ps, top)
    return start, stop
