# SPDX-License-Identifier: CERN-OHL-W-2.0
"""What a board is: its part, USB port, connectors, clocks, and the stations that fit it.

Each board has a file of its own, which ends in ``BOARDS``. Pins that a board's platform in
amaranth-boards describes are taken from there; here stands which of them do what.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from enum import Enum
from fractions import Fraction
from typing import Any

from keyrail.contract import BoardCode, Role
from keyrail.errors import SettingError

from .place_and_route import Device
from .pll import PllSettings, settings

__all__ = [
    "NOT_BUILT",
    "TOO_LARGE",
    "Board",
    "Clocks",
    "Connection",
    "Fit",
    "Stage",
    "UsbKind",
    "UsbPort",
    "board_named",
    "boards",
    "ecp5",
    "role_named",
    "sampler_sizes",
    "tdc_sizes",
]

_FILES = ("ecpix5", "orangecrab", "ulx3s", "cynthion")

_PARTS = {
    "12F": ("12k", 24_288, 56),
    "25F": ("25k", 24_288, 56),
    "45F": ("45k", 43_848, 108),
    "85F": ("85k", 83_640, 208),
}
"""nextpnr's name, LUT4 and block RAMs of each size. The 12F is the 25F's die, and nextpnr lets
all of it be used; Lattice sells it as 12,096 LUT4 and 32 block RAMs."""
_FAMILIES = {"LFE5U": "", "LFE5UM": "um-", "LFE5UM5G": "um5g-"}


def ecp5(part: str, speed: str, package: str) -> Device:
    """An ECP5 by part number, speed grade and ball count: ``ecp5("LFE5U-25F", "8", "csfBGA285")``.

    Raises
    ------
    SettingError
        If there is no such part.
    """
    family, _, size = part.partition("-")
    if family not in _FAMILIES or size not in _PARTS:
        raise SettingError("part", part, f"{', '.join(_FAMILIES)} - {', '.join(_PARTS)}")
    option, lut4, bram = _PARTS[size]
    arguments = (
        *(f"--{_FAMILIES[family]}{option}", "--speed", speed),
        *("--package", package.upper()),
    )
    return Device(f"{part}-{speed} {package}", "ecp5", arguments, lut4=lut4, bram=bram)


# Delay of a carry cell in the fastest and the typical corner, ps, by speed grade: the open tools'
# own figures, as their back-annotation gives them; those of the 5G family are faster.
_CELL_PS = {"6": (62, 66), "8": (50, 53), "8 5G": (39, 41)}
LINE_SPARE_PS = 1_200
"""A line is longer than a clock by this, in the fastest corner."""


def _whole_ps(clock_mhz: int) -> int:
    """Period that the time-to-digital converter stamps by, ps."""
    if 1_000_000 % clock_mhz:
        raise SettingError("clock", f"{clock_mhz} MHz", "for the converter, a period of whole ps")
    return 1_000_000 // clock_mhz


def tdc_sizes(device: Device, clock_mhz: int) -> dict[str, int]:
    """Parameters of `Configuration` for delay lines that are longer than a clock on that part.

    Raises
    ------
    SettingError
        If the period is no whole number of ps.
    """
    clock_ps = _whole_ps(clock_mhz)
    grade = device.name.rpartition("-")[2].partition(" ")[0]
    fast, typical = _CELL_PS[f"{grade} 5G" if "5G" in device.name else grade]
    cells = -(-(clock_ps + LINE_SPARE_PS) // fast)
    return {"tdc_cells": cells, "tdc_cell_ps": typical, "clock_ps": clock_ps}


def sampler_sizes(phases: int, clock_mhz: int) -> dict[str, int]:
    """Parameters of `Configuration` for inputs that both edges of several phases sample.

    Raises
    ------
    SettingError
        If the period is no whole number of ps.
    """
    clock_ps = _whole_ps(clock_mhz)
    return {
        "tdc_lines": 1,
        "tdc_cells": phases,
        "tdc_cell_ps": clock_ps // phases,
        "clock_ps": clock_ps,
    }


class UsbKind(Enum):
    """What leads from a board's part to the cable."""

    ULPI = "high speed through ULPI"
    FULL_SPEED = "full speed through D+ and D-"


@dataclass(frozen=True)
class UsbPort:
    """The port of a board that the control PC is plugged into.

    Parameters
    ----------
    kind
        How it is driven.
    resource
        Its name in the platform.
    socket
        What is printed at the socket, or where it is.
    clock_to_phy
        The part clocks the PHY (ULPI's input clock mode); else the PHY clocks the part.
    """

    kind: UsbKind
    resource: str
    socket: str
    clock_to_phy: bool = False


@dataclass(frozen=True)
class Connection:
    """One pin of a connector.

    Parameters
    ----------
    connector
        Name and number of the connector in the platform.
    pin
        Its pin there.
    label
        What is printed beside it.
    io_type
        I/O standard, as the part's tools name it.
    attributes
        Further attributes of the pin, such as its pull.
    """

    connector: tuple[str, int]
    pin: str
    label: str
    io_type: str = "LVCMOS33"
    attributes: tuple[tuple[str, str], ...] = ()

    def resource(self, name: str, number: int, direction: str, mhz: float | None = None) -> Any:
        """The pin as a resource of the platform.

        Parameters
        ----------
        name, number
            Of the resource.
        direction
            ``i`` or ``o``.
        mhz
            Frequency, where a clock comes in here.
        """
        from amaranth.build import Attrs, Clock, Pins, Resource

        return Resource(
            name,
            number,
            Pins(self.pin, dir=direction, conn=self.connector, assert_width=1),
            Attrs(IO_TYPE=self.io_type, **dict(self.attributes)),
            *([] if mhz is None else [Clock(mhz * 1e6)]),
        )


@dataclass(frozen=True)
class Stage:
    """One PLL of a board.

    Parameters
    ----------
    source
        Clock that it takes: a name of `Clocks.outputs` of an earlier stage, or the oscillator.
    outputs
        Frequencies by the names of the clocks that come of it, MHz.
    tolerance_ppm
        Largest error allowed.
    phases
        Share of its period by which an output is late, where it is.
    """

    source: str
    outputs: dict[str, Fraction | int]
    tolerance_ppm: int = 0
    phases: dict[str, Fraction] = field(default_factory=dict)


@dataclass(frozen=True)
class Clocks:
    """How a board makes its clocks.

    Parameters
    ----------
    oscillator
        Resource of the oscillator in the platform, which also names its clock.
    mhz
        Its frequency.
    stages
        PLLs, one behind the other.
    domains
        Clock of each domain, by its name: ``sync`` is the station's; ``usb`` and, for full speed,
        ``usb_io`` are the cable's, unless the PHY gives it.
    reference_mhz
        Frequency of an outside clock at the input ``reference``, whose name it has then.
    """

    oscillator: str
    mhz: Fraction | int
    stages: tuple[Stage, ...]
    domains: dict[str, str]
    reference_mhz: Fraction | int | None = None

    def by_reference(self, mhz: Fraction | int, station_mhz: int) -> Clocks:
        """The same with the station's clock from the reference: itself, or by a PLL.

        The cable keeps the board's oscillator.

        Parameters
        ----------
        mhz
            Frequency of the reference.
        station_mhz
            Frequency of the station.
        """
        domains = self.domains | {"sync": "reference" if mhz == station_mhz else "by_reference"}
        made = [] if mhz == station_mhz else [Stage("reference", {"by_reference": station_mhz})]
        return replace(self, reference_mhz=mhz)._with(domains, made)

    def in_phases(self, count: int) -> Clocks:
        """The same with the station's clock in several phases, all of one PLL.

        Domain ``phase_n`` is late by n / (2 `count`) of a period, so that both edges of all of them
        divide it evenly.

        Parameters
        ----------
        count
            Phases: 1, 2 or 4. 1: nothing is added.

        Raises
        ------
        SettingError
            For another count.
        """
        if count not in PHASES:
            raise SettingError("phases", count, ", ".join(map(str, PHASES)))
        if count == 1:
            return self
        clock, mhz = self.domains["sync"], self.frequencies()["sync"]
        source = next((one.source for one in self.stages if clock in one.outputs), clock)
        late = {f"phase_{n}": Fraction(n, 2 * count) for n in range(count)}
        made = Stage(source, dict.fromkeys(late, mhz), phases=late)
        others = {name: name for name in late if late[name]}
        return self._with(self.domains | {"sync": "phase_0"} | others, [made])

    def _with(self, domains: dict[str, str], made: list[Stage]) -> Clocks:
        """Other domains, and stages that are added; outputs that nothing takes are left out."""
        stages: list[Stage] = list(made)
        for stage in reversed(self.stages):
            used = {*domains.values(), *(later.source for later in stages)}
            outputs = {name: f for name, f in stage.outputs.items() if name in used}
            if outputs:
                stages.insert(0, replace(stage, outputs=outputs))
        return replace(self, stages=tuple(stages), domains=domains)

    @property
    def sources(self) -> dict[str, Fraction]:
        """Frequencies that come from outside of the part, by the resource's name, MHz.

        The oscillator only where it is used.
        """
        found = {self.oscillator: Fraction(self.mhz)}
        if self.reference_mhz is not None:
            found["reference"] = Fraction(self.reference_mhz)
        used = {*self.domains.values(), *(stage.source for stage in self.stages)}
        return {name: mhz for name, mhz in found.items() if name in used}

    def _stages(self) -> tuple[list[PllSettings], dict[str, Fraction]]:
        known = dict(self.sources)
        found = []
        for stage in self.stages:
            chosen = settings(
                known[stage.source], list(stage.outputs.values()), stage.tolerance_ppm
            )
            made = chosen.by_index()
            known |= {name: made[index].mhz for index, name in enumerate(stage.outputs)}
            found.append(chosen)
        return found, known

    def settings(self) -> list[PllSettings]:
        """Settings of each stage.

        Raises
        ------
        NoPll
            If one cannot be had.
        """
        return self._stages()[0]

    def frequencies(self) -> dict[str, Fraction]:
        """Frequency of each domain, MHz, as the PLLs make it."""
        known = self._stages()[1]
        return {domain: known[clock] for domain, clock in self.domains.items()}


PHASES = (1, 2, 4)
"""Phases of the station's clock that may sample the inputs: one PLL has four outputs."""
NOT_BUILT = "not built yet"
TOO_LARGE = "mapped it has more LUT4 and flip-flops than the part"
"""Why a `Fit` does not claim to."""


@dataclass(frozen=True)
class Fit:
    """A station on a board.

    Parameters
    ----------
    sizes
        Parameters of `keyrail_gateware.station.Configuration`.
    clock_mhz
        Frequency of the station's clock.
    claims
        Whether it is said to fit and to close timing; ``make bitstreams`` builds those that are.
    seed
        nextpnr's seed.
    phases
        Both edges of so many phases of the station's clock sample the inputs of a receiver (1, 2
        or 4), for pins without a placed line. 0: they have delay lines, if any.
    why_not
        Where it is not claimed: what is wrong.
    """

    sizes: dict[str, int]
    clock_mhz: int
    claims: bool = False
    seed: int = 1
    phases: int = 0
    why_not: str = ""


@dataclass(frozen=True)
class Board:
    """A board.

    Parameters
    ----------
    name
        As on the command line.
    title
        As its makers call it.
    code
        As the register ``board`` says it.
    platform
        Makes the Amaranth platform.
    device
        Its part.
    usb
        Port to the control PC.
    clocks
        Makes the clocks for a frequency of the station's.
    detectors
        Inputs of the receiver, channel 0 first.
    modulators
        Outputs of the sender, 0 first.
    sync, pps
        Inputs of the time tagger for the source's sync and a pulse per second.
    reference
        Input for an outside clock.
    fits
        Stations by role and name of the configuration; the first of a role is the default.
    button
        Resource of a button that resets the station, if there is one.
    oscillator_divider
        Divider of the free-running oscillator on the chip (OSCG, some 310 MHz), which calibrates
        the time tagger.
    packer
        Further options of the packer.
    loader
        Command that loads a bitstream, without the file; its first word is the tool.
    notes
        What a user must know besides, a sentence each.
    """

    name: str
    title: str
    code: BoardCode
    platform: Callable[[], Any]
    device: Device
    usb: UsbPort
    clocks: Callable[[int], Clocks]
    detectors: tuple[Connection, ...]
    modulators: tuple[Connection, ...]
    sync: Connection
    pps: Connection
    reference: Connection
    fits: dict[tuple[Role, str], Fit]
    button: str | None = None
    oscillator_divider: int = 16
    packer: tuple[str, ...] = ()
    loader: tuple[str, ...] = ("openFPGALoader",)
    notes: tuple[str, ...] = ()

    def connections(self) -> Iterator[tuple[str, int, Connection]]:
        """Name, number and pin of everything on the connectors."""
        for number, detector in enumerate(self.detectors):
            yield "detector", number, detector
        for number, modulator in enumerate(self.modulators):
            yield "modulator", number, modulator
        yield "sync", 0, self.sync
        yield "pps", 0, self.pps
        yield "reference", 0, self.reference

    def resources(self, reference_mhz: Fraction | int | None = None) -> list[Any]:
        """`connections` as resources of the platform.

        Parameters
        ----------
        reference_mhz
            Frequency of the reference, where the station is clocked by it.
        """
        return [
            one.resource(
                name,
                number,
                "o" if name == "modulator" else "i",
                float(reference_mhz) if name == "reference" and reference_mhz else None,
            )
            for name, number, one in self.connections()
        ]

    def fit(self, role: Role, configuration: str | None = None) -> Fit:
        """The station of that role and configuration; the default one without.

        Raises
        ------
        SettingError
            If the board has none.
        """
        names = [name for kind, name in self.fits if kind is role]
        if configuration is None and names:
            configuration = names[0]
        if configuration not in names:
            allowed = ", ".join(names) or f"none for the {role.name.lower()}"
            raise SettingError("--configuration", configuration, allowed)
        return self.fits[role, configuration]


def boards() -> dict[str, Board]:
    """All boards by name."""
    found: dict[str, Board] = {}
    for file in _FILES:
        module = importlib.import_module(f".{file}", __package__)
        found |= {board.name: board for board in module.BOARDS}
    return found


def board_named(name: str) -> Board:
    """The board of that name, whatever its case.

    Raises
    ------
    SettingError
        If there is none.
    """
    known = boards()
    if name.lower() not in known:
        raise SettingError("BOARD", name, ", ".join(known))
    return known[name.lower()]


def role_named(name: str) -> Role:
    """The role of that name.

    Raises
    ------
    SettingError
        If there is none.
    """
    for role in Role:
        if role.name.lower() == name.lower():
            return role
    raise SettingError("ROLE", name, ", ".join(role.name.lower() for role in Role))
