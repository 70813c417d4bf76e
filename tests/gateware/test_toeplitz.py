# SPDX-License-Identifier: Apache-2.0
"""Toeplitz engine: the gateware against its twin and the reference implementation."""

import cocotb
import numpy as np
import pytest
from cocotb.handle import ArrayObject, HierarchyObject
from cocotb.triggers import FallingEdge

import bench
from bench import Sink, Source, generator, settle, until
from keyrail.distil.toeplitz import Geometry, seed_bits, toeplitz_hash
from keyrail_sim.models.toeplitz import BUSY_ERROR, SIZE_ERROR, Toeplitz

INPUT_BITS, OUTPUT_BITS = 1024, 512
FAMILIES = ("plain", "modified")
SHARES = ((1.0, 1.0, 1.0), (0.5, 0.7, 0.2), (0.9, 0.3, 0.8))
"""Shares of clocks in which key, seed and output may move."""


def bench_of(block, **values):
    """Register a bench, for all values of its parameters, in the simulation of its block alone."""

    def register(function):
        if bench.parameter("block") != block:
            return function
        return cocotb.test()(cocotb.parametrize(**values)(function) if values else function)

    return register


def reference(key, seed, m, family):
    """The hash by the reference implementation."""
    from galois import GF2
    from randextract import ModifiedToeplitzHashing, ToeplitzHashing

    kind = {"plain": ToeplitzHashing, "modified": ModifiedToeplitzHashing}[family]
    extractor = kind(input_length=len(key), output_length=m)
    return np.asarray(extractor.extract(GF2(key), GF2(seed) if len(seed) else None))


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


@bench_of("engine", family=FAMILIES, shares=SHARES)
async def bench_random_sizes(dut, family, shares):
    rng = generator("toeplitz", family, shares)
    await begin(dut)
    sink = Sink(dut, "o", shares[2])
    sizes = [(1, 1), (64, 64), (65, 65), (128, 64), (1024, 512), (1000, 3), (513, 512)]
    for _ in range(8):
        n = int(rng.integers(1, INPUT_BITS + 1))
        sizes.append((n, int(rng.integers(1, min(n, OUTPUT_BITS) + 1))))
    for n, m in sizes:
        key, seed = draw(rng, n, m, family)
        geometry = Geometry(n, m, family)
        words = await hash_once(dut, key, seed, m, family, shares, sink)
        twin = Toeplitz(INPUT_BITS, OUTPUT_BITS)
        twin.start(n, m, FAMILIES.index(family))
        twin.feed_key(geometry.pack_key(key))
        twin.feed_seed(geometry.pack_seed(seed))
        assert np.array_equal(words, twin.output()), (n, m)
        hashed = geometry.unpack_output(words)
        assert np.array_equal(hashed, reference(key, seed, m, family)), (n, m)
        assert int(dut.error.value) == 0


@bench_of("engine")
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


@bench_of("engine")
async def bench_clocks_of_a_hash(dut):
    from keyrail_gateware.toeplitz import Toeplitz as Gateware

    latency = Gateware(INPUT_BITS, OUTPUT_BITS, int(bench.parameter("smallest"))).latency
    rng = generator("toeplitz clocks")
    await begin(dut)
    sink = Sink(dut, "o")
    sizes = [(1024, 512, "plain"), (1000, 300, "modified"), (300, 1, "plain")]
    sizes += [(192, 192, "plain"), (700, 512, "modified")]  # as narrow as the formula goes
    for n, m, family in sizes:
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
        assert clocks == geometry.rows * (geometry.columns + 1) + latency
        await until(dut, lambda: dut.wiped.value == 1)


@bench_of("engine")
async def bench_wipe_and_reset_in_mid_block(dut):
    rng = generator("toeplitz wipe")
    await begin(dut)
    # Always ready: a wipe may withdraw what waits, which the sink would rightly refuse.
    sink = Sink(dut, "o")
    key, seed = draw(rng, 900, 300, "modified")
    geometry = Geometry(900, 300)
    for clocks, end in [(clocks, end) for clocks in (3, 17, 33, 47, 70) for end in ("wipe", "rst")]:
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
            await command(dut, "wipe")
        sink.received.clear()
        await until(dut, lambda: dut.wiped.value == 1)
        await settle(dut, sink)
        assert sink.received == []
        words = await hash_once(dut, key, seed, 300, "modified", sink=sink)
        assert np.array_equal(geometry.unpack_output(words), toeplitz_hash(key, seed, 300))


def snapshot(handle, path=""):
    """Every bit of state below a handle, by path."""
    found = {}
    for child in handle:
        name = f"{path}/{child._name}"
        if isinstance(child, HierarchyObject):
            found |= snapshot(child, name)
        elif isinstance(child, ArrayObject):
            found |= {f"{name}/{index}": str(child[index].value) for index in child.range}
        else:
            found[name] = str(child.value)
    return found


@bench_of("engine")
async def bench_a_wipe_leaves_nothing(dut):
    """After a wipe no bit anywhere depends on key or seed; before it, many do."""
    rng = generator("toeplitz remains")
    await begin(dut)
    dut.o__ready.value = 0
    before, after = [], []
    for _ in range(2):
        geometry = Geometry(1000, 500)
        key, seed = draw(rng, 1000, 500, "modified")
        await command(dut, "start", 1000, 500)
        await Source(dut, "key").send(geometry.pack_key(key).tolist())
        await Source(dut, "seed").send(geometry.pack_seed(seed).tolist())
        await until(dut, lambda: dut.o__valid.value == 1)
        for _ in range(5):  # amid the next row
            await FallingEdge(dut.clk)
        dut.key__payload.value = dut.seed__payload.value = 0
        await FallingEdge(dut.clk)
        before.append(snapshot(dut))
        await command(dut, "wipe")
        assert dut.o__valid.value == 0
        await until(dut, lambda: dut.wiped.value == 1)
        await FallingEdge(dut.clk)
        after.append(snapshot(dut))
    differing = {name for name in before[0] if before[0][name] != before[1][name]}
    for memory in ("key", "identity", "seed"):
        words = {name for name in after[0] if name.startswith(f"/{memory}_memory/")}
        assert len(words & differing) >= 7
        assert {int(after[0][name], 2) for name in words} == {0}
    assert any(name.startswith("/product/") for name in differing)
    assert any(name.startswith("/queue_") for name in differing)
    assert after[0] == after[1]


@bench_of("engine")
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
    await command(dut, "start", 0, 0)
    await FallingEdge(dut.clk)
    assert int(dut.error.value) == BUSY_ERROR | SIZE_ERROR
    await command(dut, "clear")
    key, seed = draw(rng, 100, 50, "modified")
    words = await hash_once(dut, key, seed, 50, "modified")
    assert np.array_equal(Geometry(100, 50).unpack_output(words), toeplitz_hash(key, seed, 50))


@bench_of("product")
async def bench_product_is_the_matrix_times_the_vector(dut):
    """A new block every clock, against the schoolbook."""
    width, latency = int(bench.parameter("width")), int(bench.parameter("latency"))
    rng = generator("toeplitz product", width)
    await bench.start(dut)
    diagonal = np.subtract.outer(np.arange(width), np.arange(width)) + width - 1
    blocks = rng.integers(0, 2, (300, 3 * width - 1)).astype(np.uint8)
    blocks[:2] = [[0], [1]]
    blocks[2 : 2 + 3 * width - 1] = np.eye(3 * width - 1, dtype=np.uint8)[: len(blocks) - 2]
    given = []
    for clock in range(len(blocks) + latency):
        if clock >= latency:
            given.append(int(dut.y.value))
        t, x = np.split(blocks[min(clock, len(blocks) - 1)], [2 * width - 1])
        dut.t.value, dut.x.value = number(t), number(x)
        await FallingEdge(dut.clk)
    expected = [
        number(block[: 2 * width - 1][diagonal] @ block[2 * width - 1 :] & 1) for block in blocks
    ]
    assert given == expected


def number(bits):
    """Bits, lowest first, as an integer."""
    return int("".join(map(str, bits[::-1])), 2)


@pytest.mark.parametrize("simulator", bench.simulators())
@pytest.mark.parametrize("smallest", [8, 64])
def test_toeplitz(simulator, smallest):
    from keyrail_gateware.toeplitz import Toeplitz as Gateware

    component = Gateware(INPUT_BITS, OUTPUT_BITS, smallest)
    parameters = {"block": "engine", "smallest": smallest}
    bench.run(component, simulator, "test_toeplitz", parameters=parameters)


@pytest.mark.parametrize("simulator", bench.simulators())
@pytest.mark.parametrize(("width", "smallest"), [(64, 8), (8, 1), (16, 16)])
def test_product(simulator, width, smallest):
    from keyrail_gateware.toeplitz import ToeplitzProduct

    component = ToeplitzProduct(width, smallest)
    parameters = {"block": "product", "width": width, "latency": component.latency}
    bench.run(component, simulator, "test_toeplitz", parameters=parameters)


@pytest.mark.parametrize("sizes", [(48, 8), (64, 3), (0, 1)])
def test_product_sizes_are_powers_of_two(sizes):
    from keyrail_gateware.toeplitz import ToeplitzProduct

    with pytest.raises(ValueError, match="allowed are powers of two"):
        ToeplitzProduct(*sizes)


@pytest.mark.parametrize(("n", "m", "family"), [(70, 65, "plain"), (300, 70, "modified")])
def test_twin_equals_the_reference(n, m, family):
    rng = generator("twin", n)
    key, seed = draw(rng, n, m, family)
    geometry = Geometry(n, m, family)
    twin = Toeplitz()
    twin.start(n, m, FAMILIES.index(family))
    assert twin.feed_key(geometry.pack_key(key)) == geometry.key_words
    assert len(twin.output()) == 0
    assert twin.feed_seed(geometry.pack_seed(seed)) == geometry.seed_words
    hashed = geometry.unpack_output(twin.output())
    assert np.array_equal(hashed, reference(key, seed, m, family))
    assert twin.wiped
