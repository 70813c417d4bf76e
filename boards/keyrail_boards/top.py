# SPDX-License-Identifier: CERN-OHL-W-2.0
"""A whole station on a board: its clocks, the pins that its role uses, and the station on USB."""

from __future__ import annotations

import warnings
from fractions import Fraction
from typing import Any

from amaranth.hdl import ClockDomain, Elaboratable, Module, Signal

from keyrail.contract import Role
from keyrail_gateware.station import Configuration
from keyrail_gateware.tdc import CarryLines, DirectLaunch, Oscillator, PhaseSampler

from .board import Board, Fit, UsbKind, sampler_sizes, tdc_sizes
from .providers import Clocking, DelayedOutput, FullSpeedPins, InputPin, UlpiPins

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    from keyrail_gateware.usb import FULL_SPEED_CLOCK, ULPI_CLOCK, UsbStation

__all__ = ["StationTop"]

MODULATOR_SAMPLES = 2
"""Samples a clock of `DelayedOutput`."""


class StationTop(Elaboratable):  # type: ignore[misc]
    """What a bitstream is made of.

    Parameters
    ----------
    board
        Board it is for.
    role
        Role of the station.
    fit
        Sizes and clock.
    serial
        Serial number that the station says, 64 bits.
    reference_mhz
        Frequency of a reference that the station is clocked by; the board's oscillator if absent.

    Attributes
    ----------
    configuration
        Sizes of the station.
    targets
        Frequency in MHz that each clock must reach, by the name of its net.

    Raises
    ------
    ValueError
        If the sizes are not the board's: more detector channels than inputs, or more samples a
        clock than its modulator pins take.
    KeyrailError
        If a clock cannot be had.
    """

    def __init__(
        self,
        board: Board,
        role: Role,
        fit: Fit,
        serial: int = 0,
        reference_mhz: Fraction | int | None = None,
    ) -> None:
        self._board, self._role, self._fit, self._serial = board, role, fit, serial
        self._clocks = board.clocks(fit.clock_mhz)
        if reference_mhz is not None:
            self._clocks = self._clocks.by_reference(reference_mhz, fit.clock_mhz)
        sizes = dict(fit.sizes)
        if fit.phases:
            self._clocks = self._clocks.in_phases(fit.phases)
            sizes |= sampler_sizes(fit.phases, fit.clock_mhz)
        elif sizes.get("tdc_lines"):
            sizes |= tdc_sizes(board.device, fit.clock_mhz)
        self.configuration = Configuration(board=board.code, **sizes)
        if self.configuration.channels > len(board.detectors) and role is Role.RECEIVER:
            raise ValueError(f"{board.title} has {len(board.detectors)} detector inputs")
        if role is Role.SENDER and self.configuration.gear > MODULATOR_SAMPLES:
            raise ValueError(
                f"gear {self.configuration.gear}: the pins take {MODULATOR_SAMPLES} samples a clock"
            )
        frequencies = self._clocks.frequencies()
        self.targets = {f"clk_{name}": float(mhz) for name, mhz in frequencies.items()}
        if board.usb.kind is UsbKind.ULPI:
            self.targets["clk_usb"] = float(ULPI_CLOCK)
        self._sync_mhz = float(frequencies["sync"])

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        board, port = self._board, self._board.usb
        platform.add_resources(board.resources(self._clocks.reference_mhz))
        button = platform.request(board.button, dir="-") if board.button else None
        sources = {name: platform.request(name, dir="-") for name in self._clocks.sources}
        m.submodules.clocking = clocking = Clocking(self._clocks, sources, button)
        named = dict(clocking.signals)
        pins: Any
        if port.kind is UsbKind.ULPI:
            m.submodules.pins = pins = UlpiPins(
                platform.request(port.resource, dir="-"), self._sync_mhz, port.clock_to_phy
            )
            if not port.clock_to_phy:
                named["usb"] = pins.clock
            bus, clock = pins.ulpi, ULPI_CLOCK
        else:
            m.submodules.pins = pins = FullSpeedPins(platform.request(port.resource, dir="-"))
            bus, clock = pins.bus, FULL_SPEED_CLOCK
        for name, signal in named.items():
            platform.add_clock_constraint(signal, self.targets[f"clk_{name}"] * 1e6)
        m.submodules.usb_station = station = UsbStation(
            self._role,
            bus,
            self.configuration,
            high_speed=port.kind is UsbKind.ULPI,
            clock=clock,
            handle_clocking=False,
        )
        m.d.comb += [station.connect.eq(1), station.serial.eq(self._serial)]
        if self._role is Role.SENDER:
            self._modulators(m, platform, station.station)
        elif self.configuration.tdc_lines:
            self._inputs(m, platform, station.station)
        return m

    def _inputs(self, m: Module, platform: Any, receiver: Any) -> None:
        """Detectors, then sync and pulse per second, each through lines or samplers of its own."""
        sizes = self.configuration
        m.submodules.oscillator = oscillator = Oscillator(self._board.oscillator_divider)
        m.domains.oscillator = calibration = ClockDomain(reset_less=True)
        m.d.comb += calibration.clk.eq(oscillator.oscillator)
        names = [("detector", n) for n in range(sizes.channels)] + [("sync", 0), ("pps", 0)]
        for number, (name, index) in enumerate(names[: sizes.inputs]):
            m.submodules[f"pin_{number}"] = pin = InputPin(platform.request(name, index, dir="-"))
            m.submodules[f"start_{number}"] = start = DirectLaunch()
            lines: Any
            if self._fit.phases:
                later = (f"phase_{n}" for n in range(1, self._fit.phases))
                lines = PhaseSampler(("sync", *later))
            else:
                lines = CarryLines(sizes.tdc_lines, sizes.tdc_cells)
            m.submodules[f"lines_{number}"] = lines
            # What switches the line is no level to be stamped: from a flip-flop of another clock,
            # its way along the line is no path that the station's clock has to wait for. A period
            # of the oscillator is well within the time that the converter lets pass.
            chosen = Signal(name=f"source_{number}")
            m.d.oscillator += chosen.eq(receiver.sources[number])
            m.d.comb += [
                start.pin.eq(pin.level),
                start.oscillator.eq(oscillator.oscillator),
                start.source.eq(chosen),
                lines.launch.eq(start.launch),
                getattr(receiver, f"taps_{number}").eq(lines.taps),
            ]

    def _modulators(self, m: Module, platform: Any, sender: Any) -> None:
        gear = self.configuration.gear
        for number in range(self.configuration.modulators):
            output = DelayedOutput(platform.request("modulator", number, dir="-"))
            m.submodules[f"modulator_{number}"] = output
            samples = sender.modulators.word_select(number, gear)
            m.d.comb += [
                output.samples.eq(samples.replicate(MODULATOR_SAMPLES // gear)),
                output.delay.eq(sender.fine_delays.word_select(number, 7)),
            ]
