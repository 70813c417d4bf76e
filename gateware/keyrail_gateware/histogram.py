# SPDX-License-Identifier: CERN-OHL-W-2.0
"""Phase histograms of the channels, beside the tag path."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from keyrail.contract import CHANNELS, HISTOGRAM_BIN, HISTOGRAM_BINS, SLOT_TAG, TagKind

from .count_memory import CountMemory
from .layouts import layout

__all__ = ["Histogram"]

_DEPTH = 3
"""Clocks from a click to its count."""
_BIN_BITS = (HISTOGRAM_BINS - 1).bit_length()


class Histogram(wiring.Component):
    """Count clicks by channel and phase; records pass unchanged.

    A click counts in bin min(phase >> shift, 1023) of its channel, saturating. `CountMemory` has
    the rules of reading: tags pass and count while the other bank is sent. A click of a channel
    that is not built passes uncounted. After reset, and on `wipe`, both banks are cleared, which
    takes 1024 clocks a channel; no record is taken meanwhile, and records and bins on offer are
    withdrawn.

    Latency: 1 clock for the records; a bin is readable 7 clocks after its click. Throughput: 1
    record a clock, any bins; dump: 1 bin in 3 clocks.

    Parameters
    ----------
    count_bits
        Width of the bins in memory, 1 to 32.
    channels
        Channels that are counted, a power of two up to 8; bins of the others are sent as 0.

    Members
    -------
    i, o
        Streams of ``slot_tag``.
    bins
        Stream of ``histogram_bin``, 32 bits: 8192 words a dump, channel by channel.
    shift
        A bin is 2^shift ps wide. Constant while records pass.
    key_mode
        1 in key mode.
    dump, wipe
        Commands, 1 for one clock.
    refused
        1 in the fourth clock after a `dump` that was refused.
    dumping
        1 from `dump` until its last bin was taken.
    busy
        1 while clearing or dumping, but 0 while a bin waits for `bins`.
    """

    i: In(stream.Signature(layout(SLOT_TAG)))
    o: Out(stream.Signature(layout(SLOT_TAG)))
    bins: Out(stream.Signature(HISTOGRAM_BIN.bits))
    shift: In(4)
    key_mode: In(1)
    dump: In(1)
    wipe: In(1)
    refused: Out(1)
    dumping: Out(1)
    busy: Out(1)

    def __init__(self, count_bits: int = HISTOGRAM_BIN.used_bits, channels: int = CHANNELS):
        self._channels = channels
        self._memory = CountMemory(
            channels * HISTOGRAM_BINS, CHANNELS * HISTOGRAM_BINS, count_bits=count_bits
        )
        super().__init__()

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.memory = memory = self._memory
        # Commands go as long a way as clicks do, so that the clicks before them count.
        dump = Signal(_DEPTH)
        m.d.sync += dump.eq(Cat(self.dump, dump) & ~self.wipe.replicate(_DEPTH))
        m.d.comb += [
            memory.key_mode.eq(self.key_mode),
            memory.wipe.eq(self.wipe),
            memory.dump.eq(dump[-1]),
            self.refused.eq(memory.refused),
            self.dumping.eq(memory.dumping | dump.any()),
            self.busy.eq(memory.busy | dump.any()),
        ]
        wiring.connect(m, memory.bins, wiring.flipped(self.bins))

        tag = self.i.payload
        takes = Signal()
        m.d.comb += [
            self.i.ready.eq(~memory.clearing & (~self.o.valid | self.o.ready)),
            takes.eq(self.i.valid & self.i.ready),
        ]
        with m.If(self.o.ready):
            m.d.sync += self.o.valid.eq(0)
        with m.If(takes):
            m.d.sync += [self.o.payload.eq(tag), self.o.valid.eq(1)]

        # The record that has just been taken lies in the output register: count from there.
        fresh, click = Signal(), Signal()
        scaled = Signal.like(tag.phase)
        number, channel = Signal(_BIN_BITS), Signal.like(tag.channel)
        m.d.sync += [
            fresh.eq(takes),
            click.eq(
                fresh
                & (self.o.payload.kind == TagKind.CLICK)
                & (self.o.payload.channel < self._channels)
            ),
            channel.eq(self.o.payload.channel),
            scaled.eq(self.o.payload.phase >> self.shift),
            memory.count.eq(click),
            number.eq(Mux(scaled[_BIN_BITS:].any(), HISTOGRAM_BINS - 1, scaled)),
        ]
        counted = Signal.like(channel)
        m.d.sync += counted.eq(channel)
        m.d.comb += memory.number.eq(Cat(number, counted[: (self._channels - 1).bit_length()]))
        with m.If(self.wipe):
            m.d.sync += [
                self.o.valid.eq(0),
                self.o.payload.eq(0),
                fresh.eq(0),
                click.eq(0),
                memory.count.eq(0),
                scaled.eq(0),
                number.eq(0),
            ]
        return m
