# SPDX-License-Identifier: CERN-OHL-W-2.0
"""The sender's memory of the states it sent, and the look-up of announced slots."""

from amaranth.hdl import Module, Mux, ResetInserter, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from keyrail.contract import (
    ANNOUNCEMENT,
    SENDER_ENTRY,
    SLOT_BITS,
    STATE,
    STATE_BITS,
    STATE_WORD,
    STATES_PER_WORD,
)

from .layouts import layout
from .ledger import Counts, Ledger

__all__ = ["StateMemory"]

_INDEX_BITS = STATES_PER_WORD.bit_length() - 1


class StateMemory(wiring.Component):
    """Remember the states of the last slots, and answer announced slots with them.

    A ring of words of sixteen states. A slot that has left the ring, or lies before the first
    state fed, counts as expired; one not fed yet as ahead: both keep their place in the block as
    an entry that is not present, so that the two stations' lists stay aligned, and no slot is
    ever answered with the state of another. Which slots the ring holds is decided with the word
    that is written in the same clock taken into account: a word that is being overwritten has
    expired already.

    Latency: 1 clock from the last record of an announcement to its entry. Throughput: one record
    of announcements and one word of states a clock.

    Parameters
    ----------
    horizon_slots
        Slots in the ring, a power of two.

    Members
    -------
    states
        Stream of ``state_word``, taken while ``open``.
    lookup
        Stream of ``announcement``, taken while ``open``.
    entry
        Stream of ``sender_entry``, one for each slot announced while memory is not full.
    open
        1 while the block takes detections.
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
    counts
        Ledger of ``state_memory``; begins again with a wipe.
    """

    def __init__(self, horizon_slots: int = 1 << 17):
        words = horizon_slots // STATES_PER_WORD
        if words < 2 or words & (words - 1) or horizon_slots % STATES_PER_WORD:
            raise ValueError(f"horizon of {horizon_slots} slots: allowed are powers of two from 32")
        self._horizon = horizon_slots
        super().__init__(
            {
                "states": In(stream.Signature(layout(STATE_WORD))),
                "lookup": In(stream.Signature(layout(ANNOUNCEMENT))),
                "entry": Out(stream.Signature(layout(SENDER_ENTRY))),
                "open": In(1),
                "first_state": In(SLOT_BITS),
                "first_slot": In(SLOT_BITS),
                "full": In(1),
                "next_slot": Out(SLOT_BITS),
                "wipe": In(1),
                "busy": Out(1),
                "counts": Out(Counts("state_memory")),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.ledger = ledger = ResetInserter(self.wipe)(Ledger("state_memory"))
        depth = self._horizon // STATES_PER_WORD
        m.submodules.memory = memory = Memory(
            shape=STATES_PER_WORD * STATE_BITS, depth=depth, init=[]
        )
        write, read = memory.write_port(), memory.read_port()
        wiping, sweep = Signal(init=1), Signal(range(depth))
        takes = Signal()
        m.d.comb += [
            self.counts.live.eq(ledger.counts.live),
            self.counts.at_frame.eq(ledger.counts.at_frame),
            self.busy.eq(wiping),
            takes.eq(self.open & ~wiping),
        ]

        # States in.
        stored, empty, head, following = Signal(SLOT_BITS), Signal(init=1), Signal(48), Signal(48)
        writes = Signal()
        m.d.comb += [
            head.eq(Mux(empty, self.first_state, stored)),
            following.eq(head + Mux(writes, STATES_PER_WORD, 0)),
            self.next_slot.eq(head),
            self.states.ready.eq(takes),
            writes.eq(self.states.valid & self.states.ready),
        ]
        with m.If(writes):
            m.d.sync += [stored.eq(following), empty.eq(0)]
        with m.If(wiping):
            m.d.comb += [write.en.eq(1), write.addr.eq(sweep), write.data.eq(0)]
            m.d.sync += sweep.eq(sweep + 1)
            with m.If(sweep == depth - 1):
                m.d.sync += wiping.eq(0)
        with m.Else():
            m.d.comb += [
                write.en.eq(writes),
                write.addr.eq(head[_INDEX_BITS:]),
                write.data.eq(self.states.payload.as_value()),
            ]

        # Announcements to slots.
        upper, last, fresh = Signal(SLOT_BITS), Signal(SLOT_BITS), Signal(init=1)
        difference, slot = Signal(SLOT_BITS), Signal(SLOT_BITS)
        word = self.lookup.payload
        m.d.comb += [
            difference.eq((upper << len(word.difference)) | word.difference),
            slot.eq(Mux(fresh, self.first_slot, last) + difference),
        ]
        expired, ahead = Signal(), Signal()
        m.d.comb += [
            expired.eq((slot < self.first_state) | (slot + self._horizon < following)),
            ahead.eq(slot >= head),
        ]

        # Slots to states: the read port holds its word until the entry has been taken.
        held, known, index = Signal(), Signal(), Signal(_INDEX_BITS)
        advance, looks_up = Signal(), Signal()
        states = data.View(data.ArrayLayout(layout(STATE), STATES_PER_WORD), read.data)
        state = states[index]
        m.d.comb += [
            advance.eq(~held | self.entry.ready),
            self.lookup.ready.eq(takes & advance),
            looks_up.eq(self.lookup.valid & self.lookup.ready & ~word.more),
            read.en.eq(advance),
            read.addr.eq(slot[_INDEX_BITS:]),
            self.entry.valid.eq(held),
        ]
        with m.If(known & state.present):
            m.d.comb += [
                self.entry.payload.basis.eq(state.basis),
                self.entry.payload.bit.eq(state.bit),
                self.entry.payload.intensity.eq(state.intensity),
                self.entry.payload.present.eq(1),
            ]
        with m.If(self.lookup.valid & self.lookup.ready):
            with m.If(word.more):
                m.d.sync += upper.eq(difference)
            with m.Else():
                m.d.sync += [upper.eq(0), last.eq(slot), fresh.eq(0)]
        with m.If(advance):
            m.d.sync += [
                held.eq(looks_up & ~self.full),
                known.eq(~expired & ~ahead),
                index.eq(slot[:_INDEX_BITS]),
            ]
        gives = Signal()
        m.d.comb += [
            gives.eq(self.entry.valid & self.entry.ready),
            ledger.step["in"].eq(looks_up),
            ledger.step["memory_full"].eq(looks_up & self.full),
            ledger.step["expired"].eq(looks_up & ~self.full & expired),
            ledger.step["ahead"].eq(looks_up & ~self.full & ~expired & ahead),
            ledger.step["out"].eq(gives & known & state.present),
            ledger.step["absent"].eq(gives & known & ~state.present),
        ]
        with m.If(self.wipe):
            m.d.sync += [
                wiping.eq(1),
                sweep.eq(0),
                stored.eq(0),
                empty.eq(1),
                upper.eq(0),
                last.eq(0),
                fresh.eq(1),
                held.eq(0),
                known.eq(0),
                index.eq(0),
            ]
        return m
