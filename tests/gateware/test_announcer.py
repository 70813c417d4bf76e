# SPDX-License-Identifier: Apache-2.0
"""Announcer: the gateware against its twin."""

import cocotb
import numpy as np
import pytest
from cocotb.utils import get_sim_time

import bench
from bench import Sink, Source, generator, ledger, settle, structured, until, words
from keyrail.contract import ANNOUNCEMENT, DETECTION, RECEIVER_ENTRY, TagKind
from keyrail.layouts import zeros
from keyrail.station import announced_slots
from keyrail_sim.models.announcer import Announcer

KINDS = (TagKind.CLICK, TagKind.TIME, TagKind.FRAME, TagKind.LOSS)


def traffic(rng, count, start, spread):
    """Detections in rising slots, with markers, and gaps of every size."""
    detections = zeros(DETECTION, count)
    steps = rng.integers(1, spread, count)
    steps[:: count // 7] += 1 << rng.integers(15, 44, len(steps[:: count // 7]))
    detections["slot"] = start + np.cumsum(steps)
    detections["kind"] = rng.choice(KINDS, count, p=(0.8, 0.1, 0.05, 0.05))
    for name in ("basis", "bit"):
        detections[name] = rng.integers(0, 2, count)
    return detections


async def begin(dut, first, last):
    dut.open.value, dut.full.value = 1, 0
    dut.first_slot.value, dut.last_slot.value = first, last
    await bench.start(dut)


@cocotb.test()
@cocotb.parametrize(shares=[(1.0, 1.0, 1.0), (0.5, 0.7, 0.6), (0.9, 0.3, 0.2)], spread=[3, 60_000])
async def bench_random(dut, shares, spread):
    detections = traffic(generator("announcer", shares, spread), 300, 1_000, spread)
    first, last = int(detections["slot"][20]), int(detections["slot"][280])
    await begin(dut, first, last)
    sinks = Sink(dut, "o", shares[1]), Sink(dut, "entry", shares[2])
    twin = Announcer(first, last)
    await Source(dut, "i", shares[0]).send(words(DETECTION, detections))
    await settle(dut, *sinks)
    announcements, entries = twin.process(detections)
    assert np.array_equal(structured(ANNOUNCEMENT, sinks[0].received), announcements)
    assert np.array_equal(structured(RECEIVER_ENTRY, sinks[1].received), entries)
    assert ledger(dut, "announcer") == twin.ledger.live
    assert ledger(dut, "announcer", "at_frame") == twin.ledger.at_frame
    live = dict(twin.ledger.live)
    assert live.pop("in") == sum(live.values())
    assert bool(dut.past_end.value) == twin.past_end
    # What the sender reads out of the announcements are the slots of the block's detections.
    chosen = (detections["kind"] == 0) & (detections["slot"] >= first)
    chosen &= detections["slot"] <= last
    assert np.array_equal(announced_slots(announcements, first), detections["slot"][chosen])


@cocotb.test()
async def bench_closed_full_and_reset(dut):
    rng = generator("announcer full")
    await begin(dut, 0, (1 << 48) - 1)
    sinks = Sink(dut, "o", 0.5), Sink(dut, "entry", 0.5)
    twin = Announcer(0, (1 << 48) - 1)
    start = 0
    for is_open, room in ((1, None), (0, None), (1, 0), (1, None)):
        dut.open.value, dut.full.value = is_open, room == 0
        detections = traffic(rng, 60, start, 5)
        start = int(detections["slot"][-1])
        await Source(dut, "i").send(words(DETECTION, detections))
        await settle(dut, *sinks)
        announcements, entries = twin.process(detections, bool(is_open), room)
        assert np.array_equal(structured(ANNOUNCEMENT, sinks[0].received), announcements)
        assert np.array_equal(structured(RECEIVER_ENTRY, sinks[1].received), entries)
        assert ledger(dut, "announcer") == twin.ledger.live
        for sink in sinks:
            sink.received.clear()
    # In the middle of a slot of four parts.
    detections = zeros(DETECTION, 1)
    detections["slot"] = start + (1 << 46)
    feed = cocotb.start_soon(Source(dut, "i").send(words(DETECTION, detections)))
    await until(dut, lambda: len(sinks[0].received) == 2)
    feed.cancel()
    dut.i__valid.value = 0
    await bench.reset(dut)
    for sink in sinks:
        sink.received.clear()
    detections["slot"] = 5
    await Source(dut, "i").send(words(DETECTION, detections))
    await settle(dut, *sinks)
    assert structured(ANNOUNCEMENT, sinks[0].received)["difference"].tolist() == [5]


@cocotb.test()
async def bench_one_detection_a_clock(dut):
    detections = zeros(DETECTION, 300)
    detections["slot"] = np.arange(300) * 32_767
    await begin(dut, 0, (1 << 48) - 1)
    sinks = Sink(dut, "o"), Sink(dut, "entry")
    began = get_sim_time("step")
    await Source(dut, "i").send(words(DETECTION, detections))
    assert (get_sim_time("step") - began) / bench.CLOCK_STEPS == 300
    await settle(dut, *sinks)
    assert len(sinks[0].received) == len(sinks[1].received) == 300


@pytest.mark.parametrize("simulator", bench.simulators())
def test_announcer(simulator):
    from keyrail_gateware.announcer import Announcer as Gateware

    bench.run(Gateware(), simulator, "test_announcer")
