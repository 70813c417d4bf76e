# SPDX-License-Identifier: CERN-OHL-W-2.0
"""A station on USB: LUNA's device with an endpoint for each stream and registers by requests."""

import warnings

from amaranth.hdl import Cat, DomainRenamer, Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.cdc import FFSynchronizer
from amaranth.lib.wiring import In, Out

from keyrail.contract import Direction, Role, Stream, endpoints, streams

from .register_bank import BusSignature
from .skid import Skid
from .station import Configuration, Receiver, Sender
from .usb_control import ControlEndpoint
from .usb_descriptors import Identity
from .usb_endpoints import BulkIn, BulkOut

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    from luna.gateware.usb.usb2.device import USBDevice

__all__ = ["UsbCore", "UsbStation", "station_identity"]

_DEFAULT = Configuration()
ULPI_CLOCK, FULL_SPEED_CLOCK = 60, 12
"""Clock of the domain ``usb``, MHz: of a ULPI PHY, and of LUNA's own full-speed PHY."""


def station_identity(role: Role, configuration: Configuration = _DEFAULT) -> Identity:
    """What a station says of itself on USB: role, board and sizes."""
    sizes = (
        f"toeplitz {configuration.toeplitz_input_log2}/{configuration.toeplitz_output_log2}, "
        f"block memory {configuration.block_memory_log2}"
    )
    if role is Role.SENDER:
        sizes += f", horizon {configuration.horizon_log2}"
    return Identity(role, configuration.board, sizes)


class _Utmi:
    """A UTMI bus to LUNA's device, but for the bytes that it sends: those are signals of its own.

    Parameters
    ----------
    bus
        The bus.
    """

    def __init__(self, bus: object):
        self._bus = bus
        self.tx_data, self.tx_valid, self.tx_ready = Signal(8), Signal(), Signal()

    def __getattr__(self, name: str) -> object:
        return getattr(self._bus, name)


class UsbCore(wiring.Component):
    """USB device with a bulk endpoint for each stream, and a register bus.

    Domains: ``usb`` is the PHY's clock (60 MHz with ULPI, which the core takes from the PHY's pin
    where that is an input; 12 MHz with LUNA's own full-speed PHY, which needs ``usb_io`` at
    48 MHz too); ``sync`` is the station's, any frequency.

    Throughput: a byte a clock of the slower domain an endpoint; see docs/usb.md for packets a
    microframe. Latency: a partly filled packet is ready after half to one waiting time.

    Parameters
    ----------
    pins
        What leads to the bus: ULPI (has ``dir``), D+ and D- (has ``d_n``), or a UTMI interface.
    identity
        What the device says of itself.
    described
        Streams with the addresses of their endpoints, by name.
    high_speed
        The PHY can do high speed; the device starts at full speed without.
    clock
        MHz of the domain ``usb``.
    handle_clocking
        Take the domain's clock from the ULPI pins.

    Members
    -------
    one member for each stream of `described`
        Whole records; In for those to the host, Out for those to the board (domain ``sync``).
    bus
        Register bus, from the host's side (``sync``).
    connect
        1 (``usb``): show the device to the host; 0 takes it off the bus.
    serial
        Serial number, 64 bits, constant.
    wipe
        Strobe (``sync``): overwrite every buffer.
    wiping
        1 while that lasts.
    dirty
        1 while a buffer holds something from the host.
    suspended, configured, high
        1 (``usb``): the bus is suspended; the host has configured the device; at high speed.
    """

    def __init__(
        self,
        pins: object,
        identity: Identity,
        described: dict[str, tuple[Stream, int]],
        *,
        high_speed: bool = True,
        clock: int = ULPI_CLOCK,
        handle_clocking: bool = True,
    ):
        if clock not in (ULPI_CLOCK, FULL_SPEED_CLOCK):
            raise ValueError(f"USB clock of {clock} MHz: allowed are 60 and 12")
        if high_speed and clock != ULPI_CLOCK:
            raise ValueError("high speed needs a clock of 60 MHz")
        addresses = [address for _, address in described.values()]
        if len(set(addresses)) != len(addresses):
            raise ValueError("two streams on one endpoint")
        self._pins, self._identity, self._described = pins, identity, described
        self._high_speed, self._clock = high_speed, clock
        self._handle_clocking = handle_clocking
        members: dict[str, wiring.Member] = {
            "bus": Out(BusSignature()),
            "connect": In(1, init=1),
            "serial": In(64),
            "wipe": In(1),
            "wiping": Out(1),
            "dirty": Out(1),
            "suspended": Out(1),
            "configured": Out(1),
            "high": Out(1),
        }
        for name, (described_stream, _) in described.items():
            flow = Out if described_stream.direction is Direction.TO_BOARD else In
            members[name] = flow(stream.Signature(described_stream.record.bits))
        super().__init__(members)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        device = USBDevice(bus=self._pins, handle_clocking=self._handle_clocking)
        device.data_clock = self._clock * 1e6
        device.always_fs = self._clock != ULPI_CLOCK
        m.submodules.device = device
        if self._clock == ULPI_CLOCK:
            # A ULPI PHY takes its inputs 6 ns before the clock and gives its outputs 9 ns after
            # it, of 16.7 ns. What decides whether and what to answer must not lie in between.
            bus = device.utmi
            device.utmi = _Utmi(bus)
            m.submodules.sent = sent = DomainRenamer("usb")(Skid(8))
            m.d.comb += [
                sent.i.payload.eq(device.utmi.tx_data),
                sent.i.valid.eq(device.utmi.tx_valid),
                device.utmi.tx_ready.eq(sent.i.ready),
                bus.tx_data.eq(sent.o.payload),
                bus.tx_valid.eq(sent.o.valid),
                sent.o.ready.eq(bus.tx_ready),
            ]
        patience = (160, 640) if self._clock == ULPI_CLOCK else (160, 128)
        addresses = [address for _, address in self._described.values()]
        control = ControlEndpoint(self._identity, addresses, self._high_speed, patience)
        device.add_endpoint(control)
        wiring.connect(m, control.bus, wiring.flipped(self.bus))

        # A packet from the host has ended; LUNA's handshake strobes come in the same clock.
        active, ended = Signal(), Signal()
        m.d.usb += [
            active.eq(device.utmi.rx_active),
            ended.eq(active & ~device.utmi.rx_active),
        ]

        # Data belong to the token just before them, or to nothing: LUNA's tokenizer keeps the last
        # token for this device, whatever came since.
        follows, addressed = Signal(), Signal()
        with m.If(device.utmi.rx_active & ~active):
            m.d.usb += [addressed.eq(follows), follows.eq(0)]
        with m.If(control.interface.tokenizer.new_token):
            m.d.usb += follows.eq(1)

        tick = Signal()
        self._flush_tick(m, control.flush_us, tick)
        wiping, dirty = [], []
        for name, (described, address) in self._described.items():
            number = address & 15
            bits = described.record.bits
            port = getattr(self, name)
            if address & 0x80:
                endpoint = _named(BulkIn, name)(bits, number, patience)
                m.d.comb += [
                    endpoint.i.payload.eq(port.payload),
                    endpoint.i.valid.eq(port.valid),
                    port.ready.eq(endpoint.i.ready),
                    endpoint.tick.eq(tick),
                    endpoint.packet_end.eq(ended),
                    endpoint.restart.eq(control.restart[16 + number]),
                    endpoint.halted.eq(control.halted[16 + number]),
                ]
            else:
                endpoint = _named(BulkOut, name)(bits, number)
                m.d.comb += [
                    port.payload.eq(endpoint.o.payload),
                    port.valid.eq(endpoint.o.valid),
                    endpoint.o.ready.eq(port.ready),
                    endpoint.addressed.eq(addressed),
                    endpoint.restart.eq(control.restart[number]),
                    endpoint.halted.eq(control.halted[number]),
                ]
                dirty.append(endpoint.dirty)
            m.d.comb += endpoint.wipe.eq(self.wipe)
            wiping.append(endpoint.wiping)
            device.add_endpoint(endpoint)
        m.d.comb += [
            device.connect.eq(self.connect),
            device.full_speed_only.eq(not self._high_speed),
            control.bus_reset.eq(device.reset_detected),
            control.packet_end.eq(ended),
            control.addressed.eq(addressed),
            control.serial.eq(self.serial),
            self.wiping.eq(Cat(*wiping).any()),
            self.dirty.eq(Cat(*dirty).any()),
            self.suspended.eq(device.suspended),
            self.configured.eq(control.interface.active_config == 1),
            self.high.eq(device.speed == 0),
        ]
        return m

    def _flush_tick(self, m: Module, microseconds: Signal, tick: Signal) -> None:
        """Strobe `tick` (``sync``) twice in the time in which a packet must leave."""
        prescale = Signal(range(self._clock), init=self._clock - 1)
        count = Signal(16)
        toggle, toggle_seen, former = Signal(), Signal(), Signal()
        m.d.usb += prescale.eq(prescale - 1)
        with m.If(prescale == 0):
            m.d.usb += [prescale.eq(self._clock - 1), count.eq(count + 1)]
            with m.If(count + 1 >= microseconds >> 1):
                m.d.usb += [count.eq(0), toggle.eq(~toggle)]
        m.submodules += FFSynchronizer(toggle, toggle_seen, o_domain="sync")
        m.d.sync += former.eq(toggle_seen)
        m.d.comb += tick.eq(toggle_seen ^ former)


def _named(base: type, name: str) -> type:
    """Class of its own for an endpoint.

    LUNA names the modules of endpoints by their classes, and those of one class by their addresses
    in memory, which differ from run to run.
    """
    return type(f"{base.__name__}_{name}", (base,), {"__doc__": base.__doc__})


class UsbStation(wiring.Component):
    """A whole station behind a USB PHY.

    Domains as `UsbCore`. The boards give the pins, the clocks and the serial number.

    Parameters
    ----------
    role
        Role of the station.
    pins, high_speed, clock, handle_clocking
        See `UsbCore`.
    configuration
        Sizes it is built with.
    identity
        What the device says of itself; of role and configuration if absent.

    Members
    -------
    connect, serial, suspended, configured, high
        See `UsbCore`.
    busy
        See `Receiver` and `Sender`.
    """

    connect: In(1, init=1)
    serial: In(64)
    busy: Out(1)
    suspended: Out(1)
    configured: Out(1)
    high: Out(1)

    def __init__(
        self,
        role: Role,
        pins: object,
        configuration: Configuration = _DEFAULT,
        *,
        identity: Identity | None = None,
        high_speed: bool = True,
        clock: int = ULPI_CLOCK,
        handle_clocking: bool = True,
    ):
        super().__init__()
        self.role = role
        self.station = (Sender if role is Role.SENDER else Receiver)(configuration)
        described = streams(role)
        self.core = UsbCore(
            pins,
            identity or station_identity(role, configuration),
            {name: (described[name], address) for name, address in endpoints(role).items()},
            high_speed=high_speed,
            clock=clock,
            handle_clocking=handle_clocking,
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.station = station = self.station
        m.submodules.usb = core = self.core
        wiring.connect(m, core.bus, station.bus)
        for name in streams(self.role):
            wiring.connect(m, getattr(core, name), getattr(station, name))
        m.d.comb += [
            core.connect.eq(self.connect),
            core.serial.eq(self.serial),
            core.wipe.eq(station.wipe),
            station.serial.eq(self.serial),
            station.cable_wiping.eq(core.wiping),
            station.cable_dirty.eq(core.dirty),
            self.busy.eq(station.busy),
            self.suspended.eq(core.suspended),
            self.configured.eq(core.configured),
            self.high.eq(core.high),
        ]
        return m
