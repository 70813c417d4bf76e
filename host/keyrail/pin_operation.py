# SPDX-License-Identifier: Apache-2.0
"""Stations in operation on boards whose light is at their own pins: modulators and detectors.

A paced source begins with a block and ends with it, and slot numbers begin anew with each. So the
published training slots, those that the receiver takes to learn from them, and the block's are one
run of the source: slot k is slot k on both sides from the first training slot on.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from keyrail import messages, tag_input, tag_path
from keyrail.board import Board, BoardError
from keyrail.calibration import calibrate, run_in_background
from keyrail.contract import (
    PERIOD_FRACTION_BITS,
    STATES_PER_WORD,
    TIME_BITS,
    Mode,
    TagKind,
)
from keyrail.errors import SettingError
from keyrail.messages import ProtocolError
from keyrail.operation import (
    GUARD_SLOTS,
    BlockChannel,
    ReceiverOperation,
    SenderOperation,
    Step,
)
from keyrail.source import DECOY_BIT, whole_words
from keyrail.station import ReceiverStation, SenderStation
from keyrail.training import training_states
from keyrail.tuning import BLANKING_SLOTS, NOMINAL_PERIOD_PS, Tuning, tuned

M = TypeVar("M", messages.Listening, messages.Trained)

PUBLISHED = DECOY_BIT
"""State of the slots between training and block: published, and in no tally."""
LATE_PS = 2_000_000_000
"""Clicks of slots that have left come within this, ps: longer than the cable holds them back."""


@dataclass(frozen=True)
class SourcePins:
    """How a sender's board drives its modulators.

    Parameters
    ----------
    clocks
        Clocks of a slot, 1 to 256.
    period_ps
        Period of a slot, ps, as the board's clock makes it.
    outputs
        Fields of the register of each modulator output that is used, from output 0 on.
    frame_words_log2
        An output with ``frame`` is high in the first slot of each 16 x 2^this slots; 0: never.
    gap_slots
        Slots between training and block, in which the receiver learns, a multiple of 16.
    ahead_slots
        States that wait for the cable, at most.
    """

    clocks: int = 1
    period_ps: int = NOMINAL_PERIOD_PS
    outputs: tuple[dict[str, int], ...] = ()
    frame_words_log2: int = 0
    gap_slots: int = 500_000_000
    ahead_slots: int = 1 << 24

    def apply(self, board: Board) -> None:
        """Set the source's outputs; a board without an output that is wanted is refused.

        Raises
        ------
        BoardError
            If there are fewer outputs.
        SettingError
            If a field does not fit.
        """
        count = board.read_fields("source_configuration")["modulators"]
        if len(self.outputs) > count:
            raise BoardError(f"{board.name}: {len(self.outputs)} modulators set, it has {count}")
        for index in range(count):
            fields = self.outputs[index] if index < len(self.outputs) else {}
            board.write(f"modulator_{index}", **fields)
        board.write("source_frame", words_log2=self.frame_words_log2)


@dataclass(frozen=True)
class DetectorPins:
    """How a receiver's board takes its detectors.

    Parameters
    ----------
    period_ps
        Period of the sender's slots, right to 100 ppm.
    delays_ps
        Delay of each detector's input, ps, from channel 0 on; 0 where not given.
    """

    period_ps: int = NOMINAL_PERIOD_PS
    delays_ps: tuple[int, ...] = ()

    def apply(self, board: Board) -> None:
        """Set the inputs of the detectors, and switch all others off.

        Raises
        ------
        BoardError
            If the board has no inputs of its own, or too few.
        """
        delays = dict(enumerate(self.delays_ps))
        inputs = {n: tag_input.Input(delay_ps=delays.get(n, 0)) for n in self._inputs()}
        tag_input.set_inputs(board, inputs)

    def calibrate(self, board: Board) -> None:
        """Calibrate the detectors' inputs, from the oscillator on the chip.

        Takes some 50 ms an input, in which it measures nothing. Nothing runs in the background
        afterwards: training slots are measured as gated tags, which it would not spare. Does
        nothing on a board whose inputs come stamped.

        Raises
        ------
        CalibrationError
            If there is no new table: what an input stamps before its first is no click.
        """
        if board.read_fields("tdc_status")["ready"]:
            run_in_background(board, oscillator=False)
            for one in calibrate(board, self._inputs()):
                one.check()

    def _inputs(self) -> list[int]:
        return sorted({*tag_path.OUTCOMES, *range(len(self.delays_ps))})


class Listener:
    """Clicks of a board's own inputs in instrument mode, each with its time.

    Parameters
    ----------
    board
        A receiver's board with inputs.
    period_ps
        Slot period that times are read by.

    Attributes
    ----------
    origin_ps
        What times are counted from, in the board's own.
    now_ps
        Time that the board has reached; 0 before it is known.
    """

    def __init__(self, board: Board, period_ps: int) -> None:
        self._board, self._period_ps = board, period_ps
        self.origin_ps = self.now_ps = 0
        none = np.zeros(0, np.int64)
        self._times, self._channels = [none], [none.astype(np.uint8)]

    def begin(self) -> Step:
        """Switch to instrument mode, learn the board's time and open the gates."""
        board, period = self._board, self._period_ps << PERIOD_FRACTION_BITS
        board.write("mode", Mode.INSTRUMENT)
        tag_path.set_tracking(board, None)
        tag_path.set_blanking(board, BLANKING_SLOTS)
        tag_path.set_gates(board, {})
        board.write("tag_input", real_time=1)
        while not self.now_ps:
            # The board's time is on one side or the other of half of its range.
            for self.origin_ps in (0, 1 << TIME_BITS - 1):
                tag_path.set_slots(board, period, self.origin_ps)
                board.receive("gated")
                while (reached := self._take()) is None:
                    yield
                if reached > 0:
                    self.now_ps = reached
                    break
        tag_path.open_gates(board, tag_path.OUTCOMES, period)

    def _take(self) -> int | None:
        """Take what has come; returns the time of the last time record, if there was one."""
        gated = self._board.receive("gated")
        times = gated["slot"].astype(np.int64) * self._period_ps + gated["phase"].astype(np.int64)
        clicks = gated["kind"] == TagKind.CLICK
        self._times.append(times[clicks])
        self._channels.append(gated["channel"][clicks])
        marks = times[gated["kind"] == TagKind.TIME]
        return int(marks[-1]) if len(marks) else None

    def take(self) -> bool:
        """Take what has come; returns whether the board's time has gone on."""
        reached = self._take()
        if reached is not None:
            self.now_ps = reached
        return reached is not None

    def end(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
        """Close the gates; times since `origin_ps`, ps, and channels of all clicks."""
        tag_path.set_gates(self._board, {})
        return np.concatenate(self._times), np.concatenate(self._channels)


class PinSenderRunner(SenderOperation):
    """The sender's station in operation, on a board that drives modulators.

    Parameters
    ----------
    pins
        How it drives them.
    """

    def __init__(self, *arguments: Any, pins: SourcePins, **options: Any) -> None:
        super().__init__(*arguments, **options)
        if pins.gap_slots % STATES_PER_WORD:
            raise SettingError("gap_slots", pins.gap_slots, f"multiples of {STATES_PER_WORD}")
        self._pins = pins

    def _operate(self) -> Step:
        yield from self._begin()
        while self._goes_on():
            self._require_pads()
            channel = self._new_channel(self._last_block + 1)
            yield from self._guarded(channel, self._block(channel))

    def _quantum(self, channel: BlockChannel) -> Generator[None, None, SenderStation]:
        board, plan, pins = self.board, self.plan, self._pins
        self._epoch = (self._epoch + 1) % (1 << 32)
        station = SenderStation(board, channel, self.sources("states").label, clocks=pins.clocks)
        self._enter(channel, station)
        pins.apply(board)
        training = whole_words(plan.training_slots)
        first = training + pins.gap_slots
        # In this order: the receiver is not to open a block that it has not been trained for.
        self._control.send(messages.Train(self._epoch, 0, plan.training_slots))
        on_host = self._on_host(self._share)
        station.open(channel.block, first, first + plan.block_slots - 1, on_host, 0)
        while self._heard(messages.Listening) is None:
            channel.require_open()
            yield
        states = np.full(training, PUBLISHED, np.uint8)
        states[: plan.training_slots] = training_states(plan.training_slots)
        for begin in range(0, training, plan.chunk_slots):
            yield from self._feed(channel, station, states[begin : begin + plan.chunk_slots])
        yield from self._fill(channel, station, training, first)
        for begin in range(0, plan.block_slots, plan.chunk_slots):
            slots = min(plan.chunk_slots, plan.block_slots - begin)
            padded = np.full(whole_words(slots), PUBLISHED, np.uint8)
            padded[:slots] = self._draw_states(slots)
            yield from self._feed(channel, station, padded)
        while not board.read_fields("source_status")["ended"]:
            self._keep_up(channel, station)
            yield
        self._keep_up(channel, station)
        return station

    def _fill(
        self, channel: BlockChannel, station: SenderStation, training: int, first: int
    ) -> Step:
        """Feed published states from training to block, while the receiver learns its slots."""
        told = False
        trained: messages.Trained | None = None
        fed = training
        while fed < first or not told:
            if not told and self.board.read("states_next_slot") >= training:
                self._control.send(messages.TrainingSent(self._epoch))
                told = True
            if trained is None and (trained := self._heard(messages.Trained)) is not None:
                if not trained.found:
                    raise ProtocolError(trained.reason)
                self._share = trained.detections_per_slot
            slots = min(self.plan.chunk_slots, first - fed)
            if slots:
                yield from self._feed(channel, station, np.full(slots, PUBLISHED, np.uint8))
                fed += slots
            else:
                yield
        if trained is None or not channel.pending:
            raise ProtocolError(
                f"the receiver was not ready for the block after {first - training:,} slots; "
                "a longer gap is needed"
            )
        channel.expect(messages.BlockOpened)

    def _feed(
        self, channel: BlockChannel, station: SenderStation, states: npt.NDArray[np.uint8]
    ) -> Step:
        """Feed the states of the next slots as soon as few enough wait."""
        words = self._pins.ahead_slots // STATES_PER_WORD
        if self.board.pending("states") > words:
            # Many at a time: a look at the board takes as long as some thousand slots.
            while self.board.pending("states") > words // 2:
                self._keep_up(channel, station)
                yield
        station.emit(states)
        self.moved = True

    def _keep_up(self, channel: BlockChannel, station: SenderStation) -> None:
        channel.require_open()
        self._look_up(channel, station)
        self.moved |= station.keep_up()
        if self.board.read_fields("source_status")["starved"]:
            raise BoardError(f"{self.board.name}: states came too late, and the source stopped")

    def _heard(self, kind: type[M]) -> M | None:
        """The receiver's word on this epoch, if it has come; that on a former one is past."""
        while self._control.pending:
            message = self._control.receive()
            if isinstance(message, kind) and message.epoch == self._epoch:
                return message
        return None


class PinReceiverRunner(ReceiverOperation):
    """The receiver's station in operation, on a board with detectors at its inputs.

    Parameters
    ----------
    pins
        How it takes them.
    """

    def __init__(self, *arguments: Any, pins: DetectorPins, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._pins = pins

    def _trained(self, train: messages.Train) -> Generator[None, None, Tuning | None]:
        self._tuning = None
        # Between blocks: as the board warms up, so do its delay lines.
        self._pins.calibrate(self.board)
        listener = Listener(self.board, self._pins.period_ps)
        yield from listener.begin()
        self._control.send(messages.Listening(train.epoch))
        sent = False
        until = 0
        while not sent or listener.now_ps < until:
            if self._control.pending:
                message = self._control.receive()
                if isinstance(message, messages.Train):
                    # The sender gave its block up, and begins anew.
                    listener.end()
                    yield from self._train(message)
                    return None
                if isinstance(message, messages.TrainingSent) and message.epoch == train.epoch:
                    sent, until = True, listener.now_ps + LATE_PS
            self.moved |= listener.take()
            yield
        times, channels = listener.end()
        pattern = training_states(train.slots)
        found = tuned(times, channels, pattern, train.first_slot, self._pins.period_ps)
        return replace(found, origin_ps=found.origin_ps + listener.origin_ps)

    def _measure(
        self,
        channel: BlockChannel,
        station: ReceiverStation,
        tuning: Tuning,
        block: messages.OpenBlock,
    ) -> Step:
        board = self.board
        while board.read("tracker_slot") <= block.last_slot + GUARD_SLOTS:
            channel.require_open()
            self.moved |= station.collect()
            yield
        board.run()
        station.collect(block.last_slot + 1)
        tuning.check_lock(board)
        before = board.ledger("slotter")["in"]
        tag_path.send_frame(board, 0)
        while board.ledger("slotter", at_frame=True)["in"] < before:
            yield
        # The announcer counts from the block's opening, which no frame marks.
        tag_path.check_ledgers(board, tag_path.CHAIN[:-1], at_frame=True)
