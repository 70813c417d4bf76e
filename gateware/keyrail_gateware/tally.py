# SPDX-License-Identifier: CERN-OHL-W-2.0
"""Counts of kept detections, as far as a board can know them."""

from amaranth.hdl import Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from keyrail.contract import RECEIVER_SIFTED, SENDER_SIFTED, Intensity

from .layouts import layout
from .ledger import Counts, Ledger

__all__ = ["ReceiverTally", "SenderTally"]


class SenderTally(wiring.Component):
    """Count the sender's kept detections by basis, intensity class and test bit.

    Latency: none, the stream passes through. Throughput: 1 record a clock.

    Members
    -------
    i, o
        Streams of ``sender_sifted``.
    counts
        Ledger of ``sender_tally``.
    """

    i: In(stream.Signature(layout(SENDER_SIFTED)))
    o: Out(stream.Signature(layout(SENDER_SIFTED)))
    counts: Out(Counts("sender_tally"))

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.ledger = ledger = Ledger("sender_tally")
        sifted, moves = self.i.payload, Signal()
        signal, test = sifted.intensity == Intensity.SIGNAL, sifted.test
        m.d.comb += [
            self.o.payload.eq(self.i.payload),
            self.o.valid.eq(self.i.valid),
            self.i.ready.eq(self.o.ready),
            moves.eq(self.i.valid & self.i.ready),
            ledger.step.z_signal.eq(moves & ~test & signal),
            ledger.step.z_decoy.eq(moves & ~test & ~signal),
            ledger.step.x_signal.eq(moves & test & signal),
            ledger.step.x_decoy.eq(moves & test & ~signal),
            ledger.step.x_zero.eq(moves & test & ~sifted.bit),
            ledger.step.x_one.eq(moves & test & sifted.bit),
            self.counts.live.eq(ledger.counts.live),
            self.counts.at_frame.eq(ledger.counts.at_frame),
        ]
        return m


class ReceiverTally(wiring.Component):
    """Count the receiver's kept detections by basis, and the test ones by bit and error.

    Latency: none, the stream passes through. Throughput: 1 record a clock.

    Members
    -------
    i, o
        Streams of ``receiver_sifted``.
    counts
        Ledger of ``receiver_tally``.
    """

    i: In(stream.Signature(layout(RECEIVER_SIFTED)))
    o: Out(stream.Signature(layout(RECEIVER_SIFTED)))
    counts: Out(Counts("receiver_tally"))

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.ledger = ledger = Ledger("receiver_tally")
        sifted, moves, sent = self.i.payload, Signal(), Signal()
        test, error = sifted.test, sifted.error
        m.d.comb += [
            self.o.payload.eq(self.i.payload),
            self.o.valid.eq(self.i.valid),
            self.i.ready.eq(self.o.ready),
            moves.eq(self.i.valid & self.i.ready),
            sent.eq(sifted.bit ^ error),
            ledger.step.z.eq(moves & ~test),
            ledger.step.x_zero.eq(moves & test & ~sent),
            ledger.step.x_one.eq(moves & test & sent),
            ledger.step.x_zero_error.eq(moves & test & ~sent & error),
            ledger.step.x_one_error.eq(moves & test & sent & error),
            self.counts.live.eq(ledger.counts.live),
            self.counts.at_frame.eq(ledger.counts.at_frame),
        ]
        return m
