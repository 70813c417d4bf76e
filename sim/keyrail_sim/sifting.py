# SPDX-License-Identifier: Apache-2.0
"""Sifting of two boards with frames lost at random, rates of the sender's path, statistics."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
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
    STATE_BITS,
    STATES_PER_WORD,
    BlockCommand,
    BlockState,
    Mode,
)
from keyrail.layouts import Structured, zeros
from keyrail.randomness import TestRandom
from keyrail.source import random_states, state_words
from keyrail.state_copy import HORIZON_SLOTS, StateCopy
from keyrail.station import announced_slots, check_tallies
from keyrail_sim.models.announcer import Announcer
from keyrail_sim.models.generator import Generator

PERIOD_PS = 10_000
QUIET = 256
"""Clocks that a simulated board runs on after the last movement."""
CLOCK_MHZ = 100.0
USB_MBPS = {"high speed": 320.0, "full speed": 8.0}
"""Payload that a USB cable carries, both directions together."""


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
        tag_path.set_slots(bob, PERIOD_PS << PERIOD_FRACTION_BITS, 0)
        windows = dict.fromkeys(tag_path.OUTCOMES, (4_000, 6_000))
        tag_path.set_gates(bob, windows, tag_path.OUTCOMES)
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


def path_clocks(count: int = 20_000) -> dict[str, float]:
    """Clocks a record of the sender's paths, and their latencies, on the Verilated board.

    Parameters
    ----------
    count
        Records that each path is measured with.
    """
    slots = 1 << 18  # twice the ring
    drawn = random_states(TestRandom(2, "states").bytes, slots, 0.9, 0.5)
    clocks: dict[str, float] = {}
    announced = np.arange(0, 4 * count, 4)
    with keyrail.open("sim:alice") as opened:
        board: Any = opened

        def run() -> int:
            before = board.cycles
            board.run()
            return int(board.cycles - before - QUIET)

        def start(last: int, **source: int) -> None:
            if board.read("block_state") != BlockState.IDLE:
                board.write("block_command", BlockCommand.DISCARD)
                board.run()
            board.write("block_last_slot", last)
            board.write("block_on_host", 1)
            board.write("source", **source)
            board.write("block_command", BlockCommand.OPEN)

        board.write("mode", Mode.KEY)
        board.run()
        key = zeros(board.streams["generator_key"].record, 4)
        key["bits"] = np.frombuffer(TestRandom(3, "key").bytes(32), "<u8")
        board.send("generator_key", key)
        board.run()

        start(slots)
        board.send("states", state_words(drawn[: 4 * count]))
        board.run()
        board.send("announcements", _announce(announced, 0))
        clocks["look-up in the ring"] = run() / count
        spilled = board.receive("block_out")
        for command in (BlockCommand.CLOSE, BlockCommand.BASES):
            board.write("block_command", command)
            board.run()
        board.send("block_in", spilled)
        bases = zeros(BASIS, count)
        board.send("bases", bases)
        clocks["basis to reply"] = run() / count

        start(slots, recall=1)
        board.send("states", state_words(drawn))
        board.run()
        board.send("announcements", _announce(announced, 0))
        answers = zeros(RECALLED, count)
        answers["present"] = answers["known"] = 1
        board.send("recalled", answers)  # as if the control PC answered at once
        clocks["look-up in the control PC's copy"] = run() / count
        if len(board.receive("missed")) != count:
            raise SiftingError("slots were found in the ring that had left it")

        board.write("generator_bias", z=61_440, signal=32_768)
        start((1 << 17) - 1, generator=1)
        clocks["slot made by the generator"] = run() / (1 << 17)
    return {name: round(value, 3) for name, value in clocks.items()}


def recall_clocks(count: int = 3_000) -> float:
    """Clocks an answer of the generator, nothing else under way."""
    slots = (1 << 17) + 4 * count
    slots += -slots % 16
    with keyrail.open("sim:alice") as opened:
        board: Any = opened
        board.write("mode", Mode.KEY)
        board.run()
        key = zeros(board.streams["generator_key"].record, 4)
        key["bits"] = np.frombuffer(TestRandom(3, "key").bytes(32), "<u8")
        board.send("generator_key", key)
        board.run()
        board.write("generator_bias", z=61_440, signal=32_768)
        board.write("block_last_slot", slots - 1)
        board.write("block_on_host", 1)
        board.write("source", generator=1)
        board.write("block_command", BlockCommand.OPEN)
        board.run()
        board.send("announcements", _announce(np.arange(0, 4 * count, 4), 0))
        before = board.cycles
        board.run()
        return round(int(board.cycles - before - QUIET) / count, 3)


def latencies() -> dict[str, int]:
    """Clocks from a record that the sender takes to what comes of it, on the Verilated board."""
    with keyrail.open("sim:alice") as opened:
        board: Any = opened

        def until(name: str) -> int:
            for clocks in range(1, 1_000):
                board.run_for(1)
                if len(board.receive(name)):
                    return clocks
            raise SiftingError(f"nothing came on {name}")

        board.write("mode", Mode.KEY)
        board.run()
        board.write("block_last_slot", 1 << 20)
        board.write("block_on_host", 1)
        board.write("block_command", BlockCommand.OPEN)
        board.send("states", state_words(np.full(64, 7, np.uint8)))
        board.run()
        board.send("announcements", _announce(np.array([5]), 0))
        found = {"announcement to its entry in block memory": until("block_out")}
        entry = zeros(board.streams["block_in"].record, 1)
        for command in (BlockCommand.CLOSE, BlockCommand.BASES):
            board.write("block_command", command)
            board.run()
        board.send("block_in", entry)
        board.send("bases", zeros(BASIS, 1))
        found["basis to its reply"] = until("replies")
        return found


def copy_rate(count: int = 1_000_000) -> int:
    """Answers a second of the control PC's copy on one core."""
    copy = StateCopy(1 << 24)
    copy.feed(random_states(TestRandom(4, "states").bytes, 1 << 24, 0.9, 0.5))
    slots = np.random.default_rng(5).integers(0, 1 << 24, count)
    began = time.perf_counter()
    for start in range(0, count, 1 << 14):
        copy.answer(slots[start : start + (1 << 14)])
    return round(count / (time.perf_counter() - began))


def rates(
    clocks: dict[str, float], generator: float, answers: int, mslots: float = 100.0
) -> list[dict[str, Any]]:
    """Detections a second that the sender answers live, by round trip and source of the states.

    Each is the least of what the board's path, the cable and the control PC's copy carry at
    `mslots` million slots a second.
    """
    usb = USB_MBPS["high speed"]
    announced = ANNOUNCEMENT.bits  # every detection comes as one record
    entry = 8  # block memory to the control PC
    recall = MISSED_SLOT.bits + RECALLED.bits
    per_block = 33 / 512 * 1e6 * mslots  # blocks of the cipher a second that the states take
    spare = CLOCK_MHZ * 1e6 / 10 - per_block
    rows = []
    for trip_ms in (1, 25, 500):
        slots = round(trip_ms * 1e3 * mslots)
        for source, fed in (("host", STATE_BITS * mslots), ("generator", 0.0)):
            in_ring = slots <= 1 << 17
            on_cable = announced + entry + (recall if source == "host" and not in_ring else 0)
            cable = (usb - fed) * 1e6 / on_cable
            if in_ring:
                memory = "ring of 2^17 slots on the board"
                path = CLOCK_MHZ * 1e6 / clocks["look-up in the ring"]
            elif source == "host":
                memory = f"copy of {HORIZON_SLOTS:,} slots in the control PC (64 MiB)"
                path = min(CLOCK_MHZ * 1e6 / clocks["look-up in the control PC's copy"], answers)
            else:
                memory = "none: the generator makes the states again"
                path = min(CLOCK_MHZ * 1e6 / generator, spare / 2)
            rows.append(
                {
                    "round_trip_ms": trip_ms,
                    "slots_under_way": slots,
                    "states_from": source,
                    "answered_from": memory,
                    "path_per_second": round(path),
                    "cable_per_second": round(cable),
                    "detections_per_second": round(min(path, cable)),
                }
            )
    return rows


def horizons() -> list[dict[str, Any]]:
    """How long states are remembered, by the memory that holds them."""
    rows: list[dict[str, Any]] = [
        {"memory": f"ring of 2^{log2} slots", "slots": 1 << log2, "bytes": (1 << log2) * 49 // 128}
        for log2 in (17, 19)
    ]
    rows.append(
        {
            "memory": "copy in the control PC",
            "slots": HORIZON_SLOTS,
            "bytes": HORIZON_SLOTS // 2,
        }
    )
    for row in rows:
        row["seconds_at_100_mslots"] = round(row["slots"] / 1e8, 6)
    rows.append(
        {
            "memory": "generator's key and nonce",
            "slots": 1 << 48,
            "bytes": 40,
            "seconds_at_100_mslots": round((1 << 48) / 1e8),
        }
    )
    return rows


def rates_figure() -> dict[str, Any]:
    """All that ``make figure-sifting_rates`` writes."""
    clocks = path_clocks()
    generator = recall_clocks()
    answers = copy_rate()
    made = clocks["slot made by the generator"]
    return {
        "clocks_per_record": clocks | {"answer of the generator": generator},
        "latency_clocks": latencies(),
        "copy_answers_per_second": answers,
        "highest_mslots_per_second": {
            "generator at 100 MHz": round(CLOCK_MHZ / made, 1),
            **{f"host over USB {name}": round(m / STATE_BITS, 1) for name, m in USB_MBPS.items()},
        },
        "rates_at_100_mslots_and_100_mhz": rates(clocks, generator, answers),
        "horizons": horizons(),
    }


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
