# SPDX-License-Identifier: CERN-OHL-W-2.0
"""The control endpoint: requests of chapter 9, registers, and what Windows asks."""

import enum
import warnings

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.cdc import FFSynchronizer
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from keyrail.contract import USB_FLUSH_US, USB_REQUEST_WORDS, VendorRequest

from .register_bank import ACCESS_CLOCKS, BusSignature
from .usb_descriptors import (
    CONTROL_PACKET,
    SERIAL_STRING,
    Identity,
    descriptors,
    windows_descriptor_set,
)
from .usb_endpoints import AckWindow

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    from luna.gateware.usb.usb2 import USBSpeed
    from luna.gateware.usb.usb2.endpoint import EndpointInterface

__all__ = ["ControlEndpoint", "RegisterBridge"]


class RegisterBridge(wiring.Component):
    """Carries accesses to the register bus from the cable's clock to the station's, one at a time.

    Latency: 4 clocks of each domain about. An access that was begun is finished, whatever happens
    on the cable.

    Members
    -------
    start
        Strobe (``usb``): begin; ignored while `busy`.
    address, data, writes
        Access, stable from `start` until it is done: 16 and 32 bits, 1 to write.
    busy
        1 (``usb``) until the access is done.
    value
        Answer, 32 bits, stable from then on.
    bus
        Register bus (``sync``), from the host's side.
    """

    start: In(1)
    address: In(16)
    data: In(32)
    writes: In(1)
    busy: Out(1)
    value: Out(32)
    bus: Out(BusSignature())

    def elaborate(self, platform: object) -> Module:
        m = Module()
        asked, asked_seen, done, done_seen = (Signal(name=n) for n in ("a", "as", "d", "ds"))
        m.submodules += [
            FFSynchronizer(asked, asked_seen, o_domain="sync"),
            FFSynchronizer(done, done_seen, o_domain="usb"),
        ]
        held = Signal(48)
        writes = Signal()
        m.d.comb += self.busy.eq(asked ^ done_seen)
        with m.If(self.start & ~self.busy):
            m.d.usb += [
                asked.eq(~asked),
                held.eq(Cat(self.address, self.data)),
                writes.eq(self.writes),
            ]
        m.d.comb += [self.bus.address.eq(held[:16]), self.bus.data.eq(held[16:])]
        step = Signal(range(ACCESS_CLOCKS + 2))
        with m.Switch(step):
            with m.Case(0):
                with m.If(asked_seen ^ done):
                    m.d.comb += [self.bus.write.eq(writes), self.bus.read.eq(~writes)]
                    m.d.sync += step.eq(1)
            with m.Case(ACCESS_CLOCKS):
                # The answer is there, and what was written has taken effect.
                m.d.sync += [self.value.eq(self.bus.value), step.eq(step + 1)]
            with m.Case(ACCESS_CLOCKS + 1):
                m.d.sync += [done.eq(~done), step.eq(0)]
            with m.Default():
                m.d.sync += step.eq(step + 1)
        return m


_SETUP = data.StructLayout(
    {
        "recipient": 5,
        "type": 2,
        "is_in_request": 1,
        "request": 8,
        "value": 16,
        "index": 16,
        "length": 16,
    }
)


class _State(enum.Enum):
    IDLE = 0  # nothing under way
    DISPATCH = 1  # a request has come
    FETCH = 2  # registers are being read
    DATA_IN = 3  # waiting for the host to ask for a packet
    SEND = 4
    SEND_EMPTY = 5
    DATA_ACK = 6
    STATUS_OUT = 7  # waiting for the host's empty packet
    DATA_OUT = 8
    STATUS_IN = 9  # waiting for the host to ask for ours
    APPLY = 10  # registers are being written
    STATUS_ACK = 11
    STALL = 12


class _Source(enum.Enum):
    ROM = 0
    REPLY = 1
    WORDS = 2


class ControlEndpoint(wiring.Component):
    """Endpoint 0 (USB 2.0, 8.5.3 and chapter 9).

    A SETUP ends whatever was under way (8.5.3.1), requests that are not supported are refused
    with a stall until the next SETUP (8.5.3.4), and lost packets are repeated. Works in the
    domain ``usb``.

    Parameters
    ----------
    identity
        What the device says of itself.
    addresses
        Addresses of the bulk endpoints.
    high_speed
        The board can do high speed.
    patience
        See `AckWindow`.

    Members
    -------
    bus_reset
        Strobe: the bus was reset.
    packet_end
        See `AckWindow`.
    addressed
        See `BulkOut`.
    serial
        Serial number, 64 bits; its string says it in hexadecimal.
    flush_us
        Time in microseconds after which a partly filled packet leaves, 16 bits.
    restart
        16 bits for OUT, then 16 for IN endpoints: strobes that start one anew.
    halted
        The same order: 1 for endpoints that answer STALL.
    bus
        Register bus (domain ``sync``).
    """

    def __init__(
        self,
        identity: Identity,
        addresses: list[int],
        high_speed: bool,
        patience: tuple[int, int] = (160, 640),
    ):
        self._patience = patience
        self._tables = descriptors(identity, addresses, high_speed)
        self._addresses = addresses
        super().__init__(
            {
                "bus_reset": In(1),
                "packet_end": In(1),
                "addressed": In(1),
                "serial": In(64),
                "flush_us": Out(16, init=USB_FLUSH_US),
                "restart": Out(32),
                "halted": Out(32),
                "bus": Out(BusSignature()),
            }
        )
        self.interface = EndpointInterface()

    def _rom(self) -> tuple[list[int], list[dict[tuple[int, int], tuple[int, int]]], tuple]:
        """Bytes of all descriptors, and start and length by speed, type and index.

        Bit 8 of a byte says that it stands for a hexadecimal digit of the serial number.
        """
        content: list[int] = []
        places: dict[tuple[bytes, bool], tuple[int, int]] = {}

        def place(raw: bytes, serial: bool = False) -> tuple[int, int]:
            if (raw, serial) not in places:
                places[raw, serial] = (len(content), len(raw))
                data = list(raw)
                if serial:
                    for digit in range(16):
                        data[2 + 2 * digit] = 0x100 | (15 - digit)
                content.extend(data)
            return places[raw, serial]

        tables = [
            {key: place(raw, key == (3, SERIAL_STRING)) for key, raw in table.items()}
            for table in self._tables
        ]
        return content, tables, place(windows_descriptor_set())

    def elaborate(self, platform: object) -> Module:
        m = Module()
        usb = self.interface
        token = usb.tokenizer
        m.submodules.window = window = AckWindow(self._patience)
        m.submodules.bridge = bridge = RegisterBridge()
        wiring.connect(m, bridge.bus, wiring.flipped(self.bus))
        coming = Signal(64)
        setup = Signal(_SETUP)
        came = Signal(range(10))  # bytes of it
        is_high = Signal()
        m.d.usb += is_high.eq(usb.speed == USBSpeed.HIGH)
        mine = Signal()
        m.d.comb += [
            mine.eq(token.endpoint == 0),
            window.high.eq(is_high),
            window.ack.eq(usb.handshakes_in.ack),
            window.packet_end.eq(self.packet_end),
            window.token.eq(token.new_token),
        ]

        content, tables, windows_set = self._rom()
        m.submodules.rom = rom = Memory(shape=9, depth=len(content), init=content)
        m.submodules.words = words = Memory(shape=32, depth=USB_REQUEST_WORDS, init=[])
        rom_port = rom.read_port(domain="usb")
        words_write, words_read = words.write_port(domain="usb"), words.read_port(domain="usb")

        state = Signal(_State)
        source = Signal(_Source)
        base = Signal(range(len(content) + 1))  # of the descriptor in the ROM
        total = Signal(16)  # bytes of the data stage
        sent = Signal(16)  # bytes of it that were acknowledged
        position = Signal(7)  # in the packet
        chunk = Signal(7)  # bytes of the packet
        toggle = Signal()
        reply = Signal(16)
        word = Signal(range(USB_REQUEST_WORDS + 1))
        accessing = Signal()
        received, fill = Signal(7), Signal(7)
        got_data, unfit = Signal(), Signal()
        assembled = Signal(24)
        applied = Signal()

        asked = Signal()  # IN, and it is time to answer
        pinged = Signal()
        answer = Signal()  # a data packet came whole, and it is time to answer
        m.d.comb += [
            asked.eq(mine & token.is_in & token.ready_for_response),
            pinged.eq(mine & token.is_ping & token.ready_for_response),
            answer.eq(mine & self.addressed & token.is_out & usb.rx_ready_for_response),
        ]

        def ack() -> object:
            return usb.handshakes_out.ack.eq(1)

        def stall() -> object:
            return usb.handshakes_out.stall.eq(1)

        # Bytes of the data stage.
        following = Signal(7)
        index = Signal(16)
        m.d.comb += [following.eq(position), index.eq(sent + following)]
        m.d.comb += [
            rom_port.addr.eq(base + index),
            words_read.addr.eq(index[2:]),
        ]
        digit = Signal(4)
        late = Signal(2)
        m.d.usb += late.eq(index[:2])
        m.d.comb += digit.eq(self.serial.word_select(rom_port.data[:4], 4))
        with m.Switch(source):
            with m.Case(_Source.ROM):
                m.d.comb += usb.tx.payload.eq(
                    Mux(
                        rom_port.data[8],
                        digit + Mux(digit < 10, ord("0"), ord("a") - 10),
                        rom_port.data[:8],
                    )
                )
            with m.Case(_Source.REPLY):
                m.d.comb += usb.tx.payload.eq(reply.word_select(late[0], 8))
            with m.Default():
                m.d.comb += usb.tx.payload.eq(words_read.data.word_select(late, 8))
        m.d.comb += usb.tx_pid_toggle.eq(toggle)

        # Fields of the request.
        is_standard, is_vendor = setup.type == 0, setup.type == 2
        to_device, to_interface, to_endpoint = (setup.recipient == r for r in range(3))
        configured = usb.active_config == 1
        flag = Cat(setup.index[:4], setup.index[7])
        known = Signal(32)
        m.d.comb += known.eq(
            sum(1 << ((a & 15) | (16 if a & 0x80 else 0)) for a in self._addresses) | 1 | 1 << 16
        )
        exists = known.bit_select(flag, 1) & (setup.index & 0xFF70 == 0)
        is_zero_endpoint = setup.index[:4] == 0
        words_fit = (
            (setup.length[:2] == 0) & (setup.length != 0) & (setup.length <= 4 * USB_REQUEST_WORDS)
        )

        def give(kind: _Source, length: object, begin: object = 0) -> list:
            return [
                source.eq(kind),
                base.eq(begin),
                total.eq(Mux(setup.length < length, setup.length, length)),
                state.eq(_State.DATA_IN),
            ]

        def give_rom(place: tuple[int, int]) -> list:
            return give(_Source.ROM, place[1], place[0])

        m.d.usb += self.restart.eq(0)
        mask = Signal(32)
        m.d.comb += mask.eq((1 << flag)[:32])

        with m.Switch(state):
            with m.Case(_State.IDLE):
                pass

            with m.Case(_State.DISPATCH):
                m.d.usb += [
                    sent.eq(0),
                    position.eq(0),
                    toggle.eq(1),
                    word.eq(0),
                    accessing.eq(0),
                    received.eq(0),
                    got_data.eq(0),
                    unfit.eq(0),
                    applied.eq(0),
                    reply.eq(0),
                    state.eq(_State.STALL),
                ]
                no_data = setup.length == 0
                accept = state.eq(_State.STATUS_IN)
                with m.If(is_standard & setup.is_in_request):
                    with m.Switch(setup.request):
                        with m.Case(0):  # GET_STATUS
                            with m.If(to_endpoint & exists & (configured | is_zero_endpoint)):
                                m.d.usb += reply.eq(self.halted.bit_select(flag, 1))
                                m.d.usb += give(_Source.REPLY, 2)
                            with m.Elif(
                                to_device | (to_interface & configured & (setup.index == 0))
                            ):
                                m.d.usb += give(_Source.REPLY, 2)
                        with m.Case(6):  # GET_DESCRIPTOR
                            with m.If(to_device):
                                for speed, table in enumerate(tables):
                                    with m.If(is_high == speed), m.Switch(setup.value):
                                        for (kind, number), place in table.items():
                                            with m.Case(kind << 8 | number):
                                                m.d.usb += give_rom(place)
                        with m.Case(8):  # GET_CONFIGURATION
                            with m.If(to_device):
                                m.d.usb += reply.eq(usb.active_config)
                                m.d.usb += give(_Source.REPLY, 1)
                        with m.Case(10):  # GET_INTERFACE
                            with m.If(to_interface & configured & (setup.index == 0)):
                                m.d.usb += give(_Source.REPLY, 1)
                with m.Elif(is_standard & no_data):
                    with m.Switch(setup.request):
                        with m.Case(1, 3):  # CLEAR_FEATURE, SET_FEATURE: ENDPOINT_HALT
                            with m.If(
                                to_endpoint
                                & exists
                                & (setup.value == 0)
                                & (configured | is_zero_endpoint)
                            ):
                                m.d.usb += accept
                        with m.Case(5):  # SET_ADDRESS
                            with m.If(to_device & (setup.value < 128)):
                                m.d.usb += accept
                        with m.Case(9):  # SET_CONFIGURATION
                            with m.If(to_device & (setup.value < 2)):
                                m.d.usb += accept
                        with m.Case(11):  # SET_INTERFACE
                            with m.If(
                                to_interface & configured & (setup.value == 0) & (setup.index == 0)
                            ):
                                m.d.usb += accept
                with m.Elif(is_vendor & to_device):
                    with m.Switch(setup.request):
                        with m.Case(VendorRequest.REGISTERS):
                            with m.If(words_fit & (setup.value == 0)):
                                m.d.usb += [
                                    source.eq(_Source.WORDS),
                                    total.eq(setup.length),
                                    state.eq(
                                        Mux(setup.is_in_request, _State.FETCH, _State.DATA_OUT)
                                    ),
                                ]
                        with m.Case(VendorRequest.FLUSH):
                            with m.If(setup.is_in_request):
                                m.d.usb += reply.eq(self.flush_us)
                                m.d.usb += give(_Source.REPLY, 2)
                            with m.Elif(no_data & (setup.value >= 2)):
                                m.d.usb += accept
                        with m.Case(VendorRequest.WINDOWS):
                            with m.If(setup.is_in_request & (setup.index == 7)):
                                m.d.usb += give_rom(windows_set)

            with m.Case(_State.FETCH):
                m.d.comb += [bridge.address.eq(setup.index + word), words_write.addr.eq(word)]
                m.d.comb += words_write.data.eq(bridge.value)
                with m.If(~bridge.busy):
                    with m.If(~accessing):
                        m.d.comb += bridge.start.eq(1)
                        m.d.usb += accessing.eq(1)
                    with m.Else():
                        m.d.comb += words_write.en.eq(1)
                        m.d.usb += [word.eq(word + 1), accessing.eq(0)]
                        with m.If(word + 1 == total[2:]):
                            m.d.usb += state.eq(_State.DATA_IN)
                m.d.comb += usb.handshakes_out.nak.eq(asked)
                with m.If(pinged | answer):
                    m.d.comb += usb.handshakes_out.nak.eq(1)

            with m.Case(_State.DATA_IN):
                remaining = Signal(16)
                m.d.comb += remaining.eq(total - sent)
                m.d.usb += [
                    position.eq(0),
                    chunk.eq(Mux(remaining > CONTROL_PACKET, CONTROL_PACKET, remaining)),
                ]
                with m.If(asked):
                    m.d.usb += state.eq(Mux(remaining == 0, _State.SEND_EMPTY, _State.SEND))
                with m.If(mine & token.new_token & (token.is_out | token.is_ping)):
                    m.d.usb += state.eq(_State.STATUS_OUT)
            with m.Case(_State.SEND):
                last = position + 1 == chunk
                m.d.comb += [
                    usb.tx.valid.eq(1),
                    usb.tx.first.eq(position == 0),
                    usb.tx.last.eq(last),
                ]
                with m.If(usb.tx.ready):
                    m.d.comb += following.eq(position + 1)
                    m.d.usb += position.eq(position + 1)
                    with m.If(last):
                        m.d.comb += window.sent.eq(1)
                        m.d.usb += state.eq(_State.DATA_ACK)
            with m.Case(_State.SEND_EMPTY):
                m.d.comb += [usb.tx.valid.eq(1), usb.tx.last.eq(1), window.sent.eq(1)]
                m.d.usb += [position.eq(0), state.eq(_State.DATA_ACK)]
            with m.Case(_State.DATA_ACK):
                with m.If(window.acked):
                    m.d.usb += [toggle.eq(~toggle), sent.eq(sent + position)]
                with m.If(window.acked | window.lost):
                    m.d.usb += [position.eq(0), state.eq(_State.DATA_IN)]
                    # The token that ended the wait may already be that of the status stage.
                    with m.If(mine & token.new_token & (token.is_out | token.is_ping)):
                        m.d.usb += state.eq(_State.STATUS_OUT)
            with m.Case(_State.STATUS_OUT):
                with m.If(answer | pinged):
                    m.d.comb += ack()
                with m.If(asked):
                    m.d.comb += stall()

            with m.Case(_State.DATA_OUT):
                with m.If(token.new_token):
                    m.d.usb += fill.eq(0)
                ours = mine & self.addressed & token.is_out & (usb.rx_pid_toggle[0] == toggle)
                with m.If(ours & usb.rx.valid & usb.rx.next):
                    with m.If(fill == CONTROL_PACKET):
                        m.d.usb += unfit.eq(1)
                    with m.Else():
                        m.d.usb += [
                            fill.eq(fill + 1),
                            assembled.eq(Cat(assembled, usb.rx.payload)[8:]),
                        ]
                    m.d.comb += [
                        words_write.addr.eq(fill[2:]),
                        words_write.data.eq(Cat(assembled, usb.rx.payload)),
                        words_write.en.eq(fill[:2] == 3),
                    ]
                with m.If(answer):
                    m.d.comb += ack()
                    with m.If(usb.rx_pid_toggle[0] == toggle):
                        m.d.usb += [
                            toggle.eq(~toggle),
                            received.eq(fill),
                            got_data.eq(1),
                            unfit.eq(unfit | got_data),
                        ]
                with m.If(pinged):
                    m.d.comb += ack()
                with m.If(mine & token.new_token & token.is_in):
                    fits = (received == total) & ~unfit
                    m.d.usb += [
                        toggle.eq(1),
                        state.eq(Mux(fits, _State.APPLY, _State.STALL)),
                    ]
            with m.Case(_State.APPLY):
                m.d.comb += [
                    usb.handshakes_out.nak.eq(asked),
                    bridge.writes.eq(1),
                    bridge.address.eq(setup.index + word),
                    bridge.data.eq(words_read.data),
                    words_read.addr.eq(word),
                ]
                with m.If(~bridge.busy):
                    with m.If(accessing):
                        m.d.usb += [word.eq(word + 1), accessing.eq(0), got_data.eq(1)]
                        with m.If(word + 1 == total[2:]):
                            m.d.usb += [applied.eq(1), state.eq(_State.STATUS_IN)]
                    with m.Elif(got_data):
                        m.d.usb += got_data.eq(0)  # a clock for the memory to show the word
                    with m.Else():
                        m.d.comb += bridge.start.eq(1)
                        m.d.usb += accessing.eq(1)
            with m.Case(_State.STATUS_IN):
                with m.If(asked):
                    m.d.comb += [usb.tx.valid.eq(1), usb.tx.last.eq(1), window.sent.eq(1)]
                    m.d.usb += state.eq(_State.STATUS_ACK)
                with m.If(answer):
                    m.d.comb += ack()  # the host repeats data whose ACK it missed
            with m.Case(_State.STATUS_ACK):
                with m.If(window.lost):
                    m.d.usb += state.eq(_State.STATUS_IN)
                with m.If(window.acked):
                    m.d.usb += [applied.eq(1), state.eq(_State.STATUS_IN)]
                    with m.If(is_standard & ~applied):
                        with m.Switch(setup.request):
                            with m.Case(1):
                                m.d.usb += [
                                    self.halted.eq(self.halted & ~mask),
                                    self.restart.eq(mask),
                                ]
                            with m.Case(3):
                                with m.If(~is_zero_endpoint):
                                    m.d.usb += self.halted.eq(self.halted | mask)
                            with m.Case(5):
                                m.d.comb += [
                                    usb.address_changed.eq(1),
                                    usb.new_address.eq(setup.value),
                                ]
                            with m.Case(9):
                                m.d.comb += [
                                    usb.config_changed.eq(1),
                                    usb.new_config.eq(setup.value),
                                ]
                                m.d.usb += [self.restart.eq(~0), self.halted.eq(0)]
                            with m.Case(11):
                                m.d.usb += [self.restart.eq(~0), self.halted.eq(0)]
                    with m.Elif(~applied & (setup.request == VendorRequest.FLUSH)):
                        m.d.usb += self.flush_us.eq(setup.value)
            with m.Case(_State.STALL):
                with m.If(asked | pinged | answer):
                    m.d.comb += stall()

        # Eight bytes in a DATA0 packet; anything else is no SETUP and gets no answer (8.5.3).
        with m.If(token.new_token):
            m.d.usb += came.eq(0)
        with m.If(mine & self.addressed & token.is_setup):
            with m.If(usb.rx.valid & usb.rx.next & (came != 9)):
                m.d.usb += [came.eq(came + 1), coming.eq(Cat(coming, usb.rx.payload)[8:])]
            with m.If(usb.rx_ready_for_response & (came == 8) & ~usb.rx_pid_toggle[0]):
                m.d.comb += ack()
                m.d.usb += [setup.eq(coming), state.eq(_State.DISPATCH)]
        with m.If(self.bus_reset):
            m.d.usb += [
                state.eq(_State.IDLE),
                self.restart.eq(~0),
                self.halted.eq(0),
                self.flush_us.eq(USB_FLUSH_US),
            ]
        return m
