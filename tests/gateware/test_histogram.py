# SPDX-License-Identifier: Apache-2.0
"""Histogram: the gateware against its twin."""

import cocotb
import numpy as np
import pytest
from cocotb.triggers import ClockCycles, FallingEdge, ReadOnly

import bench
from bench import Sink, Source, generator, settle, structured, until, words
from keyrail.contract import (
    CHANNELS,
    HISTOGRAM_BIN,
    HISTOGRAM_BINS,
    KEY_MODE_HISTOGRAM_MINIMUM,
    SLOT_TAG,
    TagKind,
)
from keyrail.layouts import Structured, zeros
from keyrail_sim.models.histogram import Histogram

KINDS = (TagKind.CLICK, TagKind.TIME, TagKind.FRAME, TagKind.LOSS)
WORDS = CHANNELS * HISTOGRAM_BINS
COUNT_BITS = int(bench.parameter("count_bits", "32"))


def traffic(rng: np.random.Generator, count: int, shift: int) -> Structured:
    """Slot tags of which many in a row, or one to three apart, share a bin."""
    tags = zeros(SLOT_TAG, count)
    tags["slot"] = np.cumsum(rng.integers(0, 9, count))
    tags["kind"] = rng.choice(KINDS, count, p=(0.85, 0.05, 0.05, 0.05))
    bins = rng.choice([0, 1, 511, 1023, 1024, 5000, *rng.integers(0, 1024, 4)], count)
    channel = rng.choice([0, 3, 7], count)
    again = rng.integers(0, 4, count)
    for index in np.flatnonzero(again):
        bins[index] = bins[max(index - again[index], 0)]
        channel[index] = channel[max(index - again[index], 0)]
    within = rng.integers(0, 1 << shift, count)
    tags["phase"] = np.minimum((bins << shift) + within, (1 << 20) - 1)
    tags["channel"] = channel * (tags["kind"] == TagKind.CLICK)
    return tags


async def begin(dut, shift: int, key_mode: int = 0) -> None:
    """Reset; the banks are cleared, and no record is taken meanwhile."""
    dut.shift.value, dut.key_mode.value = shift, key_mode
    dut.dump.value = dut.wipe.value = 0
    dut.bins__ready.value = 0
    await bench.start(dut)
    await cleared(dut)


async def cleared(dut) -> None:
    """Wait out a clearing of 8192 clocks, which has just begun."""
    await ClockCycles(dut.clk, WORDS - 2)
    await FallingEdge(dut.clk)
    assert dut.busy.value == 1
    assert dut.i__ready.value == 0
    await until(dut, lambda: not dut.busy.value, 4)


async def pulse(dut, name: str) -> bool:
    """Give a command; True if it was not refused."""
    getattr(dut, name).value = 1
    await FallingEdge(dut.clk)
    getattr(dut, name).value = 0
    refused = False
    for _ in range(4):
        refused |= bool(dut.refused.value)
        await FallingEdge(dut.clk)
    return not refused


async def read(dut) -> Structured:
    """Take one dump at full speed: a word in three clocks."""
    dut.bins__ready.value = 1
    got = []
    for _ in range(3 * WORDS + 16):
        await ReadOnly()
        if dut.bins__valid.value:
            got.append(int(dut.bins__payload.value))
        await FallingEdge(dut.clk)
    assert len(got) == WORDS
    assert not dut.busy.value
    dut.bins__ready.value = 0
    return structured(HISTOGRAM_BIN, got)


@cocotb.test()
@cocotb.parametrize(shares=[(1.0, 1.0), (0.8, 0.7)], shift=[4, 0])
async def bench_random(dut, shares, shift):
    """Two dumps while records pass: the first swaps the banks, the second swaps them back."""
    rng = generator("histogram", shares, shift)
    await begin(dut, shift)
    source, sink = Source(dut, "i", shares[0]), Sink(dut, "o", shares[1])
    bins = Sink(dut, "bins", shares[1] ** 0.5)
    twin = Histogram(shift, count_bits=COUNT_BITS)
    expected = []
    for _ in range(2):
        tags = traffic(rng, 700, shift)
        sink.received.clear()
        bins.received.clear()
        sending = cocotb.start_soon(source.send(words(SLOT_TAG, tags)))
        # Commands change at falling edges: the clock of `dump` is seen whole.
        seen, at = 0, int(rng.integers(300, 400))
        while seen < at:
            await ReadOnly()
            seen += bool(dut.i__valid.value) and bool(dut.i__ready.value)
            await FallingEdge(dut.clk)
        dut.dump.value = 1
        await ReadOnly()
        seen += bool(dut.i__valid.value) and bool(dut.i__ready.value)
        await FallingEdge(dut.clk)
        dut.dump.value = 0
        assert dut.dumping.value
        assert not await pulse(dut, "dump")
        await sending
        await settle(dut, sink)
        assert np.array_equal(structured(SLOT_TAG, sink.received), tags)
        twin.process(tags[:seen])
        expected = twin.dump()
        twin.process(tags[seen:])
        await until(dut, lambda: len(bins.received) == WORDS)
        await settle(dut, bins)
        assert np.array_equal(structured(HISTOGRAM_BIN, bins.received), expected)
        assert expected["count"].max() > 6


@cocotb.test()
async def bench_full_rate(dut):
    await begin(dut, 4)
    tags = traffic(generator("histogram rate"), 400, 4)
    got = await bench.full_rate(dut, words(SLOT_TAG, tags), 1)
    assert np.array_equal(structured(SLOT_TAG, got), tags)
    twin = Histogram(4, count_bits=COUNT_BITS)
    twin.process(tags)
    assert await pulse(dut, "dump")
    assert np.array_equal(await read(dut), twin.dump())


@cocotb.test(skip=COUNT_BITS != 32)
async def bench_key_mode(dut):
    """A histogram of fewer than 10^4 clicks does not leave, whatever else passed."""
    await begin(dut, 4, key_mode=1)
    dut.o__ready.value = 1
    tags = zeros(SLOT_TAG, 2)
    tags["channel"], tags["phase"], tags["kind"] = 5, 777 << 4, (TagKind.CLICK, TagKind.TIME)
    click, marker = words(SLOT_TAG, tags)

    async def put(payload: int, count: int) -> None:
        dut.i__valid.value, dut.i__payload.value = 1, payload
        await ClockCycles(dut.clk, count)
        await FallingEdge(dut.clk)
        dut.i__valid.value = 0

    assert not await pulse(dut, "dump")
    await put(marker, 50)
    await put(click, KEY_MODE_HISTOGRAM_MINIMUM - 1)
    assert not await pulse(dut, "dump")
    await put(click, 1)
    assert await pulse(dut, "dump")
    got = await read(dut)
    count = min(KEY_MODE_HISTOGRAM_MINIMUM, (1 << COUNT_BITS) - 1)
    assert got["count"][5 * HISTOGRAM_BINS + 777] == got["count"].sum() == count
    # The other bank is empty.
    assert not await pulse(dut, "dump")


@cocotb.test(skip=COUNT_BITS != 32)
@cocotb.parametrize(command=["wipe", "rst"])
async def bench_wipe(dut, command):
    """After wipe or reset in the midst of traffic and of a dump, both banks are empty."""
    await begin(dut, 4)
    payloads = words(SLOT_TAG, traffic(generator("histogram wipe"), 200, 4))
    dut.o__ready.value = 1
    source = Source(dut, "i")
    await source.send(payloads)
    assert await pulse(dut, "dump")
    dut.bins__ready.value = 1
    await source.send(payloads)
    dut.bins__ready.value = 0
    await FallingEdge(dut.clk)
    dut.o__ready.value = 0
    await source.send(payloads[:1])
    getattr(dut, command).value = 1
    await FallingEdge(dut.clk)
    getattr(dut, command).value = 0
    assert not dut.o__valid.value
    assert not dut.bins__valid.value
    assert dut.i__ready.value == 0
    assert not await pulse(dut, "dump")
    await until(dut, lambda: not dut.busy.value, WORDS)
    for _ in range(2):
        assert await pulse(dut, "dump")
        assert not (await read(dut))["count"].any()


@pytest.mark.parametrize("count_bits", [32, 3])
@pytest.mark.parametrize("simulator", bench.simulators())
def test_histogram(simulator, count_bits):
    from keyrail_gateware.histogram import Histogram as Gateware

    parameters = {"count_bits": count_bits}
    bench.run(Gateware(count_bits), simulator, "test_histogram", parameters=parameters)


def test_twin_counts():
    rng = generator("histogram twin")
    tags = traffic(rng, 5000, 6)
    tags["channel"][::17] += 8
    expected = np.zeros((CHANNELS, HISTOGRAM_BINS), int)
    for _, channel, kind, phase in tags.tolist():
        if kind == TagKind.CLICK and channel < CHANNELS:
            expected[channel, min(phase >> 6, HISTOGRAM_BINS - 1)] += 1
    twin = Histogram(6)
    for part in np.split(tags, [0, 1, 3000]):
        assert twin.process(part) is part
    assert np.array_equal(twin.dump()["count"], expected.ravel())
    assert not twin.dump()["count"].any()
    twin.key_mode = True
    assert twin.dump() is None


def test_width_of_bins_is_checked():
    from keyrail_gateware.histogram import Histogram as Gateware

    with pytest.raises(ValueError, match="33 bits"):
        Gateware(33)
