# SPDX-License-Identifier: Apache-2.0
"""Tallies: the gateware against its twins."""

import cocotb
import numpy as np
import pytest
from cocotb.utils import get_sim_time

import bench
from bench import Sink, Source, generator, ledger, settle, structured, words
from keyrail.contract import RECEIVER_SIFTED, SENDER_SIFTED
from keyrail.layouts import zeros
from keyrail_sim.models.tally import ReceiverTally, SenderTally

SIDES = {
    "sender": (SENDER_SIFTED, SenderTally),
    "receiver": (RECEIVER_SIFTED, ReceiverTally),
}


@cocotb.test()
@cocotb.parametrize(shares=[(1.0, 1.0), (0.5, 0.7), (0.9, 0.3)])
async def bench_random_and_reset(dut, shares):
    side = bench.parameter("side")
    record, model = SIDES[side]
    rng = generator("tally", side, shares)
    await bench.start(dut)
    source, sink = Source(dut, "i", shares[0]), Sink(dut, "o", shares[1])
    for _ in range(2):
        records = zeros(record, 300)
        for name in records.dtype.names:
            records[name] = rng.integers(0, 2, 300)
        twin = model()
        await source.send(words(record, records))
        await settle(dut, sink)
        assert np.array_equal(structured(record, sink.received), twin.process(records))
        assert ledger(dut, f"{side}_tally") == twin.ledger.live
        await bench.reset(dut)
        sink.received.clear()
        assert set(ledger(dut, f"{side}_tally").values()) == {0}


@cocotb.test()
async def bench_one_record_a_clock(dut):
    record, _ = SIDES[bench.parameter("side")]
    await bench.start(dut)
    sink = Sink(dut, "o")
    began = get_sim_time("step")
    await Source(dut, "i").send(words(record, zeros(record, 300)))
    assert (get_sim_time("step") - began) / bench.CLOCK_STEPS == 300
    await settle(dut, sink)
    assert len(sink.received) == 300


@pytest.mark.parametrize("simulator", bench.simulators())
@pytest.mark.parametrize("side", SIDES)
def test_tally(simulator, side):
    from keyrail_gateware import tally

    gateware = {"sender": tally.SenderTally, "receiver": tally.ReceiverTally}[side]
    bench.run(gateware(), simulator, "test_tally", parameters={"side": side})
