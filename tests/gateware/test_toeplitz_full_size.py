# SPDX-License-Identifier: Apache-2.0
"""Toeplitz engine at full size: 2^20 bits to 2^18, blocks of 512 x 512. `make test-full-size`."""

import os

import cocotb
import numpy as np
import pytest
from cocotb.triggers import ClockCycles, FallingEdge

import bench
from bench import generator
from keyrail.distil.toeplitz import Geometry, seed_bits, toeplitz_hash

N, M = 1 << 20, 1 << 18
WORD = (1 << 64) - 1

pytestmark = pytest.mark.skipif(
    "KEYRAIL_FULL_SIZE" not in os.environ, reason="some minutes long: make test-full-size"
)


def engine():
    from keyrail_gateware.toeplitz import Toeplitz

    return Toeplitz(1 << 20, 1 << 19, width=512, splits=2)


def draw():
    rng = generator("toeplitz full size")
    key = rng.integers(0, 2, N).astype(np.uint8)
    return key, rng.integers(0, 2, seed_bits(N, M)).astype(np.uint8)


async def send(dut, name, words):
    """Offer words without a pause."""
    valid, ready, payload = (
        getattr(dut, f"{name}__{part}") for part in ("valid", "ready", "payload")
    )
    valid.value = 1
    for i, word in enumerate(words):
        payload.value = int(word) | (i == len(words) - 1) << 64
        while True:
            taken = ready.value
            await FallingEdge(dut.clk)
            if taken:
                break
            # Look again only now and then: ready stays until words come.
            valid.value = 0
            while not ready.value:
                await ClockCycles(dut.clk, 16)
                await FallingEdge(dut.clk)
            valid.value = 1
    valid.value = 0


@cocotb.test()
async def bench_full_size(dut):
    await bench.start(dut)
    dut.framed.value = 1
    while not dut.wiped.value:
        await ClockCycles(dut.clk, 100)
    await FallingEdge(dut.clk)
    key, seed = draw()
    geometry = Geometry(N, M)
    dut.n.value, dut.m.value, dut.family.value = N, M, 1
    dut.start.value = 1
    await FallingEdge(dut.clk)
    dut.start.value = 0
    tasks = [
        cocotb.start_soon(send(dut, "key", geometry.pack_key(key))),
        cocotb.start_soon(send(dut, "seed", geometry.pack_seed(seed))),
    ]
    dut.o__ready.value = 0
    while not dut.o__valid.value:
        await ClockCycles(dut.clk, 50 if int(dut.state.value) == 2 else 1)
        await FallingEdge(dut.clk)
        assert int(dut.error.value) == 0
    dut.o__ready.value = 1
    words = []
    while len(words) < geometry.rows:
        if dut.o__valid.value:
            words.append(int(dut.o__payload.value) & WORD)
        await FallingEdge(dut.clk)
    for task in tasks:
        await task
    out = geometry.unpack_output(words)
    assert np.array_equal(out, toeplitz_hash(key, seed, M))
    dut._log.info(f"clocks between blocks: {engine().clocks(N, M)}")


def test_full_size():
    bench.run(engine(), "verilator", "test_toeplitz_full_size")


def test_the_host_equals_the_reference():
    from galois import GF2
    from randextract import ModifiedToeplitzHashing

    key, seed = draw()
    expected = ModifiedToeplitzHashing(input_length=N, output_length=M).extract(GF2(key), GF2(seed))
    assert np.array_equal(toeplitz_hash(key, seed, M), np.asarray(expected))
