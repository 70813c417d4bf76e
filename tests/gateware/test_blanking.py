# SPDX-License-Identifier: Apache-2.0
"""Blanking: the gateware against its twin."""

import cocotb
import numpy as np
import pytest
from cocotb.triggers import ClockCycles, FallingEdge

import bench
from bench import Sink, Source, generator, ledger, settle, structured, words
from keyrail.contract import SLOT_TAG, TagKind
from keyrail.layouts import Structured, zeros
from keyrail_sim.models.blanking import Blanking

KINDS = (TagKind.CLICK, TagKind.TIME, TagKind.FRAME, TagKind.LOSS)


def traffic(rng: np.random.Generator, count: int, start: int, spread: int) -> Structured:
    """Random slot tags in slot order, with shared slots, markers, and wrap-around of the slot."""
    tags = zeros(SLOT_TAG, count)
    steps = rng.integers(0, spread, count) * (rng.random(count) < 0.7)
    tags["slot"] = (start + np.cumsum(steps)).astype(np.uint64) & np.uint64((1 << 48) - 1)
    tags["kind"] = rng.choice(KINDS, count, p=(0.8, 0.1, 0.05, 0.05))
    tags["channel"] = rng.integers(0, 8, count) * (tags["kind"] == TagKind.CLICK)
    tags["phase"] = rng.integers(0, 1 << 20, count)
    return tags


def set_slots(dut, slots: tuple[int, ...]) -> None:
    dut.slots.value = sum(value << (16 * channel) for channel, value in enumerate(slots))


@cocotb.test()
@cocotb.parametrize(
    slots=[(0,) * 8, (1,) * 8, (5, 0, 3, 9, 1, 5, 2, 7), (65535, 1, 40000, 0, 9, 65534, 3, 3)],
    shares=[(1.0, 1.0), (0.5, 0.7), (0.9, 0.3)],
)
async def bench_random(dut, slots, shares):
    rng = generator("blanking", slots, shares)
    set_slots(dut, slots)
    await bench.start(dut)
    await ClockCycles(dut.clk, 16)
    await FallingEdge(dut.clk)
    source, sink = Source(dut, "i", shares[0]), Sink(dut, "o", shares[1])
    twin = Blanking(slots)
    expected = []
    for start in (0, (1 << 48) - 1000):
        tags = traffic(rng, 400, start, 8 if max(slots) < 100 else 40_000)
        await source.send(words(SLOT_TAG, tags))
        expected += list(twin.process(tags))
        await settle(dut, sink)
    got = structured(SLOT_TAG, sink.received)
    assert np.array_equal(got, np.array(expected, got.dtype))
    assert ledger(dut, "blanking") == twin.ledger.live
    assert ledger(dut, "blanking", "at_frame") == twin.ledger.at_frame
    live = twin.ledger.live
    assert live["in"] == live["out"] + live["blanked"]


@cocotb.test()
async def bench_reset_in_mid_frame(dut):
    rng = generator("blanking reset")
    slots = (3, 0, 7, 1, 1, 2, 3, 4)
    set_slots(dut, slots)
    before, tags = traffic(rng, 50, 100, 3), traffic(rng, 200, 100, 3)
    got = await bench.reset_in_mid_frame(dut, words(SLOT_TAG, before), words(SLOT_TAG, tags))
    twin = Blanking(slots)
    assert np.array_equal(structured(SLOT_TAG, got), twin.process(tags))
    assert ledger(dut, "blanking") == twin.ledger.live


@cocotb.test()
async def bench_full_rate(dut):
    """A record each clock, without a pause, whatever is dropped."""
    slots = (1, 2, 3, 4, 5, 6, 7, 8)
    set_slots(dut, slots)
    await bench.start(dut)
    await ClockCycles(dut.clk, 16)
    await FallingEdge(dut.clk)
    tags = traffic(generator("blanking rate"), 300, 5, 8)
    got = await bench.full_rate(dut, words(SLOT_TAG, tags), 8)
    assert np.array_equal(structured(SLOT_TAG, got), Blanking(slots).process(tags))


@pytest.mark.parametrize("simulator", bench.simulators())
def test_blanking(simulator):
    from keyrail_gateware.blanking import Blanking as Gateware

    bench.run(Gateware(), simulator, "test_blanking")


def by_rule(tags: Structured, slots: tuple[int, ...]) -> list[tuple]:
    """The protocol's words: live again since its own last raw click, each detector by itself."""
    last: dict[int, list[int]] = {channel: [] for channel in range(8)}
    passed = []
    for tag in tags.tolist():
        slot, channel, kind, _ = tag
        dead = any(
            former < slot <= former + slots[detector]
            for detector, clicks in last.items()
            for former in clicks
        )
        if kind != TagKind.CLICK or not dead:
            passed.append(tag)
        if kind == TagKind.CLICK:
            last[channel].append(slot)
        if kind == TagKind.LOSS:
            for clicks in last.values():
                clicks.append(slot)
    return passed


@pytest.mark.parametrize("slots", [(1,) * 8, (5, 0, 3, 9, 1, 5, 2, 7), (0,) * 8])
def test_twin_follows_the_rule(slots):
    rng = generator("blanking rule", slots)
    tags = traffic(rng, 2000, 0, 8)
    twin = Blanking(slots)
    got = []
    for part in np.split(tags, np.sort(rng.integers(0, len(tags), 60))):
        got += twin.process(part).tolist()
    assert got == by_rule(tags, slots)
