# SPDX-License-Identifier: Apache-2.0
"""Sifter: the gateware against its twin."""

import cocotb
import numpy as np
import pytest
from cocotb.utils import get_sim_time

import bench
from bench import Sink, Source, generator, ledger, settle, structured, words
from keyrail.contract import BASIS, REPLY, SENDER_ENTRY, SENDER_SIFTED
from keyrail.layouts import zeros
from keyrail_sim.models.sifter import Sifter


def traffic(rng, count):
    """Random bases and entries."""
    bases, entries = zeros(BASIS, count), zeros(SENDER_ENTRY, count)
    for records in (bases, entries):
        for name in records.dtype.names:
            records[name] = rng.integers(0, 2, count)
    return bases, entries


async def begin(dut):
    dut.exhausted.value = 0
    await bench.start(dut)


@cocotb.test()
@cocotb.parametrize(shares=[(1.0, 1.0, 1.0), (0.5, 0.7, 0.6), (0.9, 0.3, 0.2)])
async def bench_random(dut, shares):
    bases, entries = traffic(generator("sifter", shares), 400)
    await begin(dut)
    sink, twin = Sink(dut, "sifted", shares[2]), Sifter()
    answers = Sink(dut, "reply", shares[1])
    feeds = [
        cocotb.start_soon(Source(dut, "basis", shares[0]).send(words(BASIS, bases))),
        cocotb.start_soon(Source(dut, "entry", shares[1]).send(words(SENDER_ENTRY, entries))),
    ]
    for feed in feeds:
        await feed
    await settle(dut, sink)
    replies, expected = twin.process(bases, entries)
    assert np.array_equal(structured(SENDER_SIFTED, sink.received), expected)
    assert np.array_equal(structured(REPLY, answers.received), replies)
    # A bit of the key basis never leaves, whatever comes in.
    assert not (replies["bit"] & (entries["basis"] == 0)).any()
    # Bases beyond the block's entries are answered with drop, and counted.
    dut.exhausted.value = 1
    more, _ = traffic(generator("surplus"), 20)
    await Source(dut, "basis").send(words(BASIS, more))
    await settle(dut, sink)
    dropped, _ = twin.process(more, entries[:0], exhausted=True)
    await settle(dut, answers)
    assert np.array_equal(structured(REPLY, answers.received[400:]), dropped)
    assert not dropped["keep"].any()
    assert len(sink.received) == len(expected)
    assert ledger(dut, "sifter") == twin.ledger.live
    live = dict(twin.ledger.live)
    assert live.pop("in") == sum(live.values()) == 420


@cocotb.test()
async def bench_one_basis_a_clock(dut):
    bases, entries = traffic(generator("sifter rate"), 300)
    await begin(dut)
    Sink(dut, "sifted")
    Sink(dut, "reply")
    feed = cocotb.start_soon(Source(dut, "entry").send(words(SENDER_ENTRY, entries)))
    began = get_sim_time("step")
    await Source(dut, "basis").send(words(BASIS, bases))
    clocks = (get_sim_time("step") - began) / bench.CLOCK_STEPS
    assert clocks == 300
    await feed


@cocotb.test()
async def bench_reset_in_mid_block(dut):
    bases, entries = traffic(generator("sifter reset"), 200)
    await begin(dut)
    sink, answers = Sink(dut, "sifted", 0.4), Sink(dut, "reply", 0.6)
    for part in (slice(0, 80), slice(80, 200)):
        feeds = [
            cocotb.start_soon(Source(dut, "basis").send(words(BASIS, bases[part]))),
            cocotb.start_soon(Source(dut, "entry").send(words(SENDER_ENTRY, entries[part]))),
        ]
        for feed in feeds:
            await feed
        if part.start == 0:
            await bench.reset(dut)
            sink.received.clear()
            answers.received.clear()
    await settle(dut, sink, answers)
    twin = Sifter()
    replies, expected = twin.process(bases[80:], entries[80:])
    assert np.array_equal(structured(SENDER_SIFTED, sink.received), expected)
    assert np.array_equal(structured(REPLY, answers.received), replies)
    assert ledger(dut, "sifter") == twin.ledger.live


@pytest.mark.parametrize("simulator", bench.simulators())
def test_sifter(simulator):
    from keyrail_gateware.sifter import Sifter as Gateware

    bench.run(Gateware(), simulator, "test_sifter")
