# SPDX-License-Identifier: Apache-2.0
"""The generator of states: the gateware against its twin."""

import cocotb
import numpy as np
import pytest
from cocotb.triggers import FallingEdge
from cocotb.utils import get_sim_time

import bench
from bench import Sink, Source, generator, settle, structured, until, words
from keyrail.contract import MISSED_SLOT, RECALLED, STATE_WORD
from keyrail.layouts import zeros
from keyrail.source import state_words, word_states
from keyrail_sim.models.generator import Generator


def key_words(key):
    return [int.from_bytes(key[i : i + 8], "little") for i in range(0, 32, 8)]


async def pulse(dut, name):
    await FallingEdge(dut.clk)
    getattr(dut, name).value = 1
    await FallingEdge(dut.clk)
    getattr(dut, name).value = 0


async def load(dut, key):
    dut.rekey.value = 1
    await Source(dut, "key").send(key_words(key))
    dut.rekey.value = 0


async def begin(dut, twin, first_slot, count, nonce):
    dut.first_word.value, dut.last_word.value = first_slot // 16, first_slot // 16 + count // 16 - 1
    dut.z.value, dut.signal.value, dut.nonce.value = twin.z, twin.signal, nonce
    dut.live.value = 1
    await pulse(dut, "start")


def recall_words(slots):
    records = zeros(MISSED_SLOT, len(slots))
    records["slot"] = slots
    return words(MISSED_SLOT, records)


@cocotb.test()
@cocotb.parametrize(
    share=[1.0, 0.1],
    bias=[(45875, 19661), (65536, 0)],
    first=[0, (1 << 41) - 16 * 3 - 512 * 2, (1 << 48) - 2048],
)
async def bench_words_and_answers(dut, share, bias, first):
    """Live words and recalled slots at the same time, over wraps of both counters."""
    rng = generator("generator", share, bias, first)
    key, nonce, count = rng.bytes(32), int(rng.integers(1 << 62)), 2048
    twin = Generator(key, nonce, *bias)
    await bench.start(dut)
    await load(dut, key)
    live, answers = Sink(dut, "words", share), Sink(dut, "recalled", share)
    await begin(dut, twin, first, count, nonce)
    slots = rng.integers(first, first + count, 40)
    await Source(dut, "missed", share).send(recall_words(slots))
    await until(dut, lambda: len(live.received) == count // 16)
    await settle(dut, live, answers, quiet=200)
    assert dut.working.value == 0
    assert len(live.received) == count // 16
    states = word_states(structured(STATE_WORD, live.received))
    assert np.array_equal(states, twin.states(first, count))
    assert np.array_equal(structured(RECALLED, answers.received), twin.recall(slots))
    assert np.array_equal(twin.states_at(slots), states[slots - first])


@cocotb.test()
async def bench_rate_and_a_key_that_is_used_once(dut):
    rng = generator("generator rate")
    key, count = rng.bytes(32), 512 * 6
    twin = Generator(key, 7, 58982, 61440)
    await bench.start(dut)
    live = Sink(dut, "words")
    await begin(dut, twin, 0, count, 7)
    await settle(dut, live, quiet=200)
    assert live.received == []  # no key, no states
    await load(dut, key)
    await until(dut, lambda: len(live.received) > 0)
    began = get_sim_time("step")
    await until(dut, lambda: len(live.received) == count // 16)
    clocks = (get_sim_time("step") - began) / bench.CLOCK_STEPS
    assert clocks <= 330 * count // 512
    got = structured(STATE_WORD, live.received)
    assert np.array_equal(got, state_words(twin.states(0, count)))
    # A block that begins before the end of the last would repeat bits; the next may begin there.
    await begin(dut, twin, count - 16, 512, 7)
    await settle(dut, live, quiet=200)
    assert dut.repeated.value == 1
    assert len(live.received) == count // 16
    await begin(dut, twin, count, 32, 7)
    await until(dut, lambda: len(live.received) == count // 16 + 2)
    assert dut.repeated.value == 0


@cocotb.test()
@cocotb.parametrize(by=["wipe", "rst"])
async def bench_nothing_of_the_key_stays(dut, by):
    rng = generator("generator wipe", by)
    key = rng.bytes(32)
    twin = Generator(key, 1, 45875, 19661)
    await bench.start(dut)
    await load(dut, key)
    live, answers = Sink(dut, "words", 0.02), Sink(dut, "recalled", 0.02)
    live.rst = answers.rst = getattr(dut, by)  # what takes an offer back
    await begin(dut, twin, 0, 4096, 1)
    await Source(dut, "missed").send(recall_words(np.arange(8)))
    await until(dut, lambda: len(live.received) > 3)
    assert dut.keyed.value == 1
    # Nobody waits for what is thrown away.
    live.share = answers.share = 0.0
    if by == "wipe":
        await pulse(dut, "wipe")
    else:
        await bench.reset(dut)
    assert dut.keyed.value == 0
    assert all(int(getattr(dut.cipher, f"word_{s}_{i}").value) == 0 for s, i in ((0, 4), (7, 11)))
    await until(dut, lambda: dut.busy.value == 0)
    for name in ("key", "bits", "bases", "decoys", "answer"):
        assert int(getattr(dut, name).value) == 0, name
    for fifo in (dut.made, dut.answers):
        assert all(int(fifo.memory[i].value) == 0 for i in range(16))
        assert fifo.o__valid.value == 0
    assert int(dut.cipher.result.value) == 0
    assert dut.words__valid.value == 0
    await load(dut, key)
    live.share, before = 1.0, len(live.received)
    await begin(dut, twin, 0, 512, 1)
    await until(dut, lambda: len(live.received) == before + 32)


@pytest.mark.parametrize("simulator", bench.simulators())
def test_generator(simulator):
    from keyrail_gateware.generator import Generator as Gateware

    bench.run(Gateware(), simulator, "test_generator")
