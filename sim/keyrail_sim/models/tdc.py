# SPDX-License-Identifier: Apache-2.0
"""Twin of `keyrail_gateware.tdc`, and a delay line to drive it by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from keyrail.contract import TIME_BITS, TdcResult

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

DELAY_FRACTION_BITS = 4
NOMINAL_FRACTION_BITS = 12
GROUP = 15
RADIX = 4
MOVED_LIMIT_PS = 40
_MASK = (1 << TIME_BITS) - 1


def nominal_table(codes: int, nominal_codes: float, clock_ps: int) -> Ints:
    """Delays of an ideal line by code, 1/16 ps: what stands in a table before calibration.

    Parameters
    ----------
    codes
        Length of the table.
    nominal_codes
        Codes that the line passes through in one clock.
    clock_ps
        Clock period, ps.
    """
    full = clock_ps << DELAY_FRACTION_BITS
    step = round((full << NOMINAL_FRACTION_BITS) / nominal_codes)
    fine = np.maximum((step >> 1) + step * (np.arange(codes, dtype=np.int64) - 1), 0)
    delays: Ints = np.minimum(fine >> NOMINAL_FRACTION_BITS, full)
    return delays


def table(histogram: Ints, clock_ps: int) -> Ints:
    """Delays by code, 1/16 ps, from a histogram of 2^h edges (code density).

    Raises
    ------
    ValueError
        If the number of edges is not a power of two.
    """
    total = int(histogram.sum())
    if total < 1 or total & (total - 1):
        raise ValueError(f"{total} edges, allowed are powers of two")
    below = np.cumsum(histogram) - histogram
    middle = 2 * below + histogram
    delays: Ints = (middle * (clock_ps << DELAY_FRACTION_BITS)) // (2 * total)
    return delays


def change(new: Ints, old: Ints) -> tuple[int, int]:
    """Largest change of a delay, and the sum of the changes of bins' widths, both in 1/16 ps."""
    delta = new - old
    return int(np.abs(delta).max()), int(np.abs(np.diff(delta, prepend=0)).sum())


def even(new: Ints, old: Ints, clock_ps: int, uneven_limit_ps: int | None = None) -> bool:
    """True if photons that gave the table `new` fall evenly by the table `old`."""
    limit = clock_ps // 16 if uneven_limit_ps is None else uneven_limit_ps
    moved, uneven = change(new, old)
    one = 1 << DELAY_FRACTION_BITS
    return moved <= MOVED_LIMIT_PS * one and uneven <= limit * one


@dataclass(frozen=True)
class Decoded:
    """What the decoder makes of each sample: arrays of one element a sample.

    Parameters
    ----------
    edge, falling
        An edge, and whether it fell.
    code
        Taps it has passed; meaningless without an edge.
    short
        A level that the first tap never showed.
    """

    edge: Bools
    falling: Bools
    code: Ints
    short: Bools


def decode(taps: Bools, level: bool = False) -> Decoded:
    """Decode samples of one input.

    Parameters
    ----------
    taps
        Samples x lines x taps.
    level
        First tap of line 0 before the first sample.
    """
    samples, lines, count = taps.shape
    first = taps[:, 0, 0]
    before = np.concatenate([[level], first[:-1]])
    edge = first != before
    changed = taps ^ before[:, None, None]
    groups = -(-count // GROUP)
    padded = np.zeros((samples, lines, groups * GROUP), bool)
    padded[:, :, :count] = changed
    counts = padded.reshape(samples, lines, groups, GROUP).sum(axis=3)
    present = counts > 0
    keep = np.ones_like(present)
    keep[:, :, 1:] = np.logical_and.accumulate(present, axis=2)[:, :, :-1]
    code = (counts * keep).sum(axis=(1, 2))
    inside = present[:, 0].any(axis=1) & ~edge
    earlier = np.concatenate([[False], (edge | inside)[:-1]])
    later = np.concatenate([edge[1:], [False]])
    return Decoded(edge, before & edge, code.astype(np.int64), inside & ~earlier & ~later)


def decoder_latency(lines: int, taps: int) -> int:
    """Clocks from taps to code."""
    numbers, clocks = lines * -(-taps // GROUP), 4
    while numbers > 1:
        numbers = -(-numbers // RADIX)
        clocks += 1
    return clocks


def latency(lines: int, taps: int) -> int:
    """Clocks from taps to stamped edge."""
    return decoder_latency(lines, taps) + 3


def stamp(sample: Ints, code: Ints, delays: Ints, clock_ps: int, clocks: int) -> Ints:
    """Times of edges, ps modulo 2^48.

    Parameters
    ----------
    sample
        Clock of the sample, counted from reset.
    code
        Codes.
    delays
        Table, 1/16 ps.
    clock_ps
        Clock period, ps.
    clocks
        Latency of the core.
    """
    half = (1 << (DELAY_FRACTION_BITS - 1)) - 1
    rounded = (delays[code] + half) >> DELAY_FRACTION_BITS
    result: Ints = ((sample + clocks - 1) * clock_ps - rounded) & _MASK
    return result


def judge(photons: bool, moved: int, uneven: int, clock_ps: int, limit_ps: int) -> TdcResult:
    """Result of a calibration that has collected its edges; `moved`, `uneven` in 1/16 ps."""
    one = 1 << DELAY_FRACTION_BITS
    if photons and (moved > MOVED_LIMIT_PS * one or uneven > limit_ps * one):
        return TdcResult.UNEVEN
    return TdcResult.DONE


@dataclass(frozen=True)
class Lines:
    """Delay lines of one input, as their taps' delays.

    Parameters
    ----------
    delays
        Lines x taps: time from an edge at the pin until the tap would be sampled as changed, ps.
    """

    delays: Floats

    def sample(self, clocks: int, edges: Floats, clock_ps: float, level: bool = False) -> Bools:
        """Taps as sampled by clocks 0 to `clocks` - 1, clock n at time n `clock_ps`.

        Parameters
        ----------
        clocks
            Number of samples.
        edges
            Rising order; the pin's level turns over at each, ps.
        clock_ps
            Clock period, ps.
        level
            The pin's level before the first edge.

        Returns
        -------
        numpy.ndarray
            Samples x lines x taps.
        """
        when = np.arange(clocks)[:, None, None] * clock_ps - self.delays[None]
        # An edge at a tap's very threshold has passed it.
        turned: Bools = (np.searchsorted(edges, when, side="right") & 1).astype(bool) ^ level
        return turned

    def thresholds(self) -> Floats:
        """Ages at which an edge's code goes up by one, sorted, counted from the first tap's."""
        ages: Floats = np.sort(self.delays.ravel()) - self.delays[0, 0]
        return ages

    def code(self, ages: Floats) -> Ints:
        """Codes of edges by their age at the sample, counted from the first tap's, 0 to one clock.

        The same as `decode` of what `sample` gives, as long as bubbles lie within a group.
        """
        codes: Ints = np.searchsorted(self.thresholds(), ages, side="right").astype(np.int64)
        return codes
