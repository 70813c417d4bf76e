# SPDX-License-Identifier: Apache-2.0
"""Two stations in operation: whatever happens to the link, no wrong key and no stall."""

import numpy as np
import pytest

from keyrail import messages
from keyrail.authentication import PAD_BITS, PoolDry, PoolRestored
from keyrail.contract import Role
from keyrail.exchange import ACK, LIVE, RELIABLE
from keyrail.messages import decode, encode
from keyrail.operation import PADS_PER_BLOCK, OperationError
from keyrail_sim.two_stations import KEY_PLAN, SHORT_PLAN, TwoStations

pytestmark = pytest.mark.xdist_group("stations")

SENDER, RECEIVER = Role.SENDER, Role.RECEIVER


def kind(frame: bytes) -> int:
    return frame[2]


def message(frame: bytes):
    """The message that a reliable or live frame carries."""
    return decode(frame[24:-16])


def alter(link: TwoStations, role: Role, what, change) -> None:
    """Replace each message of class `what` on its way, with the right computational tag."""

    def altered(frame: bytes) -> list[bytes]:
        if kind(frame) not in (RELIABLE, LIVE) or not isinstance(message(frame), what):
            return [frame]
        payload = frame[20:24] + encode(change(message(frame)))
        return [link.reseal(role, frame, payload)]

    link.wires[role].change = altered


def test_two_blocks_give_the_same_keys_and_the_ledger_says_what_they_cost(tmp_path):
    link = TwoStations(tmp_path, KEY_PLAN, blocks=2)
    link.run(TwoStations.finished)
    keys = link.keys()
    assert keys[SENDER] == keys[RECEIVER]
    assert len(keys[SENDER]) == 2
    for role, runner in link.runners.items():
        assert runner.pool.counters == link.runners[SENDER].pool.counters
        assert runner.totals["keys"] == 2
        assert runner.authenticator.spent == 2 * PADS_PER_BLOCK[role]
        for key_id, bits in runner.keystore.released().items():
            ledger = runner.keystore.ledger(key_id)
            assert ledger["authentication_bits_spent"] == 5 * PAD_BITS
            assert bits == ledger["secret_bits_before_refill"] - ledger["refill_bits"]
            assert ledger["refill_bits"] > 0
            assert 0 < ledger["eps_authentication"] < 1e-20
        # Nothing secret in what is sent and said: no run of the key, no pad.
        crossed = b"".join(link.wires[role].sent)
        for key in keys[role].values():
            packed = np.packbits(np.frombuffer(key, np.uint8), bitorder="little").tobytes()
            assert all(packed[i : i + 8] not in crossed for i in range(0, len(packed) - 8, 8))
    # Live: slots only; every basis after the authenticated close.
    sent = [m for m in map(message, _carrying(link, RECEIVER)) if not isinstance(m, messages.Ready)]
    names = [type(m).__name__ for m in sent]
    first_bases = names.index("Bases")
    assert names.index("Close") < names.index("PhaseTag") < first_bases
    assert names.index("Announcements") < names.index("Close")
    # Block 2 is measured while block 1 is distilled.
    accepted = names.index("Accept")
    assert any(name == "Announcements" for name in names[first_bases:accepted])
    link.close()


def _carrying(link, role):
    return [frame for frame in link.wires[role].sent if kind(frame) in (RELIABLE, LIVE)]


def test_lost_repeated_and_reordered_frames_cost_their_slots_only(tmp_path):
    link = TwoStations(tmp_path, KEY_PLAN, blocks=1)
    rng = np.random.default_rng(5)
    for role in Role:
        held: list[bytes] = []

        def disturb(frame, held=held):
            if rng.random() < 0.15:
                return []
            if rng.random() < 0.1:
                held.append(frame)
                return []
            late, held[:] = held[:], []
            return [frame, *late] * (2 if rng.random() < 0.1 else 1)

        link.wires[role].change = disturb
    link.run(TwoStations.finished)
    keys = link.keys()
    assert keys[SENDER] == keys[RECEIVER]
    assert len(keys[SENDER]) == 1
    reports = [runner.reports[-1] for runner in link.runners.values()]
    assert reports[0].frames_lost == reports[1].frames_lost > 0
    assert reports[0].detections == reports[1].detections
    assert reports[0].result.sifted_bits == reports[1].result.sifted_bits
    counts = link.runners[SENDER].exchange.counts
    assert counts["rejected: replayed"] > 0
    assert link.runners[RECEIVER].exchange.counts["repeated"] > 0
    link.close()


ALTERED = {
    "a slot": (RECEIVER, messages.Announcements, lambda m: _with(m, records=m.records[:-2])),
    "a basis": (RECEIVER, messages.Bases, lambda m: _with(m, bases=_flipped(m.bases))),
    "a test bit": (SENDER, messages.Replies, lambda m: _with(m, bits=_moved(m))),
    "the close": (SENDER, messages.CloseAgreed, lambda m: _with(m, missing=((0, 0),))),
    "a tag": (SENDER, messages.PhaseTag, lambda m: _with(m, tag=bytes(16))),
    "an index": (RECEIVER, messages.PhaseTag, lambda m: _with(m, index=0)),
}


def _with(message, **changed):
    return type(message)(
        **{**{n: getattr(message, n) for n in message.__struct_fields__}, **changed}
    )


def _flipped(bits):
    unpacked = bits.unpack()
    unpacked[0] ^= 1
    return messages.BitString.pack(unpacked)


def _moved(replies):
    bits = replies.bits.unpack()
    bits[np.flatnonzero(replies.opened.unpack())[0]] ^= 1
    return messages.BitString.pack(bits)


@pytest.mark.parametrize("name", ALTERED)
def test_altered_messages_with_a_right_computational_tag_give_no_key(tmp_path, name):
    role, what, change = ALTERED[name]
    link = TwoStations(tmp_path, SHORT_PLAN)
    alter(link, role, what, change)
    stopped = []

    def one_stopped(link):
        return any(r.totals["blocks"] >= 3 for r in link.runners.values())

    try:
        link.run(one_stopped)
    except OperationError as error:
        stopped.append(error)
    for runner in link.runners.values():
        assert runner.totals["keys"] == 0
        assert runner.keystore.released() == {}
        assert all(report.reason for report in runner.reports)
    reasons = " ".join(link.lines)
    assert "given up" in reasons or "gave the block up" in reasons or stopped
    if name != "a basis" and name != "a test bit":  # these end with the block, unnoticed till then
        assert "does not fit" in reasons or "differ" in reasons or "replay" in reasons


def test_an_altered_basis_fails_the_tag_before_release(tmp_path):
    link = TwoStations(tmp_path, KEY_PLAN, blocks=1)
    alter(link, RECEIVER, messages.Intensities, lambda m: m)
    alter(link, SENDER, messages.Seed, lambda m: _with(m, seed=_flipped(m.seed)))
    link.run(lambda link: all(r.totals["blocks"] for r in link.runners.values()))
    assert link.keys() == {SENDER: {}, RECEIVER: {}}
    assert link.runners[RECEIVER].totals["forgeries"] == 1
    assert "does not fit: the messages were altered" in " ".join(link.lines)
    for runner in link.runners.values():
        assert runner.keystore.pending() == []


@pytest.mark.parametrize("role", list(Role))
def test_a_station_may_restart_at_any_time(tmp_path, role):
    link = TwoStations(tmp_path, SHORT_PLAN)
    rng = np.random.default_rng(int(role))
    for _ in range(4):
        blocks = sum(r.totals["blocks"] for r in link.runners.values())
        link.run(lambda link: link.runners[role].totals["sessions"] > 0)
        for _ in range(int(rng.integers(1, 60))):
            link.step()
        link.start(role)
        link.run(lambda link: link.runners[role].totals["blocks without a key"] > 0)
    assert blocks >= 0
    counters = [runner.pool.counters for runner in link.runners.values()]
    assert counters[0][SENDER].next >= 4
    link.close()


def test_a_key_is_released_by_both_or_resumed_after_a_restart(tmp_path):
    """The receiver restarts just when the sender has released: the next session settles it."""
    link = TwoStations(tmp_path, KEY_PLAN, blocks=1)
    # The sender's last word does not arrive.
    link.wires[SENDER].change = lambda frame: (
        [] if kind(frame) == RELIABLE and isinstance(message(frame), messages.Released) else [frame]
    )
    link.run(lambda link: bool(link.runners[SENDER].keystore.released()))
    for _ in range(5):
        link.step()
    assert len(link.runners[RECEIVER].keystore.pending()) == 1
    assert link.runners[RECEIVER].keystore.released() == {}
    link.start(RECEIVER)
    link.wires[SENDER].change = lambda frame: [frame]
    link.run(lambda link: link.runners[RECEIVER].totals["keys resumed"] == 1)
    keys = link.keys()
    assert keys[SENDER] == keys[RECEIVER]
    assert len(keys[SENDER]) == 1
    # The refill that one of them had is given up: the pools are in step.
    assert link.runners[SENDER].pool.counters == link.runners[RECEIVER].pool.counters
    link.close()


def test_a_key_that_the_sender_never_released_is_discarded(tmp_path):
    link = TwoStations(tmp_path, KEY_PLAN, blocks=1)
    link.wires[RECEIVER].change = lambda frame: (
        [] if kind(frame) == RELIABLE and isinstance(message(frame), messages.Accept) else [frame]
    )
    link.run(lambda link: bool(link.runners[RECEIVER].keystore.pending()))
    link.start(SENDER)
    link.wires[RECEIVER].change = lambda frame: [frame]
    link.run(lambda link: link.runners[RECEIVER].totals["keys discarded"] == 1)
    assert link.runners[RECEIVER].keystore.pending() == []
    assert link.keys() == {SENDER: {}, RECEIVER: {}}
    link.close()


def test_frames_of_an_earlier_session_are_nothing_in_a_later_one(tmp_path):
    link = TwoStations(tmp_path, SHORT_PLAN)
    link.run(lambda link: all(r.totals["blocks"] for r in link.runners.values()))
    recorded = {role: list(link.wires[role].sent) for role in Role}
    link.start(RECEIVER)
    link.run(lambda link: link.runners[RECEIVER].totals["sessions"] == 1)
    link.run(lambda link: link.runners[SENDER].totals["sessions"] == 2)
    for role in Role:
        reader = link.runners[Role.RECEIVER if role is SENDER else SENDER].exchange
        before = dict(reader.counts)
        session, inbox = reader.session, len(reader._inbox)
        for frame in recorded[role]:
            link.wires[role].inner.send(frame)
        reader.poll()
        assert reader.session == session
        assert len(reader._inbox) <= inbox + 1
        rejected = sum(
            reader.counts[name] - before.get(name, 0)
            for name in reader.counts
            if name.startswith("rejected")
        )
        # Greetings get an answer that leads nowhere; a knock gets none.
        greetings = sum(kind(frame) not in (RELIABLE, LIVE, ACK) for frame in recorded[role])
        assert rejected >= len(recorded[role]) - greetings
    blocks = link.runners[SENDER].totals["blocks"]
    link.run(lambda link: link.runners[SENDER].totals["blocks"] > blocks)
    link.close()


def test_a_dry_pool_stops_the_station_and_says_so(tmp_path):
    link = TwoStations(tmp_path, SHORT_PLAN, pads=32)
    with pytest.raises(PoolDry, match="provision the link anew"):
        link.run(lambda link: False)
    other = [line for line in link.lines if "other station stops" in line or "pads left" in line]
    assert other
    assert min(link.runners[SENDER].pool.left(role) for role in Role) >= 16


def test_a_restored_pair_of_files_is_found_by_the_other_station(tmp_path):
    link = TwoStations(tmp_path, SHORT_PLAN)
    link.run(lambda link: all(r.totals["blocks"] for r in link.runners.values()))
    saved = {}
    for runner in [link.runners[SENDER]]:
        runner.pool.close(), runner.keystore.close()
        for path in (runner.pool.path, runner.keystore.path):
            saved[path] = path.read_bytes()
    link.start(SENDER)
    link.run(lambda link: link.runners[SENDER].totals["blocks"] > 1)
    link.runners[SENDER].pool.close(), link.runners[SENDER].keystore.close()
    for path, content in saved.items():
        path.write_bytes(content)  # the same file, so that the inode is no help
    link.start(SENDER)
    with pytest.raises(PoolRestored, match="restored from a backup"):
        link.run(lambda link: link.runners[SENDER].totals["blocks"] > 0)


def test_stations_with_other_settings_say_which(tmp_path):
    link = TwoStations(tmp_path, SHORT_PLAN)
    link.plan = KEY_PLAN
    link.start(SENDER)
    with pytest.raises(OperationError, match="block_slots is 1000000 here and 65536 there"):
        link.run(lambda link: False)


def test_a_silent_link_ends_the_session_and_a_new_one_begins(tmp_path):
    link = TwoStations(tmp_path, SHORT_PLAN)
    link.run(lambda link: link.runners[SENDER].totals["sessions"] > 0)
    for wire in link.wires.values():
        wire.change = lambda frame: []
    link.run(lambda link: all(r.exchange.session is None for r in link.runners.values()))
    assert "nothing heard" in " ".join(link.lines)
    for wire in link.wires.values():
        wire.change = lambda frame: [frame]
    link.run(lambda link: all(r.totals["blocks"] > 1 for r in link.runners.values()))
    link.close()
