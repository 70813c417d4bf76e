# SPDX-License-Identifier: Apache-2.0
"""Self-test of a board, simulated or real, with nothing connected to it.

Known records go through every stream and every block between them, as in a measurement and in a
block of key, and what comes back is compared record by record. The contents are published here:
no key comes of them, and the board is wiped before and after.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from keyrail import t2, tag_input, tag_path
from keyrail.board import Board, BoardError
from keyrail.board_hash import engine_sizes, hash_on_board
from keyrail.calibration import CalibrationError, calibrate
from keyrail.contract import (
    CURRENT_SAMPLE,
    GATE_WINDOWS,
    PERIOD_FRACTION_BITS,
    STATES_PER_WORD,
    Access,
    Basis,
    BlockCommand,
    BlockState,
    BoardCode,
    Direction,
    Mode,
    Randomness,
    Role,
    TagKind,
    ToeplitzCommand,
)
from keyrail.distil.toeplitz import Family, seed_bits, toeplitz_hash
from keyrail.errors import ContractMismatch, KeyrailError
from keyrail.layouts import Structured, zeros
from keyrail.source import state_words
from keyrail.state_copy import StateCopy
from keyrail.station import announced_slots, announcement_records
from keyrail.usb import Unplugged

__all__ = ["Check", "Outcome", "SelfTest", "run"]

PERIOD_PS = 10_000
SLOTS, RECALLED_SLOTS = 512, 64
"""Slots of the blocks of key in the test, and how many of the sender's have left its ring."""
HASH = (5_001, 1_003)
"""Bits in and out of the known Toeplitz answers; less where the engine is smaller."""
CALIBRATION_S = 30.0
"""Longest time for the calibration of all inputs, s."""
ANSWERS: dict[Family, str] = {
    "modified": "b99b3d5299fc8aac69438fbd2b90a40a477134fa8a403daca6600e9f9c9ce0ea",
    "plain": "082c0f7c8868ef9e7f1d7049f1e4f3a511493ccff9bb422dbae8d897bfaa7a0c",
}
"""SHA-256 of the bytes of these answers, one bit a byte, by the reference `randextract`."""


class Outcome(StrEnum):
    """How a check ended."""

    PASS = "pass"
    FAIL = "fail"
    ABSENT = "not on this board"
    NOT_RUN = "not run"


@dataclass(frozen=True)
class Check:
    """One check of a board.

    Parameters
    ----------
    name
        What was checked.
    outcome
        How it ended.
    detail
        What was seen.
    advice
        What to do; empty if nothing.
    streams
        Streams that carried known records.
    seconds
        Time it took, s.
    """

    name: str
    outcome: Outcome
    detail: str
    advice: str = ""
    streams: tuple[str, ...] = ()
    seconds: float = 0.0


@dataclass
class SelfTest:
    """Result of a self-test."""

    board: str
    identity: dict[str, int] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether every check that this board allows was run and passed."""
        return all(one.outcome in (Outcome.PASS, Outcome.ABSENT) for one in self.checks)

    def as_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        checks = [
            {**asdict(one), "outcome": str(one.outcome), "seconds": round(one.seconds, 3)}
            for one in self.checks
        ]
        identity = {
            name: f"{value:#x}" if "hash" in name else value
            for name, value in self.identity.items()
        }
        return {
            "board": self.board,
            "passed": self.passed,
            "identity": identity,
            "checks": checks,
        }

    def summary(self) -> list[tuple[str, str]]:
        """Lines of a report: what was checked, and how it ended."""
        lines = [("Board", self.board), ("Result", "pass" if self.passed else "FAIL")]
        for one in self.checks:
            text = f"{one.outcome}: {one.detail}" if one.detail else str(one.outcome)
            lines.append((one.name, f"{text}. {one.advice}" if one.advice else text))
        return lines


class _Wrong(Exception):
    """Something is not as it must be."""


class _Absent(Exception):
    """The board has no such part."""


def _noise(label: str, count: int) -> npt.NDArray[np.uint8]:
    """Published bytes that look random: SHAKE-256 of a label."""
    return np.frombuffer(
        hashlib.shake_256(f"keyrail selftest {label}".encode()).digest(count), "u1"
    )


def _bits(label: str, count: int) -> npt.NDArray[np.uint8]:
    return (_noise(label, count) & 1).astype(np.uint8)


class _Bench:
    """A board under test, and the streams that have carried records."""

    def __init__(self, board: Board) -> None:
        self.board = board
        self.moved: set[str] = set()

    def send(self, name: str, records: Structured) -> None:
        self.board.send(name, records)
        self.moved.add(name)

    def words(self, name: str, field_name: str, values: npt.ArrayLike) -> None:
        """Send records of one field."""
        array = np.asarray(values)
        records = zeros(self.board.streams[name].record, len(array))
        records[field_name] = array
        self.send(name, records)

    def expect(self, name: str, **wanted: npt.ArrayLike) -> Structured:
        """Take all records of a stream and compare their fields."""
        records = self.board.receive(name)
        if "kind" in (records.dtype.names or ()):
            records = records[records["kind"] == TagKind.CLICK]
        columns = {key: np.asarray(value) for key, value in wanted.items()}
        count = len(next(iter(columns.values())))
        if len(records) != count:
            raise _Wrong(f"stream {name} brought {len(records)} records instead of {count}")
        for key, column in columns.items():
            differ = np.flatnonzero(records[key] != column)
            if len(differ):
                at = int(differ[0])
                raise _Wrong(
                    f"stream {name}: record {at} of {count}: {key} is {int(records[key][at])} "
                    f"instead of {int(column[at])}; {len(differ)} differ"
                )
        if count:
            self.moved.add(name)
        return records

    def field(self, register: str, name: str, wanted: int) -> None:
        got = self.board.read_fields(register)[name]
        if got != wanted:
            raise _Wrong(f"{register}.{name} is {got} instead of {wanted}")

    def count(self, block: str, **wanted: int) -> None:
        ledger = self.board.ledger(block)
        for name, value in wanted.items():
            if ledger[name] != value:
                raise _Wrong(f"counter {name} of {block} is {ledger[name]} instead of {value}")

    def command(self, command: BlockCommand, state: BlockState) -> None:
        self.board.write("block_command", command)
        self.board.run()
        got = self.board.read("block_state")
        if got != state:
            raise _Wrong(f"{command.name} leads to block state {got} instead of {state.name}")

    def done(self) -> None:
        state = self.board.read("block_state")
        if state != BlockState.DONE:
            raise _Wrong(f"the block does not end: its state is {state}")
        self.field("status", "wiped", 0)

    def renew(self, mode: Mode = Mode.INSTRUMENT) -> None:
        """Reset values, everything wiped, nothing queued."""
        board = self.board
        for register in board.registers.values():
            written = register.access is Access.READ_WRITE and register.name != "mode"
            if written and board.read(register.name) != register.reset:
                board.write(register.name, register.reset)
        if board.role is Role.RECEIVER:
            board.write("tag_path_reset", 1)
        board.write("toeplitz_command", ToeplitzCommand.CLEAR_ERROR)
        if board.read("mode") != mode:
            board.write("mode", mode)  # which wipes
        elif not board.read_fields("status")["wiped"]:
            board.write("wipe", 1)
        board.run()
        for name, stream in board.streams.items():
            if stream.direction is Direction.TO_HOST:
                board.receive(name)


def _identity(bench: _Bench, result: SelfTest) -> str:
    result.identity = bench.board.identify()
    board, serial = bench.board.read("board"), bench.board.read("serial")
    known = BoardCode(board).name.lower() if board in list(BoardCode) else f"code {board}"
    role = bench.board.role.name.lower()
    return (
        f"{role} on {known}, serial {serial:016x}, gateware "
        f"{result.identity['gateware_version']}, contract {result.identity['contract_version']} "
        f"({result.identity['contract_hash']:016x})"
    )


def _registers(bench: _Bench) -> str:
    """Every address line by values that differ, every data line by a one that walks."""
    board = bench.board
    names = ["block_first_slot", "block_last_slot", "toeplitz_n", "toeplitz_m"]
    if board.role is Role.RECEIVER:
        channels = board.read_fields("configuration")["channels"]
        names += [f"gate_{c}_{w}" for c in range(channels) for w in range(GATE_WINDOWS)]
    else:
        names += ["states_first_slot", "generator_nonce"]
    written = {}
    for number, name in enumerate(names):
        value = int.from_bytes(_noise(f"register {number}", 8).tobytes(), "little")
        written[name] = value & ((1 << board.register(name).bits) - 1)
        board.write(name, written[name])
    for name, value in written.items():
        got = board.read(name)
        if got != value:
            raise _Wrong(f"register {name} reads {got:#x} after {value:#x} was written")
    walked = board.register("block_last_slot").bits
    for bit in range(walked):
        board.write("block_last_slot", 1 << bit)
        got = board.read("block_last_slot")
        if got != 1 << bit:
            raise _Wrong(f"register block_last_slot reads {got:#x} after {1 << bit:#x}")
    return f"{len(names)} written and read back, a one walked through {walked} bits"


def _wipe(bench: _Bench) -> str:
    """What a wipe must leave of what the checks before have put on the board."""
    board = bench.board
    if board.read_fields("status")["wiped"]:
        raise _Absent("nothing secret could be put on it")
    board.write("wipe", 1)
    board.run()
    bench.field("status", "wiped", 1)
    if board.read("block_count") or board.read("block_state") != BlockState.IDLE:
        raise _Wrong("the open block is still there")
    if board.role is Role.SENDER:
        bench.field("source_status", "keyed", 0)
    return "the board says when something secret has come, and when all of it is overwritten"


def _open_receiver(bench: _Bench) -> None:
    """Open a block of an active receiver whose detectors 0 and 1 are the bits."""
    board = bench.board
    _tags_enter(board)
    tag_path.set_slots(board, PERIOD_PS << PERIOD_FRACTION_BITS, 0)
    tag_path.set_blanking(board, 0)
    zero, one = {0: (Basis.Z, 0), 1: (Basis.Z, 1)}, {0: (Basis.X, 0), 1: (Basis.X, 1)}
    tag_path.set_gates(board, dict.fromkeys(range(2), (4_800, 5_200)), zero, one)
    board.write("block_first_slot", 0)
    board.write("block_last_slot", SLOTS - 1)
    board.write("block_on_host", 1)
    bench.command(BlockCommand.OPEN, BlockState.OPEN)
    bench.send("basis_choices", tag_path.choice_words(_bits("bases", SLOTS)))
    board.run()


def _click(bench: _Bench, times: npt.NDArray[np.int64], channels: npt.NDArray[np.int64]) -> None:
    """Clicks of an open block, and time until past its end."""
    until = (SLOTS + 10) * PERIOD_PS
    bench.send("tags", tag_path.tag_records(times, channels, until))
    bench.board.run()


def _oscillator(bench: _Bench) -> str:
    """Calibrate every input by the free-running oscillator on the chip."""
    board = bench.board
    inputs = board.input_count()
    if not inputs:
        raise _Absent("no time-to-digital converter: tags come stamped")
    before = board.ledger("tdc")
    try:
        made = calibrate(board, timeout_s=CALIBRATION_S)
        for one in made:
            one.check()
    except CalibrationError as error:
        raise _Wrong(str(error)) from None
    largest = max((one.moved_ps for one in made), default=0)
    seen = board.ledger("tdc")["not_pin"] - before["not_pin"]
    if seen <= 0:
        raise _Wrong("no edge of the oscillator was counted")
    return f"{inputs} inputs calibrated from {seen:,} edges, delays moved by {largest} ps at most"


def _hash(bench: _Bench) -> str:
    """Known answers, which were computed by another implementation."""
    board = bench.board
    largest_n, largest_m = engine_sizes(board)
    if largest_n <= 1:
        raise _Absent("no Toeplitz engine: the control PC hashes")
    n, m = min(HASH[0], largest_n), min(HASH[1], largest_m)
    families: tuple[Family, ...] = ("modified", "plain")
    for family in families:
        key, seed = _bits("key", n), _bits(f"{family} seed", seed_bits(n, m, family))
        wanted = toeplitz_hash(key, seed, m, family)
        if (n, m) == HASH and hashlib.sha256(wanted.tobytes()).hexdigest() != ANSWERS[family]:
            raise _Wrong(f"{family}: this control PC computes another hash than the known one")
        got = hash_on_board(board, key, seed, m, family)
        bench.moved |= {"toeplitz_key", "toeplitz_seed", "toeplitz_out"}
        if not np.array_equal(got, wanted):
            raise _Wrong(f"{family}: {int((got != wanted).sum())} of {m} bits differ")
    return f"{n} bits to {m}, both families, bit for bit"


def _tags_enter(board: Board) -> None:
    if board.read("inputs"):
        raise _Absent("tags come from its own inputs alone: light is needed")


def _measurement(bench: _Bench) -> str:
    """Tags in, gated tags, T2 records and histograms out."""
    board = bench.board
    channels = board.read_fields("configuration")["channels"]
    samples = zeros(CURRENT_SAMPLE, 2 * channels)
    samples["channel"] = np.arange(2 * channels) % channels
    samples["sample"] = 500 + np.arange(2 * channels)
    for channel in range(channels):
        board.write(f"current_limits_{channel}", low=500, high=500 + 2 * channels - 2)
    bench.send("currents", samples)
    board.run()
    bench.count("currents", **{"in": 2 * channels, "out": 2 * channels - 1, "high": 1, "low": 0})
    _tags_enter(board)
    slots = np.cumsum(1 + (_noise("slots", SLOTS).astype(np.int64) & 7))
    slots[SLOTS // 2 :] += 10_000  # more than a wrap of T2's time
    hit = np.arange(SLOTS) % channels
    accepted = np.arange(SLOTS) % 5 > 0
    phases = np.where(accepted, 5_000 + np.arange(SLOTS) % 100, 1_000)
    times = slots * PERIOD_PS + phases
    tag_path.set_slots(board, PERIOD_PS << PERIOD_FRACTION_BITS, 0)
    tag_path.set_blanking(board, 0)
    windows = dict.fromkeys(range(channels), (4_800, 5_200))
    tag_path.set_gates(board, windows, {c: (Basis(c >> 1 & 1), c & 1) for c in range(channels)})
    tag_input.set_raw(board, True)
    bench.send("tags", tag_path.tag_records(times, hit, int(times[-1]) + 1))
    board.run()
    bench.expect(
        "gated",
        slot=slots[accepted],
        channel=hit[accepted],
        phase=phases[accepted],
        basis=hit[accepted] >> 1 & 1,
        bit=hit[accepted] & 1,
    )
    events = t2.decode(board.receive_bytes(board.streams["raw"]))
    if not np.array_equal(events.times, times) or not np.array_equal(events.channels, hit):
        raise _Wrong(f"stream raw: {len(events.times)} of {SLOTS} clicks, or not as they were sent")
    bench.moved.add("raw")
    phases_seen, gaps, outcomes = (
        read(board)
        for read in (tag_path.read_histogram, tag_path.read_gaps, tag_path.read_outcomes)
    )
    if phases_seen is None or gaps is None or outcomes is None:
        raise _Wrong("a histogram was refused in instrument mode")
    if int(phases_seen.sum()) != SLOTS or int(gaps.sum()) != SLOTS - channels:
        raise _Wrong(f"histograms hold {int(phases_seen.sum())} of {SLOTS} clicks")
    bench.moved.add("histogram")
    lost = board.receive("losses")
    if len(lost):
        raise _Wrong(f"{int(lost['missed'].sum())} clicks were lost, in {len(lost)} losses")
    bench.count("gate", **{"in": SLOTS, "out": int(accepted.sum())})
    tag_path.check_ledgers(board, tag_path.INSTRUMENT_CHAIN)
    return f"{SLOTS} tags, gated and as T2 records, and every counter agrees"


def _receiver_block(bench: _Bench) -> str:
    """A block of key of an active receiver, its detections known beforehand."""
    board = bench.board
    _open_receiver(bench)
    # Every other slot clicks, every eighth of those on both detectors: a coin decides.
    slots = np.arange(1, SLOTS, 2)
    double = np.arange(len(slots)) % 8 == 3
    bases, coins = _bits("bases", SLOTS), _bits("coins", int(double.sum()))
    bench.words("coins", "bit", coins)
    board.run()
    bits = np.where(double, 0, _bits("clicks", len(slots))).astype(np.int64)
    times = np.concatenate([slots * PERIOD_PS + 5_000, slots[double] * PERIOD_PS + 5_000])
    channels = np.concatenate([bits, np.ones(int(double.sum()), np.int64)])
    order = np.argsort(times, kind="stable")
    _click(bench, times[order], channels[order])
    bits[double] = coins
    announced = announced_slots(board.receive("announcements"), 0)
    if not np.array_equal(announced, slots):
        raise _Wrong(f"stream announcements names {len(announced)} slots, {len(slots)} were hit")
    bench.moved.add("announcements")
    entries = bench.expect("block_out", basis=bases[slots], bit=bits)
    tag_path.check_ledgers(board, tag_path.CHAIN)
    bench.command(BlockCommand.CLOSE, BlockState.CLOSED)
    board.write("block_command", BlockCommand.BASES)
    bench.send("block_in", entries)
    board.run()
    bench.expect("bases", basis=bases[slots])
    board.write("block_command", BlockCommand.RESOLVE)
    keep = np.arange(len(slots)) % 3 > 0
    opened = keep & (bases[slots] == Basis.X)
    told = np.where(opened, bits ^ (np.arange(len(slots)) % 7 == 1), 0)
    replies = zeros(board.streams["replies"].record, len(slots))
    replies["keep"], replies["opened"], replies["bit"] = keep, opened, told
    bench.send("block_in", entries)
    bench.send("replies", replies)
    board.run()
    errors = np.where(opened, told != bits, False)
    bench.expect("sifted", bit=bits[keep], test=opened[keep], error=errors[keep])
    bench.done()
    return f"{len(slots)} detections, {int(keep.sum())} sifted, each as it must be"


def _sender_block(bench: _Bench) -> str:
    """A block of key of a sender, from states to sifted bits, some states recalled."""
    board = bench.board
    ring = 1 << board.read_fields("configuration")["horizon_log2"]
    slots = ring + 16 * RECALLED_SLOTS
    states = (_noise("states", slots) & 7).astype(np.uint8)
    copy = StateCopy(-(-slots // STATES_PER_WORD) * STATES_PER_WORD)
    copy.feed(states)
    board.write("block_first_slot", 0)
    board.write("block_last_slot", slots - 1)
    board.write("block_on_host", 1)
    board.write("states_first_slot", 0)
    board.write("source", recall=1, label=Randomness.TEST)
    bench.words("generator_key", "bits", [1, 2, 3, 4])
    board.run()
    bench.field("source_status", "keyed", 1)
    bench.command(BlockCommand.OPEN, BlockState.OPEN)
    bench.send("states", state_words(states))
    board.run()
    # Some of the first slots, which have left the ring, and some of the last.
    early = np.arange(RECALLED_SLOTS) * 15
    late = slots - SLOTS + np.cumsum(1 + _bits("late", SLOTS // 2).astype(np.int64))
    announced = np.concatenate([early, late, [slots - 1]])
    bench.send("announcements", announcement_records(announced, 0))
    board.run()
    missed = bench.expect("missed", slot=early)
    bench.send("recalled", copy.answer(missed["slot"].astype(np.int64)))
    board.run()
    known = states[announced]
    basis, bit, intensity = known & 1, known >> 1 & 1, known >> 2
    entries = bench.expect(
        "block_out", present=np.ones(len(known)), basis=basis, bit=bit, intensity=intensity
    )
    bench.command(BlockCommand.CLOSE, BlockState.CLOSED)
    asked = basis ^ _bits("asked", len(known))
    board.write("block_command", BlockCommand.BASES)
    bench.send("block_in", entries)
    bench.words("bases", "basis", asked)
    board.run()
    keep = asked == basis
    opened = keep & (basis == Basis.X)
    bench.expect("replies", keep=keep, opened=opened, bit=np.where(opened, bit, 0))
    bench.expect("sifted", bit=bit[keep], test=opened[keep], intensity=intensity[keep])
    bench.field("source_status", "starved", 0)
    bench.done()
    return (
        f"{slots:,} states, {len(known)} looked up, {len(early)} of them recalled, "
        f"{int(keep.sum())} sifted, each as it must be"
    )


_CABLE = "check cable, hub and power; then `keyrail devices`"
_REBUILD = "program the board anew (its bitstream may be damaged or another one)"
_PART = "program the board anew; if it stays, the part or its clock is not what was built for"


def run(board: Board, say: Callable[[str], None] = lambda _: None) -> SelfTest:
    """Test a board with nothing connected; its open block and its settings are lost.

    Parameters
    ----------
    board
        Board of either role, just opened.
    say
        Told the name of each check as it begins.

    Returns
    -------
    SelfTest
        Every check with its outcome and what to do. The board is left in instrument mode, wiped,
        with its reset values.
    """
    bench, result = _Bench(board), SelfTest(board.name)
    block = _sender_block if board.role is Role.SENDER else _receiver_block
    checks: list[tuple[str, Callable[[], str], str]] = [
        ("Identity", lambda: _identity(bench, result), _REBUILD),
        ("Registers", lambda: _registers(bench), _CABLE),
        ("Oscillator", lambda: _oscillator(bench), _PART),
        ("Toeplitz hash", lambda: _hash(bench), _PART),
        ("Block of key", lambda: block(bench), _PART),
        ("Wipe", lambda: _wipe(bench), _PART),
    ]
    if board.role is Role.RECEIVER:
        checks.insert(3, ("Measurement", lambda: _measurement(bench), _PART))
    given_up = ""
    for name, check, advice in checks:
        if given_up:
            result.checks.append(Check(name, Outcome.NOT_RUN, given_up))
            continue
        say(name)
        began = time.monotonic()
        bench.moved = set()
        outcome, detail = Outcome.PASS, ""
        try:
            if name not in ("Identity", "Wipe"):
                bench.renew(Mode.KEY if name == "Block of key" else Mode.INSTRUMENT)
            detail = check()
        except _Absent as why:
            outcome, detail, advice = Outcome.ABSENT, str(why), ""
        except _Wrong as why:
            outcome, detail = Outcome.FAIL, str(why)
        except ContractMismatch as error:
            outcome, detail, advice = Outcome.FAIL, str(error), ""
        except Unplugged as error:
            outcome, detail, advice = Outcome.FAIL, str(error), _CABLE
            given_up = "the board was unplugged"
        except (KeyrailError, ValueError) as error:
            outcome, detail = Outcome.FAIL, str(error)
            advice = _CABLE if isinstance(error, BoardError) else advice
        result.checks.append(
            Check(
                name,
                outcome,
                detail,
                "" if outcome is Outcome.PASS else advice,
                tuple(sorted(bench.moved)),
                time.monotonic() - began,
            )
        )
        if outcome is Outcome.FAIL and name in ("Identity", "Registers"):
            given_up = f"{name.lower()} failed"
    if not given_up:
        result.checks.append(_streams(board, result))
        try:
            bench.renew()
        except KeyrailError as error:
            result.checks.append(Check("Left wiped", Outcome.FAIL, str(error), _CABLE))
    return result


def _streams(board: Board, result: SelfTest) -> Check:
    """Which streams have carried known records, as far as this board lets them."""
    carried = {name for check in result.checks for name in check.streams}
    rest = [name for name in board.streams if name not in carried]
    detail = f"{len(carried)} of {len(board.streams)} carried known records"
    if "losses" in rest and "raw" in carried:
        rest.remove("losses")
        detail += "; losses carries none, since nothing was lost"
    if not rest:
        return Check("Streams", Outcome.PASS, detail)
    excused = any(check.outcome is Outcome.ABSENT for check in result.checks[3:])
    outcome = Outcome.ABSENT if excused else Outcome.FAIL
    return Check("Streams", outcome, f"{detail}; not {', '.join(rest)}")
