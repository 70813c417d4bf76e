# SPDX-License-Identifier: Apache-2.0
"""Raw tags and losses of a receiver: T2 records, overload in real time, wraps of the time."""

import numpy as np
import pytest

import keyrail
from keyrail import t2, tag_path
from keyrail.board import Board, BoardError
from keyrail.contract import PERIOD_FRACTION_BITS, TAG, Mode, T2Marker, TagKind
from keyrail.layouts import zeros
from keyrail_sim import overload

pytestmark = pytest.mark.xdist_group("stations")

PERIOD = 10_000 << PERIOD_FRACTION_BITS
KINDS = ("sim", "sim-model")


def raw_tags(seed: int, count: int = 3000):
    """Clicks, losses and frame markers over several wraps of 2^48 ps, with long gaps."""
    rng = np.random.default_rng(seed)
    gaps = (2 ** rng.uniform(0, 31, count)).astype(np.int64)
    gaps[[100, 200, 300, 400, 500]] = (1 << 47) - 1
    times = np.cumsum(gaps)
    tags = zeros(TAG, count)
    tags["time"] = times % (1 << 48)
    tags["kind"] = rng.choice(
        (TagKind.CLICK, TagKind.TIME, TagKind.FRAME), count, p=(0.9, 0.05, 0.05)
    )
    tags["kind"][[1000, 1010]], tags["channel"][[1000, 1010]] = TagKind.LOSS, (1, 2)
    click = tags["kind"] == TagKind.CLICK
    tags["channel"][click] = rng.integers(0, 8, int(click.sum()))
    return tags, times


def ask_for_raw(board: Board) -> None:
    board.write("tag_input", raw=1)
    tag_path.set_slots(board, PERIOD, 0)


def test_raw_tags_are_the_same_on_gateware_and_twin_over_wraps_of_the_time():
    tags, times = raw_tags(5)
    seen = []
    for kind in KINDS:
        with keyrail.open(f"{kind}:bob") as bob:
            ask_for_raw(bob)
            for part in np.split(tags, [700, 1005]):
                bob.send("tags", part)
                bob.run()
            seen.append(
                {
                    "raw": bob.receive_bytes(bob.streams["raw"]).tobytes(),
                    "gated": bob.receive_bytes(bob.streams["gated"]).tobytes(),
                    **{b: bob.ledger(b) for b in ("tag_fifo", "t2_encoder", "slotter")},
                    **{f"{b} at": bob.ledger(b, True) for b in ("tag_fifo", "t2_encoder")},
                    "held": bob.read("tag_fifo_held"),
                }
            )
            assert len(bob.receive("losses")) == 0
    assert seen[0] == seen[1]
    events = t2.decode(seen[0]["raw"])
    click = tags["kind"] == TagKind.CLICK
    assert np.array_equal(events.times, times[click])
    assert np.array_equal(events.channels, tags["channel"][click])
    frame = tags["kind"] == TagKind.FRAME
    assert np.array_equal(events.marker_times, times[frame | (tags["kind"] == TagKind.LOSS)])
    assert (events.markers == T2Marker.FRAME).sum() == frame.sum()
    assert seen[0]["tag_fifo"]["in"] == seen[0]["tag_fifo"]["out"] == int(click.sum())
    assert seen[0]["held"] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_raw_tags_are_closed_in_key_mode_and_when_not_asked_for(kind):
    tags, _ = raw_tags(6, 1100)
    with keyrail.open(f"{kind}:bob") as bob:
        bob.send("tags", tags)
        bob.run()
        assert len(bob.receive("raw")) == 0
        ask_for_raw(bob)
        bob.write("mode", Mode.KEY)
        bob.run()
        bob.send("tags", tags)
        bob.run()
        assert bob.ledger("tag_fifo")["out"] > 900
        assert len(bob.receive("raw")) == len(bob.receive("losses")) == 0
        assert bob.ledger("t2_encoder") == {"in": 0, "out": 0, "out_of_order": 0}
        # Nothing of what came in key mode is left for the instrument mode.
        bob.write("mode", Mode.INSTRUMENT)
        bob.run()
        assert len(bob.receive("raw")) == 0
        bob.send("tags", tags[:5])
        bob.run()
        events = t2.decode(bob.receive_bytes(bob.streams["raw"]))
        assert len(events.times) == int((tags["kind"][:5] == TagKind.CLICK).sum())


def test_overload_closes_to_the_single_tag():
    """A tag offered in each of 10^6 clocks to a sink of 12 million records a second."""
    result = overload.run(1_000_000)
    assert result.offered == result.stored + result.missed
    assert result.missed_in_ledger == result.missed
    assert result.losses > 10
    assert 0.118 < result.stored / result.offered < 0.125


def test_real_time_keeps_the_tags_time():
    """A clock is 10 ns: tags 2.56 us apart need 256 clocks each, and none is lost."""
    count = 500
    with keyrail.open("sim:bob") as bob:
        ask_for_raw(bob)
        bob.real_time()
        tags = zeros(TAG, count)
        tags["time"] = (np.arange(count) * 2_560_000 - 10**8) % (1 << 48)
        before = bob.cycles
        bob.send("tags", tags)
        bob.run()
        assert 0 <= bob.cycles - before - (count - 1) * 256 < 600
        assert bob.ledger("tag_fifo")["missed"] == 0
        assert bob.ledger("t2_encoder")["out"] == count
        with pytest.raises(BoardError, match="allowed is 0 to"):
            bob.real_time(-1)
