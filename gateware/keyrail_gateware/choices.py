# SPDX-License-Identifier: CERN-OHL-W-2.0
"""The active receiver's basis choice of each slot."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from keyrail.contract import (
    CHOICE_WORD,
    CHOICES_PER_WORD,
    CHOSEN_TAG,
    SLOT_BITS,
    SLOT_TAG,
    TagKind,
)

from .layouts import layout
from .ledger import Counts, Ledger

__all__ = ["SPARE_SLOTS", "Choices"]

_INDEX_BITS = CHOICES_PER_WORD.bit_length() - 1
SPARE_SLOTS = 4 * CHOICES_PER_WORD
"""Slots of the ring that count as past, though they may still be there."""


class Choices(wiring.Component):
    """Remember the basis choices of the last slots, and join each tag with its slot's.

    A ring of words of 64 choices. A click in a slot before the first choice fed, or more than
    ``horizon_slots`` - 256 before the next, is dropped as expired; one in a slot not fed yet, as
    dry: without its random choice a slot is not used. The first record of a slot decides for all
    of that slot, whatever is fed meanwhile, so that a double click is never halved. The spare 256
    slots make up for the clocks between comparison and memory: a word being overwritten has
    expired already. A passive receiver has no choices: every record passes with choice 0.
    Markers pass with choice 0.

    Latency: 5 clocks. Throughput: one record and one word of choices a clock.

    Parameters
    ----------
    horizon_slots
        Slots in the ring, a power of two from 512.

    Members
    -------
    words
        Stream of ``choice_word``, taken while ``open`` in an active receiver.
    i, o
        Streams of ``slot_tag`` and ``chosen_tag``.
    open
        1 while choices are taken.
    active
        1 in an active receiver. Constant while records pass.
    first_choice
        Slot of the first choice fed, a multiple of 64, 48 bits.
    next_slot
        Slot of the next choice fed, 48 bits.
    wipe
        1: forget everything and overwrite the ring; so after reset. Clicks inside, and further ones
        of the last slot, are dropped as dry.
    busy
        1 while the ring is overwritten.
    counts
        Ledger of ``choices``.
    """

    def __init__(self, horizon_slots: int = 1 << 17):
        depth = horizon_slots // CHOICES_PER_WORD
        if depth < 8 or horizon_slots & (horizon_slots - 1):
            raise ValueError(
                f"horizon of {horizon_slots} slots: powers of two from 512 are allowed"
            )
        self._horizon = horizon_slots
        super().__init__(
            {
                "words": In(stream.Signature(layout(CHOICE_WORD))),
                "i": In(stream.Signature(layout(SLOT_TAG))),
                "o": Out(stream.Signature(layout(CHOSEN_TAG))),
                "open": In(1),
                "active": In(1),
                "first_choice": In(SLOT_BITS),
                "next_slot": Out(SLOT_BITS),
                "wipe": In(1),
                "busy": Out(1),
                "counts": Out(Counts("choices")),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.ledger = ledger = Ledger("choices")
        depth = self._horizon // CHOICES_PER_WORD
        m.submodules.memory = memory = Memory(shape=CHOICES_PER_WORD, depth=depth, init=[])
        write, read = memory.write_port(), memory.read_port()
        wiping, sweep = Signal(init=1), Signal(range(depth))
        m.d.comb += [
            self.counts.live.eq(ledger.counts.live),
            self.counts.at_frame.eq(ledger.counts.at_frame),
            self.busy.eq(wiping),
        ]

        # -- choices in ------------------------------------------------------------------------

        stored, begun = Signal(SLOT_BITS), Signal()
        head, writes = Signal(SLOT_BITS), Signal()
        # Of these, `oldest` is the newer of the first slot fed and the end of the horizon.
        edge, oldest = Signal(SLOT_BITS), Signal(SLOT_BITS)
        behind = self._horizon - SPARE_SLOTS
        filled, passed = Signal(SLOT_BITS + 1), Signal()  # `edge` has passed the first slot fed
        m.d.comb += [
            head.eq(Mux(begun, stored, self.first_choice)),
            self.next_slot.eq(head),
            self.words.ready.eq(self.open & self.active & ~wiping),
            writes.eq(self.words.valid & self.words.ready),
        ]
        with m.If(writes):
            m.d.sync += [stored.eq(head + CHOICES_PER_WORD), begun.eq(1)]
        m.d.sync += [
            edge.eq(head - behind),
            filled.eq(self.first_choice + behind),
            passed.eq(head >= filled),
            oldest.eq(Mux(passed, edge, self.first_choice)),
        ]
        with m.If(wiping):
            m.d.comb += [write.en.eq(1), write.addr.eq(sweep), write.data.eq(0)]
            m.d.sync += sweep.eq(sweep + 1)
            with m.If(sweep == depth - 1):
                m.d.sync += [wiping.eq(0), sweep.eq(0)]
        with m.Else():
            m.d.comb += [
                write.en.eq(writes),
                write.addr.eq(head[_INDEX_BITS:]),
                write.data.eq(self.words.payload.as_value()),
            ]

        # -- records ---------------------------------------------------------------------------

        step = Signal()
        m.d.comb += [step.eq(~self.o.valid | self.o.ready), self.i.ready.eq(step)]
        stage = data.StructLayout({"tag": layout(SLOT_TAG), "valid": 1, "same": 1})
        one, two, three, four = (Signal(stage, name=f"stage_{n}") for n in (1, 2, 3, 4))
        former = Signal(SLOT_BITS)
        late_2, dry_2, late_3, dry_3, late_4, dry_4 = (Signal() for _ in range(6))
        word_3, part_4 = Signal(CHOICES_PER_WORD), Signal(8)
        m.d.comb += [read.en.eq(step), read.addr.eq(one.tag.slot[_INDEX_BITS:])]
        with m.If(step):
            m.d.sync += [
                one.tag.eq(self.i.payload),
                one.valid.eq(self.i.valid),
                one.same.eq(self.i.payload.slot == former),
                # The memory is read in the clock of these comparisons.
                two.eq(one),
                late_2.eq(one.tag.slot < oldest),
                dry_2.eq(one.tag.slot >= head),
                three.eq(two),
                late_3.eq(late_2 & ~dry_2),
                dry_3.eq(dry_2),
                word_3.eq(read.data),
                four.eq(three),
                late_4.eq(late_3),
                dry_4.eq(dry_3),
                part_4.eq(word_3.word_select(three.tag.slot[3:_INDEX_BITS], 8)),
            ]
            with m.If(self.i.valid):
                m.d.sync += former.eq(self.i.payload.slot)

        # The first record of a slot decides.
        choice, late, dry = Signal(), Signal(), Signal()
        held = Signal(3)
        here = Signal(3)
        begins = Signal()  # a record has passed, so that "same" means the record before
        m.d.comb += [
            here.eq(
                Mux(
                    four.same & begins,
                    held,
                    Cat(part_4.bit_select(four.tag.slot[:3], 1), late_4, dry_4),
                )
            ),
            Cat(choice, late, dry).eq(here & self.active.replicate(3)),
        ]
        click = Signal()
        drops = Signal()
        m.d.comb += [
            click.eq(four.tag.kind == TagKind.CLICK),
            drops.eq(click & (late | dry)),
        ]
        with m.If(step):
            m.d.sync += [
                self.o.valid.eq(four.valid & ~drops),
                self.o.payload.choice.eq(click & choice),
                *(self.o.payload[name].eq(four.tag[name]) for name in layout(SLOT_TAG).members),
            ]
            with m.If(four.valid):
                m.d.sync += [held.eq(here), begins.eq(1)]
                m.d.comb += [
                    ledger.step["in"].eq(click),
                    ledger.step["out"].eq(click & ~drops),
                    ledger.step["dry"].eq(click & dry),
                    ledger.step["expired"].eq(click & late),
                ]
                with m.If(four.tag.kind == TagKind.FRAME):
                    m.d.comb += ledger.frame.eq(~0)

        with m.If(self.wipe):
            m.d.sync += [
                wiping.eq(1),
                sweep.eq(0),
                stored.eq(0),
                begun.eq(0),
                # Records on their way find no choice.
                *(one.eq(1) for one in (dry_2, dry_3, dry_4)),
                word_3.eq(0),
                part_4.eq(0),
                held.eq(0b100),
            ]
        return m
