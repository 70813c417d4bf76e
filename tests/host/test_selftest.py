# SPDX-License-Identifier: Apache-2.0
"""The self-test finds every way in which a board can be broken, and says what to do."""

import json
from contextlib import contextmanager

import numpy as np
import pytest
from click.testing import CliRunner

import keyrail
from keyrail import selftest
from keyrail.board import BoardError
from keyrail.cli import cli
from keyrail.contract import Direction, Role, TdcResult, streams
from keyrail.selftest import Outcome
from keyrail.usb import Unplugged
from toeplitz_known_answers import reference


@contextmanager
def broken(station, reads=None, writes=None, sends=None, receives=None, runs=None):
    """The numpy twin of a station with something between it and the host.

    Each of these gets what the board does as its first argument, and what the host asks as the
    others; those named by register or stream as dictionaries.
    """
    with keyrail.open(f"sim-model:{station}") as board:
        places = {
            register.offset + word: (register.name, word)
            for register in board.registers.values()
            for word in range(register.words)
        }
        read, write = board.read_word, board.write_word
        send, receive, run = board.send_bytes, board.receive_bytes, board.run

        def read_word(offset):
            name, word = places[offset]
            value = read(offset)
            return reads[name](value, word) if reads and name in reads else value

        def write_word(offset, value):
            name, word = places[offset]
            if writes and name in writes:
                writes[name](write, value, word)
            else:
                write(offset, value)

        def send_bytes(stream, data):
            send(stream, sends(stream, data) if sends else data)

        def receive_bytes(stream):
            data = receive(stream)
            return receives(stream, data) if receives else data

        board.read_word, board.write_word = read_word, write_word
        board.send_bytes, board.receive_bytes = send_bytes, receive_bytes
        board.run = (lambda: runs(run)) if runs else run
        yield board


def outcomes(result):
    return {check.name: check.outcome for check in result.checks}


def failure(result):
    """The only check that failed."""
    (check,) = [one for one in result.checks if one.outcome is Outcome.FAIL]
    assert not result.passed
    return check


@pytest.mark.parametrize("station", ["alice", "bob"])
def test_a_sound_board_passes_and_is_left_as_after_reset(station):
    with broken(station) as board:
        board.write("block_last_slot", 77)
        result = selftest.run(board)
        assert result.passed, result.summary()
        seen = outcomes(result)
        assert seen.pop("Oscillator") is Outcome.ABSENT
        assert set(seen.values()) == {Outcome.PASS}
        assert board.read("block_last_slot") == 0
        assert board.read_fields("status") == {"busy": 0, "wiped": 1, "refused": 0}
        carried = {name for check in result.checks for name in check.streams}
        assert set(board.streams) - carried <= {"losses"}
        json.dumps(result.as_dict())


def test_the_known_answers_are_those_of_the_reference():
    import hashlib

    n, m = selftest.HASH
    for family, answer in selftest.ANSWERS.items():
        seed = selftest._bits(f"{family} seed", {"modified": n - 1, "plain": n + m - 1}[family])
        hashed = reference(selftest._bits("key", n), seed, m, family)
        assert hashlib.sha256(hashed.tobytes()).hexdigest() == answer


@pytest.mark.parametrize(
    ("register", "detail"),
    [
        ("magic", "register 0 answers"),
        ("contract_version", "rebuild the gateware"),
        ("contract_hash", "rebuild the gateware"),
        ("role", "role"),
    ],
)
def test_identity(register, detail):
    with broken("bob", reads={register: lambda value, word: value ^ 1}) as board:
        result = selftest.run(board)
    check = failure(result)
    assert check.name == "Identity"
    assert detail in check.detail
    assert all(one is Outcome.NOT_RUN for one in list(outcomes(result).values())[1:])


@pytest.mark.parametrize("station", ["alice", "bob"])
def test_a_register_bit_that_is_stuck(station):
    stuck = {"block_last_slot": lambda value, word: value | (4 if word else 0)}
    with broken(station, reads=stuck) as board:
        check = failure(selftest.run(board))
    assert check.name == "Registers"
    assert "block_last_slot reads" in check.detail
    assert "cable" in check.advice


def test_registers_that_share_a_place():
    def other(write, value, word):
        for name in ("gate_3_1", "gate_1_0"):
            write(board.registers[name].offset + word, value)

    with broken("bob", writes={"gate_3_1": other}) as board:
        check = failure(selftest.run(board))
    assert check.name == "Registers"
    assert "gate_1_0 reads" in check.detail


@pytest.mark.parametrize(
    ("station", "register", "kept", "detail"),
    [
        ("bob", "status", 0, "status.wiped is 0"),
        ("alice", "status", 0, "status.wiped is 0"),
        ("bob", "block_count", 256, "still there"),
        ("alice", "source_status", 8, "keyed is 1"),
    ],
)
def test_a_wipe_that_leaves_something(station, register, kept, detail):
    with broken(station, reads={register: lambda value, word: kept}) as board:
        result = selftest.run(board)
    wipe = next(check for check in result.checks if check.name == "Wipe")
    assert wipe.outcome is Outcome.FAIL
    assert detail in wipe.detail
    assert not result.passed


TO_HOST = [
    (role, name)
    for role in Role
    for name, stream in streams(role).items()
    if stream.direction is Direction.TO_HOST and name != "losses"
]
TO_BOARD = [
    (role, name)
    for role in Role
    for name, stream in streams(role).items()
    if stream.direction is Direction.TO_BOARD
]
STATION = {Role.SENDER: "alice", Role.RECEIVER: "bob"}


@pytest.mark.parametrize("fault", ["bit", "lost"])
@pytest.mark.parametrize(
    ("role", "name"), TO_HOST, ids=lambda part: str(getattr(part, "name", part))
)
def test_a_stream_to_the_host_that_is_damaged(role, name, fault):
    """One bit, or one record lost: in the middle of what a stream carries."""

    def receives(stream, data):
        size = stream.record.bytes
        at = len(data) // size // 2 * size
        if stream.name != name or len(data) == 0:
            return data
        if fault == "lost":
            return np.delete(data, slice(at, at + size))
        data = data.copy()
        data[at] ^= 1
        return data

    with broken(STATION[role], receives=receives) as board:
        result = selftest.run(board)
    failed = [check for check in result.checks if check.outcome is Outcome.FAIL]
    assert failed, name
    assert failed[0].advice
    text = " ".join(check.detail for check in failed)
    assert (
        name in text
        or {"toeplitz_out": "Toeplitz", "histogram": "histogram"}[name] in text
        or ("bits differ" in text)
    )


@pytest.mark.parametrize(
    ("role", "name"), TO_BOARD, ids=lambda part: str(getattr(part, "name", part))
)
def test_a_stream_to_the_board_that_loses_its_last_record(role, name):
    def sends(stream, data):
        # A time record ends the tags: before it goes the last click.
        size = stream.record.bytes
        if stream.name != name:
            return data
        return (
            np.delete(data, slice(len(data) - 2 * size, len(data) - size))
            if name == "tags"
            else data[:-size]
        )

    with broken(STATION[role], sends=sends) as board:
        result = selftest.run(board)
    assert not result.passed
    assert any(check.outcome is Outcome.FAIL for check in result.checks)


def test_tags_that_were_lost():
    losses = streams(Role.RECEIVER)["losses"]

    def receives(stream, data):
        return np.full(losses.record.bytes, 1, np.uint8) if stream.name == "losses" else data

    with broken("bob", receives=receives) as board:
        check = failure(selftest.run(board))
    assert check.name == "Measurement"
    assert "clicks were lost, in 1 losses" in check.detail


def test_a_counter_that_does_not_count():
    with broken("bob", reads={"gate_gated_out": lambda value, word: 0}) as board:
        check = failure(selftest.run(board))
    assert check.name == "Measurement"


def test_a_board_that_never_rests():
    def runs(run):
        raise BoardError("model: still at work after 600 s")

    with broken("alice", runs=runs) as board:
        result = selftest.run(board)
    assert outcomes(result)["Registers"] is Outcome.FAIL
    assert "still at work" in result.checks[1].detail
    assert "cable" in result.checks[1].advice


def test_unplugged_in_the_middle():
    calls = []

    def runs(run):
        calls.append(1)
        if len(calls) > 10:
            raise Unplugged("usb:1-1: the board was unplugged")
        run()

    with broken("bob", runs=runs) as board:
        result = selftest.run(board)
    assert not result.passed
    check = failure(result)
    assert "unplugged" in check.detail
    after = result.checks[result.checks.index(check) + 1 :]
    assert after
    assert all(one.outcome is Outcome.NOT_RUN for one in after)


TWO_INPUTS = {
    "inputs": lambda value, word: 2,
    "tdc_change": lambda value, word: 7,
}


@contextmanager
def with_inputs(result=TdcResult.DONE, edges=1000, busy=False):
    """A receiver with two inputs of its own and a converter that answers."""
    asked = []

    def command(write, value, word):
        asked.append((value & 15, value >> 4 & 1))

    reads = TWO_INPUTS | {
        "tdc_status": lambda value, word: int(result) << 22 | int(busy) << 21,
        "tdc_not_pin": lambda value, word: 0 if word else edges * len(asked),
    }
    status = {field.name for field in keyrail.open("sim-model:bob").registers["tdc_status"].fields}
    assert status >= {"busy", "result"}
    with broken("bob", reads=reads, writes={"tdc_command": command}) as board:
        yield board, asked


def test_the_oscillator_calibrates_every_input():
    with with_inputs() as (board, asked):
        result = selftest.run(board)
    assert result.passed, result.summary()
    assert asked == [(0, 0), (1, 0)]
    seen = outcomes(result)
    assert seen["Oscillator"] is Outcome.PASS
    # Its tags come from its inputs: the tag path cannot be tried in the dark.
    assert seen["Measurement"] is seen["Block of key"] is seen["Streams"] is Outcome.ABSENT


@pytest.mark.parametrize(
    ("settings", "detail"),
    [
        ({"result": TdcResult.TOO_FEW}, "input 0: the calibration ended with too_few"),
        ({"result": TdcResult.REFUSED}, "ended with refused"),
        ({"edges": 0}, "no edge of the oscillator"),
        ({"busy": True}, "does not end"),
    ],
)
def test_an_oscillator_that_fails(settings, detail, monkeypatch):
    monkeypatch.setattr(selftest, "CALIBRATION_S", 0.02)
    with with_inputs(**settings) as (board, _):
        check = failure(selftest.run(board))
    assert check.name == "Oscillator"
    assert detail in check.detail


def test_command_line(tmp_path, monkeypatch):
    run = CliRunner().invoke
    page = tmp_path / "report.html"
    done = run(cli, ["selftest", "sim-model:bob", "--json", "-", "--report", str(page)])
    assert done.exit_code == 0, done.output
    described = json.loads(done.stdout)
    assert described["passed"] is True
    assert [check["outcome"] for check in described["checks"]].count("pass") >= 6
    assert "Self-test of sim-model:bob" in page.read_text()
    assert "not on this board" in page.read_text()

    def damaged(name):
        board = open_board(name)
        board.receive_bytes = lambda stream: np.zeros(0, np.uint8)
        return board

    open_board = keyrail.open
    monkeypatch.setattr(keyrail, "open", damaged)
    done = run(cli, ["selftest", "sim-model:alice"])
    assert done.exit_code == 1
    assert "FAILED" in done.output
    assert "program the board anew" in done.output
    monkeypatch.undo()
    wrong = run(cli, ["selftest", "sim-model:carol"])
    assert "sim:alice" in str(wrong.exception)
