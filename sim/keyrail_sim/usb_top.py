# SPDX-License-Identifier: Apache-2.0
"""Devices for the bus model: a station or a traffic generator behind flat ULPI ports."""

from types import SimpleNamespace
from typing import Any

from amaranth.hdl import ClockDomain, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from keyrail.contract import Direction, Role, endpoints, streams
from keyrail_gateware.station import Configuration
from keyrail_gateware.usb import UsbCore, UsbStation, station_identity

STEP = 0x9E37_79B9_7F4A_7C15
"""Difference between the payloads of two records in a row, modulo their width."""
WIPE, STATUS = 0xF000, 0xF001
CONFIGURATION = Configuration(block_memory_log2=13, horizon_log2=14, choices_log2=14)
"""Of stations on the simulated bus: their memories are small, so that a wipe takes 0.2 ms."""


class _Ulpi(wiring.Component):  # type: ignore[misc]
    """Flat ports of a ULPI PHY, and the clock that it gives."""

    def __init__(self, role: Role) -> None:
        super().__init__(
            {
                "ulpi_data_i": In(8),
                "ulpi_data_o": Out(8),
                "ulpi_dir": In(1),
                "ulpi_nxt": In(1),
                "ulpi_stp": Out(1),
                "usb_clk": In(1),
                "usb_rst": In(1),
            }
        )
        self._role = role

    def _pins(self) -> Any:
        return SimpleNamespace(
            data=SimpleNamespace(i=self.ulpi_data_i, o=self.ulpi_data_o, oe=Signal()),
            dir=SimpleNamespace(i=self.ulpi_dir),
            nxt=SimpleNamespace(i=self.ulpi_nxt),
            stp=SimpleNamespace(o=self.ulpi_stp),
        )

    def _domain(self, m: Any) -> None:
        m.domains.usb = domain = ClockDomain()
        m.d.comb += [domain.clk.eq(self.usb_clk), domain.rst.eq(self.usb_rst)]


class StationTop(_Ulpi):
    """A station of `role` with its USB core, ULPI at the pins."""

    def elaborate(self, platform: object) -> Any:
        m = Module()
        self._domain(m)
        m.submodules.usb_station = UsbStation(
            self._role, self._pins(), CONFIGURATION, handle_clocking=False
        )
        return m


class TrafficTop(_Ulpi):
    """The USB core with the streams of `role`, each with a source or a checking sink behind it.

    Record k of a stream is k x `STEP` modulo its width. Registers, at 16 times the stream's place
    among those it has, in the contract's order: +0 records that a source may send; +1 share of
    clocks in which a record is offered or taken, of 65535; +2 records that passed; +3 records that
    were wrong. Writing `WIPE` wipes the buffers and starts the numbers anew; `STATUS` reads bit 0
    wiping, bit 1 dirty.

    Parameters
    ----------
    role
        Whose streams.
    names
        Streams to have; all if empty.
    """

    def __init__(self, role: Role, names: tuple[str, ...] = ()) -> None:
        super().__init__(role)
        self._names = names

    def elaborate(self, platform: object) -> Any:
        m = Module()
        self._domain(m)
        addresses = endpoints(self._role)
        described = {
            name: stream
            for name, stream in streams(self._role).items()
            if not self._names or name in self._names
        }
        core = UsbCore(
            self._pins(),
            station_identity(self._role),
            {name: (stream, addresses[name]) for name, stream in described.items()},
            handle_clocking=False,
        )
        m.submodules.usb = core
        bus = core.bus
        wiping = Signal()
        m.d.sync += core.wipe.eq(bus.write & (bus.address == WIPE))
        m.d.comb += core.serial.eq(0x0123_4567_89AB_CDEF)
        m.d.comb += wiping.eq(core.wipe | core.wiping)
        with m.If(bus.read):
            m.d.sync += bus.value.eq(0)
            with m.If(bus.address == STATUS):
                m.d.sync += bus.value.eq(core.wiping | core.dirty << 1)
        for place, (name, stream) in enumerate(described.items()):
            port = getattr(core, name)
            limit, share = Signal(32), Signal(16, init=0xFFFF)
            passed, wrong = Signal(32), Signal(32)
            value = Signal(stream.record.bits)
            dice = Signal(16, init=0xACE1 + place)
            m.d.sync += dice.eq(dice[1:] ^ (0xB400 * dice[0])[:16])
            luck = Signal()
            m.d.comb += luck.eq(dice <= share)
            moved = port.valid & port.ready
            if stream.direction is Direction.TO_HOST:
                offered = Signal()
                m.d.comb += [port.valid.eq(offered), port.payload.eq(value)]
                # What is offered stays until it is taken.
                m.d.sync += offered.eq((offered & ~moved) | (luck & (passed + moved < limit)))
            else:
                m.d.comb += port.ready.eq(luck)
                with m.If(moved & (port.payload != value)):
                    m.d.sync += wrong.eq(wrong + 1)
            with m.If(moved):
                m.d.sync += [
                    passed.eq(passed + 1),
                    value.eq(value + STEP % (1 << stream.record.bits)),
                ]
            with m.If(bus.write & (bus.address == 16 * place)):
                m.d.sync += limit.eq(bus.data)
            with m.If(bus.write & (bus.address == 16 * place + 1)):
                m.d.sync += share.eq(bus.data)
            with m.If(bus.read):
                for at, what in enumerate((limit, share, passed, wrong)):
                    with m.If(bus.address == 16 * place + at):
                        m.d.sync += bus.value.eq(what)
            with m.If(core.wipe):
                m.d.sync += [passed.eq(0), wrong.eq(0), value.eq(0), limit.eq(0)]
                if stream.direction is Direction.TO_HOST:
                    m.d.sync += offered.eq(0)
        return m
