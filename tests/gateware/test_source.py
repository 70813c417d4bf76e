# SPDX-License-Identifier: Apache-2.0
"""The source: the gateware against its twin, slot by slot and sample by sample."""

import cocotb
import numpy as np
import pytest
from cocotb.triggers import FallingEdge, ReadOnly

import bench
from bench import Sink, Source, generator, ledger, settle, until, words
from keyrail.contract import LEDGERS, STATE_WORD, Role, registers, sync_pattern
from keyrail.source import state_words
from keyrail_sim.models.source import Modulator
from keyrail_sim.models.source import Source as Twin

OUTPUTS, LATENCY = 3, 2
FIELDS = registers(Role.SENDER)["modulator_0"].fields


def setting(modulator):
    value = shift = 0
    for field in FIELDS:
        value |= getattr(modulator, field.name, 0) << shift
        shift += field.bits
    return value, shift


def set_up(dut, twin, first_word, clocks=1, modulators=()):
    dut.open.value = 0
    dut.first_word.value, dut.last_word.value = first_word, twin.last_word
    dut.paced.value, dut.clocks.value = int(twin.paced), clocks - 1
    dut.words_log2.value, dut.sync_words.value = twin.words_log2, twin.sync_words
    value = 0
    for index, modulator in enumerate(modulators):
        one, bits = setting(modulator)
        value |= one << (bits * index)
    dut.settings.value = value


async def open_block(dut):
    for _ in range(3):  # first word and frame are taken while it is not open
        await FallingEdge(dut.clk)
    dut.open.value = 1


def fed(sink):
    """States and whether they may be used, of what went to state memory."""
    values = np.array(sink.received, np.uint64)
    states = (values[:, None] >> np.uint64(3) * np.arange(16, dtype=np.uint64)) & np.uint64(7)
    return states.astype(np.uint8).reshape(-1), np.repeat(values >> np.uint64(48) == 1, 16)


class Samples:
    """What comes out of the modulators, from ``begins`` of the first slot on."""

    def __init__(self, dut, gear):
        self.dut, self.gear, self.taken, self.begins = dut, gear, [], []
        cocotb.start_soon(self._run())

    async def _run(self):
        while True:
            await ReadOnly()
            self.taken.append(int(self.dut.samples.value))
            self.begins.append(int(self.dut.begins.value))
            await FallingEdge(self.dut.clk)

    def output(self, index):
        start = self.begins.index(1) + LATENCY
        groups = np.array(self.taken[start:]) >> (self.gear * index) & ((1 << self.gear) - 1)
        return (groups[:, None] >> np.arange(self.gear) & 1).reshape(-1).astype(np.uint8)


@cocotb.test()
@cocotb.parametrize(shares=[(1.0, 1.0), (0.6, 0.4)], sync=[(0, 0), (2, 1), (4, 5), (7, 64)])
async def bench_unpaced_words_pass(dut, shares, sync):
    rng = generator("source unpaced", shares, sync)
    first = 16 * int(rng.integers(1 << 20))
    twin = Twin(first, first + 99, False, *sync)
    set_up(dut, twin, first)
    await bench.start(dut)
    sink = Sink(dut, "fed", shares[1])
    await open_block(dut)
    records = state_words(rng.integers(0, 8, 16 * 150).astype(np.uint8))
    await Source(dut, "words", shares[0]).send(words(STATE_WORD, records))
    await settle(dut, sink)
    states, present = twin.process(records)
    got, usable = fed(sink)
    assert np.array_equal(got, states)
    assert np.array_equal(usable, present)
    assert ledger(dut, "source") == twin.ledger.live
    assert dut.running.value == 0
    assert int(dut.samples.value) == 0


@cocotb.test()
@cocotb.parametrize(clocks=[1, 2, 3, 16, 200], sync=[(0, 0), (1, 1)])
async def bench_paced_patterns(dut, clocks, sync):
    """Every sample of every output, to the block's last slot; what comes later is surplus."""
    gear = int(bench.parameter("gear"))
    rng = generator("source paced", clocks, sync)
    first, count = 10, 5
    twin = Twin(first, first + count - 1, True, *sync)
    samples = min(clocks * gear, 64)
    modulators = (
        Modulator(codes=0b1111_1111, start=0, stop=samples, invert=1),
        Modulator(0b1010_1010, 0, samples // 2, samples, int(rng.integers(16)), 0),
        Modulator(int(rng.integers(256)), 1, 1, 2, 15, 1),
    )
    set_up(dut, twin, first, clocks, modulators)
    await bench.start(dut)
    sink, seen = Sink(dut, "fed"), Samples(dut, gear)
    await open_block(dut)
    records = state_words(rng.integers(0, 8, 16 * (count + 3)).astype(np.uint8))
    await Source(dut, "words").send(words(STATE_WORD, records))
    await until(dut, lambda: dut.running.value == 0)
    await settle(dut, sink, quiet=20)
    states, present = twin.process(records)
    got, usable = fed(sink)
    assert np.array_equal(got, states)
    assert np.array_equal(usable, present)
    assert dut.ended.value == 1
    assert dut.starved.value == 0
    counts = ledger(dut, "source")
    assert counts == twin.ledger.live
    assert counts["in"] == counts["out"] + counts["sync"] + counts["surplus"]
    assert counts["surplus"] == 3
    assert sum(seen.begins) == 16 * count
    for index, modulator in enumerate(modulators):
        expected = twin.samples(states, first, modulator, clocks, gear)
        got = seen.output(index)
        assert np.array_equal(got[: len(expected)], expected), f"output {index}"
        assert np.all(got[len(expected) :] == modulator.invert)
    # The next block begins anew.
    dut.open.value = 0
    await FallingEdge(dut.clk)
    dut.open.value = 1
    await FallingEdge(dut.clk)
    assert dut.ended.value == 0


@cocotb.test()
async def bench_starvation_stops_at_a_slot_boundary(dut):
    """Nothing is emitted after the last whole word, no bit twice, and late words are dropped."""
    gear = int(bench.parameter("gear"))
    rng = generator("source starved")
    twin = Twin(0, 99, True)
    modulator = Modulator(0b1111_1111, 0, 0, gear, 0, 0)
    set_up(dut, twin, 0, 1, (modulator,))
    await bench.start(dut)
    sink, seen = Sink(dut, "fed"), Samples(dut, gear)
    await open_block(dut)
    for _ in range(40):
        await FallingEdge(dut.clk)  # before the first word nothing has begun, nothing is missing
    assert dut.starved.value == 0
    source = Source(dut, "words")
    records = state_words(rng.integers(0, 8, 16 * 9).astype(np.uint8))
    await source.send(words(STATE_WORD, records[:6]))
    await until(dut, lambda: dut.running.value == 0)
    assert dut.starved.value == 1
    assert dut.ended.value == 0
    states, _ = twin.process(records[:6])
    twin.starve()
    await source.send(words(STATE_WORD, records[6:]))
    twin.process(records[6:])
    await settle(dut, sink)
    assert np.array_equal(fed(sink)[0], states)
    assert sum(seen.begins) == 16 * 6
    output = seen.output(0)
    assert output.sum() == 16 * 6 * gear
    assert output[: 16 * 6 * gear].all()
    assert ledger(dut, "source") == twin.ledger.live
    assert twin.ledger.live["surplus"] == 3
    await bench.reset(dut)
    assert dut.starved.value == 0


def test_the_sync_pattern_is_the_published_sequence():
    bits = [word >> i & 1 for word in sync_pattern() for i in range(16)]
    # x^15 + x^14 + 1: each bit is the sum of those 14 and 15 before.
    assert all(bits[i] == bits[i - 14] ^ bits[i - 15] for i in range(15, len(bits)))
    assert bits[:15] == [0] * 14 + [1]
    assert len(bits) == 1024
    assert "sync" in {counter.name for counter in LEDGERS["source"][1]}


@pytest.mark.parametrize("simulator", bench.simulators())
@pytest.mark.parametrize("gear", [1, 2, 4])
def test_source(simulator, gear):
    from keyrail_gateware import source

    assert source.LATENCY == LATENCY
    sized = source.Source(gear, OUTPUTS)
    bench.run(sized, simulator, "test_source", parameters={"gear": str(gear)})


def test_sizes_that_do_not_exist_are_refused():
    from keyrail_gateware.source import Source as Gateware

    with pytest.raises(ValueError, match="gear 3: allowed are 1, 2, 4"):
        Gateware(gear=3)
    with pytest.raises(ValueError, match="9 modulators: allowed are 1 to 8"):
        Gateware(modulators=9)
