# SPDX-License-Identifier: CERN-OHL-W-2.0
"""Detections of the open block: slot numbers to the sender, the rest to block memory."""

from amaranth.hdl import Array, Module, Mux, Signal
from amaranth.lib import stream, wiring
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

    Latency: 1 clock. Throughput: 1 detection a clock, one clock more for each further 15 bits of
    a difference of 2^15 slots or more.

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
        record = self.i.payload
        last, fresh = Signal(SLOT_BITS), Signal(init=1)
        # The detection at the input has sent its upper parts; `left` is the next of the others.
        begun, left = Signal(), Signal(range(_PARTS))

        click, inside, difference = Signal(), Signal(), Signal(SLOT_BITS)
        m.d.comb += [
            click.eq(record.kind == TagKind.CLICK),
            inside.eq(
                self.open & (record.slot >= self.first_slot) & (record.slot <= self.last_slot)
            ),
            difference.eq(record.slot - Mux(fresh, self.first_slot, last)),
        ]
        needed, part = Signal(range(_PARTS)), Signal(range(_PARTS))
        for index in range(1, _PARTS):
            with m.If((difference >> (_PART * index)).any()):
                m.d.comb += needed.eq(index)
        m.d.comb += part.eq(Mux(begun, left, needed))
        parts = Array(difference[_PART * k :][:_PART] for k in range(_PARTS))

        announce = Signal()
        m.d.comb += announce.eq(click & (begun | (inside & ~self.full)))
        o_free, entry_free = Signal(), Signal()
        m.d.comb += [
            o_free.eq(~self.o.valid | self.o.ready),
            entry_free.eq(~self.entry.valid | self.entry.ready),
            self.i.ready.eq(~announce | (o_free & entry_free & (part == 0))),
        ]
        with m.If(self.o.ready):
            m.d.sync += self.o.valid.eq(0)
        with m.If(self.entry.ready):
            m.d.sync += self.entry.valid.eq(0)
        with m.If(self.i.valid):
            with m.If(announce & o_free & (entry_free | (part != 0))):
                m.d.sync += [
                    self.o.valid.eq(1),
                    self.o.payload.difference.eq(parts[part]),
                    self.o.payload.more.eq(part != 0),
                    begun.eq(part != 0),
                    left.eq(part - 1),
                ]
                with m.If(part == 0):
                    m.d.sync += [
                        last.eq(record.slot),
                        fresh.eq(0),
                        self.entry.valid.eq(1),
                        self.entry.payload.basis.eq(record.basis),
                        self.entry.payload.bit.eq(record.bit),
                    ]
            with m.If(self.i.ready):
                m.d.comb += [
                    ledger.step["in"].eq(click),
                    ledger.step["out"].eq(announce),
                    ledger.step["outside_block"].eq(click & ~inside & ~announce),
                    ledger.step["memory_full"].eq(click & inside & ~announce),
                ]
                with m.If(record.kind == TagKind.FRAME):
                    m.d.comb += ledger.frame.eq(~0)
                with m.If(self.open & (record.slot > self.last_slot)):
                    m.d.sync += self.past_end.eq(1)
        return m
