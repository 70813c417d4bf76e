# SPDX-License-Identifier: CERN-OHL-W-2.0
"""Counters of a block, with their values at the last frame marker."""

from amaranth.hdl import Module, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from keyrail.contract import LEDGERS

from .layouts import ledger_layout

__all__ = ["Counts", "Ledger"]


class Counts(wiring.Signature):
    """What a block shows of its ledger: ``live`` counters, and those ``at_frame``.

    Parameters
    ----------
    block
        Name of the block in the contract's ``LEDGERS``.
    """

    def __init__(self, block: str):
        super().__init__({"live": Out(ledger_layout(block)), "at_frame": Out(ledger_layout(block))})


class Ledger(wiring.Component):
    """Counters of one block, by the contract's names.

    A counter advances two clocks after its ``step`` was given: steps are registered, so that what
    they come from and the counter's carry are not one path. Where ``frame`` is given for a
    counter, its value so far, a step in the same clock included, is kept as the value at the
    frame marker.

    Parameters
    ----------
    block
        Name of the block in the contract's ``LEDGERS``.

    Members
    -------
    step
        Struct by counter name: amount to add in this clock (4 bits each, 0 to 15).
    frame
        Struct by counter name: 1 in the clock in which the frame marker passes the place where
        this counter counts.
    counts
        `Counts`: 48-bit counters, live and at the last frame marker.
    """

    def __init__(self, block: str):
        self._names = [counter.name for counter in LEDGERS[block][1]]
        super().__init__(
            {
                "step": In(data.StructLayout(dict.fromkeys(self._names, 4))),
                "frame": In(data.StructLayout(dict.fromkeys(self._names, 1))),
                "counts": Out(Counts(block)),
            }
        )
        self.due = Signal(data.StructLayout(dict.fromkeys(self._names, 4)))
        """Amounts given in the clock before, for proofs: counted in the next."""

    def elaborate(self, platform: object) -> Module:
        m = Module()
        step, frame = self.due, Signal.like(self.frame)
        m.d.sync += [step.eq(self.step), frame.eq(self.frame)]
        for name in self._names:
            live = self.counts.live[name]
            following = Signal(len(live), name=f"{name}_next")
            m.d.comb += following.eq(live + step[name])
            m.d.sync += live.eq(following)
            with m.If(frame[name]):
                m.d.sync += self.counts.at_frame[name].eq(following)
        return m
