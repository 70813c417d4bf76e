# SPDX-License-Identifier: Apache-2.0
"""Basis choices: the gateware against its twin, the twin against the rule spelt out."""

import cocotb
import numpy as np
import pytest
from cocotb.triggers import FallingEdge, ReadOnly

import bench
from bench import Sink, Source, generator, ledger, settle, structured, until, words
from keyrail import tag_path
from keyrail.contract import CHOICE_WORD, CHOICES_PER_WORD, CHOSEN_TAG, SLOT_TAG, TagKind
from keyrail.errors import SettingError
from keyrail.layouts import Structured, zeros
from keyrail_sim.models.choices import SPARE_SLOTS, Choices

HORIZON = 1024
KINDS = (TagKind.CLICK, TagKind.TIME, TagKind.FRAME, TagKind.LOSS)


def random_words(rng: np.random.Generator, count: int) -> Structured:
    return tag_path.choice_words(rng.integers(0, 2, count * CHOICES_PER_WORD).astype(np.uint8))


def traffic(rng: np.random.Generator, count: int, first: int, last: int) -> Structured:
    """Slot tags in slot order within some slots, several to a slot, with markers."""
    tags = zeros(SLOT_TAG, count)
    tags["slot"] = np.sort(rng.integers(first, last, count) // 2 * 2)
    tags["kind"] = rng.choice(KINDS, count, p=(0.85, 0.05, 0.05, 0.05))
    tags["channel"] = rng.integers(0, 8, count) * (tags["kind"] == TagKind.CLICK)
    tags["phase"] = rng.integers(0, 1 << 20, count)
    return tags


async def begin(dut, active: int, first: int) -> Choices:
    dut.active.value, dut.open.value, dut.wipe.value = active, 0, 0
    dut.first_choice.value = first
    await bench.start(dut)
    assert dut.busy.value == 1
    await until(dut, lambda: dut.busy.value == 0)
    dut.open.value = 1
    return Choices(HORIZON, bool(active), first)


def check(dut, twin: Choices) -> None:
    assert ledger(dut, "choices") == twin.ledger.live
    assert ledger(dut, "choices", "at_frame") == twin.ledger.at_frame
    live = twin.ledger.live
    assert live["in"] == live["out"] + live["dry"] + live["expired"]
    assert int(dut.next_slot.value) == twin.next_slot


@cocotb.test()
@cocotb.parametrize(shares=[(1.0, 1.0), (0.5, 0.7), (0.9, 0.3)], first=[0, 6400])
async def bench_in_turn(dut, shares, first):
    """Choices, then tags, many times: expired, dry and known slots, and some decided before."""
    rng = generator("choices", shares, first)
    twin = await begin(dut, 1, first)
    sink = Sink(dut, "o", shares[1])
    feed, source = Source(dut, "words", shares[0]), Source(dut, "i", shares[0])
    expected = []
    for _ in range(10):
        given = random_words(rng, int(rng.integers(0, 9)))
        await feed.send(words(CHOICE_WORD, given))
        twin.feed(given)
        await settle(dut, sink, quiet=8)
        reach = twin.next_slot
        tags = traffic(rng, 60, max(0, reach - HORIZON - 100), reach + 20)
        await source.send(words(SLOT_TAG, tags))
        await settle(dut, sink, quiet=16)
        expected.append(twin.process(tags))
        # What was decided for a slot stands: the tag after the next words is in the same slot.
        more = random_words(rng, 2)
        await feed.send(words(CHOICE_WORD, more))
        twin.feed(more)
        last = tags[-1:].copy()
        last["kind"] = TagKind.CLICK
        await source.send(words(SLOT_TAG, last))
        await settle(dut, sink, quiet=16)
        expected.append(twin.process(last))
    assert np.array_equal(structured(CHOSEN_TAG, sink.received), np.concatenate(expected))
    check(dut, twin)
    assert min(twin.ledger.live.values()) > 0


@cocotb.test()
@cocotb.parametrize(active=[0, 1])
async def bench_full_rate(dut, active):
    """A tag and a word of choices each clock, without a pause; a passive receiver takes none."""
    rng = generator("choices rate", active)
    twin = await begin(dut, active, 0)
    ahead = random_words(rng, 8)
    if active:
        await Source(dut, "words").send(words(CHOICE_WORD, ahead))
        twin.feed(ahead)
    dut.o__ready.value = 1
    tags = traffic(rng, 300, 0, 320)
    got = []
    dut.words__valid.value, dut.words__payload.value = 1, 0
    for index, payload in enumerate([*words(SLOT_TAG, tags), *[None] * 8]):
        # Words come at the same time, as far as the ring holds the tags' slots.
        dut.words__valid.value = int(index < 4)
        dut.i__valid.value = int(payload is not None)
        dut.i__payload.value = payload or 0
        await ReadOnly()
        assert dut.i__ready.value == 1
        assert dut.words__ready.value == active
        if dut.o__valid.value:
            got.append(int(dut.o__payload.value))
        await FallingEdge(dut.clk)
    dut.words__valid.value = 0
    expected = twin.process(tags)
    assert np.array_equal(structured(CHOSEN_TAG, got), expected)
    assert expected["choice"].any() == active


@cocotb.test()
async def bench_overwritten_while_read(dut):
    """Words overwrite the ring at full rate: a tag gets its slot's choice or none, never another's.

    The choices are 1 in even words and 0 in odd ones, and the ring's length is such that a word
    overwrites one of the other kind.
    """
    rng = generator("choices overwritten")
    await begin(dut, 1, 64)
    sink = Sink(dut, "o")
    ring = HORIZON // CHOICES_PER_WORD
    count = 40 * ring
    kinds = (np.arange(1, count + 1) // ring) % 2
    payloads = [((1 << 64) - 1) * int(kind) for kind in kinds]
    feeding = cocotb.start_soon(Source(dut, "words", 0.9).send(payloads))
    source, sent = Source(dut, "i"), 0
    while not feeding.done():
        reach = int(dut.next_slot.value)
        tags = zeros(SLOT_TAG, 1)
        tags["slot"] = max(0, reach - int(rng.integers(HORIZON - 500, HORIZON + 64)))
        await source.send(words(SLOT_TAG, tags))
        sent += 1
    await settle(dut, sink)
    got = structured(CHOSEN_TAG, sink.received)
    assert np.array_equal(got["choice"], got["slot"] // HORIZON % 2)
    counts = ledger(dut, "choices")
    assert counts["in"] == sent == counts["out"] + counts["expired"] + counts["dry"]
    assert counts["expired"] > 0
    assert counts["out"] > 0


@cocotb.test()
async def bench_wipe(dut):
    """After a wipe no choice is left, and clicks that come find none."""
    rng = generator("choices wipe")
    twin = await begin(dut, 1, 0)
    sink = Sink(dut, "o")
    given = random_words(rng, 8)
    await Source(dut, "words").send(words(CHOICE_WORD, given))
    tags = traffic(rng, 30, 0, 300)
    tags["kind"][-1] = TagKind.CLICK
    twin.feed(given)
    await Source(dut, "i").send(words(SLOT_TAG, tags))
    await settle(dut, sink)
    expected = [twin.process(tags)]
    dut.wipe.value = 1
    await FallingEdge(dut.clk)
    dut.wipe.value = 0
    assert dut.words__ready.value == 0
    await until(dut, lambda: dut.busy.value == 0, HORIZON // CHOICES_PER_WORD + 2)
    twin.wipe()
    again = np.concatenate([tags[-1:], traffic(rng, 30, 400, 500)])
    await Source(dut, "i").send(words(SLOT_TAG, again))
    await settle(dut, sink)
    expected.append(twin.process(again))
    assert np.array_equal(structured(CHOSEN_TAG, sink.received), np.concatenate(expected))
    check(dut, twin)


@pytest.mark.parametrize("simulator", bench.simulators())
def test_choices(simulator):
    from keyrail_gateware.choices import Choices as Gateware

    bench.run(Gateware(HORIZON), simulator, "test_choices")


def test_twin_follows_the_rule():
    rng = generator("choices rule")
    drawn = rng.integers(0, 2, 6 * HORIZON).astype(np.uint8)
    first = 640
    twin = Choices(HORIZON, True, first)
    twin.feed(tag_path.choice_words(drawn))
    tags = traffic(rng, 4000, 0, first + len(drawn) + 400)
    expected = []
    for slot, channel, kind, phase in tags.tolist():
        there = first + len(drawn) - HORIZON + SPARE_SLOTS <= slot < first + len(drawn)
        choice = int(drawn[slot - first]) if there and kind == TagKind.CLICK else 0
        if there or kind != TagKind.CLICK:
            expected.append((slot, channel, kind, phase, choice))
    assert twin.process(tags).tolist() == expected


def test_half_a_word_of_choices_is_refused():
    with pytest.raises(SettingError, match="multiple of 64"):
        tag_path.choice_words(np.zeros(65, np.uint8))


def test_horizon_is_checked():
    from keyrail_gateware.choices import Choices as Gateware

    for horizon in (256, 1000):
        with pytest.raises(ValueError, match="powers of two from 512"):
            Gateware(horizon)
