# SPDX-License-Identifier: CERN-OHL-W-2.0
"""The receiver's side of the basis phase: replies to sifted bits."""

from amaranth.hdl import Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from keyrail.contract import RECEIVER_ENTRY, RECEIVER_SIFTED, REPLY, Basis

from .layouts import layout
from .ledger import Counts, Ledger

__all__ = ["Resolver"]


class Resolver(wiring.Component):
    """Meet the sender's replies with block memory, one entry a reply, in order.

    A kept detection in Z gives its bit; a kept one in X, opened by the sender, gives its bit and
    whether it differs. A dropped one gives nothing. A reply that contradicts the basis (opened
    but not kept, opened in Z, kept in X but not opened, a bit that is not opened) gives nothing
    and is counted: such a block must be discarded.

    Latency: 1 clock. Throughput: 1 reply a clock.

    Members
    -------
    reply
        Stream of ``reply``.
    entry
        Stream of ``receiver_entry`` from block memory.
    exhausted
        Block memory has no more entries: further replies are dropped and counted.
    o
        Stream of ``receiver_sifted``.
    counts
        Ledger of ``resolver``.
    """

    reply: In(stream.Signature(layout(REPLY)))
    entry: In(stream.Signature(layout(RECEIVER_ENTRY)))
    exhausted: In(1)
    o: Out(stream.Signature(layout(RECEIVER_SIFTED)))
    counts: Out(Counts("resolver"))

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.ledger = ledger = Ledger("resolver")
        m.d.comb += [
            self.counts.live.eq(ledger.counts.live),
            self.counts.at_frame.eq(ledger.counts.at_frame),
        ]
        reply, entry = self.reply.payload, self.entry.payload
        test, contradicted, kept, free = Signal(), Signal(), Signal(), Signal()
        m.d.comb += [
            test.eq(entry.basis == Basis.X),
            contradicted.eq((reply.opened != (reply.keep & test)) | (reply.bit & ~reply.opened)),
            kept.eq(reply.keep & ~contradicted & ~self.exhausted),
            free.eq(~self.o.valid | self.o.ready),
            self.reply.ready.eq(free & (self.entry.valid | self.exhausted)),
            self.entry.ready.eq(free & self.reply.valid & ~self.exhausted),
        ]
        with m.If(self.o.ready):
            m.d.sync += self.o.valid.eq(0)
        with m.If(self.reply.valid & self.reply.ready):
            m.d.sync += [
                self.o.valid.eq(kept),
                self.o.payload.bit.eq(entry.bit),
                self.o.payload.test.eq(test),
                self.o.payload.error.eq(test & (entry.bit ^ reply.bit)),
            ]
            m.d.comb += [
                ledger.step["in"].eq(1),
                ledger.step["out"].eq(kept),
                ledger.step["surplus"].eq(self.exhausted),
                ledger.step["contradicted"].eq(contradicted & ~self.exhausted),
                ledger.step["dropped"].eq(~reply.keep & ~contradicted & ~self.exhausted),
            ]
        return m
