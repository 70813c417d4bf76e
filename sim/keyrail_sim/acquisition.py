# SPDX-License-Identifier: Apache-2.0
"""How often the receiver finds the slots: success rate against loss and dark counts."""

from __future__ import annotations

import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from keyrail.contract import PERIOD_FRACTION_BITS, PERIOD_MAXIMUM_PS, PERIOD_MINIMUM_PS
from keyrail.errors import KeyrailError
from keyrail.training import FALSE_ALARM, synchronise, training_states
from keyrail_sim.photonics import DETECTORS, LinkSettings, Photonics

SEEDS = 200
SLOTS_LOG2 = {20.0: 17, 40.0: 22}
"""Training slots by loss, dB: some 400 and 130 clicks of light."""
DARK_COUNTS = (0.0, 1e-6, 1e-5, 1e-4)
"""Dark counts a slot and detector; there are four detectors."""
CASES = (
    *((loss, slots, dark) for loss, slots in SLOTS_LOG2.items() for dark in DARK_COUNTS),
    (40.0, 23, 1e-5),
    (40.0, 23, 1e-4),
)
"""Loss, training slots (as a power of two) and dark counts of each point."""
INTENSITY = 0.6
UNCERTAINTY_PPM = 100.0
START_SLOTS = 1 << 16
"""The pattern begins anywhere in so many slots; the receiver knows no more."""


@dataclass(frozen=True)
class Attempt:
    """One acquisition.

    Attributes
    ----------
    found
        It ended with slots, not with an error.
    right
        And they are the right ones: the first and the last training slot, to half a slot.
    period_ps, offset_ppm
        What was to be found: nominal period, and how far off it the clocks are.
    clicks
        How many there were.
    """

    found: bool
    right: bool
    period_ps: int
    offset_ppm: float
    clicks: int


def attempt(seed: int, loss_db: float, dark: float, slots_log2: int) -> Attempt:
    """Acquire once: period, offset, origin and beginning drawn from `seed`.

    The period is anywhere from 0.8 to 1000 ns (even in its logarithm), the clocks are off by up
    to 100 ppm either way, and drift by 10^-9 a second.
    """
    rng = np.random.default_rng((seed, round(loss_db), round(dark * 1e9)))
    period = int(np.exp(rng.uniform(np.log(PERIOD_MINIMUM_PS), np.log(PERIOD_MAXIMUM_PS))))
    offset = float(rng.uniform(-UNCERTAINTY_PPM, UNCERTAINTY_PPM))
    lead = int(rng.integers(0, START_SLOTS))
    settings = LinkSettings(
        distance_km=0.0,
        receiver_loss_db=loss_db,
        efficiency=1.0,
        intensities=(INTENSITY, INTENSITY / 3),
        dark_counts_per_slot=dark,
        period_ps=period,
        clock_offset_ppm=offset,
        clock_drift_ppm_per_s=1e-3,
        origin_ps=int(rng.integers(0, 10**12)),
    )
    pattern = training_states(1 << slots_log2)
    photonics = Photonics(settings, seed)
    parts = [photonics.detect(np.zeros(lead, np.uint8), 0), photonics.detect(pattern, lead)]
    parts.append(photonics.flush())
    times = np.concatenate([part.times for part in parts])
    channels = np.concatenate([part.channels for part in parts])
    clicks = len(times)
    starts = (settings.origin_ps, int(settings.slot_start(START_SLOTS)))
    try:
        got = synchronise(times, channels, pattern, 1e12 / period, starts)
    except KeyrailError:
        return Attempt(False, False, period, offset, clicks)
    right = True
    for slot in (0, len(pattern) - 1):
        begin = got.origin_ps + (slot * got.period >> PERIOD_FRACTION_BITS)
        right &= abs(begin - int(settings.slot_start(lead + slot))) < period / 2
    return Attempt(True, bool(right), period, offset, clicks)


def information_bits(signal: float, dark: float, period_ps: float) -> float:
    """What clicks tell of where the pattern begins, bits, period and phase being known.

    A click at a phase where the share s of clicks is light's fits the pattern with the chance
    (1 + s) / 2: it is worth 1 - h((1 + s) / 2) bits, h being the binary entropy.

    Parameters
    ----------
    signal, dark
        Clicks of light, spread by the detectors' jitter (`LinkSettings`), and evenly falling ones.
    period_ps
        Slot period.
    """
    link, points = LinkSettings(), 1 << 16
    step = period_ps / points
    # Characteristic function of the jitter: a Gaussian, and for some an exponential tail on top.
    turn = 2 * np.pi * np.fft.rfftfreq(points, step)
    tail = link.jitter_tail_fraction
    spread = np.exp(-((turn * link.jitter_ps) ** 2) / 2)
    spread = spread * (1 - tail + tail / (1 + 1j * turn * link.jitter_tail_ps))
    light = signal * np.maximum(np.fft.irfft(spread, points), 0)
    every = light + dark / points
    fits = (1 + light / np.maximum(every, 1e-300)) / 2
    against = np.maximum(1 - fits, 1e-300)
    entropy = -(fits * np.log2(fits) + against * np.log2(against))
    return float((every * (1 - entropy)).sum())


def needed_bits() -> float:
    """Bits that tell one start among `START_SLOTS` from chance."""
    return float(np.log2(2 * START_SLOTS / FALSE_ALARM))


def needed_signal(background: float) -> int:
    """Clicks of light that suffice on average against evenly falling ones in the pulses' window."""
    for signal in range(1, 1 << 20):
        share = (1 + signal / (signal + background)) / 2
        entropy = -sum(x * np.log2(x) for x in (share, 1 - share) if x > 0)
        if (signal + background) * (1 - entropy) >= needed_bits():
            return signal
    raise ValueError(f"{background} clicks in the window: more than can be overcome")


def shortest_period(loss_db: float, slots_log2: int, dark: float) -> float | None:
    """Shortest period, ps, at which a training's clicks tell enough on average; None if none is."""
    slots = 1 << slots_log2
    signal = INTENSITY * 10 ** (-loss_db / 10) * slots / 2
    for period in np.geomspace(PERIOD_MINIMUM_PS, PERIOD_MAXIMUM_PS, 200):
        if information_bits(signal, DETECTORS * dark * slots, float(period)) >= needed_bits():
            return round(float(period), 1)
    return None


def figure(seeds: int = SEEDS) -> dict[str, Any]:
    """Success rates over so many seeds for each loss and dark count."""
    results = []
    pool = ProcessPoolExecutor(mp_context=get_context("spawn"))
    for loss, slots_log2, dark in CASES:
        same = ([value] * seeds for value in (loss, dark, slots_log2))
        attempts = list(pool.map(attempt, range(seeds), *same, chunksize=10))
        limit = shortest_period(loss, slots_log2, dark)
        above = [a for a in attempts if limit and a.period_ps >= limit]
        results.append(
            {
                "loss_db": loss,
                "dark_counts_per_slot": dark,
                "training_slots": 1 << slots_log2,
                "seeds": seeds,
                "success": round(sum(a.right for a in attempts) / seeds, 4),
                "wrong": sum(a.found and not a.right for a in attempts),
                "clicks_mean": round(float(np.mean([a.clicks for a in attempts])), 1),
                "shortest_period_ps": limit,
                "seeds_above": len(above),
                "right_above": sum(a.right for a in above),
            }
        )
        print(results[-1], file=sys.stderr, flush=True)
    pool.shutdown()
    return {
        "mean_photon_number": INTENSITY,
        "period_ps": [PERIOD_MINIMUM_PS, PERIOD_MAXIMUM_PS],
        "uncertainty_ppm": UNCERTAINTY_PPM,
        "start_known_to_slots": START_SLOTS,
        "false_alarm": FALSE_ALARM,
        "needed_bits": round(needed_bits(), 1),
        "needed_signal": [
            {"background": background, "signal": needed_signal(background)}
            for background in (0, 10, 30, 100, 300, 1000)
        ],
        "results": results,
    }


def plot(data: dict[str, Any], path: Path) -> None:
    """Draw the figure: success rate against dark counts, a line for each loss."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    drawing, axes = pyplot.subplots(figsize=(6, 3.6), layout="constrained")
    lines = sorted({(row["loss_db"], row["training_slots"]) for row in data["results"]})
    for loss, slots in lines:
        rows = [
            row
            for row in data["results"]
            if (row["loss_db"], row["training_slots"]) == (loss, slots)
        ]
        axes.plot(
            [max(row["dark_counts_per_slot"], 1e-7) for row in rows],
            [row["success"] for row in rows],
            "o-",
            label=f"{loss:g} dB, {slots:,} slots",
        )
    axes.set(
        xscale="log",
        ylim=(-0.02, 1.05),
        xlabel="dark counts a slot and detector (none at the left edge)",
        ylabel=f"success rate over {data['results'][0]['seeds']} seeds",
    )
    axes.legend()
    axes.grid(alpha=0.3)
    drawing.savefig(path, metadata={"Date": None})
    pyplot.close(drawing)
