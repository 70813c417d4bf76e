# SPDX-License-Identifier: Apache-2.0
"""Condition: the gateware against its twin, the twin against the rules spelt out."""

import cocotb
import numpy as np
import pytest
from cocotb.triggers import FallingEdge, ReadOnly

import bench
from bench import generator
from keyrail.contract import DELAY_MAXIMUM_PS, TIME_BITS, Role, registers
from keyrail_sim.models.condition import Condition, Settings

CLOCK_PS, LATENCY, WINDOW_LOG2, AGGREGATE = 10_000, 4, 20, 100
WRAP = 1 << TIME_BITS
FIELDS = {field.name: field.bits for field in registers(Role.RECEIVER)["condition_0"].fields}


def packed(settings: Settings) -> int:
    """Value of the register."""
    value = position = 0
    for name, bits in FIELDS.items():
        value |= (int(getattr(settings, name)) & ((1 << bits) - 1)) << position
        position += bits
    return value


def random_settings(rng: np.random.Generator) -> Settings:
    return Settings(
        enable=int(rng.random() < 0.95),
        delay=int(rng.choice([0, -DELAY_MAXIMUM_PS, DELAY_MAXIMUM_PS, rng.integers(-9999, 9999)])),
        paralysable=int(rng.integers(0, 2)),
        dead_time=int(rng.choice([0, 1, 9_999, 10_000, 35_000, (1 << 28) - 1])),
        divider=int(rng.choice([0, 1, 2, 7])),
    )


@cocotb.test()
@cocotb.parametrize(key_mode=[False, True])
async def bench_random(dut, key_mode):
    rng = generator("condition", key_mode)
    await bench.start(dut)
    dut.key_mode.value = int(key_mode)
    for case in range(14):
        settings = random_settings(rng)
        dut.settings.value = packed(settings)
        await bench.reset(dut)
        start = int(rng.choice([10**7, WRAP - 10**6, (WRAP >> 1) - 10**6]))
        sent, got, passed = [], [], []
        drops = dict.fromkeys(("disabled", "dead", "divided"), 0)
        edges, last, bound = [], start, None
        share = float(rng.choice([0.1, 0.6, 1.0]))
        jump = 0
        for clock in range(150 + LATENCY):
            # In one case the input is dark for longer than half the range of the time.
            if case == 3 and clock in (60, 70, 80):
                jump += (1 << 47) - 10**6
            watermark = start + jump + clock * CLOCK_PS
            valid = clock < 150 and rng.random() < share
            # The promise of the input: in no later clock comes an earlier event.
            time = max(last, watermark - CLOCK_PS) + int(rng.integers(0, CLOCK_PS))
            time = min(time, watermark + CLOCK_PS)
            edge = int(rng.integers(0, 4))
            if valid:
                last = time
                sent.append(time)
                edges.append(edge)
            dut.i.value = int(valid) | time % WRAP << 1 | edge << 49 | watermark % WRAP << 51
            await ReadOnly()
            out = int(dut.o.value)
            if out & 1:
                got.append((out >> 1) % WRAP)
                passed.append(out >> 49 & 3)
                if clock > LATENCY:
                    ahead = ((out >> 1) - (out >> 51)) % WRAP
                    assert ahead < WRAP >> 1, "an event before the watermark"
            for name in drops:
                drops[name] += int(getattr(dut, name).value)
            mark = out >> 51
            if clock > LATENCY + 1:
                assert (mark - bound) % WRAP < WRAP >> 1
            bound = mark
            await FallingEdge(dut.clk)
        twin = Condition(settings, key_mode)
        times, which = twin.process(np.array(sent, np.int64))
        assert got == (times % WRAP).tolist()
        assert passed == np.array(edges, np.int64)[which].tolist()
        assert drops == {name: twin.counts[name] for name in drops}
        assert twin.counts["in"] == twin.counts["out"] + sum(drops.values())


@cocotb.test()
async def bench_rate_and_alarm(dut):
    """Windows of 2^20 ps hold 104 or 105 clocks; an event every other clock."""
    dut.key_mode.value = 0
    await bench.start(dut)
    dut.settings.value = packed(Settings(enable=0))  # the rate is that of the detector
    await bench.reset(dut)
    dut.limit.value = 40
    rates, alarm_at = set(), None
    for clock in range(700):
        time = clock * CLOCK_PS
        dut.i.value = int(clock % 2 == 0) | time << 1 | time << 51
        await FallingEdge(dut.clk)
        if clock > 300:
            rates.add(int(dut.rate.value))
        if alarm_at is None and dut.alarm.value:
            alarm_at = clock
            assert 80 <= clock <= 90
    assert rates <= {52, 53}
    assert int(dut.windows.value) == 1
    assert alarm_at is not None
    dut.limit.value = 60
    dut.clear.value = 1
    await FallingEdge(dut.clk)
    dut.clear.value = 0
    for clock in range(700, 1000):
        time = clock * CLOCK_PS
        dut.i.value = int(clock % 2 == 0) | time << 1 | time << 51
        await FallingEdge(dut.clk)
        assert not dut.alarm.value


@cocotb.test()
async def bench_rates_in_key_mode_are_aggregates(dut):
    """Of 100 events at least, in as many windows as that takes; every event in one of them."""
    rng = generator("condition aggregates")
    dut.key_mode.value = 1
    dut.limit.value = 10  # below the aggregate: 100 raise the alarm, not 10
    await bench.start(dut)
    seen, last = [], 0
    counted = windows = 0
    for clock in range(4000):
        time = clock * CLOCK_PS
        # Dense, thin, and nearly dark.
        valid = rng.random() < (0.6 if clock < 1500 else 0.1 if clock < 3000 else 0.5)
        dut.i.value = int(valid) | time << 1 | time << 51
        await FallingEdge(dut.clk)
        shown = int(dut.rate.value), int(dut.windows.value)
        if (time >> WINDOW_LOG2) != last:
            last = time >> WINDOW_LOG2
            seen.append(shown)
            windows += 1
        assert not dut.alarm.value
        counted += valid
    changes = [now for former, now in zip([(0, 0), *seen], seen, strict=False) if now != former]
    assert len(changes) > 8
    assert all(count >= AGGREGATE for count, _ in changes)
    assert {2, 3} < {number for _, number in changes}
    assert sum(number for _, number in changes) <= windows
    assert counted - 2 * AGGREGATE - 2 <= sum(count for count, _ in changes) <= counted
    for clock in range(4000, 4300):
        time = clock * CLOCK_PS
        dut.i.value = 1 | time << 1 | time << 51
        await FallingEdge(dut.clk)
    assert dut.alarm.value  # 104 in one window


@pytest.mark.parametrize("simulator", bench.simulators())
def test_condition(simulator):
    from keyrail_gateware.condition import Condition as Gateware

    bench.run(Gateware(WINDOW_LOG2, AGGREGATE), simulator, "test_condition")


def test_twin_follows_the_rules():
    times = np.array([0, 5, 10, 14, 19, 40, 41, 60], np.int64)

    def passing(**fields):
        return times[Condition(Settings(**fields)).process(times)[1]].tolist()

    assert passing(dead_time=10) == [0, 10, 40, 60]
    # Each event in the dead time begins it anew.
    assert passing(dead_time=10, paralysable=1) == [0, 40, 60]
    assert passing(divider=3) == [0, 14, 41]
    assert passing(dead_time=10, divider=2) == [0, 40]
    assert passing(enable=0) == []
    delayed, _ = Condition(Settings(delay=-7)).process(times)
    assert delayed.tolist() == (times - 7).tolist()
    in_key_mode = Condition(Settings(dead_time=10, divider=3), key_mode=True)
    assert in_key_mode.process(times)[0].tolist() == times.tolist()
