# SPDX-License-Identifier: CERN-OHL-W-2.0
"""The sender's memory of the states it sent, and the look-up of announced slots."""

from amaranth.hdl import Cat, Module, Mux, ResetInserter, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.enum import Enum
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from keyrail.contract import (
    ANNOUNCEMENT,
    MISSED_SLOT,
    RECALLED,
    SENDER_ENTRY,
    SLOT_BITS,
    STATE_BITS,
    STATES_PER_WORD,
)

from .layouts import layout
from .ledger import Counts, Ledger
from .secret_fifo import SecretFifo
from .source import FED, frame_mask, in_sync

__all__ = ["LATENCY", "StateMemory"]

_INDEX_BITS = STATES_PER_WORD.bit_length() - 1
LATENCY = 6
"""Clocks from the last record of an announcement to its entry, for a slot in the ring."""


class _Kind(Enum, shape=2):
    """What is known of an announced slot while it waits for its turn."""

    KNOWN = 0
    ASKED = 1
    EXPIRED = 2
    AHEAD = 3


class StateMemory(wiring.Component):
    """Remember the states of the last slots, and answer announced slots with them.

    A ring of words of sixteen states. A slot that has left the ring is asked for on `missed` where
    `recall` says that somebody remembers it (the control PC, or the generator); everything keeps
    the order of the announcements. One that nobody remembers, or that lies before the first state
    fed, counts as expired; one not fed yet as ahead: both keep their place in the block as an entry
    that is not present, so that the two stations' lists stay aligned, and no slot is ever answered
    with the state of another. A slot counts as out of the ring one clock before its word is
    overwritten, and as fed one clock after it was written.

    Latency: 6 clocks from the last record of an announcement to its entry, for a slot in the ring.
    Throughput: one record of announcements, one word of states and one answer a clock.

    Parameters
    ----------
    horizon_slots
        Slots in the ring, a power of two.
    order_depth
        Announcements that can wait for an answer, a power of two.

    Members
    -------
    states
        Stream of `keyrail_gateware.source.FED`, taken while ``open``.
    lookup
        Stream of ``announcement``, taken while ``open``.
    missed
        Stream of ``missed_slot``.
    recalled
        Stream of ``recalled``, one for each missed slot, in their order.
    entry
        Stream of ``sender_entry``, one for each slot announced while memory is not full; none
        while not ``open``.
    open
        1 while the block takes detections.
    recall
        1: slots that have left the ring are asked for. Constant while ``open``.
    stopped
        1: no more states will come in this block.
    words_log2, sync_words
        Frame of sync slots, as in `Source`: those that have left the ring are not asked for.
    first_state
        Slot of the first state fed, a multiple of 16, 48 bits.
    first_slot
        First slot of the block, to which the first difference counts, 48 bits.
    full
        Block memory can take no entry beyond those it has been offered.
    next_slot
        Slot of the next state fed, 48 bits.
    wipe
        1: forget everything and overwrite the ring; so after reset.
    busy
        1 while the ring is overwritten.
    working
        1 while announcements that need no answer are on their way through.
    counts
        Ledger of ``state_memory``; begins again with a wipe.
    """

    def __init__(self, horizon_slots: int = 1 << 17, order_depth: int = 1024):
        words = horizon_slots // STATES_PER_WORD
        if words < 2 or words & (words - 1) or horizon_slots % STATES_PER_WORD:
            raise ValueError(f"horizon of {horizon_slots} slots: allowed are powers of two from 32")
        self._horizon, self._order_depth = horizon_slots, order_depth
        super().__init__(
            {
                "states": In(stream.Signature(FED)),
                "lookup": In(stream.Signature(layout(ANNOUNCEMENT))),
                "missed": Out(stream.Signature(layout(MISSED_SLOT))),
                "recalled": In(stream.Signature(layout(RECALLED))),
                "entry": Out(stream.Signature(layout(SENDER_ENTRY))),
                "open": In(1),
                "recall": In(1),
                "stopped": In(1),
                "words_log2": In(6),
                "sync_words": In(7),
                "first_state": In(SLOT_BITS),
                "first_slot": In(SLOT_BITS),
                "full": In(1),
                "next_slot": Out(SLOT_BITS),
                "wipe": In(1),
                "busy": Out(1),
                "working": Out(1),
                "counts": Out(Counts("state_memory")),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.ledger = ledger = ResetInserter(self.wipe)(Ledger("state_memory"))
        depth = self._horizon // STATES_PER_WORD
        m.submodules.memory = memory = Memory(shape=FED.size, depth=depth, init=[])
        write, read = memory.write_port(), memory.read_port()
        wiping, sweep = Signal(init=1), Signal(range(depth))
        takes = Signal()
        # An entry of the order: what is known of the slot, and its state.
        state = data.StructLayout({"basis": 1, "bit": 1, "intensity": 1, "present": 1})
        ordered = data.StructLayout({"kind": _Kind, "state": state})
        m.submodules.order = order = SecretFifo(ordered.size, self._order_depth)
        m.d.comb += [
            self.counts.live.eq(ledger.counts.live),
            self.counts.at_frame.eq(ledger.counts.at_frame),
            self.busy.eq(wiping | order.busy),
            takes.eq(self.open & ~self.busy),
            order.wipe.eq(self.wipe),
        ]

        # States in: a word waits one clock, in which the slots that it will overwrite have expired
        # already.
        pending, pending_word = Signal(), Signal(FED.size)
        newest, empty = Signal(SLOT_BITS), Signal(init=1)  # first slot that is not in the ring
        oldest = Signal(SLOT_BITS)  # first slot that the ring holds, or will hold
        accepts, filled = Signal(), Signal(range(depth + 1))  # words that the ring holds
        m.d.comb += [
            self.next_slot.eq(newest),
            self.states.ready.eq(takes),
            accepts.eq(self.states.valid & self.states.ready),
        ]
        m.d.sync += pending.eq(accepts)
        with m.If(empty & ~accepts & ~pending):
            m.d.sync += [newest.eq(self.first_state), oldest.eq(self.first_state)]
        with m.If(accepts):
            m.d.sync += pending_word.eq(self.states.payload.as_value())
            with m.If(filled == depth):
                m.d.sync += oldest.eq(oldest + STATES_PER_WORD)
            with m.Else():
                m.d.sync += filled.eq(filled + 1)
        with m.If(pending):
            m.d.sync += [newest.eq(newest + STATES_PER_WORD), empty.eq(0)]
        with m.If(wiping):
            m.d.comb += [write.en.eq(1), write.addr.eq(sweep), write.data.eq(0)]
            m.d.sync += sweep.eq(sweep + 1)
            with m.If(sweep == depth - 1):
                m.d.sync += wiping.eq(0)
        with m.Else():
            m.d.comb += [
                write.en.eq(pending),
                write.addr.eq(newest[_INDEX_BITS:]),
                write.data.eq(pending_word),
            ]

        # Announcements to slots.
        upper, last, fresh = Signal(SLOT_BITS), Signal(SLOT_BITS), Signal(init=1)
        difference, slot = Signal(SLOT_BITS), Signal(SLOT_BITS)
        advance, looks_up = Signal(), Signal()
        word = self.lookup.payload
        m.d.comb += [
            difference.eq((upper << len(word.difference)) | word.difference),
            slot.eq(Mux(fresh, self.first_slot, last) + difference),
            self.lookup.ready.eq(takes & advance),
            looks_up.eq(self.lookup.valid & self.lookup.ready & ~word.more),
        ]
        with m.If(self.lookup.valid & self.lookup.ready):
            with m.If(word.more):
                m.d.sync += upper.eq(difference)
            with m.Else():
                m.d.sync += [upper.eq(0), last.eq(slot), fresh.eq(0)]

        # Slot, then whether and where the ring holds it, then its word, then its state.
        valid = [Signal(name=f"valid_{i}") for i in range(3)]
        looked, asked_slot = Signal(SLOT_BITS), Signal(SLOT_BITS)
        before, expired, ahead, sync = Signal(), Signal(), Signal(), Signal()
        mask = Signal(SLOT_BITS - _INDEX_BITS)
        m.d.sync += mask.eq(frame_mask(self.words_log2, len(mask)))
        kind, kind_2 = Signal(_Kind), Signal(_Kind)
        index, index_2 = Signal(_INDEX_BITS), Signal(_INDEX_BITS)
        absent, absent_2 = Signal(), Signal()
        held_word, asked_slot_2 = Signal(FED), Signal(SLOT_BITS)
        m.d.comb += [
            before.eq(looked < self.first_state),
            expired.eq(looked < oldest),
            ahead.eq(looked >= newest),
            sync.eq(in_sync(looked[_INDEX_BITS:], mask, self.sync_words)),
            read.en.eq(advance),
            read.addr.eq(looked[_INDEX_BITS:]),
        ]
        with m.If(advance):
            m.d.sync += [
                valid[0].eq(looks_up),
                looked.eq(slot),
                valid[1].eq(valid[0]),
                asked_slot.eq(looked),
                index.eq(looked[:_INDEX_BITS]),
                absent.eq(sync | (ahead & self.stopped)),
                kind.eq(_Kind.KNOWN),
                valid[2].eq(valid[1]),
                kind_2.eq(kind),
                index_2.eq(index),
                absent_2.eq(absent),
                held_word.eq(read.data),
                asked_slot_2.eq(asked_slot),
            ]
            with m.If(before):
                m.d.sync += kind.eq(_Kind.EXPIRED)
            with m.Elif(ahead):
                m.d.sync += kind.eq(Mux(self.stopped, _Kind.KNOWN, _Kind.AHEAD))
            with m.Elif(expired & ~sync):
                m.d.sync += kind.eq(Mux(self.recall, _Kind.ASKED, _Kind.EXPIRED))

        # Into the order of the announcements, and out of it.
        into, states = Signal(ordered), Signal(STATE_BITS)
        asks, missed_free = Signal(), Signal()
        m.d.comb += [
            states.eq(held_word.states.word_select(index_2, STATE_BITS)),
            into.kind.eq(kind_2),
            asks.eq(kind_2 == _Kind.ASKED),
            missed_free.eq(~self.missed.valid | self.missed.ready),
            order.i.payload.eq(into.as_value()),
            order.i.valid.eq(valid[2] & (~asks | missed_free)),
            advance.eq(~valid[2] | (order.i.ready & (~asks | missed_free))),
        ]
        with m.If((kind_2 == _Kind.KNOWN) & held_word.present & ~absent_2):
            m.d.comb += into.state.as_value().eq(Cat(states, 1))
        with m.If(self.missed.ready):
            m.d.sync += self.missed.valid.eq(0)
        with m.If(order.i.valid & order.i.ready & asks):
            m.d.sync += [self.missed.valid.eq(1), self.missed.payload.slot.eq(asked_slot_2)]

        turn = data.View(ordered, order.o.payload)
        answer = self.recalled.payload
        waits, found = Signal(), Signal(state)
        lost, known, gives = Signal(), Signal(), Signal()
        m.d.comb += [
            waits.eq(turn.kind == _Kind.ASKED),
            order.o.ready.eq(
                self.open & (~self.entry.valid | self.entry.ready) & (~waits | self.recalled.valid)
            ),
            gives.eq(order.o.valid & order.o.ready),
            self.recalled.ready.eq(gives & waits),
            lost.eq((turn.kind == _Kind.EXPIRED) | (waits & ~answer.known)),
            known.eq(~lost & (turn.kind != _Kind.AHEAD)),
            # Not while the next in turn waits for its answer: that may take any time.
            self.working.eq(
                self.open
                & ~(order.o.valid & waits)
                & Cat(*valid, pending, order.o.valid, self.entry.valid).any()
            ),
        ]
        with m.If(waits):
            with m.If(answer.known & answer.present):
                m.d.comb += found.eq(Cat(answer.basis, answer.bit, answer.intensity, 1))
        with m.Else():
            m.d.comb += found.eq(turn.state)
        with m.If(self.entry.ready):
            m.d.sync += self.entry.valid.eq(0)
        with m.If(gives):
            m.d.sync += [
                self.entry.valid.eq(~self.full),
                self.entry.payload.basis.eq(found.basis),
                self.entry.payload.bit.eq(found.bit),
                self.entry.payload.intensity.eq(found.intensity),
                self.entry.payload.present.eq(found.present),
            ]
        m.d.comb += [
            ledger.step["in"].eq(looks_up),
            ledger.step["memory_full"].eq(gives & self.full),
            ledger.step["expired"].eq(gives & ~self.full & lost),
            ledger.step["ahead"].eq(gives & ~self.full & (turn.kind == _Kind.AHEAD)),
            ledger.step["out"].eq(gives & ~self.full & known & found.present),
            ledger.step["absent"].eq(gives & ~self.full & known & ~found.present),
        ]
        with m.If(self.wipe):
            m.d.sync += [
                wiping.eq(1),
                sweep.eq(0),
                pending.eq(0),
                pending_word.eq(0),
                filled.eq(0),
                empty.eq(1),
                upper.eq(0),
                last.eq(0),
                fresh.eq(1),
                *(each.eq(0) for each in valid),
                held_word.eq(0),
                self.missed.valid.eq(0),
                self.entry.valid.eq(0),
                self.entry.payload.eq(0),
            ]
        return m
