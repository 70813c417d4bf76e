# SPDX-License-Identifier: Apache-2.0
"""Block memory: the gateware against its twin."""

import cocotb
import numpy as np
import pytest
from cocotb.triggers import FallingEdge
from cocotb.utils import get_sim_time

import bench
from bench import Sink, Source, generator, settle, structured, until, words
from keyrail.contract import SENDER_ENTRY
from keyrail.layouts import zeros
from keyrail_sim.models.block_memory import BlockMemory

DEPTH = 64


def entries(rng, count):
    records = zeros(SENDER_ENTRY, count)
    for name in records.dtype.names:
        records[name] = rng.integers(0, 2, count)
    return records


async def begin(dut, on_host):
    dut.on_host.value, dut.rewind.value, dut.wipe.value = on_host, 0, 0
    await bench.start(dut)
    await until(dut, lambda: dut.busy.value == 0)


async def pulse(dut, name):
    getattr(dut, name).value = 1
    await FallingEdge(dut.clk)
    getattr(dut, name).value = 0


@cocotb.test()
@cocotb.parametrize(on_host=[0, 1], shares=[(1.0, 1.0), (0.5, 0.7), (0.9, 0.3)])
async def bench_two_passes(dut, on_host, shares):
    rng = generator("block memory", on_host, shares)
    await begin(dut, on_host)
    spill, out = Sink(dut, "spill", shares[1]), Sink(dut, "o", shares[1])
    for count in (0, 1, 40, DEPTH):
        twin = BlockMemory(SENDER_ENTRY, DEPTH)
        twin.on_host = bool(on_host)
        records = entries(rng, count)
        await Source(dut, "i", shares[0]).send(words(SENDER_ENTRY, records))
        await settle(dut, spill)
        assert np.array_equal(structured(SENDER_ENTRY, spill.received), twin.write(records))
        assert int(dut.count.value) == twin.count == count
        assert bool(dut.full.value) == (twin.room == 0)
        assert dut.done.value == 0
        for _ in range(2):
            out.received.clear()
            await pulse(dut, "rewind")
            twin.rewind()
            feed = words(SENDER_ENTRY, records) if on_host else []
            await Source(dut, "fill", shares[0]).send(feed)
            await until(dut, lambda: dut.done.value == 1)
            await settle(dut, out, quiet=8)
            got = structured(SENDER_ENTRY, out.received)
            assert np.array_equal(got, twin.read(None, records if on_host else None))
            assert twin.done
        await pulse(dut, "wipe")
        assert dut.busy.value == 1
        await until(dut, lambda: dut.busy.value == 0)
        assert int(dut.count.value) == 0
        spill.received.clear()


@cocotb.test()
async def bench_a_full_memory_takes_no_more(dut):
    await begin(dut, 0)
    Sink(dut, "spill")
    records = entries(generator("full"), DEPTH + 5)
    source = Source(dut, "i")
    feed = cocotb.start_soon(source.send(words(SENDER_ENTRY, records)))
    for _ in range(DEPTH + 50):
        await FallingEdge(dut.clk)
    assert source.sent == int(dut.count.value) == DEPTH
    assert dut.full.value == 1
    feed.cancel()


@cocotb.test()
async def bench_wipe_overwrites_every_word(dut):
    await begin(dut, 0)
    out = Sink(dut, "o")
    records = entries(generator("wipe"), DEPTH)
    for name in records.dtype.names:
        records[name] = 1
    await Source(dut, "i").send(words(SENDER_ENTRY, records))
    await pulse(dut, "rewind")
    await until(dut, lambda: len(out.received) > 5)
    await pulse(dut, "wipe")
    await until(dut, lambda: dut.busy.value == 0)
    memory = dut.memory
    assert [int(memory[i].value) for i in range(DEPTH)] == [0] * DEPTH
    # Reset in the middle of a pass: nothing of the former block comes out any more.
    await Source(dut, "i").send(words(SENDER_ENTRY, records[:9]))
    await pulse(dut, "rewind")
    await bench.reset(dut)
    out.received.clear()
    await until(dut, lambda: dut.busy.value == 0)
    await settle(dut, out)
    assert out.received == []


@cocotb.test()
async def bench_one_entry_a_clock(dut):
    await begin(dut, 0)
    out = Sink(dut, "o")
    records = entries(generator("rate"), DEPTH)
    began = get_sim_time("step")
    await Source(dut, "i").send(words(SENDER_ENTRY, records))
    assert (get_sim_time("step") - began) / bench.CLOCK_STEPS == DEPTH
    await pulse(dut, "rewind")
    began = get_sim_time("step")
    await until(dut, lambda: dut.done.value == 1)
    assert (get_sim_time("step") - began) / bench.CLOCK_STEPS == DEPTH + 3
    assert len(out.received) == DEPTH


@pytest.mark.parametrize("simulator", bench.simulators())
def test_block_memory(simulator):
    from keyrail_gateware.block_memory import BlockMemory as Gateware

    bench.run(Gateware(SENDER_ENTRY, DEPTH), simulator, "test_block_memory", "block_memory")
