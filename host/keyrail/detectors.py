# SPDX-License-Identifier: Apache-2.0
"""What the histograms of gaps say of the detectors: dark counts, afterpulses, blinding."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import chi2

from keyrail.contract import GAP_BINS
from keyrail.errors import SettingError

__all__ = ["MultipleClicks", "Noise", "multiple_clicks", "noise"]

_Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Noise:
    """Dark counts and afterpulses of one detector.

    Attributes
    ----------
    dark_per_slot, dark_per_slot_sigma
        Probability of a dark count in a slot, over its whole length; and its standard deviation.
    afterpulse, afterpulse_sigma
        Probability that a click is followed by an afterpulse within the gaps that were looked at.
    clicks_outside
        Clicks outside the gate that the estimate rests on.
    """

    dark_per_slot: float
    dark_per_slot_sigma: float
    afterpulse: float
    afterpulse_sigma: float
    clicks_outside: int


def noise(
    gaps: _Counts, shift: int, outside_share: float, dead_slots: int = 0, far_bin: int = 32
) -> Noise:
    """Estimate dark counts and afterpulses from the clicks outside the gate.

    Outside the gate there is no signal. The rate of clicks there, given that the channel has been
    quiet for d slots (the Nelson-Aalen estimator of a hazard: clicks in a bin of gaps over the
    slots at risk in it), is that of dark counts where d is large. What it exceeds that by at
    smaller gaps are afterpulses: they fall anywhere in a slot, as long as detectors do not know of
    slots. Stray light that is not pulsed counts as dark counts.

    Parameters
    ----------
    gaps
        Counts of one channel (`keyrail.tag_path.read_gaps`), shape (2, 64): outside, inside.
    shift
        A bin is 2^shift slots wide.
    outside_share
        Share of a slot's length that lies outside the gate, above 0 up to 1.
    dead_slots
        The detector's dead time, slots: bins that begin before its end are left out.
    far_bin
        From this bin on afterpulses are taken to have died away.

    Returns
    -------
    Noise
        Estimates, corrected for the part of them that the gate covers.

    Raises
    ------
    SettingError
        If a setting is out of range, or no gap reaches `far_bin`.
    """
    if not 0 < outside_share <= 1:
        raise SettingError("outside_share", outside_share, "above 0 up to 1")
    width = 1 << shift
    first = -(-dead_slots // width)
    if not first < far_bin < GAP_BINS - 1:
        raise SettingError("far_bin", far_bin, f"{first + 1} to {GAP_BINS - 2}")
    every = gaps.sum(axis=0)
    # A gap puts every bin below its own at risk in whole, and its own by half.
    longer = every[::-1].cumsum()[::-1] - every
    at_risk = width * (longer + every / 2)[:-1]
    outside = gaps[0, :-1]
    if at_risk[far_bin:].sum() == 0:
        raise SettingError("far_bin", far_bin, "a bin that some gaps reach")
    far_clicks, far_risk = int(outside[far_bin:].sum()), float(at_risk[far_bin:].sum())
    dark, dark_sigma = far_clicks / far_risk, float(np.sqrt(far_clicks)) / far_risk
    near = slice(first, far_bin)
    used = at_risk[near] > 0
    hazard = outside[near][used] / at_risk[near][used]
    excess = width * float((hazard - dark).sum())
    variance = float((outside[near][used] / at_risk[near][used] ** 2).sum())
    sigma = width * float(np.sqrt(variance + (float(used.sum()) * dark_sigma) ** 2))
    return Noise(
        dark / outside_share,
        dark_sigma / outside_share,
        excess / outside_share,
        sigma / outside_share,
        int(outside.sum()),
    )


@dataclass(frozen=True)
class MultipleClicks:
    """Double and cross clicks by the slots since the last click.

    Attributes
    ----------
    double_share, cross_share
        Shares of the slots with clicks.
    statistic, freedom, p_value
        Chi-squared test that the shares do not depend on the gap.
    """

    double_share: float
    cross_share: float
    statistic: float
    freedom: int
    p_value: float


def multiple_clicks(outcomes: _Counts, first_bin: int = 0, least: float = 5.0) -> MultipleClicks:
    """Test whether multiple clicks come evenly, as weak light has them.

    Of weak light, whether a slot with a click has a second one does not depend on how long the
    detectors had been quiet, once they are live. Light that blinds detectors makes them click all
    together when it sets in, and one by one while it lasts: then it does. A test passed says
    nothing against light that is controlled well.

    Parameters
    ----------
    outcomes
        Counts of `keyrail.tag_path.read_outcomes`, shape (3, 64).
    first_bin
        Bins below are left out, such as those in which afterpulses are frequent.
    least
        Neighbouring bins are joined until each expects at least so many multiple clicks.

    Returns
    -------
    MultipleClicks
        Shares over all bins from `first_bin` on, and the test; p is 1 where there is too little to
        test.
    """
    counts = outcomes[:, first_bin:].astype(np.float64)
    total = counts.sum()
    if total == 0:
        return MultipleClicks(0.0, 0.0, 0.0, 0, 1.0)
    multiple, slots = counts[1:].sum(axis=0), counts.sum(axis=0)
    share = multiple.sum() / total
    joined: list[tuple[float, float]] = []
    seen = many = 0.0
    for one, more in zip(slots, multiple, strict=True):
        seen, many = seen + one, many + more
        if min(share, 1 - share) * seen >= least:
            joined.append((seen, many))
            seen = many = 0.0
    if joined and seen:
        joined[-1] = (joined[-1][0] + seen, joined[-1][1] + many)
    statistic, freedom = 0.0, max(len(joined) - 1, 0)
    for seen, many in joined:
        expected = share * seen
        statistic += (many - expected) ** 2 / (expected * (1 - share))
    return MultipleClicks(
        float(counts[1].sum() / total),
        float(counts[2].sum() / total),
        float(statistic),
        freedom,
        float(chi2.sf(statistic, freedom)) if freedom else 1.0,
    )
