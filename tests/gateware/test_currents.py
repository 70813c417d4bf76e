# SPDX-License-Identifier: Apache-2.0
"""Currents: the gateware against its twin."""

import cocotb
import numpy as np
import pytest
from cocotb.triggers import ClockCycles, FallingEdge

import bench
from bench import Source, generator, ledger, words
from keyrail.contract import CURRENT_SAMPLE
from keyrail.layouts import Structured, zeros
from keyrail_sim.models.currents import Currents

LIMITS = ((0, 0xFFFF), (100, 200), (0, 0), (0xFFFF, 0xFFFF), (300, 100), (5, 5), (1, 9), (0, 7))


def samples(rng: np.random.Generator, count: int) -> Structured:
    """Samples at the limits, beside them, and anywhere; some of channels that do not exist."""
    found = zeros(CURRENT_SAMPLE, count)
    found["time"] = np.cumsum(rng.integers(0, 1 << 30, count)) & ((1 << 48) - 1)
    found["channel"] = rng.choice([*range(8), 8, 63], count)
    edges = np.array(LIMITS)[found["channel"] % 8, rng.integers(0, 2, count)]
    beside = (edges + rng.integers(-1, 2, count)) & 0xFFFF
    found["sample"] = np.where(rng.random(count) < 0.8, beside, rng.integers(0, 1 << 16, count))
    return found


@cocotb.test()
@cocotb.parametrize(share=[1.0, 0.4])
async def bench_random(dut, share):
    dut.limits.value = sum((a | b << 16) << (32 * c) for c, (a, b) in enumerate(LIMITS))
    await bench.start(dut)
    twin = Currents(LIMITS)
    rng = generator("currents", share)
    for count in (1, 5, 400):
        sent = samples(rng, count)
        await Source(dut, "i", share).send(words(CURRENT_SAMPLE, sent))
        assert dut.i__ready.value == 1
        await ClockCycles(dut.clk, 6)
        await FallingEdge(dut.clk)
        twin.process(sent)
        assert int(dut.alarms.value) == twin.alarms
        assert ledger(dut, "currents") == twin.ledger.live
    live = twin.ledger.live
    assert live["in"] == sum(live.values()) - live["in"]
    assert min(live.values()) > 0
    await bench.reset(dut)
    assert int(dut.alarms.value) == 0


@pytest.mark.parametrize("simulator", bench.simulators())
def test_currents(simulator):
    from keyrail_gateware.currents import Currents as Gateware

    bench.run(Gateware(), simulator, "test_currents")


def test_twin_follows_the_rule():
    sent = samples(generator("currents rule"), 500)
    twin = Currents(LIMITS)
    twin.process(sent)
    alarms = {
        channel
        for _, channel, sample in sent.tolist()
        if channel < 8 and not LIMITS[channel][0] <= sample <= LIMITS[channel][1]
    }
    assert twin.alarms == sum(1 << channel for channel in alarms)
