# SPDX-License-Identifier: CERN-OHL-W-2.0
"""Time of a tag to slot number and phase within the slot, exactly."""

from itertools import pairwise

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.enum import Enum
from amaranth.lib.wiring import In, Out

from keyrail.contract import (
    CHANNEL_BITS,
    PERIOD_FRACTION_BITS,
    PHASE_BITS,
    SLOT_BITS,
    SLOT_TAG,
    TAG,
    TIME_BITS,
    TagKind,
)

from .division import FULL, Fabric, estimate, product, remainder
from .layouts import layout
from .ledger import Counts, Ledger

__all__ = ["CORRECTION", "Slotter"]

CORRECTION = data.StructLayout(
    {
        "ready": 1,
        "period": PHASE_BITS + PERIOD_FRACTION_BITS,
        "reciprocal": 48,
        "phase": signed(PHASE_BITS + PERIOD_FRACTION_BITS),
    }
)
"""What the tracker decided for the end of a window: period and reciprocal from there on, and how
much later than it would that slot begins (ps, 44 fraction bits, at most half a period either
way). Stays as it is from `ready` until the next window's decision."""

_FRACTION = PERIOD_FRACTION_BITS
_CHANNEL_VALID_BITS = 3
_SPAN_LOG2 = 24
_SAFE_LOG2 = 9
"""A window of 2^n slots is longer than 2^(n + 9) ps, since periods are above 512 ps."""


class _Windows(Enum, shape=2):
    OFF = 0
    FREE = 1
    """The next record begins a window."""
    BEGUN = 2
    """Its first record is in the pipeline, its end not known yet."""
    ENDS = 3
    """The time of its end is known."""


class Slotter(wiring.Component):
    """Find the slot a tag falls into, and its phase there.

    Slot k begins at ``origin`` + k P. For a tag at time t, k = floor((t - origin) / P), and the
    phase is floor(t - origin - k P) ps; both exact, for any gap up to 2^47 ps between records
    and through any number of wraps of the time.

    Corrections. With ``track``, (origin, P) are replaced where a window ends. The first record
    (not early, of an existing channel) is in slot k of its own and begins a window, which ends
    where slot K = k + 2^window_log2 begins, at time S by the pair in force. From S on the pair is
    (S + phase - K P', P') by ``correction``; the first record at or after S begins the next
    window. Slot numbers never fall back, as phase is at most half a period: records from S on
    are in slot K - 1 at least. Which pair holds for a record depends on the tags alone. A record
    at or after S waits at the entry until the correction is there, which costs a pause only where
    tag time runs ahead of the clock: the tracker decides a sixteenth of a window before its end.
    Where a window's first record is inexact, no further window begins.

    Arithmetic. Of an earlier record, the base, time t_b, slot k_b and remainder r_b (20.44) are
    kept. With D = t - t_b, T = D + floor(r_b) and f the fraction of r_b, the quotient sought is
    q = floor((T + f) / P). The estimate is q' = floor((T R - E) / 2^57), where R is
    ``reciprocal``, and E is what the three lowest of the nine partial products (18-bit limbs)
    add, which are left out. Since 2^57 / P - R < 1, T < 2^48, f < 1 and E < 2^36 + 2 x 2^54,
    (T + f) / P - (T R - E) / 2^57 < 2^-9 + 1/800 + 1/4 + 2^-21 < 1, and it is not negative: q'
    is q or q - 1. The remainder x = (T + f) - q' P is then calculated in full width and tells
    which. The stages are in `division`; tests prove each with a solver. An x outside [0, 2 P) is
    possible only if ``reciprocal`` does not belong to ``period``; as x is never truncated before
    this test, no pair of values gives a wrong slot. From such a record on, every click is dropped
    and counted as inexact, and markers pass with the slot and phase of the last exact record.

    Base. It is replaced by the last record, once the pipeline is empty, when t - t_b reaches
    2^47 ps; that costs one pause of a pipeline's length in 140 s of tag time. Why D is never
    ambiguous: either the base is the last record, and D is the gap, or the last record lies
    less than 2^47 after the base and D is less than 2^48. Results depend on the base
    only through the rounding of q', so the choice cannot be seen outside.

    Order. A click earlier than the last record is dropped; until a record at or after the
    origin has come, that counts as before the origin. Earlier means (t - t_last) mod 2^48
    > 2^47, t_last beginning as the origin. A click of a channel above 7 is dropped first and
    has no part in the order. Markers always pass; an early one is taken at the last record's
    time, at the origin if there is none.

    Latency: 16 clocks, one more for the first record. Throughput: 1 record a clock. Between the
    first record of a window and the knowledge of its end lie 40 clocks at most, during which
    records up to 2^(window_log2 + 9) ps after the first pass freely.

    Members
    -------
    i, o
        Streams of ``tag`` and ``slot_tag``.
    period
        P, ps in 20.44 fixed point, 64 bits. These three are sampled from the first record after
        reset on, and must stay constant until the next reset.
    reciprocal
        floor(2^57 / P), P in ps, 48 bits.
    origin
        Time at which slot 0 begins, ps, 48 bits.
    track, window_log2
        1 to take corrections, and the slots of a window (12 to 24); sampled like the period.
    correction
        `CORRECTION` from the tracker.
    taken
        1 in the clock in which the correction was taken: the first record of the next window
        left the entry.
    flush
        1 while a record waits for a correction and all before it have left `o`.
    anchor
        1 beside a record on `o` that begins a window.
    busy
        1 while records are between `i` and `o`.
    counts
        Ledger of ``slotter``.
    """

    i: In(stream.Signature(layout(TAG)))
    o: Out(stream.Signature(layout(SLOT_TAG)))
    period: In(PHASE_BITS + _FRACTION)
    reciprocal: In(48)
    origin: In(TIME_BITS)
    track: In(1)
    window_log2: In(5)
    correction: In(CORRECTION)
    taken: Out(1)
    flush: Out(1)
    anchor: Out(1)
    busy: Out(1)
    counts: Out(Counts("slotter"))

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.ledger = ledger = Ledger("slotter")
        m.d.comb += [
            self.counts.live.eq(ledger.counts.live),
            self.counts.at_frame.eq(ledger.counts.at_frame),
        ]

        # What belongs to the pair in force has a register at each place where the pipeline uses
        # it; the first record of a window takes the new values along.
        base_time, base_slot = Signal(TIME_BITS), Signal(SLOT_BITS)
        base_whole, base_fraction = Signal(PHASE_BITS), Signal(_FRACTION)
        inverse = Signal(48)
        period_7, period_14 = Signal(PHASE_BITS + _FRACTION), Signal(PHASE_BITS + _FRACTION)
        last_slot, last_rest = Signal.like(base_slot), Signal(PHASE_BITS + _FRACTION)
        new_slot, new_rest = Signal.like(base_slot), Signal.like(last_rest)

        # -- order, base: the record in the entry register --------------------------------------

        step = Signal()  # the pipeline moves
        go = Signal()  # the entry's record leaves it
        entry, entry_valid = Signal(layout(TAG)), Signal()
        m.d.comb += [step.eq(~self.o.valid | self.o.ready), self.i.ready.eq(~entry_valid | go)]
        with m.If(go):
            m.d.sync += entry_valid.eq(0)
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += [entry.eq(self.i.payload), entry_valid.eq(1)]

        loaded, started = Signal(), Signal()
        settled = Signal()  # the base is the last record
        last_time, last_delta = Signal(TIME_BITS), Signal(TIME_BITS)
        gap, delta = Signal(TIME_BITS), Signal(TIME_BITS)
        click, bad, early, near, drop = Signal(), Signal(), Signal(), Signal(), Signal()
        flight = Signal()  # records are in the pipeline
        m.d.comb += [
            gap.eq(entry.time - last_time),
            delta.eq(entry.time - base_time),
            click.eq(entry.kind == TagKind.CLICK),
            bad.eq(click & entry.channel[_CHANNEL_VALID_BITS:].any()),
            early.eq(gap[-1] & gap[:-1].any()),
            near.eq(settled | ~(delta[-1] | last_delta[-1])),
            drop.eq(bad | (click & early)),
        ]

        windows = Signal(_Windows)
        bound = Signal(TIME_BITS)  # free passage up to here
        behind, delta_behind = Signal(TIME_BITS), Signal(TIME_BITS)
        end_floor = Signal(TIME_BITS)
        bounded, beyond, crosses, prepared = Signal(), Signal(), Signal(), Signal()
        m.d.comb += [
            behind.eq(entry.time - bound),
            delta_behind.eq(entry.time - end_floor),
            bounded.eq((windows == _Windows.BEGUN) | (windows == _Windows.ENDS)),
            beyond.eq(bounded & ~behind[-1]),
            crosses.eq((windows == _Windows.ENDS) & ~behind[-1]),
            go.eq(
                entry_valid & loaded & step & (bad | early | Mux(beyond, crosses & prepared, near))
            ),
        ]
        with m.If(entry_valid & ~loaded):
            m.d.sync += [
                base_time.eq(self.origin),
                last_time.eq(self.origin),
                inverse.eq(self.reciprocal),
                period_7.eq(self.period),
                period_14.eq(self.period),
                loaded.eq(1),
                settled.eq(1),
                windows.eq(Mux(self.track, _Windows.FREE, _Windows.OFF)),
            ]
        with m.Elif(entry_valid & ~(bad | early | near) & ~flight):
            m.d.sync += [
                base_time.eq(last_time),
                base_slot.eq(last_slot),
                base_fraction.eq(last_rest),
                base_whole.eq(last_rest[_FRACTION:]),
                last_delta.eq(0),
                settled.eq(1),
            ]
        with m.If(go):
            with m.If(~bad & ~early):
                m.d.sync += [
                    last_time.eq(entry.time),
                    last_delta.eq(Mux(crosses, delta_behind, delta)),
                    settled.eq(0),
                    started.eq(1),
                ]
                with m.If(crosses):
                    m.d.sync += base_time.eq(end_floor)
            m.d.comb += [
                ledger.step["in"].eq(click),
                ledger.step["bad_channel"].eq(bad),
                ledger.step["before_origin"].eq(click & ~bad & early & ~started),
                ledger.step["out_of_order"].eq(click & ~bad & early & started),
            ]
            with m.If(entry.kind == TagKind.FRAME):
                m.d.comb += [
                    ledger.frame[name].eq(1)
                    for name in ("in", "bad_channel", "before_origin", "out_of_order")
                ]

        # -- pipeline --------------------------------------------------------------------------

        passing = data.StructLayout(
            {"valid": 1, "channel": CHANNEL_BITS, "kind": 4, "anchor": 1, "switch": 1}
        )
        depth = 14
        tags = [Signal(passing, name=f"tag_{n}") for n in range(depth + 1)]
        m.d.comb += [
            tags[0].valid.eq(go & ~drop),
            tags[0].channel.eq(entry.channel),
            tags[0].kind.eq(entry.kind),
            tags[0].anchor.eq(~bad & ~early & (crosses | (windows == _Windows.FREE))),
            tags[0].switch.eq(~bad & ~early & crosses),
            flight.eq(Cat(tag.valid for tag in tags[1:]).any()),
            self.busy.eq(entry_valid | flight),
            self.taken.eq(go & tags[0].switch),
            self.flush.eq(entry_valid & crosses & ~bad & ~early & ~flight & ~self.o.valid),
        ]

        def register(value: Value, name: str) -> Signal:
            signal = Signal(value.shape(), name=name)
            m.d.sync += signal.eq(value)
            return signal

        with m.If(step):
            m.d.sync += [after.eq(before) for before, after in pairwise(tags)]
            # 1, 2: T
            forward = Mux(crosses, delta_behind, delta)
            delta_1 = register(Mux(early, last_delta, forward), "delta_1")
            total = register(delta_1 + base_whole, "total_2")
            # 3 to 6: the estimate; 7 to 11: q' P; 12, 13: x = (T + f) - q' P
            quotient = estimate(Fabric, register, FULL, total, inverse)
            low, high = product(Fabric, register, FULL, quotient, period_7)
            for n in range(3, 12):
                total = register(total, f"total_{n}")
            for n in range(7, 15):
                quotient = register(quotient, f"quotient_{n}")
            x, over = remainder(Fabric, register, FULL, total, base_fraction, low, high)
            # 14: x less P and less 2 P
            over = register(over, "over_14")
            rest_0 = register(x, "rest_0_14")
            rest_1 = register(x - period_14, "rest_1_14")
            rest_2 = register((x - (period_14 << 1))[-1], "rest_2_negative_14")
            # A record that switches brings what the stage after it needs, a stage ahead.
            for stage, values in (
                (0, [(base_whole, new_rest[_FRACTION:])]),
                (1, [(inverse, self.correction.reciprocal)]),
                (5, [(period_7, self.correction.period)]),
                (10, [(base_fraction, new_rest[:_FRACTION])]),
                (12, [(period_14, self.correction.period)]),
                (13, [(base_slot, new_slot)]),
            ):
                with m.If(tags[stage].valid & tags[stage].switch):
                    m.d.sync += [target.eq(value) for target, value in values]

        # -- result ----------------------------------------------------------------------------

        tag = tags[depth]
        slot, rest = Signal(SLOT_BITS), Signal.like(last_rest)
        more, broken, fails = Signal(), Signal(), Signal()
        m.d.comb += [
            more.eq(~rest_1[-1]),
            slot.eq(base_slot + quotient + more),
            rest.eq(Mux(more, rest_1, rest_0)),
            fails.eq(broken | over | ~rest_2),
        ]
        click_out = tag.kind == TagKind.CLICK
        with m.If(step):
            m.d.sync += [
                self.o.valid.eq(tag.valid & ~(click_out & fails)),
                self.anchor.eq(tag.anchor & ~fails),
                self.o.payload.channel.eq(tag.channel),
                self.o.payload.kind.eq(tag.kind),
                self.o.payload.slot.eq(Mux(fails, last_slot, slot)),
                self.o.payload.phase.eq(Mux(fails, last_rest, rest)[_FRACTION:]),
            ]
            with m.If(tag.valid):
                with m.If(fails):
                    m.d.sync += broken.eq(1)
                with m.Else():
                    m.d.sync += [last_slot.eq(slot), last_rest.eq(rest)]
                m.d.comb += [
                    ledger.step["out"].eq(click_out & ~fails),
                    ledger.step["inexact"].eq(click_out & fails),
                ]
                with m.If(tag.kind == TagKind.FRAME):
                    m.d.comb += [ledger.frame["out"].eq(1), ledger.frame["inexact"].eq(1)]
        # -- windows ---------------------------------------------------------------------------

        opens = Signal()  # the entry's record begins a window
        anchor_time, anchored = Signal(TIME_BITS), Signal()
        span, doublings = Signal(PHASE_BITS + _FRACTION + _SPAN_LOG2), Signal(5)
        begin = Signal(TIME_BITS + _FRACTION)
        begin_known, end_known = Signal(), Signal()
        end, end_slot = Signal(TIME_BITS + _FRACTION), Signal(SLOT_BITS)
        shift_known = Signal()
        shift = Signal(signed(PHASE_BITS + _FRACTION + 1))
        length = Signal(_SPAN_LOG2 + 1)
        m.d.comb += [
            end_floor.eq(end[_FRACTION:]),
            opens.eq(go & tags[0].anchor),
        ]
        m.d.sync += length.eq(1 << self.window_log2)
        with m.If(entry_valid & ~loaded):
            m.d.sync += [span.eq(self.period), doublings.eq(self.window_log2)]
        with m.Elif(self.taken):
            m.d.sync += [span.eq(self.correction.period), doublings.eq(self.window_log2)]
        with m.Elif(doublings.any()):
            m.d.sync += [span.eq(span << 1), doublings.eq(doublings - 1)]
        m.d.sync += anchored.eq(step & tag.valid & tag.anchor & ~fails)
        with m.If(anchored):
            m.d.sync += [
                begin.eq(Cat(Const(0, _FRACTION), anchor_time) - last_rest),
                end_slot.eq(last_slot + length),
                begin_known.eq(1),
            ]
        with m.If(begin_known & ~doublings.any()):
            m.d.sync += [end.eq(begin + span), begin_known.eq(0), end_known.eq(1)]
        with m.If(end_known):
            m.d.sync += [
                bound.eq(end_floor + end[:_FRACTION].any()),
                windows.eq(_Windows.ENDS),
                end_known.eq(0),
                shift_known.eq(0),
                prepared.eq(0),
            ]
        # The pair after the end: its base is the record's time S, rounded down, in slot K, or in
        # the slot before where the new pair has K begin later.
        with m.If((windows == _Windows.ENDS) & self.correction.ready & ~prepared):
            m.d.sync += [
                shift.eq(-self.correction.phase - end[:_FRACTION]),
                shift_known.eq(1),
                new_rest.eq(Mux(shift[-1], shift + self.correction.period, shift)),
                new_slot.eq(end_slot - shift[-1]),
                prepared.eq(shift_known),
            ]
        with m.If(opens):
            m.d.sync += [
                anchor_time.eq(entry.time),
                bound.eq(entry.time + (length << _SAFE_LOG2)),
                windows.eq(_Windows.BEGUN),
                prepared.eq(0),
                shift_known.eq(0),
            ]
        with m.If(step & tag.valid & tag.anchor & fails):
            m.d.sync += windows.eq(_Windows.OFF)
        return m
