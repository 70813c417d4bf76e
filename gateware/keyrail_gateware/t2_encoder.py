# SPDX-License-Identifier: CERN-OHL-W-2.0
"""Tags as PicoQuant T2 records."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from keyrail.contract import (
    T2,
    T2_OVERFLOW_CHANNEL,
    T2_OVERFLOW_MAXIMUM,
    T2_TIME_BITS,
    TAG,
    TIME_BITS,
    LossMark,
    T2Marker,
    TagKind,
)

from .layouts import layout
from .ledger import Counts, Ledger
from .skid import Skid

__all__ = ["T2Encoder", "T2Serialiser", "t2_pair"]


def t2_pair() -> data.StructLayout:
    """One or two T2 records: ``first``, and ``second`` where ``both`` is 1."""
    return data.StructLayout({"first": layout(T2), "second": layout(T2), "both": 1})


class T2Encoder(wiring.Component):
    """Turn tags into T2 records, an overflow record before a tag where the time has wrapped.

    The time of T2 has 25 bits and counts ps; an overflow record says how often it has wrapped
    since the record before (1 to 127). Wraps count from time 0 of the fabric, and a gap of more
    wraps takes further clocks, one for every 127. Time records leave as the overflow records they
    imply, loss and frame records as markers, with the time of the last record where they are
    earlier; an earlier click is dropped.

    Format: PicoQuant, "Unified TTTR file format" (PTU), record type for T2 mode of the HydraHarp
    V2 and its successors.

    Latency: 4 clocks. Throughput: 1 tag a clock, gaps of more than 127 wraps (4.3 ms) excepted.

    Parameters
    ----------
    time_bits
        Bits of the time used, 26 to 48; fewer than 48 serve for tests.

    Members
    -------
    i
        Stream of ``tag`` in time order, gaps up to half the range of the time; the first one
        at any time.
    o
        Stream of `t2_pair`: 64 bits of records.
    counts
        Ledger of ``t2_encoder``.
    """

    i: In(stream.Signature(layout(TAG)))
    o: Out(stream.Signature(t2_pair()))
    counts: Out(Counts("t2_encoder"))

    def __init__(self, time_bits: int = TIME_BITS):
        if not T2_TIME_BITS < time_bits <= TIME_BITS:
            raise ValueError(f"{time_bits} bits of time: allowed are 26 to {TIME_BITS}")
        self.time_bits = time_bits
        super().__init__()

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.ledger = ledger = Ledger("t2_encoder")
        m.d.comb += [
            self.counts.live.eq(ledger.counts.live),
            self.counts.at_frame.eq(ledger.counts.at_frame),
        ]
        m.submodules.front = front = Skid(layout(TAG))
        wiring.connect(m, wiring.flipped(self.i), front.i)
        tag, out = front.o.payload, self.o.payload
        ends = Signal()  # the second stage's record leaves with its last output
        free, far = Signal(), Signal()
        one, two = Signal(), Signal()  # a record in the first stage, in the second
        advance = Signal()
        m.d.comb += [
            free.eq(~self.o.valid | self.o.ready),
            ends.eq(free & ~far),
            advance.eq(~two | ends),
            front.o.ready.eq(advance),
        ]

        # 1: the time, and how often it had wrapped before.
        last = Signal(self.time_bits)  # time that the records so far have reached
        started = Signal()  # 0 until the first record, which may have any time
        before = Signal(self.time_bits - T2_TIME_BITS)
        backwards = Signal()
        kind, channel = Signal.like(tag.kind), Signal.like(tag.channel)
        click, frame, dropped, silent = Signal(), Signal(), Signal(), Signal()
        m.d.comb += backwards.eq(started & (tag.time - last)[self.time_bits - 1])
        with m.If(advance):
            m.d.sync += one.eq(front.o.valid)
            with m.If(front.o.valid):
                m.d.sync += [
                    last.eq(Mux(backwards, last, tag.time)),
                    before.eq(last[T2_TIME_BITS:]),
                    started.eq(1),
                    kind.eq(tag.kind),
                    channel.eq(tag.channel),
                    click.eq(tag.kind == TagKind.CLICK),
                    frame.eq(tag.kind == TagKind.FRAME),
                    dropped.eq((tag.kind == TagKind.CLICK) & backwards),
                    # What leaves no record of its own.
                    silent.eq(
                        ((tag.kind == TagKind.CLICK) & backwards) | (tag.kind == TagKind.TIME)
                    ),
                ]

        # 2: wraps still to be told.
        wraps, following = Signal.like(before), Signal.like(before)
        some = Signal()
        record, overflow = Signal(layout(T2)), Signal(layout(T2))
        click_2, frame_2, dropped_2, silent_2 = (Signal() for _ in range(4))
        m.d.comb += following.eq(
            Mux(two & ~ends, wraps - T2_OVERFLOW_MAXIMUM, last[T2_TIME_BITS:] - before)
        )
        with m.If(advance | free):
            m.d.sync += [
                wraps.eq(following),
                far.eq(following > T2_OVERFLOW_MAXIMUM),
                some.eq(following != 0),
            ]
        with m.If(advance):
            m.d.sync += [
                two.eq(one),
                far.eq(one & (following > T2_OVERFLOW_MAXIMUM)),
                click_2.eq(click),
                frame_2.eq(frame),
                dropped_2.eq(dropped),
                silent_2.eq(silent),
                record.time.eq(last),
                record.special.eq(~click),
                record.channel.eq(channel),
            ]
            with m.Switch(kind):
                with m.Case(TagKind.LOSS):
                    m.d.sync += record.channel.eq(
                        Mux(channel == LossMark.END, T2Marker.LOSS_END, T2Marker.LOSS_BEGIN)
                    )
                with m.Case(TagKind.FRAME):
                    m.d.sync += record.channel.eq(T2Marker.FRAME)

        # 3: the records.
        m.d.comb += [
            overflow.special.eq(1),
            overflow.channel.eq(T2_OVERFLOW_CHANNEL),
            overflow.time.eq(Mux(far, T2_OVERFLOW_MAXIMUM, wraps)),
        ]
        with m.If(free):
            m.d.sync += [
                self.o.valid.eq(two & (some | ~silent_2)),
                out.first.eq(Mux(some, overflow, record)),
                out.second.eq(record),
                out.both.eq(some & ~far & ~silent_2),
            ]
        with m.If(two & ends):
            m.d.comb += [
                ledger.step["in"].eq(click_2),
                ledger.step.out.eq(click_2 & ~dropped_2),
                ledger.step.out_of_order.eq(dropped_2),
            ]
            with m.If(frame_2):
                m.d.comb += ledger.frame.eq(~0)
        return m


class T2Serialiser(wiring.Component):
    """One T2 record a clock, for an endpoint of 32 bits.

    Latency: none. Throughput: 1 record a clock; a pair takes two.

    Members
    -------
    i
        Stream of `t2_pair`.
    o
        Stream of ``t2``.
    """

    i: In(stream.Signature(t2_pair()))
    o: Out(stream.Signature(layout(T2)))

    def elaborate(self, platform: object) -> Module:
        m = Module()
        second = Signal()
        pair = self.i.payload
        m.d.comb += [
            self.o.valid.eq(self.i.valid),
            self.o.payload.eq(Mux(second, pair.second, pair.first)),
            self.i.ready.eq(self.o.ready & (second | ~pair.both)),
        ]
        with m.If(self.o.valid & self.o.ready):
            m.d.sync += second.eq(pair.both & ~second)
        return m
