# SPDX-License-Identifier: CERN-OHL-W-2.0
"""From the time tagger's inputs to one stream of tags: conditioning and merge."""

from amaranth.hdl import Module, ResetInserter
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from keyrail.contract import TAG, TDC_INPUTS, TIME_BITS, TagKind

from .condition import Condition, condition_layout, event_layout
from .layouts import layout
from .ledger import Counts, Ledger
from .merge import Merge

__all__ = ["FrontEnd"]


class FrontEnd(wiring.Component):
    """`Condition` for each input, and `Merge` of all.

    Latency: 10 clocks with 10 inputs, after the watermarks of all inputs have passed the event.
    Throughput: 1 tag a clock; an event a clock on each input until its queue is full.

    Parameters
    ----------
    inputs
        Number of inputs; input n becomes channel n.
    depth
        Events the queue of an input holds.

    Members
    -------
    i_0, i_1, ...
        `event_layout` each, as the time-to-digital converters give them.
    o, refused, until, frame, flush, busy, held
        As those of `Merge`.
    settings, limits, rates, windows
        By input: `condition_layout`, limit of the rate, rate, and the windows that this is of.
    alarm, clear
        A bit an input: its rate has passed the limit; take that back.
    key_mode
        1: neither dead times nor dividers.
    condition, merge
        Ledgers.
    """

    def __init__(self, inputs: int = TDC_INPUTS, depth: int = 512):
        self.merger = Merge(inputs, depth)
        self.inputs = inputs
        super().__init__(
            {f"i_{n}": In(event_layout()) for n in range(inputs)}
            | {
                "o": Out(stream.Signature(layout(TAG))),
                "refused": Out(4),
                "until": Out(TIME_BITS),
                "frame": In(1),
                "flush": In(1),
                "busy": Out(1),
                "held": Out(len(self.merger.held)),
                "settings": In(data.ArrayLayout(condition_layout(), inputs)),
                "limits": In(data.ArrayLayout(32, inputs)),
                "rates": Out(data.ArrayLayout(32, inputs)),
                "windows": Out(data.ArrayLayout(24, inputs)),
                "alarm": Out(inputs),
                "clear": In(inputs),
                "key_mode": In(1),
                "condition": Out(Counts("condition")),
                "merge": Out(Counts("merge")),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.merge = merge = self.merger
        anew = ResetInserter(merge.busy)
        m.submodules.ledger = ledger = anew(Ledger("condition"))
        inputs = []
        for n in range(self.inputs):
            one = Condition()
            m.submodules[f"condition_{n}"] = anew(one)
            inputs.append(one)
            m.d.comb += [
                one.i.eq(getattr(self, f"i_{n}")),
                one.settings.eq(self.settings[n]),
                one.key_mode.eq(self.key_mode),
                one.limit.eq(self.limits[n]),
                one.clear.eq(self.clear[n]),
                self.rates[n].eq(one.rate),
                self.windows[n].eq(one.windows),
                self.alarm[n].eq(one.alarm),
                getattr(merge, f"i_{n}").eq(one.o),
            ]
        # Steps of a ledger are counted together: at most one an input and clock.
        passed = sum(one.passed for one in inputs)
        drops = {
            name: sum(getattr(one, name) for one in inputs)
            for name in ("disabled", "dead", "divided")
        }
        m.d.sync += [
            ledger.step["in"].eq(passed + sum(drops.values())),
            ledger.step.out.eq(passed),
            *(ledger.step[name].eq(drop) for name, drop in drops.items()),
        ]
        wiring.connect(m, merge.o, wiring.flipped(self.o))
        leaves = merge.o.valid & merge.o.ready & (merge.o.payload.kind == TagKind.FRAME)
        with m.If(leaves):
            m.d.comb += ledger.frame.eq(~0)
        m.d.comb += [
            self.refused.eq(merge.refused),
            self.until.eq(merge.until),
            self.held.eq(merge.held),
            self.busy.eq(merge.busy),
            merge.frame.eq(self.frame),
            merge.flush.eq(self.flush),
            self.condition.live.eq(ledger.counts.live),
            self.condition.at_frame.eq(ledger.counts.at_frame),
            self.merge.live.eq(merge.counts.live),
            self.merge.at_frame.eq(merge.counts.at_frame),
        ]
        return m
