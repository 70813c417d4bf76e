# SPDX-License-Identifier: CERN-OHL-W-2.0
"""States from a standard cipher: made live, and again by slot number."""

from amaranth.hdl import Cat, Const, Module, Mux, ResetInserter, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from keyrail.contract import (
    KEY_WORD,
    MISSED_SLOT,
    RECALLED,
    SLOT_BITS,
    STATE_BITS,
    STATE_WORD,
    STATES_PER_WORD,
)

from .chacha20 import PARTS, ChaCha20
from .layouts import layout
from .secret_fifo import SecretFifo

__all__ = ["Generator"]

WORD_BITS = SLOT_BITS - 4
"""Width of the number of a word of sixteen slots."""
QUEUE = 16
"""Words and answers that are under way or wait, at most."""

_TAG = data.StructLayout({"recall": 1, "bits": 1, "index": 9})


class Generator(wiring.Component):
    """Make the states of slots from ChaCha20 (RFC 8439): computational randomness, and labelled so.

    Counter mode, so that any slot's state can be made again. The state of slot k comes from two
    blocks, both with the words 1 and 2 of the nonce from `nonce`:

    - block c = floor(k / 16), with counter c mod 2^32 and word 0 of the nonce floor(c / 2^32): of
      its 32-bit word k mod 16, the lower half x gives basis X if x >= z, the upper half y the
      decoy intensity if y >= signal. So the probabilities of Z and of the signal intensity are
      z / 2^16 and signal / 2^16 exactly, for uniform bits.
    - block b = floor(k / 512), with counter b mod 2^32 and word 0 of the nonce
      2^31 + floor(b / 2^32): the slot's bit is its bit k mod 512.

    Under one key no slot is made live twice: a block that begins before the first word that was
    never made is refused (``repeated``), until the key has been wiped.

    Latency: 91 clocks from request to word or answer where nothing else is under way. Throughput:
    33 blocks for 512 slots, which take 330 clocks; 20 clocks an answer.

    Members
    -------
    key
        Stream of ``key_word``, 4 of them, taken while `rekey`. It cannot be read back.
    rekey
        1 while no block of key is under way.
    start
        1 in the clock in which a block begins: all but key and record of use begin anew, with the
        settings of this clock.
    live
        1: words are made. 0: `missed` is answered alone.
    first_word, last_word
        First and last word of sixteen slots, both included, 44 bits.
    z, signal
        Probabilities of basis Z and of the signal intensity in 2^-16, 17 bits.
    nonce
        64 bits, public.
    words
        Stream of ``state_word``.
    missed, recalled
        Streams of ``missed_slot`` and ``recalled``: slots to make again, and their states.
    keyed
        1 while it holds a key.
    repeated
        1 where the block was refused.
    working
        1 while words or answers are under way.
    discard
        1: forget all that came from the key; it is made no further.
    wipe
        1: forget the key too.
    busy
        1 while memories are overwritten.
    """

    key: In(stream.Signature(layout(KEY_WORD)))
    rekey: In(1)
    start: In(1)
    live: In(1)
    first_word: In(WORD_BITS)
    last_word: In(WORD_BITS)
    z: In(17)
    signal: In(17)
    nonce: In(64)
    words: Out(stream.Signature(layout(STATE_WORD)))
    missed: In(stream.Signature(layout(MISSED_SLOT)))
    recalled: Out(stream.Signature(layout(RECALLED)))
    keyed: Out(1)
    repeated: Out(1)
    working: Out(1)
    discard: In(1)
    wipe: In(1)
    busy: Out(1)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        clear = Signal()
        m.d.comb += clear.eq(self.start | self.discard | self.wipe)
        m.submodules.cipher = cipher = ResetInserter(clear)(ChaCha20(_TAG.size))
        m.submodules.made = made = SecretFifo(STATE_WORD.used_bits, QUEUE)
        m.submodules.answers = answers = SecretFifo(RECALLED.used_bits, QUEUE)
        m.d.comb += [
            made.wipe.eq(clear),
            answers.wipe.eq(clear),
            self.busy.eq(made.busy | answers.busy),
        ]

        # The key.
        key = Signal(256)
        key_words = Signal(2)
        m.d.comb += [
            cipher.key.eq(key),
            self.key.ready.eq(self.rekey & ~self.wipe),
        ]
        with m.If(self.key.valid & self.key.ready):
            m.d.sync += [
                key.eq(Cat(key[64:], self.key.payload.bits)),
                key_words.eq(key_words + 1),
                self.keyed.eq(key_words == 3),
            ]

        # What is asked of the cipher, live words first.
        following = Signal(WORD_BITS)  # next word to make
        unused = Signal(WORD_BITS + 1)  # first word that was never made under this key
        bits_due, active, ended = Signal(), Signal(), Signal()
        words_owed = Signal(range(QUEUE + 1))
        answers_owed = Signal(range(QUEUE + 1))
        z, signal, nonce, last_word = Signal(17), Signal(17), Signal(64), Signal(WORD_BITS)
        request = Signal(cipher.request.payload.shape())
        requests, free = Signal(), Signal()
        live, recall = Signal(), Signal()
        recall_second, recall_done = Signal(), Signal()
        slot = self.missed.payload.slot
        m.d.comb += [
            cipher.request.payload.eq(request),
            cipher.request.valid.eq(requests),
            free.eq((~requests | cipher.request.ready) & ~self.busy & ~clear),
            live.eq(active & self.keyed & ~ended & (words_owed != QUEUE)),
            recall.eq(
                ~live
                & self.missed.valid
                & ~recall_done
                & self.keyed
                & (recall_second | (answers_owed != QUEUE))
            ),
            # From a flip-flop: no path from the cipher to whoever misses a slot.
            self.missed.ready.eq(recall_done),
            self.working.eq(
                (active & self.keyed & ~ended)
                | (words_owed != 0)
                | (answers_owed != 0)
                | recall_done
                | ~cipher.idle
                | self.busy
            ),
        ]
        with m.If(cipher.request.ready):
            m.d.sync += requests.eq(0)
        with m.If(free & (live | recall)):
            m.d.sync += requests.eq(1)
        word = Signal(WORD_BITS)
        group = Signal(WORD_BITS - 5)
        asks_bits, begins_word = Signal(), Signal()
        m.d.comb += [
            word.eq(Mux(live, following, slot[4:])),
            group.eq(word[5:]),
            asks_bits.eq(Mux(live, bits_due, recall_second)),
            begins_word.eq(free & live & ~bits_due),
        ]
        with m.If(free):
            m.d.sync += [
                request.counter.eq(Mux(asks_bits, group[:32], word[:32])),
                request.nonce.eq(
                    Cat(
                        Mux(asks_bits, group[32:], word[32:]),
                        Const(0, 31 - len(word[32:])),
                        asks_bits,
                        nonce,
                    )
                ),
                request.tag.eq(Cat(~live, asks_bits, Mux(live, following[:5], slot[:9]))),
            ]
            with m.If(live):
                with m.If(bits_due):
                    m.d.sync += bits_due.eq(0)
                with m.Else():
                    m.d.sync += [
                        bits_due.eq(following[:5] == 31),
                        following.eq(following + 1),
                        unused.eq(following + 1),
                        ended.eq(following == last_word),
                    ]
            with m.Elif(recall):
                m.d.sync += recall_second.eq(~recall_second)
        m.d.sync += [
            recall_done.eq(free & recall & recall_second),
            words_owed.eq(words_owed + begins_word - (self.words.valid & self.words.ready)),
            answers_owed.eq(
                answers_owed
                + (self.missed.valid & self.missed.ready)
                - (self.recalled.valid & self.recalled.ready)
            ),
        ]

        # What the cipher gives: two words of 32 bits a clock.
        part = cipher.o.payload
        tag = data.View(_TAG, part.tag)
        pair = [part.bits.word_select(i, 32) for i in range(2)]
        basis, decoy = Signal(2), Signal(2)
        comes = Signal()
        bases = Signal(STATES_PER_WORD)
        decoys = Signal(STATES_PER_WORD)
        bits = Signal(512)
        complete, slice_at = Signal(), Signal(5)
        m.d.comb += [
            cipher.o.ready.eq(1),
            comes.eq(cipher.o.valid & ~clear),
            basis.eq(Cat(half[:16] >= z for half in pair)),
            decoy.eq(Cat(half[16:] >= signal for half in pair)),
        ]
        m.d.sync += complete.eq(0)
        with m.If(comes & ~tag.recall):
            with m.If(tag.bits):
                m.d.sync += bits.eq(Cat(bits[64:], part.bits))
            with m.Else():
                m.d.sync += [
                    bases.eq(Cat(bases[2:], basis)),
                    decoys.eq(Cat(decoys[2:], decoy)),
                    complete.eq(part.part == PARTS - 1),
                    slice_at.eq(tag.index),
                ]
        mine = Signal(STATES_PER_WORD)
        m.d.comb += [
            mine.eq(bits.word_select(slice_at, STATES_PER_WORD)),
            made.i.valid.eq(complete),
            made.i.payload.eq(
                Cat(Cat(bases[i], mine[i], decoys[i]) for i in range(STATES_PER_WORD))
            ),
            self.words.payload.as_value().eq(made.o.payload),
            self.words.valid.eq(made.o.valid),
            made.o.ready.eq(self.words.ready),
        ]
        assert STATE_BITS == 3

        answer = Signal(layout(RECALLED))
        answered = Signal()
        m.d.sync += answered.eq(0)
        with m.If(comes & tag.recall):
            with m.If(~tag.bits & (part.part == tag.index[1:4])):
                m.d.sync += [
                    answer.basis.eq(basis.bit_select(tag.index[0], 1)),
                    answer.intensity.eq(decoy.bit_select(tag.index[0], 1)),
                    answer.present.eq(1),
                    answer.known.eq(1),
                ]
            with m.If(tag.bits):
                with m.If(part.part == tag.index[6:9]):
                    m.d.sync += answer.bit.eq(part.bits.bit_select(tag.index[:6], 1))
                m.d.sync += answered.eq(part.part == PARTS - 1)
        m.d.comb += [
            answers.i.valid.eq(answered),
            answers.i.payload.eq(answer.as_value()),
            self.recalled.payload.as_value().eq(answers.o.payload),
            self.recalled.valid.eq(answers.o.valid),
            answers.o.ready.eq(self.recalled.ready),
        ]

        with m.If(clear):
            m.d.sync += [
                requests.eq(0),
                words_owed.eq(0),
                answers_owed.eq(0),
                recall_second.eq(0),
                complete.eq(0),
                answered.eq(0),
                bases.eq(0),
                decoys.eq(0),
                bits.eq(0),
                answer.eq(0),
                active.eq(0),
                self.repeated.eq(0),
            ]
        with m.If(self.start):
            m.d.sync += [
                following.eq(self.first_word),
                bits_due.eq(1),
                ended.eq(0),
                active.eq(self.live & (self.first_word >= unused)),
                self.repeated.eq(self.live & (self.first_word < unused)),
                z.eq(self.z),
                signal.eq(self.signal),
                nonce.eq(self.nonce),
                last_word.eq(self.last_word),
            ]
        with m.If(self.wipe):
            m.d.sync += [
                key.eq(0),
                key_words.eq(0),
                self.keyed.eq(0),
                unused.eq(0),
                active.eq(0),
            ]
        return m
