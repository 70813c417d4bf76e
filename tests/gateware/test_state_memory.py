# SPDX-License-Identifier: Apache-2.0
"""State memory: the gateware against its twin."""

import cocotb
import numpy as np
import pytest
from cocotb.triggers import FallingEdge
from cocotb.utils import get_sim_time

import bench
from bench import Sink, Source, generator, ledger, settle, structured, until, words
from keyrail.contract import ANNOUNCEMENT, DETECTION, SENDER_ENTRY, STATE_WORD
from keyrail.layouts import zeros
from keyrail_sim.models.announcer import Announcer
from keyrail_sim.models.state_memory import StateMemory

HORIZON = 256


def state_words(states):
    records = zeros(STATE_WORD, len(states) // 16)
    for i in range(16):
        records[f"state_{i}"] = states[i::16]
    return records


def announce(slots, first):
    """Announcements of slots as the receiver makes them."""
    detections = zeros(DETECTION, len(slots))
    detections["slot"] = slots
    return Announcer(first, (1 << 48) - 1).process(detections)[0]


async def begin(dut, first_state, first_slot):
    dut.open.value, dut.full.value, dut.wipe.value = 0, 0, 0
    dut.first_state.value, dut.first_slot.value = first_state, first_slot
    await bench.start(dut)
    await until(dut, lambda: dut.busy.value == 0)
    dut.open.value = 1
    twin = StateMemory(HORIZON)
    twin.first_state, twin.first_slot = first_state, first_slot
    return twin


@cocotb.test()
@cocotb.parametrize(
    shares=[(1.0, 1.0), (0.5, 0.7), (0.9, 0.3)], first=[0, 1600, (1 << 48) - 16 * 400]
)
async def bench_in_turn(dut, shares, first):
    """States, then look-ups, many times: expired, ahead, absent and known ones."""
    rng = generator("state memory", shares, first)
    twin = await begin(dut, first, first)
    sink = Sink(dut, "entry", shares[1])
    states, lookup = Source(dut, "states", shares[0]), Source(dut, "lookup", shares[0])
    fed, last = first, first
    expected = []
    for _ in range(12):
        drawn = rng.integers(0, 16, 16 * int(rng.integers(0, 24))).astype(np.uint8)
        fed += len(drawn)
        low, high = max(last, fed - HORIZON - 40), fed + 3
        slots = np.unique(rng.integers(low, max(low + 1, high), 20))
        announcements = announce(slots, last)
        last = int(slots[-1])
        await states.send(words(STATE_WORD, state_words(drawn)))
        twin.feed(state_words(drawn))
        await lookup.send(words(ANNOUNCEMENT, announcements))
        await settle(dut, sink, quiet=16)
        expected.append(twin.look_up(announcements))
        assert int(dut.next_slot.value) == twin.next_slot
    got = structured(SENDER_ENTRY, sink.received)
    assert np.array_equal(got, np.concatenate(expected))
    assert ledger(dut, "state_memory") == twin.ledger.live
    live = dict(twin.ledger.live)
    assert min(live["expired"], live["absent"], live["out"]) > 0
    assert live.pop("in") == sum(live.values())


@cocotb.test()
@cocotb.parametrize(shares=[(1.0, 1.0), (0.7, 0.9)])
async def bench_never_answered_wrongly(dut, shares):
    """Both at once, at the ring's very edge: each answer is the state sent, or not present."""
    rng = generator("state memory edge", shares)
    await begin(dut, 0, 0)
    sink = Sink(dut, "entry")
    drawn = rng.integers(8, 16, 16 * 1_000).astype(np.uint8)
    await Source(dut, "states").send(words(STATE_WORD, state_words(drawn[:HORIZON])))
    slots = np.arange(0, 10_000, 16)
    both = [
        cocotb.start_soon(
            Source(dut, "states", shares[0]).send(
                words(STATE_WORD, state_words(drawn[HORIZON:10_016]))
            )
        ),
        cocotb.start_soon(
            Source(dut, "lookup", shares[1]).send(words(ANNOUNCEMENT, announce(slots, 0)))
        ),
    ]
    for each in both:
        await each
    await settle(dut, sink)
    got = structured(SENDER_ENTRY, sink.received)
    assert len(got) == len(slots)
    code = got["basis"] | got["bit"] << 1 | got["intensity"] << 2 | got["present"] << 3
    present = got["present"] == 1
    assert np.array_equal(code[present], drawn[slots[present]])
    assert not code[~present].any()
    live = ledger(dut, "state_memory")
    assert live["out"] == present.sum()
    assert live["expired"] + live["ahead"] == (~present).sum()
    assert present.sum() > 10


@cocotb.test()
async def bench_full_wipe_and_long_gaps(dut):
    rng = generator("state memory full")
    twin = await begin(dut, 0, 0)
    sink = Sink(dut, "entry", 0.5)
    drawn = rng.integers(0, 16, 160).astype(np.uint8)
    for again in range(2):
        await Source(dut, "states").send(words(STATE_WORD, state_words(drawn)))
        twin.feed(state_words(drawn))
        for slots, room in (([3, 9, 20], None), ([25, 30], 0), ([40, 1 << 47], None)):
            last = {3: 0, 25: 20, 40: 30}[slots[0]]
            announcements = announce(np.array(slots), last)
            dut.full.value = room == 0
            await Source(dut, "lookup").send(words(ANNOUNCEMENT, announcements))
            await settle(dut, sink, quiet=16)
            got = structured(SENDER_ENTRY, sink.received)
            assert np.array_equal(got, twin.look_up(announcements, room))
            sink.received.clear()
        assert ledger(dut, "state_memory") == twin.ledger.live
        assert twin.ledger.live["memory_full"] == 2
        if again == 0:
            # Wipe in the middle of an announcement of several parts.
            half = announce(np.array([1 << 40]), 0)[:1]
            await Source(dut, "lookup").send(words(ANNOUNCEMENT, half))
            dut.wipe.value = 1
            await FallingEdge(dut.clk)
            dut.wipe.value = 0
            assert dut.busy.value == 1
            assert dut.states__ready.value == 0
            await until(dut, lambda: dut.busy.value == 0)
            memory = dut.memory
            assert all(int(memory[i].value) == 0 for i in range(HORIZON // 16))
            twin.wipe()


@cocotb.test()
async def bench_one_look_up_a_clock(dut):
    await begin(dut, 0, 0)
    sink = Sink(dut, "entry")
    await Source(dut, "states").send([0] * (HORIZON // 16))
    began = get_sim_time("step")
    announcements = announce(np.arange(HORIZON), 0)
    await Source(dut, "lookup").send(words(ANNOUNCEMENT, announcements))
    assert (get_sim_time("step") - began) / bench.CLOCK_STEPS == HORIZON
    await settle(dut, sink)
    assert len(sink.received) == HORIZON


@pytest.mark.parametrize("simulator", bench.simulators())
def test_state_memory(simulator):
    from keyrail_gateware.state_memory import StateMemory as Gateware

    bench.run(Gateware(HORIZON), simulator, "test_state_memory", "state_memory")
