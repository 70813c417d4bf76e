# SPDX-License-Identifier: Apache-2.0
"""Twins of `keyrail_gateware.gaps`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from keyrail.contract import CHANNELS, GAP_BINS, GATE_WINDOWS, SLOT_BITS, TagKind
from keyrail.layouts import Structured

from .count_memory import CountMemory
from .gate import Window

_MASK = (1 << SLOT_BITS) - 1


def _bins(gaps: npt.NDArray[np.int64], shift: int) -> npt.NDArray[np.int64]:
    bins: npt.NDArray[np.int64] = np.minimum(gaps >> shift, GAP_BINS - 1)
    return bins


class Gaps(CountMemory):
    """Count raw clicks by channel, by whether they fall outside the gate, and by their gap.

    Parameters
    ----------
    windows
        The gate's 16 windows.
    shift
        A bin is 2^shift slots wide.
    channels
        Channels that are counted.
    """

    def __init__(
        self,
        windows: Sequence[Window] = (Window(),) * (CHANNELS * GATE_WINDOWS),
        shift: int = 0,
        channels: int = CHANNELS,
    ) -> None:
        super().__init__(CHANNELS * 2 * GAP_BINS)
        self.windows = tuple(windows)
        self.shift = shift
        self._channels = channels
        self._last: dict[int, int] = {}

    def process(self, tags: Structured) -> None:
        """Count a chunk of ``slot_tag`` records."""
        click = tags["kind"] == TagKind.CLICK
        for channel in range(self._channels):
            here = click & (tags["channel"] == channel)
            slots = tags["slot"][here].astype(np.int64)
            if not len(slots):
                continue
            phases = tags["phase"][here]
            inside = np.zeros(len(slots), bool)
            for window in self.windows[channel * GATE_WINDOWS :][:GATE_WINDOWS]:
                after, before = phases >= window.start, phases < window.stop
                hit = after | before if window.stop < window.start else after & before
                if window.enable or window.enable_1:
                    inside |= hit
            known = channel in self._last
            gaps = (slots - np.concatenate([[self._last.get(channel, 0)], slots[:-1]])) & _MASK
            rows = (2 * channel + inside) * GAP_BINS
            self.count((rows + _bins(gaps, self.shift))[0 if known else 1 :])
            self._last[channel] = int(slots[-1])


class Outcomes(CountMemory):
    """Count slots with clicks by what they are, and by the slots since the last such slot.

    Parameters
    ----------
    shift
        A bin is 2^shift slots wide.
    """

    def __init__(self, shift: int = 0) -> None:
        super().__init__(4 * GAP_BINS)
        self.shift = shift
        self._last: int | None = None

    def process(
        self,
        slots: npt.NDArray[np.integer],
        double: npt.NDArray[np.bool_],
        cross: npt.NDArray[np.bool_],
    ) -> None:
        """Count the slots that the squash has closed."""
        if not len(slots):
            return
        known = self._last is not None
        after = slots.astype(np.int64)
        steps = (after - np.concatenate([[self._last or 0], after[:-1]])) & _MASK
        numbers = (double + 2 * cross) * GAP_BINS + _bins(steps, self.shift)
        self.count(numbers[0 if known else 1 :])
        self._last = int(slots[-1])
