# SPDX-License-Identifier: Apache-2.0
"""Simulated light between two simulated boards: the states of the slots go in, clicks come out.

Whatever passes here is secret (the states are the key), and exists for simulated boards alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from keyrail.messages import ProtocolError


class LightError(ProtocolError):
    """The light broke off: the block is lost, and light begins anew."""


@dataclass(frozen=True)
class Clicks:
    """Clicks that come out for a run of slots.

    Attributes
    ----------
    first_slot, slots
        The slots emitted; clicks that nothing can come before any more are among them.
    times, channels
        Stamped clicks, ps, in time order. Secret.
    """

    first_slot: int
    slots: int
    times: npt.NDArray[np.int64] = field(repr=False)
    channels: npt.NDArray[np.uint8] = field(repr=False)

    @property
    def end_slot(self) -> int:
        """Slot behind the last one."""
        return self.first_slot + self.slots


class SenderLight(Protocol):
    """The sender's end."""

    def restart(self, epoch: int) -> None:
        """Begin anew at slot 0."""
        ...

    def ready(self) -> bool:
        """Whether more slots may be emitted. LightError if the light broke off."""
        ...

    def emit(self, first_slot: int, states: npt.NDArray[np.uint8]) -> None:
        """Send the states of slots in a row."""
        ...


class ReceiverLight(Protocol):
    """The receiver's end."""

    def fetch(self, epoch: int) -> Clicks | None:
        """Next clicks of that epoch; None while there are none. LightError if it broke off."""
        ...


class Detector(Protocol):
    """What turns states into clicks; `keyrail_sim.photonics.Photonics` does."""

    def detect(
        self, states: npt.NDArray[np.uint8], first_slot: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
        """Clicks of slots in a row."""
        ...


class Fibre:
    """Simulated light within one process; both ends.

    Parameters
    ----------
    world
        Makes the light of an epoch.
    depth
        Runs of slots that are under way at most.
    """

    def __init__(self, world: Callable[[int], Detector], depth: int = 2) -> None:
        self._world, self._depth = world, depth
        self._queue: deque[Clicks] = deque()
        self._detector: Detector | None = None
        self.epoch = -1

    def restart(self, epoch: int) -> None:
        """Begin anew at slot 0."""
        self._queue.clear()
        self._detector, self.epoch = self._world(epoch), epoch

    def ready(self) -> bool:
        """Whether more slots may be emitted."""
        return len(self._queue) < self._depth

    def emit(self, first_slot: int, states: npt.NDArray[np.uint8]) -> None:
        """Send the states of slots in a row."""
        if self._detector is None:
            raise LightError("the light has not begun")
        times, channels = self._detector.detect(states, first_slot)
        self._queue.append(Clicks(first_slot, len(states), times, channels))

    def fetch(self, epoch: int) -> Clicks | None:
        """Next clicks of that epoch."""
        return self._queue.popleft() if self._queue and epoch == self.epoch else None
