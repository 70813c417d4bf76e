# SPDX-License-Identifier: Apache-2.0
"""Gate: the gateware against its twin."""

import cocotb
import numpy as np
import pytest

import bench
from bench import Sink, Source, generator, ledger, settle, structured, words
from keyrail.contract import CHOSEN_TAG, GATED_TAG, PHASE_BITS, TagKind
from keyrail.layouts import Structured, zeros
from keyrail_sim.models.gate import Gate, Window

KINDS = (TagKind.CLICK, TagKind.TIME, TagKind.FRAME, TagKind.LOSS)
TOP = (1 << PHASE_BITS) - 1
WINDOW_BITS = 46


def random_windows(rng: np.random.Generator) -> list[Window]:
    """Windows that overlap, wrap, touch the ends, are empty, or are closed."""
    edges = np.concatenate([[0, 1, TOP - 1, TOP], rng.integers(0, 1 << PHASE_BITS, 4)])
    return [
        Window(*(int(edge) for edge in rng.choice(edges, 2)), *rng.integers(0, 2, 6).tolist())
        for _ in range(16)
    ]


def set_windows(dut, windows: list[Window]) -> None:
    dut.windows.value = sum(
        window.register() << (WINDOW_BITS * index) for index, window in enumerate(windows)
    )


def traffic(rng: np.random.Generator, count: int, windows: list[Window]) -> Structured:
    """Chosen tags whose phases lie on the windows' edges, beside them, and anywhere."""
    tags = zeros(CHOSEN_TAG, count)
    tags["slot"] = rng.integers(0, 1 << 48, count)
    tags["kind"] = rng.choice(KINDS, count, p=(0.85, 0.05, 0.05, 0.05))
    tags["channel"] = rng.integers(0, 8, count) * (tags["kind"] == TagKind.CLICK)
    tags["choice"] = rng.integers(0, 2, count) * (tags["kind"] == TagKind.CLICK)
    edges = np.array([window[:2] for window in windows]).reshape(8, -1)
    beside = edges[tags["channel"], rng.integers(0, 4, count)] + rng.integers(-1, 2, count)
    anywhere = rng.integers(0, 1 << PHASE_BITS, count)
    tags["phase"] = np.where(rng.random(count) < 0.7, beside & TOP, anywhere)
    return tags


def check(dut, twin: Gate) -> None:
    for when, counts in (("live", twin.ledger.live), ("at_frame", twin.ledger.at_frame)):
        assert ledger(dut, "gate", when) == counts
        assert counts["in"] == counts["out"] + counts["gated_out"]


@cocotb.test()
@cocotb.parametrize(shares=[(1.0, 1.0), (0.5, 0.7), (0.9, 0.3)])
async def bench_random(dut, shares):
    rng = generator("gate", shares)
    dut.windows.value = 0
    await bench.start(dut)
    source, sink = Source(dut, "i", shares[0]), Sink(dut, "o", shares[1])
    for _ in range(6):
        windows = random_windows(rng)
        set_windows(dut, windows)
        await bench.reset(dut)
        sink.received.clear()
        twin = Gate(windows)
        expected = []
        for count in (100, 300):
            tags = traffic(rng, count, windows)
            tags["channel"][rng.random(count) < 0.02] |= 8
            await source.send(words(CHOSEN_TAG, tags))
            await settle(dut, sink)
            expected.append(twin.process(tags))
        got = structured(GATED_TAG, sink.received)
        assert np.array_equal(got, np.concatenate(expected))
        check(dut, twin)
        assert twin.ledger.live["out"] > 0
        assert twin.ledger.live["gated_out"] > 0


@cocotb.test()
async def bench_full_rate(dut):
    rng = generator("gate rate")
    windows = [Window(0, 600_000, 1, n >> 1 & 1, n & 1, n & 1, n & 1, 1) for n in range(16)]
    set_windows(dut, windows)
    await bench.start(dut)
    tags = traffic(rng, 300, windows)
    got = await bench.full_rate(dut, words(CHOSEN_TAG, tags), 6)
    assert np.array_equal(structured(GATED_TAG, got), Gate(windows).process(tags))


@cocotb.test()
async def bench_reset_in_mid_frame(dut):
    rng = generator("gate reset")
    windows = random_windows(rng)
    set_windows(dut, windows)
    before, tags = traffic(rng, 50, windows), traffic(rng, 200, windows)
    got = await bench.reset_in_mid_frame(dut, words(CHOSEN_TAG, before), words(CHOSEN_TAG, tags))
    twin = Gate(windows)
    assert np.array_equal(structured(GATED_TAG, got), twin.process(tags))
    check(dut, twin)


@pytest.mark.parametrize("simulator", bench.simulators())
def test_gate(simulator):
    from keyrail_gateware.gate import Gate as Gateware

    bench.run(Gateware(), simulator, "test_gate")


def accepts(window: Window, phase: int) -> bool:
    """The window's rule, spelt out: walk from start until stop."""
    if window.start <= window.stop:
        return phase in range(window.start, window.stop)
    return phase not in range(window.stop, window.start)


def test_twin_follows_the_rule():
    rng = generator("gate rule")
    windows = random_windows(rng)
    tags = traffic(rng, 3000, windows)
    expected = []
    for slot, channel, kind, phase, choice in tags.tolist():
        if kind != TagKind.CLICK:
            expected.append((slot, channel, kind, 0, 0, 0, phase))
            continue
        for number in (0, 1):
            window = windows[2 * channel + number]
            enable, basis, bit = window[5:] if choice else window[2:5]
            if enable and accepts(window, phase):
                expected.append((slot, channel, kind, basis, bit, number, phase))
                break
    assert Gate(windows).process(tags).tolist() == expected


def test_windows_as_registers():
    rng = generator("gate registers")
    for window in random_windows(rng):
        assert Window.from_register(window.register()) == window
    with pytest.raises(ValueError, match="start"):
        Window(start=1 << PHASE_BITS).register()
    with pytest.raises(ValueError, match="15 gate windows"):
        Gate([Window()] * 15)
