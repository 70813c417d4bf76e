# SPDX-License-Identifier: CERN-OHL-W-2.0
"""ECPIX-5 of LambdaConcept: LFE5UM5G-45F or -85F, USB 2.0 PHY on ULPI, eight PMODs.

Detectors are on PMOD 0 and modulators on PMOD 1, both in one bank on the part's right side, whose
pins have delay elements and double data rate. The reference has a pin that leads to the clock
network.
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
from .configurations import RECEIVER_FULL, RECEIVER_SMALL, SENDER_FULL, SENDER_SMALL

__all__ = ["BOARDS"]

OSCILLATOR_MHZ = 100


def _pmod(number: int, pin: int, *attributes: tuple[str, str]) -> Connection:
    return Connection(("pmod", number), str(pin), f"PMOD {number} pin {pin}", attributes=attributes)


def _clocks(station_mhz: int) -> Clocks:
    """The oscillator itself where its frequency serves: without a PLL there is less jitter."""
    if station_mhz == OSCILLATOR_MHZ:
        return Clocks("clk100", OSCILLATOR_MHZ, (), {"sync": "clk100"})
    stage = Stage("clk100", {"station": station_mhz})
    return Clocks("clk100", OSCILLATOR_MHZ, (stage,), {"sync": "station"})


def _platform(name: str) -> Any:
    from amaranth_boards import ecpix5

    return getattr(ecpix5, name)()


_DOWN = ("PULLMODE", "DOWN")
_PINS = (1, 2, 3, 4, 7, 8, 9, 10)
_SHARED: dict[str, Any] = {
    "usb": UsbPort(UsbKind.ULPI, "ulpi", "USB-C"),
    "clocks": _clocks,
    "detectors": tuple(_pmod(0, pin, _DOWN) for pin in _PINS),
    "modulators": tuple(_pmod(1, pin, ("DRIVE", "8")) for pin in _PINS[:6]),
    "sync": _pmod(2, 2, _DOWN),
    "pps": _pmod(2, 3, _DOWN),
    "reference": _pmod(2, 7),
    "button": "rst",
    "packer": ("--compress",),
    "loader": ("openFPGALoader", "--board", "ecpix5"),
}

_FITS = {
    (Role.SENDER, "small"): Fit(SENDER_SMALL, 75, why_not=NOT_BUILT),
    (Role.SENDER, "full"): Fit(SENDER_FULL, 100, why_not=NOT_BUILT),
    (Role.RECEIVER, "small"): Fit(RECEIVER_SMALL, 100, why_not=NOT_BUILT),
    (Role.RECEIVER, "sampled"): Fit(RECEIVER_SMALL, 100, phases=4, why_not=NOT_BUILT),
    (Role.RECEIVER, "full"): Fit(RECEIVER_FULL, 100, why_not=NOT_BUILT),
}

BOARDS = (
    Board(
        name="ecpix5-85f",
        title="ECPIX-5 85F",
        code=BoardCode.ECPIX5_85F,
        platform=lambda: _platform("ECPIX585Platform"),
        device=ecp5("LFE5UM5G-85F", "8", "caBGA554"),
        fits=_FITS
        | {
            (Role.SENDER, "full"): Fit(SENDER_FULL | {"horizon_log2": 19}, 100, why_not=NOT_BUILT),
        },
        **_SHARED,
    ),
    Board(
        name="ecpix5-45f",
        title="ECPIX-5 45F",
        code=BoardCode.ECPIX5_45F,
        platform=lambda: _platform("ECPIX545Platform"),
        device=ecp5("LFE5UM5G-45F", "8", "caBGA554"),
        fits=_FITS
        | {
            (Role.SENDER, "small"): Fit(SENDER_SMALL, 75, claims=True),
            (Role.RECEIVER, "small"): Fit(RECEIVER_SMALL, 100, why_not=TOO_LARGE),
            (Role.RECEIVER, "full"): Fit(RECEIVER_FULL, 100, why_not=TOO_LARGE),
        },
        **_SHARED,
    ),
)
