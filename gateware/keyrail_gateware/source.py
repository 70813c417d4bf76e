# SPDX-License-Identifier: CERN-OHL-W-2.0
"""The sender's source: one state a slot, to the modulators and to state memory alike."""

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from keyrail.contract import (
    MODULATORS,
    SLOT_BITS,
    STATE_BITS,
    STATE_WORD,
    STATES_PER_WORD,
    SYNC_WORDS,
    registers,
    sync_pattern,
)
from keyrail.contract import Role as _Role

from .layouts import fields_layout, layout
from .ledger import Counts, Ledger

__all__ = ["FED", "GEARS", "LATENCY", "MODULATOR", "Source", "frame_mask", "in_sync"]

WORD_BITS = SLOT_BITS - 4
"""Width of the number of a word of sixteen slots."""
GEARS = (1, 2, 4)
"""Samples a clock that an output may have."""
LATENCY = 2
"""Clocks from ``begins`` to the samples of that clock, with no delay set."""
CLOCKS_BITS = 8
"""Width of the number of a slot's clocks."""
DELAY = 15
"""Longest delay of a pattern, samples."""

FED = data.StructLayout({"states": STATE_WORD.used_bits, "present": 1})
"""What goes to state memory: sixteen states, and whether they may be used."""
MODULATOR = fields_layout(registers(_Role.SENDER)["modulator_0"].fields)
"""Settings of one modulator output, as in the contract's registers."""


def frame_mask(words_log2: object, bits: int) -> object:
    """Expression: mask of a word's place in its frame of 2^`words_log2` words."""
    return ((Const(1, 1) << words_log2) - 1)[:bits]


def in_sync(word: object, mask: object, sync_words: object) -> object:
    """Expression: 1 where the word of sixteen slots of that number holds sync slots."""
    return (word & mask) < sync_words


class Source(wiring.Component):
    """Emit one state a slot, sixteen slots a word.

    Unpaced, words pass to state memory as they come, and the modulators stay low: for simulated
    light. Paced, a slot lasts `clocks` + 1 clocks from the first word on; a word that has not come
    when its first slot is due stops the source there, for the rest of the block: nothing is
    emitted or remembered from there on, and no state is ever sent twice. The word that holds the
    block's last slot is the last.

    A frame is 16 x 2^`words_log2` slots; its first `sync_words` words carry the published sync
    pattern (`keyrail.contract.sync_pattern`; basis Z, signal intensity) in place of what was fed,
    and go to state memory as not present, so that they are in no tally.

    A modulator output is high from sample `start` to before sample `stop` of the slots of the
    states that it names, a sample being 1/gear of a clock; both have their place in the first 127
    samples of a slot.

    Latency: 1 clock from word to state memory; 2 clocks from ``begins`` to the slot's samples.
    Throughput: one word a clock unpaced, one slot a clock paced.

    Parameters
    ----------
    gear
        Samples a clock of each output: 1, 2 or 4.
    modulators
        Outputs, 1 to 8.

    Members
    -------
    words
        Stream of ``state_word``.
    fed
        Stream of `FED`.
    open
        1 while the block takes states.
    paced, clocks
        As above; `clocks` has 8 bits. Constant while `open`.
    first_word, last_word
        First and last word of the block, 44 bits; the first as it was in the clock before `open`.
    words_log2, sync_words
        6 and 7 bits; `sync_words` of 0: no sync slots. Constant while `open`, and for the two
        clocks before.
    settings
        Settings of each output (`MODULATOR`).
    samples
        Samples of each output in this clock, the first in bit 0.
    begins
        1 in the clock in which a slot begins.
    running, ended, starved
        1 while slots are emitted; from the end of the block's last slot; from a word that did not
        come in time. Both of the last until the next block.
    counts
        Ledger of ``source``; begins again with a block.
    """

    def __init__(self, gear: int = 4, modulators: int = 6):
        if gear not in GEARS:
            raise ValueError(f"gear {gear}: allowed are {', '.join(map(str, GEARS))}")
        if not 1 <= modulators <= MODULATORS:
            raise ValueError(f"{modulators} modulators: allowed are 1 to {MODULATORS}")
        self.gear, self.modulators = gear, modulators
        super().__init__(
            {
                "words": In(stream.Signature(layout(STATE_WORD))),
                "fed": Out(stream.Signature(FED)),
                "open": In(1),
                "paced": In(1),
                "clocks": In(CLOCKS_BITS),
                "first_word": In(WORD_BITS),
                "last_word": In(WORD_BITS),
                "words_log2": In(6),
                "sync_words": In(7),
                "settings": In(data.ArrayLayout(MODULATOR, modulators)),
                "samples": Out(data.ArrayLayout(gear, modulators)),
                "begins": Out(1),
                "running": Out(1),
                "ended": Out(1),
                "starved": Out(1),
                "counts": Out(Counts("source")),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.ledger = ledger = Ledger("source")
        m.d.comb += [
            self.counts.live.eq(ledger.counts.live),
            self.counts.at_frame.eq(ledger.counts.at_frame),
        ]
        following = Signal(WORD_BITS)  # the next word
        begun = Signal()
        free, wants, drains, takes = Signal(), Signal(), Signal(), Signal()
        slot, clock = Signal(4), Signal(CLOCKS_BITS)
        slot_ends, word_ends, final = Signal(), Signal(), Signal()
        # Registers that know a clock ahead: this clock is the slot's last one, and the word's.
        last_clock, last_of_word = Signal(), Signal()
        m.d.comb += [
            free.eq(~self.fed.valid | self.fed.ready),
            slot_ends.eq(self.running & last_clock),
            word_ends.eq(self.running & last_of_word),
            drains.eq(self.ended | self.starved),
            wants.eq(~self.paced | ~begun | (word_ends & ~final)),
            self.words.ready.eq(self.open & (drains | (wants & free))),
            takes.eq(self.words.valid & self.words.ready & ~drains),
        ]

        # Sync slots.
        # Of the word `following`, known since the clock before; so is the word behind it.
        sync, frame_begins = Signal(), Signal()
        behind, named = Signal(WORD_BITS), Signal(WORD_BITS)
        mask, framed = Signal(WORD_BITS), Signal()
        place = Signal(range(SYNC_WORDS))
        published = Array(Const(bits, STATES_PER_WORD) for bits in sync_pattern())
        bits = Signal(STATES_PER_WORD)
        states = Signal(STATE_WORD.used_bits)
        m.d.comb += [
            named.eq(Mux(self.open, behind, self.first_word)),
            place.eq(following & mask),
            bits.eq(published[place]),
            states.eq(
                Mux(
                    sync,
                    Cat(Cat(Const(0, 1), bits[i], Const(0, 1)) for i in range(STATES_PER_WORD)),
                    self.words.payload.as_value(),
                )
            ),
            ledger.step["in"].eq(self.words.valid & self.words.ready),
            ledger.step["surplus"].eq(self.words.valid & self.words.ready & drains),
            ledger.step["sync"].eq(takes & sync),
            ledger.step["out"].eq(takes & ~sync),
        ]
        m.d.sync += [
            mask.eq(frame_mask(self.words_log2, WORD_BITS)),
            framed.eq(self.words_log2 != 0),
        ]
        with m.If(takes | ~self.open):
            m.d.sync += [
                following.eq(named),
                behind.eq(named + 1),
                sync.eq(in_sync(named, mask, self.sync_words)),
                frame_begins.eq(framed & ~(named & mask).any()),
            ]
        with m.If(self.fed.ready):
            m.d.sync += self.fed.valid.eq(0)
        with m.If(takes):
            m.d.sync += [
                self.fed.valid.eq(1),
                self.fed.payload.states.eq(states),
                self.fed.payload.present.eq(~sync),
                final.eq(following == self.last_word),
                begun.eq(1),
            ]

        # Slots.
        word, first_of_frame = Signal(STATE_WORD.used_bits), Signal()
        following_clock, following_slot = Signal(CLOCKS_BITS), Signal(4)
        m.d.comb += [following_clock.eq(clock + 1), following_slot.eq(slot + 1)]
        with m.If(slot_ends):
            m.d.sync += [
                clock.eq(0),
                slot.eq(following_slot),
                word.eq(word >> STATE_BITS),
                last_clock.eq(self.clocks == 0),
                last_of_word.eq((self.clocks == 0) & (following_slot == STATES_PER_WORD - 1)),
            ]
        with m.Elif(self.running):
            m.d.sync += [
                clock.eq(following_clock),
                last_clock.eq(following_clock == self.clocks),
                last_of_word.eq((following_clock == self.clocks) & (slot == STATES_PER_WORD - 1)),
            ]
        with m.If(takes & self.paced):
            m.d.sync += [
                word.eq(states),
                first_of_frame.eq(frame_begins),
                slot.eq(0),
                clock.eq(0),
                last_clock.eq(self.clocks == 0),
                last_of_word.eq(0),
                self.running.eq(1),
            ]
        with m.Elif(word_ends):
            m.d.sync += [
                word.eq(0),
                self.running.eq(0),
                self.ended.eq(final),
                self.starved.eq(~final),
            ]

        # Samples.
        m.d.comb += self.begins.eq(self.running & (clock == 0))
        code = word[:STATE_BITS]
        for index in range(self.modulators):
            setting = self.settings[index]
            new, old = Signal(self.gear, name=f"new_{index}"), Signal(DELAY, name=f"old_{index}")
            chosen = Signal(name=f"chosen_{index}")
            m.d.comb += chosen.eq(
                self.running
                & (
                    setting.codes.bit_select(code, 1)
                    | (setting.frame & first_of_frame & (slot == 0))
                )
            )
            for g in range(self.gear):
                sample = Signal(CLOCKS_BITS + 2, name=f"sample_{index}_{g}")
                m.d.comb += sample.eq(clock * self.gear + g)
                m.d.sync += new[g].eq(chosen & (sample >= setting.start) & (sample < setting.stop))
            line = Cat(old, new)
            m.d.sync += old.eq(line[self.gear :])
            m.d.sync += self.samples[index].eq(
                line.bit_select((~setting.delay)[:4], self.gear)
                ^ setting.invert.replicate(self.gear)
            )

        with m.If(~self.open):
            m.d.sync += [
                begun.eq(0),
                final.eq(0),
                word.eq(0),
                self.running.eq(0),
                self.ended.eq(0),
                self.starved.eq(0),
                self.fed.valid.eq(0),
                self.fed.payload.eq(0),
            ]
        return m
