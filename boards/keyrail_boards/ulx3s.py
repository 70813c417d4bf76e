# SPDX-License-Identifier: CERN-OHL-W-2.0
"""ULX3S of Radiona: LFE5U-12F or -85F, a second USB socket (US2) with D+ and D- at the part itself.

Full speed, and the oscillator is 25 MHz, of which no single PLL makes 48 MHz exactly: two do, one
behind the other. Modulators are on pins of the part's right side.
"""

from __future__ import annotations

from typing import Any

from keyrail.contract import BoardCode, Role

from .board import NOT_BUILT, Board, Clocks, Connection, Fit, Stage, UsbKind, UsbPort, ecp5
from .configurations import RECEIVER_SMALL, SENDER_DEEP, SENDER_DEEPEST, SENDER_SMALL

__all__ = ["BOARDS"]

OSCILLATOR_MHZ = 25


def _gpio(pin: str, *attributes: tuple[str, str]) -> Connection:
    return Connection(("gpio", 0), pin, f"GP{pin.removesuffix('+')}", attributes=attributes)


def _clocks(station_mhz: int) -> Clocks:
    first = Stage("clk25", {"between": 60, "station": station_mhz})
    cable = Stage("between", {"usb_48": 48, "usb_12": 12})
    domains = {"sync": "station", "usb": "usb_12", "usb_io": "usb_48"}
    return Clocks("clk25", OSCILLATOR_MHZ, (first, cable), domains)


def _platform(name: str) -> Any:
    from amaranth_boards import ulx3s

    return getattr(ulx3s, name)()


_DOWN = ("PULLMODE", "DOWN")
_SHARED: dict[str, Any] = {
    "usb": UsbPort(UsbKind.FULL_SPEED, "usb", "US2"),
    "clocks": _clocks,
    "detectors": tuple(_gpio(f"{pin}+", _DOWN) for pin in range(20, 28)),
    "modulators": tuple(_gpio(f"{pin}+", ("DRIVE", "8")) for pin in range(14, 20)),
    "sync": _gpio("0+", _DOWN),
    "pps": _gpio("1+", _DOWN),
    "reference": _gpio("12+"),
    "packer": ("--compress",),
    "loader": ("openFPGALoader", "--board", "ulx3s"),
}

_FITS = {
    (Role.SENDER, "small"): Fit(SENDER_SMALL, 60, why_not=NOT_BUILT),
    (Role.SENDER, "deep"): Fit(SENDER_DEEP, 60, why_not=NOT_BUILT),
    (Role.RECEIVER, "small"): Fit(RECEIVER_SMALL, 100, why_not=NOT_BUILT),
    (Role.RECEIVER, "sampled"): Fit(RECEIVER_SMALL, 100, phases=4, why_not=NOT_BUILT),
}

BOARDS = (
    Board(
        name="ulx3s-85f",
        title="ULX3S 85F",
        code=BoardCode.ULX3S_85F,
        platform=lambda: _platform("ULX3S_85F_Platform"),
        device=ecp5("LFE5U-85F", "6", "caBGA381"),
        fits=_FITS | {(Role.SENDER, "deep"): Fit(SENDER_DEEPEST, 60, why_not=NOT_BUILT)},
        **_SHARED,
    ),
    Board(
        name="ulx3s-12f",
        title="ULX3S 12F",
        code=BoardCode.ULX3S_12F,
        platform=lambda: _platform("ULX3S_12F_Platform"),
        device=ecp5("LFE5U-12F", "6", "caBGA381"),
        # Its two PLLs are taken: the station's clock has one phase.
        fits=_FITS
        | {(Role.RECEIVER, "sampled"): Fit(RECEIVER_SMALL, 100, phases=1, why_not=NOT_BUILT)},
        **_SHARED,
    ),
)
