# SPDX-License-Identifier: Apache-2.0
"""Correlation of two channels: how often a click follows another by how long."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from keyrail.errors import SettingError

Times = npt.NDArray[np.int64]

_PAIRS = 1 << 22
"""Pairs treated at once."""


class Correlation:
    """Histogram of the delays between the clicks of two channels, all pairs, exactly.

    Every pair of a start and a stop counts, not only neighbours: a multi-start multi-stop
    histogram, the unnormalised second-order correlation. Delay d is in bin
    floor((d - first_ps) / bin_ps). How the tags are cut into calls of `add` does not matter.

    Parameters
    ----------
    start, stop
        Channels. Where they are the same, a click is not paired with itself.
    bin_ps
        Width of a bin, ps, at least 1.
    bins
        How many, 1 to 10^7.
    first_ps
        Delay at which bin 0 begins, ps; negative for stops before the start.

    Raises
    ------
    SettingError
        If a setting is out of its range.
    """

    def __init__(self, start: int, stop: int, bin_ps: int, bins: int, first_ps: int = 0) -> None:
        for name, value, low, high in (
            ("start", start, 0, 63),
            ("stop", stop, 0, 63),
            ("bin_ps", bin_ps, 1, 1 << 40),
            ("bins", bins, 1, 10**7),
            ("first_ps", first_ps, -(1 << 60), 1 << 60),
        ):
            if not low <= value <= high:
                raise SettingError(name, value, f"{low} to {high}")
        self.start, self.stop = start, stop
        self.bin_ps, self.bins, self.first_ps = bin_ps, bins, first_ps
        self.clear()

    def clear(self) -> None:
        """Begin anew."""
        self._counts: npt.NDArray[np.int64] = np.zeros(self.bins, np.int64)
        self._starts: Times = np.zeros(0, np.int64)
        self._stops: Times = np.zeros(0, np.int64)
        self._first: int | None = None
        self._last = 0
        self.start_count = self.stop_count = 0

    def add(self, times: Times, channels: npt.NDArray[np.integer]) -> None:
        """Take a chunk of tags.

        Parameters
        ----------
        times
            ps, not falling, nor before the last chunk's end.
        channels
            As many channel numbers; others than the two are ignored.

        Raises
        ------
        ValueError
            If times fall, or the two lengths differ.
        """
        if len(times) != len(channels):
            raise ValueError(f"{len(times)} times, {len(channels)} channels; as many of both")
        if len(times) == 0:
            return
        times = times.astype(np.int64)
        falls = (np.diff(times) < 0).any() or (self._first is not None and times[0] < self._last)
        if falls:
            raise ValueError("times fall; allowed are tags in time order")
        if self._first is None:
            self._first = int(times[0])
        self._last = int(times[-1])
        starts, stops = times[channels == self.start], times[channels == self.stop]
        self.start_count += len(starts)
        self.stop_count += len(stops)
        self._pair(np.concatenate([self._starts, starts]), stops)
        self._pair(starts, self._stops)
        zero = -self.first_ps // self.bin_ps
        if self.start == self.stop and 0 <= zero < self.bins:
            self._counts[zero] -= len(starts)
        # What may still meet a tag to come.
        end = self.first_ps + self.bins * self.bin_ps
        kept = np.concatenate([self._starts, starts])
        self._starts = kept[kept > self._last - end]
        kept = np.concatenate([self._stops, stops])
        self._stops = kept[kept >= self._last + self.first_ps]

    def _pair(self, starts: Times, stops: Times) -> None:
        low = np.searchsorted(stops, starts + self.first_ps)
        high = np.searchsorted(stops, starts + (self.first_ps + self.bins * self.bin_ps))
        ends = np.cumsum(high - low)
        at = 0
        while at < len(starts):
            done = int(ends[at - 1]) if at else 0
            to = max(at + 1, int(np.searchsorted(ends, done + _PAIRS)))
            number = high[at:to] - low[at:to]
            first = np.repeat(low[at:to] - (ends[at:to] - number - done), number)
            delays = stops[first + np.arange(len(first))] - np.repeat(starts[at:to], number)
            self._counts += np.bincount(
                (delays - self.first_ps) // self.bin_ps, minlength=self.bins
            )
            at = to

    def get_index(self) -> Times:
        """Delay at which each bin begins, ps, shape (bins,)."""
        return self.first_ps + self.bin_ps * np.arange(self.bins, dtype=np.int64)

    def get_data(self) -> npt.NDArray[np.int64]:
        """Pairs in each bin, shape (bins,)."""
        return self._counts.copy()

    def get_normalised(self) -> npt.NDArray[np.float64]:
        """g2: pairs over those that independent, even clicks of the same rates would give.

        counts x T / (N_start x N_stop x bin), T from the first tag to the last; nan before there
        are two tags at different times.
        """
        span = self._last - (self._first or 0)
        chance = self.start_count * self.stop_count * self.bin_ps
        if span <= 0 or not chance:
            return np.full(self.bins, np.nan)
        return self._counts.astype(np.float64) * (span / chance)
