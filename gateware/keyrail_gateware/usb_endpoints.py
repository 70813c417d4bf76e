# SPDX-License-Identifier: CERN-OHL-W-2.0
"""Bulk endpoints: a stream of whole records on one side, packets of USB on the other.

Each is a packet buffer in one dual-clock memory. Its banks change hands by a bit each that
toggles, so that nothing but those bits crosses between the station's clock and that of the PHY;
a bank's length is set before its bit and stays until the bank comes back.

What LUNA's own stream endpoints do not do, and a station needs: every byte of the buffer is
overwritten on command; toggles and buffers start anew with a reset of the bus or a new
configuration (USB 2.0, 9.1.1.5); an ACK counts only as the answer to the packet just sent
(8.4.6, 8.5.2), not when it was meant for another device on the same hub; full speed packets on a
board that can do high speed.
"""

import warnings

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.cdc import FFSynchronizer
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from keyrail.contract import USB_PACKET_FULL, USB_PACKET_HIGH

with warnings.catch_warnings():
    # LUNA still builds its interfaces from what Amaranth 0.6 will drop.
    warnings.simplefilter("ignore", DeprecationWarning)
    from luna.gateware.usb.usb2 import USBSpeed
    from luna.gateware.usb.usb2.endpoint import EndpointInterface

__all__ = ["AckWindow", "BulkIn", "BulkOut"]

BANKS = 4
"""Packets of a buffer: four of 512 bytes are one block RAM of the ECP5."""
BANK_BITS = 9


class AckWindow(wiring.Component):
    """Tells the ACK that answers a packet from one that is meant for somebody else.

    A host that found the packet damaged answers nothing and goes on, perhaps with another
    device, whose ACK every device on the same hub hears. So only the first packet after ours can
    be its ACK.

    Latency: 0 from the detector's strobes. Works in the domain ``usb``.

    Parameters
    ----------
    patience
        Clocks after the last byte handed to the transmitter in which the answer must have come,
        at high and at full speed.

    Members
    -------
    sent
        1 in the clock in which the last byte of a packet is handed over.
    high
        1 at high speed.
    ack, packet_end, token
        Strobes of the core: ACK seen; any packet has ended (in the clock in which `ack` would
        come); token to this device.
    acked, lost
        Strobes: the packet was acknowledged; it was not.
    """

    sent: In(1)
    high: In(1)
    ack: In(1)
    packet_end: In(1)
    token: In(1)
    acked: Out(1)
    lost: Out(1)

    def __init__(self, patience: tuple[int, int] = (160, 640)):
        self._patience = patience
        super().__init__()

    def elaborate(self, platform: object) -> Module:
        m = Module()
        waiting = Signal()
        clocks = Signal(range(max(self._patience) + 1))
        m.d.comb += [
            self.acked.eq(waiting & self.ack),
            self.lost.eq(waiting & ~self.ack & (self.packet_end | self.token | (clocks == 0))),
        ]
        with m.If(self.sent):
            m.d.usb += [
                waiting.eq(1),
                clocks.eq(Mux(self.high, self._patience[0], self._patience[1])),
            ]
        with m.Elif(waiting):
            m.d.usb += clocks.eq(clocks - 1)
            with m.If(self.acked | self.lost):
                m.d.usb += waiting.eq(0)
        return m


class _Flags:
    """One toggling bit a bank in each direction: whose turn it is."""

    def __init__(self, m: Module, writer: str, reader: str):
        self.written = Signal(BANKS)  # in the writer's domain
        self.read = Signal(BANKS)  # in the reader's domain
        self.written_seen = Signal(BANKS)
        self.read_seen = Signal(BANKS)
        # A stage more than `hold` has: after a reset the hold is seen first.
        m.submodules += FFSynchronizer(self.written, self.written_seen, o_domain=reader, stages=3)
        m.submodules += FFSynchronizer(self.read, self.read_seen, o_domain=writer, stages=3)

    def free(self, bank: Signal) -> object:
        """The writer may fill `bank`."""
        return ~(self.written ^ self.read_seen).bit_select(bank, 1)

    def full(self, bank: Signal) -> object:
        """The reader may empty `bank`."""
        return (self.written_seen ^ self.read).bit_select(bank, 1)


def _toggle(flags: Signal, bank: Signal) -> object:
    return flags.eq(flags ^ (Const(1, BANKS) << bank)[:BANKS])


class _Buffer:
    """Memory of an endpoint, whose turn each of its packets is, and the two sides' hand over.

    A wipe holds the cable's side off (`hold`), which says when it keeps off (`held`) and can ask
    for one itself (`request`).
    """

    def __init__(self, m: Module, writer: str, reader: str):
        m.submodules.memory = memory = Memory(shape=8, depth=BANKS << BANK_BITS, init=[])
        self.write = memory.write_port(domain=writer)
        self.read = memory.read_port(domain=reader)
        self.flags = _Flags(m, writer, reader)
        self.lengths = Array(Signal(BANK_BITS + 1, name=f"length_{i}") for i in range(BANKS))
        self.hold = Signal(init=1)  # sync
        self.hold_seen = Signal(init=1)  # usb
        self.held = Signal()  # usb
        self.held_seen = Signal()  # sync
        self.request = Signal(init=1)  # usb
        self.request_seen = Signal()  # sync
        m.submodules += [
            FFSynchronizer(self.hold, self.hold_seen, o_domain="usb", init=1),
            FFSynchronizer(self.held, self.held_seen, o_domain="sync"),
            FFSynchronizer(self.request, self.request_seen, o_domain="sync"),
        ]


class _Bulk(wiring.Component):
    """What both endpoints are: members for wipe and restart, and LUNA's interface."""

    def __init__(self, bits: int, number: int, members: dict[str, wiring.Member]):
        self._bytes, self._number = bits // 8, number
        common = {"wipe": In(1), "wiping": Out(1, init=1), "restart": In(1), "halted": In(1)}
        super().__init__(members | common)
        self.interface = EndpointInterface()


class BulkIn(_Bulk):
    """Bulk endpoint to the host.

    Records go out byte by byte, the low one first, in packets of the largest size as long as they
    come; a packet that is only partly filled leaves at the second `tick` at the latest, whole
    records only, and after a run that ended with a full packet an empty one does, so that the
    host's transfer ends.

    Latency: a few clocks of both domains from the byte that fills a packet, or from the tick.
    Throughput: 1 byte a clock of either domain, 1 record a clock if it has one byte.

    Parameters
    ----------
    bits
        Bits of a record, a multiple of 8.
    number
        Endpoint number, 1 to 15.
    patience
        See `AckWindow`.

    Members
    -------
    i
        Stream of records (domain ``sync``).
    tick
        Strobe (``sync``): half the longest waiting time has passed.
    wipe
        Strobe (``sync``): overwrite everything and drop what was under way. A packet that the
        host may have received unknown to us is followed by an empty one with the same toggle, so
        that nothing sent later is mistaken for its repetition.
    wiping
        1 while that lasts.
    restart
        Strobe (``usb``): bus reset, new configuration or cleared halt; wipes too, and begins
        with DATA0.
    halted
        1 (``usb``): answer STALL.
    packet_end
        See `AckWindow`.
    """

    def __init__(self, bits: int, number: int, patience: tuple[int, int] = (160, 640)):
        self._patience = patience
        members = {"i": In(stream.Signature(bits)), "tick": In(1), "packet_end": In(1)}
        super().__init__(bits, number, members)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        usb = self.interface
        buffer = _Buffer(m, "sync", "usb")
        write, read = buffer.write, buffer.read
        flags, lengths = buffer.flags, buffer.lengths
        hold, hold_seen = buffer.hold, buffer.hold_seen
        held, held_seen = buffer.held, buffer.held_seen
        request, request_seen = buffer.request, buffer.request_seen
        high = Signal()
        is_high = Signal()
        m.d.usb += is_high.eq(usb.speed == USBSpeed.HIGH)
        m.submodules += FFSynchronizer(is_high, high, o_domain="sync")

        # -- the station's side: records to bytes to banks ------------------------------------
        size = Signal(BANK_BITS + 1)
        m.d.comb += size.eq(Mux(high, USB_PACKET_HIGH, USB_PACKET_FULL))
        bank = Signal(range(BANKS))
        fill = Signal(BANK_BITS + 1)
        shift = Signal(8 * self._bytes)
        left = Signal(range(self._bytes + 1))
        aged, due, open_end = Signal(), Signal(), Signal()
        sweep = Signal(range((BANKS << BANK_BITS) + 1))
        free, put, commit = Signal(), Signal(), Signal()
        m.d.comb += [
            free.eq(flags.free(bank)),
            put.eq((left != 0) & free & ~hold),
            self.i.ready.eq(~hold & ~due & ((left == 0) | ((left == 1) & put))),
            write.addr.eq(Cat(fill[:BANK_BITS], bank)),
            write.data.eq(shift[:8]),
            write.en.eq(put),
            self.wiping.eq(hold | held_seen),
        ]
        with m.If(put):
            m.d.sync += [shift.eq(shift >> 8), left.eq(left - 1), fill.eq(fill + 1)]
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += [shift.eq(self.i.payload), left.eq(self._bytes)]
        filled = Signal()
        m.d.comb += [
            filled.eq(put & (fill + 1 >= size)),
            commit.eq(filled | (due & (left == 0) & free & ~hold)),
        ]
        with m.If(self.tick & ((fill != 0) | open_end)):
            m.d.sync += [aged.eq(1), due.eq(aged)]
        with m.If(commit):
            m.d.sync += [
                lengths[bank].eq(Mux(filled, fill + 1, fill)),
                _toggle(flags.written, bank),
                bank.eq(bank + 1),
                fill.eq(0),
                aged.eq(0),
                due.eq(0),
                open_end.eq(filled),
            ]
        with m.If(hold):
            m.d.sync += [left.eq(0), shift.eq(0), fill.eq(0), bank.eq(0)]
            m.d.sync += [aged.eq(0), due.eq(0), open_end.eq(0), flags.written.eq(0)]
            with m.If(held_seen):
                m.d.comb += [
                    write.addr.eq(sweep),
                    write.data.eq(0),
                    write.en.eq(~sweep[-1]),
                ]
                m.d.sync += sweep.eq(sweep + 1)
                with m.If(sweep[-1]):
                    m.d.sync += [hold.eq(0), sweep.eq(0)]
        with m.Elif((self.wipe | request_seen) & ~held_seen):
            m.d.sync += hold.eq(1)
        # A wipe that comes while one goes on begins it again.
        again = Signal()
        with m.If(self.wipe & (hold | held_seen)):
            m.d.sync += [sweep.eq(0), again.eq(~hold)]
        with m.If(again & ~held_seen):
            m.d.sync += [hold.eq(1), again.eq(0)]

        # -- the cable's side ------------------------------------------------------------------
        m.submodules.window = window = AckWindow(self._patience)
        taken = Signal(range(BANKS))
        position = Signal(BANK_BITS + 1)
        length = Signal(BANK_BITS + 1)
        toggle = Signal()
        unsure = Signal()  # a packet was sent and not acknowledged
        doubt = Signal()  # so it was when the buffer was wiped
        full = Signal()
        asked = Signal()
        m.d.comb += [
            full.eq(flags.full(taken) & ~held),
            asked.eq(
                usb.tokenizer.is_in
                & (usb.tokenizer.endpoint == self._number)
                & usb.tokenizer.ready_for_response
            ),
            usb.tx_pid_toggle.eq(toggle),
            usb.tx.payload.eq(read.data),
            read.addr.eq(Cat(position[:BANK_BITS], taken)),
            window.high.eq(is_high),
            window.ack.eq(usb.handshakes_in.ack),
            window.packet_end.eq(self.packet_end),
            window.token.eq(usb.tokenizer.new_token),
        ]
        void = Signal()  # the packet under way is an empty one instead of a wiped one
        with m.FSM(domain="usb"):
            with m.State("IDLE"):
                m.d.usb += position.eq(0)
                m.d.usb += length.eq(lengths[taken])
                with m.If(hold_seen):
                    # A packet that was sent and not acknowledged may have arrived.
                    m.d.usb += [doubt.eq(doubt | unsure), unsure.eq(0)]
                    m.next = "HELD"
                with m.If(asked):
                    with m.If(self.halted):
                        m.d.comb += usb.handshakes_out.stall.eq(1)
                    with m.Elif(hold_seen):
                        m.d.comb += usb.handshakes_out.nak.eq(1)
                    with m.Elif(doubt):
                        m.d.usb += void.eq(1)
                        m.next = "EMPTY"
                    with m.Elif(full):
                        m.d.usb += void.eq(0)
                        with m.If(lengths[taken] == 0):
                            m.next = "EMPTY"
                        with m.Else():
                            m.next = "SEND"
                    with m.Else():
                        m.d.comb += usb.handshakes_out.nak.eq(1)
            with m.State("SEND"):
                last = position + 1 == length
                m.d.comb += [
                    usb.tx.valid.eq(1),
                    usb.tx.first.eq(position == 0),
                    usb.tx.last.eq(last),
                ]
                with m.If(usb.tx.ready):
                    m.d.comb += read.addr.eq(Cat((position + 1)[:BANK_BITS], taken))
                    m.d.usb += position.eq(position + 1)
                    with m.If(last):
                        m.d.comb += window.sent.eq(1)
                        m.next = "WAIT"
            with m.State("EMPTY"):
                # Valid and last without first asks the transmitter for an empty packet.
                m.d.comb += [usb.tx.valid.eq(1), usb.tx.last.eq(1), window.sent.eq(1)]
                m.next = "WAIT"
            with m.State("WAIT"):
                with m.If(window.acked):
                    m.d.usb += [toggle.eq(~toggle), doubt.eq(0)]
                    with m.If(~void):
                        m.d.usb += [_toggle(flags.read, taken), taken.eq(taken + 1)]
                # The token that ends the wait may want its answer in the very next clock.
                with m.If(window.acked | window.lost):
                    m.d.usb += position.eq(0)
                    m.next = "IDLE"
            with m.State("HELD"):
                m.d.comb += usb.handshakes_out.nak.eq(asked & ~self.halted)
                m.d.comb += usb.handshakes_out.stall.eq(asked & self.halted)
                m.d.usb += [held.eq(1), request.eq(0), flags.read.eq(0), taken.eq(0)]
                with m.If(held & ~hold_seen):
                    m.d.usb += held.eq(0)
                    m.next = "IDLE"
        with m.If(window.sent & ~void):
            m.d.usb += unsure.eq(1)
        with m.If(window.acked):
            m.d.usb += unsure.eq(0)
        with m.If(self.restart):
            m.d.usb += [toggle.eq(0), doubt.eq(0), unsure.eq(0), request.eq(1)]
        return m


class BulkOut(_Bulk):
    """Bulk endpoint from the host.

    Bytes of packets that arrived whole, once each, become records, the first byte the low one. A
    packet is acknowledged only when its bank was free; PING answers the same (USB 2.0, 8.5.1).

    Latency: a few clocks of both domains from the end of a packet. Throughput: 1 byte a clock,
    1 record a clock if it has one byte.

    Parameters
    ----------
    bits
        Bits of a record, a multiple of 8.
    number
        Endpoint number, 1 to 15.

    Members
    -------
    o
        Stream of records (domain ``sync``).
    wipe
        Strobe (``sync``): overwrite everything and drop what was under way; a record that is
        offered is dropped too.
    wiping
        1 while that lasts.
    dirty
        1 (``sync``) while the buffer holds anything from the host.
    restart
        Strobe (``usb``): bus reset, new configuration or cleared halt; wipes too, and expects
        DATA0.
    halted
        1 (``usb``): answer STALL.
    addressed
        1 (``usb``) while the packet that comes, or came last, is the one after a token to this
        device.
    """

    def __init__(self, bits: int, number: int):
        members = {"o": Out(stream.Signature(bits)), "dirty": Out(1), "addressed": In(1)}
        super().__init__(bits, number, members)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        usb = self.interface
        buffer = _Buffer(m, "usb", "sync")
        write, read = buffer.write, buffer.read
        flags, lengths = buffer.flags, buffer.lengths
        hold, hold_seen = buffer.hold, buffer.hold_seen
        held, held_seen = buffer.held, buffer.held_seen
        request, request_seen = buffer.request, buffer.request_seen
        wet = Signal()
        wet_seen = Signal()
        m.submodules += FFSynchronizer(wet, wet_seen, o_domain="sync")

        # -- the cable's side ------------------------------------------------------------------
        size = Signal(BANK_BITS + 1)
        m.d.usb += size.eq(Mux(usb.speed == USBSpeed.HIGH, USB_PACKET_HIGH, USB_PACKET_FULL))
        bank = Signal(range(BANKS))
        fill = Signal(BANK_BITS + 1)
        overrun, accepting, toggle = Signal(), Signal(), Signal()
        swept = Signal()
        sweep = Signal(range((BANKS << BANK_BITS) + 1))
        here, put, answer, ping = Signal(), Signal(), Signal(), Signal()
        tokenizer = usb.tokenizer
        m.d.comb += [
            here.eq(tokenizer.is_out & (tokenizer.endpoint == self._number)),
            put.eq(
                here
                & self.addressed
                & accepting
                & usb.rx.valid
                & usb.rx.next
                & (usb.rx_pid_toggle[0] == toggle)
            ),
            answer.eq(here & self.addressed & usb.rx_ready_for_response),
            ping.eq(
                tokenizer.is_ping
                & (tokenizer.endpoint == self._number)
                & tokenizer.ready_for_response
            ),
            write.addr.eq(Cat(fill[:BANK_BITS], bank)),
            write.data.eq(usb.rx.payload),
            write.en.eq(put & (fill != size)),
        ]
        with m.If(tokenizer.new_token):
            m.d.usb += [
                fill.eq(0),
                overrun.eq(0),
                accepting.eq(flags.free(bank) & ~hold_seen & ~held & ~self.halted),
            ]
        with m.Elif(put):
            m.d.usb += wet.eq(1)
            with m.If(fill == size):
                m.d.usb += overrun.eq(1)
            with m.Else():
                m.d.usb += fill.eq(fill + 1)
        with m.If(answer):
            m.d.usb += accepting.eq(0)
            with m.If(self.halted):
                m.d.comb += usb.handshakes_out.stall.eq(1)
            with m.Elif(usb.rx_pid_toggle[0] != toggle):
                # The host missed our ACK and repeats itself (8.6.4).
                m.d.comb += usb.handshakes_out.ack.eq(1)
            with m.Elif(~accepting):
                m.d.comb += usb.handshakes_out.nak.eq(1)
            with m.Elif(~overrun):
                m.d.comb += usb.handshakes_out.ack.eq(1)
                m.d.usb += toggle.eq(~toggle)
                with m.If(fill != 0):
                    m.d.usb += [
                        lengths[bank].eq(fill),
                        _toggle(flags.written, bank),
                        bank.eq(bank + 1),
                    ]
        with m.If(ping):
            m.d.comb += [
                usb.handshakes_out.stall.eq(self.halted),
                usb.handshakes_out.ack.eq(~self.halted & accepting),
                usb.handshakes_out.nak.eq(~self.halted & ~accepting),
            ]
        with m.If(hold_seen & ~accepting & ~held):
            m.d.usb += [held.eq(1), request.eq(0), sweep.eq(0)]
        with m.If(held):
            m.d.usb += [flags.written.eq(0), bank.eq(0), fill.eq(0)]
            with m.If(~sweep[-1]):
                m.d.comb += [write.addr.eq(sweep), write.data.eq(0), write.en.eq(1)]
                m.d.usb += sweep.eq(sweep + 1)
            with m.Else():
                m.d.usb += [swept.eq(1), wet.eq(0)]
            with m.If(~hold_seen):
                m.d.usb += [held.eq(0), swept.eq(0)]
        # A token whose packet never came must not keep a wipe waiting.
        with m.If(hold_seen & ~usb.rx.valid & ~here):
            m.d.usb += accepting.eq(0)
        patience = Signal(12)
        with m.If(hold_seen & accepting):
            m.d.usb += patience.eq(patience + 1)
            with m.If(patience.all()):
                m.d.usb += accepting.eq(0)
        with m.Else():
            m.d.usb += patience.eq(0)
        with m.If(self.restart):
            m.d.usb += [toggle.eq(0), accepting.eq(0), request.eq(1)]

        # -- the station's side: bytes to records ----------------------------------------------
        swept_seen = Signal()
        m.submodules += FFSynchronizer(swept, swept_seen, o_domain="sync")
        taken = Signal(range(BANKS))
        position = Signal(BANK_BITS + 1)
        following = Signal(BANK_BITS + 1)
        loaded = Signal()  # the memory shows the byte at `position`
        take = Signal()
        count = Signal(range(self._bytes + 1))
        record = Signal(8 * self._bytes)
        m.d.comb += [
            following.eq(position + take),
            read.addr.eq(Cat(following[:BANK_BITS], taken)),
            self.o.payload.eq(record),
            self.o.valid.eq(count == self._bytes),
            take.eq(loaded & ~hold & ((count != self._bytes) | self.o.ready)),
            self.wiping.eq(hold | held_seen),
            self.dirty.eq(wet_seen | (count != 0)),
        ]
        with m.If(take):
            m.d.sync += [
                record.eq(Cat(record, read.data)[8:]),
                count.eq(Mux(count == self._bytes, 1, count + 1)),
            ]
        with m.Elif(self.o.valid & self.o.ready):
            m.d.sync += count.eq(0)
        with m.If(take & (following == lengths[taken])):
            m.d.sync += [
                _toggle(flags.read, taken),
                taken.eq(taken + 1),
                position.eq(0),
                loaded.eq(0),
            ]
        with m.Else():
            m.d.sync += [position.eq(following), loaded.eq(flags.full(taken) & ~hold)]
        again = Signal()
        with m.If(hold):
            m.d.sync += [count.eq(0), record.eq(0), position.eq(0), loaded.eq(0), taken.eq(0)]
            m.d.sync += flags.read.eq(0)
            with m.If(held_seen & swept_seen):
                m.d.sync += hold.eq(0)
        with m.Elif((self.wipe | request_seen | again) & ~held_seen & ~swept_seen):
            m.d.sync += [hold.eq(1), again.eq(0)]
        with m.If(self.wipe & (hold | held_seen)):
            m.d.sync += again.eq(1)
        return m
