# SPDX-License-Identifier: Apache-2.0
"""A whole receiver, from the sampled pins of its time tagger to detections, under Verilator.

The station has ten inputs (eight detectors, sync, pulse per second), each behind an oversampling
time-to-digital converter with eight samples a clock, and the oscillator on the chip. What its pins
show is driven clock by clock; what becomes of every edge is told by the ledgers, block by block,
and by the T2 records.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from keyrail import t2, tag_input, tag_path
from keyrail.calibration import calibrate
from keyrail.contract import (
    CHANNELS,
    COIN,
    PERIOD_FRACTION_BITS,
    TDC_INPUTS,
    TIME_RECORD_LOG2_PS,
    Basis,
    BlockCommand,
    Mode,
    Role,
)
from keyrail.errors import KeyrailError
from keyrail.layouts import zeros
from keyrail_sim import verilated
from keyrail_sim.verilated import CLOCK_PS, VerilatedBoard

Rows = npt.NDArray[np.uint8]
"""What the pins show: a byte a clock and input, bit 0 the youngest of the eight samples."""
SAMPLES = 8
IDLE = 0
CHUNK = 1 << 16
"""Clocks driven at a time."""
PULSE_CLOCKS = 8
"""Clocks from pulse to pulse of the load: eight channels, one tag a clock."""
SLOT_PS = PULSE_CLOCKS * CLOCK_PS
CALIBRATION_HITS_LOG2 = 6
OSCILLATOR_PS = 23_179
"""Half a period of the oscillator: 21.6 MHz, as the part's divided by 16 gives."""
TIME_RECORD_CLOCKS = (1 << TIME_RECORD_LOG2_PS) // CLOCK_PS + 1
SETTLED = 256
"""Clocks in which an edge has passed the whole path."""


def design() -> verilated.Design:
    """The station: without Toeplitz engine, which no tag passes, and with small memories.

    It can stamp falling edges too, and has the free-running oscillator to calibrate by.
    """
    sizes = {
        "toeplitz_input_log2": 0,
        "toeplitz_output_log2": 0,
        "block_memory_log2": 10,
        "choices_log2": 10,
        "inputs": TDC_INPUTS,
        "tdc_lines": 1,
        "tdc_cells": SAMPLES // 2,
        "tdc_falling": True,
        "tdc_cell_ps": 2 * CLOCK_PS // SAMPLES,
    }
    levels = tuple((f"taps_{n}", SAMPLES) for n in range(TDC_INPUTS))
    return verilated.Design(Role.RECEIVER, "tagger", tuple(sizes.items()), levels, OSCILLATOR_PS)


@contextmanager
def opened() -> Iterator[VerilatedBoard]:
    """The station, calibrated, its inputs on and its tags lost by rule where there are too many."""
    board = VerilatedBoard(design(), "sim:tagger")
    try:
        every = (1 << TDC_INPUTS) - 1
        board.write("tdc_control", rising=every, hits_log2=CALIBRATION_HITS_LOG2)
        calibrate(board)
        tag_input.set_inputs(board, {n: tag_input.Input() for n in range(TDC_INPUTS)})
        yield board
    finally:
        board.close()


def sampled(toggles: list[npt.NDArray[np.int64]], clocks: int) -> Rows:
    """Levels that begin low and turn over at times, as the pins' samples show them.

    Parameters
    ----------
    toggles
        By input: times from the beginning of the first clock, ps.
    clocks
        How many.
    """
    rows = np.zeros((clocks, TDC_INPUTS), np.uint8)
    count = clocks * SAMPLES
    for number, times in enumerate(toggles):
        # The first sample at or after the time sees it.
        at = -(-times * SAMPLES // CLOCK_PS)
        turned = np.bincount(at[at < count], minlength=count)
        level = (np.cumsum(turned) & 1).astype(np.uint8)
        rows[:, number] = np.packbits(level.reshape(clocks, SAMPLES), axis=1)[:, 0]
    return rows


def edges_of(rows: Rows) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Where edges rise, and where they fall: changes of the youngest sample, which begins low."""
    youngest = (rows & 1).astype(np.bool_)
    before = np.zeros_like(youngest)
    before[1:] = youngest[:-1]
    return youngest & ~before, before & ~youngest


@dataclass(frozen=True)
class Passage:
    """What became of the edges of a run, by the counters; every sum has been checked.

    Attributes
    ----------
    clocks
        Clocks in which the pins were driven.
    edges
        Rising edges that the pins showed, counted from what was driven.
    stamped, refused, missed
        Edges stamped, refused by the merge's queues, and dropped by the tag FIFO.
    slotted
        Clicks that left the slotter.
    detections
        That left the squash; 0 in instrument mode.
    in_stream, in_losses
        Instrument mode: clicks in the T2 stream, and clicks that the loss ledger says were missed.
    """

    clocks: int
    edges: int
    stamped: int
    refused: int
    missed: int
    slotted: int
    detections: int = 0
    in_stream: int = 0
    in_losses: int = 0


def _expect(what: str, *counts: int) -> None:
    if len(set(counts)) != 1:
        raise KeyrailError(f"{what}: {', '.join(f'{count:,}' for count in counts)}")


def _set_up(board: VerilatedBoard, mode: Mode, origin_ps: int) -> None:
    """Slots of `SLOT_PS` with every gate open over all of them, no blanking, all counters anew."""
    board.write("mode", mode)
    board.run()
    board.write("tag_input", real_time=1, raw=0)
    tag_path.set_blanking(board, 0)
    outcomes = {channel: (Basis(channel >> 1 & 1), channel & 1) for channel in range(CHANNELS)}
    tag_path.set_gates(board, dict.fromkeys(range(CHANNELS), (0, SLOT_PS)), outcomes)
    tag_path.set_slots(board, SLOT_PS << PERIOD_FRACTION_BITS, origin_ps)
    for name in ("raw", "losses", "gated"):
        board.receive(name)
    # The T2 stream begins here, at time 0: all of it counts.
    board.write("tag_input", real_time=1, raw=int(mode is Mode.INSTRUMENT))


def _account(
    board: VerilatedBoard, rows: int, edges: int, falls: int, tdc_before: dict[str, int]
) -> Passage:
    """Follow every edge from block to block; nothing may be on its way.

    Raises
    ------
    KeyrailError
        If a sum does not close to the single edge.
    """
    blocks = ("tdc", "condition", "merge", "tag_fifo", "slotter", "squash")
    counts = {block: board.ledger(block) for block in blocks}
    tdc = {name: count - tdc_before[name] for name, count in counts["tdc"].items()}
    condition, merge, fifo = (counts[block] for block in ("condition", "merge", "tag_fifo"))
    held = board.read("merge_held"), board.read("tag_fifo_held")
    _expect("edges that the pins showed, and stamped", edges, tdc["out"])
    _expect("edges that fell, and not stamped", falls, tdc["other_edge"])
    _expect("edges seen", edges + falls, tdc["in"])
    _expect("events conditioned", tdc["out"], condition["in"], condition["out"])
    _expect("events merged and refused", condition["out"], merge["in"] + merge["refused"])
    _expect("merge's ledger", merge["in"], merge["out"] + held[0])
    _expect("clicks to the tag FIFO", merge["out"], fifo["in"])
    _expect("refused, at both", merge["refused"], fifo["refused"])
    _expect("tag FIFO's ledger", fifo["in"], fifo["out"] + fifo["missed"])
    _expect("held", 0, *held)
    _expect("clicks to the slotter", fifo["out"], counts["slotter"]["in"])
    key = board.read("mode") == Mode.KEY
    tag_path.check_ledgers(board, tag_path.CHAIN if key else tag_path.INSTRUMENT_CHAIN)
    return Passage(
        rows,
        edges,
        tdc["out"],
        merge["refused"],
        fifo["missed"],
        counts["slotter"]["out"],
        counts["squash"]["out"] if key else 0,
    )


def _stamp_offset(board: VerilatedBoard) -> int:
    """Clocks from the one that samples an edge, by the board's count, to that of its stamp.

    A stamp is the beginning of a clock less a delay of less than one: rounded up, it is that clock.
    """
    _set_up(board, Mode.INSTRUMENT, 0)
    at = np.array([100 * CLOCK_PS + CLOCK_PS // 2, 105 * CLOCK_PS])
    began = board.cycles
    board.drive(sampled([at], 200))
    # A time record behind it, for the T2 stream to show where it is.
    board.step(200 + 2 * TIME_RECORD_CLOCKS)
    times = t2.decode(board.receive_bytes(board.streams["raw"]).tobytes()).times
    _expect("tags of one edge", 1, len(times))
    return -int(-times[0] // CLOCK_PS) - (began + 100)


def latency(board: VerilatedBoard) -> int:
    """Clocks from the one that samples an edge to its tag behind the gate, in the dark.

    A detector's tag waits for nothing but the path: all inputs' watermarks go on with the clock.
    """
    _set_up(board, Mode.INSTRUMENT, 0)
    board.drive(sampled([np.array([CLOCK_PS // 2, 6 * CLOCK_PS])], 2 * SETTLED))
    for clock in range(2 * SETTLED):
        board.step(1)
        if len(board.receive("gated")):
            return clock
    raise KeyrailError(f"{board.name}: no tag in {2 * SETTLED} clocks")


def all_at_once(board: VerilatedBoard, slots: int) -> Passage:
    """Eight detectors hit at once, a slot of eight clocks after the other: a tag in every clock.

    In key mode, so that the clicks pass everything from the pins to the announcer; each slot is a
    cross click. They all have come through `SETTLED` clocks after the last edge.

    Parameters
    ----------
    board
        From `opened`.
    slots
        How many.

    Raises
    ------
    KeyrailError
        If a clock is lost, a click or a detection is missing, or a ledger does not close.
    """
    lead, preparation = 1000, 50_000
    start = board.cycles + 3 * TIME_RECORD_CLOCKS + preparation
    offset = _stamp_offset(board)
    # Pulses lie in the middle of their slots, stamped half a clock before `offset`.
    origin = (offset + start) * CLOCK_PS - CLOCK_PS // 2 - SLOT_PS // 2
    _set_up(board, Mode.KEY, origin)
    tdc_before = board.ledger("tdc")
    board.write("block_first_slot", 0)
    board.write("block_last_slot", slots - 1)
    board.write("block_on_host", 1)
    board.write("block_command", BlockCommand.OPEN)
    coins = zeros(COIN, slots)
    coins["bit"], coins["basis"] = np.arange(slots) & 1, np.arange(slots) >> 1 & 1
    board.send("coins", coins)
    board.run()
    if start - board.cycles < lead:
        raise KeyrailError(f"{board.name}: {board.cycles} clocks have passed before {start}")
    board.step(start - board.cycles)

    turns = np.array([CLOCK_PS // 2, SLOT_PS // 2 + CLOCK_PS // 2])
    slot = sampled([turns] * CHANNELS, PULSE_CLOCKS)
    at_once = CHUNK // PULSE_CLOCKS
    for begin in range(0, slots, at_once):
        count = min(at_once, slots - begin)
        board.drive(np.tile(slot, (count, 1)))
        board.step(count * PULSE_CLOCKS)
    # One click more: what comes behind a slot shows that it is over.
    last = slot.copy()
    last[:, 1:] = 0
    board.drive(last)
    board.step(SETTLED)
    edges = slots * CHANNELS + 1
    passage = _account(board, slots * PULSE_CLOCKS, edges, edges, tdc_before)
    _expect("clicks lost", 0, passage.refused, passage.missed, edges - passage.slotted)
    squash, announcer = board.ledger("squash"), board.ledger("announcer")
    _expect("slots, detections, announcements", slots, squash["out"], announcer["out"])
    _expect("cross clicks", slots, squash["cross_clicks"])
    board.receive("announcements"), board.receive("block_out")
    return passage


def nonsense(clocks: int, rng: np.random.Generator) -> Rows:
    """Noise in every sample, pins stuck, levels and codes that no pin could show, by turns.

    Parameters
    ----------
    clocks
        How many; they end low.
    rng
        Chance.
    """
    rows = np.zeros((clocks, TDC_INPUTS), np.uint8)
    begin = 0
    while begin < clocks:
        part = rows[begin : begin + int(rng.integers(50, 500))]
        for number in range(TDC_INPUTS):
            kind = rng.integers(0, 6)
            if kind == 0:  # noise in every sample
                part[:, number] = rng.integers(0, 256, len(part))
            elif kind in (1, 2):  # stuck
                part[:, number] = 0xFF * (kind == 1)
            elif kind == 3:  # a change in every clock, with codes full of holes
                part[:, number] = rng.choice([0x55, 0xAA, 0x81, 0x7E, 0x01, 0xFE], len(part))
            elif kind == 4:  # levels shorter than a sample of the first tap: the oldest ones only
                part[:, number] = rng.integers(0, 128, len(part)) << 1
            else:  # a square wave at half the clock
                part[:, number] = np.resize([0xFF, 0x00], len(part))
        begin += len(part)
    rows[-4:] = IDLE
    return rows


def under_nonsense(board: VerilatedBoard, clocks: int, seed: int, mode: Mode) -> Passage:
    """Nonsense from all ten pins, then a pulse each; every edge is a tag or a loss, no tag is not.

    Instrument mode: the T2 stream's clicks are compared with the edges one by one, by input and
    clock. Key mode: coins are there for one slot in two.

    Parameters
    ----------
    board
        From `opened`.
    clocks
        Of nonsense.
    seed
        Of it.
    mode
        Mode of the board.

    Raises
    ------
    KeyrailError
        If a sum does not close, a tag has no edge, or the path does not work afterwards.
    """
    rng = np.random.default_rng(seed)
    offset = _stamp_offset(board)
    _set_up(board, mode, (offset + board.cycles) * CLOCK_PS)
    coins = zeros(COIN, clocks // PULSE_CLOCKS // 2)
    board.send("coins", coins if mode is Mode.KEY else coins[:0])
    board.run()
    tdc_before, began = board.ledger("tdc"), board.cycles
    decoder = t2.Decoder()
    clicks = [np.zeros((0, 2), np.int64)]
    marks = []
    losses = missed_in_losses = edges = falls = 0

    def take() -> None:
        nonlocal losses, missed_in_losses
        events = decoder.feed(board.receive_bytes(board.streams["raw"]).tobytes())
        clicks.append(np.stack([events.times, events.channels], 1).astype(np.int64))
        ledger = board.receive("losses")
        losses += len(ledger)
        missed_in_losses += int(ledger["missed"].sum())
        board.receive("gated")

    for begin in range(0, clocks, CHUNK):
        rows = nonsense(min(CHUNK, clocks - begin), rng)
        rose, fell = edges_of(rows)
        edges += int(rose.sum())
        falls += int(fell.sum())
        clock, number = np.nonzero(rose)
        marks.append(np.stack([clock + begin, number], 1))
        board.drive(rows)
        board.step(len(rows))
        take()
    # What is lost ends with the time record that passes it.
    board.step(3 * TIME_RECORD_CLOCKS)
    overloaded = board.ledger("slotter")["in"]
    again = sampled([np.array([CLOCK_PS // 2, 9 * CLOCK_PS]) + n * 20 * CLOCK_PS
                     for n in range(TDC_INPUTS)], 1000)  # fmt: skip
    pulsed = board.cycles - began
    clock, number = np.nonzero(edges_of(again)[0])
    marks.append(np.stack([clock + pulsed, number], 1))
    board.drive(again)
    board.step(1000 + 2 * TIME_RECORD_CLOCKS)
    take()
    _expect("pulses behind the nonsense", TDC_INPUTS, board.ledger("slotter")["in"] - overloaded)
    passage = _account(board, clocks, edges + TDC_INPUTS, falls + TDC_INPUTS, tdc_before)
    if mode is Mode.KEY:
        return passage
    came, sent = np.concatenate(clicks), np.concatenate(marks)
    _expect("clicks in the T2 stream", board.ledger("tag_fifo")["out"], len(came))
    lost = passage.missed + passage.refused
    _expect("losses and those in the ledger", lost, missed_in_losses)
    _expect("edges, and clicks with those lost", passage.edges, len(came) + missed_in_losses)
    if (np.diff(came[:, 0]) < 0).any():
        raise KeyrailError("the T2 stream is not in time order")
    # The clock of each tag is that in which its edge was sampled.
    stamped = -(-came[:, 0] // CLOCK_PS) - (offset + began)
    tagged = stamped * TDC_INPUTS + came[:, 1]
    shown = sent[:, 0] * TDC_INPUTS + sent[:, 1]
    if len(np.unique(tagged)) != len(tagged) or not np.isin(tagged, shown).all():
        raise KeyrailError("a tag without an edge")
    _expect("loss records", board.ledger("tag_fifo")["losses"], losses)
    return replace(passage, in_stream=len(came), in_losses=missed_in_losses)


def figure() -> dict[str, Any]:
    """The load for 10^6 slots, and nonsense for 10^6 clocks in either mode."""
    with opened() as board:
        results = [{"what": "eight detectors at once", **asdict(all_at_once(board, 1_000_000))}]
        for mode in Mode:
            passage = under_nonsense(board, 1_000_000, 1, mode)
            results.append({"what": f"nonsense, {mode.name.lower()} mode", **asdict(passage)})
        return {
            "clock_ns": CLOCK_PS / 1000,
            "inputs": TDC_INPUTS,
            "latency_clocks_to_gated": latency(board),
            "results": results,
        }
