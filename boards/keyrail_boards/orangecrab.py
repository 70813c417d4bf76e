# SPDX-License-Identifier: CERN-OHL-W-2.0
"""OrangeCrab r0.2 of Greg Davill: LFE5U-25F or -85F, USB D+ and D- at the part itself.

So the station is at full speed: 12 Mb/s for everything. Modulators and reference are on the pins of
the part's right side; detectors on those of its upper side, four of them.
"""

from __future__ import annotations

from typing import Any

from keyrail.contract import BoardCode, Role

from .board import (
    NOT_BUILT,
    TOO_LARGE,
    Board,
    Clocks,
    Connection,
    Fit,
    Stage,
    UsbKind,
    UsbPort,
    ecp5,
)
from .configurations import RECEIVER_SMALL, SENDER_DEEP, SENDER_DEEPEST, SENDER_SMALL

__all__ = ["BOARDS"]

OSCILLATOR_MHZ = 48


def _io(pin: str, *attributes: tuple[str, str]) -> Connection:
    return Connection(("io", 0), pin, f"IO {pin.upper()}", attributes=attributes)


def _clocks(station_mhz: int) -> Clocks:
    """A PLL for the cable, whose 48 and 12 MHz rise together, and another one for the station."""
    cable = Stage("clk", {"usb_48": 48, "usb_12": 12})
    station = Stage("clk", {"station": station_mhz})
    domains = {"sync": "station", "usb": "usb_12", "usb_io": "usb_48"}
    return Clocks("clk", OSCILLATOR_MHZ, (cable, station), domains)


def _platform(name: str) -> Any:
    from amaranth_boards import orangecrab_r0_2

    return getattr(orangecrab_r0_2, name)()


_DOWN = ("PULLMODE", "DOWN")
_SHARED: dict[str, Any] = {
    "usb": UsbPort(UsbKind.FULL_SPEED, "usb", "the only one"),
    "clocks": _clocks,
    "detectors": tuple(_io(pin, _DOWN) for pin in ("5", "6", "9", "10")),
    "modulators": tuple(_io(pin, ("DRIVE", "8")) for pin in ("12", "13", "a0", "a1", "a2", "a4")),
    "sync": _io("11", _DOWN),
    "pps": _io("0", _DOWN),
    "reference": _io("a3"),
    "packer": ("--compress", "--freq", "38.8"),
    "loader": ("dfu-util", "--device", "1209:5af0", "--alt", "0", "--download"),
    "notes": (
        "Hold the button while plugging in: the board's boot loader then waits for dfu-util.",
    ),
}

_FITS = {
    (Role.SENDER, "small"): Fit(SENDER_SMALL, 48, why_not=NOT_BUILT),
    (Role.SENDER, "deep"): Fit(SENDER_DEEP, 48, why_not=NOT_BUILT),
    (Role.RECEIVER, "small"): Fit(RECEIVER_SMALL, 100, why_not=NOT_BUILT),
    # From 48 MHz the PLL's feedback takes an output of its own: that leaves three.
    (Role.RECEIVER, "sampled"): Fit(RECEIVER_SMALL, 100, phases=2, why_not=NOT_BUILT),
}

BOARDS = (
    Board(
        name="orangecrab-25f",
        title="OrangeCrab r0.2 25F",
        code=BoardCode.ORANGECRAB_25F,
        platform=lambda: _platform("OrangeCrabR0_2_25FPlatform"),
        device=ecp5("LFE5U-25F", "8", "csfBGA285"),
        fits=_FITS
        | {
            (Role.SENDER, "small"): Fit(SENDER_SMALL, 48, claims=True),
            (Role.RECEIVER, "small"): Fit(RECEIVER_SMALL, 100, why_not=TOO_LARGE),
        },
        **_SHARED,
    ),
    Board(
        name="orangecrab-85f",
        title="OrangeCrab r0.2 85F",
        code=BoardCode.ORANGECRAB_85F,
        platform=lambda: _platform("OrangeCrabR0_2_85FPlatform"),
        device=ecp5("LFE5U-85F", "8", "csfBGA285"),
        fits=_FITS | {(Role.SENDER, "deep"): Fit(SENDER_DEEPEST, 48, why_not=NOT_BUILT)},
        **_SHARED,
    ),
)
