# SPDX-License-Identifier: CERN-OHL-W-2.0
"""Stages between the blocks of a long path."""

from amaranth.hdl import Module, Mux, Signal, Value, ValueLike
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

__all__ = ["Skid", "Stage", "skid"]


def skid(
    m: Module,
    i: stream.Interface,
    held: Value,
    full: Signal,
    payload: Value,
    valid: Signal,
    moves: ValueLike,
) -> None:
    """The two registers of a `Skid`, for a block that writes to the second one itself too.

    Parameters
    ----------
    m
        Module that they are driven in.
    i
        Stream that comes in.
    held, full
        First register, and whether there is a record in it.
    payload, valid
        Second register, which goes out, and whether there is a record in it.
    moves
        1: the second one takes what is there.
    """
    m.d.comb += i.ready.eq(~full)
    with m.If(~full):
        m.d.sync += held.eq(i.payload)
    with m.If(moves):
        m.d.sync += [payload.eq(Mux(full, held, i.payload)), valid.eq(full | i.valid)]
    # By its data input: a set and a clear would take a control set of their own.
    m.d.sync += full.eq(~moves & (full | i.valid))


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
        moves = Signal()
        m.d.comb += moves.eq(~self.o.valid | self.o.ready)
        skid(m, self.i, self.held, self.full, self.o.payload, self.o.valid, moves)
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
