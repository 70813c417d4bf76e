# SPDX-License-Identifier: Apache-2.0
"""Simulated boards: the gateware and its twin give the same bytes, whatever the cable does."""

import numpy as np
import pytest

import keyrail
from keyrail import tag_path
from keyrail.board import Board, BoardError
from keyrail.board_hash import hash_on_board
from keyrail.contract import (
    ANNOUNCEMENT,
    BASIS,
    COIN,
    CURRENT_SAMPLE,
    DETECTION,
    KEY_WORD,
    LEDGERS,
    PERIOD_FRACTION_BITS,
    REPLY,
    STATE_WORD,
    TOEPLITZ_WORD,
    Basis,
    BlockCommand,
    BlockState,
    Direction,
    HistogramCommand,
    Mode,
    Randomness,
    ToeplitzCommand,
    ToeplitzFamily,
)
from keyrail.distil.toeplitz import Geometry, seed_bits, toeplitz_hash
from keyrail.errors import ContractMismatch, SettingError
from keyrail.layouts import dtype, zeros
from keyrail.link import memory_pair
from keyrail.messages import ProtocolError
from keyrail.randomness import TestRandom
from keyrail.source import state_words
from keyrail.state_copy import StateCopy
from keyrail.station import ReceiverStation, Station, announced_slots
from keyrail_sim.models.announcer import Announcer
from keyrail_sim.models.generator import Generator

pytestmark = pytest.mark.xdist_group("stations")

KINDS = ("sim", "sim-model")
PERIOD_PS = 10_000
PERIOD = (PERIOD_PS << PERIOD_FRACTION_BITS) + 123_456_789
SLOTS = 3_000
FIRST = 160


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def collect(board: Board) -> dict[str, bytes]:
    """All bytes that have come, by stream."""
    return {
        name: board.receive_bytes(stream).tobytes()
        for name, stream in board.streams.items()
        if stream.direction is Direction.TO_HOST
    }


def clicks(seed: int, slots: int = SLOTS, share: float = 0.2):
    """Random clicks on all detectors, some of them outside the gate, in shared slots too."""
    rng = np.random.default_rng(seed)
    hit = np.flatnonzero(rng.random(slots * 4) < share)
    slot, channel = hit // 4, hit % 4
    phase = np.where(rng.random(len(hit)) < 0.8, rng.normal(5_000, 60, len(hit)), 0)
    phase = np.where(phase == 0, rng.uniform(0, PERIOD_PS, len(hit)), phase)
    times = (777 + slot * (PERIOD / (1 << PERIOD_FRACTION_BITS)) + phase).astype(np.int64)
    order = np.argsort(times, kind="stable")
    return times[order], channel[order].astype(np.uint8)


def set_up(board: Board, origin: int = 777) -> None:
    tag_path.set_slots(board, PERIOD, origin)
    tag_path.set_blanking(board, 1)
    gates = dict.fromkeys(range(4), (4800, 5200))
    tag_path.set_gates(board, gates, tag_path.OUTCOMES)


def coins(seed: int, count: int):
    records = zeros(COIN, count)
    rng = np.random.default_rng(seed)
    records["bit"], records["basis"] = rng.integers(0, 2, count), rng.integers(0, 2, count)
    return records


def one_block(kind: str, seed: int, on_host: bool, pauses: bool) -> dict[str, object]:
    """A whole block by hand on both boards; everything that can be seen of it."""
    rng = np.random.default_rng(seed)
    states = rng.integers(0, 8, SLOTS - SLOTS % 16).astype(np.uint8)
    seen: dict[str, object] = {}
    with keyrail.open(f"{kind}:alice") as alice, keyrail.open(f"{kind}:bob") as bob:
        if pauses:
            alice.pauses(seed, 0.5, 0.4)
            bob.pauses(seed + 1, 0.4, 0.5)
        for board in (alice, bob):
            board.write("mode", Mode.KEY)
            board.run()
            board.write("block_first_slot", FIRST)
            board.write("block_last_slot", SLOTS - 100)
            board.write("block_on_host", int(on_host))
        set_up(bob)
        alice.write("states_first_slot", 0)
        for board in (alice, bob):
            board.write("block_command", BlockCommand.OPEN)
            board.run()
            assert board.read("block_state") == BlockState.OPEN
        times, channels = clicks(seed)
        bob.send("coins", coins(seed, 5_000))
        half = len(times) // 2
        for part in (slice(0, half), slice(half, None)):
            until = int(times[part][-1]) + 1
            bob.send("tags", tag_path.tag_records(times[part], channels[part], until))
            bob.run()
        tag_path.send_frame(bob, int(times[-1]) + 10 * PERIOD_PS)
        bob.run()
        tag_path.check_ledgers(bob, tag_path.CHAIN)
        tag_path.check_ledgers(bob, tag_path.CHAIN, at_frame=True)
        alice.send("states", state_words(states))
        alice.run()
        announcements = bob.receive("announcements")
        assert len(announcements) > 500
        alice.send("announcements", announcements)
        alice.run()
        spilled = {b.name: b.receive("block_out") for b in (alice, bob)}
        count = bob.read("block_count")
        assert alice.read("block_count") == count
        assert len(spilled[bob.name]) == (count if on_host else 0)

        # Bases are held back until the block has closed.
        bob.write("block_command", BlockCommand.BASES)
        bob.run()
        assert len(bob.receive("bases")) == 0
        assert bob.read_fields("status")["refused"] == 1
        for board in (alice, bob):
            board.write("block_command", BlockCommand.CLOSE)
            board.run()
            board.write("block_command", BlockCommand.BASES)
            if on_host:
                board.send("block_in", spilled[board.name])
            board.run()
        bases = bob.receive("bases")
        assert len(bases) == count
        alice.send("bases", bases)
        alice.run()
        replies = alice.receive("replies")
        assert len(replies) == count
        bob.write("block_command", BlockCommand.RESOLVE)
        if on_host:
            bob.send("block_in", spilled[bob.name])
        bob.send("replies", replies)
        bob.run()
        sifted = {board.name: board.receive("sifted") for board in (alice, bob)}
        for board, role in ((alice, "alice"), (bob, "bob")):
            assert board.read("block_state") == BlockState.DONE
            for block, (roles, _) in LEDGERS.items():
                if board.role in roles:
                    seen[f"{role} {block}"] = board.ledger(block)
            seen[f"{role} rest"] = collect(board)
            seen[f"{role} sifted"] = sifted[board.name].tobytes()
            seen[f"{role} spilled"] = spilled[board.name].tobytes()
        seen |= {
            "announcements": announcements.tobytes(),
            "bases": bases.tobytes(),
            "replies": replies.tobytes(),
        }
        at_alice, at_bob = sifted[alice.name], sifted[bob.name]
        assert len(at_alice) == len(at_bob) > 100
        assert np.array_equal(at_alice["test"], at_bob["test"])
        # A key-basis bit is never opened.
        opened = replies["opened"] == 1
        assert not replies["bit"][~opened].any()
        assert np.array_equal(opened, (replies["keep"] == 1) & (bases["basis"] == 1))
    return seen


@pytest.mark.parametrize("on_host", [False, True], ids=["on board", "on host"])
def test_a_block_gives_the_same_bytes_on_gateware_and_twin(on_host):
    twin = one_block("sim-model", 11, on_host, pauses=False)
    assert one_block("sim", 11, on_host, pauses=False) == twin
    assert one_block("sim", 11, on_host, pauses=True) == twin


def test_instrument_mode_gives_the_same_bytes_on_gateware_and_twin():
    seen = []
    for kind in KINDS:
        with keyrail.open(f"{kind}:bob") as bob:
            set_up(bob)
            times, channels = clicks(3)
            bob.send("tags", tag_path.tag_records(times, channels, int(times[-1]) + 1))
            bob.run()
            histograms = []
            for command in HistogramCommand:
                bob.write("histogram_command", command)
                bob.run()
                histograms.append(bob.receive("histogram"))
            assert [len(one) for one in histograms] == [8 * 1024, 8 * 2 * 64, 4 * 64]
            # The squash is at rest in instrument mode; every channel but its first click counts.
            assert histograms[1]["count"].sum() == len(times) - 4
            seen.append(collect(bob) | {"histogram": np.concatenate(histograms).tobytes()})
            dropped = tag_path.check_ledgers(bob, tag_path.INSTRUMENT_CHAIN)
            assert sum(dropped.values()) + bob.ledger("gate")["out"] == len(times)
    assert seen[0] == seen[1]
    assert len(seen[0]["gated"]) > 0


def active_block(kind: str, on_slots: int) -> dict[str, object]:
    """A block of an active receiver whose basis choices last for some of its slots."""
    choices = np.random.default_rng(21).integers(0, 2, on_slots).astype(np.uint8)
    seen: dict[str, object] = {}
    with keyrail.open(f"{kind}:bob") as bob:
        bob.write("mode", Mode.KEY)
        bob.run()
        set_up(bob)
        gates = dict.fromkeys(range(2), (4800, 5200))
        zero, one = {0: (Basis.Z, 0), 1: (Basis.Z, 1)}, {0: (Basis.X, 0), 1: (Basis.X, 1)}
        tag_path.set_gates(bob, gates, zero, one)
        bob.write("block_last_slot", SLOTS)
        times, channels = clicks(6)
        tags = tag_path.tag_records(times, channels, int(times[-1]) + 10 * PERIOD_PS)
        # Before the block is open no choice is taken.
        bob.send("basis_choices", tag_path.choice_words(choices))
        bob.run()
        assert bob.pending("basis_choices") == on_slots // 64
        bob.write("block_command", BlockCommand.OPEN)
        bob.run()
        assert bob.read("choices_next_slot") == on_slots
        bob.send("coins", coins(1, 2_000))
        bob.send("tags", tags)
        bob.run()
        tag_path.check_ledgers(bob, tag_path.CHAIN)
        announcements = bob.receive("announcements")
        bob.write("block_command", BlockCommand.CLOSE)
        bob.run()
        bob.write("block_command", BlockCommand.BASES)
        bob.run()
        bases = bob.receive("bases")["basis"]
        slots = announced_slots(announcements, 0)
        # Each detection's basis is the choice that was made for its slot; no choice, no detection.
        assert np.array_equal(bases, choices[slots])
        assert 100 < len(slots) == bob.read("block_count")
        assert slots.max() < on_slots
        seen["ledgers"] = {block: bob.ledger(block) for block in tag_path.CHAIN}
        seen["announcements"], seen["bases"] = announcements.tobytes(), bases.tobytes()
        bob.write("block_command", BlockCommand.DISCARD)
        bob.run()
        assert bob.read("choices_next_slot") == 0
    return seen


def test_active_receiver_gives_the_same_bytes_on_gateware_and_twin():
    seen = active_block("sim", 1_920)
    assert seen == active_block("sim-model", 1_920)
    assert seen["ledgers"]["choices"]["dry"] > 0


def test_currents_outside_their_limits_raise_alarms(kind):
    rng = np.random.default_rng(4)
    with keyrail.open(f"{kind}:bob") as bob:
        bob.write("current_limits_2", low=100, high=900)
        bob.write("current_limits_5", low=0, high=65_000)
        samples = zeros(CURRENT_SAMPLE, 300)
        samples["channel"] = rng.choice([2, 5, 9], 300)
        samples["sample"] = np.where(samples["channel"] == 2, rng.integers(0, 1_200, 300), 64_999)
        bob.send("currents", samples)
        bob.run()
        counts = bob.ledger("currents")
        ours = samples["sample"][samples["channel"] == 2]
        assert counts["in"] == 300
        assert counts["low"] == (ours < 100).sum() > 0
        assert counts["high"] == (ours > 900).sum() > 0
        assert counts["bad_channel"] == (samples["channel"] == 9).sum()
        assert bob.read("current_alarms") == 1 << 2
        station = ReceiverStation(bob, memory_pair()[0], TestRandom(1, "coins"))
        with pytest.raises(ProtocolError, match="currents of channel 2"):
            station.announce_close()
        bob.write("tag_path_reset", 1)
        bob.run()
        assert bob.read("current_alarms") == 0


@pytest.mark.parametrize("together", [8, 1], ids=["8 channels at once", "1 click a slot"])
def test_a_tag_a_clock_from_slotter_to_squash(together):
    """100 Mtags/s at 100 MHz, every channel hit at the same time; no clock is lost."""
    slots = 16_000 // together
    begins = np.repeat(np.arange(slots), together) * (PERIOD / (1 << PERIOD_FRACTION_BITS))
    times = (777 + begins + 5_000).astype(np.int64)
    channels = (np.arange(len(times)) % 8).astype(np.uint8)
    with keyrail.open("sim:bob") as bob:
        bob.write("mode", Mode.KEY)
        bob.run()
        set_up(bob)
        tag_path.set_blanking(bob, 0)
        outcomes = {channel: (Basis(channel >> 1 & 1), channel & 1) for channel in range(8)}
        tag_path.set_gates(bob, dict.fromkeys(range(8), (4800, 5200)), outcomes)
        bob.write("block_last_slot", slots)
        bob.write("block_command", BlockCommand.OPEN)
        bob.run()
        bob.send("coins", coins(1, slots + 100))
        tags = tag_path.tag_records(times, channels, int(times[-1]) + PERIOD_PS)
        began = bob.cycles
        bob.send("tags", tags)
        bob.run()
        # The board has come to rest when nothing has moved for 256 clocks.
        assert bob.cycles - began <= len(tags) + 256 + 64
        tag_path.check_ledgers(bob, tag_path.CHAIN)
        assert bob.ledger("squash")["in"] == len(times)
        assert bob.ledger("announcer")["out"] == slots
        assert bob.ledger("squash")["cross_clicks"] == (slots if together == 8 else 0)


def test_identity(kind):
    with keyrail.open(f"{kind}:alice") as alice:
        identity = alice.identify()
        assert identity["horizon_log2"] == 17
        assert identity["states_randomness"] == Randomness.TEST
        # The generator is computational, whatever the host says of it.
        alice.write("source", generator=1, label=Randomness.HARDWARE)
        assert alice.identify()["states_randomness"] == Randomness.GENERATOR
        assert alice.randomness() == {"states": "generator"}
        alice.write("source", label=Randomness.HARDWARE)
        assert alice.identify()["states_randomness"] == Randomness.HARDWARE
        assert identity["toeplitz_input_log2"] == 18


def test_another_contract_is_refused(kind, monkeypatch):
    with keyrail.open(f"{kind}:bob") as bob:
        monkeypatch.setattr("keyrail.board.CONTRACT_HASH", 1)
        with pytest.raises(ContractMismatch, match="rebuild the gateware"):
            bob.identify()


def test_wrong_names_say_what_would_be_right():
    with pytest.raises(SettingError, match="sim:alice, sim:bob"):
        keyrail.open("sim:carol")
    with pytest.raises(SettingError, match="sim:alice, sim:bob"):
        keyrail.open("usb")


def test_wrong_use_is_refused(kind):
    with keyrail.open(f"{kind}:bob") as bob:
        with pytest.raises(BoardError, match="no register 'states_first_slot'"):
            bob.write("states_first_slot", 0)
        with pytest.raises(BoardError, match="read-only"):
            bob.write("magic", 0)
        with pytest.raises(SettingError, match="0 to 65535"):
            bob.write("blanking_slots_0", 65536)
        with pytest.raises(SettingError, match="one of the fields"):
            bob.write("gate_0_0", stat=1)
        with pytest.raises(BoardError, match="no stream 'states'"):
            bob.send("states", zeros(STATE_WORD, 1))
        with pytest.raises(BoardError, match="no stream 'tags' to host"):
            bob.receive("tags")


def test_commands_out_of_turn_are_refused(kind):
    with keyrail.open(f"{kind}:bob") as bob:
        assert bob.read_fields("status")["wiped"] == 1
        for command in (BlockCommand.OPEN, BlockCommand.CLOSE, BlockCommand.BASES):
            bob.write("block_command", command)  # not in instrument mode
            bob.run()
            assert bob.read("block_state") == BlockState.IDLE
        assert bob.read_fields("status")["refused"] == 1
        bob.write("mode", Mode.KEY)
        bob.run()
        assert bob.read_fields("status")["refused"] == 0
        bob.write("block_command", BlockCommand.OPEN)
        bob.run()
        for command in (BlockCommand.OPEN, BlockCommand.BASES, BlockCommand.RESOLVE):
            bob.write("block_command", command)
            bob.run()
            assert bob.read("block_state") == BlockState.OPEN
        bob.write("block_command", BlockCommand.DISCARD)
        bob.run()
        assert bob.read("block_state") == BlockState.IDLE
        # In key mode no tag and no thin histogram leaves the board.
        set_up(bob)
        times, channels = clicks(5)
        bob.send("tags", tag_path.tag_records(times[:500], channels[:500], int(times[500])))
        bob.run()
        bob.write("histogram_command", HistogramCommand.PHASES)
        bob.run()
        assert collect(bob)["gated"] == b""
        assert tag_path.read_histogram(bob) is None


def test_wipe_says_so_and_discards_the_block(kind):
    with keyrail.open(f"{kind}:bob") as bob:
        bob.write("mode", Mode.KEY)
        bob.run()
        set_up(bob)
        bob.write("block_last_slot", SLOTS)
        bob.write("block_command", BlockCommand.OPEN)
        bob.run()
        times, channels = clicks(5)
        bob.send("coins", coins(1, 1000))
        bob.send("tags", tag_path.tag_records(times, channels, int(times[-1])))
        bob.run()
        assert bob.read("block_count") > 0
        assert bob.read_fields("status")["wiped"] == 0
        bob.write("wipe", 1)
        bob.run()
        assert bob.read_fields("status")["wiped"] == 1
        assert bob.read("block_count") == 0
        assert bob.read("block_state") == BlockState.IDLE


def send_words(board: Board, name: str, words, record=TOEPLITZ_WORD) -> None:
    records = zeros(record, len(words))
    records["bits"] = words
    board.send(name, records)


@pytest.mark.parametrize("family", ["modified", "plain"])
def test_toeplitz_on_the_board(kind, family):
    rng = np.random.default_rng(8)
    n, m = 5_001, 1_003
    key = rng.integers(0, 2, n).astype(np.uint8)
    seed = rng.integers(0, 2, seed_bits(n, m, family)).astype(np.uint8)
    geometry = Geometry(n, m, family)
    with keyrail.open(f"{kind}:alice") as alice:
        alice.write("toeplitz_n", n)
        alice.write("toeplitz_m", m)
        alice.write("toeplitz_family", ToeplitzFamily[family.upper()])
        alice.write("toeplitz_command", ToeplitzCommand.START)
        send_words(alice, "toeplitz_key", geometry.pack_key(key))
        send_words(alice, "toeplitz_seed", geometry.pack_seed(seed))
        alice.run()
        words = alice.receive("toeplitz_out")["bits"]
        assert alice.read_fields("toeplitz_status")["error"] == 0
    assert np.array_equal(geometry.unpack_output(words), toeplitz_hash(key, seed, m, family))


@pytest.mark.parametrize("family", ["modified", "plain"])
def test_tiles_on_the_board(kind, family):
    """A hash cut in tiles, the sums kept on the board."""
    rng = np.random.default_rng(17)
    n, m = 9000, 2500
    key = rng.integers(0, 2, n).astype(np.uint8)
    seed = rng.integers(0, 2, seed_bits(n, m, family)).astype(np.uint8)
    with keyrail.open(f"{kind}:alice") as board:
        hashed = hash_on_board(board, key, seed, m, family, tile=(4096, 2048))
    assert np.array_equal(hashed, toeplitz_hash(key, seed, m, family))


def test_a_seed_used_twice_is_refused_with_the_sizes(kind):
    rng = np.random.default_rng(18)
    key, other = rng.integers(0, 2, (2, 3000)).astype(np.uint8)
    seed, fresh = rng.integers(0, 2, (2, 2999)).astype(np.uint8)
    with keyrail.open(f"{kind}:bob") as board:
        station = Station(board, memory_pair()[0])
        assert np.array_equal(station.hash_block(key, seed, 800), toeplitz_hash(key, seed, 800))
        with pytest.raises(BoardError, match="3000 bits to 800, gave 0 of 13 words: seed_reused"):
            station.hash_block(other, seed, 800)
        board.write("toeplitz_command", ToeplitzCommand.CLEAR_ERROR)
        assert np.array_equal(
            station.hash_block(other, fresh, 800), toeplitz_hash(other, fresh, 800)
        )


def test_layouts_of_the_link_hold_no_more_than_the_protocol_says():
    assert dtype(ANNOUNCEMENT).names == ("difference", "more")
    assert dtype(BASIS).names == ("basis",)
    assert dtype(REPLY).names == ("keep", "opened", "bit")


KEY = bytes(range(7, 39))


def open_sender(alice: Board, slots: int, **source: int) -> None:
    alice.write("mode", Mode.KEY)
    alice.run()
    alice.write("block_last_slot", slots - 1)
    alice.write("block_on_host", 1)
    alice.write("source", **source)
    alice.write("block_command", BlockCommand.OPEN)
    alice.run()


def announcements(slots):
    detections = zeros(DETECTION, len(slots))
    detections["slot"] = slots
    return Announcer(0, 1 << 47).process(detections)[0]


def look_up(alice: Board, slots, copy: StateCopy | None = None):
    """Entries of announced slots, what has left the ring asked of the control PC."""
    alice.send("announcements", announcements(slots))
    alice.run()
    while copy is not None and len(missed := alice.receive("missed")):
        alice.send("recalled", copy.answer(missed["slot"]))
        alice.run()
    entries = alice.receive("block_out")
    assert len(entries) == len(slots)
    return entries


def codes(entries):
    return entries["basis"] | entries["bit"] << 1 | entries["intensity"] << 2


def test_slots_that_have_left_the_ring_are_recalled_in_order(kind):
    """More than wait at a time in the order's memory, those of the ring among them."""
    rng = np.random.default_rng(4)
    slots = (1 << 17) + (1 << 15)
    states = rng.integers(0, 8, slots).astype(np.uint8)
    announced = np.sort(rng.choice(slots, 12_000, replace=False))
    copy = StateCopy((1 << 17) + (1 << 14))
    with keyrail.open(f"{kind}:alice") as alice:
        open_sender(alice, slots, recall=1)
        alice.send("states", state_words(states))
        alice.run()
        copy.feed(states)
        entries = look_up(alice, announced, copy)
        counts = alice.ledger("state_memory")
    known = announced >= slots - copy.horizon_slots
    assert np.array_equal(entries["present"] == 1, known)
    assert np.array_equal(codes(entries)[known], states[announced[known]])
    assert counts["expired"] == (~known).sum() > 0
    assert (announced[known] < slots - (1 << 17)).sum() > 1024
    assert counts["in"] == counts["out"] + counts["expired"] == len(announced)


def test_states_of_the_generator_are_made_again(kind):
    """Sync slots are never answered; the rest as they were sent, in the ring or not."""
    rng = np.random.default_rng(6)
    slots = (1 << 17) + (1 << 13)
    bias, nonce = (61440, 58982), 0x0123456789ABCDEF
    announced = np.sort(rng.choice(slots, 2_000, replace=False))
    with keyrail.open(f"{kind}:alice") as alice:
        assert alice.read_fields("source_status")["keyed"] == 0
        alice.write("generator_bias", z=bias[0], signal=bias[1])
        alice.write("generator_nonce", nonce)
        alice.write("source_frame", words_log2=4, sync_words=1)
        alice.write("mode", Mode.KEY)
        alice.run()
        send_words(alice, "generator_key", np.frombuffer(KEY, "<u8"), KEY_WORD)
        alice.run()
        assert alice.read_fields("source_status")["keyed"] == 1
        open_sender(alice, slots, generator=1)
        entries = look_up(alice, announced)
        counts = alice.ledger("state_memory")
        alice.write("block_command", BlockCommand.DISCARD)
        alice.run()
        # The same slots again under the same key would repeat bits.
        open_sender(alice, slots, generator=1)
        assert alice.read_fields("source_status")["repeated"] == 1
        assert not look_up(alice, announced[:50])["present"].any()
        alice.write("wipe", 1)
        alice.run()
        assert alice.read_fields("status")["wiped"] == 1
        assert alice.read_fields("source_status")["keyed"] == 0
    sync = announced // 16 % 16 == 0
    assert np.array_equal(entries["present"] == 1, ~sync)
    states = Generator(KEY, nonce, *bias).states_at(announced)
    assert np.array_equal(codes(entries)[~sync], states[~sync])
    assert counts["absent"] == sync.sum()
    assert (announced[~sync] < slots - (1 << 17)).sum() > 50


def test_a_paced_source_ends_with_its_block():
    """A block that begins anywhere: its sync slots and its last slot are where they belong."""
    first, words = 16 * 7, 20
    states = np.full(16 * words, 7, np.uint8)
    with keyrail.open("sim:alice") as alice:
        alice.write("mode", Mode.KEY)
        alice.run()
        for _ in range(2):
            alice.write("states_first_slot", first)
            alice.write("block_first_slot", first)
            alice.write("block_last_slot", first + 16 * words - 1)
            alice.write("source_frame", words_log2=3, sync_words=2)
            alice.write("source", paced=1)
            alice.write("block_command", BlockCommand.OPEN)
            alice.send("states", state_words(states))
            alice.run()
            status = alice.read_fields("source_status")
            assert (status["ended"], status["starved"]) == (1, 0)
            # Words 8, 9, 16, 17, 24 and 25 of 7 to 26.
            assert alice.ledger("source") == {"in": 20, "out": 14, "sync": 6, "surplus": 0}
            announced = first + np.arange(16 * words)
            alice.send("announcements", announcements(announced - first))
            alice.run()
            assert alice.ledger("state_memory")["absent"] == 16 * 6
            alice.write("block_command", BlockCommand.DISCARD)
            alice.run()


def test_a_paced_source_starves_and_stops_the_block():
    """Nothing that was not emitted is answered, and the next block begins anew."""
    rng = np.random.default_rng(10)
    states = rng.integers(0, 8, 256).astype(np.uint8)
    with keyrail.open("sim:alice") as alice:
        for _ in range(2):
            open_sender(alice, 512, paced=1)
            alice.send("states", state_words(states))
            alice.run_for(100)
            assert alice.read_fields("source_status")["running"] == 1
            alice.run()
            status = alice.read_fields("source_status")
            assert (status["running"], status["ended"], status["starved"]) == (0, 0, 1)
            alice.send("states", state_words(states[:32]))
            alice.run()
            entries = look_up(alice, np.arange(200, 300))
            assert np.array_equal(codes(entries)[:56], states[200:])
            assert not entries["present"][56:].any()
            assert alice.ledger("state_memory")["absent"] == 44
            assert alice.ledger("source") == {"in": 18, "out": 16, "sync": 0, "surplus": 2}
            alice.write("block_command", BlockCommand.DISCARD)
            alice.run()
