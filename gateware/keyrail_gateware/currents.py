# SPDX-License-Identifier: CERN-OHL-W-2.0
"""Limits of the detectors' currents."""

from amaranth.hdl import Array, Module, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from keyrail.contract import CHANNELS, CURRENT_SAMPLE

from .layouts import layout
from .ledger import Counts, Ledger

__all__ = ["LIMITS", "Currents"]

LIMITS = data.ArrayLayout(data.StructLayout({"low": 16, "high": 16}), CHANNELS)
"""Least and largest sample without alarm, at the channel's index."""


class Currents(wiring.Component):
    """Compare samples of the detectors' bias current or photocurrent with their limits.

    Light bright enough to blind a detector draws current through it that weak light does not. A
    sample outside its channel's limits, both of which belong to it, counts and sets the channel's
    alarm, which stays until reset. A sample of a channel that does not exist is counted and sets
    no alarm.

    Latency: 3 clocks from sample to alarm. Throughput: 1 sample a clock, never held back.

    Members
    -------
    i
        Stream of ``current_sample``.
    limits
        `LIMITS`.
    alarms
        A bit a channel.
    counts
        Ledger of ``currents``.
    """

    i: In(stream.Signature(layout(CURRENT_SAMPLE)))
    limits: In(LIMITS)
    alarms: Out(CHANNELS)
    counts: Out(Counts("currents"))

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.ledger = ledger = Ledger("currents")
        m.d.comb += [
            self.counts.live.eq(ledger.counts.live),
            self.counts.at_frame.eq(ledger.counts.at_frame),
            self.i.ready.eq(1),
        ]
        channel_bits = (CHANNELS - 1).bit_length()
        limits = Array(self.limits[c].as_value() for c in range(CHANNELS))
        limit = Signal(LIMITS.elem_shape)
        sample, channel, exists, valid = Signal(16), Signal(channel_bits), Signal(), Signal()
        low, high, bad, place, came = Signal(), Signal(), Signal(), Signal(channel_bits), Signal()
        m.d.sync += [
            limit.as_value().eq(limits[self.i.payload.channel[:channel_bits]]),
            sample.eq(self.i.payload.sample),
            channel.eq(self.i.payload.channel),
            exists.eq(self.i.payload.channel < CHANNELS),
            valid.eq(self.i.valid),
            came.eq(valid),
            low.eq(valid & exists & (sample < limit.low)),
            high.eq(valid & exists & (sample > limit.high) & (sample >= limit.low)),
            bad.eq(valid & ~exists),
            place.eq(channel),
        ]
        with m.If(low | high):
            m.d.sync += self.alarms.bit_select(place, 1).eq(1)
        m.d.comb += [
            ledger.step["in"].eq(came),
            ledger.step["out"].eq(came & ~low & ~high & ~bad),
            ledger.step["low"].eq(low),
            ledger.step["high"].eq(high),
            ledger.step["bad_channel"].eq(bad),
        ]
        return m
