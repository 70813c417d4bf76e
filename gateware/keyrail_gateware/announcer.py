# SPDX-License-Identifier: CERN-OHL-W-2.0
"""Detections of the open block: slot numbers to the sender, the rest to block memory."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from keyrail.contract import ANNOUNCEMENT, DETECTION, RECEIVER_ENTRY, SLOT_BITS, TagKind

from .layouts import layout
from .ledger import Counts, Ledger

__all__ = ["Announcer"]

_PART = 15
_PARTS = 4  # 60 bits, enough for any difference of slots


class Announcer(wiring.Component):
    """Announce the slots of detections, and keep their basis and bit.

    A detection in a slot of the open block gives one entry for block memory and its announcement:
    the difference to the slot announced before (to ``first_slot`` for the first), 15 bits a
    record, the highest first. Nothing about basis or bit goes into it. Both always leave, or
    neither: other detections are dropped and counted. Markers end here.

    Latency: 2 clocks to the entry, 3 to the announcement. Throughput: 1 detection a clock, one
    clock more for each further 15 bits of a difference of 2^15 slots or more.

    Members
    -------
    i
        Stream of ``detection``, slots rising.
    o
        Stream of ``announcement``.
    entry
        Stream of ``receiver_entry``.
    open
        1 while the block takes detections.
    first_slot, last_slot
        Slots of the block, 48 bits each, both included.
    full
        Block memory can take no entry beyond those it has been offered.
    past_end
        1 from when a record of a slot after the block has passed while it was open.
    counts
        Ledger of ``announcer``.
    """

    i: In(stream.Signature(layout(DETECTION)))
    o: Out(stream.Signature(layout(ANNOUNCEMENT)))
    entry: Out(stream.Signature(layout(RECEIVER_ENTRY)))
    open: In(1)
    first_slot: In(SLOT_BITS)
    last_slot: In(SLOT_BITS)
    full: In(1)
    past_end: Out(1)
    counts: Out(Counts("announcer"))

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.ledger = ledger = Ledger("announcer")
        m.d.comb += [
            self.counts.live.eq(ledger.counts.live),
            self.counts.at_frame.eq(ledger.counts.at_frame),
        ]
        # 1: which detections are of the block.
        tag, valid, click = Signal(layout(DETECTION)), Signal(), Signal()
        inside, past = Signal(), Signal()
        take = Signal()  # the record leaves this stage
        m.d.comb += self.i.ready.eq(~valid | take)
        with m.If(take):
            m.d.sync += valid.eq(0)
        with m.If(self.i.ready):
            slot = self.i.payload.slot
            m.d.sync += [
                tag.eq(self.i.payload),
                valid.eq(self.i.valid),
                inside.eq(self.open & (slot >= self.first_slot) & (slot <= self.last_slot)),
                click.eq(self.i.payload.kind == TagKind.CLICK),
                past.eq(self.open & (slot > self.last_slot)),
            ]

        # 2: what is announced; its entry is offered at once, so that `full` counts it.
        last, fresh = Signal(SLOT_BITS), Signal(init=1)
        difference, going = Signal(SLOT_BITS), Signal()
        passes = Signal()  # the difference leaves its register
        announce = Signal()
        m.d.comb += [
            announce.eq(click & inside & ~self.full),
            take.eq(
                valid & (~announce | ((~going | passes) & (~self.entry.valid | self.entry.ready)))
            ),
        ]
        with m.If(self.entry.ready):
            m.d.sync += self.entry.valid.eq(0)
        with m.If(passes):
            m.d.sync += going.eq(0)
        with m.If(take):
            with m.If(announce):
                m.d.sync += [
                    last.eq(tag.slot),
                    fresh.eq(0),
                    difference.eq(tag.slot - Mux(fresh, self.first_slot, last)),
                    going.eq(1),
                    self.entry.valid.eq(1),
                    self.entry.payload.basis.eq(tag.basis),
                    self.entry.payload.bit.eq(tag.bit),
                ]
            with m.If(past):
                m.d.sync += self.past_end.eq(1)
            m.d.comb += [
                ledger.step["in"].eq(click),
                ledger.step["out"].eq(announce),
                ledger.step["outside_block"].eq(click & ~inside),
                ledger.step["memory_full"].eq(click & inside & ~announce),
            ]
            with m.If(tag.kind == TagKind.FRAME):
                m.d.comb += ledger.frame.eq(~0)

        # 3: how many parts it takes; they leave one after the other.
        parts = data.ArrayLayout(_PART, _PARTS)
        sending, waits = Signal(parts), Signal()
        part, last_part = Signal(range(_PARTS)), Signal()
        m.d.comb += [
            passes.eq(going & (~waits | (self.o.ready & last_part))),
            self.o.valid.eq(waits),
            self.o.payload.difference.eq(sending[part]),
            self.o.payload.more.eq(~last_part),
        ]
        with m.If(waits & self.o.ready):
            m.d.sync += [part.eq(part - 1), last_part.eq(part == 1)]
            with m.If(last_part):
                m.d.sync += waits.eq(0)
        with m.If(passes):
            m.d.sync += [sending.as_value().eq(difference), waits.eq(1)]
            m.d.sync += [part.eq(0), last_part.eq(1)]
            for index in range(1, _PARTS):
                with m.If((difference >> (_PART * index)).any()):
                    m.d.sync += [part.eq(index), last_part.eq(0)]
        return m
