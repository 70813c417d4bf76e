# SPDX-License-Identifier: Apache-2.0
"""Time-to-digital converter: the gateware against its twin, the twin against the true edges."""

from functools import lru_cache

import cocotb
import numpy as np
import pytest
from cocotb.triggers import FallingEdge, ReadOnly

import bench
from bench import generator, ledger
from keyrail.contract import TdcResult
from keyrail_sim.models import tdc as twin

INPUTS, LINES, TAPS = 2, 2, 60
CLOCK_PS = 10_000
PITCH = 190.0
"""Mean distance of two taps of a line, ps: a line spans 11.4 ns."""
NOMINAL = LINES * CLOCK_PS / PITCH
HITS_LOG2, PATIENCE_LOG2 = 8, 12
UNEVEN_LIMIT_PS = 4_000
"""Few edges and few codes: the width of a bin is known to some 20 % only."""
CODES = 1 << (LINES * TAPS).bit_length()
LATENCY = twin.latency(LINES, TAPS)
WRAP = 1 << 48
FULL = CLOCK_PS << twin.DELAY_FRACTION_BITS


@lru_cache
def lines(number: int) -> twin.Lines:
    """Uneven lines with bubbles, that of line 1 a little behind; one a pin."""
    rng = generator("tdc lines", number)
    ideal = PITCH * (np.arange(TAPS) + 1) + np.array([[0.0], [95.0 + 40 * number]])
    # Bubbles: taps up to two places out of order.
    delays = ideal + rng.normal(0, PITCH * 0.6, (LINES, TAPS))
    delays[0, 0] = delays.min() - 5.0
    return twin.Lines(delays)


def random_edges(rng: np.random.Generator, clocks: int, gaps: tuple[float, float]) -> np.ndarray:
    """Edges with random gaps, in clocks, within `clocks`."""
    steps = rng.uniform(*gaps, size=clocks) * CLOCK_PS
    times = np.cumsum(steps) + 8 * CLOCK_PS
    return times[times < (clocks - 4) * CLOCK_PS]


def packed(taps: np.ndarray) -> list[int]:
    """Samples x lines x taps as the integers of the port."""
    flat = np.packbits(taps.reshape(len(taps), -1), axis=1, bitorder="little")
    return [int.from_bytes(row.tobytes(), "little") for row in flat]


class Watch:
    """Collects the stamped edges of every input, and holds the watermark to its word."""

    def __init__(self, dut):
        self.dut = dut
        self.clock = 0  # clocks since reset
        self.got = [[] for _ in range(INPUTS)]
        self.mark = [0] * INPUTS

    async def step(self, samples=None):
        """One clock: apply samples, an integer an input, and look at the outputs."""
        dut = self.dut
        for n in range(INPUTS):
            if samples is not None:
                getattr(dut, f"taps_{n}").value = samples[n]
        await ReadOnly()
        for n in range(INPUTS):
            if getattr(dut, f"o__{n}__valid").value:
                time = int(getattr(dut, f"o__{n}__time").value)
                assert (time - self.mark[n]) % WRAP < WRAP // 2, "before the watermark"
                self.got[n].append(
                    (
                        self.clock,
                        time,
                        int(getattr(dut, f"o__{n}__falling").value),
                        int(getattr(dut, f"o__{n}__calibrated").value),
                    )
                )
            self.mark[n] = int(getattr(dut, f"o__{n}__watermark").value)
        await FallingEdge(dut.clk)
        self.clock += 1

    async def play(self, taps):
        """Play samples of each input (lists of integers of one length)."""
        for row in zip(*taps, strict=True):
            await self.step(row)
        for _ in range(LATENCY + 2):
            await self.step()

    def take(self):
        got, self.got = self.got, [[] for _ in range(INPUTS)]
        return got


async def begin(dut, rising=3, falling=3):
    """Start, and wait until the tables stand."""
    for name in ("oscillator", "photons", "start", "abort", "frame"):
        getattr(dut, name).value = 0
    dut.rising.value, dut.falling.value, dut.hits_log2.value = rising, falling, HITS_LOG2
    for n in range(INPUTS):
        getattr(dut, f"taps_{n}").value = 0
    await bench.start(dut)
    watch = Watch(dut)
    for _ in range(2 * CODES + 8):
        await watch.step()
    assert dut.ready.value
    return watch


def expected(taps, start, tables, rising=True, falling=True, level=False):
    """What leaves for samples that begin at clock `start`; tables by kind of edge."""
    seen = twin.decode(taps, level)
    result = []
    for n in np.flatnonzero(seen.edge):
        fell = int(seen.falling[n])
        if (falling if fell else rising) and tables[fell] is not None:
            delays, known = tables[fell]
            sample = np.array([start + n])
            time = int(twin.stamp(sample, seen.code[n : n + 1], delays, CLOCK_PS, LATENCY)[0])
            result.append((start + int(n) + LATENCY, time, fell, known))
    return result, seen


IDEAL = (twin.nominal_table(CODES, NOMINAL, CLOCK_PS), 0)


@cocotb.test()
async def bench_edges(dut):
    """Random edges, some at clock boundaries, some in adjacent clocks; rising or both."""
    rng = generator("tdc edges")
    watch = await begin(dut)
    for both in (3, 0):
        dut.falling.value = both
        await bench.reset(dut)
        watch = Watch(dut)
        for _ in range(2 * CODES + 8):
            await watch.step([0] * INPUTS)
        # An edge before the tables stood, if the level fell just now.
        early = ledger(dut, "tdc")
        assert early["in"] == early["not_pin"]
        clocks, taps = 500, []
        for n in range(INPUTS):
            edges = random_edges(rng, clocks, (1.06, 4.0))
            # Onto a clock's boundary, and 1 ps to either side of it.
            some = rng.random(len(edges)) < 0.3
            first = lines(n).delays[0, 0]
            onto = np.round(edges[some] / CLOCK_PS) * CLOCK_PS - first
            edges[some] = onto + rng.choice([-1, 0, 1], some.sum())
            edges = edges[np.diff(edges, prepend=0) > 1.04 * CLOCK_PS]
            taps.append(lines(n).sample(clocks, edges, CLOCK_PS))
        start = watch.clock
        await watch.play([packed(t) for t in taps])
        got, total = watch.take(), 0
        for n in range(INPUTS):
            want, seen = expected(taps[n], start, [IDEAL, IDEAL], falling=bool(both))
            assert got[n] == want
            total += int(seen.edge.sum())
        counts = ledger(dut, "tdc")
        assert counts["in"] == total + early["in"]
        assert counts["out"] == sum(map(len, got))
        assert counts["in"] == counts["out"] + counts["other_edge"] + counts["not_pin"]
        assert counts["other_edge"] == (0 if both else total - counts["out"])
        dut.frame.value = 1
        await watch.step()
        dut.frame.value = 0
        await watch.step()
        assert ledger(dut, "tdc", "at_frame") == counts


@cocotb.test()
async def bench_nonsense(dut):
    """Noise in every tap and clock, pins stuck, pulses too short: no tag without an edge."""
    rng = generator("tdc nonsense")
    watch = await begin(dut)
    parts = []
    for n in range(INPUTS):
        noise = rng.random((300, LINES, TAPS)) < rng.uniform(0.1, 0.9)
        stuck = np.ones((60, LINES, TAPS), bool)
        bursts = np.repeat(rng.random((40, LINES, 1)) < 0.5, TAPS, axis=2)
        flips = bursts ^ (rng.random((40, LINES, TAPS)) < 0.02)
        times = np.sort(rng.uniform(0, 400 * CLOCK_PS, 700))
        chatter = lines(n).sample(400, times, CLOCK_PS)
        parts.append(np.concatenate([noise, stuck, flips, chatter]))
    start = watch.clock
    await watch.play([packed(t) for t in parts])
    got, short = watch.take(), 0
    for n in range(INPUTS):
        want, seen = expected(parts[n], start, [IDEAL, IDEAL])
        assert got[n] == want
        first = parts[n][:, 0, 0]
        assert len(want) == int((np.diff(first, prepend=False)).sum())
        short += int(seen.short[:-1].sum())
    assert abs(ledger(dut, "tdc")["short"] - short) <= INPUTS  # the last sample's is open
    assert short > 8
    # Stuck at last: nothing more comes, and the watermark goes on.
    await watch.play([[0] * 40] * INPUTS)
    watch.take()
    before = watch.mark[0]
    await watch.play([[0] * 50] * INPUTS)
    assert watch.take() == [[], []]
    assert watch.mark[0] - before == (50 + LATENCY + 2) * CLOCK_PS


async def command(dut, watch, number, falling=0, photons=0):
    """Give the command to calibrate."""
    dut.start_input.value, dut.start_falling.value = number, falling
    dut.start_photons.value, dut.start.value = photons, 1
    await watch.step()
    dut.start.value = 0
    await watch.step()


async def ended(dut, watch, limit=20_000):
    """Wait for the end of what is under way."""
    for _ in range(limit):
        if not dut.busy.value:
            return TdcResult(int(dut.result.value))
        await watch.step()
    raise AssertionError("calibration does not end")


async def feed(dut, watch, number, edges_of, falling=0):
    """Feed edges to one input until 2^h of the kind asked for were counted; their histogram.

    `edges_of` gives the ages of edges at the sampling clock; one comes every 3rd clock.
    """
    histogram, counted = np.zeros(CODES, np.int64), 0
    line = lines(number)
    level = False
    while counted < 1 << HITS_LOG2:
        ages = edges_of(64)
        clocks = 3 * len(ages) + 2
        # Ages count from the first tap.
        edges = (3 * np.arange(len(ages)) + 3) * CLOCK_PS - ages - line.delays[0, 0]
        taps = line.sample(clocks, edges, CLOCK_PS, level)
        seen = twin.decode(taps, level)
        level = bool(taps[-1, 0, 0])
        chosen = np.flatnonzero(seen.edge & (seen.falling == bool(falling)))
        codes = seen.code[chosen][: (1 << HITS_LOG2) - counted]
        histogram += np.bincount(codes, minlength=CODES)
        counted += len(codes)
        for sample in packed(taps):
            samples = [0] * INPUTS
            samples[number] = sample
            await watch.step(samples)
    # Back to a low level, where the next comes from.
    for _ in range(8):
        await watch.step([0] * INPUTS)
    return histogram


async def probe(dut, watch, number, tables, rng):
    """Stamp random edges by the tables that ought to be in use."""
    edges = random_edges(rng, 300, (1.1, 2.5))
    taps = [np.zeros((300, LINES, TAPS), bool) for _ in range(INPUTS)]
    taps[number] = lines(number).sample(300, edges[: len(edges) & ~1], CLOCK_PS)
    start = watch.clock
    watch.take()
    await watch.play([packed(t) for t in taps])
    got = watch.take()
    want, _ = expected(taps[number], start, tables)
    assert got[number] == want
    return want, edges


@cocotb.test()
async def bench_calibration(dut):
    """From the oscillator; photons before and after; locked light; too few; abort; in turn."""
    rng = generator("tdc calibration")
    watch = await begin(dut)
    even = lambda count: rng.uniform(0, CLOCK_PS, count)  # noqa: E731
    number = 1

    # Photons cannot make the first table, and an input must exist.
    await command(dut, watch, number, photons=1)
    assert await ended(dut, watch) == TdcResult.REFUSED
    await command(dut, watch, 9)
    assert await ended(dut, watch) == TdcResult.REFUSED

    tables = [IDEAL, IDEAL]
    for falling in (0, 1):
        await command(dut, watch, number, falling)
        for _ in range(60):
            await watch.step([0] * INPUTS)
        assert dut.source.value == 1 << number
        watch.take()
        histogram = await feed(dut, watch, number, even, falling)
        assert await ended(dut, watch) == TdcResult.DONE
        assert dut.source.value == 0
        assert watch.take() == [[], []]  # the oscillator makes no tags
        new = twin.table(histogram, CLOCK_PS)
        moved, uneven = twin.change(new, tables[falling][0])
        assert (int(dut.moved.value), int(dut.uneven.value)) == (moved >> 4, uneven >> 4)
        tables[falling] = (new, 1)
        assert int(dut.calibrated.value) == sum(
            tables[f][1] << (number + INPUTS * f) for f in (0, 1)
        )
        await probe(dut, watch, number, tables, rng)
    assert int(dut.done_input.value) == number

    # The twin's tables against the true edges: within a bin everywhere.
    want, edges = await probe(dut, watch, number, tables, rng)
    count = min(len(want), len(edges))
    error = np.array([w[1] for w in want[:count]]) - edges[:count]
    widths = np.diff(lines(number).thresholds()).max()
    assert np.ptp(error) < 2 * widths + 2 * 0.05 * CLOCK_PS

    # Photons that fall evenly refine, and are stamped meanwhile.
    before = ledger(dut, "tdc")["out"]
    await command(dut, watch, number, photons=1)
    for _ in range(60):
        await watch.step([0] * INPUTS)
    assert dut.source.value == 0
    histogram = await feed(dut, watch, number, even)
    new = twin.table(histogram, CLOCK_PS)
    moved, uneven = twin.change(new, tables[0][0])
    fine = twin.judge(True, moved, uneven, CLOCK_PS, UNEVEN_LIMIT_PS)
    assert await ended(dut, watch) == fine
    assert ledger(dut, "tdc")["out"] - before > 1 << HITS_LOG2
    if fine == TdcResult.DONE:
        tables[0] = (new, 1)
    await probe(dut, watch, number, tables, rng)

    # Light locked to the reference: pulses at two phases. The table stays.
    await command(dut, watch, number, photons=1)
    for _ in range(60):
        await watch.step([0] * INPUTS)
    await feed(dut, watch, number, lambda c: rng.choice([2_500.0, 7_500.0], c))
    assert await ended(dut, watch) == TdcResult.UNEVEN
    await probe(dut, watch, number, tables, rng)

    # A dark input; then one that is given up.
    await command(dut, watch, 0)
    assert await ended(dut, watch) == TdcResult.TOO_FEW
    await command(dut, watch, 0)
    for _ in range(50):
        await watch.step([0] * INPUTS)
    dut.abort.value = 1
    await watch.step()
    dut.abort.value = 0
    assert await ended(dut, watch) == TdcResult.ABORTED
    assert dut.source.value == 0
    # In turn, from the oscillator: both inputs, both kinds, until it is cleared.
    dut.oscillator.value = 1
    visited = set()
    for clock in range(4 << PATIENCE_LOG2):
        await watch.step([0] * INPUTS)
        visited.add(int(dut.source.value))
        if visited >= {0, 1, 2} and clock > 100:
            break
    assert visited == {0, 1, 2}
    dut.oscillator.value = 0
    for _ in range(300):
        await watch.step()
    assert not dut.busy.value
    assert dut.source.value == 0
    # What the tables hold was touched by none of it.
    await probe(dut, watch, number, tables, rng)


@cocotb.test()
async def bench_reset_in_mid_calibration(dut):
    """After a reset the ideal line's delays stand again, and are marked as such."""
    rng = generator("tdc reset")
    watch = await begin(dut)
    await command(dut, watch, 0)
    for _ in range(60):
        await watch.step([0] * INPUTS)
    assert dut.source.value == 1
    await bench.reset(dut)
    assert dut.source.value == 0
    watch = Watch(dut)
    for _ in range(2 * CODES + 8):
        await watch.step([0] * INPUTS)
    await probe(dut, watch, 0, [IDEAL, IDEAL], rng)


@pytest.mark.parametrize("simulator", bench.simulators())
def test_tdc(simulator):
    from keyrail_gateware.tdc import Tdc

    component = Tdc(
        INPUTS,
        LINES,
        TAPS,
        NOMINAL,
        CLOCK_PS,
        both_edges=True,
        hits_log2_maximum=HITS_LOG2,
        patience_log2=PATIENCE_LOG2,
        uneven_limit_ps=UNEVEN_LIMIT_PS,
    )
    assert component.latency == LATENCY
    bench.run(component, simulator, "test_tdc")
