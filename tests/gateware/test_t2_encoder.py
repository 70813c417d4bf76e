# SPDX-License-Identifier: Apache-2.0
"""T2 encoder: the gateware against its twin, the twin against the definition of T2."""

import cocotb
import numpy as np
import pytest

import bench
from bench import Sink, Source, generator, ledger, settle, structured, words
from keyrail.contract import T2, TAG, LossMark, TagKind
from keyrail.layouts import Structured, zeros
from keyrail_sim.models.t2_encoder import T2Encoder

TIME_BITS = 36
WRAP = 1 << TIME_BITS
T2_BITS = 25
KINDS = (TagKind.CLICK, TagKind.TIME, TagKind.FRAME, TagKind.LOSS)


def traffic(rng: np.random.Generator, count: int, start: int, longest: int) -> Structured:
    """Records with gaps of every length, over many wraps of the time, on the wraps of T2 too."""
    tags = zeros(TAG, count)
    gaps = (2 ** rng.uniform(0, longest, count)).astype(np.int64) - 1
    times = start + np.cumsum(gaps)
    edge = rng.random(count) < 0.2
    times = np.where(edge, (times >> T2_BITS << T2_BITS) + rng.integers(-1, 2, count), times)
    tags["time"] = np.maximum.accumulate(times) % WRAP
    tags["kind"] = rng.choice(KINDS, count, p=(0.7, 0.1, 0.1, 0.1))
    loss = rng.integers(0, 3, count)
    channel = np.where(tags["kind"] == TagKind.LOSS, loss, rng.integers(0, 64, count))
    tags["channel"] = channel * np.isin(tags["kind"], (TagKind.CLICK, TagKind.LOSS))
    return tags


def pairs(payloads: list[int]) -> Structured:
    """Outputs of the encoder, one record after the other."""
    mask = (1 << 32) - 1
    records = []
    for payload in payloads:
        records.append(payload & mask)
        if payload >> 64:
            records.append(payload >> 32 & mask)
    return structured(T2, records)


def check(dut, twin: T2Encoder) -> None:
    assert ledger(dut, "t2_encoder") == twin.ledger.live
    assert ledger(dut, "t2_encoder", "at_frame") == twin.ledger.at_frame
    counts = twin.ledger.live
    assert counts["in"] == counts["out"] + counts["out_of_order"]


@cocotb.test()
@cocotb.parametrize(shares=[(1.0, 1.0), (0.6, 0.7)])
async def bench_random(dut, shares):
    rng = generator("t2", shares)
    await bench.start(dut)
    source, sink = Source(dut, "i", shares[0]), Sink(dut, "o", shares[1])
    for disorder, longest in ((False, 28), (False, 34), (True, 32)):
        await bench.reset(dut)
        sink.received.clear()
        twin = T2Encoder(TIME_BITS)
        expected = []
        start = int(rng.integers(0, WRAP))
        for count in (60, 150):
            tags = traffic(rng, count, start, longest)
            start = int(tags["time"][-1])
            if disorder:
                some = rng.random(count) < 0.1
                back = rng.integers(0, WRAP >> 1, count) * some
                tags["time"] = (tags["time"].astype(np.int64) - back) % WRAP
            await source.send(words(TAG, tags))
            await settle(dut, sink)
            expected.append(twin.process(tags))
        assert np.array_equal(pairs(sink.received), np.concatenate(expected))
        check(dut, twin)
        assert (twin.ledger.live["out_of_order"] > 0) or not disorder


@cocotb.test()
async def bench_full_rate(dut):
    """A tag a clock without a bubble, each with an overflow record before it."""
    rng = generator("t2 rate")
    await bench.start(dut)
    count = 200
    tags = zeros(TAG, count)
    tags["time"] = np.cumsum(rng.integers(1, 127 << T2_BITS, count)) % WRAP
    tags["channel"] = rng.integers(0, 8, count)
    got = await bench.full_rate(dut, words(TAG, tags), 4)
    assert len(got) == count
    assert np.array_equal(pairs(got), T2Encoder(TIME_BITS).process(tags))


@cocotb.test()
async def bench_reset_in_mid_frame(dut):
    rng = generator("t2 reset")
    before, tags = traffic(rng, 50, 0, 33), traffic(rng, 100, 0, 33)
    got = await bench.reset_in_mid_frame(dut, words(TAG, before), words(TAG, tags))
    twin = T2Encoder(TIME_BITS)
    assert np.array_equal(pairs(got), twin.process(tags))
    check(dut, twin)


@pytest.mark.parametrize("simulator", bench.simulators())
def test_t2_encoder(simulator):
    from keyrail_gateware.t2_encoder import T2Encoder as Gateware

    bench.run(Gateware(TIME_BITS), simulator, "test_t2_encoder", "t2_encoder")


def test_sizes_that_cannot_be_are_refused():
    from keyrail_gateware.t2_encoder import T2Encoder as Gateware

    for bits in (25, 49):
        with pytest.raises(ValueError, match="allowed are 26 to 48"):
            Gateware(bits)


def reference(tags: Structured) -> list[int]:
    """T2 by its definition, record by record, in Python's integers."""
    out, told, last, started = [], 0, 0, False
    wrap = 1 << 48
    for time, channel, kind in tags.tolist():
        gap = (time - last) % wrap
        if started and gap >= wrap >> 1:
            if kind == TagKind.CLICK:
                continue
            gap = 0
        last, started = last + gap, True
        while (last >> 25) - told > 127:
            out.append(1 << 31 | 63 << 25 | 127)
            told += 127
        if last >> 25 > told:
            out.append(1 << 31 | 63 << 25 | (last >> 25) - told)
            told = last >> 25
        low = last % (1 << 25)
        if kind == TagKind.CLICK:
            out.append(channel << 25 | low)
        elif kind == TagKind.LOSS:
            out.append(1 << 31 | (2 if channel == LossMark.END else 1) << 25 | low)
        elif kind == TagKind.FRAME:
            out.append(1 << 31 | 3 << 25 | low)
    return out


@pytest.mark.parametrize("disorder", [False, True])
def test_twin_follows_the_definition(disorder):
    rng = generator("t2 definition", disorder)
    tags = traffic(rng, 800, 0, 34)
    jumps = rng.integers(0, 1 << 47, 800) * (rng.random(800) < 0.01)
    sign = -1 if disorder else 1
    tags["time"] = (tags["time"].astype(np.int64) + sign * np.cumsum(jumps)) % (1 << 48)
    tags["time"] = tags["time"] if disorder else _ordered(tags["time"], jumps)
    twin = T2Encoder()
    cuts = np.sort(rng.integers(0, len(tags), 5))
    got = np.concatenate([twin.process(part) for part in np.split(tags, cuts)])
    whole = got["time"] | got["channel"].astype(np.uint32) << 25
    whole |= got["special"].astype(np.uint32) << 31
    assert whole.tolist() == reference(tags)
    assert (twin.ledger.live["out_of_order"] > 0) == disorder


def _ordered(times, jumps):
    """Times that never step back: the wraps at 36 bits become steps forward."""
    gaps = np.diff(times.astype(np.int64), prepend=0) % WRAP + jumps
    return np.cumsum(np.minimum(gaps, (1 << 47) - 1)) % (1 << 48)
