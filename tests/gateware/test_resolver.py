# SPDX-License-Identifier: Apache-2.0
"""Resolver: the gateware against its twin."""

import cocotb
import numpy as np
import pytest
from cocotb.utils import get_sim_time

import bench
from bench import Sink, Source, generator, ledger, settle, structured, words
from keyrail.contract import RECEIVER_ENTRY, RECEIVER_SIFTED, REPLY
from keyrail.layouts import zeros
from keyrail_sim.models.resolver import Resolver


def traffic(rng, count):
    """Random replies, contradictions and all, and entries."""
    replies, entries = zeros(REPLY, count), zeros(RECEIVER_ENTRY, count)
    for records in (replies, entries):
        for name in records.dtype.names:
            records[name] = rng.integers(0, 2, count)
    return replies, entries


async def begin(dut):
    dut.exhausted.value = 0
    await bench.start(dut)


@cocotb.test()
@cocotb.parametrize(shares=[(1.0, 1.0, 1.0), (0.5, 0.7, 0.6), (0.9, 0.3, 0.2)])
async def bench_random(dut, shares):
    replies, entries = traffic(generator("resolver", shares), 400)
    await begin(dut)
    sink, twin = Sink(dut, "o", shares[2]), Resolver()
    feeds = [
        cocotb.start_soon(Source(dut, "reply", shares[0]).send(words(REPLY, replies))),
        cocotb.start_soon(Source(dut, "entry", shares[1]).send(words(RECEIVER_ENTRY, entries))),
    ]
    for feed in feeds:
        await feed
    await settle(dut, sink)
    expected = twin.process(replies, entries)
    assert np.array_equal(structured(RECEIVER_SIFTED, sink.received), expected)
    # Replies beyond the block's entries give nothing and are counted.
    dut.exhausted.value = 1
    more, _ = traffic(generator("surplus"), 20)
    await Source(dut, "reply").send(words(REPLY, more))
    await settle(dut, sink)
    twin.process(more, entries[:0], exhausted=True)
    assert len(sink.received) == len(expected)
    assert ledger(dut, "resolver") == twin.ledger.live
    live = dict(twin.ledger.live)
    assert live.pop("in") == sum(live.values()) == 420


@cocotb.test()
async def bench_one_reply_a_clock(dut):
    replies, entries = traffic(generator("resolver rate"), 300)
    await begin(dut)
    Sink(dut, "o")
    feed = cocotb.start_soon(Source(dut, "entry").send(words(RECEIVER_ENTRY, entries)))
    began = get_sim_time("step")
    await Source(dut, "reply").send(words(REPLY, replies))
    clocks = (get_sim_time("step") - began) / bench.CLOCK_STEPS
    assert clocks == 300
    await feed


@cocotb.test()
async def bench_reset_in_mid_block(dut):
    replies, entries = traffic(generator("resolver reset"), 200)
    await begin(dut)
    sink = Sink(dut, "o", 0.4)
    for part in (slice(0, 80), slice(80, 200)):
        feeds = [
            cocotb.start_soon(Source(dut, "reply").send(words(REPLY, replies[part]))),
            cocotb.start_soon(Source(dut, "entry").send(words(RECEIVER_ENTRY, entries[part]))),
        ]
        for feed in feeds:
            await feed
        if part.start == 0:
            await bench.reset(dut)
            sink.received.clear()
    await settle(dut, sink)
    twin = Resolver()
    expected = twin.process(replies[80:], entries[80:])
    assert np.array_equal(structured(RECEIVER_SIFTED, sink.received), expected)
    assert ledger(dut, "resolver") == twin.ledger.live


@pytest.mark.parametrize("simulator", bench.simulators())
def test_resolver(simulator):
    from keyrail_gateware.resolver import Resolver as Gateware

    bench.run(Gateware(), simulator, "test_resolver")
