# SPDX-License-Identifier: CERN-OHL-W-2.0
"""A histogram in memory that is read while it counts."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from keyrail.contract import HISTOGRAM_BIN, KEY_MODE_HISTOGRAM_MINIMUM

__all__ = ["CountMemory"]

_SETTLE_CLOCKS = 3
"""Clocks from a swap of the banks until the last count before it is in memory."""


class CountMemory(wiring.Component):
    """Count events by number, saturating, in two banks: one counts while the other is sent.

    `dump` swaps the banks, then the old one is sent and cleared; an event in the clock of `dump`
    still belongs to the old one, and counting goes on in the other bank. It is refused while a
    dump or clearing is under way, and in key mode while the present bank holds fewer than 10^4
    events. After reset, and on `wipe`, both banks are cleared, which takes a clock a bin; events
    are not counted meanwhile, and a bin on offer is withdrawn.

    Latency: a bin holds an event 4 clocks after it. Throughput: 1 event a clock, any bins; dump:
    1 bin in 3 clocks.

    Parameters
    ----------
    bins
        Bins, a power of two.
    sent
        Bins of a dump, a power of two, at least `bins`: those past the last are sent as 0.
    count_bits
        Width of the bins in memory, 1 to 32.

    Members
    -------
    count, number
        1 for an event, and its bin.
    bins
        Stream of ``histogram_bin``, 32 bits.
    key_mode
        1 in key mode.
    dump, wipe
        Commands, 1 for one clock.
    refused
        1 in the clock after a `dump` that was refused.
    dumping
        1 from `dump` until its last bin was taken.
    clearing
        1 while both banks are cleared.
    busy
        1 while clearing or dumping, but 0 while a bin waits for `bins`.
    """

    def __init__(
        self, bins: int, sent: int | None = None, count_bits: int = HISTOGRAM_BIN.used_bits
    ):
        if not 1 <= count_bits <= HISTOGRAM_BIN.used_bits:
            raise ValueError(f"histogram bins of {count_bits} bits, allowed are 1 to 32")
        sent = bins if sent is None else sent
        if bins < 2 or bins & (bins - 1) or sent < bins or sent & (sent - 1):
            raise ValueError(f"{bins} bins, {sent} sent: allowed are powers of two")
        self._count_bits = count_bits
        self._bins, self._sent = bins, sent
        super().__init__(
            {
                "count": In(1),
                "number": In(range(bins)),
                "bins": Out(stream.Signature(HISTOGRAM_BIN.bits)),
                "key_mode": In(1),
                "dump": In(1),
                "wipe": In(1),
                "refused": Out(1),
                "dumping": Out(1),
                "clearing": Out(1),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        address_bits = len(self.number)
        place = data.StructLayout({"address": address_bits, "bank": 1, "valid": 1})
        active = Signal()  # the bank that counts
        clearing, clear_address = Signal(init=1), Signal(address_bits)
        m.d.comb += self.clearing.eq(clearing)

        # -- counting: read, take the newest value, write ----------------------------------------

        reading = Signal(place)
        counts = Signal()
        m.d.comb += [
            counts.eq(self.count & ~clearing & ~self.wipe),
            reading.address.eq(self.number),
            reading.bank.eq(active),
            reading.valid.eq(counts),
        ]
        # In the memory's output, in a register of their own, incremented, and written lately.
        fetched, held, adding, written = (Signal(place) for _ in range(4))
        counted, dumped = Signal(self._count_bits), Signal(self._count_bits)
        value, following, newest, newer = (Signal(self._count_bits) for _ in range(4))
        as_adding, as_written, as_former = Signal(), Signal(), Signal()
        # Each of these at its highest, known beside it.
        full, fills, newest_full, newer_full = Signal(), Signal(), Signal(), Signal()
        m.d.sync += [
            fetched.eq(reading),
            held.eq(fetched),
            adding.eq(held),
            written.eq(adding),
            newest.eq(following),
            newer.eq(newest),
            newest_full.eq(fills),
            newer_full.eq(newest_full),
            # The three events before this one were not in memory yet when its bin was read.
            as_adding.eq(fetched == held),
            as_written.eq(fetched == adding),
            as_former.eq(fetched == written),
        ]
        m.d.comb += [following.eq(value + ~full), fills.eq(value[1:].all())]
        with m.If(as_adding):
            m.d.sync += [value.eq(following), full.eq(fills)]
        with m.Elif(as_written):
            m.d.sync += [value.eq(newest), full.eq(newest_full)]
        with m.Elif(as_former):
            m.d.sync += [value.eq(newer), full.eq(newer_full)]
        with m.Else():
            m.d.sync += [value.eq(counted), full.eq(counted.all())]

        # -- dump ------------------------------------------------------------------------------

        total = Signal(range(KEY_MODE_HISTOGRAM_MINIMUM + 1))
        enough = Signal()
        m.d.comb += enough.eq(total == KEY_MODE_HISTOGRAM_MINIMUM)
        with m.If(counts & ~enough):
            m.d.sync += total.eq(total + 1)
        allowed, idle = Signal(), Signal()
        m.d.comb += allowed.eq(idle & ~clearing & (~self.key_mode | enough))
        m.d.sync += self.refused.eq(self.dump & ~allowed)
        dump_address, settle = Signal(range(self._sent)), Signal(range(_SETTLE_CLOCKS))
        bank_address, beyond = dump_address[:address_bits], dump_address[address_bits:].any()
        dump_clear = Signal()
        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += idle.eq(1)
                m.d.sync += [dump_address.eq(0), settle.eq(_SETTLE_CLOCKS - 1)]
                with m.If(self.dump & allowed & ~self.wipe):
                    m.d.sync += [active.eq(~active), total.eq(0)]
                    m.next = "SETTLE"
            with m.State("SETTLE"):
                m.d.sync += settle.eq(settle - 1)
                with m.If(settle == 0):
                    m.next = "READ"
                with m.If(self.wipe):
                    m.next = "IDLE"
            with m.State("READ"):
                m.next = "FETCHED"
                with m.If(self.wipe):
                    m.next = "IDLE"
            with m.State("FETCHED"):
                m.next = "HELD"
                with m.If(self.wipe):
                    m.next = "IDLE"
            with m.State("HELD"):
                m.d.comb += dump_clear.eq(~beyond)
                m.d.sync += [
                    self.bins.payload.eq(Mux(beyond, 0, dumped)),
                    self.bins.valid.eq(1),
                    dump_address.eq(dump_address + 1),
                ]
                m.next = "OFFERED"
                with m.If(self.wipe):
                    m.next = "IDLE"
            with m.State("OFFERED"):
                # The next bin is being read meanwhile.
                with m.If(self.bins.ready):
                    m.d.sync += self.bins.valid.eq(0)
                    m.next = "FETCHED"
                    with m.If(dump_address == 0):
                        m.next = "IDLE"
                with m.If(self.wipe):
                    m.next = "IDLE"
        m.d.comb += [
            self.dumping.eq(~idle),
            self.busy.eq(clearing | (~idle & ~self.bins.valid)),
        ]

        # -- memories --------------------------------------------------------------------------

        words = []
        for bank in range(2):
            memory = Memory(shape=self._count_bits, depth=self._bins, init=[])
            m.submodules[f"bank_{bank}"] = memory
            read, write = memory.read_port(), memory.write_port()
            m.d.comb += read.addr.eq(Mux(active == bank, reading.address, bank_address))
            # Without reset or enable, so that it may become the memory's output register.
            word_of = Signal(self._count_bits, name=f"word_{bank}", reset_less=True)
            m.d.sync += word_of.eq(read.data)
            words.append(word_of)
            with m.If(clearing):
                m.d.comb += [write.addr.eq(clear_address), write.en.eq(1)]
            with m.Elif(adding.valid & (adding.bank == bank)):
                m.d.comb += [
                    write.addr.eq(adding.address),
                    write.data.eq(following),
                    write.en.eq(1),
                ]
            with m.Elif(dump_clear & (active != bank)):
                m.d.comb += [write.addr.eq(bank_address), write.en.eq(1)]
        m.d.comb += [
            counted.eq(Mux(held.bank, words[1], words[0])),
            dumped.eq(Mux(active, words[0], words[1])),
        ]

        # -- clearing --------------------------------------------------------------------------

        with m.If(clearing):
            m.d.sync += clear_address.eq(clear_address + 1)
            with m.If(clear_address == self._bins - 1):
                m.d.sync += [clearing.eq(0), clear_address.eq(0)]
        with m.If(self.wipe):
            m.d.sync += [
                clearing.eq(1),
                clear_address.eq(0),
                total.eq(0),
                self.bins.valid.eq(0),
                self.bins.payload.eq(0),
                *(one.eq(0) for one in (value, newest, newer, fetched, held, adding, written)),
            ]
        return m
