# SPDX-License-Identifier: CERN-OHL-W-2.0
"""What a station keeps of a block's detections until the basis phase."""

from amaranth.hdl import Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from keyrail.contract import Record

from .layouts import layout

__all__ = ["BlockMemory"]


class BlockMemory(wiring.Component):
    """Memory of a block's entries, on the board or, in order, in the control PC.

    On the board, entries are written to memory; a read pass gives them back from the first on. On
    the host, entries leave on ``spill``, and a read pass takes as many back from ``fill``.

    Latency: 2 clocks from rewind to the first entry on the board, none on the host. Throughput: one
    entry a clock either way.

    Parameters
    ----------
    record
        Record of an entry.
    depth
        Entries the board holds, a power of two.

    Members
    -------
    i
        Entries of the block, in order.
    spill, fill
        To and from the control PC.
    o
        Entries of a read pass.
    on_host
        1: the entries lie in the control PC. Constant while the block has entries.
    rewind
        1: begin a read pass at entry 0.
    done
        The read pass has given its last entry, a clock before. 0 before the first pass.
    count
        Entries taken so far, 32 bits.
    full
        The board's memory can take no entry beyond those offered to it; never on the host.
    wipe
        1: forget everything, and overwrite the whole memory; so after reset.
    busy
        1 while the memory is overwritten; nothing is taken or given meanwhile.
    """

    def __init__(self, record: Record, depth: int):
        if depth < 2 or depth & (depth - 1):
            raise ValueError(f"depth {depth}: allowed are powers of two from 2 up")
        self._depth = depth
        self._shape = shape = layout(record)
        super().__init__(
            {
                "i": In(stream.Signature(shape)),
                "spill": Out(stream.Signature(shape)),
                "fill": In(stream.Signature(shape)),
                "o": Out(stream.Signature(shape)),
                "on_host": In(1),
                "rewind": In(1),
                "done": Out(1),
                "count": Out(32),
                "full": Out(1),
                "wipe": In(1),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        # Bits rather than the struct, so that the memory is one vector a word.
        width = self._shape.size
        m.submodules.memory = memory = Memory(shape=width, depth=self._depth, init=[])
        write, read = memory.write_port(), memory.read_port()
        address_bits = len(write.addr)

        wiping, sweep = Signal(init=1), Signal(address_bits)
        passing, issued, following = Signal(), Signal(32), Signal(32)
        # Entries given and the next one are `following`, those taken `count`, but the comparison
        # comes from flip-flops: 1 where any has been taken, or not been given in this pass.
        holds, unfinished = Signal(), Signal()
        # In the memory's output, and in the register behind it.
        loaded, shown, word = Signal(), Signal(), Signal(width)
        last_place, done = Signal(), Signal()  # one place is free; a pass has ended
        takes = Signal()  # not wiping, and a place is free
        m.d.comb += [
            self.busy.eq(wiping),
            self.full.eq(~self.on_host & (self.count[address_bits] | (last_place & self.i.valid))),
            self.done.eq(done & ~self.rewind),
        ]
        m.d.sync += done.eq(passing & ~unfinished & ~self.rewind)

        with m.If(wiping):
            m.d.comb += [write.en.eq(1), write.addr.eq(sweep), write.data.eq(0)]
            m.d.sync += sweep.eq(sweep + 1)
            with m.If(sweep == self._depth - 1):
                m.d.sync += [wiping.eq(0), takes.eq(1)]
        with m.Else():
            m.d.comb += [
                write.addr.eq(self.count),
                write.data.eq(self.i.payload.as_value()),
                self.spill.payload.eq(self.i.payload),
            ]
            with m.If(self.on_host):
                m.d.comb += [
                    self.spill.valid.eq(self.i.valid),
                    self.i.ready.eq(self.spill.ready),
                ]
            with m.Else():
                m.d.comb += [
                    self.i.ready.eq(takes),
                    write.en.eq(self.i.valid & self.i.ready),
                ]
            with m.If(self.i.valid & self.i.ready):
                m.d.sync += [
                    self.count.eq(self.count + 1),
                    last_place.eq(self.count == self._depth - 2),
                ]
                with m.If(last_place):
                    m.d.sync += takes.eq(0)

            # Read pass. The read port holds its word until it has been taken.
            more, moves = Signal(), Signal()
            with m.If(self.on_host):
                m.d.comb += [
                    more.eq(passing & unfinished & ~self.rewind),
                    self.o.payload.eq(self.fill.payload),
                    self.o.valid.eq(self.fill.valid & more),
                    self.fill.ready.eq(self.o.ready & more),
                ]
            with m.Else():
                m.d.comb += [
                    more.eq(passing & (issued != self.count)),
                    moves.eq(~shown | self.o.ready),
                    self.o.payload.as_value().eq(word),
                    self.o.valid.eq(shown),
                    read.addr.eq(issued),
                    read.en.eq(~loaded | moves),
                ]
                with m.If(moves):
                    m.d.sync += [word.eq(read.data), shown.eq(loaded)]
                with m.If(read.en):
                    m.d.sync += loaded.eq(more)
                    with m.If(more):
                        m.d.sync += issued.eq(issued + 1)
            with m.If(self.o.valid & self.o.ready):
                m.d.sync += [
                    following.eq(following + 1),
                    unfinished.eq(following != self.count),
                ]
            with m.If(self.rewind):
                m.d.sync += [passing.eq(1), issued.eq(0), following.eq(1), unfinished.eq(holds)]
                m.d.sync += [loaded.eq(0), shown.eq(0)]
            with m.If(self.i.valid & self.i.ready):
                m.d.sync += [holds.eq(1), unfinished.eq(1)]
        with m.If(self.wipe):
            m.d.sync += [
                wiping.eq(1),
                takes.eq(0),
                sweep.eq(0),
                self.count.eq(0),
                passing.eq(0),
                issued.eq(0),
                following.eq(0),
                holds.eq(0),
                unfinished.eq(0),
                loaded.eq(0),
                shown.eq(0),
                word.eq(0),
                last_place.eq(0),
                done.eq(0),
            ]
        return m
