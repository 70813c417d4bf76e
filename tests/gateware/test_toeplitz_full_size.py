# SPDX-License-Identifier: Apache-2.0
"""Toeplitz engine at full size: 2^20 bits to 2^18, blocks of 512 x 512. `make test-full-size`."""

import os

import cocotb
import numpy as np
import pytest
from cocotb.triggers import ClockCycles, FallingEdge, RisingEdge

import bench
import toeplitz_known_answers as known_answers
from bench import generator
from keyrail.distil.toeplitz import Geometry, toeplitz_hash

N, M = 1 << 20, 1 << 18
WORD = (1 << 64) - 1
RUN = 2

pytestmark = pytest.mark.skipif(
    "KEYRAIL_FULL_SIZE" not in os.environ, reason="some minutes long: make test-full-size"
)


def engine():
    from keyrail_gateware.toeplitz import Toeplitz

    return Toeplitz(1 << 20, 1 << 19, width=512, splits=2)


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
            # Not looked at each clock: ready stays until words come.
            valid.value = 0
            if not ready.value:
                await RisingEdge(ready)
                await FallingEdge(dut.clk)
            valid.value = 1
    valid.value = 0


@cocotb.test()
async def bench_full_size(dut):
    """Two blocks behind each other: known answer, and clocks as the formula says."""
    await bench.start(dut)
    dut.framed.value = 1
    while not dut.wiped.value:
        await ClockCycles(dut.clk, 100)
    await FallingEdge(dut.clk)
    geometry = Geometry(N, M)
    key, seed = known_answers.draw(N, M, "modified")
    rng = generator("toeplitz full size")
    blocks = [
        (key, seed),
        (rng.integers(0, 2, N).astype(np.uint8), rng.integers(0, 2, len(seed)).astype(np.uint8)),
    ]
    # The second one's identity part is taken in behind the first one's output, as ever after.
    blocks.append((key, blocks[1][1][::-1].copy()))

    async def keys():
        for one, _ in blocks:
            await send(dut, "key", geometry.pack_key(one))

    async def seeds():
        for _, one in blocks[:2]:
            await send(dut, "seed", geometry.pack_seed(one))

    async def starts():
        for _ in blocks:
            while not dut.free.value:
                await ClockCycles(dut.clk, 16)
                await FallingEdge(dut.clk)
            dut.n.value, dut.m.value, dut.family.value = N, M, 1
            dut.start.value = 1
            await FallingEdge(dut.clk)
            dut.start.value = 0

    for task in (keys, seeds, starts):
        cocotb.start_soon(task())
    dut.o__ready.value = 1
    words, began, clock, running = [], [], 0, False
    while len(began) < len(blocks):
        await FallingEdge(dut.clk)
        clock += 1
        if dut.o__valid.value:
            words.append(int(dut.o__payload.value) & WORD)
        now = int(dut.state.value) == RUN
        if now and not running:
            began.append(clock)
        running = now
    assert int(dut.error.value) == 0
    assert began[2] - began[1] == engine().clocks(N, M)
    first, second = words[: geometry.rows], words[geometry.rows :]
    answer = known_answers.answer(geometry.unpack_output(first))
    assert {"n": N, "m": M, "family": "modified"} | answer in known_answers.known()
    assert np.array_equal(geometry.unpack_output(second), toeplitz_hash(*blocks[1], M))


def test_full_size():
    bench.run(engine(), "verilator", "test_toeplitz_full_size")
