# SPDX-License-Identifier: Apache-2.0
"""Blanking: the gateware against its twin."""

import cocotb
import numpy as np
import pytest

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


@cocotb.test()
@cocotb.parametrize(slots=[0, 1, 5, 65535], shares=[(1.0, 1.0), (0.5, 0.7), (0.9, 0.3)])
async def bench_random(dut, slots, shares):
    rng = generator("blanking", slots, shares)
    dut.slots.value = slots
    await bench.start(dut)
    source, sink = Source(dut, "i", shares[0]), Sink(dut, "o", shares[1])
    twin = Blanking(slots)
    expected = []
    for start in (0, (1 << 48) - 1000):
        tags = traffic(rng, 400, start, 8 if slots < 100 else 40_000)
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
    dut.slots.value = 3
    await bench.start(dut)
    source, sink = Source(dut, "i"), Sink(dut, "o", 0.5)
    await source.send(words(SLOT_TAG, traffic(rng, 50, 100, 3)))
    await bench.reset(dut)
    sink.received.clear()
    twin = Blanking(3)
    tags = traffic(rng, 200, 100, 3)
    await source.send(words(SLOT_TAG, tags))
    await settle(dut, sink)
    got = structured(SLOT_TAG, sink.received)
    assert np.array_equal(got, twin.process(tags))
    assert ledger(dut, "blanking") == twin.ledger.live


@pytest.mark.parametrize("simulator", bench.simulators())
def test_blanking(simulator):
    from keyrail_gateware.blanking import Blanking as Gateware

    bench.run(Gateware(), simulator, "test_blanking")
