# SPDX-License-Identifier: Apache-2.0
"""Twin of `keyrail_gateware.slotter`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from keyrail.contract import (
    CHANNELS,
    GAP_MAXIMUM_PS,
    PERIOD_FRACTION_BITS,
    SLOT_TAG,
    TIME_BITS,
    LossMark,
    TagKind,
    reciprocal,
)
from keyrail.layouts import Structured, zeros

from .ledger import Ledger
from .tracker import Tracker, TrackerSettings

_Ints = npt.NDArray[np.int64]
_Bools = npt.NDArray[np.bool_]

_MASK = (1 << TIME_BITS) - 1
_FRACTION = PERIOD_FRACTION_BITS
_ONE = 1 << _FRACTION
_BLOCK = 1 << 17
"""Records treated at once; their columns stay in the processor's cache."""
_SPAN = 1 << 49
"""Tag time treated from one base, ps; quotients stay below 2^40."""
_LIMB = (1 << 18) - 1


def _belongs(period: int, value: int) -> bool:
    try:
        return reciprocal(period) == value
    except ValueError:
        return False


class Slotter:
    """Find the slot and phase of tags, bit for bit as the gateware does.

    With the reciprocal that belongs to the period, results are floors of exact quotients,
    vectorised. With any other, the gateware's arithmetic is followed record by record, which is
    slow and serves to know which clicks it drops as inexact.

    Parameters
    ----------
    period
        Slot period, ps in 20.44 fixed point.
    reciprocal_value
        Value of the gateware's ``reciprocal``; None stands for the one that belongs to the
        period.
    origin
        Time at which slot 0 begins, ps modulo 2^48.
    tracking
        Registers of the tracker behind it, as ``tracker`` has it; none, or switched off, leaves
        origin and period as they are.

    Raises
    ------
    ValueError
        If no reciprocal is given and the period is outside the contract's range.
    """

    def __init__(
        self,
        period: int,
        reciprocal_value: int | None = None,
        origin: int = 0,
        tracking: TrackerSettings | None = None,
    ) -> None:
        self.period = period
        self.reciprocal = reciprocal(period) if reciprocal_value is None else reciprocal_value
        self.origin = origin
        self.ledger = Ledger("slotter")
        self._exact = _belongs(period, self.reciprocal)
        self._last = 0  # ps from the origin to the last record, unwrapped
        self._started = False
        # The pair in force: slot and remainder (44 fraction bits) at a time counted like `_last`.
        self._base = (0, 0, 0)
        self.tracker = Tracker(tracking or TrackerSettings(), period, self.reciprocal)
        self._track = self.tracker.on
        self._end: tuple[int, int] | None = None  # of the window: time (44 fraction bits), slot
        self._result = (0, 0)
        self._settled = True
        self._broken = False
        self._imitated = 0  # like `_last`, to the last record imitated

    def process(self, tags: Structured) -> Structured:
        """Turn a chunk of ``tag`` records into ``slot_tag``; state is kept for the next chunk."""
        parts = [self._block(tags[at : at + _BLOCK]) for at in range(0, len(tags), _BLOCK)]
        return np.concatenate(parts) if parts else zeros(SLOT_TAG, 0)

    def _block(self, tags: Structured) -> Structured:
        click = tags["kind"] == TagKind.CLICK
        bad = click & (tags["channel"] >= CHANNELS)
        chosen = ~bad if bad.any() else slice(None)
        time = tags["time"][chosen].astype(np.int64)
        steps = np.diff(time, prepend=(self.origin + self._last) & _MASK) & _MASK
        steps[steps > GAP_MAXIMUM_PS] -= 1 << TIME_BITS
        if float(np.abs(steps).sum(dtype=np.float64)) >= 2.0**61:
            half = len(tags) // 2
            return np.concatenate([self._block(tags[:half]), self._block(tags[half:])])
        position, early_chosen = self._order(steps, time)

        early = np.zeros(len(tags), bool)
        early[chosen] = early_chosen
        forward = np.flatnonzero(~early & ~bad)
        started = np.full(len(tags), self._started)
        if len(forward):
            started[forward[0] :] = True
            self._started = True

        slots, phases = np.zeros(len(time), np.uint64), np.zeros(len(time), np.uint32)
        dropped = click & early & ~started
        lost = click & early & started
        frames = np.flatnonzero(tags["kind"] == TagKind.FRAME)
        if lost.any():
            tags = tags.copy()
            tags["kind"][lost], tags["channel"][lost] = TagKind.LOSS, LossMark.AT
        kept = ~dropped[chosen]
        fails_chosen = self._segments(tags[chosen], position, early_chosen, kept, slots, phases)
        if len(position):
            self._last += int(position[-1])

        fails = np.zeros(len(tags), bool)
        fails[chosen] = fails_chosen
        inexact = click & ~lost & fails
        leaves = ~(bad | dropped | inexact)
        self.ledger.count(
            frames,
            **{
                "in": click,
                "out": click & ~lost & leaves,
                "bad_channel": bad,
                "before_origin": dropped,
                "out_of_order": lost,
                "inexact": inexact,
            },
        )
        result = zeros(SLOT_TAG, int(leaves.sum()))
        result["slot"] = slots[leaves[chosen]]
        result["phase"] = phases[leaves[chosen]]
        result["channel"] = tags["channel"][leaves]
        result["kind"] = tags["kind"][leaves]
        return result

    def _order(self, steps: _Ints, time: _Ints) -> tuple[_Ints, _Bools]:
        """Times from the last record of the former chunk, early ones moved; and which were."""
        reach = np.cumsum(steps)
        last = np.maximum.accumulate(np.concatenate([np.zeros(1, np.int64), reach]))
        behind = reach - last[:-1]
        # Modulo 2^48 only differences above -2^47 are known to be early.
        if not len(behind) or int(behind.min()) > -GAP_MAXIMUM_PS:
            return last[1:], behind < 0
        position, early = np.zeros(len(time), np.int64), np.zeros(len(time), bool)
        place = 0
        start = self.origin + self._last
        for index, value in enumerate(time.tolist()):
            gap = (value - start - place) & _MASK
            early[index] = gap > GAP_MAXIMUM_PS
            place += 0 if early[index] else gap
            position[index] = place
        return position, early

    def _segments(
        self,
        tags: Structured,
        position: _Ints,
        early: _Bools,
        kept: _Bools,
        slots: npt.NDArray[np.uint64],
        phases: npt.NDArray[np.uint32],
    ) -> _Bools:
        """Slots and phases window by window; returns which records are inexact."""
        fails = np.zeros(len(position), bool)

        def run(first: int, stop: int) -> None:
            part = slice(first, stop)
            if self._exact:
                self._divide(position[part], slots[part], phases[part])
            else:
                where = np.flatnonzero(kept[part]) + first
                fails[where] = self._imitate(position[where], early[where], slots, phases, where)

        def show(first: int, stop: int) -> None:
            """Show the tracker what leaves the slotter."""
            part = slice(first, stop)
            passes = kept[part] & ~(fails[part] & (tags["kind"][part] == TagKind.CLICK))
            where = np.flatnonzero(passes) + first
            self.tracker.add(slots[where], phases[where], tags[where])

        at = 0
        while at < len(position):
            begins = len(position)  # the next record that begins a window
            if self._track and self._end is not None:
                begins = int(np.searchsorted(position, -(-self._end[0] >> _FRACTION) - self._last))
            elif self._track and not early[at:].all():
                begins = at + int(early[at:].argmin())
            run(at, begins)
            if self._track:
                show(at, begins)
            at = begins
            if at == len(position):
                break
            self._correct()
            time = self._last + int(position[at])
            if self._exact:
                slot, rest = self._at(time)
                self._begin(time, slot, rest)
            else:
                run(at, at + 1)
                if fails[at]:
                    self._track = False
                else:
                    self._begin(time, *self._result)
                    show(at, at + 1)
                at += 1
        return fails

    def _at(self, time: int) -> tuple[int, int]:
        """Slot and remainder (44 fraction bits) at a time, by the pair in force."""
        base_time, base_slot, base_rest = self._base
        more, rest = divmod(((time - base_time) << _FRACTION) + base_rest, self.period)
        return (base_slot + more) & _MASK, rest

    def _begin(self, time: int, slot: int, rest: int) -> None:
        """The record at `time` begins a window."""
        length = self.tracker.length
        self._end = ((time << _FRACTION) - rest + length * self.period, (slot + length) & _MASK)
        self.tracker.begin(slot)

    def _correct(self) -> None:
        """The window is over: replace origin and period where its end begins."""
        if self._end is None:
            return
        end, slot = self._end
        correction = self.tracker.decide()
        time, part = divmod(end, _ONE)
        rest = -correction.phase - part
        self.period, self.reciprocal = correction.period, correction.reciprocal
        self._base = (time, slot, rest)
        if rest < 0:
            self._base = (time, (slot - 1) & _MASK, rest + self.period)
        self._settled = True  # the next record needs no other base
        self._end = None

    def _divide(
        self, position: _Ints, slots: npt.NDArray[np.uint64], phases: npt.NDArray[np.uint32]
    ) -> None:
        """Exact slots and phases of times that do not fall, counted from the last record."""
        whole, part = divmod(self.period, _ONE)
        fraction = np.uint64(part)
        low, rise, mask = np.uint64(20), np.uint64(_FRACTION), np.uint64(_ONE - 1)
        start = 0
        while start < len(position):
            first = int(position[start])
            stop = int(np.searchsorted(position, first + _SPAN))
            base_slot, base_rest = self._at(self._last + first)
            base_phase, base_part = divmod(base_rest, _ONE)
            total = position[start:stop] - (first - base_phase)
            # The estimate's error is below 1/700, so it is the quotient or one beside it.
            q = (total * (_ONE / self.period)).astype(np.int64)
            # q times the period's fraction, 84 bits, as `carry` ps and `rest` / 2^44 ps
            upper = (q >> 20).astype(np.uint64) * fraction
            lower = (q & ((1 << 20) - 1)).astype(np.uint64) * fraction
            rest = ((upper & np.uint64((1 << 24) - 1)) << low) + (lower & mask)
            carry = (upper >> np.uint64(24)) + (lower >> rise) + (rest >> rise)
            rest = np.uint64(base_part) + (mask + np.uint64(1)) - (rest & mask)
            phase = total - q * whole - carry.astype(np.int64) + (rest >> rise).astype(np.int64) - 1
            rest &= mask
            below = np.flatnonzero(phase < 0)
            if len(below):
                corrected = rest[below] + fraction
                phase[below] += whole + (corrected >> rise).astype(np.int64)
                rest[below] = corrected & mask
                q[below] -= 1
            above = np.flatnonzero((phase > whole) | ((phase == whole) & (rest >= fraction)))
            if len(above):
                corrected = rest[above] + (mask + np.uint64(1)) - fraction
                phase[above] -= whole + 1 - (corrected >> rise).astype(np.int64)
                q[above] += 1
            slots[start:stop] = (q + base_slot) & _MASK
            phases[start:stop] = phase
            start = stop

    def _imitate(
        self,
        position: _Ints,
        early: _Bools,
        slots: npt.NDArray[np.uint64],
        phases: npt.NDArray[np.uint32],
        places: npt.NDArray[np.intp],
    ) -> _Bools:
        """Follow the gateware's arithmetic with a reciprocal that does not belong."""
        fails = np.zeros(len(position), bool)
        start = self._last
        last = self._imitated
        for index, (ahead, is_early) in enumerate(
            zip(position.tolist(), early.tolist(), strict=True)
        ):
            time = start + ahead
            base_time, base_slot, base_rest = self._base
            if not is_early:
                near = max(time, last) - base_time < GAP_MAXIMUM_PS
                if not (self._settled or near):
                    self._base = base_time, base_slot, base_rest = (last, *self._result)
                self._settled = False
                self._imitated = last = time
            total = time - base_time + (base_rest >> _FRACTION)
            estimate = sum(
                ((total >> 18 * a & _LIMB) * (self.reciprocal >> 18 * b & _LIMB)) << 18 * (a + b)
                for a in range(3)
                for b in range(3)
                if a + b >= 2
            )
            q = estimate >> 57
            rest = (total << _FRACTION) + (base_rest & (_ONE - 1)) - q * self.period
            self._broken |= not 0 <= rest < 2 * self.period
            if not self._broken:
                more = rest >= self.period
                self._result = (
                    (base_slot + q + more) & _MASK,
                    rest - self.period if more else rest,
                )
            fails[index] = self._broken
            slots[places[index]] = self._result[0]
            phases[places[index]] = self._result[1] >> _FRACTION
        return fails
