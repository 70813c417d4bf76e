# SPDX-License-Identifier: CERN-OHL-W-2.0
"""Gate windows: phase of a click, and basis choice of its slot, to basis and bit."""

from amaranth.hdl import Array, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from keyrail.contract import (
    CHANNELS,
    CHOSEN_TAG,
    GATE_WINDOWS,
    GATED_TAG,
    Role,
    TagKind,
    registers,
)

from .layouts import fields_layout, layout
from .ledger import Counts, Ledger

__all__ = ["WINDOW", "WINDOWS", "Gate"]

WINDOW = fields_layout(registers(Role.RECEIVER)["gate_0_0"].fields)
"""A gate window, laid out as in its register."""
WINDOWS = data.ArrayLayout(WINDOW, CHANNELS * GATE_WINDOWS)
"""Every gate window, at index channel x 2 + window."""


class Gate(wiring.Component):
    """Accept the clicks inside a gate window of their channel; drop the others.

    A window accepts the phases from ``start`` on and below ``stop``; with stop < start it wraps
    round the end of the slot, with stop = start it accepts nothing. What it stands for depends on
    the slot's basis choice: with choice 0, and in a passive receiver, ``enable`` opens it and
    ``basis`` and ``bit`` are those of a click in it; with choice 1 it is ``enable_1``, ``basis_1``
    and ``bit_1``. Where both windows of a channel accept, window 0 counts. Clicks of a channel
    that is not built are dropped as outside every window. Markers pass, with basis, bit and window
    zero.

    Latency: 3 clocks. Throughput: 1 record a clock.

    Parameters
    ----------
    channels
        Channels that are built, a power of two up to 8.

    Members
    -------
    i, o
        Streams of ``chosen_tag`` and ``gated_tag``.
    windows
        `WINDOWS`: the windows of channel 0, of channel 1, and so on. Constant while records
        pass.
    counts
        Ledger of ``gate``.
    """

    i: In(stream.Signature(layout(CHOSEN_TAG)))
    o: Out(stream.Signature(layout(GATED_TAG)))
    windows: In(WINDOWS)
    counts: Out(Counts("gate"))

    def __init__(self, channels: int = CHANNELS):
        self._channels = channels
        super().__init__()

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.ledger = ledger = Ledger("gate")
        m.d.comb += [
            self.counts.live.eq(ledger.counts.live),
            self.counts.at_frame.eq(ledger.counts.at_frame),
        ]
        step = Signal()
        m.d.comb += [step.eq(~self.o.valid | self.o.ready), self.i.ready.eq(step)]
        chosen = data.StructLayout({"open": 1, "basis": 1, "bit": 1})
        numbers = range(GATE_WINDOWS)
        tag_1, tag_2 = (Signal(layout(CHOSEN_TAG), name=f"tag_{n}") for n in (1, 2))
        valid_1, valid_2, exists_1 = Signal(), Signal(), Signal()
        windows = [Signal(WINDOW, name=f"window_{n}_1") for n in numbers]
        outcomes = [Signal(chosen, name=f"outcome_{n}_2") for n in numbers]
        after, before, wraps = (Signal(GATE_WINDOWS, name=n) for n in ("after", "before", "wraps"))

        channel = self.i.payload.channel[: (self._channels - 1).bit_length()]
        with m.If(step):
            m.d.sync += [
                tag_1.eq(self.i.payload),
                valid_1.eq(self.i.valid),
                exists_1.eq(self.i.payload.channel < self._channels),
                tag_2.eq(tag_1),
                valid_2.eq(valid_1),
            ]
            for n, window, outcome in zip(numbers, windows, outcomes, strict=True):
                # Only the windows of channels that are built exist.
                built = Array(
                    self.windows[c * GATE_WINDOWS + n].as_value() for c in range(self._channels)
                )
                m.d.sync += [
                    window.as_value().eq(built[channel]),
                    after[n].eq(tag_1.phase >= window.start),
                    before[n].eq(tag_1.phase < window.stop),
                    wraps[n].eq(window.stop < window.start),
                    outcome.open.eq(exists_1 & Mux(tag_1.choice, window.enable_1, window.enable)),
                    outcome.basis.eq(Mux(tag_1.choice, window.basis_1, window.basis)),
                    outcome.bit.eq(Mux(tag_1.choice, window.bit_1, window.bit)),
                ]

        hits, click, accepted = Signal(GATE_WINDOWS), Signal(), Signal()
        m.d.comb += [
            *(
                hits[n].eq(
                    outcomes[n].open & Mux(wraps[n], after[n] | before[n], after[n] & before[n])
                )
                for n in numbers
            ),
            click.eq(tag_2.kind == TagKind.CLICK),
            accepted.eq(click & hits.any()),
        ]
        outcome = Mux(hits[0], outcomes[0].as_value(), outcomes[1].as_value())
        outcome = data.View(chosen, outcome)
        with m.If(step):
            m.d.sync += [
                self.o.valid.eq(valid_2 & (~click | accepted)),
                self.o.payload.slot.eq(tag_2.slot),
                self.o.payload.channel.eq(tag_2.channel),
                self.o.payload.kind.eq(tag_2.kind),
                self.o.payload.phase.eq(tag_2.phase),
                self.o.payload.basis.eq(click & outcome.basis),
                self.o.payload.bit.eq(click & outcome.bit),
                self.o.payload.window.eq(click & ~hits[0]),
            ]
            with m.If(valid_2):
                m.d.comb += [
                    ledger.step["in"].eq(click),
                    ledger.step["out"].eq(accepted),
                    ledger.step["gated_out"].eq(click & ~accepted),
                ]
                with m.If(tag_2.kind == TagKind.FRAME):
                    m.d.comb += ledger.frame.eq(~0)
        return m
