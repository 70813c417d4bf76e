# SPDX-License-Identifier: Apache-2.0
"""Published training slots, from which the receiver learns which slot is which.

The sender emits a fixed pattern of present and absent pulses before a block. It is public and
never in a tally; the receiver correlates the slots of its clicks with it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.fft import irfft, next_fast_len, rfft
from scipy.stats import binom

from keyrail import acquire
from keyrail.contract import PERIOD_FRACTION_BITS
from keyrail.errors import KeyrailError
from keyrail.source import DECOY_BIT, PRESENT_BIT

_DOMAIN = b"keyrail training pattern 1"
FALSE_ALARM = 1e-6
"""Chance, over all that is tried, that noise alone passes for the pattern."""
MOST_CLICKS = 1 << 15
"""Candidates of the period are tried for no more clicks than this: it would take long."""


class TrainingError(KeyrailError):
    """The training pattern was not found in the receiver's clicks."""


def training_states(slots: int) -> npt.NDArray[np.uint8]:
    """States of the training slots.

    Parameters
    ----------
    slots
        How many.

    Returns
    -------
    numpy.ndarray
        State codes (``state`` record): a pulse of signal intensity is present in half of the
        slots, all four polarisations in turn at random; the pattern is the same everywhere. The
        others are decoys: absent where light is simulated, weaker from a board's modulators,
        whose states have no bit for absence.
    """
    drawn = np.frombuffer(hashlib.shake_256(_DOMAIN).digest(slots), np.uint8)
    present = drawn >> 2 & 1
    return np.where(present == 1, PRESENT_BIT | (drawn & 3), DECOY_BIT).astype(np.uint8)


def find_first_slot(
    slots: npt.NDArray[np.int64],
    pattern: npt.NDArray[np.uint8],
    within: tuple[int, int] | None = None,
    false_alarm: float = FALSE_ALARM,
) -> int:
    """Find which slot of the receiver is slot 0 of the training pattern.

    Clicks are correlated with the pattern, +1 where a pulse is present and -1 where not. Each slot
    counts once, whatever clicked in it: slots that have nothing to do with the pattern are fair
    coins, and their chance to score as much is binomial.

    Parameters
    ----------
    slots
        Slots of clicks in the receiver's own count, 0 or more.
    pattern
        State codes of the training slots.
    within
        First and last slot that may be it, where so much is known (the classical link tells when
        the training begins); any by default. A narrow search is faster and needs fewer clicks.
    false_alarm
        Chance, over all slots tried, that noise passes.

    Returns
    -------
    int
        Receiver's slot in which the pattern's slot 0 fell; may be negative.

    Raises
    ------
    TrainingError
        If no offset stands out from chance.
    """
    if len(slots) == 0:
        raise TrainingError("no click during the training slots; allowed is at least one a channel")
    signs = np.where(pattern >> 3 & 1, np.int8(1), np.int8(-1))
    slots = np.unique(slots)
    if within is None:
        first, score = _correlate_all(slots, signs)
    else:
        first, score = within[0], _correlate_near(slots, signs, within)
    best = int(score.argmax())
    matches = int(np.ceil((len(slots) + round(float(score[best]))) / 2))
    chance = float(binom.logsf(matches - 1, len(slots), 0.5))
    needed = float(np.log(false_alarm / len(score)))
    if chance > needed:
        raise TrainingError(
            f"training pattern not found: {matches} of {len(slots)} slots with clicks fit, which "
            f"chance does with 10^{chance / np.log(10):.1f}; needed is 10^{needed / np.log(10):.1f}"
        )
    return first + best


def _correlate_all(
    slots: npt.NDArray[np.int64], signs: npt.NDArray[np.int8]
) -> tuple[int, npt.NDArray[np.float32]]:
    """First offset, and the score of every one at which pattern and clicks overlap."""
    span = int(slots.max()) + 1
    length = next_fast_len(span + len(signs) - 1, real=True)
    clicks = np.bincount(slots, minlength=length).astype(np.float32)
    reference = np.zeros(length, np.float32)
    reference[: len(signs)] = signs
    score = irfft(rfft(clicks) * np.conj(rfft(reference)), length)
    first = 1 - len(signs)
    return first, np.concatenate([score[length + first :], score[:span]])


def _correlate_near(
    slots: npt.NDArray[np.int64], signs: npt.NDArray[np.int8], within: tuple[int, int]
) -> npt.NDArray[np.float32]:
    """Scores of the offsets within bounds, click by click: few clicks, few offsets."""
    low, high = within
    count = high - low + 1
    if count < 1:
        raise TrainingError(f"no slot to try: within = {within}, allowed is the lower one first")
    reverse = np.zeros(len(signs) + 2 * count, np.int8)
    reverse[count : count + len(signs)] = signs[::-1]
    score = np.zeros(count, np.float32)  # whole numbers far below 2^24: exact
    for at in (count + len(signs) - 1 + low - slots).tolist():
        if 0 <= at <= len(signs) + count:
            score += reverse[at : at + count]
    return score


@dataclass(frozen=True)
class Synchronisation:
    """What the receiver learns of the slots from the published training slots.

    Attributes
    ----------
    period
        ps in 20.44 fixed point.
    origin_ps
        When the pattern's slot 0 begins, in the clock of the times; pulses lie in the middle of
        their slots.
    visibility
        Of the clicks at this period.
    """

    period: int
    origin_ps: int
    visibility: float

    @property
    def period_ps(self) -> float:
        """Slot period, ps."""
        return self.period / (1 << PERIOD_FRACTION_BITS)

    def slot_0_ps(self, first_slot: int) -> int:
        """When slot 0 begins, ps, if the pattern's first one has the number `first_slot`."""
        return self.origin_ps - (first_slot * self.period >> PERIOD_FRACTION_BITS)


def synchronise(
    times: npt.NDArray[np.int64],
    channels: npt.NDArray[np.integer],
    pattern: npt.NDArray[np.uint8],
    frequency_hint: float,
    starts: tuple[int, int] | None = None,
) -> Synchronisation:
    """Acquire period, phase and slot origin from the clicks of the training slots.

    Parameters
    ----------
    times, channels
        Clicks in time order, ps.
    pattern
        State codes of the training slots.
    frequency_hint
        Slots a second, right to 100 ppm.
    starts
        Earliest and latest time at which the pattern may have begun, ps; any by default.

    Returns
    -------
    Synchronisation
        Slots of the training.

    Raises
    ------
    NoPeriodError, TrainingError
        If period or pattern do not stand out from chance.
    """
    try:
        found = acquire.acquire(times, channels, frequency_hint=frequency_hint)
        period_ps = found.period_fixed / (1 << PERIOD_FRACTION_BITS)
        # Slots of the receiver's own count, each with its pulse in the middle.
        slots = np.floor((times - found.origin_ps) / period_ps).astype(np.int64)
        first = _first_slot(slots, pattern, starts, found.origin_ps, period_ps, FALSE_ALARM / 2)
    except KeyrailError as error:
        if len(times) < 10:
            raise
        return _among_dark_counts(times, pattern, frequency_hint, starts, error)
    # Exact even where first x P has more digits than a float.
    begin = (first * found.period_fixed + (1 << PERIOD_FRACTION_BITS - 1)) >> PERIOD_FRACTION_BITS
    return Synchronisation(found.period_fixed, found.origin_ps + begin, found.visibility)


def _first_slot(
    slots: npt.NDArray[np.int64],
    pattern: npt.NDArray[np.uint8],
    starts: tuple[int, int] | None,
    origin_ps: float,
    period_ps: float,
    false_alarm: float,
) -> int:
    """`find_first_slot` with bounds as times, slots counted from an origin and maybe below 0."""
    shift = min(0, int(slots.min(initial=0)))
    within = None
    if starts is not None:
        low, high = ((start - origin_ps) / period_ps for start in starts)
        within = (int(np.floor(low)) - shift, int(np.ceil(high)) - shift)
    return find_first_slot(slots - shift, pattern, within, false_alarm) + shift


def _among_dark_counts(
    times: npt.NDArray[np.int64],
    pattern: npt.NDArray[np.uint8],
    frequency_hint: float,
    starts: tuple[int, int] | None,
    error: KeyrailError,
) -> Synchronisation:
    """Try frequencies that do not stand out by themselves: the pattern says which is right.

    Of each only the clicks where its pulses would lie are correlated. The chance that noise passes
    is shared out among them, the likelier ones taking more: together half of `FALSE_ALARM`.
    """
    if len(times) > MOST_CLICKS:
        raise error
    begin = int(times[0])
    relative = times - begin
    # A correlation at every offset there is takes long.
    count = 4 if starts is None else 16
    for rank, candidate in enumerate(acquire.candidates(times, frequency_hint, count), 1):
        turns = candidate.turns(relative)
        slots = np.floor(turns + 0.5).astype(np.int64)
        inside = np.abs(turns - slots) <= candidate.half_width
        share = 3 / np.pi**2 / rank**2  # the sum over all ranks is 1/2
        period_ps = 1 / candidate.frequency
        origin = begin + (candidate.phase - 0.5) * period_ps
        try:
            first = _first_slot(
                slots[inside], pattern, starts, origin, period_ps, share * FALSE_ALARM
            )
        except TrainingError:
            continue
        # Period and phase anew, of clicks where the pattern has pulses.
        at = slots[inside] - first
        known = (at >= 0) & (at < len(pattern))
        lit = pattern[np.where(known, at, 0)] >> 3 & 1 == 1
        chosen = np.flatnonzero(inside)[known & lit]
        slope, offset = _line(slots[chosen] - first, turns[chosen] - slots[chosen])
        period_ps *= 1 + slope
        period = round(period_ps * (1 << PERIOD_FRACTION_BITS))
        turn = first + offset + candidate.phase - 0.5
        phasors = np.exp(2j * np.pi * np.modf(relative / period_ps)[0])
        return Synchronisation(
            period,
            begin + round(turn / candidate.frequency),
            float(abs(phasors.mean())),
        )
    raise error


def _line(x: npt.NDArray[np.int64], y: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Slope and offset of a line through points, those far off it left out."""
    kept = np.ones(len(x), np.bool_)
    slope = offset = 0.0
    for _ in range(4):
        slope, offset = (float(value) for value in np.polyfit(x[kept], y[kept], 1))
        residual = np.abs(y - offset - slope * x)
        kept = residual <= max(4 * float(np.median(residual[kept])), 1e-9)
    return slope, offset
