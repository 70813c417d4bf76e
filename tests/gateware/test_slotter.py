# SPDX-License-Identifier: Apache-2.0
"""Slotter: the gateware against its twin, the twin against Python's integers."""

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
    SLOT_TAG,
    TAG,
    LossMark,
    TagKind,
    reciprocal,
)
from keyrail.layouts import Structured, zeros
from keyrail_sim.models.slotter import Slotter

KINDS = (TagKind.CLICK, TagKind.TIME, TagKind.FRAME, TagKind.LOSS)
WRAP = 1 << 48


def random_period(rng: np.random.Generator) -> int:
    """800 ps to 1000 ns with a random fraction."""
    whole = int(np.exp(rng.uniform(np.log(800), np.log(999_999))))
    return whole << 44 | int(rng.integers(0, 1 << 44))


def tagged(rng: np.random.Generator, times: list[int], clicks: float = 0.85) -> Structured:
    """Tags at unwrapped times, with random kinds and channels."""
    tags = zeros(TAG, len(times))
    tags["time"] = [time % WRAP for time in times]
    rest = (1 - clicks) / 3
    tags["kind"] = rng.choice(KINDS, len(times), p=(clicks, rest, rest, rest))
    tags["channel"] = rng.integers(0, CHANNELS, len(times)) * (tags["kind"] == TagKind.CLICK)
    return tags


def boundary_times(rng: np.random.Generator, period: int, count: int, start: int) -> list[int]:
    """Times on slot boundaries and 1 ps beside them, ps from the origin, in order."""
    slot = (start << 44) // period + 2
    times = []
    for step in rng.integers(1, 5, count).tolist():
        slot += step
        edge = -(-slot * period >> 44)
        times += [edge - 1, edge, edge + 1]
    return times


def gap_times(rng: np.random.Generator, count: int, start: int) -> list[int]:
    """Times with gaps from 0 to the longest, several of those one after the other."""
    gaps = [0, 1, GAP_MAXIMUM_PS - 1, GAP_MAXIMUM_PS] + 6 * [GAP_MAXIMUM_PS]
    gaps += [1, GAP_MAXIMUM_PS, 0, GAP_MAXIMUM_PS, GAP_MAXIMUM_PS - 1, 2, GAP_MAXIMUM_PS]
    gaps += [int(2 ** rng.uniform(0, 47)) for _ in range(count)]
    return [start + int(t) for t in np.cumsum(np.array(gaps, object))]


def reference(tags: Structured, period: int, origin: int) -> tuple[list[tuple], dict[str, int]]:
    """Slot tags and drops by the definition, in Python's fractions."""
    length = Fraction(period, 1 << 44)
    last, started = 0, False
    drops = {"before_origin": 0, "out_of_order": 0, "bad_channel": 0}
    out = []
    for time, channel, kind in tags.tolist():
        click = kind == TagKind.CLICK
        if click and channel >= CHANNELS:
            drops["bad_channel"] += 1
            continue
        gap = (time - origin - last) % WRAP
        if gap > GAP_MAXIMUM_PS:
            if click:
                drops["out_of_order" if started else "before_origin"] += 1
                if not started:
                    continue
                channel, kind = LossMark.AT, TagKind.LOSS
        else:
            last, started = last + gap, True
        slot = last // length
        out.append((slot % WRAP, channel, kind, int(last - slot * length)))
    return out, drops


def conserved(counts: dict[str, int]) -> bool:
    names = ("out", "before_origin", "out_of_order", "bad_channel", "inexact")
    return counts["in"] == sum(counts[name] for name in names)


async def prepare(dut, period: int, origin: int, value: int | None = None) -> None:
    dut.period.value = period
    dut.reciprocal.value = reciprocal(period) if value is None else value
    dut.origin.value = origin
    await bench.reset(dut)


async def compare(dut, source: Source, sink: Sink, twin: Slotter, chunks: list[Structured]):
    sink.received.clear()
    expected = []
    for tags in chunks:
        await source.send(words(TAG, tags))
        expected.append(twin.process(tags))
        await settle(dut, sink)
    got = structured(SLOT_TAG, sink.received)
    assert np.array_equal(got, np.concatenate(expected))
    assert int(dut.busy.value) == 0
    for when, counts in (("live", twin.ledger.live), ("at_frame", twin.ledger.at_frame)):
        assert ledger(dut, "slotter", when) == counts
        assert conserved(counts)


@cocotb.test()
@cocotb.parametrize(shares=[(1.0, 1.0), (0.5, 0.7), (0.9, 0.3)])
async def bench_random(dut, shares):
    rng = generator("slotter", shares)
    dut.period.value = dut.reciprocal.value = dut.origin.value = 0
    await bench.start(dut)
    source, sink = Source(dut, "i", shares[0]), Sink(dut, "o", shares[1])
    fixed = [800 << 44, 1_000_000 << 44, 10_000 << 44, (800 << 44) + 1, (1_000_000 << 44) - 1]
    for period in fixed + [random_period(rng) for _ in range(10)]:
        origin = int(rng.integers(0, WRAP))
        await prepare(dut, period, origin)
        near = boundary_times(rng, period, 20, 0)
        far = gap_times(rng, 12, near[-1])
        late = boundary_times(rng, period, 12, far[-1])
        wide = gap_times(rng, 4, late[-1])
        chunks = [
            tagged(rng, [origin + t for t in times], clicks)
            for times, clicks in ((near, 1.0), (far + late, 0.85), (wide, 0.7))
        ]
        await compare(dut, source, sink, Slotter(period, origin=origin), chunks)


@cocotb.test()
@cocotb.parametrize(shares=[(1.0, 1.0), (0.8, 0.6)])
async def bench_disorder(dut, shares):
    rng = generator("slotter disorder", shares)
    dut.period.value = dut.reciprocal.value = dut.origin.value = 0
    await bench.start(dut)
    source, sink = Source(dut, "i", shares[0]), Sink(dut, "o", shares[1])
    for _ in range(4):
        period, origin = random_period(rng), int(rng.integers(0, WRAP))
        await prepare(dut, period, origin)
        # Clicks and markers before the origin, then disorder of all sizes and bad channels.
        start = [origin - int(t) for t in np.sort(rng.integers(1, 10**6, 20))[::-1]]
        clicks = origin + np.cumsum(rng.integers(0, 3 * (period >> 44), 150))
        back = rng.choice([0, 1, 10**6, 1 << 40, GAP_MAXIMUM_PS - 1], 150, p=[0.6] + 4 * [0.1])
        tags = tagged(rng, start + (clicks - back).tolist(), 0.7)
        tags["channel"][rng.random(len(tags)) < 0.1] = rng.integers(CHANNELS, 64)
        twin = Slotter(period, origin=origin)
        await compare(dut, source, sink, twin, [tags[:10], tags[10:40], tags[40:]])
        assert min(twin.ledger.live[n] for n in ("before_origin", "out_of_order")) > 0
        assert twin.ledger.live["bad_channel"] > 0


@cocotb.test()
@cocotb.parametrize(wrong=["near", "far", "zero", "ones", "period"])
async def bench_inexact(dut, wrong):
    rng = generator("slotter inexact", wrong)
    dut.period.value = dut.reciprocal.value = dut.origin.value = 0
    await bench.start(dut)
    source, sink = Source(dut, "i"), Sink(dut, "o", 0.8)
    period, origin = random_period(rng), int(rng.integers(0, WRAP))
    right = reciprocal(period)
    value = {"near": right + (right >> 24), "far": right >> 1, "zero": 0, "ones": WRAP - 1}
    set_period = 0 if wrong == "period" else period
    await prepare(dut, set_period, origin, value.get(wrong, right))
    times = [origin] + [origin + t for t in gap_times(rng, 60, 5)]
    tags = tagged(rng, sorted([*times, *(origin + t for t in range(0, 10**9, 10**7))]), 0.8)
    twin = Slotter(set_period, value.get(wrong, right), origin)
    await compare(dut, source, sink, twin, [tags[:30], tags[30:]])
    assert twin.ledger.live["inexact"] > 0
    exact, _ = reference(tags, period, origin)
    clicks = [record for record in exact if record[2] == TagKind.CLICK]
    got = structured(SLOT_TAG, sink.received)
    left = got[got["kind"] == TagKind.CLICK].tolist()
    assert left == clicks[: len(left)]


@cocotb.test()
async def bench_full_rate(dut):
    rng = generator("slotter rate")
    period, origin, count = random_period(rng), 12345, 300
    dut.period.value, dut.reciprocal.value = period, reciprocal(period)
    dut.origin.value = origin
    await bench.start(dut)
    await bench.until(dut, lambda: not int(dut.busy.value))
    dut.o__ready.value = 1
    latency = int(bench.parameter("latency"))
    times = (origin + np.cumsum(rng.integers(1, 1 << 36, count))).tolist()
    tags = tagged(rng, times)
    payloads = words(TAG, tags)
    taken, left, got = [], [], []
    for clock in range(count + latency + 1):
        dut.i__valid.value = int(len(taken) < count)
        if len(taken) < count:
            dut.i__payload.value = payloads[len(taken)]
        await ReadOnly()
        if dut.i__valid.value and dut.i__ready.value:
            taken.append(clock)
        if dut.o__valid.value:
            left.append(clock)
            got.append(int(dut.o__payload.value))
        await FallingEdge(dut.clk)
    # The first record waits one clock in front of the entry; one more fits behind it meanwhile.
    assert taken == [0, 1, *range(3, count + 1)]
    assert left == [taken[0] + 1 + latency + n for n in range(count)]
    expected = Slotter(period, origin=origin).process(tags)
    assert np.array_equal(structured(SLOT_TAG, got), expected)


@cocotb.test()
async def bench_reset_in_mid_frame(dut):
    rng = generator("slotter reset")
    period, origin = random_period(rng), int(rng.integers(0, WRAP))
    dut.period.value = dut.reciprocal.value = dut.origin.value = 0
    await bench.start(dut)
    source, sink = Source(dut, "i"), Sink(dut, "o", 0.4)
    await prepare(dut, period, origin)
    await source.send(words(TAG, tagged(rng, [origin + t for t in gap_times(rng, 30, 10)])))
    period, origin = random_period(rng), int(rng.integers(0, WRAP))
    await prepare(dut, period, origin)
    tags = tagged(rng, [origin + t for t in gap_times(rng, 30, 0)])
    await compare(dut, source, sink, Slotter(period, origin=origin), [tags])


@pytest.mark.parametrize("simulator", bench.simulators())
def test_slotter(simulator):
    # One build with the bench of the tracker, which is off here.
    from keyrail_gateware import slotter, tracker

    parameters = {"latency": slotter.Slotter.latency}
    bench.run(tracker.TrackedSlotter(), simulator, "test_slotter", parameters=parameters)


@pytest.mark.parametrize("case", range(30))
def test_twin_is_exact(case):
    rng = generator("slotter twin", case)
    period, origin = random_period(rng), int(rng.integers(0, WRAP))
    times = boundary_times(rng, period, 50, 0)
    times += gap_times(rng, 60, times[-1])
    times += boundary_times(rng, period, 50, times[-1])
    back = rng.choice([0, 1, 50, 1 << 40, GAP_MAXIMUM_PS - 1], len(times), p=[0.6] + 4 * [0.1])
    times = [origin + t - int(b) for t, b in zip(times, back, strict=True)]
    tags = tagged(rng, [origin - 7, origin - 1, *times], 0.8)
    tags["channel"][rng.random(len(tags)) < 0.05] = 17
    expected, drops = reference(tags, period, origin)
    twin = Slotter(period, origin=origin)
    cuts = np.sort(rng.integers(0, len(tags), 5))
    got = np.concatenate([twin.process(part) for part in np.split(tags, cuts)])
    assert got.tolist() == expected
    assert {name: twin.ledger.live[name] for name in drops} == drops
    # The record-by-record imitation agrees wherever the vectorised way applies.
    slow = Slotter(period, origin=origin)
    slow._exact = False
    assert slow.process(tags).tolist() == expected
    assert slow.ledger.live == twin.ledger.live


def test_twin_over_hours():
    rng = generator("slotter hours")
    period, origin, count = random_period(rng), 99, 200_000
    tags = zeros(TAG, count)
    time = origin + np.cumsum(rng.integers(0, 1 << 37, count))  # 3.8 hours
    tags["time"] = time % WRAP
    got = Slotter(period, origin=origin).process(tags)
    for index in rng.integers(0, count, 2000).tolist():
        slot, rest = divmod((int(time[index]) - origin) << 44, period)
        assert (got["slot"][index], got["phase"][index]) == (slot, rest >> 44)


def test_twin_refuses_a_bad_period():
    with pytest.raises(ValueError, match="slot period"):
        Slotter(799 << 44)
