# SPDX-License-Identifier: Apache-2.0
"""State memory: the gateware against its twin."""

import cocotb
import numpy as np
import pytest
from cocotb.triggers import FallingEdge
from cocotb.utils import get_sim_time

import bench
from bench import Sink, Source, generator, ledger, settle, structured, until, words
from keyrail.contract import ANNOUNCEMENT, DETECTION, RECALLED, SENDER_ENTRY
from keyrail.layouts import zeros
from keyrail_sim.models.announcer import Announcer
from keyrail_sim.models.state_memory import StateMemory

HORIZON, ORDER, LATENCY = 256, 16, 6


def fed_words(states, present=None):
    """Payloads of words of sixteen states; `present` by word."""
    count = len(states) // 16
    present = np.ones(count, bool) if present is None else present
    return [
        sum(int(s) << 3 * i for i, s in enumerate(states[16 * w : 16 * w + 16])) | int(p) << 48
        for w, p in zip(range(count), present, strict=True)
    ]


def by_slot(present):
    return np.repeat(present, 16)


def announce(slots, first):
    """Announcements of slots as the receiver makes them."""
    detections = zeros(DETECTION, len(slots))
    detections["slot"] = slots
    return Announcer(first, (1 << 48) - 1).process(detections)[0]


def answers(codes, known):
    records = zeros(RECALLED, len(codes))
    for shift, name in enumerate(("basis", "bit", "intensity", "present")):
        records[name] = codes >> shift & 1
    records["known"] = known
    return records


class Recaller:
    """Answers missed slots from a table of codes, late and with pauses."""

    def __init__(self, dut, share, table, first):
        self.missed = Sink(dut, "missed", share)
        self.source = Source(dut, "recalled", share)
        self.table, self.first, self.dut = table, first, dut
        self.given = 0
        cocotb.start_soon(self._run())

    def of(self, slots):
        at = np.asarray(slots, np.int64) - self.first
        # What was sent long ago is past this horizon too.
        return answers(self.table[at], (at >= 400).astype(np.uint8))

    async def _run(self):
        while True:
            while self.given == len(self.missed.received):
                await FallingEdge(self.dut.clk)
            slot = self.missed.received[self.given]
            self.given += 1
            await self.source.send(words(RECALLED, self.of([slot])))


async def begin(dut, first_state, first_slot, recall=0, frame=(0, 0)):
    dut.open.value, dut.full.value, dut.wipe.value = 0, 0, 0
    dut.first_state.value, dut.first_slot.value = first_state, first_slot
    dut.recall.value, dut.stopped.value = recall, 0
    dut.words_log2.value, dut.sync_words.value = frame
    await bench.start(dut)
    await until(dut, lambda: dut.busy.value == 0)
    dut.open.value = 1
    twin = StateMemory(HORIZON)
    twin.first_state, twin.first_slot, twin.recall = first_state, first_slot, bool(recall)
    twin.words_log2, twin.sync_words = frame
    return twin


@cocotb.test()
@cocotb.parametrize(
    shares=[(1.0, 1.0), (0.9, 0.3)],
    first=[1600, (1 << 48) - 16 * 400],
    recall=[0, 1],
)
async def bench_in_turn(dut, shares, first, recall):
    """States, then look-ups, many times: in the ring, left it, ahead, absent, sync."""
    rng = generator("state memory", shares, first, recall)
    twin = await begin(dut, first, first, recall, (3, 1))
    sink = Sink(dut, "entry", shares[1])
    table = rng.integers(0, 16, 16 * 400).astype(np.uint8)
    recaller = Recaller(dut, shares[0], table, first)
    states, lookup = Source(dut, "states", shares[0]), Source(dut, "lookup", shares[0])
    fed, last = first, first
    expected, missed = [], []
    for turn in range(12):
        count = int(rng.integers(0, 24))
        drawn = rng.integers(0, 8, 16 * count).astype(np.uint8)
        present = rng.random(count) < 0.8
        fed += len(drawn)
        low, high = max(last, fed - HORIZON - 200), fed + 3
        slots = np.unique(rng.integers(low, max(low + 1, high), 20))
        announcements = announce(slots, last)
        last = int(slots[-1])
        await states.send(fed_words(drawn, present))
        twin.feed(drawn, by_slot(present))
        dut.stopped.value = twin.stopped = turn == 11
        await lookup.send(words(ANNOUNCEMENT, announcements))
        await settle(dut, sink, quiet=40)
        asked = twin.look_up(announcements)
        missed += asked.tolist()
        twin.answer(recaller.of(asked))
        expected.append(twin.entries())
        assert int(dut.next_slot.value) == twin.next_slot
    assert recaller.missed.received == missed
    assert bool(missed) == bool(recall)
    got = structured(SENDER_ENTRY, sink.received)
    assert np.array_equal(got, np.concatenate(expected))
    assert ledger(dut, "state_memory") == twin.ledger.live
    live = dict(twin.ledger.live)
    assert min(live["expired"] + len(missed), live["absent"], live["out"]) > 0
    assert live.pop("in") == sum(live.values())
    assert dut.working.value == 0


@cocotb.test()
@cocotb.parametrize(shares=[(1.0, 1.0), (0.7, 0.9)], recall=[0, 1])
async def bench_never_answered_wrongly(dut, shares, recall):
    """Both at once, at the ring's very edge: each answer is the state sent, or not present."""
    rng = generator("state memory edge", shares, recall)
    await begin(dut, 0, 0, recall)
    sink = Sink(dut, "entry", 0.9)
    drawn = rng.integers(0, 8, 16 * 640).astype(np.uint8)
    table = drawn | 8
    recaller = Recaller(dut, 0.8, table, 0)
    await Source(dut, "states").send(fed_words(drawn[:HORIZON]))
    slots = np.arange(0, 10_000, 16) + rng.integers(0, 16, 625)
    both = [
        cocotb.start_soon(Source(dut, "states", shares[0]).send(fed_words(drawn[HORIZON:10_016]))),
        cocotb.start_soon(
            Source(dut, "lookup", shares[1]).send(words(ANNOUNCEMENT, announce(slots, 0)))
        ),
    ]
    for each in both:
        await each
    await until(dut, lambda: len(sink.received) == len(slots))
    got = structured(SENDER_ENTRY, sink.received)
    code = got["basis"] | got["bit"] << 1 | got["intensity"] << 2 | got["present"] << 3
    present = got["present"] == 1
    assert np.array_equal(code[present], table[slots[present]])
    assert not code[~present].any()
    live = ledger(dut, "state_memory")
    assert live["out"] == present.sum()
    assert live["expired"] + live["ahead"] == (~present).sum()
    assert present.sum() > 10
    assert recaller.given == len(recaller.missed.received)


@cocotb.test()
async def bench_full_wipe_and_long_gaps(dut):
    rng = generator("state memory full")
    twin = await begin(dut, 0, 0)
    sink = Sink(dut, "entry", 0.5)
    drawn = rng.integers(0, 8, 160).astype(np.uint8)
    present = np.ones(10, bool)
    present[1] = False
    for again in range(2):
        await Source(dut, "states").send(fed_words(drawn, present))
        twin.feed(drawn, by_slot(present))
        for slots, room in (([3, 9, 20], None), ([25, 30], 0), ([40, 1 << 47], None)):
            last = {3: 0, 25: 20, 40: 30}[slots[0]]
            announcements = announce(np.array(slots), last)
            dut.full.value = room == 0
            await Source(dut, "lookup").send(words(ANNOUNCEMENT, announcements))
            await settle(dut, sink, quiet=16)
            got = structured(SENDER_ENTRY, sink.received)
            assert len(twin.look_up(announcements)) == 0
            assert np.array_equal(got, twin.entries(room))
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
            assert all(int(dut.order.memory[i].value) == 0 for i in range(ORDER))
            assert int(dut.entry__payload.value) == 0
            twin.wipe()


@cocotb.test()
async def bench_a_closed_block_takes_no_late_answer(dut):
    """Announcements that still wait when the block closes never reach block memory."""
    rng = generator("state memory late")
    await begin(dut, 0, 0, 1)
    sink, missed = Sink(dut, "entry"), Sink(dut, "missed")
    await Source(dut, "states").send(fed_words(rng.integers(0, 8, 3 * HORIZON)))
    slots = np.array([3, 600, 700])
    await Source(dut, "lookup").send(words(ANNOUNCEMENT, announce(slots, 0)))
    await settle(dut, sink, missed)
    assert missed.received == [3]
    assert sink.received == []  # in the ring, but not before their turn
    dut.open.value = 0
    await FallingEdge(dut.clk)
    dut.recalled__valid.value = 1
    await settle(dut, sink)
    assert sink.received == []
    assert dut.recalled__ready.value == 0


@cocotb.test()
@cocotb.parametrize(recall=[0, 1])
async def bench_one_look_up_a_clock(dut, recall):
    await begin(dut, 0, 0, recall)
    sink = Sink(dut, "entry")
    count = 2 * HORIZON
    await Source(dut, "states").send(fed_words(np.zeros(count, np.uint8)))
    recaller = Sink(dut, "missed")
    answered = Source(dut, "recalled")
    always = words(RECALLED, answers(np.full(count, 9, np.uint8), np.ones(count, np.uint8)))
    cocotb.start_soon(answered.send(always))
    began = get_sim_time("step")
    await Source(dut, "lookup").send(words(ANNOUNCEMENT, announce(np.arange(count), 0)))
    assert (get_sim_time("step") - began) / bench.CLOCK_STEPS == count
    await until(dut, lambda: len(sink.received) == count)
    # Not one clock between the entries, from the first to the last.
    assert (get_sim_time("step") - began) / bench.CLOCK_STEPS <= count + LATENCY + 1
    assert len(recaller.received) == recall * HORIZON


@cocotb.test()
async def bench_latency(dut):
    await begin(dut, 0, 0)
    sink = Sink(dut, "entry")
    await Source(dut, "states").send(fed_words(np.zeros(HORIZON, np.uint8)))
    await Source(dut, "lookup").send(words(ANNOUNCEMENT, announce(np.array([5]), 0)))
    began = get_sim_time("step")
    await until(dut, lambda: dut.entry__valid.value == 1)
    assert (get_sim_time("step") - began) / bench.CLOCK_STEPS == LATENCY - 1
    await settle(dut, sink)


@pytest.mark.parametrize("simulator", bench.simulators())
def test_state_memory(simulator):
    from keyrail_gateware import state_memory
    from keyrail_gateware.state_memory import StateMemory as Gateware

    assert state_memory.LATENCY == LATENCY

    bench.run(Gateware(HORIZON, ORDER), simulator, "test_state_memory", "state_memory")
