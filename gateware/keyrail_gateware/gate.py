# SPDX-License-Identifier: CERN-OHL-W-2.0
"""Gate windows: phase of a click to basis and bit."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from keyrail.contract import (
    CHANNELS,
    GATE_WINDOWS,
    GATED_TAG,
    SLOT_TAG,
    Role,
    TagKind,
    registers,
)

from .layouts import fields_layout, layout
from .ledger import Counts, Ledger

__all__ = ["WINDOWS", "Gate"]

WINDOWS = data.ArrayLayout(
    fields_layout(registers(Role.RECEIVER)["gate_0_0"].fields), CHANNELS * GATE_WINDOWS
)
"""Every gate window, at index channel x 2 + window, laid out as in its register."""


class Gate(wiring.Component):
    """Accept the clicks inside a gate window of their channel; drop the others.

    A window accepts the phases from ``start`` on and below ``stop``; with stop < start it wraps
    round the end of the slot, with stop = start it accepts nothing. Where both windows of a
    channel accept, window 0 counts. The click takes basis and bit of its window. Clicks of a
    channel above 7 are dropped as outside every window. Markers pass, with basis, bit and window
    zero.

    Latency: 1 clock. Throughput: 1 record a clock.

    Members
    -------
    i, o
        Streams of ``slot_tag`` and ``gated_tag``.
    windows
        `WINDOWS`: the windows of channel 0, of channel 1, and so on. Constant while records
        pass.
    counts
        Ledger of ``gate``.
    """

    i: In(stream.Signature(layout(SLOT_TAG)))
    o: Out(stream.Signature(layout(GATED_TAG)))
    windows: In(WINDOWS)
    counts: Out(Counts("gate"))

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.ledger = ledger = Ledger("gate")
        m.d.comb += [
            self.counts.live.eq(ledger.counts.live),
            self.counts.at_frame.eq(ledger.counts.at_frame),
        ]

        tag = self.i.payload
        exists = Signal()
        m.d.comb += exists.eq(tag.channel < CHANNELS)
        channel = tag.channel[: (CHANNELS - 1).bit_length()]
        windows = [Signal(WINDOWS.elem_shape, name=f"window_{n}") for n in range(GATE_WINDOWS)]
        hits = Signal(GATE_WINDOWS)
        for number, window in enumerate(windows):
            after, before = Signal(name=f"after_{number}"), Signal(name=f"before_{number}")
            m.d.comb += [
                window.eq(self.windows[channel * GATE_WINDOWS + number]),
                after.eq(tag.phase >= window.start),
                before.eq(tag.phase < window.stop),
                hits[number].eq(
                    exists
                    & window.enable
                    & Mux(window.stop < window.start, after | before, after & before)
                ),
            ]
        click, accepted = Signal(), Signal()
        m.d.comb += [click.eq(tag.kind == TagKind.CLICK), accepted.eq(click & hits.any())]

        m.d.comb += self.i.ready.eq(~self.o.valid | self.o.ready)
        with m.If(self.o.ready):
            m.d.sync += self.o.valid.eq(0)
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += [
                self.o.valid.eq(~click | accepted),
                self.o.payload.slot.eq(tag.slot),
                self.o.payload.channel.eq(tag.channel),
                self.o.payload.kind.eq(tag.kind),
                self.o.payload.phase.eq(tag.phase),
                self.o.payload.basis.eq(click & Mux(hits[0], windows[0].basis, windows[1].basis)),
                self.o.payload.bit.eq(click & Mux(hits[0], windows[0].bit, windows[1].bit)),
                self.o.payload.window.eq(click & ~hits[0]),
            ]
            m.d.comb += [
                ledger.step["in"].eq(click),
                ledger.step["out"].eq(accepted),
                ledger.step["gated_out"].eq(click & ~accepted),
            ]
            with m.If(tag.kind == TagKind.FRAME):
                m.d.comb += ledger.frame.eq(~0)
        return m
