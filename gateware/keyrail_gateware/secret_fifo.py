# SPDX-License-Identifier: CERN-OHL-W-2.0
"""A FIFO whose memory can be overwritten: for states and entries."""

from amaranth.hdl import Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

__all__ = ["SecretFifo"]


class SecretFifo(wiring.Component):
    """First in, first out, with every word overwritten on `wipe`.

    Latency: 2 clocks. Throughput: 1 record a clock.

    Parameters
    ----------
    width
        Bits of a record.
    depth
        Records in memory, a power of two from 2 up; one more waits at the output.

    Members
    -------
    i, o
        Streams of `width` bits.
    wipe
        1: forget everything and overwrite the memory; so after reset.
    busy
        1 while the memory is overwritten, ``depth`` clocks; nothing is taken meanwhile.
    """

    def __init__(self, width: int, depth: int):
        if depth < 2 or depth & (depth - 1):
            raise ValueError(f"depth {depth}: allowed are powers of two from 2 up")
        self._width, self._depth = width, depth
        super().__init__(
            {
                "i": In(stream.Signature(width)),
                "o": Out(stream.Signature(width)),
                "wipe": In(1),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.memory = memory = Memory(shape=self._width, depth=self._depth, init=[])
        write, read = memory.write_port(), memory.read_port()
        wiping = Signal(init=1)
        write_at = Signal(range(self._depth))
        read_at = Signal(range(self._depth))
        stored = Signal(range(self._depth + 1))
        loaded, takes, gives = Signal(), Signal(), Signal()
        m.d.comb += [
            self.busy.eq(wiping),
            self.i.ready.eq(~wiping & (stored != self._depth)),
            takes.eq(self.i.valid & self.i.ready),
            gives.eq((stored != 0) & (~loaded | self.o.ready)),
            self.o.valid.eq(loaded),
            self.o.payload.eq(read.data),
            write.addr.eq(write_at),
            write.data.eq(self.i.payload),
            write.en.eq(takes | wiping),
            read.addr.eq(read_at),
            # While wiping, so that the port's own register is overwritten too.
            read.en.eq(gives | wiping),
        ]
        m.d.sync += stored.eq(stored + takes - gives)
        with m.If(takes):
            m.d.sync += write_at.eq(write_at + 1)
        with m.If(gives):
            m.d.sync += read_at.eq(read_at + 1)
        with m.If(~loaded | self.o.ready):
            m.d.sync += loaded.eq(gives)
        with m.If(wiping):
            m.d.comb += write.data.eq(0)
            m.d.sync += write_at.eq(write_at + 1)
            with m.If(write_at == self._depth - 1):
                m.d.sync += wiping.eq(0)
        with m.If(self.wipe):
            m.d.sync += [
                wiping.eq(1),
                write_at.eq(0),
                read_at.eq(0),
                stored.eq(0),
                loaded.eq(0),
            ]
        return m
