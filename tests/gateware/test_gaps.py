# SPDX-License-Identifier: Apache-2.0
"""Gaps and outcomes: the gateware against its twins, the twins against the rule spelt out."""

import cocotb
import numpy as np
import pytest
from cocotb.triggers import ClockCycles, FallingEdge

import bench
from bench import Sink, generator, structured, until, words
from keyrail.contract import (
    CHANNELS,
    GAP_BINS,
    HISTOGRAM_BIN,
    KEY_MODE_HISTOGRAM_MINIMUM,
    SLOT_TAG,
    TagKind,
)
from keyrail.layouts import Structured
from keyrail_sim.models.gaps import Gaps, Outcomes
from keyrail_sim.models.gate import Window
from test_gate import random_windows, set_windows
from test_gate import traffic as phases

GAPS, OUTCOMES = 2 * CHANNELS * GAP_BINS, 4 * GAP_BINS


def traffic(rng: np.random.Generator, count: int, windows: list[Window]) -> Structured:
    """Slot tags in slot order, with gaps of every length."""
    tags = phases(rng, count, windows)[[field.name for field in SLOT_TAG.fields]].copy()
    steps = rng.choice([0, 0, 0, 1, 2, 63, 64, 100, 70_000, 1 << 40], count)
    tags["slot"] = (np.cumsum(steps) + (1 << 47)).astype(np.uint64) & np.uint64((1 << 48) - 1)
    return tags


async def begin(dut, shift: int, key_mode: int = 0) -> None:
    for name in ("gaps", "outcomes"):
        getattr(dut, f"{name}__shift").value = shift
        getattr(dut, f"{name}__key_mode").value = key_mode
        getattr(dut, f"{name}__dump").value = getattr(dut, f"{name}__wipe").value = 0
    dut.valid.value = 0
    dut.group.value = 0
    await bench.start(dut)
    await until(dut, lambda: not (dut.gaps__busy.value or dut.outcomes__busy.value), GAPS + 8)


async def pulse(dut, name: str) -> bool:
    """Give a command to both; True if neither refused it."""
    for one in ("gaps", "outcomes"):
        getattr(dut, f"{one}__{name}").value = 1
    await FallingEdge(dut.clk)
    dut.valid.value = dut.group.value = 0
    refused = False
    for one in ("gaps", "outcomes"):
        getattr(dut, f"{one}__{name}").value = 0
    for _ in range(8):
        refused |= bool(dut.gaps__refused.value) or bool(dut.outcomes__refused.value)
        await FallingEdge(dut.clk)
    return not refused


@cocotb.test()
@cocotb.parametrize(shift=[0, 15])
async def bench_random(dut, shift):
    """A click and a slot each clock; a dump while they come, whose last clicks still count."""
    rng = generator("gaps", shift)
    windows = random_windows(rng)
    set_windows(dut, windows)
    await begin(dut, shift)
    sinks = Sink(dut, "gaps__bins", 0.9), Sink(dut, "outcomes__bins", 0.8)
    twin, outcomes = Gaps(windows, shift), Outcomes(shift)
    for _ in range(2):
        tags = traffic(rng, 500, windows)
        slots = traffic(rng, 500, windows)["slot"]
        kinds = rng.integers(0, 3, 500)
        there = rng.random(500) < 0.8
        for index, payload in enumerate(words(SLOT_TAG, tags)):
            dut.valid.value, dut.tag.value = 1, payload
            dut.group.value = int(slots[index]) | int(kinds[index]) << 48 | int(there[index]) << 50
            if index < 499:
                await FallingEdge(dut.clk)
        # The command comes in the clock of the last click.
        assert await pulse(dut, "dump")
        twin.process(tags)
        outcomes.process(slots[there], kinds[there] == 1, kinds[there] == 2)
        for sink, one, count in zip(sinks, (twin, outcomes), (GAPS, OUTCOMES), strict=True):
            await until(dut, lambda sink=sink, count=count: len(sink.received) == count)
            got = structured(HISTOGRAM_BIN, sink.received)
            assert np.array_equal(got, one.dump())
            assert got["count"].sum() > 100
            sink.received.clear()
        assert not dut.gaps__dumping.value
        assert not dut.outcomes__dumping.value


@cocotb.test()
async def bench_key_mode_and_wipe(dut):
    windows = [Window(0, 1 << 19, 1)] * 16
    set_windows(dut, windows)
    await begin(dut, 0, key_mode=1)
    sinks = Sink(dut, "gaps__bins"), Sink(dut, "outcomes__bins")
    tags = traffic(generator("gaps key mode"), 1, windows)
    tags["kind"], tags["channel"] = TagKind.CLICK, 3
    (click,) = words(SLOT_TAG, tags)
    dut.valid.value, dut.tag.value, dut.group.value = 1, click, 1 << 50
    # The first has no gap; the last comes in the clock of the command.
    await ClockCycles(dut.clk, KEY_MODE_HISTOGRAM_MINIMUM - 1)
    await FallingEdge(dut.clk)
    assert not await pulse(dut, "dump")
    dut.valid.value, dut.group.value = 1, 1 << 50
    await FallingEdge(dut.clk)
    dut.valid.value = dut.group.value = 0
    assert await pulse(dut, "dump")
    await until(dut, lambda: len(sinks[0].received) == GAPS)
    got = structured(HISTOGRAM_BIN, sinks[0].received)["count"].reshape(CHANNELS, 2, GAP_BINS)
    assert got.sum() == got[3, :, 0].sum() == KEY_MODE_HISTOGRAM_MINIMUM
    assert structured(HISTOGRAM_BIN, sinks[1].received)["count"][0] == got.sum()
    for _ in range(50):
        dut.valid.value, dut.group.value = 1, 1 << 50
        await FallingEdge(dut.clk)
    dut.valid.value = 0
    await pulse(dut, "wipe")
    await until(dut, lambda: not (dut.gaps__busy.value or dut.outcomes__busy.value), GAPS + 8)
    for sink in sinks:
        sink.received.clear()
    for name in ("gaps", "outcomes"):
        getattr(dut, f"{name}__key_mode").value = 0
    for _ in range(2):
        assert await pulse(dut, "dump")
        await until(dut, lambda: len(sinks[0].received) == GAPS)
        assert not any(sinks[0].received)
        assert not any(sinks[1].received)
        sinks[0].received.clear()


def both():
    """Gaps and outcomes side by side, so that one build serves."""
    from amaranth.hdl import Module
    from amaranth.lib import wiring
    from amaranth.lib.wiring import In, Out

    from keyrail_gateware.gaps import Gaps as Clicks
    from keyrail_gateware.gaps import Outcomes as Slots

    class Both(wiring.Component):
        def __init__(self):
            self.one, self.other = Clicks(), Slots()
            ports = self.one.signature.members
            super().__init__(
                {
                    "tag": ports["tag"],
                    "valid": In(1),
                    "windows": ports["windows"],
                    "group": self.other.signature.members["group"],
                    "gaps": Out(ports["reading"].signature),
                    "outcomes": Out(ports["reading"].signature),
                }
            )

        def elaborate(self, platform):
            m = Module()
            m.submodules.one, m.submodules.other = self.one, self.other
            m.d.comb += [
                self.one.tag.eq(self.tag),
                self.one.valid.eq(self.valid),
                self.one.windows.eq(self.windows),
                self.other.group.eq(self.group),
            ]
            wiring.connect(m, self.one.reading, wiring.flipped(self.gaps))
            wiring.connect(m, self.other.reading, wiring.flipped(self.outcomes))
            return m

    return Both()


@pytest.mark.parametrize("simulator", bench.simulators())
def test_gaps(simulator):
    bench.run(both(), simulator, "test_gaps", name="gaps")


def test_twins_follow_the_rule():
    rng = generator("gaps rule")
    windows = random_windows(rng)
    tags = traffic(rng, 3000, windows)
    expected = np.zeros((CHANNELS, 2, GAP_BINS), int)
    last: dict[int, int] = {}
    for slot, channel, kind, phase in tags.tolist():
        if kind != TagKind.CLICK:
            continue
        inside = False
        for one in windows[2 * channel : 2 * channel + 2]:
            wraps = one.stop < one.start
            span = [(one.start, 1 << 20), (0, one.stop)] if wraps else [(one.start, one.stop)]
            opens = one.enable or one.enable_1
            inside |= bool(opens) and any(low <= phase < high for low, high in span)
        if channel in last:
            gap = (slot - last[channel]) % (1 << 48)
            expected[channel, int(inside), min(gap >> 2, GAP_BINS - 1)] += 1
        last[channel] = slot
    twin = Gaps(windows, 2)
    for part in np.split(tags, [0, 1, 2, 1000]):
        twin.process(part)
    assert np.array_equal(twin.dump()["count"], expected.ravel())
