# SPDX-License-Identifier: Apache-2.0
"""Toeplitz engine: the gateware against its twin and the reference implementation."""

import cocotb
import numpy as np
import pytest
from cocotb.triggers import FallingEdge

import bench
from bench import Sink, Source, generator, settle, until
from keyrail.distil.toeplitz import Geometry, seed_bits, toeplitz_hash
from keyrail_sim.models.toeplitz import BUSY_ERROR, SIZE_ERROR, Toeplitz

INPUT_BITS, OUTPUT_BITS = 1024, 512
FAMILIES = ("plain", "modified")


async def begin(dut):
    for name in ("n", "m", "family", "start", "wipe", "clear"):
        getattr(dut, name).value = 0
    await bench.start(dut)
    await until(dut, lambda: dut.wiped.value == 1)


async def command(dut, name, n=0, m=0, family="modified"):
    dut.n.value, dut.m.value = n, m
    dut.family.value = FAMILIES.index(family)
    getattr(dut, name).value = 1
    await FallingEdge(dut.clk)
    getattr(dut, name).value = 0


def draw(rng, n, m, family):
    key = rng.integers(0, 2, n).astype(np.uint8)
    return key, rng.integers(0, 2, seed_bits(n, m, family)).astype(np.uint8)


async def hash_once(dut, key, seed, m, family, shares=(1.0, 1.0, 1.0), sink=None):
    geometry = Geometry(len(key), m, family)
    sink = sink or Sink(dut, "o", shares[2])
    sink.received.clear()
    await command(dut, "start", len(key), m, family)
    feeds = [
        cocotb.start_soon(Source(dut, "key", shares[0]).send(geometry.pack_key(key).tolist())),
        cocotb.start_soon(Source(dut, "seed", shares[1]).send(geometry.pack_seed(seed).tolist())),
    ]
    for feed in feeds:
        await feed
    await until(dut, lambda: len(sink.received) == geometry.rows)
    await until(dut, lambda: dut.wiped.value == 1)
    assert len(sink.received) == geometry.rows
    return np.array(sink.received, np.uint64)


@cocotb.test()
@cocotb.parametrize(family=FAMILIES, shares=[(1.0, 1.0, 1.0), (0.5, 0.7, 0.2), (0.9, 0.3, 0.8)])
async def bench_random_sizes(dut, family, shares):
    rng = generator("toeplitz", family, shares)
    await begin(dut)
    sink = Sink(dut, "o", shares[2])
    sizes = [(1, 1), (64, 64), (65, 65), (128, 64), (1024, 512), (1000, 3), (513, 512)]
    sizes += [
        (n := int(rng.integers(1, 1025)), int(rng.integers(1, min(n, 512) + 1))) for _ in range(8)
    ]
    for n, m in sizes:
        key, seed = draw(rng, n, m, family)
        geometry = Geometry(n, m, family)
        words = await hash_once(dut, key, seed, m, family, shares, sink)
        twin = Toeplitz(INPUT_BITS, OUTPUT_BITS)
        twin.start(n, m, FAMILIES.index(family))
        twin.feed_key(geometry.pack_key(key))
        twin.feed_seed(geometry.pack_seed(seed))
        assert np.array_equal(words, twin.output()), (n, m)
        assert np.array_equal(geometry.unpack_output(words), toeplitz_hash(key, seed, m, family)), (
            n,
            m,
        )
        assert int(dut.error.value) == 0


@cocotb.test()
async def bench_padding_is_hashed_as_by_the_twin(dut):
    """Words whose padding is not zero: still bit for bit the twin's answer."""
    rng = generator("toeplitz padding")
    await begin(dut)
    sink = Sink(dut, "o")
    for n, m, family in ((300, 70, "modified"), (70, 65, "plain"), (600, 400, "modified")):
        geometry = Geometry(n, m, family)
        key = rng.integers(0, 1 << 64, geometry.key_words, dtype=np.uint64)
        seed = rng.integers(0, 1 << 64, geometry.seed_words, dtype=np.uint64)
        twin = Toeplitz(INPUT_BITS, OUTPUT_BITS)
        twin.start(n, m, FAMILIES.index(family))
        assert twin.feed_key(key) == len(key)
        assert twin.feed_seed(seed) == len(seed)
        sink.received.clear()
        await command(dut, "start", n, m, family)
        await Source(dut, "key").send(key.tolist())
        await Source(dut, "seed").send(seed.tolist())
        await until(dut, lambda: dut.wiped.value == 1)
        assert np.array_equal(np.array(sink.received, np.uint64), twin.output())


@cocotb.test()
async def bench_clocks_of_a_hash(dut):
    from keyrail_gateware.toeplitz import Toeplitz as Gateware

    rng = generator("toeplitz clocks")
    await begin(dut)
    sink = Sink(dut, "o")
    for n, m, family in ((1024, 512, "plain"), (1000, 300, "modified"), (300, 1, "plain")):
        key, seed = draw(rng, n, m, family)
        geometry = Geometry(n, m, family)
        sink.received.clear()
        await command(dut, "start", n, m, family)
        await Source(dut, "key").send(geometry.pack_key(key).tolist())
        await Source(dut, "seed").send(geometry.pack_seed(seed).tolist())
        clocks = 0
        while len(sink.received) < geometry.rows:
            await FallingEdge(dut.clk)
            clocks += 1
        assert clocks == geometry.rows * (geometry.columns + 1) + Gateware.LATENCY
        await until(dut, lambda: dut.wiped.value == 1)


@cocotb.test()
async def bench_wipe_and_reset_in_mid_block(dut):
    rng = generator("toeplitz wipe")
    await begin(dut)
    sink = Sink(dut, "o", 0.3)
    key, seed = draw(rng, 900, 300, "modified")
    geometry = Geometry(900, 300)
    for clocks, end in ((3, "wipe"), (40, "wipe"), (70, "rst"), (10, "rst")):
        await command(dut, "start", 900, 300)
        feeds = [
            cocotb.start_soon(Source(dut, name).send(words.tolist()))
            for name, words in (
                ("key", geometry.pack_key(key)),
                ("seed", geometry.pack_seed(seed)),
            )
        ]
        for _ in range(clocks):
            await FallingEdge(dut.clk)
        for feed in feeds:
            feed.cancel()
        dut.key__valid.value = dut.seed__valid.value = 0
        if end == "rst":
            await bench.reset(dut)
        else:
            dut.o__ready.value = 1
            await command(dut, "wipe")
        sink.received.clear()
        await until(dut, lambda: dut.wiped.value == 1)
        await settle(dut, sink)
        assert sink.received == []
        words = await hash_once(dut, key, seed, 300, "modified", sink=sink)
        assert np.array_equal(geometry.unpack_output(words), toeplitz_hash(key, seed, 300))


@cocotb.test()
async def bench_wrong_sizes_are_errors(dut):
    rng = generator("toeplitz errors")
    await begin(dut)
    sizes = ((0, 0), (10, 0), (10, 11), (INPUT_BITS + 1, 5), (1000, OUTPUT_BITS + 1))
    for n, m in sizes:
        await command(dut, "start", n, m)
        await FallingEdge(dut.clk)
        assert int(dut.error.value) == SIZE_ERROR
        assert dut.busy.value == 0
        await command(dut, "clear")
        await FallingEdge(dut.clk)
        assert int(dut.error.value) == 0
    await command(dut, "start", 100, 50)
    await command(dut, "start", 100, 50)
    await FallingEdge(dut.clk)
    assert int(dut.error.value) == BUSY_ERROR
    await command(dut, "wipe")
    await until(dut, lambda: dut.wiped.value == 1)
    assert int(dut.error.value) == BUSY_ERROR
    await command(dut, "clear")
    key, seed = draw(rng, 100, 50, "modified")
    words = await hash_once(dut, key, seed, 50, "modified")
    assert np.array_equal(Geometry(100, 50).unpack_output(words), toeplitz_hash(key, seed, 50))


@pytest.mark.parametrize("simulator", bench.simulators())
def test_toeplitz(simulator):
    from keyrail_gateware.toeplitz import Toeplitz as Gateware

    bench.run(Gateware(INPUT_BITS, OUTPUT_BITS), simulator, "test_toeplitz")


@pytest.mark.parametrize(("n", "m", "family"), [(70, 65, "plain"), (300, 70, "modified")])
def test_twin_equals_the_reference(n, m, family):
    from galois import GF2
    from randextract import ModifiedToeplitzHashing, ToeplitzHashing

    rng = generator("twin", n)
    key, seed = draw(rng, n, m, family)
    geometry = Geometry(n, m, family)
    twin = Toeplitz()
    twin.start(n, m, FAMILIES.index(family))
    assert twin.feed_key(geometry.pack_key(key)) == geometry.key_words
    assert len(twin.output()) == 0
    assert twin.feed_seed(geometry.pack_seed(seed)) == geometry.seed_words
    kind = {"plain": ToeplitzHashing, "modified": ModifiedToeplitzHashing}[family]
    expected = kind(input_length=n, output_length=m).extract(GF2(key), GF2(seed))
    assert np.array_equal(geometry.unpack_output(twin.output()), np.asarray(expected))
    assert twin.wiped
