# SPDX-License-Identifier: CERN-OHL-W-2.0
"""Blanking of whole slots after each raw click."""

from amaranth.hdl import Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from keyrail.contract import SLOT_BITS, SLOT_TAG, TagKind

from .layouts import layout
from .ledger import Counts, Ledger

__all__ = ["Blanking"]


class Blanking(wiring.Component):
    """Drop clicks in the slots that follow a raw click.

    A click in slot s is dropped if any earlier raw click, dropped ones included, or a loss marker
    lies in one of the slots s - N to s - 1, N being ``slots``. Every detector is then live again
    at the start of a slot that counts, provided N slots last at least the longest dead time.
    Clicks that share a slot share its fate. Markers pass.

    Latency: 1 clock. Throughput: 1 record a clock.

    Members
    -------
    i, o
        Streams of ``slot_tag`` in slot order.
    slots
        N, 16 bits; 0 blanks nothing. Constant while records pass.
    counts
        Ledger of ``blanking``.
    """

    i: In(stream.Signature(layout(SLOT_TAG)))
    o: Out(stream.Signature(layout(SLOT_TAG)))
    slots: In(16)
    counts: Out(Counts("blanking"))

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.ledger = ledger = Ledger("blanking")
        m.d.comb += [
            self.counts.live.eq(ledger.counts.live),
            self.counts.at_frame.eq(ledger.counts.at_frame),
        ]

        tag = self.i.payload
        click = Signal()
        # The last slot with a raw click, and the last before that one: clicks of one slot come
        # one after the other, and none of them may blank the others.
        present, present_valid = Signal(SLOT_BITS), Signal()
        former, former_valid = Signal(SLOT_BITS), Signal()
        last, last_valid = Signal(SLOT_BITS), Signal()
        blanked = Signal()
        m.d.comb += click.eq(tag.kind == TagKind.CLICK)
        with m.If(present_valid & (present != tag.slot)):
            m.d.comb += [last.eq(present), last_valid.eq(1)]
        with m.Else():
            m.d.comb += [last.eq(former), last_valid.eq(former_valid)]
        m.d.comb += blanked.eq(click & last_valid & ((tag.slot - last)[:SLOT_BITS] <= self.slots))

        m.d.comb += self.i.ready.eq(~self.o.valid | self.o.ready)
        with m.If(self.o.ready):
            m.d.sync += self.o.valid.eq(0)
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += [self.o.payload.eq(tag), self.o.valid.eq(~blanked)]
            with m.If(click | (tag.kind == TagKind.LOSS)):
                m.d.sync += [
                    present.eq(tag.slot),
                    present_valid.eq(1),
                    former.eq(last),
                    former_valid.eq(last_valid),
                ]
            m.d.comb += [
                ledger.step["in"].eq(click),
                ledger.step["out"].eq(click & ~blanked),
                ledger.step["blanked"].eq(blanked),
            ]
            with m.If(tag.kind == TagKind.FRAME):
                m.d.comb += ledger.frame.eq(~0)
        return m
