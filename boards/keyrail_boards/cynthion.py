# SPDX-License-Identifier: CERN-OHL-W-2.0
"""Cynthion r1.4 of Great Scott Gadgets: LFE5U-12F, three USB PHYs on ULPI, which the part clocks.

The control PC is on AUX: CONTROL is shared with the board's own microcontroller. Detectors are on
PMOD A, modulators on the mezzanine's pins of the part's right side.
"""

from __future__ import annotations

from typing import Any

from keyrail.contract import BoardCode, Role

from .board import NOT_BUILT, Board, Clocks, Connection, Fit, Stage, UsbKind, UsbPort, ecp5
from .configurations import RECEIVER_SMALL, SENDER_DEEP, SENDER_SMALL

__all__ = ["BOARDS"]

OSCILLATOR_MHZ = 60


def _platform() -> Any:
    """The pins that a station uses; sites by the board's published schematic, revision 1.4."""
    from amaranth.build import Attrs, Clock, Connector, Pins, Resource
    from amaranth.vendor import LatticeECP5Platform
    from amaranth_boards.resources import ULPIResource

    class Cynthion(LatticeECP5Platform):  # type: ignore[misc]
        device = "LFE5U-12F"
        package = "BG256"
        speed = "8"
        default_clk = "clk_60MHz"
        resources = [
            Resource("clk_60MHz", 0, Pins("A8", dir="i"), Clock(60e6), Attrs(IO_TYPE="LVCMOS33")),
            ULPIResource(
                "aux_phy",
                0,
                data="F16 G15 G16 H15 J15 J16 K15 K16",
                clk="D16",
                clk_dir="o",
                dir="E16",
                nxt="F15",
                stp="E15",
                rst="J13",
                rst_invert=True,
                attrs=Attrs(IO_TYPE="LVCMOS33", SLEWRATE="FAST"),
            ),
        ]
        connectors = [
            Connector("pmod", 0, "C9 B9 D11 C12 - - C8 D8 D9 C10 - -"),
            Connector("pmod", 1, "B4 B5 B6 B7 - - C5 A5 A6 A7 - -"),
            Connector(
                "mezzanine",
                0,
                "- - B8 A9 B10 A10 B11 D14 C14 F14 E14 G13 G12 - - - - "
                "C16 C15 B16 B15 A14 B13 A13 D13 A12 B12 A11 - -",
            ),
        ]

    return Cynthion()


def _pmod(number: int, pin: int, *attributes: tuple[str, str]) -> Connection:
    label = f"PMOD {'AB'[number]} pin {pin}"
    return Connection(("pmod", number), str(pin), label, attributes=attributes)


def _mezzanine(pin: int, *attributes: tuple[str, str]) -> Connection:
    return Connection(("mezzanine", 0), str(pin), f"mezzanine pin {pin}", attributes=attributes)


def _clocks(station_mhz: int) -> Clocks:
    if station_mhz == OSCILLATOR_MHZ:
        return Clocks("clk_60MHz", OSCILLATOR_MHZ, (), {"sync": "clk_60MHz", "usb": "clk_60MHz"})
    stage = Stage("clk_60MHz", {"station": station_mhz})
    domains = {"sync": "station", "usb": "clk_60MHz"}
    return Clocks("clk_60MHz", OSCILLATOR_MHZ, (stage,), domains)


_DOWN = ("PULLMODE", "DOWN")
_FITS = {
    (Role.SENDER, "small"): Fit(SENDER_SMALL, 60, why_not=NOT_BUILT),
    (Role.SENDER, "deep"): Fit(SENDER_DEEP, 60, why_not=NOT_BUILT),
    (Role.RECEIVER, "small"): Fit(RECEIVER_SMALL, 100, why_not=NOT_BUILT),
    (Role.RECEIVER, "sampled"): Fit(RECEIVER_SMALL, 100, phases=4, why_not=NOT_BUILT),
}

BOARDS = (
    Board(
        name="cynthion",
        title="Cynthion r1.4",
        code=BoardCode.CYNTHION,
        platform=_platform,
        device=ecp5("LFE5U-12F", "8", "caBGA256"),
        usb=UsbPort(UsbKind.ULPI, "aux_phy", "AUX", clock_to_phy=True),
        clocks=_clocks,
        detectors=tuple(_pmod(0, pin, _DOWN) for pin in (1, 2, 3, 4, 7, 8, 9, 10)),
        modulators=tuple(_mezzanine(pin, ("DRIVE", "8")) for pin in range(8, 14)),
        sync=_pmod(1, 1, _DOWN),
        pps=_pmod(1, 2, _DOWN),
        reference=_pmod(1, 10),
        fits=_FITS,
        packer=("--compress",),
        loader=("openFPGALoader", "--board", "cynthion"),
        notes=("Power comes in by CONTROL or AUX; the board's microcontroller loads the part.",),
    ),
)
