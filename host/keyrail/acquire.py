# SPDX-License-Identifier: Apache-2.0
"""Recovery of the pulse period and phase from detector tags alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

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
