# SPDX-License-Identifier: CERN-OHL-W-2.0
"""Providers: what stands between the pins of a board and the blocks, which never see a platform.

A class for each kind of pin. They take ports as ``platform.request(..., dir="-")`` gives them, and
use the primitives of the ECP5.
"""

import warnings
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

from amaranth.hdl import (
    Cat,
    ClockDomain,
    ClockSignal,
    Const,
    Elaboratable,
    Instance,
    Module,
    ResetSignal,
    Signal,
)
from amaranth.lib import io, wiring
from amaranth.lib.cdc import ResetSynchronizer
from amaranth.lib.wiring import In, Out

from .board import Clocks
from .pll import pll

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    from luna.gateware.architecture.car import PHYResetController

__all__ = [
    "Clocking",
    "DelaySteps",
    "DelayedOutput",
    "FullSpeedPins",
    "InputPin",
    "UlpiPins",
    "clock_signal",
]


def clock_signal(domain: str) -> Signal:
    """Signal for the clock of a domain, whose name lasts through the tools."""
    return Signal(name=f"clk_{domain}", attrs={"keep": 1})


class Clocking(Elaboratable):  # type: ignore[misc]
    """Makes the domains of a board from its oscillator, or from a reference.

    Each domain is held in reset until every PLL has locked and the button is up, and leaves it in
    step with its clock.

    Parameters
    ----------
    clocks
        What to make.
    sources
        Ports of `Clocks.sources`, by their names.
    button
        Port of the reset button, if there is one.

    Attributes
    ----------
    signals
        Clock of each domain by its name, for constraints.
    locked
        1 once every PLL has locked.
    """

    def __init__(self, clocks: Clocks, sources: dict[str, Any], button: Any | None = None) -> None:
        self._clocks, self._sources, self._button = clocks, sources, button
        self.signals = {name: clock_signal(name) for name in clocks.domains}
        self.locked = Signal()

    def elaborate(self, platform: object) -> Module:
        m = Module()
        known: dict[str, Any] = {}
        for name, port in self._sources.items():
            m.submodules[f"source_{name}"] = buffer = io.Buffer("i", port)
            known[name] = buffer.i
        locks = []
        stages = zip(self._clocks.stages, self._clocks.settings(), strict=True)
        for number, (stage, chosen) in enumerate(stages):
            names = list(stage.outputs)
            made, late = [], []
            for output in chosen.outputs:
                made_name = "feedback" if output.index is None else names[output.index]
                signal = Signal(name=f"pll_{number}_{made_name}")
                made.append(signal)
                late.append(stage.phases.get(made_name, Fraction(0)))
                if output.index is not None:
                    known[made_name] = signal
            locked = Signal(name=f"locked_{number}")
            locks.append(locked)
            m.submodules[f"pll_{number}"] = pll(chosen, known[stage.source], made, locked, late)
        m.d.comb += self.locked.eq(Cat(*locks).all() if locks else 1)
        hold = Signal()
        m.d.comb += hold.eq(~self.locked)
        if self._button is not None:
            m.submodules.button = pressed = io.Buffer("i", self._button)
            m.d.comb += hold.eq(~self.locked | pressed.i)
        for domain, clock in self._clocks.domains.items():
            m.domains += ClockDomain(domain)
            m.d.comb += [
                self.signals[domain].eq(known[clock]),
                ClockSignal(domain).eq(self.signals[domain]),
            ]
            m.submodules[f"reset_{domain}"] = ResetSynchronizer(hold, domain=domain)
        return m


class UlpiPins(Elaboratable):  # type: ignore[misc]
    """The pins of a ULPI PHY, as LUNA takes them (`ulpi`).

    Makes the domain ``usb`` from the PHY's clock unless the part clocks the PHY. The PHY is held in
    reset for 2 us after that of ``sync`` has ended: its own clock may stand meanwhile.

    Parameters
    ----------
    port
        ULPI pins.
    sync_mhz
        Frequency of ``sync``.
    clock_to_phy
        ``usb`` is there already, and goes to the PHY.

    Attributes
    ----------
    ulpi
        Pins with ``data``, ``clk``, ``dir``, ``nxt``, ``stp`` and ``rst``.
    clock
        The clock from the PHY, for constraints.
    """

    def __init__(self, port: Any, sync_mhz: float, clock_to_phy: bool = False) -> None:
        self._port, self._sync_mhz, self._clock_to_phy = port, sync_mhz, clock_to_phy
        self.clock = clock_signal("usb")
        self.ulpi = SimpleNamespace(
            data=SimpleNamespace(
                i=Signal(8, name="ulpi_data_i"),
                o=Signal(8, name="ulpi_data_o"),
                oe=Signal(name="ulpi_data_oe"),
            ),
            clk=SimpleNamespace(),
            dir=SimpleNamespace(i=Signal(name="ulpi_dir")),
            nxt=SimpleNamespace(i=Signal(name="ulpi_nxt")),
            stp=SimpleNamespace(o=Signal(name="ulpi_stp")),
            # LUNA waits for the PHY to start after the reset of its domain; the pin is ours.
            rst=SimpleNamespace(o=Signal(name="ulpi_rst")),
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        port, bus = self._port, self.ulpi
        m.submodules.data = data = io.Buffer("io", port.data)
        m.submodules.dir = direction = io.Buffer("i", port.dir)
        m.submodules.nxt = following = io.Buffer("i", port.nxt)
        m.submodules.stp = stop = io.Buffer("o", port.stp)
        m.submodules.rst = reset = io.Buffer("o", port.rst)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            controller = PHYResetController(clock_frequency=self._sync_mhz * 1e6)
        m.submodules.controller = controller
        m.d.comb += [
            bus.data.i.eq(data.i),
            data.o.eq(bus.data.o),
            data.oe.eq(bus.data.oe),
            bus.dir.i.eq(direction.i),
            bus.nxt.i.eq(following.i),
            stop.o.eq(bus.stp.o),
            reset.o.eq(controller.phy_reset | ResetSignal("sync")),
        ]
        if self._clock_to_phy:
            m.submodules.clk = clock_out = io.Buffer("o", port.clk)
            m.d.comb += clock_out.o.eq(ClockSignal("usb"))
            return m
        m.submodules.clk = clock_in = io.Buffer("i", port.clk)
        m.domains.usb = ClockDomain()
        m.d.comb += [self.clock.eq(clock_in.i), ClockSignal("usb").eq(self.clock)]
        # Held while the PHY is, and until its clock runs.
        m.submodules.reset_usb = ResetSynchronizer(
            controller.phy_reset | ResetSignal("sync"), domain="usb"
        )
        return m


class FullSpeedPins(Elaboratable):  # type: ignore[misc]
    """D+, D- and the pull-up of a full-speed port, as LUNA's PHY in gateware takes them (`bus`).

    Parameters
    ----------
    port
        ``d_p``, ``d_n`` and ``pullup``.

    Attributes
    ----------
    bus
        The same, each with ``i``, ``o`` and ``oe``.
    """

    def __init__(self, port: Any) -> None:
        self._port = port
        self.bus = SimpleNamespace(
            d_p=SimpleNamespace(
                i=Signal(name="dp_i"), o=Signal(name="dp"), oe=Signal(name="dp_oe")
            ),
            d_n=SimpleNamespace(
                i=Signal(name="dn_i"), o=Signal(name="dn"), oe=Signal(name="dn_oe")
            ),
            pullup=SimpleNamespace(o=Signal(name="pullup")),
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        for name in ("d_p", "d_n"):
            m.submodules[name] = buffer = io.Buffer("io", getattr(self._port, name))
            pin = getattr(self.bus, name)
            m.d.comb += [pin.i.eq(buffer.i), buffer.o.eq(pin.o), buffer.oe.eq(pin.oe)]
        m.submodules.pullup = pullup = io.Buffer("o", self._port.pullup)
        m.d.comb += pullup.o.eq(self.bus.pullup.o)
        return m


class InputPin(wiring.Component):  # type: ignore[misc]
    """Level of a pin, asynchronous, straight from its buffer: for the time tagger's lines.

    Parameters
    ----------
    port
        A pin.

    Members
    -------
    level
        What stands there.
    """

    def __init__(self, port: Any) -> None:
        self._port = port
        super().__init__({"level": Out(1)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.buffer = buffer = io.Buffer("i", self._port)
        m.d.comb += self.level.eq(buffer.i)
        return m


class DelaySteps(wiring.Component):  # type: ignore[misc]
    """Moves a delay element (DELAYF) to a setting, one step at a time.

    A step takes 4 clocks: MOVE rises, falls (that is the step), and is counted.

    Members
    -------
    delay
        Steps wanted, 7 bits.
    moving
        1 while the element is not there.
    loadn, move, direction
        To the element: 0 brings it to 0 steps; a falling edge is a step; 1 for a step down.
    """

    def __init__(self) -> None:
        super().__init__(
            {
                "delay": In(7),
                "moving": Out(1),
                "loadn": Out(1),
                "move": Out(1),
                "direction": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        at, phase = Signal(7), Signal(2)
        m.d.comb += self.moving.eq((at != self.delay) | (phase != 0) | ~self.loadn)
        m.d.sync += self.loadn.eq(1)
        with m.Switch(phase):
            with m.Case(0), m.If(self.loadn & (at != self.delay)):
                m.d.sync += [self.direction.eq(at > self.delay), phase.eq(1)]
            with m.Case(1):
                m.d.sync += [self.move.eq(1), phase.eq(2)]
            with m.Case(2):
                m.d.sync += [self.move.eq(0), phase.eq(3)]
            with m.Case(3):
                # A step that was begun is counted in its direction, whatever is wanted by now.
                with m.If(self.direction):
                    m.d.sync += at.eq(at - 1)
                with m.Else():
                    m.d.sync += at.eq(at + 1)
                m.d.sync += phase.eq(0)
        return m


class DelayedOutput(wiring.Component):  # type: ignore[misc]
    """A modulator's output: two samples a clock, and the pin's own delay in steps of 25 ps.

    The samples leave by the pin's double data rate register (ODDRX1F), the delay is that of its
    delay element (DELAYF), 0 to 127 steps (Lattice FPGA-DS-02012, "DELAYF, DELAYG"). Pins of the
    part's upper side have none.

    Latency: 2 clocks and the pin. Throughput: 2 samples a clock. A new delay is there after at most
    128 x 4 clocks.

    Parameters
    ----------
    port
        A pin.

    Members
    -------
    samples
        Of this clock, the first in bit 0.
    delay
        Steps, 7 bits.
    moving
        1 while the element is not at `delay` yet.
    """

    def __init__(self, port: Any) -> None:
        self._port = port
        super().__init__({"samples": In(2), "delay": In(7), "moving": Out(1)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        samples, q, delayed = Signal(2), Signal(), Signal()
        m.submodules.steps = steps = DelaySteps()
        m.d.comb += [
            samples.eq(self.samples ^ Const(3 if self._port.invert[0] else 0, 2)),
            steps.delay.eq(self.delay),
            self.moving.eq(steps.moving),
        ]
        m.submodules.register = Instance(
            "ODDRX1F",
            i_SCLK=ClockSignal(),
            i_RST=Const(0, 1),
            i_D0=samples[0],
            i_D1=samples[1],
            o_Q=q,
        )
        m.submodules.element = Instance(
            "DELAYF",
            p_DEL_MODE="USER_DEFINED",
            p_DEL_VALUE=0,
            i_A=q,
            i_LOADN=steps.loadn,
            i_MOVE=steps.move,
            i_DIRECTION=steps.direction,
            o_Z=delayed,
        )
        m.submodules.buffer = Instance("OB", i_I=delayed, o_O=self._port.io)
        return m
