# SPDX-License-Identifier: Apache-2.0
"""Twin of `keyrail_gateware.condition`."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Times = npt.NDArray[np.int64]


class Settings(NamedTuple):
    """Settings of an input: fields of its register, the delay signed."""

    enable: int = 1
    delay: int = 0
    paralysable: int = 0
    dead_time: int = 0
    divider: int = 0


class Condition:
    """Enable, dead time, divider and delay of one input, event for event as the gateware.

    Parameters
    ----------
    settings
        Settings; those after reset if not given.
    key_mode
        True: neither dead time nor divider.
    """

    def __init__(self, settings: Settings | None = None, key_mode: bool = False) -> None:
        self.settings, self.key_mode = settings or Settings(), key_mode
        self.counts = dict.fromkeys(("in", "out", "disabled", "dead", "divided"), 0)
        self._live_at: int | None = None
        self._left = 0

    def process(self, times: Times) -> tuple[Times, npt.NDArray[np.bool_]]:
        """Events that pass, delayed (unwrapped times, ps), and which of `times` they are."""
        settings, counts = self.settings, self.counts
        counts["in"] += len(times)
        passes = np.zeros(len(times), np.bool_)
        if not settings.enable:
            counts["disabled"] += len(times)
            return times[:0], passes
        divider = 0 if self.key_mode else settings.divider
        for index, time in enumerate(times.tolist()):
            dead = not self.key_mode and self._live_at is not None and time < self._live_at
            if not dead or settings.paralysable:
                self._live_at = time + settings.dead_time
            if dead:
                counts["dead"] += 1
            elif self._left:
                self._left -= 1
                counts["divided"] += 1
            else:
                self._left = max(divider - 1, 0)
                counts["out"] += 1
                passes[index] = True
        return times[passes] + settings.delay, passes
