# SPDX-License-Identifier: Apache-2.0
"""Sets a receiver's tag path up, feeds it and reads it: slotter, blanking, gates, histogram."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from keyrail.board import Board, BoardError
from keyrail.contract import (
    CHANNELS,
    CHOICE_WORD,
    CHOICES_PER_WORD,
    GAP_BINS,
    GATE_WINDOWS,
    HISTOGRAM_BINS,
    KEY_MODE_HISTOGRAM_MINIMUM,
    LEDGERS,
    PERIOD_FRACTION_BITS,
    TAG,
    TIME_BITS,
    Basis,
    HistogramCommand,
    Mode,
    ReceiverKind,
    TagKind,
    reciprocal,
)
from keyrail.errors import SettingError
from keyrail.layouts import Structured, zeros

TIME_RECORD_PS = 1_000_000_000
"""A time record passes at least this often (1 ms), so that darkness is told from silence."""
TIME_MASK = (1 << TIME_BITS) - 1
OUTCOMES: dict[int, tuple[Basis, int]] = {
    0: (Basis.Z, 0),
    1: (Basis.Z, 1),
    2: (Basis.X, 0),
    3: (Basis.X, 1),
}
"""Polarisation coding with a passive receiver: basis and bit of each detector channel."""


def set_slots(board: Board, period: int, origin_ps: int) -> None:
    """Set slot period and origin, and restart the tag path.

    Parameters
    ----------
    board
        A receiver's board, idle.
    period
        Slot period, ps in 20.44 fixed point.
    origin_ps
        Time at which slot 0 begins, ps; taken modulo 2^48.
    """
    board.write("slotter_period", period)
    board.write("slotter_reciprocal", reciprocal(period))
    board.write("slotter_origin", origin_ps & TIME_MASK)
    board.write("histogram_shift", histogram_shift(period))
    board.write("tag_path_reset", 1)
    board.run()


def histogram_shift(period: int) -> int:
    """Width of the phase histogram's bins, 2^this ps: wide enough for a whole slot."""
    return max(0, (period >> PERIOD_FRACTION_BITS).bit_length() - 10)


TRACKING_WINDOW_LOG2 = (12, 24)
"""A tracking window has 2^this slots, smallest and largest."""
TRACKING_GUARD_PS = 2_000_000
"""The last sixteenth of a window lasts this long at least: the loop decides meanwhile."""


@dataclass(frozen=True)
class Tracking:
    """Settings of the tracking loop (gateware's ``tracker`` has its equations).

    Parameters
    ----------
    targets
        By channel whose clicks count: phase at which its pulses are to lie, ps.
    window_log2
        Slots of a window, as a power of two; `window_for` finds one for a rate of clicks.
    gate_ps
        While locked, clicks within this of their target are measured.
    holdover_slots
        The lock ends this long after the last window that was followed.
    phase_shift, period_shift
        A window corrects 2^-phase_shift of its mean phase error at once, and its mean period by
        2^-period_shift of that error; critically damped by default, and the same for any window.
    limit_log2
        The period stays within 2^-this of what it was at the beginning; 10 to 31.
    threshold
        Coherence a window must show, in sixteenths: 0 to 15.
    lock_windows
        Windows in a row that give the lock or take it, 1 to 15.
    minimum
        Clicks a window must hold, 1 to 65535.
    """

    targets: Mapping[int, int]
    window_log2: int
    gate_ps: int
    holdover_slots: int
    phase_shift: int = 2
    period_shift: int = 6
    limit_log2: int = 13
    threshold: int = 6
    lock_windows: int = 3
    minimum: int = 64

    @staticmethod
    def window_for(period: int, clicks_per_slot: float, minimum: int = 64) -> int:
        """Window that holds four times the fewest clicks it must, and gives time to decide.

        Parameters
        ----------
        period
            Slot period, ps in 20.44 fixed point.
        clicks_per_slot
            Clicks that count, to a slot, as far as known.
        minimum
            Clicks a window must hold.

        Returns
        -------
        int
            ``window_log2``; the largest there is where even that holds too few clicks.
        """
        least, most = TRACKING_WINDOW_LOG2
        period_ps = period / (1 << PERIOD_FRACTION_BITS)
        slots = max(16 * TRACKING_GUARD_PS / period_ps, 4 * minimum / max(clicks_per_slot, 1e-12))
        return int(min(most, max(least, np.ceil(np.log2(slots)))))


@dataclass(frozen=True)
class TrackingState:
    """What the loop says of itself, as of the last window that began.

    Attributes
    ----------
    locked, holding
        It follows the source; it holds over, or has not begun.
    period
        In force, ps in 20.44 fixed point; 0 before the first window.
    slot
        Of the last correction.
    error_ps
        Mean phase error of the last window that was followed; positive is late.
    """

    locked: bool
    holding: bool
    period: int
    slot: int
    error_ps: float


def set_tracking(board: Board, tracking: Tracking | None) -> None:
    """Set the tracking loop, or switch it off.

    The loop takes its settings with the first record after a restart of the tag path: call
    `set_slots` afterwards, or before any tag is sent.

    Parameters
    ----------
    board
        A receiver's board, idle.
    tracking
        Settings; None switches the loop off.

    Raises
    ------
    SettingError
        If a setting is out of its range, a channel does not exist, or the last sixteenth of a
        window is too short to decide in.
    """
    if tracking is None:
        board.write("tracker_control", 0)
        return
    period = board.read("slotter_period")
    least, most = TRACKING_WINDOW_LOG2
    for name, low, high in (
        ("window_log2", least, most),
        ("phase_shift", 0, 31),
        ("period_shift", 0, 63),
        ("limit_log2", 10, 31),
        ("threshold", 0, 15),
        ("lock_windows", 1, 15),
        ("minimum", 1, 0xFFFF),
        ("gate_ps", 0, period >> PERIOD_FRACTION_BITS),
    ):
        value = getattr(tracking, name)
        if not low <= value <= high:
            raise SettingError(f"tracking.{name}", value, f"{low} to {high}")
    guard = (period << tracking.window_log2) >> (PERIOD_FRACTION_BITS + 4)
    if guard < TRACKING_GUARD_PS:
        raise SettingError(
            "tracking.window_log2",
            tracking.window_log2,
            f"windows of {16 * TRACKING_GUARD_PS / 1e6:.0f} us or more at this period",
        )
    for channel, target in tracking.targets.items():
        if not 0 <= channel < CHANNELS:
            raise SettingError("tracking.targets", channel, f"channels 0 to {CHANNELS - 1}")
        if not 0 <= target <= period >> PERIOD_FRACTION_BITS:
            raise SettingError(f"tracking.targets[{channel}]", target, "a phase within the slot")
    board.write(
        "tracker_control",
        enable=1,
        window_log2=tracking.window_log2,
        phase_shift=tracking.phase_shift,
        period_shift=tracking.period_shift,
        limit_log2=tracking.limit_log2,
        threshold=tracking.threshold,
        lock_windows=tracking.lock_windows,
    )
    board.write("tracker_minimum", tracking.minimum)
    board.write("tracker_gate", tracking.gate_ps)
    board.write("tracker_holdover", tracking.holdover_slots)
    board.write("tracker_channels", sum(1 << channel for channel in tracking.targets))
    for channel in range(CHANNELS):
        board.write(f"tracker_target_{channel}", tracking.targets.get(channel, 0))


def tracking_state(board: Board) -> TrackingState:
    """Read the state of the tracking loop."""
    status, error = board.read_fields("tracker_status"), board.read_fields("tracker_error")
    return TrackingState(
        bool(status["locked"]),
        bool(status["holding"]),
        board.read("tracker_period"),
        board.read("tracker_slot"),
        error["magnitude"] / 65536 * (-1 if error["early"] else 1),
    )


def tracking_summary(board: Board) -> dict[str, bool | float | int]:
    """Lock, period in force (ps) and counters of the tracking loop, for reports."""
    state = tracking_state(board)
    period = state.period / (1 << PERIOD_FRACTION_BITS)
    return {"locked": state.locked, "period_ps": period, **board.ledger("tracker")}


def set_blanking(board: Board, slots: int | Mapping[int, int]) -> None:
    """Set how many slots stay blanked after a raw click.

    Parameters
    ----------
    board
        A receiver's board.
    slots
        For all channels, or by channel (0 where not given): each channel's dead time in slots,
        rounded up, at least.
    """
    for channel in range(CHANNELS):
        length = slots if isinstance(slots, int) else slots.get(channel, 0)
        board.write(f"blanking_slots_{channel}", length)


def choice_words(choices: npt.NDArray[np.uint8]) -> Structured:
    """Basis choices as records of the ``basis_choices`` stream.

    Parameters
    ----------
    choices
        Basis choice of each slot, 0 or 1, from a slot that is a multiple of 64 on.

    Raises
    ------
    SettingError
        If their number is not a multiple of 64: no slot may get a choice that was not drawn.
    """
    if len(choices) % CHOICES_PER_WORD:
        raise SettingError("choices", len(choices), f"a multiple of {CHOICES_PER_WORD}")
    words = zeros(CHOICE_WORD, len(choices) // CHOICES_PER_WORD)
    words["choices"] = np.packbits(choices, bitorder="little").view("<u8")
    return words


def set_gates(
    board: Board,
    windows: Mapping[int, tuple[int, int]],
    outcomes: Mapping[int, tuple[Basis, int]] | None = None,
    outcomes_1: Mapping[int, tuple[Basis, int]] | None = None,
) -> None:
    """Open one gate window a channel and close all others; say if the receiver is active.

    Parameters
    ----------
    board
        A receiver's board.
    windows
        By channel: first phase accepted and first phase past the window, ps. Where the second
        is below the first, the window wraps round the end of the slot.
    outcomes
        By channel: basis and bit of a click; zero where not given. In an active receiver, those
        in slots with basis choice 0; a channel that is not given is not used then.
    outcomes_1
        Active receiver: by channel, basis and bit of a click in slots with basis choice 1. None: a
        passive receiver, in which slots have no basis choice.
    """
    active = outcomes_1 is not None
    board.write("receiver_kind", ReceiverKind.ACTIVE if active else ReceiverKind.PASSIVE)
    for channel in range(CHANNELS):
        for window in range(GATE_WINDOWS):
            name = f"gate_{channel}_{window}"
            if window == 0 and channel in windows:
                start, stop = windows[channel]
                basis, bit = (outcomes or {}).get(channel, (Basis.Z, 0))
                basis_1, bit_1 = (outcomes_1 or {}).get(channel, (Basis.Z, 0))
                board.write(
                    name,
                    start=start,
                    stop=stop,
                    enable=int(not active or channel in (outcomes or {})),
                    basis=int(basis),
                    bit=bit,
                    enable_1=int(channel in (outcomes_1 or {})),
                    basis_1=int(basis_1),
                    bit_1=bit_1,
                )
            else:
                board.write(name, 0)


def open_gates(board: Board, channels: Iterable[int], period: int) -> None:
    """Open a window over the whole slot on each of `channels`."""
    whole = (0, -(-period >> PERIOD_FRACTION_BITS) + 1)
    set_gates(board, dict.fromkeys(channels, whole))


def tag_records(
    times: npt.NDArray[np.int64], channels: npt.NDArray[np.integer], until: int | None = None
) -> Structured:
    """Clicks as records of the tag stream, with a time record at least each millisecond.

    Parameters
    ----------
    times
        Times, ps, rising; any epoch (taken modulo 2^48).
    channels
        Detector channels, the same length.
    until
        Nothing more comes before this time: a last time record says so. None adds none.

    Returns
    -------
    Structured
        ``tag`` records in time order.

    Raises
    ------
    SettingError
        If a channel does not exist on a receiver.
    """
    if len(channels) and not 0 <= int(channels.min()) <= int(channels.max()) < CHANNELS:
        raise SettingError(
            "channel", int(channels.max()), f"0 to {CHANNELS - 1}, the channels of a receiver"
        )
    marks: list[npt.NDArray[np.int64]] = []
    ends = [int(times[-1])] if len(times) else []
    ends += [until] if until is not None else []
    if ends and len(times):
        first = int(times[0]) // TIME_RECORD_PS + 1
        marks.append(np.arange(first, max(ends) // TIME_RECORD_PS + 1) * TIME_RECORD_PS)
    if until is not None:
        marks.append(np.array([until]))
    markers = np.concatenate([np.zeros(0, np.int64), *marks])
    records = zeros(TAG, len(times) + len(markers))
    # A time record goes before clicks of the same time: nothing comes *before* it.
    every = np.concatenate([markers, times])
    order = np.argsort(every, kind="stable")
    kinds = np.repeat([TagKind.TIME, TagKind.CLICK], [len(markers), len(times)])
    numbers = np.concatenate([np.zeros(len(markers), np.int64), channels])
    records["time"] = every[order] & TIME_MASK
    records["kind"] = kinds[order]
    records["channel"] = numbers[order]
    return records


def decoded_times(tags: Structured, period: int) -> npt.NDArray[np.int64]:
    """Times of decoded tags, counted from the beginning of slot 0.

    Parameters
    ----------
    tags
        Records with ``slot`` and ``phase``; slots below 2^41.
    period
        Slot period, ps in 20.44 fixed point.

    Returns
    -------
    numpy.ndarray
        ceil(slot x P) + phase, ps: exactly the times that were stamped, less the origin, where
        the slots had this one period; with tracking, times in the source's clock.
    """
    slots, half = tags["slot"].astype(np.int64), PERIOD_FRACTION_BITS // 2
    if len(slots) and not 0 <= int(slots.min()) <= int(slots.max()) < 1 << 41:
        raise SettingError("slot", int(slots.max()), "0 to 2^41 - 1")
    whole, fraction = divmod(period, 1 << PERIOD_FRACTION_BITS)
    mask = (1 << half) - 1
    low = slots * (fraction & mask)
    high = slots * (fraction >> half) + (low >> half)
    rounded = (high >> half) + ((high & mask | low & mask) > 0)
    return slots * whole + rounded + tags["phase"].astype(np.int64)


def send_frame(board: Board, time_ps: int) -> None:
    """Send a frame marker at `time_ps`: each block latches its counters as it passes.

    A board with inputs of its own puts it in place of its next time record instead.
    """
    if board.read("inputs"):
        board.write("frame_marker", 1)
        return
    marker = zeros(TAG, 1)
    marker["time"] = time_ps & TIME_MASK
    marker["kind"] = TagKind.FRAME
    board.send("tags", marker)


def read_histogram(board: Board) -> npt.NDArray[np.int64] | None:
    """Phase histograms since the last reading, shape (channels, bins).

    None if the board refuses: in key mode it lets out only aggregates of at least 10^4 clicks.
    """
    counts = _read(board, HistogramCommand.PHASES, CHANNELS * HISTOGRAM_BINS)
    return None if counts is None else counts.reshape(CHANNELS, HISTOGRAM_BINS)


def read_gaps(board: Board) -> npt.NDArray[np.int64] | None:
    """Clicks by the slots since the last of their channel, since the last reading.

    Shape (channels, 2, 64): outside the gate, inside; a bin is 2^gap_shift slots wide, the last
    holds all longer gaps. None if the board refuses.
    """
    counts = _read(board, HistogramCommand.GAPS, CHANNELS * 2 * GAP_BINS)
    return None if counts is None else counts.reshape(CHANNELS, 2, GAP_BINS)


def read_outcomes(board: Board) -> npt.NDArray[np.int64] | None:
    """Slots with clicks by the slots since the last one with any, since the last reading.

    Shape (3, 64): of one outcome, double clicks, cross clicks. None if the board refuses.
    """
    counts = _read(board, HistogramCommand.OUTCOMES, 4 * GAP_BINS)
    return None if counts is None else counts.reshape(4, GAP_BINS)[:3]


def _read(board: Board, command: HistogramCommand, count: int) -> npt.NDArray[np.int64] | None:
    if board.read("mode") == Mode.KEY:
        # A refusal would stay in the status register, where a refused command to a block belongs.
        clicks = "squash" if command is HistogramCommand.OUTCOMES else "slotter"
        if board.ledger(clicks)["out"] < KEY_MODE_HISTOGRAM_MINIMUM:
            return None
    board.write("histogram_command", command)
    board.run()
    words = board.receive("histogram")
    return words["count"].astype(np.int64) if len(words) == count else None


INSTRUMENT_CHAIN = ("slotter", "blanking", "choices", "gate")
"""Blocks of the tag path in instrument mode, in order."""
CHAIN = (*INSTRUMENT_CHAIN, "squash", "announcer")
"""Blocks of the tag path in key mode, in order."""


def check_ledgers(
    board: Board, blocks: Iterable[str], at_frame: bool = False, before_block: int = 0
) -> dict[str, int]:
    """Check that no block of the tag path lost or invented anything.

    Each block's ``in`` must be ``out`` plus all it dropped, and the ``in`` of the block after
    it. The tag path must be empty but for what squash holds of an open slot.

    Parameters
    ----------
    board
        A receiver's board.
    blocks
        Blocks of `CHAIN` in use, in order.
    at_frame
        Check what the last frame marker found instead of the present counters.
    before_block
        Detections that had left the squash when the block was opened: the announcer counts from
        there, all others from the last restart of the tag path.

    Returns
    -------
    dict of str to int
        What was dropped, by ``block: reason``; the sum accounts for every click.

    Raises
    ------
    BoardError
        If a counter does not add up.
    """
    dropped: dict[str, int] = {}
    former: tuple[str, int] | None = None
    for block in blocks:
        counts = board.ledger(block, at_frame)
        reasons = {
            counter.name: counts[counter.name]
            for counter in LEDGERS[block][1]
            if counter.name not in ("in", "out") and not counter.event
        }
        held = counts["in"] - counts["out"] - sum(reasons.values())
        if held not in ((0, 1) if block == "squash" else (0,)):
            raise BoardError(f"{board.name}: {block} has {held} clicks unaccounted: {counts}")
        if former is not None:
            name, given = former
            given -= before_block if block == "announcer" else 0
            if given != counts["in"]:
                raise BoardError(
                    f"{board.name}: {name} let {given} out, {block} took {counts['in']} in"
                )
        former = (block, counts["out"])
        dropped |= {f"{block}: {reason}": count for reason, count in reasons.items()}
    return dropped
