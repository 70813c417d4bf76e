# SPDX-License-Identifier: Apache-2.0
"""What the overload benchmark runs: tag FIFO and T2 encoder without the rest of a receiver."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from keyrail.contract import LOSS, T2, TAG
from keyrail_gateware.layouts import layout
from keyrail_gateware.ledger import Counts
from keyrail_gateware.t2_encoder import T2Encoder, T2Serialiser
from keyrail_gateware.tag_fifo import TagFifo


class T2Path(wiring.Component):  # type: ignore[misc]
    """Tag FIFO, T2 encoder and serialiser by themselves: a time tagger without a receiver.

    Parameters
    ----------
    depth
        Records the FIFO holds.

    Members
    -------
    i
        Stream of ``tag``, in real time: it never waits.
    o
        Stream of ``t2``.
    losses
        Stream of ``loss``.
    counts
        Ledger of ``tag_fifo``.
    """

    def __init__(self, depth: int = 4096) -> None:
        self.depth = depth
        super().__init__(
            {
                "i": In(stream.Signature(layout(TAG))),
                "o": Out(stream.Signature(layout(T2))),
                "losses": Out(stream.Signature(layout(LOSS))),
                "counts": Out(Counts("tag_fifo")),
            }
        )

    def elaborate(self, platform: object) -> Any:
        m = Module()
        m.submodules.tag_fifo = tag_fifo = TagFifo(self.depth)
        m.submodules.t2_encoder = t2_encoder = T2Encoder()
        m.submodules.t2_serialiser = t2_serialiser = T2Serialiser()
        wiring.connect(m, wiring.flipped(self.i), tag_fifo.i)
        wiring.connect(m, tag_fifo.o, t2_encoder.i)
        wiring.connect(m, t2_encoder.o, t2_serialiser.i)
        wiring.connect(m, t2_serialiser.o, wiring.flipped(self.o))
        wiring.connect(m, tag_fifo.losses, wiring.flipped(self.losses))
        m.d.comb += [
            tag_fifo.real_time.eq(1),
            self.counts.live.eq(tag_fifo.counts.live),
            self.counts.at_frame.eq(tag_fifo.counts.at_frame),
        ]
        return m
