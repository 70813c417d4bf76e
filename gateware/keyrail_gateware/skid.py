# SPDX-License-Identifier: CERN-OHL-W-2.0
"""Stages between the blocks of a long path."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

__all__ = ["Skid", "Stage"]


class Skid(wiring.Component):
    """Pass a stream through two registers, so that ``i.ready`` comes from a flip-flop.

    Latency: 1 clock. Throughput: 1 record a clock.

    Parameters
    ----------
    shape
        Shape of the payload.

    Members
    -------
    i, o
        Streams of `shape`. What is offered on `i` stands on `o.payload` a clock later, valid or
        not, unless the output waits.

    Attributes
    ----------
    held, full
        A record taken while the output waited, and whether there is one.
    """

    def __init__(self, shape: object):
        # A record taken while the output waited, if it is full.
        self.held, self.full = Signal(shape), Signal()
        super().__init__({"i": In(stream.Signature(shape)), "o": Out(stream.Signature(shape))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        held, full = self.held, self.full
        moves = Signal()
        m.d.comb += [self.i.ready.eq(~full), moves.eq(~self.o.valid | self.o.ready)]
        with m.If(~full):
            m.d.sync += held.eq(self.i.payload)
        with m.If(moves):
            m.d.sync += [
                self.o.payload.eq(Mux(full, held, self.i.payload)),
                self.o.valid.eq(full | self.i.valid),
            ]
        # By its data input: a set and a clear would take a control set of their own.
        m.d.sync += full.eq(~moves & (full | self.i.valid))
        return m


class Stage(wiring.Component):
    """Pass a stream through one register, whose payload has nothing before it.

    Latency: 1 clock. Throughput: 1 record a clock.

    Parameters
    ----------
    shape
        Shape of the payload.

    Members
    -------
    i, o
        Streams of `shape`; ``i.ready`` comes from ``o.ready``.
    """

    def __init__(self, shape: object):
        super().__init__({"i": In(stream.Signature(shape)), "o": Out(stream.Signature(shape))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.d.comb += self.i.ready.eq(~self.o.valid | self.o.ready)
        with m.If(self.i.ready):
            m.d.sync += [self.o.payload.eq(self.i.payload), self.o.valid.eq(self.i.valid)]
        return m
