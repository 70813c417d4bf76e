# SPDX-License-Identifier: Apache-2.0
"""What the receiver learns from the training slots: period, phase, slot origin and gate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from keyrail import acquire, tag_path
from keyrail.board import Board, BoardError
from keyrail.contract import HISTOGRAM_BINS, PERIOD_FRACTION_BITS, Mode, TagKind
from keyrail.messages import ProtocolError
from keyrail.training import TrainingError, synchronise

NOMINAL_PERIOD_PS = 10_000
BLANKING_SLOTS = 5
"""Slots blanked after each raw click: they last longer than the detectors' dead time."""
HOLDOVER_PS = 100_000_000_000
"""Dark for longer than this (100 ms), the slots are no longer trusted: clocks whose rates differ by
10^-8 of what the loop knows come apart by a tenth of a slot of 10 ns in it."""
HOLDOVER_WINDOWS = 3
"""Hold-over lasts so many windows at least, so that one thin window costs no lock."""
_CLEAR = 5.0  # standard deviations by which a channel's pulses must stand out


@dataclass(frozen=True)
class Tuning:
    """Settings of the receiver's tag path.

    Attributes
    ----------
    period
        Slot period, ps in 20.44 fixed point.
    origin_ps
        When slot 0 begins in the receiver's clock, ps.
    gate
        First phase accepted and first past the window, ps, the same on all channels.
    visibility
        How sharply the clicks gather at one phase.
    detections_per_slot
        Clicks a slot after blanking, in the training slots.
    phases
        By channel: where its pulses lie in their slots, ps. The loop holds them there.
    """

    period: int
    origin_ps: int
    gate: tuple[int, int]
    visibility: float
    detections_per_slot: float
    phases: Mapping[int, int]

    @property
    def period_ps(self) -> float:
        """Slot period, ps."""
        return self.period / (1 << PERIOD_FRACTION_BITS)

    def slot_start(self, slot: int) -> int:
        """When a slot begins, ps."""
        return self.origin_ps + (slot * self.period >> PERIOD_FRACTION_BITS)

    def tracking(self) -> tag_path.Tracking:
        """Settings of the loop that follows the source from here on."""
        window_log2 = tag_path.Tracking.window_for(self.period, self.detections_per_slot)
        holdover = max(int(HOLDOVER_PS / self.period_ps), HOLDOVER_WINDOWS << window_log2)
        return tag_path.Tracking(self.phases, window_log2, int(self.period_ps / 4), holdover)

    def apply(self, board: Board) -> None:
        """Set the tag path and its tracking loop, in the mode that the board is in.

        A path that runs in key mode by this tuning already is left as it is: the loop has followed
        the source since, and the registers say where it began.

        Raises
        ------
        ProtocolError
            If the loop of such a path has lost the source (`check_lock`).
        """
        if self._runs(board):
            self.check_lock(board)
            return
        tag_path.set_slots(board, self.period, self.origin_ps)
        tag_path.set_tracking(board, self.tracking())
        tag_path.set_blanking(board, BLANKING_SLOTS)
        gates = dict.fromkeys(tag_path.OUTCOMES, self.gate)
        tag_path.set_gates(board, gates, tag_path.OUTCOMES)

    def _runs(self, board: Board) -> bool:
        # `tune` switches the loop off, and leaves key mode, which restarts the path.
        return (
            board.read("mode") == Mode.KEY
            and bool(board.read_fields("tracker_control")["enable"])
            and board.read("slotter_period") == self.period
            and board.read("slotter_origin") == self.origin_ps & tag_path.TIME_MASK
        )

    def check_lock(self, board: Board) -> None:
        """See that slots have been followed without a break since the tag path was set.

        Raises
        ------
        ProtocolError
            If the loop has lost the source: slots may be off by whole ones since then. The block
            is to be discarded, and the receiver trained anew. A dark interval that hold-over
            bridges is none.
        """
        counts = board.ledger("tracker")
        if counts["lock_losses"]:
            raise ProtocolError(
                f"the receiver's tracking loop lost the source ({counts['dark']} dark, "
                f"{counts['incoherent']} incoherent and {counts['astray']} astray of "
                f"{counts['windows']} windows); the block is discarded"
            )


def tune(
    board: Board,
    times: npt.NDArray[np.int64],
    channels: npt.NDArray[np.uint8],
    pattern: npt.NDArray[np.uint8],
    first_slot: int,
) -> Tuning:
    """Find period, phase, slot origin and gate from the published training slots.

    The tags go through the tag path in instrument mode with every gate open; slot and phase of
    what comes out give the times back. The board is left in instrument mode.

    Parameters
    ----------
    board
        A receiver's board.
    times, channels
        Clicks of the training slots, in time order, ps.
    pattern
        State codes of the training slots.
    first_slot
        Number of the first of them.

    Raises
    ------
    TrainingError, NoPeriodError
        If the slots are not found.
    """
    board.write("mode", Mode.INSTRUMENT)
    tag_path.set_tracking(board, None)
    nominal = NOMINAL_PERIOD_PS << PERIOD_FRACTION_BITS
    if len(times) == 0:
        raise TrainingError("training pattern not found: no click during the training slots")
    start = int(times[0]) - NOMINAL_PERIOD_PS
    last = int(times[-1])
    tag_path.set_slots(board, nominal, start)
    tag_path.set_blanking(board, BLANKING_SLOTS)
    tag_path.open_gates(board, tag_path.OUTCOMES, nominal)
    board.send("tags", tag_path.tag_records(times, channels, last))
    board.run()
    gated = board.receive("gated")
    gated = gated[gated["kind"] == TagKind.CLICK]
    relative = gated["slot"].astype(np.int64) * NOMINAL_PERIOD_PS + gated["phase"].astype(np.int64)
    found = synchronise(relative, gated["channel"], pattern, 1e12 / NOMINAL_PERIOD_PS)
    origin = start + found.slot_0_ps(first_slot)

    # The gate comes from the board's own histogram, with the slots as they will be used.
    tag_path.set_slots(board, found.period, origin)
    tag_path.open_gates(board, tag_path.OUTCOMES, found.period)
    board.send("tags", tag_path.tag_records(times, channels, last))
    board.run()
    board.receive("gated")
    histogram = tag_path.read_histogram(board)
    if histogram is None:
        raise BoardError(f"{board.name}: no histogram in instrument mode")
    bin_ps = 1 << board.read("histogram_shift")
    # One window for all channels: unequal gates would tell detectors apart.
    gate = acquire.window(histogram.sum(axis=0), bin_ps, found.period_ps)
    share = len(gated) / len(pattern)
    phases = _phases(relative - found.origin_ps, gated["channel"], found.period_ps)
    return Tuning(found.period, origin, gate, found.visibility, share, phases)


def tuned(
    times: npt.NDArray[np.int64],
    channels: npt.NDArray[np.uint8],
    pattern: npt.NDArray[np.uint8],
    first_slot: int,
    nominal_ps: float,
) -> Tuning:
    """What `tune` finds, of clicks that a board has stamped itself.

    Parameters
    ----------
    times, channels
        Clicks after blanking, in time order, ps: of the published training slots and, before and
        behind them, of anything that does not resemble them.
    pattern, first_slot
        As for `tune`.
    nominal_ps
        Slot period, right to 100 ppm.

    Raises
    ------
    TrainingError, NoPeriodError
        If the slots are not found.
    """
    if len(times) == 0:
        raise TrainingError("training pattern not found: no click during the training slots")
    # The correlation spans all slots from 0 to the last click's.
    begin = int(times[0])
    relative = times - begin
    found = synchronise(relative, channels, pattern, 1e12 / nominal_ps)
    period_ps = found.period_ps
    origin = begin + found.slot_0_ps(first_slot)
    since_origin = relative - found.origin_ps
    bin_ps = 1 << tag_path.histogram_shift(found.period)
    bins = np.mod(since_origin, period_ps).astype(np.int64) // bin_ps
    gate = acquire.window(np.bincount(bins, minlength=HISTOGRAM_BINS), bin_ps, period_ps)
    during = (since_origin >= 0) & (since_origin < len(pattern) * period_ps)
    share = int(during.sum()) / len(pattern)
    phases = _phases(since_origin[during], channels[during], period_ps)
    return Tuning(found.period, origin, gate, found.visibility, share, phases)


def _phases(
    since_origin: npt.NDArray[np.int64], channels: npt.NDArray[np.uint8], period_ps: float
) -> dict[int, int]:
    """Phase of each channel's pulses, ps: the middle of the slot where it does not stand out."""
    turns = np.modf(since_origin / period_ps)[0]
    phases = {}
    for channel in tag_path.OUTCOMES:
        phasors = np.exp(2j * np.pi * turns[channels == channel])
        together = complex(phasors.sum())
        clear = abs(together) > _CLEAR * np.sqrt(len(phasors))
        turn = float(np.angle(together)) / (2 * np.pi) % 1 if clear else 0.5
        phases[channel] = int(turn * period_ps)
    return phases
