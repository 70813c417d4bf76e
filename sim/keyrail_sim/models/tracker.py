# SPDX-License-Identifier: Apache-2.0
"""Twin of `keyrail_gateware.tracker`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from keyrail.contract import (
    CHANNELS,
    PERIOD_FRACTION_BITS,
    PERIOD_MINIMUM_PS,
    RECIPROCAL_FRACTION_BITS,
    SLOT_BITS,
    Role,
    TagKind,
    registers,
)
from keyrail.layouts import Structured

from .ledger import Ledger

_MASK = (1 << SLOT_BITS) - 1
_FRACTION = PERIOD_FRACTION_BITS
_ERROR_FRACTION = 16
_MOST = (1 << 24) - 1
"""Clicks that a window counts."""
_GOOD_MOST = 15


@dataclass(frozen=True)
class TrackerSettings:
    """Registers of the loop, by their names without ``tracker_``; off by default."""

    enable: int = 0
    window_log2: int = 14
    phase_shift: int = 2
    period_shift: int = 6
    limit_log2: int = 13
    threshold: int = 6
    lock_windows: int = 3
    minimum: int = 16
    gate: int = 0
    holdover: int = _MASK
    channels: int = 0
    targets: tuple[int, ...] = (0,) * CHANNELS

    @staticmethod
    def from_registers(values: Mapping[str, int]) -> TrackerSettings:
        """Settings from the values of a receiver's registers."""
        control, value = {}, values["tracker_control"]
        for field in registers(Role.RECEIVER)["tracker_control"].fields:
            control[field.name] = value & ((1 << field.bits) - 1)
            value >>= field.bits
        return TrackerSettings(
            **control,
            minimum=values["tracker_minimum"],
            gate=values["tracker_gate"],
            holdover=values["tracker_holdover"],
            channels=values["tracker_channels"],
            targets=tuple(values[f"tracker_target_{channel}"] for channel in range(CHANNELS)),
        )


@dataclass(frozen=True)
class Correction:
    """What a window decides: the pair after it, and how much later its end's slot begins.

    Attributes
    ----------
    period
        ps in 20.44 fixed point.
    reciprocal
        floor(2^57 / P).
    phase
        ps with 44 fraction bits; positive: later.
    """

    period: int
    reciprocal: int
    phase: int


class Tracker:
    """Follow the source's clock, in integers as the gateware does.

    Parameters
    ----------
    settings
        Registers.
    period, reciprocal
        Pair at the beginning, as the slotter's registers have it.
    """

    def __init__(self, settings: TrackerSettings, period: int, reciprocal: int) -> None:
        self.settings = settings
        self.ledger = Ledger("tracker")
        self.on = (
            settings.enable == 1
            and period >> _FRACTION >= PERIOD_MINIMUM_PS
            and 12 <= settings.window_log2 <= 24
        )
        self.length = 1 << settings.window_log2
        self.locked, self.holding, self.period, self.slot, self.error = False, True, 0, 0, (0, 0)
        limit = period >> max(settings.limit_log2, 10)
        self._low, self._high = period - limit, period + limit
        self._period, self._reciprocal = period, reciprocal
        self._lock, self._hold = False, True
        self._good = self._bad = 0
        self._limit_slot = self._seen = self._boundary = 0
        self._pending: dict[str, bool] = {}
        self._lost = False
        self._new_error: tuple[int, int] | None = None
        self._new_slot: int | None = None
        self._targets = np.array(settings.targets, np.int64)
        self._chosen = np.array([settings.channels >> c & 1 for c in range(CHANNELS)], bool)
        self._clear()

    def _clear(self) -> None:
        self._count = self._near = self._late = self._gated = self._total = 0

    def begin(self, slot: int) -> None:
        """A record in `slot` begins a window."""
        settings = self.settings
        age = (slot - self._seen) & _MASK
        lost = self._lock and age >= settings.holdover
        if lost:
            self._lock, self._good = False, 0
        if age >= self.length:
            self._hold = True
        self._boundary = (slot + self.length) & _MASK
        self._limit_slot = (slot + self.length - (self.length >> 4)) & _MASK
        self._clear()
        for name, happened in self._pending.items():
            self.ledger.live[name] += happened
        self.ledger.live["lock_losses"] += lost
        self._pending = {}
        self.locked, self.holding, self.period = self._lock, self._hold, self._period
        if self._new_slot is not None:
            self.slot = self._new_slot
        if self._new_error is not None:
            self.error = self._new_error
        self._new_slot = self._new_error = None

    def add(
        self,
        slots: npt.NDArray[np.uint64],
        phases: npt.NDArray[np.uint32],
        tags: Structured,
    ) -> None:
        """Records of the window, in order, with their slots and phases."""
        kind = tags["kind"]
        if (kind == TagKind.FRAME).any():
            self.ledger.at_frame = dict(self.ledger.live)
        channel = tags["channel"] & (CHANNELS - 1)
        ahead = (slots - np.uint64(self._limit_slot)) & np.uint64(_MASK)
        inside = ahead >= np.uint64(1 << (SLOT_BITS - 1))
        chosen = np.flatnonzero((kind == TagKind.CLICK) & self._chosen[channel] & inside)
        whole = self._period >> _FRACTION
        error = phases[chosen].astype(np.int64) - self._targets[channel[chosen]]
        error = np.where(
            error > whole >> 1, error - whole, np.where(error < -(whole >> 1), error + whole, error)
        )
        error = error[np.abs(error) <= whole >> 1][: _MOST - self._count]
        quarter = whole >> 2
        gated = error
        if self._lock:
            gated = error[np.abs(error) <= self.settings.gate]
        self._count += len(error)
        self._near += int(((error < quarter) & (error >= -quarter)).sum())
        self._late += int((error >= 0).sum())
        self._gated += len(gated)
        self._total += int(gated.sum())

    def decide(self) -> Correction:
        """End the window."""
        settings = self.settings
        reach = self._count * settings.threshold
        cosine, sine = 2 * self._near - self._count, 2 * self._late - self._count
        reaches = cosine >= 0 and 16 * cosine >= reach
        far = cosine < 0 and -16 * cosine >= reach
        side = 16 * abs(sine) >= reach
        self._pending = {"windows": True}
        held = Correction(self._period, self._reciprocal, 0)
        if self._count < settings.minimum or not self._count:
            self._pending["dark"] = self._hold = True
            return held
        few = self._gated < settings.minimum or not self._gated
        if not (reaches or far or side) or (reaches and few):
            self._pending["incoherent"] = self._hold = True
            self._good = 0
            return held
        if self._lock and not reaches:
            self._pending["astray"] = self._hold = True
            self._good = 0
            if self._bad + 1 >= settings.lock_windows:
                self._lock = False
                self._pending["lock_losses"] = True
            self._bad = min(self._bad + 1, _GOOD_MOST)
            return held
        self._pending["corrections"] = True
        self._new_slot = self._boundary
        if far and not self._lock:
            self._hold, self._good = True, 0
            quarter = self._period >> 2
            return Correction(self._period, self._reciprocal, -quarter if sine < 0 else quarter)
        magnitude = (abs(self._total) << _ERROR_FRACTION) // self._gated
        early = self._total < 0
        self._new_error = (magnitude, int(early))
        fixed = magnitude << (_FRACTION - _ERROR_FRACTION)
        phase = fixed if self._hold else fixed >> settings.phase_shift
        change = 0 if self._hold else fixed >> (settings.period_shift + settings.window_log2)
        period = self._period - change if early else self._period + change
        self._period = min(max(period, self._low), self._high)
        self._reciprocal = (1 << (RECIPROCAL_FRACTION_BITS + _FRACTION)) // self._period
        self._seen, self._hold, self._bad = self._limit_slot, False, 0
        if reaches:
            if self._good + 1 >= settings.lock_windows:
                self._lock = True
            self._good = min(self._good + 1, _GOOD_MOST)
        else:
            self._good = 0
        return Correction(self._period, self._reciprocal, -phase if early else phase)
