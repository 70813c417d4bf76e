# SPDX-License-Identifier: Apache-2.0
"""Tag FIFO: the gateware against its twin, and the loss ledger against what went in."""

import cocotb
import numpy as np
import pytest
from cocotb.triggers import FallingEdge, ReadOnly

import bench
import formal
from bench import generator, ledger, structured, words
from keyrail.contract import LOSS, TAG, TIME_BITS, LossMark, TagKind
from keyrail.layouts import Structured, zeros
from keyrail_sim.models.tag_fifo import Clock, TagFifo

DEPTH, RESERVE, LEDGER_DEPTH = 32, 4, 4
WRAP = 1 << TIME_BITS


def traffic(rng: np.random.Generator, count: int, start: int, clicks: float) -> Structured:
    """Records in time order, over the wrap of the time if `start` is near it."""
    tags = zeros(TAG, count)
    tags["time"] = (start + np.cumsum(rng.integers(0, 20_000, count))) % WRAP
    rest = (1 - clicks) / 3
    kinds = (TagKind.CLICK, TagKind.TIME, TagKind.FRAME, TagKind.LOSS)
    tags["kind"] = rng.choice(kinds, count, p=(clicks, rest, rest, rest))
    tags["channel"] = rng.integers(0, 8, count) * (tags["kind"] == TagKind.CLICK)
    return tags


def check_ledger(tags: Structured, out: Structured, losses: Structured, refused: int) -> None:
    """What came out is what went in but for what lies inside the losses; all is counted."""
    times = out["time"].astype(np.int64)
    steps = np.diff(times) % WRAP
    assert (steps < WRAP >> 1).all(), "out of order"
    begins = out[(out["kind"] == TagKind.LOSS) & (out["channel"] == LossMark.BEGIN)]
    ends = out[(out["kind"] == TagKind.LOSS) & (out["channel"] == LossMark.END)]
    assert np.array_equal(losses["begin"], begins["time"])
    assert np.array_equal(losses["end"], ends["time"])
    sent = tags["kind"] == TagKind.CLICK
    left = out["kind"] == TagKind.CLICK
    assert int(sent.sum()) + refused == int(left.sum()) + int(losses["missed"].sum())
    # Between begin and end of a loss no click leaves.
    depth = np.cumsum(
        (out["kind"] == TagKind.LOSS)
        * np.select([out["channel"] == m for m in (1, 2)], [1, -1], 0).astype(np.int64)
    )
    assert set(np.unique(depth)) <= {0, 1}
    assert not (left & (depth == 1)).any()


async def drive(dut, twin, rng, tags, offer, sink, ledger_sink, refuse=0.0):
    """Both through the same clocks until all is taken and the FIFO is empty."""
    payloads = words(TAG, tags)
    got, losses = [], []
    index, quiet = 0, 0
    offered = False
    refused = 0
    while quiet < 8:
        offered = index < len(tags) and (offered or rng.random() < offer)
        ready, kept = bool(rng.random() < sink), bool(rng.random() < ledger_sink)
        drops = int(rng.integers(1, 11)) if rng.random() < refuse and index < len(tags) else 0
        # Refused in front means later than all that has come out of the merge so far.
        until = int(tags["time"][min(index + 5, len(tags) - 1)])
        refused += drops
        dut.i__valid.value = int(offered)
        dut.i__payload.value = payloads[index] if offered else 0
        dut.o__ready.value, dut.losses__ready.value = int(ready), int(kept)
        dut.refused.value, dut.until.value = drops, until
        await ReadOnly()
        assert int(dut.level.value) == twin.queue.level
        assert bool(dut.i__ready.value) == twin.ready
        if dut.o__valid.value and ready:
            got.append(int(dut.o__payload.value))
        if dut.losses__valid.value and kept:
            losses.append(int(dut.losses__payload.value))
        record = tags[index] if offered else None
        offer_now = (
            (int(record["time"]), int(record["channel"]), int(record["kind"]))
            if record is not None
            else None
        )
        if twin.clock(Clock(offer_now, ready, kept, drops, until)):
            index, offered = index + 1, False
        idle = index == len(tags) and twin.queue.level == 0 and twin.kept.level == 0
        quiet = quiet + 1 if idle and not twin.losing else 0
        await FallingEdge(dut.clk)
    out, ledger_records = twin.records()
    assert np.array_equal(structured(TAG, got), out)
    assert np.array_equal(structured(LOSS, losses), ledger_records)
    assert ledger(dut, "tag_fifo") == twin.ledger.live
    assert ledger(dut, "tag_fifo", "at_frame") == twin.ledger.at_frame
    counts = twin.ledger.live
    assert counts["in"] == counts["out"] + counts["missed"]
    assert counts["refused"] == refused
    assert counts["losses"] == len(ledger_records)
    assert int(ledger_records["missed"].sum()) == counts["missed"] + refused
    if counts["markers_missed"] == 0:
        frames = twin.ledger.at_frame
        assert frames["in"] == frames["out"] + frames["missed"]
    check_ledger(tags, out, ledger_records, refused)
    return out, ledger_records


async def flush(dut) -> None:
    dut.i__valid.value = dut.refused.value = 0
    dut.flush.value = 1
    await FallingEdge(dut.clk)
    dut.flush.value = 0
    for _ in range(2 * DEPTH + 16):
        await ReadOnly()
        assert not dut.o__valid.value
        if not dut.busy.value:
            break
        assert not dut.i__ready.value
        await FallingEdge(dut.clk)
    assert not dut.busy.value
    assert int(dut.level.value) == 0
    await FallingEdge(dut.clk)


@cocotb.test()
@cocotb.parametrize(
    case=[
        # offer, sink, sink of the ledger, share of refused clocks, real time, clicks
        (1.0, 1.0, 1.0, 0.0, True, 0.9),
        (1.0, 0.12, 1.0, 0.0, True, 0.95),
        (0.6, 0.3, 0.01, 0.0, True, 0.9),
        (0.9, 0.02, 1.0, 0.0, True, 0.5),
        (0.8, 0.7, 0.5, 0.02, True, 0.85),
        (1.0, 0.2, 1.0, 0.0, False, 0.9),
    ]
)
async def bench_random(dut, case):
    offer, sink, ledger_sink, refuse, real_time, clicks = case
    rng = generator("tag_fifo", case)
    await bench.start(dut)
    dut.real_time.value = int(real_time)
    for count in (40, 400):
        await flush(dut)
        twin = TagFifo(DEPTH, RESERVE, LEDGER_DEPTH, real_time)
        tags = traffic(rng, count, int(rng.integers(0, WRAP)) if count == 40 else -(10**6), clicks)
        await drive(dut, twin, rng, tags, offer, sink, ledger_sink, refuse)
        if count == 400:
            assert (twin.ledger.live["losses"] > 0) == (real_time and case[1] < 1)


@cocotb.test()
async def bench_full_rate(dut):
    """A record a clock, 3 clocks after it came."""
    rng = generator("tag_fifo rate")
    await bench.start(dut)
    dut.real_time.value = 1
    dut.o__ready.value = 1
    tags = traffic(rng, 200, 0, 0.9)
    got = []
    for clock, payload in enumerate([*words(TAG, tags), *[None] * 3]):
        dut.i__valid.value = int(payload is not None)
        dut.i__payload.value = payload or 0
        await ReadOnly()
        assert dut.i__ready.value == 1
        if dut.o__valid.value:
            got.append(int(dut.o__payload.value))
        assert len(got) == max(0, clock - 2)
        await FallingEdge(dut.clk)
    assert np.array_equal(structured(TAG, got), tags)


@cocotb.test()
async def bench_flush_in_a_loss(dut):
    rng = generator("tag_fifo flush")
    await bench.start(dut)
    dut.real_time.value = 1
    dut.o__ready.value = 0
    for payload in words(TAG, traffic(rng, 3 * DEPTH, 99, 0.95)):
        dut.i__valid.value, dut.i__payload.value = 1, payload
        await FallingEdge(dut.clk)
    assert ledger(dut, "tag_fifo")["missed"] > 0
    await flush(dut)
    twin = TagFifo(DEPTH, RESERVE, LEDGER_DEPTH)
    tags = traffic(rng, 300, WRAP - 10**6, 0.9)
    await drive(dut, twin, rng, tags, 1.0, 0.3, 1.0)


@pytest.mark.parametrize("simulator", bench.simulators())
def test_tag_fifo(simulator):
    from keyrail_gateware.tag_fifo import TagFifo as Gateware

    bench.run(Gateware(DEPTH, RESERVE, LEDGER_DEPTH), simulator, "test_tag_fifo", "tag_fifo")


def test_sizes_that_cannot_be_are_refused():
    from keyrail_gateware.tag_fifo import TagFifo as Gateware

    for depth, reserve in ((48, 4), (32, 2), (32, 17)):
        with pytest.raises(ValueError, match="allowed are a power of two"):
            Gateware(depth, reserve)


def test_twin_loses_one_click_at_the_very_edge():
    """Depth 8, reserve 3: five clicks have room, the sixth begins a loss."""
    twin = TagFifo(8, 3)
    for index in range(7):
        assert twin.clock(Clock((100 * index, 1, 0), False))
    out, losses = twin.run([Clock(None, True)] * 20)
    assert out["time"].tolist() == [0, 100, 200, 300, 400, 500, 600]
    assert out["kind"].tolist() == [0] * 5 + [TagKind.LOSS] * 2
    assert out["channel"].tolist() == [1] * 5 + [LossMark.BEGIN, LossMark.END]
    assert losses.tolist() == [(500, 600, 2)]


def test_ledger_is_proven():
    """For any traffic: every click is stored or counted as missed, and no write finds it full."""
    from keyrail_gateware.tag_fifo import TagFifo as Gateware

    formal.prove(Gateware(8, 3, 2), depth=2)
