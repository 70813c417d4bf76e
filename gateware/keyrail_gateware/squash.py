# SPDX-License-Identifier: CERN-OHL-W-2.0
"""Squash: several clicks in one slot become one detection."""

from amaranth.hdl import Assert, Assume, Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from keyrail.contract import COIN, DETECTION, GATED_TAG, SLOT_BITS, TagKind

from .layouts import layout
from .ledger import Counts, Ledger

__all__ = ["GROUP", "Squash"]

GROUP = data.StructLayout({"slot": SLOT_BITS, "double": 1, "cross": 1, "valid": 1})
"""A slot that has been closed: what kind of click it was; ``valid`` for one clock."""


class Squash(wiring.Component):
    """Group the clicks of a slot into one detection.

    Clicks of a slot come one after the other. The first record of another slot closes the group:

    - clicks of one outcome (same basis and bit): that outcome;
    - both bits of one basis (double click): that basis, the bit by a coin;
    - both bases (cross click): basis and bit by coins, or, with ``discard_cross``, the slot is
      given up and no coin is taken.

    One coin record serves one multiple click. If none is offered in that clock, the slot is given
    up (``coin_dry``); the path never waits for coins. A slot with three or four outcomes is a
    cross click and no double click. Markers pass in order, behind the group that they close; a
    marker in the slot of the pending group passes before it and does not close it.

    Assertions under ``platform="formal"``: at most one detection a slot, no clock lost to a marker,
    clicks conserved; proven by k-induction in the bench.

    Counters: in = out + merged + discarded + coin_dry + held, where held is the group that is
    pending.

    Latency: a detection is offered 2 clocks after the record that closes its group was taken; a
    marker 2 clocks after it was taken, or behind the detection of the group that it closes.
    Throughput: 1 record a clock, whatever it is. A marker that closes a group makes two records
    of one, and waits in a register; it finds its clock, since the click that opened the group made
    none, and no group is pending while a marker waits.

    Members
    -------
    i, o
        Streams of ``gated_tag`` and ``detection``.
    coins
        Stream of ``coin``; taken only where one is used.
    discard_cross
        Rule for cross clicks: 1 gives the slot up. Constant while records pass.
    group
        `GROUP`: each slot with clicks, as it is closed, whatever becomes of it.
    counts
        Ledger of ``squash``.
    """

    i: In(stream.Signature(layout(GATED_TAG)))
    coins: In(stream.Signature(layout(COIN)))
    o: Out(stream.Signature(layout(DETECTION)))
    discard_cross: In(1)
    group: Out(GROUP)
    counts: Out(Counts("squash"))

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.ledger = ledger = Ledger("squash")
        m.d.comb += [
            self.counts.live.eq(ledger.counts.live),
            self.counts.at_frame.eq(ledger.counts.at_frame),
        ]
        coin, result = self.coins.payload, self.o.payload

        # A group is pending only while every record since its last click has had its slot: so the
        # slot of the record before tells whether a record belongs to it.
        record = data.StructLayout({"slot": SLOT_BITS, "kind": 4, "basis": 1, "bit": 1})
        tag, valid, same = Signal(record), Signal(), Signal()
        alike = Signal(2)  # lower and upper half of the two slots
        slot = Signal(SLOT_BITS)  # of the record before
        step = Signal()
        m.d.comb += [step.eq(~self.o.valid | self.o.ready), self.i.ready.eq(step)]
        with m.If(step):
            m.d.sync += valid.eq(self.i.valid)
            with m.If(self.i.valid):
                m.d.sync += [
                    *(tag[name].eq(self.i.payload[name]) for name in record.members),
                    *(
                        alike[n].eq(
                            self.i.payload.slot.word_select(n, SLOT_BITS // 2)
                            == tag.slot.word_select(n, SLOT_BITS // 2)
                        )
                        for n in range(2)
                    ),
                    slot.eq(tag.slot),
                ]

        pending = Signal()
        seen = Signal(4)  # outcomes of the group: Z0, Z1, X0, X1
        marker, marker_waits = Signal(layout(DETECTION)), Signal()
        click, joins, closes = Signal(), Signal(), Signal()
        m.d.comb += [
            same.eq(alike.all()),
            click.eq(tag.kind == TagKind.CLICK),
            joins.eq(pending & same),
            closes.eq(valid & pending & ~same),
        ]
        in_z, in_x = seen[:2], seen[2:]
        cross, double, discard, tossed, dry = Signal(), Signal(), Signal(), Signal(), Signal()
        m.d.comb += [
            cross.eq(in_z.any() & in_x.any()),
            double.eq(~cross & (in_z.all() | in_x.all())),
            discard.eq(cross & self.discard_cross),
            tossed.eq(double | (cross & ~self.discard_cross)),
            dry.eq(tossed & ~self.coins.valid),
            self.coins.ready.eq(step & closes & tossed),
        ]

        # The record moves on: what comes late, `step`, decides about nothing else.
        with m.If(step):
            m.d.sync += self.o.valid.eq(0)
            with m.If(closes):
                m.d.sync += [
                    self.o.valid.eq(~discard & ~dry),
                    result.slot.eq(slot),
                    result.kind.eq(TagKind.CLICK),
                    result.basis.eq(Mux(cross, coin.basis, in_x.any())),
                    result.bit.eq(Mux(tossed, coin.bit, seen[1] | seen[3])),
                ]
                m.d.comb += [
                    ledger.step["out"].eq(~discard & ~dry),
                    ledger.step["discarded"].eq(discard),
                    ledger.step["coin_dry"].eq(dry),
                    ledger.step["double_clicks"].eq(double),
                    ledger.step["cross_clicks"].eq(cross),
                ]
            with m.Elif(marker_waits):
                m.d.sync += [result.eq(marker), self.o.valid.eq(1), marker_waits.eq(0)]
            with m.Elif(valid & ~click):
                m.d.sync += [
                    self.o.valid.eq(1),
                    result.slot.eq(tag.slot),
                    result.kind.eq(tag.kind),
                    result.basis.eq(0),
                    result.bit.eq(0),
                ]
            with m.If(valid):
                with m.If(click):
                    outcome = Signal(4)
                    m.d.comb += outcome.eq(1 << Cat(tag.bit, tag.basis))
                    m.d.sync += [
                        pending.eq(1),
                        seen.eq(Mux(joins, seen | outcome, outcome)),
                    ]
                    m.d.comb += [ledger.step["in"].eq(1), ledger.step["merged"].eq(joins)]
                with m.Elif(closes | marker_waits):
                    m.d.sync += [
                        pending.eq(0),
                        marker.slot.eq(tag.slot),
                        marker.kind.eq(tag.kind),
                        marker_waits.eq(1),
                    ]
                with m.If(tag.kind == TagKind.FRAME):
                    m.d.comb += ledger.frame.eq(~0)
        m.d.sync += [
            self.group.slot.eq(slot),
            self.group.double.eq(double),
            self.group.cross.eq(cross),
            self.group.valid.eq(step & closes),
        ]
        if platform == "formal":
            # Slots do not fall: what the tag path gives.
            m.d.comb += Assume(~self.i.valid | (self.i.payload.slot >= tag.slot))
            # The last group that was closed, and the last detection that was taken.
            closed, closed_slot = Signal(), Signal(SLOT_BITS)
            out, out_slot = Signal(), Signal(SLOT_BITS)
            processed = Mux(valid, slot, tag.slot)
            detection = self.o.valid & (result.kind == TagKind.CLICK)
            steps = ledger.step
            held = Signal(8)
            m.d.sync += held.eq(
                held
                + steps["in"]
                - steps["merged"]
                - steps["out"]
                - steps["discarded"]
                - steps["coin_dry"]
            )
            with m.If(step & closes):
                m.d.sync += [closed.eq(1), closed_slot.eq(slot)]
            with m.If(detection & self.o.ready):
                m.d.sync += [out.eq(1), out_slot.eq(result.slot)]
            m.d.comb += [
                # At most one detection a slot.
                Assert(~(detection & out) | (result.slot > out_slot)),
                # A marker that waits is never overwritten, so that no clock is lost.
                Assert(~(pending & marker_waits)),
                Assert(self.i.ready == (~self.o.valid | self.o.ready)),
                # Clicks are conserved, and a coin goes to one multiple click alone.
                Assert(held == pending),
                Assert(~self.coins.ready | (step & closes & (double | cross))),
                # What the induction rests on.
                Assert(~valid | (same == (slot == tag.slot))),
                Assert(~valid | (slot <= tag.slot)),
                Assert(~closed | (closed_slot < processed)),
                Assert(~detection | (closed & (result.slot == closed_slot))),
                Assert(~out | (closed & (out_slot <= closed_slot))),
                Assert(~(out & detection) | (out_slot < closed_slot)),
                Assert(~pending | seen.any()),
                Assert(~marker_waits | (marker.kind != TagKind.CLICK)),
            ]
        return m
