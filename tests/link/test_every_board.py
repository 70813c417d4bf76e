# SPDX-License-Identifier: Apache-2.0
"""The host library on every kind of board: numpy twin, gateware, gateware behind its USB core.

One board of each kind and role is opened for the whole file; each test sets up what it needs.
Building and running two whole stations behind their USB cores takes minutes: with KEYRAIL_SIM_USB=1
(`make test-sim-usb`) alone.
"""

import os

import numpy as np
import pytest

import keyrail
from keyrail import ptu, selftest, t2, tag_input, tag_path
from keyrail.board import BoardError
from keyrail.board_hash import hash_on_board
from keyrail.contract import (
    CONTRACT_HASH,
    PERIOD_FRACTION_BITS,
    STATE_WORD,
    BlockCommand,
    BlockState,
    BoardCode,
    Direction,
    Mode,
    Role,
)
from keyrail.distil.toeplitz import seed_bits, toeplitz_hash
from keyrail.errors import ContractMismatch, SettingError
from keyrail.layouts import zeros
from keyrail.usb import NoBoard, Unplugged

pytestmark = pytest.mark.xdist_group("stations")

KINDS = (
    "sim-model",
    "sim",
    pytest.param(
        "sim-usb",
        marks=pytest.mark.skipif(
            not os.environ.get("KEYRAIL_SIM_USB"), reason="minutes: KEYRAIL_SIM_USB=1"
        ),
    ),
)
STATIONS = {"alice": Role.SENDER, "bob": Role.RECEIVER}
PERIOD_PS = 10_000


@pytest.fixture(scope="module", params=KINDS)
def boards(request):
    """Boards of one kind by station."""
    opened = {station: keyrail.open(f"{request.param}:{station}") for station in STATIONS}
    yield opened
    for board in opened.values():
        board.close()


@pytest.fixture(params=STATIONS)
def board(boards, request):
    return boards[request.param]


def clicks(seed, count):
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.integers(1, 1 << 27, count))  # some gaps are wraps of T2's time
    return times, rng.integers(0, 4, count)


def record(bob, seed, count=300):
    """Send clicks that every gate accepts."""
    tag_path.set_slots(bob, PERIOD_PS << PERIOD_FRACTION_BITS, 0)
    tag_path.open_gates(bob, range(4), PERIOD_PS << PERIOD_FRACTION_BITS)
    times, channels = clicks(seed, count)
    bob.send("tags", tag_path.tag_records(times, channels, int(times[-1]) + 1))
    bob.run()
    return times, channels


def test_identity(board):
    identity = board.identify()
    assert identity["contract_hash"] == CONTRACT_HASH
    assert identity["role"] == STATIONS[board.name.partition(":")[2]] == board.role
    assert identity["toeplitz_input_log2"] == 18
    assert board.read("board") == BoardCode.SIMULATED


def test_registers(board):
    board.write("toeplitz_n", 1234)
    board.write("block_last_slot", 0x8765_4321_0FED)
    assert board.read("toeplitz_n") == 1234
    assert board.read("block_last_slot") == 0x8765_4321_0FED
    board.write("toeplitz_tile", unfinished=1)
    assert board.read_fields("toeplitz_tile") == {"continued": 0, "unfinished": 1}
    board.write("toeplitz_tile", 0)
    with pytest.raises(BoardError, match="read-only"):
        board.write("magic", 0)
    with pytest.raises(SettingError, match="0 to 1"):
        board.write("mode", 2)
    with pytest.raises(SettingError, match="one of the fields"):
        board.write("toeplitz_tile", begun=1)
    with pytest.raises(BoardError, match="no register 'nothing'"):
        board.read("nothing")
    assert board.read_word(0xFFFF) == 0


def test_every_stream_carries_known_records(board):
    """Registers, a recording, a block of key, known hashes, a wipe; each stream both ways."""
    result = selftest.run(board)
    assert result.passed, result.summary()
    carried = {name for check in result.checks for name in check.streams}
    # A twin without clocks loses nothing, and neither does a board that nothing overruns.
    assert set(board.streams) - carried <= {"losses"}
    directions = {board.streams[name].direction for name in carried}
    assert directions == set(Direction)


def test_a_recording_to_a_file(boards, tmp_path):
    bob = boards["bob"]
    tag_input.set_raw(bob, True)
    times, channels = record(bob, 1)
    path = tmp_path / "tags.ptu"
    with ptu.PtuWriter(path) as file:
        assert len(tag_input.take_raw(bob, file)) == 0
    tag_input.set_raw(bob, False)
    raw = path.read_bytes()
    events = t2.decode(raw[raw.index(b"Header_End") + 48 :])
    assert np.array_equal(events.times, times)
    assert np.array_equal(events.channels, channels)
    gated = bob.receive("gated")
    gated = gated[gated["kind"] == 0]
    assert np.array_equal(tag_path.decoded_times(gated, PERIOD_PS << PERIOD_FRACTION_BITS), times)


def test_hash_in_tiles(board):
    rng = np.random.default_rng(17)
    n, m = 3_000, 900
    key = rng.integers(0, 2, n).astype(np.uint8)
    seed = rng.integers(0, 2, seed_bits(n, m, "plain")).astype(np.uint8)
    hashed = hash_on_board(board, key, seed, m, "plain", tile=(1_024, 512))
    assert np.array_equal(hashed, toeplitz_hash(key, seed, m, "plain"))


def test_commands_out_of_turn_are_refused(board):
    for command in (BlockCommand.OPEN, BlockCommand.CLOSE, BlockCommand.BASES):
        board.write("block_command", command)
        board.run()
        assert board.read("block_state") == BlockState.IDLE
    assert board.read_fields("status")["refused"] == 1


def test_key_mode_lets_no_tag_out(boards):
    bob = boards["bob"]
    bob.write("mode", Mode.KEY)
    bob.run()
    assert bob.read_fields("status") == {"busy": 0, "wiped": 1, "refused": 0}
    with pytest.raises(BoardError, match="stay inside"):
        tag_input.set_raw(bob, True)
    bob.write("tag_input", raw=1)
    record(bob, 2, 50)
    for name in ("gated", "raw", "losses"):
        assert len(bob.receive(name)) == 0
    assert tag_path.read_histogram(bob) is None
    bob.write("tag_input", raw=0)
    bob.write("mode", Mode.INSTRUMENT)
    bob.run()


def test_another_contract_is_refused(board, monkeypatch):
    monkeypatch.setattr("keyrail.board.CONTRACT_HASH", 1)
    with pytest.raises(ContractMismatch, match="rebuild the gateware") as caught:
        board.identify()
    assert f"{CONTRACT_HASH:016x}" in str(caught.value)
    assert f"{1:016x}" in str(caught.value)


def test_streams_of_the_other_role_or_direction_are_refused(boards):
    with pytest.raises(BoardError, match="no stream 'states'"):
        boards["bob"].send("states", zeros(STATE_WORD, 1))
    with pytest.raises(BoardError, match="no stream 'states' to host"):
        boards["alice"].receive("states")


def test_unplugged_and_plugged_in_again(boards):
    """What came is kept, every stream ends with an error, and a new segment begins."""
    bob = boards["bob"]
    if not bob.name.startswith("sim-usb:"):
        pytest.skip(f"{bob.name} has no cable")
    record(bob, 3)
    bob.send("tags", tag_path.tag_records(*clicks(4, 300)))
    bob.unplug()
    with pytest.raises(Unplugged):
        bob.run()
    assert len(bob.receive("gated")) > 200
    for name in ("gated", "histogram"):
        with pytest.raises(Unplugged, match="unplugged"):
            bob.receive(name)
    for use in (bob.identify, lambda: bob.write("mode", 1), lambda: record(bob, 5)):
        with pytest.raises(Unplugged):
            use()
    with pytest.raises(NoBoard, match="not plugged in again"):
        bob.resume(wait_s=0.2)
    bob.plug()
    assert bob.resume() == {}
    assert bob.segment == 1
    assert bob.identify()["role"] == Role.RECEIVER
    times, _ = record(bob, 6, 100)
    gated = bob.receive("gated")
    assert len(gated[gated["kind"] == 0]) == len(times)


def test_a_closed_board_says_so(board):
    """The last test: it closes its boards, as often as is wanted."""
    board.close()
    board.close()
    for use in (
        lambda: board.read("mode"),
        lambda: board.write("mode", 0),
        board.identify,
        lambda: board.receive("sifted"),
        lambda: board.send("toeplitz_key", zeros(board.streams["toeplitz_key"].record, 1)),
    ):
        with pytest.raises(BoardError, match="closed"):
            use()
