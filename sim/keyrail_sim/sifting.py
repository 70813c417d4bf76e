# SPDX-License-Identifier: Apache-2.0
"""Sifting of two boards with frames lost at random, rates of the sender's path, statistics."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import keyrail
from keyrail import tag_path
from keyrail.board import Board
from keyrail.contract import (
    ANNOUNCEMENT,
    BASIS,
    DETECTION,
    MISSED_SLOT,
    PERIOD_FRACTION_BITS,
    RECALLED,
    REPLY,
    SENDER_ENTRY,
    SLOT_BITS,
    STATE_WORD,
    STATES_PER_WORD,
    BlockCommand,
    BlockState,
    Mode,
)
from keyrail.layouts import Structured, zeros
from keyrail.randomness import TestRandom
from keyrail.source import random_states, state_words, whole_words
from keyrail.state_copy import HORIZON_SLOTS, StateCopy
from keyrail.station import announced_slots, check_tallies
from keyrail.usb import PAYLOAD_MBPS
from keyrail_sim.models.announcer import Announcer
from keyrail_sim.models.generator import Generator

PERIOD_PS = 10_000
QUIET = 256
"""Clocks that a simulated board runs on after the last movement."""
CLOCK_MHZ = 100.0
ANSWER_SECONDS = 1e-3
"""Time from a missed slot to the control PC's answer: taken, not measured."""
BLOCKS_PER_SLOT = 1 / STATES_PER_WORD + 1 / 512
"""Blocks of the cipher that the generator takes for a slot."""
ROUND_TRIPS_MS = (1, 25, 500)
RINGS = {"ring of 2^17 slots (25F)": 1 << 17, "ring of 2^19 slots (85F)": 1 << 19}
"""State memories on a board, by name."""
MEMORIES = (
    *(("host", ring, slots) for ring, slots in RINGS.items()),
    ("host", "ring of 2^17 slots, then the control PC's copy", HORIZON_SLOTS),
    ("generator", "ring of 2^17 slots, then made again", 1 << SLOT_BITS),
)
"""Source of the states, memory that answers, and the slots that it reaches back."""


class SiftingError(RuntimeError):
    """Two boards do not agree."""


@dataclass(frozen=True)
class Experiment:
    """A block through two boards.

    Parameters
    ----------
    slots, detections
        Slots of the block, a multiple of 16, and detections on average.
    frame_slots
        Slots whose detections are announced in one frame, a multiple of 16.
    delay_slots
        Slots between the emission of a frame's last state and its announcement: a round trip.
    loss
        Share of frames that are lost.
    kind
        Kind of board, ``sim`` or ``sim-model``.
    paced
        One slot a clock on the sender's board, states, announcements and recalls all at the same
        time; else the board takes words of sixteen states as they come. ``sim`` only.
    """

    slots: int = 100_000_000
    detections: int = 1_000_000
    frame_slots: int = 1 << 16
    delay_slots: int = 2_500_000
    loss: float = 0.05
    kind: str = "sim"
    seed: int = 1
    paced: bool = True

    def __post_init__(self) -> None:
        if self.slots % STATES_PER_WORD or self.frame_slots % STATES_PER_WORD:
            raise ValueError(
                f"slots of block and frame: allowed are multiples of {STATES_PER_WORD}"
            )
        if self.paced and self.kind != "sim":
            raise ValueError(f"{self.kind}: a paced source needs a board where time passes")


Progress = Callable[[str], None]


class _Sender:
    """The sender's board and control PC: frames that came are looked up, missed slots answered."""

    def __init__(self, board: Board, setup: Experiment) -> None:
        self.board: Any = board
        self._setup = setup
        self._states = StateCopy(max(HORIZON_SLOTS, 1 << 20))
        self._base = self._fed = 0
        self.recalled = 0
        self.entries: list[Structured] = []

    def feed(self, states: npt.NDArray[np.uint8]) -> None:
        """Queue the states of the next slots, and emit those of the call before (paced)."""
        self._states.feed(states)
        self.board.send("states", state_words(states))
        if not self._setup.paced:
            self.board.run()
        elif self._fed:
            # What is queued is ahead of the source by the states of this call, at each call.
            self.board.step(self._fed)
            self._answer()
        self._fed = len(states)

    def look_up(self, slots: npt.NDArray[np.int64]) -> None:
        """Give the board a frame of announcements."""
        self.board.send("announcements", _announce(slots, self._base))
        self._base = int(slots[-1]) if len(slots) else self._base
        if not self._setup.paced:
            self.finish()

    def finish(self) -> None:
        """Run until the board rests and no slot waits for its answer."""
        self.board.run()
        while self._answer():
            self.board.run()

    def _answer(self) -> int:
        missed = self.board.receive("missed")
        self.board.send("recalled", self._states.answer(missed["slot"]))
        self.recalled += len(missed)
        self.entries.append(self.board.receive("block_out"))
        return len(missed)


def sift(experiment: Experiment, progress: Progress = lambda line: None) -> dict[str, Any]:
    """Sift a block on a noiseless channel, with frames lost at random.

    The receiver's detections of a lost frame are dropped on both sides: the sender never looks
    them up, the receiver's control PC leaves their bases out and answers them with drop. The
    receiver's board skips the clocks between two tags.

    Parameters
    ----------
    experiment
        What to run.
    progress
        Takes a line now and then.

    Returns
    -------
    dict
        What was counted.

    Raises
    ------
    SiftingError
        If keys or tallies differ, a test detection is wrong, the source starved, or a state of
        the sender's list is not the one that was sent.
    """
    setup, began = experiment, time.perf_counter()
    rng = np.random.default_rng(setup.seed)
    draw = TestRandom(setup.seed, "states").bytes
    with (
        keyrail.open(f"{setup.kind}:alice") as alice,
        keyrail.open(f"{setup.kind}:bob") as bob,
    ):
        _set_gates(bob)
        for board in (alice, bob):
            board.write("mode", Mode.KEY)
            board.run()
            board.write("block_last_slot", setup.slots - 1)
            board.write("block_on_host", 1)
        alice.write("source", recall=1, paced=int(setup.paced))
        for board in (alice, bob):
            board.write("block_command", BlockCommand.OPEN)
            board.run()
        sender = _Sender(alice, setup)
        frames: list[npt.NDArray[np.int64]] = []
        lost: list[bool] = []
        at_bob_entries: list[Structured] = []
        looked_up = told = base = 0
        for first in range(0, setup.slots, setup.frame_slots):
            count = min(setup.frame_slots, setup.slots - first)
            states = random_states(draw, count, 0.9, 0.5)
            sender.feed(states)
            emitted = first + (0 if setup.paced else count)
            hit = np.flatnonzero(rng.random(count) < setup.detections / setup.slots)
            chosen = rng.random(len(hit)) < 0.1  # the receiver's basis: X
            bit = np.where(
                (states[hit] & 1) == chosen, states[hit] >> 1 & 1, rng.integers(0, 2, len(hit))
            )
            channel = (chosen * 2 + bit).astype(np.uint8)
            times = (first + hit).astype(np.int64) * PERIOD_PS + PERIOD_PS // 2
            end = (first + count) * PERIOD_PS
            bob.send("tags", tag_path.tag_records(times, channel, end))
            bob.run()
            slots = announced_slots(bob.receive("announcements"), base)
            if not np.array_equal(slots, first + hit):
                raise SiftingError("what was announced is not what was detected")
            base = int(slots[-1]) if len(slots) else base
            frames.append(slots)
            at_bob_entries.append(bob.receive("block_out"))
            lost.append(bool(rng.random() < setup.loss))
            while (looked_up + 1) * setup.frame_slots + setup.delay_slots <= emitted:
                if not lost[looked_up]:
                    sender.look_up(frames[looked_up])
                looked_up += 1
            if first + count >= told + setup.slots / 100:
                told = first + count
                spent = time.perf_counter() - began
                progress(f"{told:,} slots in {spent:.0f} s, {sum(map(len, frames)):,} detections")
        sender.finish()  # the source's last states
        for frame, gone in zip(frames[looked_up:], lost[looked_up:], strict=True):
            if not gone:
                sender.look_up(frame)
                sender.finish()
        status = alice.read_fields("source_status") if setup.paced else {"starved": 0, "ended": 1}
        if status["starved"] or not status["ended"]:
            raise SiftingError(f"the source has not emitted every slot: {status}")
        ledgers = {
            name: board.ledger(name)
            for board, names in (
                (alice, ("source", "state_memory")),
                (bob, (*tag_path.CHAIN, "announcer")),
            )
            for name in names
        }
        kept = np.concatenate(
            [np.full(len(f), not gone) for f, gone in zip(frames, lost, strict=True)]
        )
        progress(f"{len(kept):,} detections, {int((~kept).sum()):,} in {sum(lost)} lost frames")
        _close(alice, sender.entries)
        _close(bob, at_bob_entries)
        bases = bob.receive("bases")
        if len(bases) != len(kept):
            raise SiftingError(f"{len(bases)} bases of {len(kept)} detections")
        alice.send("bases", bases[kept])
        alice.run()
        answers = alice.receive("replies")
        if len(answers) != kept.sum():
            raise SiftingError(f"{len(answers)} replies to {kept.sum()} bases")
        replies = zeros(REPLY, len(kept))  # zero is drop
        for name in ("keep", "opened", "bit"):
            replies[name][kept] = answers[name]
        bob.write("block_command", BlockCommand.RESOLVE)
        bob.send("block_in", np.concatenate(at_bob_entries))
        bob.send("replies", replies)
        bob.run()
        for board in (alice, bob):
            if board.read("block_state") != BlockState.DONE:
                raise SiftingError(f"{board.name} has not done")
        at_alice, at_bob = alice.receive("sifted"), bob.receive("sifted")
        check_tallies(alice, bob)
        ledgers |= {name: alice.ledger(name) for name in ("sifter", "sender_tally")}
        ledgers |= {name: bob.ledger(name) for name in ("resolver", "receiver_tally")}
        clocks = {b.name: getattr(b, "cycles", 0) for b in (alice, bob)}
    if len(at_alice) != len(at_bob):
        raise SiftingError(f"{len(at_alice)} sifted bits at the sender, {len(at_bob)} at the other")
    for name in ("bit", "test"):
        if not np.array_equal(at_alice[name], at_bob[name]):
            raise SiftingError(f"the sifted bits differ in {name}")
    if at_bob["error"].any():
        raise SiftingError("errors on a noiseless channel")
    _check_ledgers(ledgers, kept, len(at_bob))
    seconds = time.perf_counter() - began
    return {
        **asdict(setup),
        "detections": len(kept),
        "frames": len(frames),
        "frames_lost": sum(lost),
        "detections_in_lost_frames": int((~kept).sum()),
        "recalled_from_the_copy": sender.recalled,
        "expired": ledgers["state_memory"]["expired"],
        "sifted_bits": {"sender": len(at_alice), "receiver": len(at_bob)},
        "sifted_z": int((at_bob["test"] == 0).sum()),
        "sifted_bits_differ": int((at_alice["bit"] != at_bob["bit"]).sum()),
        "test_errors": int(at_bob["error"].sum()),
        "ledgers": ledgers,
        "simulated_clocks": clocks,
        "seconds": round(seconds, 1),
        "slots_per_second": round(setup.slots / seconds),
    }


def _check_ledgers(
    ledgers: dict[str, dict[str, int]], kept: npt.NDArray[np.bool_], sifted: int
) -> None:
    """Every count of the block, by arithmetic, from what was detected and which frames came."""
    looked_up, detected = int(kept.sum()), len(kept)
    sender, receiver = ledgers["sender_tally"], ledgers["receiver_tally"]
    for text, one, other in (
        ("announced", ledgers["announcer"]["out"], detected),
        ("looked up", ledgers["state_memory"]["out"], looked_up),
        ("answered by the sender", ledgers["sifter"]["in"], looked_up),
        ("resolved by the receiver", ledgers["resolver"]["in"], detected),
        ("kept by the sender", ledgers["sifter"]["out"], sifted),
        ("kept by the receiver", ledgers["resolver"]["out"], sifted),
        ("mismatches", ledgers["sifter"]["mismatch"], looked_up - sifted),
        ("drops", ledgers["resolver"]["dropped"], detected - sifted),
        ("in Z", sender["z_signal"] + sender["z_decoy"], receiver["z"]),
        ("in X", sender["x_signal"] + sender["x_decoy"], receiver["x_zero"] + receiver["x_one"]),
        ("X by the bit 0", sender["x_zero"], receiver["x_zero"]),
        ("X by the bit 1", sender["x_one"], receiver["x_one"]),
        ("all tallies", receiver["z"] + receiver["x_zero"] + receiver["x_one"], sifted),
    ):
        if one != other:
            raise SiftingError(f"{text}: {one}, by arithmetic {other}")


def _close(board: Board, entries: list[Structured]) -> None:
    board.write("block_command", BlockCommand.CLOSE)
    board.run()
    board.write("block_command", BlockCommand.BASES)
    board.send("block_in", np.concatenate(entries))
    board.run()


def _announce(slots: npt.NDArray[np.int64], base: int) -> Structured:
    detections = zeros(DETECTION, len(slots))
    detections["slot"] = slots
    return Announcer(base, (1 << 48) - 1).process(detections)[0]


class _Counting:
    """A board of which clocks are counted."""

    def __init__(self, board: Board) -> None:
        self.board: Any = board

    def run(self) -> int:
        """Clocks until it rests."""
        before = self.board.cycles
        self.board.run()
        return int(self.board.cycles - before - QUIET)

    def until(self, name: str) -> int:
        """Clocks from the one that takes the first record queued to the one that gives `name`."""
        for clocks in range(10_000):
            self.board.run_for(1)
            if len(self.board.receive(name)):
                return clocks
        raise SiftingError(f"nothing came on {name}")

    def command(self, *commands: BlockCommand) -> None:
        """Give commands, each after what comes of the one before."""
        for one in commands:
            self.board.write("block_command", one)
            self.board.run()

    def start(self, last: int, **source: int) -> None:
        """Open a block of slots 0 to `last`, its entries in the control PC."""
        if self.board.read("block_state") != BlockState.IDLE:
            self.command(BlockCommand.DISCARD)
        self.board.write("block_last_slot", last)
        self.board.write("block_on_host", 1)
        if source:
            self.board.write("source", **source)
        self.board.write("block_command", BlockCommand.OPEN)
        if not source.get("generator"):
            self.board.run()  # the generator begins with the block: its clocks are measured

    def key(self, seed: int) -> None:
        """Key mode, and a key for the generator."""
        self.board.write("mode", Mode.KEY)
        self.board.run()
        if "generator_key" in self.board.streams:
            key = zeros(self.board.streams["generator_key"].record, 4)
            key["bits"] = np.frombuffer(TestRandom(seed, "key").bytes(32), "<u8")
            self.board.send("generator_key", key)
            self.board.write("generator_bias", z=61_440, signal=32_768)
            self.board.run()


def sender_clocks(count: int = 20_000) -> dict[str, float]:
    """Clocks a record of the sender's paths, on the Verilated board.

    Parameters
    ----------
    count
        Records that each path is measured with, 8,192 to 32,768.
    """
    ring = 1 << 17
    drawn = random_states(TestRandom(2, "states").bytes, ring + 4 * count, 0.9, 0.5)
    drawn = drawn[: len(drawn) // STATES_PER_WORD * STATES_PER_WORD]
    announced = np.arange(0, 4 * count, 4)
    clocks: dict[str, float] = {}
    with keyrail.open("sim:alice") as board:
        sender = _Counting(board)
        sender.key(3)

        sender.start(len(drawn), generator=0)
        board.send("states", state_words(drawn[: ring // 2]))
        board.run()
        board.send("announcements", _announce(np.arange(0, 2 * count, 2), 0))
        clocks["announcement, from the ring"] = sender.run() / count
        spilled = board.receive("block_out")
        sender.command(BlockCommand.CLOSE, BlockCommand.BASES)
        board.send("block_in", spilled)
        board.send("bases", zeros(BASIS, count))
        clocks["basis to reply and sifted bit"] = sender.run() / count

        sender.start(len(drawn), recall=1)
        board.send("states", state_words(drawn))
        board.run()
        board.send("announcements", _announce(announced, 0))
        answers = zeros(RECALLED, count)
        answers["present"] = answers["known"] = 1
        board.send("recalled", answers)  # as if the control PC answered at once
        clocks["announcement, from the control PC's copy"] = sender.run() / count
        if len(board.receive("missed")) != count:
            raise SiftingError("slots were found in the ring that had left it")

        few = count // 8
        slots = ring + 4 * few
        slots = whole_words(slots)
        sender.start(slots - 1, generator=1)
        clocks["slot made by the generator"] = sender.run() / slots
        board.send("announcements", _announce(announced[:few], 0))
        clocks["announcement, made again by the generator"] = sender.run() / few
    return {name: round(value, 3) for name, value in clocks.items()}


def receiver_clocks(count: int = 20_000) -> dict[str, float]:
    """Clocks a record of the receiver's paths, on the Verilated board.

    Parameters
    ----------
    count
        Detections that each path is measured with.
    """
    times = np.arange(count, dtype=np.int64) * PERIOD_PS + PERIOD_PS // 2
    channels = (np.arange(count) % 4).astype(np.uint8)
    clocks: dict[str, float] = {}
    with keyrail.open("sim:bob") as board:
        receiver = _Counting(board)
        _set_gates(board)
        receiver.key(3)
        receiver.start(count)
        board.send("tags", tag_path.tag_records(times, channels, int(times[-1]) + PERIOD_PS))
        clocks["tag to announcement and entry"] = receiver.run() / count
        entries = board.receive("block_out")
        if len(entries) != count:
            raise SiftingError(f"{len(entries)} entries of {count} detections")
        receiver.command(BlockCommand.CLOSE)
        board.write("block_command", BlockCommand.BASES)
        board.send("block_in", entries)
        clocks["entry to basis"] = receiver.run() / count
        bases = board.receive("bases")
        replies = zeros(REPLY, count)
        replies["keep"], replies["opened"] = 1, bases["basis"]
        board.write("block_command", BlockCommand.RESOLVE)
        board.send("block_in", entries)
        board.send("replies", replies)
        clocks["reply to sifted bit or test result"] = receiver.run() / count
        if len(board.receive("sifted")) != count:
            raise SiftingError("sifted bits are missing")
    return {name: round(value, 3) for name, value in clocks.items()}


def latencies() -> dict[str, int]:
    """Clocks from the one that takes a record to the one that gives what comes of it.

    On the Verilated boards. The reply to an announcement comes in two steps, as its basis waits
    for the block's close: announcement to entry, then basis to reply.
    """
    found: dict[str, int] = {}
    with keyrail.open("sim:alice") as board:
        sender = _Counting(board)
        sender.key(3)
        sender.start(1 << 20, generator=0)
        board.send("states", state_words(np.full(64, 7, np.uint8)))
        board.run()
        board.send("announcements", _announce(np.array([5]), 0))
        found["announcement to entry, from the ring"] = sender.until("block_out")
        entry = zeros(board.streams["block_in"].record, 1)
        sender.command(BlockCommand.CLOSE, BlockCommand.BASES)
        board.send("block_in", entry)
        board.run()
        board.send("bases", zeros(BASIS, 1))
        found["basis to reply"] = sender.until("replies")
        sender.start(1 << 20, recall=1)
        board.send("states", state_words(np.full(1 << 18, 7, np.uint8)))
        board.run()
        board.send("announcements", _announce(np.array([5]), 0))
        found["announcement to missed slot"] = sender.until("missed")
        answer = zeros(RECALLED, 1)
        answer["present"] = answer["known"] = 1
        board.send("recalled", answer)
        found["recalled state to entry"] = sender.until("block_out")
        sender.start((1 << 17) + 1_023, generator=1)
        board.run()
        board.send("announcements", _announce(np.array([5]), 0))
        found["announcement to entry, made again by the generator"] = sender.until("block_out")
    with keyrail.open("sim:bob") as board:
        receiver = _Counting(board)
        _set_gates(board)
        receiver.key(3)
        receiver.start(1 << 20)
        # The slot after it, whose click shows that the first slot has ended.
        times = np.array([3, 4], np.int64) * PERIOD_PS + PERIOD_PS // 2
        board.send("tags", tag_path.tag_records(times, np.array([2, 2], np.uint8), 10 * PERIOD_PS))
        found["tag to announcement"] = receiver.until("announcements")
        board.run()
        entries = board.receive("block_out")
        receiver.command(BlockCommand.CLOSE)
        board.write("block_command", BlockCommand.BASES)
        board.send("block_in", entries)
        board.run()
        board.write("block_command", BlockCommand.RESOLVE)
        board.run()
        board.send("block_in", entries)
        board.run()
        reply = zeros(REPLY, 1)
        reply["keep"] = reply["opened"] = 1
        board.send("replies", reply)
        found["reply to test result"] = receiver.until("sifted")
    return found


def _set_gates(board: Board) -> None:
    tag_path.set_slots(board, PERIOD_PS << PERIOD_FRACTION_BITS, 0)
    tag_path.set_blanking(board, 0)
    windows = dict.fromkeys(tag_path.OUTCOMES, (4_000, 6_000))
    tag_path.set_gates(board, windows, tag_path.OUTCOMES)


def copy_rate(count: int = 1_000_000) -> int:
    """Answers a second of the control PC's copy on one core."""
    copy = StateCopy(1 << 24)
    copy.feed(random_states(TestRandom(4, "states").bytes, 1 << 24, 0.9, 0.5))
    slots = np.random.default_rng(5).integers(0, 1 << 24, count)
    began = time.process_time()
    for start in range(0, count, 1 << 14):
        copy.answer(slots[start : start + (1 << 14)])
    return round(count / (time.process_time() - began))


def rates(clocks: dict[str, float], answers: int, mslots: float = 100.0) -> list[dict[str, Any]]:
    """Announcements a second that the sender answers live, by round trip, memory and source.

    Each is the least of what the board's path, the memory of announcements that wait for an
    answer, the cable, the cipher and the control PC's copy carry at `mslots` million slots a
    second. Where the round trip is longer than the memory reaches back, all have expired.

    Parameters
    ----------
    clocks
        Of `sender_clocks`.
    answers
        Answers a second of the control PC's copy.
    """
    from keyrail_gateware.chacha20 import CLOCKS_PER_BLOCK
    from keyrail_gateware.station import Configuration

    usb, hertz = PAYLOAD_MBPS["high speed"] * 1e6, CLOCK_MHZ * 1e6
    waiting = 1 << Configuration().order_log2
    blocks = mslots * 1e6 * BLOCKS_PER_SLOT  # of the cipher, for the live states
    limits = {
        "fabric": hertz / clocks["announcement, from the ring"],
        "fabric, recalling": hertz / clocks["announcement, from the control PC's copy"],
        "memory of waiting announcements": waiting / ANSWER_SECONDS,
        "control PC's copy": float(answers),
        # A block for the slot's basis and intensity, and one for its bit.
        "cipher": min(
            hertz / clocks["announcement, made again by the generator"],
            (hertz / CLOCKS_PER_BLOCK - blocks) / 2,
        ),
    }
    announced = ANNOUNCEMENT.bits + 8 * SENDER_ENTRY.bytes  # and the entry that goes to the PC
    recall = 8 * (MISSED_SLOT.bytes + RECALLED.bytes)
    states = STATE_WORD.bytes * 8 / STATES_PER_WORD * mslots * 1e6
    rows = []
    for trip_ms in ROUND_TRIPS_MS:
        slots = round(trip_ms * 1e3 * mslots)
        for source, memory, horizon in MEMORIES:
            by_host = source == "host"
            ringed = slots <= RINGS.get(memory, 1 << 17)
            bits = announced + (0 if ringed or not by_host else recall)
            of = {
                "cable": (usb - (states if by_host else 0)) / bits,
                "fabric": limits["fabric"],
            }
            if not ringed and by_host:
                of["fabric"] = limits["fabric, recalling"]
                of |= {
                    name: limits[name]
                    for name in ("memory of waiting announcements", "control PC's copy")
                }
            elif not ringed:
                of["cipher"] = limits["cipher"]
            least = min(of, key=lambda name: of[name])
            reaches = slots <= horizon
            rows.append(
                {
                    "round_trip_ms": trip_ms,
                    "slots_under_way": slots,
                    "states_from": source,
                    "memory": memory,
                    "announcements_per_second": round(of[least]) if reaches else 0,
                    "limited_by": least if reaches else "horizon: all have expired",
                    "limits_per_second": {name: round(rate) for name, rate in of.items()},
                }
            )
    return rows


def horizons() -> list[dict[str, Any]]:
    """How long states are remembered, by the memory that holds them."""
    rows: list[dict[str, Any]] = [
        # State memory holds a word of sixteen states and whether they may be used.
        {
            "memory": name,
            "on": "board",
            "slots": slots,
            "bytes": slots // STATES_PER_WORD * (STATE_WORD.used_bits + 1) // 8,
        }
        for name, slots in RINGS.items()
    ]
    rows.append(
        {
            "memory": "copy of what was fed",
            "on": "control PC",
            "slots": HORIZON_SLOTS,
            "bytes": StateCopy(HORIZON_SLOTS).bytes,
        }
    )
    rows.append(
        {
            "memory": "generator: key and nonce, states made again",
            "on": "board",
            "slots": 1 << SLOT_BITS,
            "bytes": 32 + 8,
        }
    )
    for row in rows:
        row["milliseconds_at_100_mslots"] = row["slots"] / 1e5
    return rows


def rates_figure() -> dict[str, Any]:
    """All that ``make figure-sifting_rates`` writes."""
    sender = sender_clocks()
    answers = copy_rate()
    made = sender["slot made by the generator"]
    return {
        "clocks_per_record": {"sender": sender, "receiver": receiver_clocks()},
        "latency_clocks": latencies(),
        "copy_answers_per_second": answers,
        "assumed": {
            "clock_mhz": CLOCK_MHZ,
            "usb_mbps": PAYLOAD_MBPS,
            "answer_seconds": ANSWER_SECONDS,
        },
        "highest_mslots_per_second": {
            f"generator at {CLOCK_MHZ:g} MHz": round(CLOCK_MHZ / made, 1),
            **{
                f"host over USB {name}": round(rate / (STATE_WORD.bytes * 8 / STATES_PER_WORD), 1)
                for name, rate in PAYLOAD_MBPS.items()
            },
        },
        "rates_at_100_mslots": rates(sender, answers),
        "horizons": horizons(),
    }


def rates_page(found: dict[str, Any]) -> str:
    """Rates, latencies and horizons as a Markdown page."""
    assumed = found["assumed"]
    lines = [
        "# Rates of sifting",
        "",
        f"Written by `{found['command']}` at commit {found['commit']}; "
        + ", ".join(f"{k} {v}" for k, v in found["versions"].items())
        + ".",
        "",
        "Clocks are counted on both stations' gateware under Verilator. Rates are the least of",
        f"what fabric ({assumed['clock_mhz']:g} MHz), cable "
        f"({assumed['usb_mbps']['high speed']:g} Mb/s, both directions together), cipher and",
        "control PC carry at 100 M slots/s; a recalled slot waits "
        f"{assumed['answer_seconds'] * 1e3:g} ms for its answer, and block",
        "memory is taken to lie in the control PC.",
        "",
        "| station | path | clocks a record |",
        "|---|---|---|",
        *(
            f"| {station} | {path} | {clocks} |"
            for station, paths in found["clocks_per_record"].items()
            for path, clocks in paths.items()
        ),
        "",
        "| from, to | clocks |",
        "|---|---|",
        *(f"| {path} | {clocks} |" for path, clocks in found["latency_clocks"].items()),
        "",
        "| round trip | states from | memory | announcements a second | limited by |",
        "|---|---|---|---|---|",
        *(
            f"| {row['round_trip_ms']} ms | {row['states_from']} | {row['memory']} "
            f"| {row['announcements_per_second'] / 1e6:.2f} M | {row['limited_by']} |"
            for row in found["rates_at_100_mslots"]
        ),
        "",
        "| memory | on | slots | bytes | at 100 M slots/s |",
        "|---|---|---|---|---|",
        *(
            f"| {row['memory']} | {row['on']} | {row['slots']:,} | {row['bytes']:,} "
            f"| {row['milliseconds_at_100_mslots']:,.2f} ms |"
            for row in found["horizons"]
        ),
        "",
        "| states from | at most, M slots/s |",
        "|---|---|",
        *(f"| {name} | {rate} |" for name, rate in found["highest_mslots_per_second"].items()),
    ]
    return "\n".join([*lines, ""])


def plot_rates(found: dict[str, Any], path: Path) -> None:
    """Draw the horizon against the memory that holds it, and the round trips that it must cover."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    drawing, axes = pyplot.subplots(figsize=(6, 3.6), layout="constrained")
    for row, marker in zip(found["horizons"], "os^D", strict=True):
        axes.loglog(
            row["bytes"],
            row["milliseconds_at_100_mslots"],
            marker,
            label=f"{row['memory']} ({row['on']})",
        )
    for trip in ROUND_TRIPS_MS:
        axes.axhline(trip, color="grey", linewidth=0.8, linestyle="--")
        axes.annotate(f"round trip of {trip} ms", (1e8, trip), fontsize=7, va="bottom", ha="right")
    axes.set(xlabel="memory, bytes", ylabel="horizon at 100 M slots/s, ms", xlim=(10, 1e9))
    axes.legend(fontsize=7)
    axes.grid(alpha=0.3)
    drawing.savefig(path, metadata={"Date": None})
    pyplot.close(drawing)


def figure() -> dict[str, Any]:
    """All that ``make figure-sifting`` writes; its progress goes to standard error."""
    return sift(Experiment(), lambda line: print(line, file=sys.stderr, flush=True))


def page(found: dict[str, Any]) -> str:
    """The experiment as a Markdown page."""
    clocks, bits = found["simulated_clocks"], found["sifted_bits"]
    rows: list[tuple[str, object]] = [
        ("slots, one a clock of the sender", found["slots"]),
        ("detections", found["detections"]),
        ("frames, of so many slots each", f"{found['frames']:,} of {found['frame_slots']:,}"),
        ("round trip, slots", found["delay_slots"]),
        ("frames lost", found["frames_lost"]),
        ("detections in lost frames", found["detections_in_lost_frames"]),
        ("slots recalled from the control PC's copy", found["recalled_from_the_copy"]),
        ("slots expired", found["expired"]),
        ("sifted bits, sender", bits["sender"]),
        ("sifted bits, receiver", bits["receiver"]),
        ("sifted bits that differ", found["sifted_bits_differ"]),
        ("errors in the test basis", found["test_errors"]),
        *((f"clocks of {name}", count) for name, count in clocks.items()),
        ("seconds", found["seconds"]),
        ("slots simulated a second", found["slots_per_second"]),
    ]
    lines = [
        "# 10^8 slots through two boards, frames lost at random",
        "",
        f"Written by `{found['command']}` at commit {found['commit']}; {found['machine']}, one of "
        "them used; " + ", ".join(f"{k} {v}" for k, v in found["versions"].items()) + ".",
        "",
        "Both boards are the stations' gateware under Verilator (`sim:`). The sender's emits one",
        "slot a clock, while announcements come a round trip later and what has left its ring is",
        "recalled; the receiver's skips the clocks between two tags. A lost frame's detections are",
        "dropped on both sides. The command fails unless both sifted keys are equal in length and",
        "bit for bit, and every count below follows from the others by arithmetic.",
        "",
        "| what | count |",
        "|---|---|",
        *(
            f"| {what} | {count:,} |" if isinstance(count, int | float) else f"| {what} | {count} |"
            for what, count in rows
        ),
        "",
        "| block | counters |",
        "|---|---|",
        *(
            f"| {name} | " + ", ".join(f"{k} {v:,}" for k, v in counts.items() if v) + " |"
            for name, counts in found["ledgers"].items()
        ),
    ]
    return "\n".join([*lines, ""])


# -- statistics of the source --------------------------------------------------------------------

BIASES = ((0.9375, 0.9),)
"""Probabilities of basis Z and of the signal intensity."""


def statistics(draws: int = 1 << 30) -> dict[str, Any]:
    """Chi-square tests of the eight states against the exact probabilities.

    Parameters
    ----------
    draws
        States of each test.
    """
    from scipy.stats import chi2

    from keyrail.source import threshold

    results = []
    for p_z, p_signal in BIASES:
        z, signal = threshold("p_z", p_z), threshold("p_signal", p_signal)
        generator = Generator(TestRandom(6, "key").bytes(32), 1, z, signal)
        draw = TestRandom(7, f"states {p_z}").bytes
        for name in ("host", "generator"):
            counts = np.zeros(8, np.int64)
            states: npt.NDArray[np.uint8]
            for first in range(0, draws, 1 << 18):
                count = min(1 << 18, draws - first)
                if name == "host":
                    states = random_states(draw, count, p_z, p_signal) & np.uint8(7)
                else:
                    states = generator.states(first, count)
                counts += np.bincount(states, minlength=8)
            # Basis X where bit 0, decoy where bit 2: products of multiples of 2^-16.
            code = np.arange(8)
            exact = (
                np.where(code & 1, 65536 - z, z)
                * np.where(code & 4, 65536 - signal, signal)
                / 2**33
            )
            expected = draws * exact
            statistic = float(((counts - expected) ** 2 / expected).sum())
            results.append(
                {
                    "source": name,
                    "p_z": z / 65536,
                    "p_signal": signal / 65536,
                    "draws": draws,
                    "counts": counts.tolist(),
                    "chi_square": round(statistic, 3),
                    "degrees_of_freedom": 7,
                    "p_value": float(f"{chi2.sf(statistic, 7):.4g}"),
                }
            )
    return {"results": results}
