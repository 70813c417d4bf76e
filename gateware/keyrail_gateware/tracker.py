# SPDX-License-Identifier: CERN-OHL-W-2.0
"""Second-order loop that follows the source's clock: phases of clicks to corrections."""

from itertools import pairwise

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.enum import Enum
from amaranth.lib.wiring import In, Out

from keyrail.contract import (
    CHANNELS,
    PERIOD_FRACTION_BITS,
    PERIOD_MINIMUM_PS,
    PHASE_BITS,
    RECIPROCAL_FRACTION_BITS,
    SLOT_BITS,
    SLOT_TAG,
    TAG,
    TIME_BITS,
    TagKind,
    registers,
)
from keyrail.contract import Role as StationRole

from .layouts import fields_layout, layout
from .ledger import Counts, Ledger
from .slotter import CORRECTION, Slotter

__all__ = ["TRACKER_CONTROL", "TrackedSlotter", "Tracker"]

TRACKER_CONTROL = fields_layout(registers(StationRole.RECEIVER)["tracker_control"].fields)
"""Layout of the register ``tracker_control``."""

_FRACTION = PERIOD_FRACTION_BITS
_PERIOD = PHASE_BITS + _FRACTION
_COUNT = 24
_ERROR_FRACTION = 16
_ERROR = PHASE_BITS + _ERROR_FRACTION
_UP = _FRACTION - _ERROR_FRACTION
_RECIPROCAL = 48
_LIMIT_LEAST = 10
_SETTINGS = ("control", "minimum", "gate", "holdover", "channels", "targets")
_WINDOW_LEAST, _WINDOW_MOST = 12, 24


class _State(Enum, shape=4):
    IDLE = 0
    """No window, or none any more: waiting for a window's first record."""
    OPEN = 1
    WEIGH = 2
    COMPARE = 3
    JUDGE = 4
    DIVIDE = 5
    SCALE = 6
    ADD = 7
    CLAMP = 8
    SELECT = 9
    INVERT = 10
    READY = 11
    ACT = 12
    MOVE = 13


class Tracker(wiring.Component):
    """Measure where the clicks lie in their slots, and correct origin and period for it.

    A tap behind the slotter: records pass unchanged in the same clock.

    Windows. A record with `anchor` in slot k begins one; its last slot is K - 1, with
    K = k + L and L = 2^window_log2. Clicks of the channels in `channels` count in the slots below
    K - L/16; the rest of the window is the time to decide. A window without a record in its last
    sixteenth ends by `flush`. It counts 2^24 - 1 clicks at most, and no more of them.

    Measurement. e is the phase less the channel's target, brought to within half a period; a click
    that is farther off even so, which takes a target beyond the slot, does not count. The window
    keeps N, the clicks; C, those with -P/4 <= e < P/4 less the others; D, those with e >= 0
    less the others; n and S, number and sum of e of the clicks with abs(e) <= ``gate`` while
    locked, of all clicks while not. Square waves in place of cosine and sine: C and D are the two
    arms of a coherent lock detector. Light at any one phase has max(abs(C), abs(D)) = N, light
    that falls evenly has both near 0, with deviation sqrt(N).

    Decision, with h = threshold/16, s the sign of S, and m = floor(2^16 abs(S) / n) / 2^16:

    - N below ``minimum``, or no click: *dark*. The window is held over.
    - Neither abs(C) nor abs(D) reaches h N; or locked, C reaches it, and n is below ``minimum``
      or zero: *incoherent*. Held over.
    - Locked, and C does not reach h N: *astray*. Held over.
    - Not locked, C < 0 and -C >= h N: the pulses lie in the far half. The slot is moved by
      floor(P / 4), later where D >= 0; the period stays, and the next window counts as one after
      hold-over.
    - Else the window is followed. phase = s m 2^-phase_shift and
      P' = P + s m 2^-(period_shift + window_log2), magnitudes rounded down to 2^-44 ps, P' kept
      within P0 -+ floor(P0 2^-limit_log2). After hold-over (the window before was held over, or
      this one begins L slots or more after K - L/16 of the last one followed), phase = s m and
      the period stays: what has run off meanwhile says nothing about the period now.

    Held over: origin and period go on as they are. With x the phase error at a window's
    beginning and u what it grows by in one, a followed window gives (linear part; a =
    2^-phase_shift, b = 2^-period_shift; the mean error of a window is x + u/2)

        x' = x + u - a (x + u/2),   u' = u - b (x + u/2):

    the alpha-beta tracker (Benedict and Bordner, IRE Trans. Automatic Control 7(4), 1962), stable
    for a < 2 and 0 < b < 2 a; critically damped for a = 2 sqrt(b) - b/2.

    Lock. It is given after ``lock_windows`` followed windows with C >= h N in a row, and taken
    after as many windows astray with none followed between, or where a window begins ``holdover``
    slots or more after K - L/16 of the last window that was followed. All of it goes by slots, that
    is by tag time, never by clocks.

    Counters and status change where the next window's first record passes, so that they depend on
    the records alone.

    Latency: 0 clocks for records. The correction is ready within 190 clocks from the record that
    ended the measurement. Throughput: 1 record a clock. A period below 800 ps or
    a window outside 2^12 to 2^24 slots switches the loop off.

    Members
    -------
    i, o
        Streams of ``slot_tag``.
    anchor
        1 beside a record on `i` that begins a window.
    flush
        1 while nothing more comes in this window; no record is on `i` then.
    taken
        1 in the clock in which the correction was taken.
    correction
        `CORRECTION` for the end of the present window.
    track
        1 where the loop is on: for the slotter.
    period, reciprocal
        As the slotter has them at the beginning. These and those below are sampled at the first
        window and must stay constant until the next reset.
    control
        `TRACKER_CONTROL`.
    minimum, gate, holdover, channels
        Registers ``tracker_minimum``, ``tracker_gate`` (ps), ``tracker_holdover`` (slots),
        ``tracker_channels``.
    targets
        Phase targets by channel, ps.
    locked, holding, period_now, slot_now, error
        Status: the lock, hold-over, period in force, slot of the last correction, and mean error
        of the last window followed (36 bits of magnitude in 20.16 ps, then 1 where it is early).
    counts
        Ledger of ``tracker``.
    """

    i: In(stream.Signature(layout(SLOT_TAG)))
    o: Out(stream.Signature(layout(SLOT_TAG)))
    anchor: In(1)
    flush: In(1)
    taken: In(1)
    correction: Out(CORRECTION)
    track: Out(1)
    period: In(_PERIOD)
    reciprocal: In(_RECIPROCAL)
    control: In(TRACKER_CONTROL)
    minimum: In(16)
    gate: In(PHASE_BITS)
    holdover: In(SLOT_BITS)
    channels: In(CHANNELS)
    targets: In(data.ArrayLayout(PHASE_BITS, CHANNELS))
    locked: Out(1)
    holding: Out(1, init=1)
    period_now: Out(_PERIOD)
    slot_now: Out(SLOT_BITS)
    error: Out(_ERROR + 1)
    counts: Out(Counts("tracker"))

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.ledger = ledger = Ledger("tracker")
        control = self.control
        m.d.comb += [
            self.counts.live.eq(ledger.counts.live),
            self.counts.at_frame.eq(ledger.counts.at_frame),
            self.o.payload.eq(self.i.payload),
            self.o.valid.eq(self.i.valid),
            self.i.ready.eq(self.o.ready),
        ]

        m.d.sync += self.track.eq(
            control.enable
            & (self.period[_FRACTION:] >= PERIOD_MINIMUM_PS)
            & (control.window_log2 >= _WINDOW_LEAST)
            & (control.window_log2 <= _WINDOW_MOST)
        )

        state = Signal(_State)
        started = Signal()
        good, bad = Signal(4), Signal(4)
        period = Signal(_PERIOD)
        lock, hold = Signal(), Signal(init=1)
        limit_slot = Signal(SLOT_BITS)  # K - L/16
        boundary = Signal(SLOT_BITS)  # K
        seen = Signal(SLOT_BITS)  # K - L/16 of the last window followed
        window, measured = Signal(25), Signal(25)
        m.d.sync += [
            window.eq(1 << control.window_log2),
            measured.eq(window - (window >> 4)),
        ]

        # -- 1 to 5: phase error of a click ------------------------------------------------------

        fields = {"valid": 1, "anchor": 1, "frame": 1, "counts": 1}
        passing = [Signal(data.StructLayout(fields), name=f"passing_{n}") for n in range(6)]
        m.d.sync += [after.eq(before) for before, after in pairwise(passing)]
        payload = self.i.payload
        channel = payload.channel[: (CHANNELS - 1).bit_length()]
        m.d.comb += [
            passing[0].valid.eq(self.i.valid & self.o.ready & self.track),
            passing[0].anchor.eq(self.anchor),
            passing[0].frame.eq(payload.kind == TagKind.FRAME),
            passing[0].counts.eq(
                (payload.kind == TagKind.CLICK) & self.channels.bit_select(channel, 1)
            ),
        ]
        slot_1, phase_1, target_1 = Signal(SLOT_BITS), Signal(PHASE_BITS), Signal(PHASE_BITS)
        m.d.sync += [
            slot_1.eq(payload.slot),
            phase_1.eq(payload.phase),
            target_1.eq(Array(self.targets[n] for n in range(CHANNELS))[channel]),
        ]
        begins = Signal()
        ahead, dark_slots = Signal(SLOT_BITS), Signal(SLOT_BITS)
        m.d.comb += [
            begins.eq(passing[1].valid & passing[1].anchor),
            ahead.eq(slot_1 - limit_slot),
            dark_slots.eq(slot_1 - seen),
        ]
        slot_2, inside_2, age_2 = Signal(SLOT_BITS), Signal(), Signal(SLOT_BITS)
        error_2 = Signal(signed(PHASE_BITS + 1))
        m.d.sync += [
            error_2.eq(phase_1 - target_1),
            inside_2.eq(ahead[-1]),
            slot_2.eq(slot_1),
            age_2.eq(dark_slots),
        ]
        with m.If(begins):
            m.d.sync += [limit_slot.eq(slot_1 + measured), boundary.eq(slot_1 + window)]
            m.d.sync += started.eq(1)
        with m.If(~started):
            m.d.sync += [
                period.eq(self.period),
                self.correction.period.eq(self.period),
                self.correction.reciprocal.eq(self.reciprocal),
            ]
        whole, half, quarter = Signal(PHASE_BITS), Signal(PHASE_BITS), Signal(PHASE_BITS)
        m.d.comb += [
            whole.eq(period[_FRACTION:]),
            half.eq(period[_FRACTION + 1 :]),
            quarter.eq(period[_FRACTION + 2 :]),
        ]
        above_3, below_3, inside_3 = Signal(), Signal(), Signal()
        error_3, error_4 = Signal.like(error_2), Signal.like(error_2)
        inside_4, shift_3 = Signal(), Signal(PHASE_BITS)
        m.d.comb += shift_3.eq(Mux(above_3, ~whole, Mux(below_3, whole, 0)))
        m.d.sync += [
            above_3.eq((half - error_2)[-1]),
            below_3.eq((error_2 + half)[-1]),
            error_3.eq(error_2),
            inside_3.eq(inside_2 | passing[2].anchor),
            # Less or more by a period: one carry.
            error_4.eq(
                (Cat(Const(1, 1), error_3).as_signed() + Cat(above_3, shift_3, above_3).as_signed())
                >> 1
            ),
            inside_4.eq(inside_3),
        ]
        lost = Signal()  # the lock ends with the dark before this window
        old_3, older_3 = Signal(), Signal()
        m.d.sync += [old_3.eq(age_2 >= self.holdover), older_3.eq(age_2 >= window)]
        with m.If(passing[3].valid & passing[3].anchor):
            with m.If(lock & old_3):
                m.d.sync += [lock.eq(0), good.eq(0), lost.eq(1)]
            with m.If(older_3):
                m.d.sync += hold.eq(1)
        near_5, late_5, gated_5, inside_5 = Signal(), Signal(), Signal(), Signal()
        within_5 = Signal()
        error_5 = Signal.like(error_4)
        m.d.sync += [
            near_5.eq((error_4 - quarter)[-1] & ~(error_4 + quarter)[-1]),
            late_5.eq(~error_4[-1]),
            gated_5.eq(~lock | ~((self.gate - error_4)[-1] | (error_4 + self.gate)[-1])),
            within_5.eq(~((half - error_4)[-1] | (error_4 + half)[-1])),
            inside_5.eq(inside_4),
            error_5.eq(error_4),
        ]

        # -- counts of the window ----------------------------------------------------------------

        count, near, late, gated = (Signal(_COUNT, name=n) for n in ("count", "near", "late", "n"))
        total = Signal(signed(_COUNT + PHASE_BITS))
        most = Signal()  # no more can be counted
        is_open = Signal()  # the state is OPEN
        record = passing[5]
        opens, ends = Signal(), Signal()
        m.d.comb += [
            opens.eq(record.valid & record.anchor),
            ends.eq(
                (record.valid & ~record.anchor & ~inside_5)
                | (self.flush & ~Cat(p.valid for p in passing[1:]).any())
            ),
        ]
        adds = record.counts & within_5 & (opens | (is_open & record.valid & inside_5))
        with m.If(opens):
            m.d.sync += most.eq(0)
            m.d.sync += [count.eq(adds), near.eq(adds & near_5), late.eq(adds & late_5)]
            m.d.sync += [gated.eq(adds & gated_5), total.eq(Mux(adds & gated_5, error_5, 0))]
        with m.Elif(adds & ~most):
            m.d.sync += most.eq(count == (1 << _COUNT) - 2)
            m.d.sync += [count.eq(count + 1), near.eq(near + near_5), late.eq(late + late_5)]
            with m.If(gated_5):
                m.d.sync += [gated.eq(gated + 1), total.eq(total + error_5)]

        # -- decision ----------------------------------------------------------------------------

        cosine, sine = Signal(signed(_COUNT + 2)), Signal(signed(_COUNT + 2))
        size_cosine, size_sine = Signal(_COUNT + 1), Signal(_COUNT + 1)
        weight = Signal(_COUNT + 4)
        weights = [Signal(_COUNT + 2, name=f"weight_{n}") for n in (0, 1)]
        enough, enough_gated = Signal(), Signal()
        # The judgement, one of these or none: then the window is followed.
        is_dark, is_incoherent, is_astray, is_far = Signal(), Signal(), Signal(), Signal()
        reaches, far, side = Signal(), Signal(), Signal()
        early, magnitude = Signal(), Signal(_COUNT + PHASE_BITS)
        rest, quotient = Signal(_COUNT + 1), Signal(_ERROR)
        dividend = Signal(_ERROR)
        steps, last_step = Signal(6), Signal()
        still = Signal()
        shift_phase, shift_period = Signal(5), Signal(7)
        phase, change = Signal(_PERIOD), Signal(_PERIOD)
        sum_new = Signal(signed(_PERIOD + 2))
        low, high = Signal.like(sum_new), Signal.like(sum_new)
        below, above = Signal(), Signal()
        limit, limit_steps = Signal(_PERIOD), Signal(5)
        inverse_rest = Signal(signed(_PERIOD + 2))
        # What the next window's first record makes visible.
        corrected, dark, incoherent, astray = Signal(), Signal(), Signal(), Signal()
        unlocked = Signal()
        decided, followed = Signal(), Signal()
        named = Signal(SLOT_BITS)

        with m.If(~started):
            m.d.sync += [
                limit.eq(self.period),
                limit_steps.eq(
                    Mux(control.limit_log2 < _LIMIT_LEAST, _LIMIT_LEAST, control.limit_log2)
                ),
            ]
        with m.Elif(limit_steps.any()):
            m.d.sync += [limit.eq(limit >> 1), limit_steps.eq(limit_steps - 1)]

        m.d.sync += [low.eq(self.period - limit), high.eq(self.period + limit)]

        def go(following: _State) -> object:
            return state.eq(following)

        signed_phase = Mux(early, -phase, phase)

        def hold_over(m: Module, reason: Signal) -> None:
            m.d.sync += [reason.eq(1), hold.eq(1), go(_State.READY)]

        with m.Switch(state):
            with m.Case(_State.OPEN):
                with m.If(ends):
                    m.d.sync += [
                        is_open.eq(0),
                        cosine.eq((near << 1) - count),
                        sine.eq((late << 1) - count),
                        # By two bits of the threshold each: no multiplier.
                        *(
                            weights[n].eq(
                                Mux(control.threshold[2 * n], count, 0)
                                + Mux(control.threshold[2 * n + 1], count << 1, 0)
                            )
                            for n in (0, 1)
                        ),
                        early.eq(total[-1]),
                        magnitude.eq(Mux(total[-1], -total, total)),
                        self.correction.phase.eq(0),
                        go(_State.WEIGH),
                    ]
            with m.Case(_State.WEIGH):
                m.d.sync += [
                    weight.eq(weights[0] + (weights[1] << 2)),
                    size_cosine.eq(Mux(cosine[-1], -cosine, cosine)),
                    size_sine.eq(Mux(sine[-1], -sine, sine)),
                    enough.eq((count >= self.minimum) & count.any()),
                    enough_gated.eq((gated >= self.minimum) & gated.any()),
                    go(_State.COMPARE),
                ]
            with m.Case(_State.COMPARE):
                m.d.sync += [
                    reaches.eq(~cosine[-1] & ((size_cosine << 4) >= weight)),
                    far.eq(cosine[-1] & ((size_cosine << 4) >= weight)),
                    side.eq((size_sine << 4) >= weight),
                    go(_State.JUDGE),
                ]
            with m.Case(_State.JUDGE):
                m.d.sync += [
                    rest.eq(magnitude >> PHASE_BITS),
                    dividend.eq(magnitude[:PHASE_BITS] << _ERROR_FRACTION),
                    steps.eq(_ERROR - 1),
                    last_step.eq(0),
                ]
                clear = Mux(reaches, enough_gated, far | side)
                m.d.sync += [
                    is_dark.eq(~enough),
                    is_incoherent.eq(enough & ~clear),
                    is_astray.eq(enough & clear & lock & ~reaches),
                    is_far.eq(enough & clear & ~lock & far),
                    go(_State.ACT),
                ]
            with m.Case(_State.ACT):
                with m.If(is_dark):
                    hold_over(m, dark)
                with m.Elif(is_incoherent):
                    hold_over(m, incoherent)
                    m.d.sync += good.eq(0)
                with m.Elif(is_astray):
                    hold_over(m, astray)
                    m.d.sync += good.eq(0)
                    with m.If(~bad.all()):
                        m.d.sync += bad.eq(bad + 1)
                    with m.If(bad + 1 >= control.lock_windows):
                        m.d.sync += [lock.eq(0), unlocked.eq(1)]
                with m.Elif(is_far):
                    m.d.sync += [
                        phase.eq(period >> 2),
                        early.eq(sine[-1]),
                        corrected.eq(1),
                        hold.eq(1),
                        good.eq(0),
                        go(_State.MOVE),
                    ]
                with m.Else():
                    m.d.sync += [
                        corrected.eq(1),
                        followed.eq(1),
                        hold.eq(0),
                        shift_phase.eq(Mux(hold, 0, control.phase_shift)),
                        shift_period.eq(control.period_shift + control.window_log2),
                        still.eq(hold),
                        seen.eq(limit_slot),
                        bad.eq(0),
                        go(_State.DIVIDE),
                    ]
                    with m.If(~reaches):
                        m.d.sync += good.eq(0)
                    with m.Else():
                        with m.If(~good.all()):
                            m.d.sync += good.eq(good + 1)
                        with m.If(good + 1 >= control.lock_windows):
                            m.d.sync += lock.eq(1)
            with m.Case(_State.DIVIDE):
                # Restoring division, a bit a clock: abs(S) / n with 16 fraction bits.
                trial = Cat(dividend[-1], rest)
                fits = trial >= gated
                m.d.sync += [
                    rest.eq(Mux(fits, trial - gated, trial)),
                    quotient.eq(Cat(fits, quotient)),
                    dividend.eq(dividend << 1),
                    steps.eq(steps - 1),
                    last_step.eq(steps == 1),
                ]
                with m.If(last_step):
                    m.d.sync += [
                        phase.eq(Cat(Const(0, _UP), fits, quotient)),
                        change.eq(Mux(still, 0, Cat(Const(0, _UP), fits, quotient))),
                        go(_State.SCALE),
                    ]
            with m.Case(_State.SCALE):
                with m.If(shift_phase.any()):
                    m.d.sync += [phase.eq(phase >> 1), shift_phase.eq(shift_phase - 1)]
                with m.If(shift_period.any()):
                    m.d.sync += [change.eq(change >> 1), shift_period.eq(shift_period - 1)]
                with m.If(~shift_phase.any() & ~shift_period.any()):
                    m.d.sync += go(_State.ADD)
            with m.Case(_State.ADD):
                m.d.sync += [
                    sum_new.eq(Mux(early, period - change, period + change)),
                    self.correction.phase.eq(signed_phase),
                    go(_State.CLAMP),
                ]
            with m.Case(_State.MOVE):
                m.d.sync += [self.correction.phase.eq(signed_phase), go(_State.READY)]
            with m.Case(_State.CLAMP):
                m.d.sync += [below.eq(sum_new < low), above.eq(sum_new > high), go(_State.SELECT)]
            with m.Case(_State.SELECT):
                m.d.sync += [
                    self.correction.period.eq(Mux(below, low, Mux(above, high, sum_new))),
                    inverse_rest.eq(1 << (RECIPROCAL_FRACTION_BITS + _FRACTION - _RECIPROCAL)),
                    steps.eq(_RECIPROCAL - 1),
                    last_step.eq(0),
                    go(_State.INVERT),
                ]
            with m.Case(_State.INVERT):
                # 2^57 / P', whose quotient has 48 bits: the dividend's lower ones are zero. Without
                # restoring: a remainder below zero gets P' back in the next step.
                # The sign, which comes late to so many bits, chooses between sum and difference.
                doubled = inverse_rest << 1
                following = Signal.like(inverse_rest)
                m.d.comb += following.eq(
                    Mux(
                        inverse_rest[-1],
                        doubled + self.correction.period,
                        doubled - self.correction.period,
                    )
                )
                m.d.sync += [
                    inverse_rest.eq(following),
                    self.correction.reciprocal.eq(Cat(~following[-1], self.correction.reciprocal)),
                    steps.eq(steps - 1),
                    last_step.eq(steps == 1),
                ]
                with m.If(last_step):
                    m.d.sync += go(_State.READY)
            with m.Case(_State.READY):
                with m.If(self.taken):
                    m.d.sync += [
                        period.eq(self.correction.period),
                        named.eq(boundary),
                        decided.eq(1),
                        go(_State.IDLE),
                    ]
        with m.If(opens):
            m.d.sync += [go(_State.OPEN), is_open.eq(1)]
        m.d.comb += self.correction.ready.eq(state == _State.READY)

        # -- what is seen outside: with the next window's first record ---------------------------

        with m.If(opens):
            m.d.sync += [
                self.locked.eq(lock),
                self.holding.eq(hold),
                self.period_now.eq(period),
            ]
            m.d.sync += [flag.eq(0) for flag in (corrected, followed, dark, incoherent)]
            m.d.sync += [flag.eq(0) for flag in (astray, decided, unlocked, lost)]
            with m.If(corrected):
                m.d.sync += self.slot_now.eq(named)
            with m.If(followed):
                m.d.sync += self.error.eq(Cat(quotient, early))
            m.d.comb += [
                ledger.step.windows.eq(decided),
                ledger.step.corrections.eq(corrected),
                ledger.step.dark.eq(dark),
                ledger.step.incoherent.eq(incoherent),
                ledger.step.astray.eq(astray),
                ledger.step.lock_losses.eq(unlocked | lost),
            ]
        with m.If(record.valid & record.frame):
            m.d.comb += [ledger.frame[name].eq(1) for name in self.counts.live.shape().members]
        return m


class TrackedSlotter(wiring.Component):
    """`Slotter` with the `Tracker` behind it, which corrects it.

    Latency and throughput are the slotter's. At one tag a clock no tag waits for a correction
    where the last sixteenth of a window lasts 2 us or more.

    Members
    -------
    i, o
        Streams of ``tag`` and ``slot_tag``.
    period, reciprocal, origin, busy
        As the slotter's.
    control, minimum, gate, holdover, channels, targets
        As the tracker's.
    locked, holding, period_now, slot_now, error
        As the tracker's.
    counts, tracker_counts
        Ledgers of ``slotter`` and ``tracker``.
    """

    i: In(stream.Signature(layout(TAG)))
    o: Out(stream.Signature(layout(SLOT_TAG)))
    period: In(_PERIOD)
    reciprocal: In(_RECIPROCAL)
    origin: In(TIME_BITS)
    control: In(TRACKER_CONTROL)
    minimum: In(16)
    gate: In(PHASE_BITS)
    holdover: In(SLOT_BITS)
    channels: In(CHANNELS)
    targets: In(data.ArrayLayout(PHASE_BITS, CHANNELS))
    busy: Out(1)
    locked: Out(1)
    holding: Out(1)
    period_now: Out(_PERIOD)
    slot_now: Out(SLOT_BITS)
    error: Out(_ERROR + 1)
    counts: Out(Counts("slotter"))
    tracker_counts: Out(Counts("tracker"))

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.slotter = slotter = Slotter()
        m.submodules.tracker = tracker = Tracker()
        wiring.connect(m, wiring.flipped(self.i), slotter.i)
        wiring.connect(m, slotter.o, tracker.i)
        wiring.connect(m, tracker.o, wiring.flipped(self.o))
        m.d.comb += [
            slotter.period.eq(self.period),
            slotter.reciprocal.eq(self.reciprocal),
            slotter.origin.eq(self.origin),
            slotter.track.eq(tracker.track),
            slotter.window_log2.eq(self.control.window_log2),
            slotter.correction.eq(tracker.correction),
            tracker.anchor.eq(slotter.anchor),
            tracker.flush.eq(slotter.flush),
            tracker.taken.eq(slotter.taken),
            self.busy.eq(slotter.busy),
        ]
        for name in ("period", "reciprocal", *_SETTINGS):
            m.d.comb += getattr(tracker, name).eq(getattr(self, name))
        for name in ("locked", "holding", "period_now", "slot_now", "error"):
            m.d.comb += getattr(self, name).eq(getattr(tracker, name))
        for inside, outside in (
            (slotter.counts, self.counts),
            (tracker.counts, self.tracker_counts),
        ):
            m.d.comb += [
                outside.live.eq(inside.live),
                outside.at_frame.eq(inside.at_frame),
            ]
        return m
