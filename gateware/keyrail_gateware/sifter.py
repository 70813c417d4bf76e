# SPDX-License-Identifier: CERN-OHL-W-2.0
"""The sender's side of the basis phase: bases to replies and sifted bits."""

from amaranth.hdl import Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from keyrail.contract import BASIS, REPLY, SENDER_ENTRY, SENDER_SIFTED, Basis

from .layouts import layout
from .ledger import Counts, Ledger

__all__ = ["Sifter"]


class Sifter(wiring.Component):
    """Meet the receiver's bases with block memory, one entry a basis, in order.

    A detection is kept where its state is known and the bases agree. In X the sender's bit is
    opened; a bit in Z never leaves on ``reply``.

    Latency: 1 clock. Throughput: 1 basis a clock.

    Members
    -------
    basis
        Stream of ``basis``.
    entry
        Stream of ``sender_entry`` from block memory.
    exhausted
        Block memory has no more entries: further bases are answered with drop, and counted.
    reply
        Stream of ``reply``, one for each basis.
    sifted
        Stream of ``sender_sifted``, one for each kept detection.
    counts
        Ledger of ``sifter``.
    """

    basis: In(stream.Signature(layout(BASIS)))
    entry: In(stream.Signature(layout(SENDER_ENTRY)))
    exhausted: In(1)
    reply: Out(stream.Signature(layout(REPLY)))
    sifted: Out(stream.Signature(layout(SENDER_SIFTED)))
    counts: Out(Counts("sifter"))

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.ledger = ledger = Ledger("sifter")
        m.d.comb += [
            self.counts.live.eq(ledger.counts.live),
            self.counts.at_frame.eq(ledger.counts.at_frame),
        ]
        entry = self.entry.payload
        test, keep, free = Signal(), Signal(), Signal()
        m.d.comb += [
            test.eq(entry.basis == Basis.X),
            keep.eq(entry.present & (entry.basis == self.basis.payload.basis) & ~self.exhausted),
            free.eq(
                (~self.reply.valid | self.reply.ready) & (~self.sifted.valid | self.sifted.ready)
            ),
            self.basis.ready.eq(free & (self.entry.valid | self.exhausted)),
            self.entry.ready.eq(free & self.basis.valid & ~self.exhausted),
        ]
        with m.If(self.reply.ready):
            m.d.sync += self.reply.valid.eq(0)
        with m.If(self.sifted.ready):
            m.d.sync += self.sifted.valid.eq(0)
        with m.If(self.basis.valid & self.basis.ready):
            m.d.sync += [
                self.reply.valid.eq(1),
                self.reply.payload.keep.eq(keep),
                self.reply.payload.opened.eq(keep & test),
                self.reply.payload.bit.eq(keep & test & entry.bit),
                self.sifted.valid.eq(keep),
                self.sifted.payload.bit.eq(entry.bit),
                self.sifted.payload.test.eq(test),
                self.sifted.payload.intensity.eq(entry.intensity),
            ]
            m.d.comb += [
                ledger.step["in"].eq(1),
                ledger.step["out"].eq(keep),
                ledger.step["surplus"].eq(self.exhausted),
                ledger.step["absent"].eq(~entry.present & ~self.exhausted),
                ledger.step["mismatch"].eq(entry.present & ~keep & ~self.exhausted),
            ]
        return m
