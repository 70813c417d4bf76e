# SPDX-License-Identifier: Apache-2.0
"""Merge: the gateware against its twin, its account of refused events, and a proof."""

import cocotb
import numpy as np
import pytest
from cocotb.triggers import FallingEdge, ReadOnly

import bench
import formal
from bench import generator, ledger, structured
from keyrail.contract import TAG, TIME_BITS, TagKind
from keyrail_sim.models.merge import merge

INPUTS, DEPTH, TIME_RECORD_LOG2 = 10, 16, 17
CLOCK_PS = 10_000
WRAP = 1 << TIME_BITS
FALLING, UNCALIBRATED = 16, 32


class Inputs:
    """Events of all inputs, clock by clock, each within the promise of its watermark."""

    def __init__(self, dut, rng: np.random.Generator, start: int) -> None:
        self.dut, self.rng = dut, rng
        # Delays differ by up to 10 clocks between inputs.
        self.watermark = [start - int(rng.integers(0, 10 * CLOCK_PS)) for _ in range(INPUTS)]
        self.first = self.watermark[0]
        self.events: list[list[int]] = [[] for _ in range(INPUTS)]
        self.channels: list[list[int]] = [[] for _ in range(INPUTS)]
        self.last = list(self.watermark)

    def clock(self, share: float, together: bool = False, advance: int = CLOCK_PS) -> None:
        """Set the ports for one clock: an event on each input with probability `share`."""
        common = max(max(self.last), max(self.watermark))
        for n in range(INPUTS):
            self.watermark[n] += advance
            valid = self.rng.random() < share
            earliest = max(self.last[n], self.watermark[n])
            time = common if together else earliest + int(self.rng.integers(0, 3) ** 8)
            time = max(time, earliest)
            edge = self.rng.integers(0, 2, 2) * (self.rng.random() < 0.2)
            if valid:
                self.last[n] = time
                self.events[n].append(time)
                self.channels[n].append(n + FALLING * int(edge[0]) + UNCALIBRATED * int(edge[1]))
            word = int(valid) | time % WRAP << 1 | int(edge[0]) << 49 | int(not edge[1]) << 50
            getattr(self.dut, f"i_{n}").value = word | self.watermark[n] % WRAP << 51

    def idle(self) -> None:
        """No event, and the watermarks stand still."""
        for n in range(INPUTS):
            getattr(self.dut, f"i_{n}").value = self.watermark[n] % WRAP << 51

    def merged(self):
        """What the twin makes of it."""
        return merge(
            [np.array(events, np.int64) for events in self.events],
            [np.array(channels, np.uint8) for channels in self.channels],
            self.first,
            self.watermark,
            TIME_RECORD_LOG2,
        )


async def begin(dut, rng, start):
    """Flush, with the watermarks standing still; then the inputs."""
    dut.o__ready.value = dut.frame.value = 0
    inputs = Inputs(dut, rng, start)
    inputs.idle()
    dut.flush.value = 1
    await FallingEdge(dut.clk)
    dut.flush.value = 0
    for _ in range(3 * DEPTH):
        await FallingEdge(dut.clk)
        if not dut.busy.value:
            break
    assert not dut.busy.value
    for _ in range(12):
        await FallingEdge(dut.clk)
    assert int(dut.held.value) == 0
    return inputs


async def clock(dut, ready: bool, got: list[int], refused: list[int]) -> None:
    """One clock: what leaves, and what is refused."""
    dut.o__ready.value = int(ready)
    await ReadOnly()
    if dut.o__valid.value and ready:
        got.append(int(dut.o__payload.value))
    refused[0] += int(dut.refused.value)
    held = int(dut.held.value)
    await FallingEdge(dut.clk)
    # Counters are a clock behind what they count.
    counts = ledger(dut, "merge")
    assert counts["in"] == counts["out"] + held


async def drain(dut, rng, inputs, share, got, refused) -> None:
    inputs.idle()
    quiet = 0
    while quiet < 30:
        before = len(got)
        await clock(dut, bool(rng.random() < share), got, refused)
        quiet = quiet + 1 if len(got) == before else 0


@cocotb.test()
@cocotb.parametrize(case=[(0.08, 1.0, False), (0.04, 0.6, True)])
async def bench_random(dut, case):
    share, ready, together = case
    rng = generator("merge", case)
    await bench.start(dut)
    for start in (WRAP - 10**6, (WRAP >> 1) - 10**6):
        inputs = await begin(dut, rng, start)
        got, refused = [], [0]
        for step in range(200):
            burst = together and step % 40 == 0
            inputs.clock(1.0 if burst else share, burst)
            await clock(dut, bool(rng.random() < ready), got, refused)
        await drain(dut, rng, inputs, ready, got, refused)
        assert refused == [0]
        tags = structured(TAG, got)
        assert np.array_equal(tags, inputs.merged())
        clicks = int((tags["kind"] == TagKind.CLICK).sum())
        counts = ledger(dut, "merge")
        assert counts["out"] == clicks
        assert counts["in"] == sum(map(len, inputs.events))


@cocotb.test()
async def bench_eight_hit_at_once_at_full_rate(dut):
    """Ten inputs hit in the same ps, every ten clocks: a tag a clock, without a bubble."""
    rng = generator("merge rate")
    await bench.start(dut)
    inputs = await begin(dut, rng, 10**9)
    got, refused = [], [0]
    bubbles = 0
    for step in range(300):
        inputs.clock(float(step % 10 == 0), True, CLOCK_PS)
        before = len(got)
        await clock(dut, True, got, refused)
        # The first ones wait for the watermarks of the inputs that lag most.
        bubbles += step >= 50 and len(got) == before
    assert refused == [0]
    # Time records come on top of 100 Mtags/s: they use the queues, not a place of the tags.
    assert bubbles == 0
    await drain(dut, rng, inputs, 1.0, got, refused)
    assert np.array_equal(structured(TAG, got), inputs.merged())


@cocotb.test()
async def bench_refused_events_are_counted(dut):
    """More than a tag a clock, and noise at each clock: what is refused is told, the rest comes."""
    rng = generator("merge refused")
    await bench.start(dut)
    for share in (0.5, 1.0):
        inputs = await begin(dut, rng, WRAP - 10**6)
        got, refused = [], [0]
        dut.frame.value = 1
        for step in range(100):
            inputs.clock(share)
            before = refused[0]
            await clock(dut, step % 3 > 0, got, refused)
            dut.frame.value = 0
            if refused[0] > before:
                behind = [(int(dut.until.value) - events[-1]) % WRAP for events in inputs.events]
                assert max(behind) < WRAP >> 1
        await drain(dut, rng, inputs, 1.0, got, refused)
        tags = structured(TAG, got)
        times = tags["time"].astype(np.int64)
        assert (np.diff(times) % WRAP < WRAP >> 1).all()
        clicks = tags[tags["kind"] == TagKind.CLICK]
        held = int(dut.held.value)
        assert len(clicks) + held + refused[0] == sum(map(len, inputs.events))
        assert refused[0] > 200
        # Each that came out went in, in its order.
        for n in range(INPUTS):
            mine = clicks[(clicks["channel"] & 15) == n]
            sent = list(zip(inputs.events[n], inputs.channels[n], strict=True))
            at = iter((time % WRAP, channel) for time, channel in sent)
            assert all(pair in at for pair in zip(mine["time"], mine["channel"], strict=True))
        frames = tags[tags["kind"] == TagKind.FRAME]
        assert len(frames) == 1
        cut = int(np.flatnonzero(tags["kind"] == TagKind.FRAME)[0])
        at_frame = ledger(dut, "merge", "at_frame")
        assert at_frame["out"] == int((tags["kind"][:cut] == TagKind.CLICK).sum())
        assert ledger(dut, "merge")["refused"] == refused[0]


@pytest.mark.parametrize("simulator", bench.simulators())
def test_merge(simulator):
    from keyrail_gateware.merge import Merge

    component = Merge(INPUTS, DEPTH, time_record_log2=TIME_RECORD_LOG2)
    bench.run(component, simulator, "test_merge")


def test_sizes_that_cannot_be_are_refused():
    from keyrail_gateware.merge import Merge

    for inputs, depth in ((0, 16), (16, 16), (4, 12)):
        with pytest.raises(ValueError, match="allowed are 1 to 15"):
            Merge(inputs, depth)


def test_merge_is_proven():
    """For any times and back-pressure: in time order, each event once and as it came."""
    from keyrail_gateware.merge import MergeTree

    formal.prove(MergeTree(3, 4), depth=2)


def test_merge_with_its_queues_is_checked_from_reset():
    """For any events and times of two inputs: in order, none lost or changed, for 7 clocks."""
    from keyrail_gateware.merge import Merge

    merge = Merge(2, 2, time_bits=5, time_record_log2=3)
    formal.prove(merge, depth=7, mode="bmc", platform="formal merge")
