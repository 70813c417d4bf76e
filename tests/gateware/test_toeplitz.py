# SPDX-License-Identifier: Apache-2.0
"""Toeplitz engine: the gateware against its twin and the reference implementation."""

import contextlib
from itertools import pairwise, product

import cocotb
import numpy as np
import pytest
from cocotb.triggers import FallingEdge

import bench
from bench import Sink, Source, generator, settle, until
from keyrail.contract import ToeplitzError
from keyrail.distil.toeplitz import Geometry, seed_bits, tiles, toeplitz_hash
from keyrail_sim.models.toeplitz import Toeplitz

INPUT_BITS, OUTPUT_BITS = 2048, 1024
FAMILIES = ("plain", "modified")
RUN, FINISH, FAILED = 2, 3, 5


CORES = {
    "128-2": (128, 2, 4, False),
    "64-0": (64, 0, 64, False),
    "256-1": (256, 1, 16, False),
    "64-0-compact": (64, 0, 8, True),
}
"""Width, splits, smallest product of the engines tried, and whether they are compact.

The stations' own has benches there.
"""


def engine(core=None):
    from keyrail_gateware.toeplitz import Toeplitz as Gateware

    width, splits, smallest, compact = CORES[core or bench.parameter("core")]
    sizes = {"width": width, "splits": splits, "smallest": smallest}
    return Gateware(INPUT_BITS, OUTPUT_BITS, **sizes, compact=compact)


async def begin(dut):
    dut.framed.value, dut.patience.value = 1, 0
    dut.key__payload.value = dut.seed__payload.value = 0
    await bench.start(dut)
    await until(dut, lambda: dut.wiped.value == 1)


def frame(words):
    """Payloads of words, the last one marked."""
    return [int(word) | (i == len(words) - 1) << 64 for i, word in enumerate(words)]


def unframed(payloads):
    """Words of payloads, of which only the last one is marked."""
    assert [payload >> 64 for payload in payloads] == [0] * (len(payloads) - 1) + [1]
    return np.array([payload & (1 << 64) - 1 for payload in payloads], np.uint64)


async def command(dut, name, n=0, m=0, family="modified", continued=0, unfinished=0):
    dut.n.value, dut.m.value = n, m
    dut.continued.value, dut.unfinished.value = continued, unfinished
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
        cocotb.start_soon(Source(dut, "key", shares[0]).send(frame(geometry.pack_key(key)))),
        cocotb.start_soon(Source(dut, "seed", shares[1]).send(frame(geometry.pack_seed(seed)))),
    ]
    for feed in feeds:
        await feed
    await until(dut, lambda: len(sink.received) == geometry.rows)
    await until(dut, lambda: dut.wiped.value == 1)
    assert len(sink.received) == geometry.rows
    return unframed(sink.received)


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
        await Source(dut, "key").send(frame(key))
        await Source(dut, "seed").send(frame(seed))
        await until(dut, lambda: dut.wiped.value == 1)
        assert np.array_equal(unframed(sink.received), twin.output())


async def hash_many(dut, sink, blocks, shares=(1.0, 1.0)):
    """Hash blocks one behind the other, each started as soon as may be.

    Gives output words, and the clock at which each block's last word was taken.
    """
    sink.received.clear()
    key_source, seed_source = Source(dut, "key", shares[0]), Source(dut, "seed", shares[1])

    async def keys():
        for key, _, m, family in blocks:
            await key_source.send(frame(Geometry(len(key), m, family).pack_key(key)))

    async def seeds():
        for key, seed, m, family in blocks:
            await seed_source.send(frame(Geometry(len(key), m, family).pack_seed(seed)))

    async def starts():
        for key, _, m, family in blocks:
            await until(dut, lambda: dut.free.value == 1)
            await command(dut, "start", len(key), m, family)

    ends, clock, seen = [], 0, 0
    tasks = [cocotb.start_soon(task()) for task in (keys, seeds, starts)]
    while len(ends) < len(blocks):
        await FallingEdge(dut.clk)
        clock += 1
        assert int(dut.error.value) == 0
        assert clock < 200_000
        ends += [clock] * sum(payload >> 64 for payload in sink.received[seen:])
        seen = len(sink.received)
    for task in tasks:
        await task
    outputs, last = [], 0
    for key, _, m, family in blocks:
        rows = Geometry(len(key), m, family).rows
        outputs.append(unframed(sink.received[last : last + rows]))
        last += rows
    await until(dut, lambda: dut.wiped.value == 1)
    return outputs, ends


@cocotb.test()
@cocotb.parametrize(family=FAMILIES)
async def bench_clocks_of_a_block(dut, family):
    """The formula of `clocks` is exact, with a key, a seed and an output that never wait."""
    rng = generator("toeplitz clocks", family)
    clocks = engine().clocks
    await begin(dut)
    sink = Sink(dut, "o")
    sizes = [(2048, 1024), (1000, 300), (300, 1), (900, 130), (1024, 64), (2000, 896)]
    # Last groups of output so short that the identity's part for the one before still comes in.
    sizes += [(2411, 555), (2160, 640), (2152, 704), (2200, 768)] * (family == "modified")
    for n, m in sizes:
        blocks = [(*draw(rng, n, m, family), m, family) for _ in range(5)]
        outputs, ends = await hash_many(dut, sink, blocks)
        for (key, seed, *_), words in zip(blocks, outputs, strict=True):
            out = Geometry(n, m, family).unpack_output(words)
            assert np.array_equal(out, toeplitz_hash(key, seed, m, family))
        assert set(np.diff(ends[1:])) == {clocks(n, m, family)}, (n, m, ends)


@cocotb.test()
@cocotb.parametrize(shares=[(1.0, 1.0, 1.0), (0.5, 0.4, 0.3), (0.9, 0.05, 0.8)])
async def bench_blocks_behind_each_other(dut, shares):
    """Sizes and families change from block to block while one is worked on."""
    rng = generator("toeplitz behind", shares)
    await begin(dut)
    sink = Sink(dut, "o", shares[2])
    blocks = []
    for _ in range(12):
        n = int(rng.integers(1, 1025))
        m, family = int(rng.integers(1, min(n, 512) + 1)), FAMILIES[rng.integers(0, 2)]
        blocks.append((*draw(rng, n, m, family), m, family))
    outputs, _ = await hash_many(dut, sink, blocks, shares[:2])
    for (key, seed, m, family), words in zip(blocks, outputs, strict=True):
        out = Geometry(len(key), m, family).unpack_output(words)
        assert np.array_equal(out, toeplitz_hash(key, seed, m, family))


@cocotb.test()
@cocotb.parametrize(family=FAMILIES)
async def bench_tiles_of_a_larger_matrix(dut, family):
    """Rows of tiles, the accumulators kept: one hash of more than the engine's n and m."""
    rng = generator("toeplitz tiles", family)
    await begin(dut)
    sink = Sink(dut, "o", 0.7)
    for n, m, width, height in ((5000, 1500, 2048, 1024), (2100, 130, 700, 100)):
        key, seed = draw(rng, n, m, family)
        twin = Toeplitz(INPUT_BITS, OUTPUT_BITS)
        whole = np.zeros(0, np.uint8)
        for row in tiles(key, seed, m, family, width, height):
            sink.received.clear()
            for tile in row:
                arguments = (tile.n, tile.m, tile.family)
                marks = {"continued": int(tile.continued), "unfinished": int(tile.unfinished)}
                await until(dut, lambda: dut.free.value == 1)
                await command(dut, "start", *arguments, **marks)
                twin.start(tile.n, tile.m, FAMILIES.index(tile.family), **marks)
                key_task = cocotb.start_soon(Source(dut, "key").send(frame(tile.key)))
                await Source(dut, "seed", 0.8).send(frame(tile.seed))
                await key_task
                twin.feed_key(tile.key)
                twin.feed_seed(tile.seed)
                expected = twin.output()
            await until(dut, lambda: dut.wiped.value == 1)
            words = unframed(sink.received)
            assert np.array_equal(words, expected)
            bits = np.unpackbits(words.astype("<u8").view(np.uint8), bitorder="little")
            whole = np.concatenate([whole, bits[: row[0].m]])
        assert np.array_equal(whole, toeplitz_hash(key, seed, m, family))


@cocotb.test()
@cocotb.parametrize(family=FAMILIES)
async def bench_clocks_of_tiles(dut, family):
    """The formula of `clocks` is exact for tiles too, from the start of one to that of the next."""
    rng = generator("toeplitz tile clocks", family)
    await begin(dut)
    Sink(dut, "o")
    n, m = 7000, 2048
    key, seed = draw(rng, n, m, family)
    row_of_tiles = list(tiles(key, seed, m, family, 2048, 1024))
    flat = [tile for row in row_of_tiles for tile in row]

    async def keys():
        source = Source(dut, "key")
        for tile in flat:
            await source.send(frame(tile.key))

    async def seeds():
        source = Source(dut, "seed")
        for tile in flat:
            await source.send(frame(tile.seed))

    async def starts():
        for tile in flat:
            await until(dut, lambda: dut.free.value == 1)
            marks = {"continued": int(tile.continued), "unfinished": int(tile.unfinished)}
            await command(dut, "start", tile.n, tile.m, tile.family, **marks)

    for task in (keys, seeds, starts):
        cocotb.start_soon(task())
    began, clock, former = [], 0, None
    while len(began) < len(flat):
        await FallingEdge(dut.clk)
        clock += 1
        assert clock < 200_000
        state = int(dut.state.value)
        if state == RUN and former != RUN:
            began.append(clock)
        former = state
    clocks = engine().clocks
    expected = [
        # The next row's first tile brings an identity part, for which the formula has one family.
        clocks(tile.n + tile.m, tile.m, "modified")
        if following.family == "modified"
        else clocks(tile.n, tile.m, tile.family, unfinished=tile.unfinished)
        for tile, following in pairwise(flat)
    ]
    # After the first two, in which the keys come in that are worked on later.
    assert list(np.diff(began))[1:] == expected[1:]


@cocotb.test()
async def bench_wipe_and_reset_in_mid_block(dut):
    rng = generator("toeplitz wipe")
    await begin(dut)
    sink = Sink(dut, "o", 0.3)
    geometry = Geometry(900, 300)
    for clocks, end in ((3, "wipe"), (40, "wipe"), (70, "rst"), (10, "rst")):
        key, seed = draw(rng, 900, 300, "modified")
        await command(dut, "start", 900, 300)
        feeds = [
            cocotb.start_soon(Source(dut, name).send(frame(words)))
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


async def fails_with(dut, error):
    """The engine is stopped, wiped and says why; then the error is cleared."""
    await until(dut, lambda: int(dut.error.value) == 1 << error)
    await until(dut, lambda: int(dut.state.value) == FAILED)
    assert dut.busy.value == 1
    for _ in range(20):
        await FallingEdge(dut.clk)
    await command(dut, "clear")
    await FallingEdge(dut.clk)
    assert int(dut.error.value) == 0
    await until(dut, lambda: dut.free.value == 1)


async def works(dut, rng, sink):
    key, seed = draw(rng, 900, 300, "modified")
    words = await hash_once(dut, key, seed, 300, "modified", sink=sink)
    assert np.array_equal(Geometry(900, 300).unpack_output(words), toeplitz_hash(key, seed, 300))


@cocotb.test()
async def bench_errors_are_named_and_give_no_output(dut):
    rng = generator("toeplitz errors")
    await begin(dut)
    sink = Sink(dut, "o")
    sizes = (
        (0, 0),
        (10, 0),
        (10, 11),
        (INPUT_BITS + 6, 5),
        (1000, OUTPUT_BITS + 1),
        (2**32 - 1, 5),
    )
    for n, m in sizes:
        await command(dut, "start", n, m)
        await fails_with(dut, ToeplitzError.SIZE)
    await command(dut, "start", 100, 50, continued=1)
    await fails_with(dut, ToeplitzError.TILE_ORDER)
    await command(dut, "start", 100, 50)
    await command(dut, "start", 100, 50)
    await fails_with(dut, ToeplitzError.BUSY)
    await works(dut, rng, sink)
    geometry = Geometry(900, 300)
    for part, words, error in (
        ("key", geometry.key_words - 1, ToeplitzError.KEY_SHORT),
        ("key", geometry.key_words + 1, ToeplitzError.KEY_LONG),
        ("seed", 1, ToeplitzError.SEED_SHORT),
        ("seed", geometry.seed_words - 1, ToeplitzError.SEED_SHORT),
        ("seed", geometry.seed_words + 1, ToeplitzError.SEED_LONG),
    ):
        sink.received.clear()
        await command(dut, "start", 900, 300)
        counts = {"key": geometry.key_words, "seed": geometry.seed_words, part: words}
        sources = [
            cocotb.start_soon(
                Source(dut, name).send(frame(rng.integers(0, 1 << 64, count, dtype=np.uint64)))
            )
            for name, count in counts.items()
        ]
        for source in sources:
            await source
        await fails_with(dut, error)
        assert sink.received == []
        await works(dut, rng, sink)
    dut.patience.value = 100
    for name, error in (("seed", ToeplitzError.KEY_MISSING), ("key", ToeplitzError.SEED_MISSING)):
        sink.received.clear()
        await command(dut, "start", 900, 300)
        count = {"key": geometry.key_words, "seed": geometry.seed_words}[name]
        await Source(dut, name).send(frame(rng.integers(0, 1 << 64, count, dtype=np.uint64)))
        await fails_with(dut, error)
        assert sink.received == []
        await works(dut, rng, sink)


@cocotb.test()
async def bench_clear_in_the_clocks_that_end_the_wipe(dut):
    await begin(dut)
    failing, after = 0, [0]
    while after:
        await command(dut, "start", 0, 0)
        await until(dut, lambda: int(dut.error.value) != 0)
        if not failing:
            while int(dut.state.value) != FAILED:
                await FallingEdge(dut.clk)
                failing += 1
            after = [failing + i for i in range(-4, 3)]
        else:
            for _ in range(after.pop()):
                await FallingEdge(dut.clk)
        await command(dut, "clear")
        await until(dut, lambda: dut.wiped.value == 1 and dut.free.value == 1, 1000)
        assert int(dut.error.value) == 0


@cocotb.test()
async def bench_short_keys_behind_a_long_one(dut):
    """The long key is still being overwritten when the next block ends."""
    rng = generator("toeplitz short behind long")
    await begin(dut)
    sink = Sink(dut, "o")
    blocks = [(*draw(rng, n, 1, "plain"), 1, "plain") for n in (2048, 1, 1, 1, 2048, 1, 1)]
    outputs, _ = await hash_many(dut, sink, blocks)
    for (key, seed, m, family), words in zip(blocks, outputs, strict=True):
        assert words[0] == toeplitz_hash(key, seed, m, family)[0]


@cocotb.test()
async def bench_a_key_passes_to_its_identity_part_as_a_block_ends(dut):
    """Zeros, not words of the next key, overwrite the key that has been used, at every clock."""
    rng = generator("toeplitz identity")
    await begin(dut)
    sink = Sink(dut, "o")
    for held_back in range(16):
        blocks = [(*draw(rng, n, 100, "modified"), 100) for n in (700, 250, 300)]
        packed = [Geometry(len(key), 100).pack_key(key) for key, *_ in blocks]
        sink.received.clear()

        async def seeds(blocks=blocks):
            source = Source(dut, "seed")
            for key, seed, m in blocks:
                await source.send(frame(Geometry(len(key), m).pack_seed(seed)))

        async def starts():
            for n in (700, 250, 300):
                await until(dut, lambda: dut.free.value == 1)
                await command(dut, "start", n, 100)

        tasks = [cocotb.start_soon(seeds()), cocotb.start_soon(starts())]
        source = Source(dut, "key")
        await source.send(frame(packed[0]))
        second = frame(packed[1])
        await source.send(second[:2])
        await until(dut, lambda: int(dut.state.value) == FINISH)
        for _ in range(held_back):
            await FallingEdge(dut.clk)
        await source.send(second[2:])
        await source.send(frame(packed[2]))
        for task in tasks:
            await task
        await until(dut, lambda: dut.wiped.value == 1)
        for i, (key, seed, m) in enumerate(blocks):
            out = Geometry(len(key), m).unpack_output(unframed(sink.received[2 * i : 2 * i + 2]))
            assert np.array_equal(out, toeplitz_hash(key, seed, m)), (held_back, i)


@cocotb.test()
async def bench_a_seed_serves_one_hash(dut):
    rng = generator("toeplitz reuse")
    await begin(dut)
    sink = Sink(dut, "o")
    key, seed = draw(rng, 900, 300, "modified")
    other, _ = draw(rng, 900, 300, "modified")
    await hash_once(dut, key, seed, 300, "modified", sink=sink)
    sink.received.clear()
    geometry = Geometry(900, 300)
    await command(dut, "start", 900, 300)
    await Source(dut, "key").send(frame(geometry.pack_key(other)))
    await Source(dut, "seed").send(frame(geometry.pack_seed(seed)))
    await fails_with(dut, ToeplitzError.SEED_REUSED)
    assert sink.received == []
    await works(dut, rng, sink)


def holding(handle, found, path=""):
    """Values of every memory word and register below a handle, by path."""
    value = getattr(handle, "value", None)
    if value is not None and not isinstance(value, list):
        with contextlib.suppress(ValueError, TypeError, AttributeError):
            found[path] = (len(value), int(value))
            return
    with contextlib.suppress(TypeError):
        for child in handle:
            name = getattr(child, "_name", "?").strip()
            if "former_fingerprint" not in name:
                holding(child, found, f"{path}.{name}")


@cocotb.test()
async def bench_nothing_is_left_after_a_wipe_or_reset(dut):
    """A pattern in key and seed: everywhere before the wipe, nowhere after it."""
    rng = generator("toeplitz traces")
    await begin(dut)
    pattern = 0xB5B5B5B5B5B5B5B5
    geometry = Geometry(2048, 1000)
    fresh = {}
    holding(dut, fresh)
    assert len(fresh) > 300
    # Before the seed, within it, behind it, and with words of output on their way.
    whole = geometry.seed_words
    moments = ((0, 0, 0), (whole - 1, 0, 0), (whole - 1, 300, 0), (whole, 0, 1), (whole, 0, 5))
    for (seed_words, clocks, taken), end in product(moments, ("wipe", "rst")):
        dut.o__ready.value = 0
        await command(dut, "start", 2048, 1000)
        await Source(dut, "key").send(frame([pattern] * geometry.key_words))
        seed = [int(rng.integers(1 << 64, dtype=np.uint64)), *[pattern] * (whole - 1)]
        await Source(dut, "seed").send(frame(seed)[:seed_words])
        for _ in range(clocks + int(rng.integers(0, 9))):
            await FallingEdge(dut.clk)
        if taken:
            await until(dut, lambda: dut.o__valid.value == 1)
            dut.o__ready.value = 1
            for _ in range(2 * taken + int(rng.integers(0, 2))):
                await FallingEdge(dut.clk)
            dut.o__ready.value = 0
            for _ in range(4):
                await FallingEdge(dut.clk)
        dut.key__payload.value = dut.seed__payload.value = 0

        found = {}
        holding(dut, found)
        planted = [path for path, (_, value) in found.items() if f"{pattern:x}" in f"{value:x}"]
        memories = [path for path in planted if "key_" in path]
        assert len(planted) > 3
        assert any("product" in path for path in found)
        assert memories or taken
        dut.o__ready.value = 1
        if end == "rst":
            await bench.reset(dut)
        else:
            await command(dut, "wipe")
        await until(dut, lambda: dut.wiped.value == 1)
        found = {}
        holding(dut, found)
        for path, (bits, value) in found.items():
            assert f"{pattern:x}" not in f"{value:x}", path
            # Whatever has a name and is wider than a counter is as it was after reset.
            if bits >= 34 and "$" not in path:
                assert value == fresh[path][1], path


@pytest.mark.parametrize("simulator", bench.simulators())
@pytest.mark.parametrize("core", CORES)
def test_toeplitz(simulator, core):
    bench.run(engine(core), simulator, "test_toeplitz", parameters={"core": core})


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
