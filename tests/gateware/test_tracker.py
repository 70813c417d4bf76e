# SPDX-License-Identifier: Apache-2.0
"""Tracking loop round the slotter: gateware against twin, twin against Python's integers."""

import cocotb
import numpy as np
import pytest

import bench
from bench import Sink, Source, generator, ledger, settle, structured, words
from keyrail.contract import (
    CHANNELS,
    GAP_MAXIMUM_PS,
    PERIOD_FRACTION_BITS,
    SLOT_TAG,
    TAG,
    Role,
    TagKind,
    reciprocal,
    registers,
)
from keyrail.layouts import Structured, zeros
from keyrail_sim.models.slotter import Slotter
from keyrail_sim.models.tracker import TrackerSettings

WRAP = 1 << 48
SETTINGS = TrackerSettings(
    enable=1,
    window_log2=12,
    phase_shift=2,
    period_shift=6,
    limit_log2=12,
    threshold=6,
    lock_windows=2,
    minimum=8,
    gate=1_500,
    holdover=20 << 12,
    channels=0b1011,
    targets=(5_000, 5_200, 0, 1_000, 0, 0, 0, 0),
)
NOMINAL = 10_000 << PERIOD_FRACTION_BITS


def control(settings: TrackerSettings) -> int:
    value = shift = 0
    for field in registers(Role.RECEIVER)["tracker_control"].fields:
        value |= getattr(settings, field.name) << shift
        shift += field.bits
    return value


def source_tags(
    rng: np.random.Generator,
    settings: TrackerSettings,
    parts: list[tuple[str, int]],
    offset_ppm: float = 2.0,
    rate: float = 0.01,
    period_ps: float = 10_000.0,
) -> Structured:
    """Tags of a pulsed source, part by part: ``light``, ``dark``, ``noise``, ``step`` windows."""
    true = period_ps * (1 + offset_ppm * 1e-6)
    start, moved = 0.0, 0.0
    times, channels = [], []
    numbers = [c for c in range(CHANNELS) if settings.channels >> c & 1]
    for part, windows in parts:
        slots = windows << settings.window_log2
        stop = start + slots * true
        if part == "step":
            moved += 0.42 * true
        if part in ("light", "step"):
            hits = np.flatnonzero(rng.random(slots) < rate)
            channel = rng.choice(numbers, len(hits))
            target = np.array(settings.targets)[channel]
            first = np.ceil(start / true)
            times.append((first + hits) * true + moved + target + rng.normal(0, 120, len(hits)))
            channels.append(channel)
        if part == "gap":
            stop = start + GAP_MAXIMUM_PS * 0.9
        else:
            extra = rng.uniform(start, stop, max(2, windows * (150 if part == "noise" else 3)))
            times.append(extra)
            channels.append(rng.integers(0, CHANNELS, len(extra)))
        start = stop
    time = np.concatenate(times)
    order = np.argsort(time, kind="stable")
    tags = zeros(TAG, len(time))
    tags["time"] = np.maximum(0, np.rint(time[order])).astype(np.int64) % WRAP
    kinds = rng.choice(4, len(time), p=(0.94, 0.02, 0.02, 0.02))
    tags["kind"] = kinds
    tags["channel"] = np.concatenate(channels)[order] * (kinds == TagKind.CLICK)
    return tags


def disturb(rng: np.random.Generator, tags: Structured, origin: int) -> Structured:
    """Move to an origin, make some clicks early and some of channels that do not exist."""
    back = rng.choice([0, 300, 10**7], len(tags), p=[0.97, 0.02, 0.01])
    tags["time"] = (tags["time"].astype(np.int64) + origin - back) % WRAP
    bad = (rng.random(len(tags)) < 0.01) & (tags["kind"] == TagKind.CLICK)
    tags["channel"][bad] = 33
    return tags


STORY = [
    ("light", 10),
    ("dark", 6),
    ("light", 4),
    ("noise", 5),
    ("step", 12),
    ("gap", 1),
    ("light", 8),
]


async def prepare(dut, settings, period, origin, value=None) -> None:
    dut.period.value = period
    dut.reciprocal.value = reciprocal(period) if value is None else value
    dut.origin.value = origin
    dut.control.value = control(settings)
    for name in ("minimum", "gate", "holdover", "channels"):
        getattr(dut, name).value = getattr(settings, name)
    dut.targets.value = sum(t << 20 * n for n, t in enumerate(settings.targets))
    await bench.reset(dut)


async def compare(dut, source: Source, sink: Sink, twin: Slotter, chunks: list[Structured]):
    sink.received.clear()
    expected = []
    for tags in chunks:
        await source.send(words(TAG, tags))
        expected.append(twin.process(tags))
        await settle(dut, sink, quiet=300)
    got = structured(SLOT_TAG, sink.received)
    want = np.concatenate(expected)
    same = min(len(got), len(want))
    wrong = np.flatnonzero(got[:same] != want[:same])
    assert not len(wrong), (int(wrong[0]), got[wrong[0]], want[wrong[0]])
    assert len(got) == len(want)
    loop = twin.tracker
    for when in ("live", "at_frame"):
        assert ledger(dut, "slotter", when) == getattr(twin.ledger, when)
        counts = tracker_ledger(dut, when)
        assert counts == getattr(loop.ledger, when)
        assert counts["windows"] == sum(counts[n] for n in ("corrections", "dark", "incoherent"))
    assert int(dut.locked.value) == loop.locked
    assert int(dut.holding.value) == loop.holding
    assert int(dut.period_now.value) == loop.period
    assert int(dut.slot_now.value) == loop.slot
    assert int(dut.error.value) == loop.error[0] | loop.error[1] << 36


def tracker_ledger(dut, when: str) -> dict[str, int]:
    from keyrail.contract import COUNTER_BITS, LEDGERS

    value = int(getattr(dut, f"tracker_counts__{when}").value)
    mask = (1 << COUNTER_BITS) - 1
    return {
        counter.name: value >> (COUNTER_BITS * n) & mask
        for n, counter in enumerate(LEDGERS["tracker"][1])
    }


@cocotb.test()
@cocotb.parametrize(shares=[(1.0, 1.0), (0.7, 0.5)])
async def bench_story(dut, shares):
    rng = generator("tracker", shares)
    await bench.start(dut)
    source, sink = Source(dut, "i", shares[0]), Sink(dut, "o", shares[1])
    origin = int(rng.integers(0, WRAP))
    await prepare(dut, SETTINGS, NOMINAL, origin)
    tags = disturb(rng, source_tags(rng, SETTINGS, STORY), origin)
    twin = Slotter(NOMINAL, origin=origin, tracking=SETTINGS)
    await compare(dut, source, sink, twin, [tags[:20], tags[20:21], tags[21:400], tags[400:]])
    counts = twin.tracker.ledger.live
    assert min(counts.values()) > 0, counts


@pytest.mark.parametrize("simulator", bench.simulators())
def test_tracker(simulator):
    from keyrail_gateware.tracker import TrackedSlotter

    bench.run(TrackedSlotter(), simulator, "test_tracker")
