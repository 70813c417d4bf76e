# SPDX-License-Identifier: Apache-2.0
"""Two boards whose light is at their pins, in time: both stations' gateware, and a fibre between.

The sender's source is paced: a slot lasts its clocks, and states that come too late stop it. What
it emits becomes clicks at once, which reach the receiver at their own time, as from inputs of its
own: nothing waits for the host.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from keyrail import tag_path
from keyrail.board import Board
from keyrail.contract import STATE_WORD, STATES_PER_WORD, BlockCommand, Role, Stream, TagKind
from keyrail.layouts import unpack
from keyrail.operation import Plan, ReceiverOperation, SenderOperation
from keyrail.pin_operation import (
    DetectorPins,
    PinReceiverRunner,
    PinSenderRunner,
    SourcePins,
)
from keyrail.source import PRESENT_BIT, word_states
from keyrail_sim.model_board import ModelReceiver
from keyrail_sim.photonics import LinkSettings, Photonics
from keyrail_sim.two_stations import SHORT_PLAN, TwoStations
from keyrail_sim.verilated import CLOCK_PS, Design, VerilatedBoard

ACCESS_CLOCKS = 6
"""Clocks of a register access at most, in which a simulated board takes no word of states."""
EPOCH_PS = (1 << 47) + 12_345_678_901
"""The receiver's time when the simulation begins: in the upper half of its range."""


class PinSender(VerilatedBoard):
    """A sender whose emitted states are seen, as through its modulators."""

    def __init__(self) -> None:
        self.paced_clocks = 1
        self._restart()
        super().__init__(Design(Role.SENDER), "sim:alice")

    def _restart(self) -> None:
        self._fed: list[npt.NDArray[np.uint8]] = []
        self.slots_fed = 0
        self.began: int | None = None
        self.stopped = False
        self.clocks = 1

    def send_bytes(self, stream: Stream, data: npt.NDArray[np.uint8]) -> None:
        super().send_bytes(stream, data)
        if stream.name == "states":
            self._fed.append(word_states(unpack(STATE_WORD, data)))
            self.slots_fed += self._fed[-1].size

    def emitted(self, first: int, last: int) -> npt.NDArray[np.uint8]:
        """States of slots of this run of the source, from `first` to before `last`."""
        self._fed = [np.concatenate(self._fed)]
        return self._fed[0][first:last] | np.uint8(PRESENT_BIT)

    def write_word(self, offset: int, value: int) -> None:
        self._between_words()
        super().write_word(offset, value)
        command = self.registers["block_command"].offset
        if offset == command and value == BlockCommand.OPEN:
            self._restart()
        if offset == self.registers["source"].offset:
            self.paced_clocks = self.split("source", value)["clocks"] + 1

    def read_word(self, offset: int) -> int:
        self._between_words()
        return super().read_word(offset)

    def _between_words(self) -> None:
        # A cable would have words of states waiting on the board meanwhile.
        if self.began is not None:
            word = STATES_PER_WORD * self.clocks
            left = word - (self.cycles - self.began) % word
            if left <= ACCESS_CLOCKS:
                super().step(left)

    def step(self, clocks: int) -> None:
        """Let so many clocks pass; the clock in which the source begins is found."""
        while self.began is None and clocks and self.slots_fed:
            before = self.pending("states")
            super().step(1)
            clocks -= 1
            if self.pending("states") < before:
                self.began, self.clocks = self.cycles, self.paced_clocks
        super().step(clocks)


class _Inputs(Board):
    """A receiver that says it has inputs of its own, and is given what they see."""

    INPUTS = 6
    _marker = False
    until = EPOCH_PS

    def read(self, name: str) -> int:
        return self.INPUTS if name == "inputs" else super().read(name)

    def write(self, name: str, value: int = 0, **fields: int) -> None:
        if name == "frame_marker":
            self._marker = True
        else:
            super().write(name, value, **fields)

    def see(
        self, times: npt.NDArray[np.int64], channels: npt.NDArray[np.uint8], until: int
    ) -> None:
        """Take clicks, ps in time order; nothing more comes before `until`."""
        self.until = max(self.until, until, int(times.max(initial=0)))
        records = tag_path.tag_records(times, channels, self.until)
        if self._marker:
            records["kind"][-1] = TagKind.FRAME
            self._marker = False
        self.send("tags", records)

    @abstractmethod
    def pass_time(self, clocks: int) -> None:
        """Let so many clocks pass."""


class PinReceiver(_Inputs, VerilatedBoard):
    """The gateware, which takes each click at its time."""

    def __init__(self) -> None:
        super().__init__(Design(Role.RECEIVER), "sim:bob")
        self.real_time()
        self._began = self.cycles
        self._passed = 0
        self.see(np.zeros(0, np.int64), np.zeros(0, np.uint8), EPOCH_PS)

    def pass_time(self, clocks: int) -> None:
        # Register accesses and runs have taken clocks of their own.
        self._passed += clocks
        self.step(max(0, self._passed - (self.cycles - self._began)))


class PinReceiverTwin(_Inputs, ModelReceiver):
    """The numpy twin, which knows no time of its own; the same bytes, faster."""

    def __init__(self) -> None:
        super().__init__("sim-model:bob")

    def pass_time(self, clocks: int) -> None:
        self.run()


class World:
    """Both boards in time, and the light from one to the other.

    Parameters
    ----------
    link
        The light; its period is that of the source's slots.
    seed
        Of nature.
    gateware
        The receiver is the gateware too, not its twin.
    """

    def __init__(self, link: LinkSettings, seed: int = 1, gateware: bool = False) -> None:
        self._link, self._seed, self._runs = replace(link, origin_ps=0), seed, 0
        self.sender = PinSender()
        self.receiver = PinReceiver() if gateware else PinReceiverTwin()
        self.boards = {Role.SENDER: self.sender, Role.RECEIVER: self.receiver}
        self._start = self._reached = self.sender.cycles
        self._light: Photonics | None = None
        self._of: int | None = None
        self._base = self._slot = 0

    def advance(self, clocks: int) -> None:
        """Let so many clocks pass at both boards."""
        sender, receiver = self.sender, self.receiver
        sender.step(clocks)
        passed = sender.cycles - self._start
        until = EPOCH_PS + passed * CLOCK_PS
        times, channels = np.zeros(0, np.int64), np.zeros(0, np.uint8)
        if sender.began is not None and sender.began != self._of:
            self._of, self._slot, self._runs = sender.began, 0, self._runs + 1
            period = sender.clocks * CLOCK_PS
            self._light = Photonics(
                replace(self._link, period_ps=period), self._seed * (1 << 32) + self._runs
            )
            began = EPOCH_PS + (sender.began - self._start) * CLOCK_PS
            self._base = max(began, receiver.until)
        if self._light is not None:
            times, channels, until = self._shine(self._light)
        receiver.see(times, channels, until)
        receiver.pass_time(sender.cycles - self._reached)
        self._reached = sender.cycles

    def _shine(self, light: Photonics) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8], int]:
        """Clicks of the slots that have passed, and the time before which nothing more comes."""
        sender = self.sender
        assert self._of is not None
        end = (sender.cycles - self._of) // sender.clocks
        states = np.zeros(end - self._slot, np.uint8)  # dark behind the last state
        if sender.began == self._of and not sender.stopped:
            lit = sender.emitted(self._slot, end)
            states[: len(lit)] = lit
            sender.stopped = len(lit) < len(states)
        times, channels = light.detect(states, self._slot)
        self._slot = end
        until = int(light.settings.slot_start(end)) - 2
        return times + self._base, channels, self._base + until


class PinStations(TwoStations):
    """Both stations in operation on boards whose light is at their pins.

    Parameters
    ----------
    folder, plan, blocks, seed
        As for `TwoStations`.
    pins
        Of the sender; the receiver knows the period of its slots.
    clocks_a_step
        Clocks that pass at the boards in a step of the stations.
    gateware
        The receiver is the gateware too, not its twin.
    """

    def __init__(
        self,
        folder: Path,
        plan: Plan = SHORT_PLAN,
        *,
        pins: SourcePins,
        blocks: int | None = None,
        clocks_a_step: int = 1 << 14,
        seed: int = 1,
        gateware: bool = False,
    ) -> None:
        self._pins, self._clocks_a_step = pins, clocks_a_step
        link = LinkSettings(
            distance_km=0.0,
            intensities=plan.intensities,
            misalignment=0.0,
            dark_counts_per_slot=1e-7,
        )
        self.world = World(link, seed, gateware)
        boards: dict[Role, Board] = dict(self.world.boards)
        super().__init__(
            folder, plan, blocks=blocks, seed=seed, board=lambda role, name: boards[role]
        )

    def _runner(
        self, role: Role, common: tuple[Any, ...], options: dict[str, Any]
    ) -> SenderOperation | ReceiverOperation:
        if role is Role.SENDER:
            return PinSenderRunner(*common, pins=self._pins, **options)
        detectors = DetectorPins(self._pins.period_ps)
        detectors.apply(common[0])
        return PinReceiverRunner(*common, pins=detectors, **options)

    def step(self) -> None:
        """Advance clock, boards and both stations."""
        self.world.advance(self._clocks_a_step)
        super().step()
