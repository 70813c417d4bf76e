# SPDX-License-Identifier: CERN-OHL-W-2.0
"""Time of a tag to slot number and phase within the slot, exactly."""

from itertools import pairwise

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.enum import Enum
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from keyrail.contract import (
    CHANNEL_BITS,
    PERIOD_FRACTION_BITS,
    PHASE_BITS,
    SLOT_BITS,
    SLOT_TAG,
    TAG,
    TIME_BITS,
    LossMark,
    TagKind,
)

from .division import FULL, Fabric, estimate, product, remainder
from .layouts import layout
from .ledger import Counts, Ledger
from .skid import skid

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
_DEPTH = 15
"""Stages of the pipeline between entry and `o`."""
_TURNS = 8
"""Words of a memory that delays, a power of two: by up to this and one clock."""
_BUFFER = 32
"""Records between entry and output, a power of two: more than the pipeline holds."""
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
    origin has come, that counts as before the origin. Once one has, the click counts as out of
    order, and a loss marker (kind LOSS, `LossMark.AT`) leaves in its place, so that blanking opens
    a blank for it. Earlier means (t - t_last) mod 2^48 > 2^47, t_last beginning as the origin. A
    click of a channel above 7 is dropped first and has no part in the order. Markers always pass;
    an early one, that in place of a click included, is taken at the last record's time, at the
    origin if there is none.

    Latency: `latency` clocks from the transfer on `i` to `o` valid, one more for the first record.
    Throughput: 1 record a clock. Between the first record of a window and the knowledge of its
    end lie 50 clocks at most, during which records up to 2^(window_log2 + 9) ps after the first
    pass freely.

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
        1 while records are between `i` and `o`, and for 32 clocks after reset, while the buffer is
        overwritten and no record moves.
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

    latency = 5 + _DEPTH
    """Clocks from a record's transfer on `i` to `o` valid."""

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

        # -- order, base: a record in front of the entry, and the one in the entry ----------------

        # What decides about a record are flip-flops: its differences to all that it is held
        # against are formed as it moves into the entry, with both outcomes for the record that
        # leaves it in the same clock.
        go = Signal()  # the entry's record leaves it
        take = Signal()  # the entry takes the record in front of it
        # The entry's record is held against what has changed meanwhile: its time changes places
        # with that in front of it for a clock.
        again = Signal(2)
        swept, loads, loaded, started = Signal(), Signal(), Signal(), Signal()
        settled = Signal()  # the base is the last record
        room, empty = Signal(), Signal()  # for a record, and of records, between here and `o`
        waits = Signal()  # the entry's record was there in the clock before
        # A skid whose output stays for those clocks.
        arriving, arriving_valid = Signal(layout(TAG)), Signal()
        held_back, full = Signal(layout(TAG)), Signal()
        follows = Signal()
        m.d.comb += follows.eq((~arriving_valid | take) & ~again.any())
        skid(m, self.i, held_back, full, arriving, arriving_valid, follows)

        entry, entry_valid = Signal(layout(TAG)), Signal()
        click, bad, aside = Signal(), Signal(), Signal()  # aside: bad or early
        beyond, crosses = Signal(), Signal()  # at or after `bound`; that being the window's end
        stands = Signal()  # not `crosses`: a flip-flop of its own, for the longest way
        safe = Signal(TIME_BITS)  # free passage up to here if it begins a window
        delta, delta_behind = Signal(TIME_BITS), Signal(TIME_BITS)
        delta_1 = Signal(TIME_BITS)  # of the last record in order
        last_time = Signal(TIME_BITS)
        windows = Signal(_Windows)
        bound = Signal(TIME_BITS)  # free passage up to here
        end_floor = Signal(TIME_BITS)
        length = Signal(_SPAN_LOG2 + 1)
        prepared = Signal()

        near = Signal()  # the base serves
        moves, stays, far = Signal(), Signal(), Signal()
        forward, switches, opens = Signal(), Signal(), Signal()
        m.d.comb += [
            forward.eq(entry_valid & ~aside),
            switches.eq(forward & crosses),
            opens.eq(forward & (crosses | (windows == _Windows.FREE))),
            moves.eq(room & ~again.any() & (aside | Mux(beyond, ~stands & prepared, near))),
            go.eq(entry_valid & moves),
            loads.eq(swept & ~loaded & arriving_valid),
            take.eq(loaded & (~entry_valid | moves)),
            # Of the last record in order, when the next one is in the entry.
            stays.eq(again[1] | ~forward),
            far.eq(Mux(stays, delta_1[-1], Mux(crosses, delta_behind[-1], delta[-1]))),
        ]
        m.d.sync += waits.eq(entry_valid & ~go)

        bad_arriving = Signal()
        m.d.comb += bad_arriving.eq(
            (arriving.kind == TagKind.CLICK) & arriving.channel[_CHANNEL_VALID_BITS:].any()
        )

        def since(name: str, reference: Signal) -> Signal:
            difference = Signal(TIME_BITS, name=f"since_{name}")
            m.d.comb += difference.eq(arriving.time - reference)
            return difference

        def is_early(name: str, reference: Signal) -> Value:
            apart = arriving.time[:-1] != reference[:-1]
            return since(name, reference)[-1] & apart

        early_last, early_entry = is_early("last", last_time), is_early("entry", entry.time)
        since_base, since_end = since("base", base_time), since("end", end_floor)
        behind_bound, behind_safe = ~since("bound", bound)[-1], ~since("safe", safe)[-1]
        ends = windows == _Windows.ENDS
        with m.If(take):
            m.d.sync += [
                entry.eq(arriving),
                entry_valid.eq(arriving_valid),
                click.eq(arriving.kind == TagKind.CLICK),
                bad.eq(bad_arriving),
                aside.eq(bad_arriving | Mux(forward, early_entry, early_last)),
                safe.eq(arriving.time + (length << _SAFE_LOG2)),
            ]
        with m.If(again.any()):
            m.d.sync += [arriving.time.eq(entry.time), entry.time.eq(arriving.time)]
        with m.If(take | again[1]):
            m.d.sync += [
                delta.eq(Mux(switches, since_end, since_base)),
                near.eq((settled & stays) | ~(far | Mux(switches, since_end[-1], since_base[-1]))),
                delta_behind.eq(since_end),
                beyond.eq(
                    Mux(opens, behind_safe, behind_bound & (ends | (windows == _Windows.BEGUN)))
                ),
                crosses.eq(~opens & behind_bound & ends),
                stands.eq(opens | ~behind_bound | ~ends),
            ]

        with m.If(loads):
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
        m.d.sync += again.eq(again << 1)
        with m.If(waits & forward & ~again.any() & ~crosses):
            with m.If(beyond):
                # What it was held against was not the window's end.
                m.d.sync += again.eq(windows != _Windows.BEGUN)
            with m.Elif(~near & empty):
                m.d.sync += [
                    base_time.eq(last_time),
                    base_slot.eq(last_slot),
                    base_fraction.eq(last_rest),
                    base_whole.eq(last_rest[_FRACTION:]),
                    delta_1.eq(0),
                    settled.eq(1),
                    again.eq(1),
                ]
        early, lost = Signal(), Signal()
        m.d.comb += [early.eq(aside & ~bad), lost.eq(click & early & started)]
        with m.If(go):
            with m.If(~aside):
                m.d.sync += [
                    last_time.eq(entry.time),
                    delta_1.eq(Mux(crosses, delta_behind, delta)),
                    settled.eq(0),
                    started.eq(1),
                ]
                with m.If(crosses):
                    m.d.sync += base_time.eq(end_floor)
            m.d.comb += [
                ledger.step["in"].eq(click),
                ledger.step["bad_channel"].eq(bad),
                ledger.step["before_origin"].eq(click & early & ~started),
                ledger.step["out_of_order"].eq(lost),
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
        tags = [Signal(passing, name=f"tag_{n}") for n in range(_DEPTH + 1)]
        m.d.comb += [
            # A click out of order leaves as a loss: something was there, its slot is not known.
            tags[0].valid.eq(go & ~bad & ~(click & early & ~started)),
            tags[0].channel.eq(Mux(lost, LossMark.AT, entry.channel)),
            tags[0].kind.eq(Mux(lost, TagKind.LOSS, entry.kind)),
            tags[0].anchor.eq(opens),
            tags[0].switch.eq(switches),
        ]
        m.d.sync += [
            self.taken.eq(go & switches),
            self.flush.eq(waits & switches & empty),
        ]

        # It never stops, so that it overwrites itself: no reset.
        def register(value: Value, name: str) -> Signal:
            signal = Signal(value.shape(), name=name, reset_less=True)
            m.d.sync += signal.eq(value)
            return signal

        turn = Signal(range(_TURNS))
        m.d.sync += turn.eq(turn + 1)

        def late(value: Value, clocks: int, name: str) -> Signal:
            """The value so many clocks later: through a memory that is written all round."""
            memory = Memory(shape=len(value), depth=_TURNS, init=[], attrs={"ram_style": "block"})
            m.submodules[name] = memory
            write, read = memory.write_port(), memory.read_port()
            m.d.comb += [
                write.en.eq(1),
                write.addr.eq(turn),
                write.data.eq(value),
                read.addr.eq(turn + _TURNS + 2 - clocks),
            ]
            return register(read.data, f"{name}_late")

        m.d.sync += [after.eq(before) for before, after in pairwise(tags)]
        # 2: T, an early record's being that of the record before
        total = register(delta_1 + base_whole, "total_2")
        # 3 to 6: the estimate; 7 to 11: q' P; 12, 13: x = (T + f) - q' P
        quotient = estimate(Fabric, register, FULL, total, inverse)
        low, high = product(Fabric, register, FULL, quotient, period_7)
        total, quotient = late(total, 9, "total"), late(quotient, 8, "quotient")
        x, over = remainder(Fabric, register, FULL, total, base_fraction, low, high)
        # 14: x less P and less 2 P
        rest_0 = register(x, "rest_0_14")
        rest_1 = register(x - period_14, "rest_1_14")
        rest_2 = register((x - (period_14 << 1))[-1], "rest_2_negative_14")
        # 15: the slot, with q' or its successor, and the remainder
        more = ~rest_1[-1]
        sums = Cat(more, quotient) + Cat(Const(1, 1), base_slot)  # one carry
        slot = register(sums[1 : 1 + SLOT_BITS], "slot_15")
        rest = register(Mux(more, rest_1, rest_0)[: len(last_rest)], "rest_15")
        outside = register(over | ~rest_2, "outside_15")
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

        tag = tags[_DEPTH]
        buffered = data.StructLayout({"tag": layout(SLOT_TAG), "anchor": 1})
        result = Signal(buffered)
        broken, fails, click_out, drops = Signal(), Signal(), Signal(), Signal()
        m.d.comb += [
            click_out.eq(tag.kind == TagKind.CLICK),
            fails.eq(broken | outside),
            drops.eq(tag.valid & click_out & fails),
            result.anchor.eq(tag.anchor & ~fails),
            result.tag.channel.eq(tag.channel),
            result.tag.kind.eq(tag.kind),
            result.tag.slot.eq(Mux(fails, last_slot, slot)),
            result.tag.phase.eq(Mux(fails, last_rest, rest)[_FRACTION:]),
        ]
        with m.If(tag.valid):
            with m.If(fails):
                m.d.sync += broken.eq(1)
            with m.Else():
                m.d.sync += [last_slot.eq(slot), last_rest.eq(rest)]
            m.d.comb += [
                ledger.step["out"].eq(click_out & ~fails),
                ledger.step["inexact"].eq(drops),
            ]
            with m.If(tag.kind == TagKind.FRAME):
                m.d.comb += [ledger.frame["out"].eq(1), ledger.frame["inexact"].eq(1)]

        # -- buffer ----------------------------------------------------------------------------

        # Where the output waits, what is in the pipeline ends here: a record leaves the entry only
        # if it has room.
        m.submodules.memory = memory = Memory(
            shape=buffered, depth=_BUFFER, init=[], attrs={"ram_style": "block"}
        )
        write, read = memory.write_port(), memory.read_port()
        writes, stored = Signal(), Signal(range(_BUFFER + 1))
        fetch, fetched, leaves = Signal(), Signal(), Signal()
        held = Signal(range(_BUFFER + 1))  # records from the entry to `o`
        sweep = Signal(range(_BUFFER + 1))
        m.d.comb += [
            swept.eq(sweep[-1]),
            writes.eq(tag.valid & ~drops),
            write.en.eq(writes | ~swept),
            write.data.eq(Mux(swept, result.as_value(), 0)),
            leaves.eq(~self.o.valid | self.o.ready),
            fetch.eq(stored.any() & (~fetched | leaves)),
            read.en.eq(fetch),
        ]
        m.d.sync += [
            held.eq(held + tags[0].valid - drops - (self.o.valid & self.o.ready)),
            stored.eq(Mux(fetch, stored - ~writes, stored + writes)),
            room.eq(held < _BUFFER - 3),
            empty.eq(held == 0),
            fetched.eq(fetch | (fetched & ~leaves)),
        ]
        with m.If(write.en):
            m.d.sync += write.addr.eq(write.addr + 1)
        with m.If(fetch):
            m.d.sync += read.addr.eq(read.addr + 1)
        with m.If(leaves):
            m.d.sync += [
                self.o.valid.eq(fetched),
                self.o.payload.eq(read.data.tag),
                self.anchor.eq(read.data.anchor),
            ]
        # After a reset nothing of what was there remains.
        with m.If(~swept):
            m.d.sync += sweep.eq(sweep + 1)
        m.d.comb += self.busy.eq(~swept | arriving_valid | entry_valid | (held > self.o.valid))

        # -- windows ---------------------------------------------------------------------------

        anchor_time, anchored = Signal(TIME_BITS), Signal()
        span, doublings = Signal(PHASE_BITS + _FRACTION + _SPAN_LOG2), Signal(5)
        # Begin, less 2^-44 ps; its fraction is added first, then, with the carry, the whole ps.
        begin, begin_part, carry = Signal(TIME_BITS), Signal(_FRACTION), Signal()
        begin_known, part_known = Signal(), Signal()
        end_known, bound_known = Signal(), Signal()
        end_fraction, end_slot = Signal(_FRACTION), Signal(SLOT_BITS)
        end_part = Signal()  # the end is past a whole ps
        m.d.sync += length.eq(1 << self.window_log2)
        with m.If(loads):
            m.d.sync += [span.eq(self.period), doublings.eq(self.window_log2)]
        with m.Elif(self.taken):
            m.d.sync += [span.eq(self.correction.period), doublings.eq(self.window_log2)]
        with m.Elif(doublings.any()):
            m.d.sync += [span.eq(span << 1), doublings.eq(doublings - 1)]
        m.d.sync += anchored.eq(tag.valid & tag.anchor & ~fails)
        with m.If(anchored):
            m.d.sync += [
                begin.eq(anchor_time + Cat(~last_rest[_FRACTION:], Const(-1, TIME_BITS))),
                begin_part.eq(~last_rest[:_FRACTION]),
                end_slot.eq(last_slot + length),
                begin_known.eq(1),
            ]
        one = Const(1, 1)
        fractions = Cat(one, begin_part) + Cat(one, span[:_FRACTION])
        with m.If(begin_known & ~doublings.any()):
            m.d.sync += [Cat(end_fraction, carry).eq(fractions >> 1), begin_known.eq(0)]
        with m.If(part_known):
            m.d.sync += end_floor.eq((Cat(carry, begin) + Cat(carry, span[_FRACTION:])) >> 1)
        m.d.sync += [
            part_known.eq(begin_known & ~doublings.any()),
            end_known.eq(part_known),
            bound_known.eq(end_known),
            end_part.eq(end_fraction.any()),
        ]
        with m.If(bound_known):
            m.d.sync += [bound.eq(end_floor + end_part), windows.eq(_Windows.ENDS)]
        # The pair after the end: its base is the record's time S, rounded down, in slot K, or in
        # the slot before where the new pair has K begin later.
        later = Signal(signed(PHASE_BITS + _FRACTION + 1))
        shift = Signal.like(later)
        preparing = Signal(3)
        with m.If((windows == _Windows.ENDS) & self.correction.ready):
            m.d.sync += preparing.eq(Cat(1, preparing))
        m.d.sync += [
            later.eq(self.correction.phase + end_fraction),
            shift.eq(-later),
            new_rest.eq(Mux(shift[-1], shift + self.correction.period, shift)),
            new_slot.eq(end_slot - shift[-1]),
        ]
        m.d.comb += prepared.eq(preparing[-1])
        with m.If(go & opens):
            m.d.sync += [
                anchor_time.eq(entry.time),
                bound.eq(safe),
                windows.eq(_Windows.BEGUN),
                preparing.eq(0),
            ]
        with m.If(tag.valid & tag.anchor & fails):
            m.d.sync += windows.eq(_Windows.OFF)
        return m
