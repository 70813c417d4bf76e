# SPDX-License-Identifier: Apache-2.0
"""Nothing secret crosses: what both stations send is a function of public values only."""

import numpy as np
import pytest

import keyrail
from keyrail import messages, tag_path
from keyrail.contract import (
    ANNOUNCEMENT,
    BASIS,
    COIN,
    PERIOD_FRACTION_BITS,
    REPLY,
    Basis,
    BlockCommand,
    Mode,
    Role,
)
from keyrail.distil.reconcile import FRAME_BITS, _checks, _matrix, _order, planned_qber
from keyrail.exchange import LIVE, RELIABLE
from keyrail.layouts import unpack, zeros
from keyrail.link import memory_pair
from keyrail.messages import decode
from keyrail.randomness import TestRandom
from keyrail.session import DistilSettings, ReceiverDistiller, SenderDistiller, run_pair
from keyrail.source import state_words
from keyrail_sim import link_fuzz, live_bases
from keyrail_sim.model_board import open_station
from keyrail_sim.two_stations import SHORT_PLAN, TwoStations

pytestmark = pytest.mark.xdist_group("stations")


def record(folder, mask=None):
    """One block of both stations; `mask` flips bits behind the squash and in the state memory.

    Returns what was sent, with times, and by block the bases of both stations.
    """
    folder.mkdir()
    bases = {role: [] for role in Role}

    def board(role, name):
        opened = open_station(role, name)
        write, key = opened.memory.write, role
        done = [0]

        def flipped(entries):
            entries = entries.copy()
            bases[key].append(entries["basis"].copy())
            if mask is not None and len(entries):
                entries["bit"] ^= mask[done[0] : done[0] + len(entries)]
            done[0] += len(entries)
            return write(entries)

        opened.memory.write = flipped
        return opened

    link = TwoStations(folder, SHORT_PLAN, blocks=1, board=board)
    sent = []
    for role, wire in link.wires.items():
        wire.change = lambda frame, role=role: (sent.append((link.now, role, frame)), [frame])[1]
    link.run(TwoStations.finished)
    link.close()
    return sent, {role: np.concatenate(parts) for role, parts in bases.items()}


PERIOD_PS = 10_000
SLOTS = 4_096


def clocked(mask):
    """A block on both stations' gateware, with the clock of all that leaves for the other station.

    `mask` has 1 for slots whose bit is the other one, at the sender and at the detectors.
    """
    rng = np.random.default_rng(8)
    states = rng.integers(0, 8, SLOTS).astype(np.uint8)
    hits = np.flatnonzero(rng.random(SLOTS) < 0.2).repeat(2)
    hits = hits[rng.random(len(hits)) < 0.7]
    channels = rng.integers(0, 4, len(hits))
    fits = rng.random(len(hits)) < 0.6
    channels[fits] = (states[hits] & 1)[fits] << 1 | (states[hits] >> 1 & 1)[fits]
    flips = mask(states)
    states ^= flips << 1
    channels ^= flips[hits]
    times = hits * PERIOD_PS + PERIOD_PS // 2
    crossed = []

    def watch(board, names, clocks):
        for clock in range(clocks):
            board.run_for(1)
            for name in names:
                if data := board.receive_bytes(board.streams[name]).tobytes():
                    crossed.append((clock, name, data))
        board.run()
        return b"".join(data for _, name, data in crossed if name in names)

    with keyrail.open("sim:alice") as alice, keyrail.open("sim:bob") as bob:
        for board in (alice, bob):
            board.write("mode", Mode.KEY)
            board.run()
            board.write("block_last_slot", SLOTS - 1)
        tag_path.set_slots(bob, PERIOD_PS << PERIOD_FRACTION_BITS, 0)
        tag_path.set_blanking(bob, 0)
        windows = dict.fromkeys(tag_path.OUTCOMES, (4_000, 6_000))
        tag_path.set_gates(bob, windows, tag_path.OUTCOMES)
        coins = zeros(COIN, SLOTS)
        coins["bit"], coins["basis"] = rng.integers(0, 2, (2, SLOTS))
        for board in (alice, bob):
            board.write("block_command", BlockCommand.OPEN)
            board.run()
        bob.send("coins", coins)
        bob.send("tags", tag_path.tag_records(times, channels, (SLOTS + 2) * PERIOD_PS))
        announced = watch(bob, ["announcements"], 2_000)
        alice.send("states", state_words(states))
        alice.run()
        alice.send("announcements", unpack(ANNOUNCEMENT, announced))
        watch(alice, ["missed"], 2_000)
        for board in (alice, bob):
            board.write("block_command", BlockCommand.CLOSE)
            board.run()
            board.write("block_command", BlockCommand.BASES)
        bases = watch(bob, ["bases"], 2_000)
        alice.send("bases", unpack(BASIS, bases))
        replies = watch(alice, ["replies"], 2_000)
        bob.write("block_command", BlockCommand.RESOLVE)
        bob.run()
        bob.send("replies", unpack(REPLY, replies))
        bob.run()
        sifted = [board.receive("sifted") for board in (alice, bob)]
    return crossed, sifted


def test_the_gateware_answers_in_the_same_clocks_whatever_the_secret_bits():
    """To the clock, on both boards, in both phases; multiple clicks and coins among them."""
    crossed, sifted = clocked(lambda states: np.zeros(len(states), np.uint8))
    # Bits of slots in Z are never opened: all of them are the other ones.
    other, again = clocked(lambda states: 1 - (states & 1))
    assert {name for _, name, _ in crossed} == {"announcements", "bases", "replies"}
    assert crossed == other
    key = [one["test"] == 0 for one in sifted]
    assert key[0].sum() == key[1].sum() > 200
    assert (sifted[0]["bit"][key[0]] != again[0]["bit"][key[0]]).all()
    # The rest of the receiver's are coins.
    assert (sifted[1]["bit"][key[1]] != again[1]["bit"][key[1]]).mean() > 0.7


SECRET_BY_DESIGN = (messages.Syndrome, messages.VerifyTag)
"""Charged bits of the key that the protocol gives away; see the test after the next."""


def public(frame):
    """A frame without its tags and the charged bits of the key."""
    body = frame[:-16]
    if frame[2] in (RELIABLE, LIVE):
        message = decode(body[24:])
        if isinstance(message, messages.PhaseTag):
            return body[:24], message.phase, message.index
        if isinstance(message, SECRET_BY_DESIGN):
            return body[:24], type(message)
    return body


def test_other_secret_bits_under_the_same_public_choices_send_the_same(tmp_path):
    sent, bases = record(tmp_path / "one")
    # Every bit but those that the test basis opens.
    mask = ((bases[Role.SENDER] != Basis.X) | (bases[Role.RECEIVER] != Basis.X)).astype(np.uint8)
    assert mask.mean() > 0.8
    other, again = record(tmp_path / "other", mask)
    assert all((bases[role] == again[role]).all() for role in Role)
    # Times, senders, order and sizes are the same, and all bytes but the tags.
    assert [(t, r, len(f)) for t, r, f in sent] == [(t, r, len(f)) for t, r, f in other]
    assert [public(f) for _, _, f in sent] == [public(f) for _, _, f in other]
    # The bits were others: what is charged to the key differs, and so do the tags.
    assert [f for _, _, f in sent] != [f for _, _, f in other]
    names = {type(decode(f[24:-16])).__name__ for _, _, f in sent if f[2] in (RELIABLE, LIVE)}
    assert {"Announcements", "Close", "Bases", "Replies", "Syndrome", "ErrorCounts"} <= names


def kernel_vector(matrix, rng):
    """A random solution of matrix x = 0 over GF(2)."""
    rows = matrix.toarray().astype(np.uint8) & 1
    pivots, row = [], 0
    for column in range(rows.shape[1]):
        hit = np.flatnonzero(rows[row:, column])
        if not len(hit):
            continue
        rows[[row, row + hit[0]]] = rows[[row + hit[0], row]]
        others = np.flatnonzero(rows[:, column])
        rows[others[others != row]] ^= rows[row]
        pivots.append(column)
        row += 1
        if row == len(rows):
            break
    x = rng.integers(0, 2, rows.shape[1]).astype(np.uint8)
    x[pivots] = 0
    for index, column in enumerate(pivots):
        x[column] = rows[index] @ x & 1
    return x


def test_what_reconciliation_gives_away_is_the_charged_bits_and_no_more():
    """Keys that differ, with the same syndrome: every message but the hash's value is the same."""
    rng = np.random.default_rng(4)
    length, tests = 3_000, 1_000
    assert length < FRAME_BITS
    key = rng.integers(0, 2, length).astype(np.uint8)
    errors = (rng.random(length) < 0.005).astype(np.uint8)
    test_error = (rng.random(tests) < 0.02).astype(np.uint8)
    qber = planned_qber(tests, int(test_error.sum()))
    matrix = _matrix(length, qber, 0)
    assert matrix.shape[0] == _checks(length, qber)[0]
    vector = kernel_vector(matrix, rng)
    assert not (matrix @ vector.astype(np.int64) & 1).any()
    seed = TestRandom(3, "reconciliation").bytes(32)
    change = np.empty_like(vector)
    change[_order(length, seed)] = vector
    assert 0.4 < change.mean() < 0.6

    def crossed(key):
        ends = memory_pair(record=True)
        settings, classes = DistilSettings(), np.zeros(length, np.uint8)
        sources = lambda purpose: TestRandom(3, purpose)  # noqa: E731
        sender = SenderDistiller(
            ends[0], key.copy(), classes, classes[:tests], settings, sources, None
        )
        receiver = ReceiverDistiller(
            ends[1], key ^ errors, test_error.copy(), settings, sources, None
        )
        result, _ = run_pair(sender, receiver)
        assert result.verified, result.reason
        return [(end, decode(data)) for end, data in ends[0].transcript.messages]

    one, other = crossed(key), crossed(key ^ change)
    assert len(one) == len(other)
    differ = [a for (end, a), (_, b) in zip(one, other, strict=True) if a != b]
    assert [type(message) for message in differ] == [messages.VerifyTag]


def test_bases_announced_live_give_the_key_away_and_ours_do_not():
    wins = live_bases.attack(True, 250, 1)
    # No error at all, and all of the key: no test and no verification can see it.
    assert wins.key_bits >= 20
    assert wins.tests >= 20
    assert wins.key_errors == wins.test_errors == 0
    assert wins.known == wins.key_bits
    gains_nothing = live_bases.attack(False, 250, 1)
    assert 0.3 < gains_nothing.frames_kept / gains_nothing.frames < 0.7
    # A quarter of the test bits is wrong, whichever frames she drops: no key is left.
    assert gains_nothing.test_errors / gains_nothing.tests > 0.13
    assert gains_nothing.key_errors > 0


def test_fuzzed_frames_are_not_taken_and_stop_nothing():
    result = link_fuzz.outside(3_000, 2)
    assert result["taken"] == 0
    assert result["frames"] == 3_000
    # Enough of them are whole frames sent again, which only the numbers turn away.
    assert result["of them recorded ones sent again"] > 200
    assert result["keys"] == 0


def test_altered_contents_behind_a_right_tag_end_blocks_only():
    result = link_fuzz.inside(1, 3)
    assert result["messages altered"] > 2
    assert result["crashes"] == result["stalls"] == 0
