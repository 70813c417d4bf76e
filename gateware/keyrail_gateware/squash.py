# SPDX-License-Identifier: CERN-OHL-W-2.0
"""Squash: several clicks in one slot become one detection."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from keyrail.contract import COIN, DETECTION, GATED_TAG, SLOT_BITS, TagKind

from .layouts import layout
from .ledger import Counts, Ledger

__all__ = ["Squash"]


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

    Counters: in = out + merged + discarded + coin_dry + held, where held is 1 while a group is
    pending, else 0.

    Latency: a detection is offered 1 clock after the record that closes its group was taken; a
    marker 1 clock after it was taken, or 2 where it closes a group. Throughput: 1 click a clock;
    a marker that closes a group takes 2 clocks.

    Members
    -------
    i, o
        Streams of ``gated_tag`` and ``detection``.
    coins
        Stream of ``coin``; taken only where one is used.
    discard_cross
        Rule for cross clicks: 1 gives the slot up. Constant while records pass.
    counts
        Ledger of ``squash``.
    """

    i: In(stream.Signature(layout(GATED_TAG)))
    coins: In(stream.Signature(layout(COIN)))
    o: Out(stream.Signature(layout(DETECTION)))
    discard_cross: In(1)
    counts: Out(Counts("squash"))

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.ledger = ledger = Ledger("squash")
        m.d.comb += [
            self.counts.live.eq(ledger.counts.live),
            self.counts.at_frame.eq(ledger.counts.at_frame),
        ]

        tag, coin, result = self.i.payload, self.coins.payload, self.o.payload
        pending, slot = Signal(), Signal(SLOT_BITS)
        seen = Signal(4)  # outcomes of the group: Z0, Z1, X0, X1
        marker, marker_waits = Signal(layout(DETECTION)), Signal()

        free, take, click, same, close = Signal(), Signal(), Signal(), Signal(), Signal()
        m.d.comb += [
            free.eq(~self.o.valid | self.o.ready),
            self.i.ready.eq(free & ~marker_waits),
            take.eq(self.i.valid & self.i.ready),
            click.eq(tag.kind == TagKind.CLICK),
            same.eq(pending & (tag.slot == slot)),
            close.eq(take & pending & ~same),
        ]

        in_z, in_x = seen[:2], seen[2:]
        cross, double, discard, tossed, dry = Signal(), Signal(), Signal(), Signal(), Signal()
        m.d.comb += [
            cross.eq(in_z.any() & in_x.any()),
            double.eq(~cross & (in_z.all() | in_x.all())),
            discard.eq(cross & self.discard_cross),
            tossed.eq(double | (cross & ~self.discard_cross)),
            dry.eq(tossed & ~self.coins.valid),
            self.coins.ready.eq(close & tossed),
        ]

        with m.If(self.o.ready):
            m.d.sync += self.o.valid.eq(0)
        with m.If(free & marker_waits):
            m.d.sync += [result.eq(marker), self.o.valid.eq(1), marker_waits.eq(0)]
        with m.If(close):
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
        with m.If(take):
            with m.If(click):
                outcome = Signal(4)
                m.d.comb += outcome.eq(1 << Cat(tag.bit, tag.basis))
                m.d.sync += [
                    pending.eq(1),
                    slot.eq(tag.slot),
                    seen.eq(Mux(same, seen | outcome, outcome)),
                ]
                m.d.comb += [ledger.step["in"].eq(1), ledger.step["merged"].eq(same)]
            with m.Elif(close):
                m.d.sync += [
                    pending.eq(0),
                    marker.slot.eq(tag.slot),
                    marker.kind.eq(tag.kind),
                    marker_waits.eq(1),
                ]
            with m.Else():
                m.d.sync += [
                    self.o.valid.eq(1),
                    result.slot.eq(tag.slot),
                    result.kind.eq(tag.kind),
                    result.basis.eq(0),
                    result.bit.eq(0),
                ]
            with m.If(tag.kind == TagKind.FRAME):
                m.d.comb += ledger.frame.eq(~0)
        return m
