# SPDX-License-Identifier: Apache-2.0
"""Squash: the gateware against its twin, the twin against the rule spelt out."""

import cocotb
import numpy as np
import pytest
from cocotb.triggers import FallingEdge, ReadOnly

import bench
from bench import Sink, Source, generator, ledger, settle, structured, words
from keyrail.contract import COIN, DETECTION, GATED_TAG, TagKind
from keyrail.layouts import Structured, zeros
from keyrail_sim.models.squash import Squash

KINDS = (TagKind.CLICK, TagKind.TIME, TagKind.FRAME, TagKind.LOSS)
WRAP = 1 << 48


def traffic(rng: np.random.Generator, count: int, start: int, clicks: float = 0.8) -> Structured:
    """Gated tags in slot order, many to a slot, with markers among and between the groups."""
    tags = zeros(GATED_TAG, count)
    steps = rng.integers(0, 4, count) * (rng.random(count) < 0.6)
    tags["slot"] = (start + np.cumsum(steps)).astype(np.uint64) & np.uint64(WRAP - 1)
    rest = (1 - clicks) / 3
    tags["kind"] = rng.choice(KINDS, count, p=(clicks, rest, rest, rest))
    click = tags["kind"] == TagKind.CLICK
    for name, limit in (("basis", 2), ("bit", 2), ("window", 2), ("channel", 8)):
        tags[name] = rng.integers(0, limit, count) * click
    tags["phase"] = rng.integers(0, 1 << 20, count)
    return tags


def random_coins(rng: np.random.Generator, count: int) -> Structured:
    coins = zeros(COIN, count)
    coins["bit"], coins["basis"] = rng.integers(0, 2, (2, count))
    return coins


def conserved(counts: dict[str, int], held: tuple[int, ...]) -> bool:
    left = counts["out"] + counts["merged"] + counts["discarded"] + counts["coin_dry"]
    return counts["in"] - left in held


def check(dut, twin: Squash) -> None:
    assert ledger(dut, "squash") == twin.ledger.live
    assert ledger(dut, "squash", "at_frame") == twin.ledger.at_frame
    assert conserved(twin.ledger.live, (twin.held,))
    assert conserved(twin.ledger.at_frame, (0, 1))


@cocotb.test()
@cocotb.parametrize(discard=[0, 1], shares=[(1.0, 1.0), (0.5, 0.7), (0.9, 0.3)])
async def bench_random(dut, discard, shares):
    rng = generator("squash", discard, shares)
    dut.discard_cross.value = discard
    await bench.start(dut)
    source, sink = Source(dut, "i", shares[0]), Sink(dut, "o", shares[1])
    twin = Squash(bool(discard))
    coins = random_coins(rng, 1000)
    coining = cocotb.start_soon(Source(dut, "coins").send(words(COIN, coins)))
    expected = []
    for start, clicks in ((0, 0.8), (WRAP - 300, 0.8), (1000, 1.0), (5000, 0.3)):
        tags = traffic(rng, 300, start, clicks)
        await source.send(words(GATED_TAG, tags))
        await settle(dut, sink)
        detections, used = twin.process(tags, coins)
        coins = coins[used:]
        expected.append(detections)
    assert np.array_equal(structured(DETECTION, sink.received), np.concatenate(expected))
    check(dut, twin)
    assert twin.ledger.live["coin_dry"] == 0
    assert min(twin.ledger.live[n] for n in ("double_clicks", "cross_clicks", "merged")) > 0
    coining.cancel()
    dut.coins__valid.value = 0


@cocotb.test()
@cocotb.parametrize(discard=[0, 1], share=[0.0, 0.02, 0.1])
async def bench_coins_run_dry(dut, discard, share):
    """Coins come with pauses: which groups found one is seen from outside, the twin follows."""
    rng = generator("squash dry", discard, share)
    dut.discard_cross.value = discard
    await bench.start(dut)
    source, sink = Source(dut, "i", 0.9), Sink(dut, "o", 0.8)
    tags, coins = traffic(rng, 400, 10), random_coins(rng, 400)
    payloads = words(COIN, coins)
    events = []  # per multiple click: 1 it took a coin, 0 it found none

    async def offer() -> None:
        offered, taken, valid = rng.random(100_000) < share, 0, False
        for now in offered:
            valid = valid or bool(now)
            dut.coins__valid.value = int(valid)
            dut.coins__payload.value = payloads[taken] if valid else 0
            await ReadOnly()
            if dut.coins__ready.value:
                events.append(int(valid))
                taken += valid
                valid = False
            await FallingEdge(dut.clk)

    offering = cocotb.start_soon(offer())
    await source.send(words(GATED_TAG, tags))
    await settle(dut, sink)
    offering.cancel()
    twin = Squash(bool(discard))
    parts, upcoming = [], iter(events)
    event, left = next(upcoming, None), coins
    for index in range(len(tags)):
        dry = twin.ledger.live["coin_dry"]
        part, used = twin.process(tags[index : index + 1], left[:event] if event else left[:0])
        left = left[used:]
        if used or twin.ledger.live["coin_dry"] > dry:
            event = next(upcoming, None)
        parts.append(part)
    assert event is None
    assert np.array_equal(structured(DETECTION, sink.received), np.concatenate(parts))
    check(dut, twin)
    assert (sum(events) > 0) == (share > 0)
    assert 0 in events
    dut.coins__valid.value = 0


@cocotb.test()
async def bench_full_rate(dut):
    rng = generator("squash rate")
    dut.discard_cross.value = 0
    await bench.start(dut)
    dut.coins__valid.value = 1
    dut.coins__payload.value = 1
    coins = zeros(COIN, 800)
    coins["bit"] = 1
    # Markers that close a group make two records of one, and cost no clock either.
    tags = np.concatenate([traffic(rng, 400, 0, 1.0), traffic(rng, 400, 2000, 0.5)])
    groups = []

    def watch() -> None:
        group = int(dut.group.value)
        if group >> 50:
            groups.append((group & (WRAP - 1), bool(group >> 48 & 1), bool(group >> 49 & 1)))

    got = await bench.full_rate(dut, words(GATED_TAG, tags), 4, watch)
    twin = Squash()
    detections, _ = twin.process(tags, coins)
    assert np.array_equal(structured(DETECTION, got), detections)
    assert groups == list(zip(*(column.tolist() for column in twin.groups), strict=True))
    assert any(double for _, double, _ in groups)
    assert any(cross for _, _, cross in groups)
    dut.coins__valid.value = 0


@cocotb.test()
async def bench_reset_in_mid_frame(dut):
    rng = generator("squash reset")
    dut.discard_cross.value = 1
    before, tags = traffic(rng, 50, 7), traffic(rng, 200, 7)
    before["kind"][-1] = TagKind.CLICK  # a group is pending when the reset comes
    got = await bench.reset_in_mid_frame(dut, words(GATED_TAG, before), words(GATED_TAG, tags))
    twin = Squash(True)
    expected, _ = twin.process(tags, zeros(COIN, 0))
    assert np.array_equal(structured(DETECTION, got), expected)
    check(dut, twin)


@pytest.mark.parametrize("simulator", bench.simulators())
def test_squash(simulator):
    from keyrail_gateware.squash import Squash as Gateware

    bench.run(Gateware(), simulator, "test_squash")


def test_one_detection_a_slot_is_proven():
    """By k-induction, for all time: the assertions that the block makes of itself."""
    from formal import prove
    from keyrail_gateware.squash import Squash as Gateware

    prove(Gateware(), 3)


def by_rule(tags: Structured, coins: list[tuple], discard: bool) -> list[tuple]:
    """Detections by the rule, record by record."""
    out, slot, seen = [], None, set()

    def close() -> None:
        bases, basis, bit = {b for b, _ in seen}, min(seen)[0], min(seen)[1]
        if len(bases) == 2 and discard:
            return
        if len(seen) > 1:
            if not coins:
                return
            bit, coin_basis = coins.pop(0)
            basis = coin_basis if len(bases) == 2 else basis
        out.append((slot, TagKind.CLICK, basis, bit))

    for tag in tags.tolist():
        fields = dict(zip(tags.dtype.names, tag, strict=True))
        if seen and fields["slot"] != slot:
            close()
            seen = set()
        if fields["kind"] == TagKind.CLICK:
            slot = fields["slot"]
            seen.add((fields["basis"], fields["bit"]))
        else:
            out.append((fields["slot"], fields["kind"], 0, 0))
    return out


@pytest.mark.parametrize("discard", [False, True])
@pytest.mark.parametrize("supply", [0, 100, 5000])
@pytest.mark.parametrize("clicks", [0.2, 0.8, 1.0])
def test_twin_follows_the_rule(discard, supply, clicks):
    rng = generator("squash rule", discard, supply, clicks)
    tags, coins = traffic(rng, 3000, WRAP - 500, clicks), random_coins(rng, supply)
    twin = Squash(discard)
    expected = by_rule(tags, coins.tolist(), discard)
    got = []
    for part in np.split(tags, np.sort(rng.integers(0, len(tags), 60))):
        detections, used = twin.process(part, coins)
        coins = coins[used:]
        got += detections.tolist()
        assert conserved(twin.ledger.live, (twin.held,))
    assert got == expected
    slots = [slot for slot, kind, _, _ in got if kind == TagKind.CLICK]
    assert len(slots) == len(set(slots)) == twin.ledger.live["out"]
