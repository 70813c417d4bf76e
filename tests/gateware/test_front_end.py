# SPDX-License-Identifier: Apache-2.0
"""Front end: conditioning and merge together, each input with its own settings."""

import cocotb
import numpy as np
import pytest
from cocotb.triggers import FallingEdge, ReadOnly

import bench
from bench import generator, structured
from keyrail.contract import COUNTER_BITS, LEDGERS, TAG, TIME_BITS, TagKind
from keyrail_sim.models.condition import Condition, Settings
from test_condition import packed

INPUTS, DEPTH, CLOCK_PS = 3, 256, 10_000
WRAP = 1 << TIME_BITS


def counters(dut, block: str) -> dict[str, int]:
    value, mask = int(getattr(dut, f"{block}__live").value), (1 << COUNTER_BITS) - 1
    names = [counter.name for counter in LEDGERS[block][1]]
    return {name: value >> COUNTER_BITS * n & mask for n, name in enumerate(names)}


async def flush(dut, start: int) -> None:
    """Empty the queues, with the watermarks at `start`."""
    dut.flush.value = 1
    for n in range(INPUTS):
        getattr(dut, f"i_{n}").value = start << 51
    await FallingEdge(dut.clk)
    dut.flush.value = 0
    for _ in range(DEPTH + 28):
        await FallingEdge(dut.clk)
    assert not dut.busy.value


@cocotb.test()
@cocotb.parametrize(key_mode=[False, True])
async def bench_random(dut, key_mode):
    rng = generator("front_end", key_mode)
    share = 0.05 if key_mode else 0.1
    settings = [
        Settings(delay=1_000_000, dead_time=50_000),
        Settings(delay=-1_000_000, divider=3),
        Settings(dead_time=30_000, paralysable=1),
    ]
    await bench.start(dut)
    dut.settings.value = sum(packed(one) << 64 * n for n, one in enumerate(settings))
    dut.limits.value = 1 << 32  # input 1: more than one event
    dut.key_mode.value = int(key_mode)
    dut.o__ready.value = 1
    start = WRAP - 3 * 10**6
    sent: list[list[int]] = [[] for _ in range(INPUTS)]
    got = []
    await flush(dut, start)
    for clock in range(900):
        mark = start + clock * CLOCK_PS
        for n in range(INPUTS):
            valid = clock < 500 and rng.random() < share
            time = mark + int(rng.integers(0, CLOCK_PS))
            if valid:
                sent[n].append(time)
            word = int(valid) | time % WRAP << 1 | 1 << 50 | mark % WRAP << 51
            getattr(dut, f"i_{n}").value = word
        await ReadOnly()
        if dut.o__valid.value:
            got.append(int(dut.o__payload.value))
        await FallingEdge(dut.clk)
    tags = structured(TAG, got)
    clicks = tags[tags["kind"] == TagKind.CLICK]
    twins = [Condition(one, key_mode) for one in settings]
    times = [twin.process(np.array(s, np.int64))[0] for twin, s in zip(twins, sent, strict=True)]
    every = np.concatenate(times)
    channel = np.repeat(np.arange(INPUTS), [len(one) for one in times])
    order = np.lexsort((channel, every))
    assert np.array_equal(clicks["time"], every[order] % WRAP)
    assert np.array_equal(clicks["channel"], channel[order])
    condition = {name: sum(t.counts[name] for t in twins) for name in twins[0].counts}
    assert counters(dut, "condition") == condition
    out = condition["out"]
    assert counters(dut, "merge") == {"in": out, "out": out, "refused": 0}
    assert int(dut.held.value) == 0
    # In key mode an alarm tells of 10^4 events at least.
    assert int(dut.alarm.value) == (0 if key_mode else 0b010)
    dut.clear.value = 0b010
    dut.limits.value = 0
    await FallingEdge(dut.clk)
    assert int(dut.alarm.value) == 0


@cocotb.test()
@cocotb.parametrize(delays=[(10**6, -(10**6), 0), (-999_999, 1, 10**6 - 1), (-(10**6), 7, 10**6)])
async def bench_delays_at_full_rate(dut, delays):
    """An event in every clock, from one input or by turns: all come, to the ps, in order."""
    rng = generator("front_end delays", delays)
    await bench.start(dut)
    settings = [Settings(delay=delay) for delay in delays]
    dut.settings.value = sum(packed(one) << 64 * n for n, one in enumerate(settings))
    dut.limits.value = dut.key_mode.value = 0
    dut.o__ready.value = 1
    start = WRAP - 5 * 10**6
    await flush(dut, start)
    sent, got, refused = [], [], 0
    for clock in range(1600):
        mark = start + clock * CLOCK_PS
        for n in range(INPUTS):
            turn = clock // 300 if clock < 900 else clock % INPUTS
            valid = clock < 1200 and turn == n
            time = mark + int(rng.integers(0, CLOCK_PS))
            if valid:
                sent.append((time + delays[n], n))
            word = int(valid) | time % WRAP << 1 | 1 << 50 | mark % WRAP << 51
            getattr(dut, f"i_{n}").value = word
        await ReadOnly()
        refused += int(dut.refused.value)
        if dut.o__valid.value:
            got.append(int(dut.o__payload.value))
        await FallingEdge(dut.clk)
    assert refused == 0
    tags = structured(TAG, got)
    clicks = tags[tags["kind"] == TagKind.CLICK]
    wanted = [(time % WRAP, n) for time, n in sorted(sent)]
    assert list(zip(clicks["time"].tolist(), clicks["channel"].tolist(), strict=True)) == wanted
    assert len(wanted) == 1200


@pytest.mark.parametrize("simulator", bench.simulators())
def test_front_end(simulator):
    from keyrail_gateware.front_end import FrontEnd

    bench.run(FrontEnd(INPUTS, DEPTH), simulator, "test_front_end", "front_end")
