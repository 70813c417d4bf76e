# SPDX-License-Identifier: Apache-2.0
"""The FIFO that can be overwritten: the gateware against its twin."""

import cocotb
import pytest
from cocotb.triggers import FallingEdge
from cocotb.utils import get_sim_time

import bench
from bench import Sink, Source, generator, until
from keyrail_sim.models.secret_fifo import SecretFifo

WIDTH, DEPTH = 9, 8


async def begin(dut):
    dut.wipe.value = 0
    await bench.start(dut)
    await until(dut, lambda: dut.busy.value == 0)


@cocotb.test()
@cocotb.parametrize(shares=[(1.0, 1.0), (0.9, 0.3), (0.3, 0.9)])
async def bench_order_and_rate(dut, shares):
    rng = generator("secret fifo", shares)
    await begin(dut)
    sink = Sink(dut, "o", shares[1])
    records = rng.integers(0, 1 << WIDTH, 200).tolist()
    began = get_sim_time("step")
    await Source(dut, "i", shares[0]).send(records)
    if shares == (1.0, 1.0):
        assert (get_sim_time("step") - began) / bench.CLOCK_STEPS == len(records)
    await until(dut, lambda: len(sink.received) == len(records))
    twin = SecretFifo(len(records))
    assert all(twin.push(record) for record in records)
    assert sink.received == [twin.pop() for _ in records]


@cocotb.test()
async def bench_full_and_wipe(dut):
    await begin(dut)
    dut.o__ready.value = 0
    twin, taken = SecretFifo(DEPTH), 0
    dut.i__valid.value, dut.i__payload.value = 1, 0x1FF
    for _ in range(3 * DEPTH):
        taken += int(dut.i__ready.value)
        await FallingEdge(dut.clk)
    dut.i__valid.value = 0
    while twin.push(0x1FF):
        taken -= 1
    assert taken == 0
    dut.wipe.value = 1
    await FallingEdge(dut.clk)
    dut.wipe.value = 0
    twin.wipe()
    assert (dut.busy.value, dut.o__valid.value, dut.i__ready.value) == (1, 0, 0)
    await until(dut, lambda: dut.busy.value == 0)
    assert all(int(dut.memory[i].value) == 0 for i in range(DEPTH))
    assert int(dut.o__payload.value) == 0
    sink = Sink(dut, "o")
    await Source(dut, "i").send([5, 6])
    await until(dut, lambda: len(sink.received) == 2)
    assert sink.received == [5, 6]


@pytest.mark.parametrize("simulator", bench.simulators())
def test_secret_fifo(simulator):
    from keyrail_gateware.secret_fifo import SecretFifo as Gateware

    bench.run(Gateware(WIDTH, DEPTH), simulator, "test_secret_fifo", "secret_fifo")


def test_odd_depths_are_refused():
    from keyrail_gateware.secret_fifo import SecretFifo as Gateware

    with pytest.raises(ValueError, match="powers of two"):
        Gateware(4, 6)
