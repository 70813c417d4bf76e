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
    # Noise with an edge in every clock leaves no look at the table: tags go on, abort ends it.
    await command(dut, watch, number, photons=1)
    before, level = ledger(dut, "tdc")["out"], 0
    everything = (1 << LINES * TAPS) - 1
    for clock in range(4 << HITS_LOG2):
        level = everything - level
        samples = [0] * INPUTS
        samples[number] = level
        dut.abort.value = int(clock == (4 << HITS_LOG2) - 2 * CODES)
        await watch.step(samples)
    assert not dut.busy.value
    assert dut.result.value == TdcResult.ABORTED
    assert ledger(dut, "tdc")["out"] - before > (4 << HITS_LOG2) - 40
    for _ in range(8):
        await watch.step([0] * INPUTS)
    watch.take()
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


# -- small enough for every case, without a build ------------------------------------------------


def simulate(component, inputs, watched, clocks=None):
    """Play integers into input ports of a component, one a clock; what the watched ports show."""
    from amaranth.sim import Simulator

    simulator = Simulator(component)
    simulator.add_clock(1e-8)
    seen = []

    async def process(context):
        count = clocks or len(next(iter(inputs.values())))
        for n in range(count):
            for name, values in inputs.items():
                context.set(getattr(component, name), int(values[min(n, len(values) - 1)]))
            seen.append([context.get(getattr(component, name)) for name in watched])
            await context.tick()

    simulator.add_testbench(process)
    simulator.run()
    return np.array(seen)


@pytest.mark.parametrize(("count", "taps"), [(1, 5), (2, 2)])
def test_every_sample_after_every_other(count, taps):
    """All pairs of samples in adjacent clocks: an edge if and only if the first tap changed."""
    from keyrail_gateware.tdc import Decoder

    width = count * taps
    pairs = np.array([(a, b) for a in range(1 << width) for b in range(1 << width)]).ravel()
    samples = np.concatenate([[0], pairs, np.zeros(8, np.int64)])
    decoder = Decoder(count, taps)
    late = decoder.latency
    got = simulate(decoder, {"taps": samples}, ["edge", "falling", "code", "short"])[late:]
    bits = (samples[:, None] >> np.arange(width) & 1).astype(bool)
    want = twin.decode(bits.reshape(-1, count, taps))
    length = len(got) - 2
    assert np.array_equal(got[:length, 0], want.edge[:length])
    assert np.array_equal(got[:length, 0], (np.diff(samples & 1, prepend=0) != 0)[:length])
    edges = np.flatnonzero(want.edge[:length])
    assert np.array_equal(got[edges, 1], want.falling[edges])
    assert np.array_equal(got[edges, 2], want.code[edges])
    assert got[edges, 2].min() >= 1
    # `short` comes with the sum of a single group or after it; the twin has it at its sample.
    assert got[:, 3].sum() == want.short[: len(got)].sum()


def test_fine_and_coarse_never_disagree():
    """One edge at each picosecond of three clocks: one stamp each, in order, within a bin."""
    line = lines(0)
    where = np.arange(3 * CLOCK_PS) + 4 * CLOCK_PS
    rng = generator("tdc boundary")
    thresholds = line.thresholds()
    inside = thresholds[(thresholds > 0) & (thresholds < CLOCK_PS)]
    bounds = np.concatenate([[0.0], inside, [CLOCK_PS]])
    widths = np.diff(bounds)
    # A table from 2^16 even edges.
    ages = rng.uniform(0, CLOCK_PS, 1 << 16)
    delays = twin.table(np.bincount(line.code(ages), minlength=CODES), CLOCK_PS)
    times = []
    for at in where[::7]:
        seen = twin.decode(line.sample(12, np.array([float(at)]), CLOCK_PS))
        sample = np.flatnonzero(seen.edge)
        assert len(sample) == 1
        times.append(int(twin.stamp(sample, seen.code[sample], delays, CLOCK_PS, 1)[0]))
    error = np.array(times) - where[::7] - line.delays[0, 0]
    assert np.abs(error).max() <= widths.max() / 2 + 25
    assert (np.diff(times) >= 0).all()


def test_watermark_holds_for_any_table():
    """Times of a sample lie between the watermark of the clock before and its own."""
    for delay in (0, 1, 7, 8, 9, FULL - 1, FULL):
        delays = np.full(CODES, delay)
        time = int(twin.stamp(np.array([5]), np.array([1]), delays, CLOCK_PS, LATENCY)[0])
        mark = (5 + LATENCY - 1) * CLOCK_PS
        assert mark - CLOCK_PS <= time <= mark


@pytest.mark.parametrize("phases", [1, 2, 4])
def test_phase_sampler(phases):
    """Edges at any time: the code of the ideal table, to half a sample."""
    from amaranth.hdl import ClockDomain, Module
    from amaranth.sim import Simulator

    from keyrail_gateware.tdc import Decoder, PhaseSampler

    names = ("sync", *(f"phase_{n}" for n in range(1, phases)))
    top = Module()
    top.submodules.sampler = sampler = PhaseSampler(names)
    top.submodules.decoder = decoder = Decoder(1, 2 * phases)
    top.d.comb += decoder.taps.eq(sampler.taps)
    for name in names[1:]:
        top.domains += ClockDomain(name, reset_less=True)
    simulator = Simulator(top)
    period = CLOCK_PS * 1e-12
    for n, name in enumerate(names):
        simulator.add_clock(period, phase=period * (0.5 + n / (2 * phases)), domain=name)
    rng = generator("tdc phases", phases)
    edges = np.cumsum(rng.uniform(1.05, 3.0, 60)) * CLOCK_PS + 2 * CLOCK_PS
    seen = []

    async def drive(context):
        now, level = 0.0, 0
        for edge in edges:
            await context.delay((edge - now) * 1e-12)
            now, level = edge, 1 - level
            context.set(sampler.launch, level)

    async def watch(context):
        for clock in range(int(edges[-1] / CLOCK_PS) + 12):
            _, _, edge, falling, code = await context.tick().sample(
                decoder.edge, decoder.falling, decoder.code
            )
            if edge:
                seen.append((clock, int(falling), int(code)))

    simulator.add_testbench(drive)
    simulator.add_testbench(watch)
    simulator.run()
    assert len(seen) == len(edges)
    assert [f for _, f, _ in seen] == [n % 2 for n in range(len(edges))]
    delays = twin.nominal_table(2 * phases + 1, 2 * phases, CLOCK_PS)
    times = np.array([clock * CLOCK_PS - delays[code] / 16 for clock, _, code in seen])
    error = times - edges
    assert np.ptp(error) <= CLOCK_PS / (2 * phases) + 1


def test_wrong_sizes_are_refused():
    from keyrail_gateware.tdc import CarryLines, Decoder, Oscillator, PhaseSampler, Tdc

    with pytest.raises(ValueError, match="0 lines of 4 taps"):
        Decoder(0, 4)
    with pytest.raises(ValueError, match="11 inputs, allowed are 1 to 10"):
        Tdc(11, 1, 4, 4)
    with pytest.raises(ValueError, match="clock of 20000 ps"):
        Tdc(1, 1, 4, 4, clock_ps=20_000)
    with pytest.raises(ValueError, match="9 codes a clock, allowed are 1 to 4"):
        Tdc(1, 1, 4, 9)
    with pytest.raises(ValueError, match="the first must be sync"):
        PhaseSampler(("phase_1",))
    with pytest.raises(ValueError, match="oscillator divider 1"):
        Oscillator(1)
    with pytest.raises(ValueError, match="0 lines of 4 cells"):
        CarryLines(0, 4)
    with pytest.raises(ValueError, match="5 edges, allowed are powers of two"):
        twin.table(np.array([2, 3]), CLOCK_PS)
