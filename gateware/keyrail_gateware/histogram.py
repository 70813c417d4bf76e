# SPDX-License-Identifier: CERN-OHL-W-2.0
"""Phase histograms of the channels, beside the tag path."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from keyrail.contract import (
    CHANNELS,
    HISTOGRAM_BIN,
    HISTOGRAM_BINS,
    KEY_MODE_HISTOGRAM_MINIMUM,
    SLOT_TAG,
    TagKind,
)

from .layouts import layout

__all__ = ["Histogram"]

_CHANNEL_BITS = (CHANNELS - 1).bit_length()
_BIN_BITS = (HISTOGRAM_BINS - 1).bit_length()
_SETTLE_CLOCKS = 3
"""Clocks from a swap of the banks until the last click before it is in memory."""


class Histogram(wiring.Component):
    """Count clicks by channel and phase; records pass unchanged.

    A click counts in bin min(phase >> shift, 1023) of its channel, saturating. There are two
    banks: one counts while the other is sent. A click of a channel above 7 passes uncounted.

    `dump` swaps the banks, then the old one is sent and cleared; a click taken in the clock of
    `dump` still belongs to the old one. It is refused while a dump or clearing is under way, and
    in key mode while the present bank holds fewer than 10^4 clicks. After reset, and on `wipe`,
    both banks are cleared, which takes 8192 clocks; no record is taken meanwhile, and records and
    bins on offer are withdrawn.

    Latency: 1 clock for the records; a bin is readable 3 clocks after its click. Throughput: 1
    record a clock, any bins; dump: 1 bin in 2 clocks.

    Parameters
    ----------
    count_bits
        Width of the bins in memory, 1 to 32.

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
        1 in the clock after a `dump` that was refused.
    busy
        1 while clearing or dumping, but 0 while a bin waits for `bins`.
    """

    def __init__(self, count_bits: int = HISTOGRAM_BIN.used_bits):
        if not 1 <= count_bits <= HISTOGRAM_BIN.used_bits:
            raise ValueError(f"histogram bins of {count_bits} bits, allowed are 1 to 32")
        self._count_bits = count_bits
        super().__init__(
            {
                "i": In(stream.Signature(layout(SLOT_TAG))),
                "o": Out(stream.Signature(layout(SLOT_TAG))),
                "bins": Out(stream.Signature(HISTOGRAM_BIN.bits)),
                "shift": In(4),
                "key_mode": In(1),
                "dump": In(1),
                "wipe": In(1),
                "refused": Out(1),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        address_bits = _CHANNEL_BITS + _BIN_BITS
        place = data.StructLayout({"address": address_bits, "bank": 1, "valid": 1})
        active = Signal()  # the bank that counts
        clearing, clear_address = Signal(init=1), Signal(address_bits)

        # -- records pass ----------------------------------------------------------------------

        tag = self.i.payload
        m.d.comb += self.i.ready.eq(~clearing & (~self.o.valid | self.o.ready))
        with m.If(self.o.ready):
            m.d.sync += self.o.valid.eq(0)
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += [self.o.payload.eq(tag), self.o.valid.eq(1)]

        # -- counting: read, take the newest value, write --------------------------------------

        click, reading = Signal(), Signal(place)
        scaled, number = Signal.like(tag.phase), Signal(_BIN_BITS)
        m.d.comb += [
            click.eq(
                self.i.valid & self.i.ready & (tag.kind == TagKind.CLICK) & (tag.channel < CHANNELS)
            ),
            scaled.eq(tag.phase >> self.shift),
            number.eq(Mux(scaled[_BIN_BITS:].any(), HISTOGRAM_BINS - 1, scaled)),
            reading.address.eq(Cat(number, tag.channel[:_CHANNEL_BITS])),
            reading.bank.eq(active),
            reading.valid.eq(click),
        ]
        fetched, adding, written = Signal(place), Signal(place), Signal(place)
        value, following, newest = (Signal(self._count_bits) for _ in range(3))
        present = Signal(self._count_bits)
        m.d.sync += [
            fetched.eq(reading),
            adding.eq(fetched),
            written.eq(adding),
            newest.eq(following),
        ]
        m.d.comb += following.eq(value + ~value.all())
        # The two clicks before this one were not in memory yet when its bin was read.
        with m.If(adding == fetched):
            m.d.sync += value.eq(following)
        with m.Elif(written == fetched):
            m.d.sync += value.eq(newest)
        with m.Else():
            m.d.sync += value.eq(present)

        # -- dump ------------------------------------------------------------------------------

        held = Signal(range(KEY_MODE_HISTOGRAM_MINIMUM + 1))
        with m.If(click & (held != KEY_MODE_HISTOGRAM_MINIMUM)):
            m.d.sync += held.eq(held + 1)
        allowed, idle = Signal(), Signal()
        m.d.comb += allowed.eq(
            idle & ~clearing & (~self.key_mode | (held == KEY_MODE_HISTOGRAM_MINIMUM))
        )
        m.d.sync += self.refused.eq(self.dump & ~allowed)
        dump_address, settle = Signal(address_bits), Signal(range(_SETTLE_CLOCKS))
        dump_read, dump_clear = Signal(), Signal()
        dumped = Signal(self._count_bits)
        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += idle.eq(1)
                m.d.sync += [dump_address.eq(0), settle.eq(_SETTLE_CLOCKS - 1)]
                with m.If(self.dump & allowed & ~self.wipe):
                    m.d.sync += [active.eq(~active), held.eq(0)]
                    m.next = "SETTLE"
            with m.State("SETTLE"):
                m.d.sync += settle.eq(settle - 1)
                with m.If(settle == 0):
                    m.d.comb += dump_read.eq(1)
                    m.next = "FETCHED"
                with m.If(self.wipe):
                    m.next = "IDLE"
            with m.State("FETCHED"):
                m.d.comb += dump_clear.eq(1)
                m.d.sync += [
                    self.bins.payload.eq(dumped),
                    self.bins.valid.eq(1),
                    dump_address.eq(dump_address + 1),
                ]
                m.next = "OFFERED"
                with m.If(self.wipe):
                    m.next = "IDLE"
            with m.State("OFFERED"):
                with m.If(self.bins.ready):
                    m.d.sync += self.bins.valid.eq(0)
                    with m.If(dump_address == 0):
                        m.next = "IDLE"
                    with m.Else():
                        m.d.comb += dump_read.eq(1)
                        m.next = "FETCHED"
                with m.If(self.wipe):
                    m.next = "IDLE"
        m.d.comb += self.busy.eq(clearing | (~idle & ~self.bins.valid))

        # -- memories --------------------------------------------------------------------------

        for bank in range(2):
            memory = Memory(shape=self._count_bits, depth=CHANNELS * HISTOGRAM_BINS, init=[])
            m.submodules[f"bank_{bank}"] = memory
            read, write = memory.read_port(), memory.write_port()
            counts = active == bank
            m.d.comb += [
                read.addr.eq(Mux(counts, reading.address, dump_address)),
                read.en.eq(Mux(counts, click, dump_read)),
            ]
            with m.If(fetched.bank == bank):
                m.d.comb += present.eq(read.data)
            with m.If(~counts):
                m.d.comb += dumped.eq(read.data)
            with m.If(clearing):
                m.d.comb += [write.addr.eq(clear_address), write.en.eq(1)]
            with m.Elif(adding.valid & (adding.bank == bank)):
                m.d.comb += [
                    write.addr.eq(adding.address),
                    write.data.eq(following),
                    write.en.eq(1),
                ]
            with m.Elif(dump_clear & ~counts):
                m.d.comb += [write.addr.eq(dump_address), write.en.eq(1)]

        # -- clearing --------------------------------------------------------------------------

        with m.If(clearing):
            m.d.sync += clear_address.eq(clear_address + 1)
            with m.If(clear_address.all()):
                m.d.sync += clearing.eq(0)
        with m.If(self.wipe):
            m.d.sync += [
                clearing.eq(1),
                clear_address.eq(0),
                held.eq(0),
                self.o.valid.eq(0),
                self.o.payload.eq(0),
                self.bins.valid.eq(0),
                self.bins.payload.eq(0),
                value.eq(0),
                newest.eq(0),
                fetched.eq(0),
                adding.eq(0),
                written.eq(0),
            ]
        return m
