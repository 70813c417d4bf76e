# SPDX-License-Identifier: CERN-OHL-W-2.0
"""Blanking of whole slots until every detector is live again."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from keyrail.contract import CHANNELS, SLOT_BITS, SLOT_TAG, TagKind

from .layouts import layout
from .ledger import Counts, Ledger

__all__ = ["BLANKING_SLOTS", "Blanking"]

BLANKING_SLOTS = data.ArrayLayout(16, CHANNELS)
"""Slots that each channel stays blanked after a raw click, at the channel's index."""


class Blanking(wiring.Component):
    """Drop clicks in slots in which some detector may not be live.

    After a raw click of channel c in slot s, the slots s + 1 to s + N_c are blanked for every
    channel, N_c being ``slots[c]``. So a blank begins with the slot after a raw click and ends when
    each detector has been live again since its own last raw click, provided N_c slots last at least
    the dead time of c. Every click that enters is raw, those dropped here included; the gate comes
    later. A loss marker may stand for clicks of any channel: it blanks as the longest N_c does.
    Clicks that share a slot share its fate. Markers pass.

    Only the slots left to blank are kept, as the longest of what is left and N_c: for a channel's
    own clicks, the last one always reaches farthest.

    Latency: 4 clocks, one more for each clock in which the output waits. Throughput: 1 record a
    clock.

    Parameters
    ----------
    channels
        Channels that are built, a power of two up to 8; clicks of others blank nothing.

    Members
    -------
    i, o
        Streams of ``slot_tag`` in slot order.
    slots
        `BLANKING_SLOTS`. Set 16 clocks before a record, constant while records pass.
    counts
        Ledger of ``blanking``.
    """

    i: In(stream.Signature(layout(SLOT_TAG)))
    o: Out(stream.Signature(layout(SLOT_TAG)))
    slots: In(BLANKING_SLOTS)
    counts: Out(Counts("blanking"))

    def __init__(self, channels: int = CHANNELS):
        self._channels = channels
        super().__init__()

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.ledger = ledger = Ledger("blanking")
        m.d.comb += [
            self.counts.live.eq(ledger.counts.live),
            self.counts.at_frame.eq(ledger.counts.at_frame),
        ]

        # The longest N: a tree over settings that do not change, registered at each level.
        level = [self.slots[channel] for channel in range(self._channels)]
        while len(level) > 1:
            following = []
            for index, (a, b) in enumerate(zip(level[::2], level[1::2], strict=True)):
                one = Signal(16, name=f"longest_{len(level)}_{index}")
                m.d.sync += one.eq(Mux(a > b, a, b))
                following.append(one)
            level = following
        longest = level[0]

        step = Signal()
        m.d.comb += [step.eq(~self.o.valid | self.o.ready), self.i.ready.eq(step)]
        valid = Signal(3)
        tag_1, tag_2, tag_3 = (Signal(layout(SLOT_TAG), name=f"tag_{n}") for n in (1, 2, 3))

        # 1: slots since the record before.
        former, apart_1 = Signal(SLOT_BITS), Signal(SLOT_BITS)
        # 2: the same in 16 bits, if it fits, and N of the record.
        apart_2, far_2, same_2, new_2 = Signal(16), Signal(), Signal(), Signal(16)
        # 3: what is left must reach this far for it to exceed N in this slot.
        apart_3, far_3, same_3, new_3 = Signal(16), Signal(), Signal(), Signal(16)
        reach_3 = Signal(17)
        # 4: slots after the last record's that are blanked, and whether its own is.
        left, blank = Signal(16), Signal()

        with m.If(step):
            m.d.sync += [
                valid.eq((valid << 1) | self.i.valid),
                tag_1.eq(self.i.payload),
                apart_1.eq(self.i.payload.slot - former),
                tag_2.eq(tag_1),
                apart_2.eq(apart_1[:16]),
                far_2.eq(apart_1[16:].any()),
                same_2.eq(apart_1 == 0),
                new_2.eq(0),
                tag_3.eq(tag_2),
                apart_3.eq(apart_2),
                far_3.eq(far_2),
                same_3.eq(same_2),
                new_3.eq(new_2),
                reach_3.eq(apart_2 + new_2),
            ]
            with m.If(self.i.valid):
                m.d.sync += former.eq(self.i.payload.slot)
            with m.If((tag_1.kind == TagKind.CLICK) & (tag_1.channel < self._channels)):
                m.d.sync += new_2.eq(self.slots[tag_1.channel[: (self._channels - 1).bit_length()]])
            with m.If(tag_1.kind == TagKind.LOSS):
                m.d.sync += new_2.eq(longest)

        click, passed, blanked, rest = Signal(), Signal(), Signal(), Signal(17)
        m.d.comb += [
            click.eq(tag_3.kind == TagKind.CLICK),
            rest.eq(left - apart_3),
            passed.eq(far_3 | rest[-1]),
            blanked.eq(Mux(same_3, blank, ~passed)),
        ]
        with m.If(step):
            m.d.sync += [
                self.o.valid.eq(valid[2] & ~(click & blanked)),
                self.o.payload.eq(tag_3),
            ]
            with m.If(valid[2]):
                m.d.sync += blank.eq(blanked)
                with m.If(~far_3 & (left >= reach_3)):
                    m.d.sync += left.eq(rest)
                with m.Else():
                    m.d.sync += left.eq(new_3)
                m.d.comb += [
                    ledger.step["in"].eq(click),
                    ledger.step["out"].eq(click & ~blanked),
                    ledger.step["blanked"].eq(click & blanked),
                    ledger.step["losses"].eq(tag_3.kind == TagKind.LOSS),
                ]
                with m.If(tag_3.kind == TagKind.FRAME):
                    m.d.comb += ledger.frame.eq(~0)
        return m
