# SPDX-License-Identifier: Apache-2.0
"""Tracking loop round the slotter: gateware against twin, twin against Python's integers."""

from dataclasses import replace
from fractions import Fraction

import cocotb
import numpy as np
import pytest
from cocotb.triggers import FallingEdge, ReadOnly

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
from keyrail_sim.models.tracker import Tracker, TrackerSettings

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
    numbers = [c for c in range(CHANNELS) if settings.channels >> c & 1] or [0]
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
        assert counts["windows"] == sum(
            counts[n] for n in ("corrections", "dark", "incoherent", "astray")
        )
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


def odd_settings(rng: np.random.Generator, case: int, period_ps: int) -> TrackerSettings:
    """Settings over the whole range of the registers, some of which make no sense."""
    special = [
        {"threshold": 0, "minimum": 0, "lock_windows": 0},
        {"threshold": 15, "phase_shift": 31, "period_shift": 63, "limit_log2": 31},
        {"phase_shift": 0, "period_shift": 0, "limit_log2": 0},
        {"targets": tuple(int(t) for t in rng.integers(0, 1 << 20, CHANNELS))},
        {"holdover": 0, "gate": 0},
        {"window_log2": 11},
        {"channels": 0},
        {},
    ]
    targets = tuple(int(t) for t in rng.integers(0, period_ps, CHANNELS))
    usual = replace(SETTINGS, targets=targets, gate=period_ps // 5, minimum=4)
    return replace(usual, **special[case % len(special)])


@cocotb.test()
async def bench_settings(dut):
    await bench.start(dut)
    source, sink = Source(dut, "i", 0.9), Sink(dut, "o", 0.8)
    for case in range(8):
        rng = generator("tracker settings", case)
        period_ps = int(2 ** rng.uniform(np.log2(800), np.log2(999_999)))
        period_ps = {6: 800, 7: 1_000_000}.get(case, period_ps)
        settings = odd_settings(rng, case, period_ps)
        origin = int(rng.integers(0, WRAP))
        period = period_ps << PERIOD_FRACTION_BITS
        await prepare(dut, settings, period, origin)
        story = [("light", 6), ("dark", 1), ("step", 4)]
        tags = source_tags(rng, settings, story, 3.0, 0.004, float(period_ps))
        twin = Slotter(period, origin=origin, tracking=settings)
        await compare(dut, source, sink, twin, [disturb(rng, tags, origin)])


@cocotb.test()
async def bench_inexact_while_tracking(dut):
    await bench.start(dut)
    source, sink = Source(dut, "i"), Sink(dut, "o", 0.9)
    for case, value in enumerate((reciprocal(NOMINAL) - (1 << 34), WRAP - 1, 0)):
        rng = generator("tracker inexact", case)
        await prepare(dut, SETTINGS, NOMINAL, 77, value)
        tags = disturb(rng, source_tags(rng, SETTINGS, [("light", 3)]), 77)
        twin = Slotter(NOMINAL, value, 77, SETTINGS)
        await compare(dut, source, sink, twin, [tags])


@cocotb.test()
async def bench_reset_in_mid_window(dut):
    rng = generator("tracker reset")
    await bench.start(dut)
    source, sink = Source(dut, "i"), Sink(dut, "o", 0.5)
    await prepare(dut, SETTINGS, NOMINAL, 0)
    tags = source_tags(rng, SETTINGS, [("light", 3)])
    await source.send(words(TAG, tags[:100]))
    await prepare(dut, SETTINGS, NOMINAL, 0)
    await compare(dut, source, sink, Slotter(NOMINAL, tracking=SETTINGS), [tags])


@cocotb.test()
async def bench_real_time_without_a_bubble(dut):
    """A tag every clock, in real time: none waits, though a correction comes every 41 us."""
    settings = replace(SETTINGS, targets=(5_000,) * CHANNELS, channels=255)
    await bench.start(dut)
    await prepare(dut, settings, NOMINAL, 0)
    await bench.until(dut, lambda: not int(dut.busy.value))
    rng = generator("tracker rate")
    count = 9_000
    tags = zeros(TAG, count)
    tags["time"] = 5_000 + np.arange(count) * 10_000 + rng.integers(-40, 40, count)
    tags["channel"] = rng.integers(0, CHANNELS, count)
    payloads = words(TAG, tags)
    dut.o__ready.value = 1
    got, taken = [], []
    dut.i__valid.value = 1
    for clock in range(count + 40):
        dut.i__payload.value = payloads[min(len(taken), count - 1)]
        dut.i__valid.value = int(len(taken) < count)
        await ReadOnly()
        if len(taken) < count and dut.i__ready.value:
            taken.append(clock)
        if dut.o__valid.value:
            got.append(int(dut.o__payload.value))
        await FallingEdge(dut.clk)
    # The first waits until the slotter has loaded its registers.
    assert taken == [0, 1, *range(3, count + 1)]
    twin = Slotter(NOMINAL, tracking=settings)
    assert np.array_equal(structured(SLOT_TAG, got), twin.process(tags))
    assert twin.tracker.ledger.live["corrections"] == 2


@pytest.mark.parametrize("simulator", bench.simulators())
def test_tracker(simulator):
    from keyrail_gateware.tracker import TrackedSlotter

    bench.run(TrackedSlotter(), simulator, "test_tracker")


def by_definition(tags: Structured, period: int, origin: int, loop: Tracker) -> list[tuple]:
    """Slots and phases of tags in order, the pair in fractions; decisions are the twin's."""
    one = Fraction(1 << 44)
    start, length, end = Fraction(origin), period / one, None
    out = []
    for index, (time, channel, kind) in enumerate(tags.tolist()):
        if end is not None and time >= end[0]:
            correction = loop.decide()
            # From this slot on, (origin, P) are new: slot K begins at S + phase.
            length = correction.period / one
            start = end[0] + correction.phase / one - end[1] * length
            end = None
        slot = (time - start) // length
        if end is None:
            following = slot + loop.length
            end = (start + following * length, following)
            loop.begin(int(slot))
        phase = int(time - start - slot * length)
        out.append((int(slot), channel, kind, phase))
        loop.add(np.array([slot], np.uint64), np.array([phase], np.uint32), tags[index : index + 1])
    return out


@pytest.mark.parametrize("case", range(4))
def test_twin_is_the_definition(case):
    rng = generator("tracker definition", case)
    tags = source_tags(rng, SETTINGS, [("light", 6), ("dark", 3), ("step", 6)], rate=0.006)
    period = NOMINAL + int(rng.integers(0, 1 << 30))
    twin = Slotter(period, tracking=SETTINGS)
    cuts = np.sort(rng.integers(0, len(tags), 9))
    got = np.concatenate([twin.process(part) for part in np.split(tags, cuts)])
    loop = Tracker(SETTINGS, period, reciprocal(period))
    assert got.tolist() == by_definition(tags, period, 0, loop)
    assert loop.ledger.live == twin.tracker.ledger.live
    assert (np.diff(got["slot"].astype(np.int64)) >= 0).all()
    # The record-by-record imitation of the gateware agrees too.
    slow = Slotter(period, tracking=SETTINGS)
    slow._exact = False
    assert slow.process(tags).tolist() == got.tolist()


def run_loop(tags: Structured, settings: TrackerSettings) -> tuple[Slotter, Structured]:
    twin = Slotter(NOMINAL, tracking=settings)
    out = twin.process(tags)
    return twin, out[(out["kind"] == TagKind.CLICK) & (out["channel"] == 0)]


def errors(tags: Structured) -> np.ndarray:
    error = tags["phase"].astype(int) - SETTINGS.targets[0]
    return (error + 5_000) % 10_000 - 5_000


def test_period_is_followed_and_held_over():
    rng = generator("tracker hold-over")
    story = [("light", 60), ("dark", 15), ("light", 30)]
    tags = source_tags(rng, SETTINGS, story, offset_ppm=2.0, rate=0.02)
    twin, clicks = run_loop(tags, SETTINGS)
    loop = twin.tracker
    assert loop.locked
    assert not loop.holding
    assert loop.ledger.live["dark"] >= 8
    assert loop.ledger.live["lock_losses"] == 0
    assert abs(loop.period / NOMINAL - 1 - 2e-6) < 2e-7
    late = clicks[-500:]
    assert abs(np.median(errors(late))) < 20
    # No slot was slipped: source and receiver have counted the same ones, dark or not.
    true = 10_000 * (1 + 2e-6)
    counted = np.rint((int(tags["time"][-1]) - 5_000) / true)
    assert abs(int(late["slot"][-1]) - counted) <= 1


def test_step_is_acquired_again():
    rng = generator("tracker step")
    for _ in range(5):
        story = [("light", 20), ("step", 40)]
        tags = source_tags(rng, SETTINGS, story, rate=0.02)
        twin, clicks = run_loop(tags, SETTINGS)
        assert twin.tracker.ledger.live["lock_losses"] == 1
        assert twin.tracker.locked
        assert abs(np.median(errors(clicks[-300:]))) < 25


def test_noise_moves_nothing():
    rng = generator("tracker noise")
    tags = source_tags(rng, SETTINGS, [("noise", 300)])
    twin, _ = run_loop(tags, replace(SETTINGS, minimum=40))
    counts = twin.tracker.ledger.live
    assert counts["corrections"] <= 6, counts
    assert not twin.tracker.locked


def test_lock_expires_by_tag_time():
    rng = generator("tracker expiry")
    tags = source_tags(rng, SETTINGS, [("light", 10), ("gap", 1), ("light", 10)])
    for holdover, losses in ((1 << 47, 0), (100 << 12, 1)):
        twin, _ = run_loop(tags, replace(SETTINGS, holdover=holdover))
        assert twin.tracker.ledger.live["lock_losses"] == losses
