# SPDX-License-Identifier: CERN-OHL-W-2.0
"""Pins and clocks of every board as a page.

``python -m keyrail_boards.pins > docs/board_pins.md`` writes it.
"""

from __future__ import annotations

import math

from keyrail.contract import STATE_WORD, STATES_PER_WORD, Role
from keyrail.usb import PAYLOAD_MBPS

from .board import Board, UsbKind, boards
from .figure import rows

__all__ = ["page"]

_PINS = {
    "Use": "use",
    "Connector": "label",
    "Site": "site",
    "I/O standard": "io_type",
    "More": "more",
}
_CLOCKS = {
    "Clock": "name",
    "MHz": "mhz",
    "From": "source",
    "Input / feedback / output divider": "dividers",
    "Oscillator of the PLL, MHz": "vco",
    "Error, ppm": "error",
}


_RATES = {
    "Board": "board",
    "Sender": "configuration",
    "Station, MHz": "mhz",
    "USB, Mb/s of payload": "payload",
    "Cable alone, M slots/s": "cable",
    "Fed by the host, M slots/s": "fed",
    "Clocks a slot": "clocks",
    "Made on the board, M slots/s": "made",
}
_SPEEDS = {UsbKind.ULPI: "high speed", UsbKind.FULL_SPEED: "full speed"}


def _rates() -> list[str]:
    """Highest slot rate of each sender, by where its states come from."""
    lines = []
    for board in boards().values():
        payload = PAYLOAD_MBPS[_SPEEDS[board.usb.kind]]
        cable = payload / (STATE_WORD.bytes * 8 / STATES_PER_WORD)
        for (role, name), fit in board.fits.items():
            if role is not Role.SENDER:
                continue
            clocks = max(1, math.ceil(fit.clock_mhz / cable))
            lines.append(
                {
                    "board": board.name,
                    "configuration": name,
                    "mhz": fit.clock_mhz,
                    "payload": payload,
                    "cable": round(cable, 1),
                    "fed": round(fit.clock_mhz / clocks, 2),
                    "clocks": clocks,
                    "made": float(fit.clock_mhz),
                }
            )
    return rows(_RATES, lines)


def _pins(board: Board) -> list[str]:
    platform = board.platform()
    lines = []
    for name, number, one in board.connections():
        connector = platform.connectors[one.connector]
        site = connector.mapping[one.pin]
        several = name in ("detector", "modulator")
        lines.append(
            {
                "use": f"{name} {number}" if several else name,
                "label": one.label,
                "site": site,
                "io_type": one.io_type,
                "more": ", ".join(f"{key} {value}" for key, value in one.attributes),
            }
        )
    return rows(_PINS, lines)


def _clocks(board: Board, station_mhz: int) -> list[str]:
    clocks = board.clocks(station_mhz)
    names = {clock: f"`{domain}`" for domain, clock in clocks.domains.items()}
    lines: list[dict[str, object]] = []
    if clocks.oscillator in names:
        lines.append(
            {
                "name": names[clocks.oscillator],
                "mhz": float(clocks.mhz),
                "source": "the oscillator itself",
            }
        )
    for stage, chosen in zip(clocks.stages, clocks.settings(), strict=True):
        made = chosen.by_index()
        for index, name in enumerate(stage.outputs):
            output = made[index]
            lines.append(
                {
                    "name": names.get(name, name),
                    "mhz": float(output.mhz),
                    "source": stage.source,
                    "dividers": f"{chosen.input_divider} / {chosen.feedback_divider} x "
                    f"{chosen.outputs[0].divider} / {output.divider}",
                    "vco": float(chosen.vco_mhz),
                    "error": float(output.error_ppm),
                }
            )
    return rows(_CLOCKS, lines)


def page() -> str:
    """The page, from the boards' files."""
    lines = [
        "# Pins and clocks of the boards",
        "",
        "Written by `python -m keyrail_boards.pins` from `boards/keyrail_boards/`; see",
        "[boards](boards.md).",
        "",
        "## Slots a second",
        "",
        "A slot is three bits of the cable where the host feeds its state, and lasts whole clocks",
        "of the station. Payloads are taken, not measured, and leave nothing for announcements:",
        "those need some of it ([sifting](sifting.md#throughput)). The board's own generator makes",
        "a slot a clock.",
        "",
        *_rates(),
    ]
    for board in boards().values():
        lines += [
            "",
            f"## {board.title} (`{board.name}`)",
            "",
            f"Part {board.device.name}. USB: {board.usb.kind.value}, socket: {board.usb.socket}.",
            *board.notes,
            "",
            *_pins(board),
        ]
        for mhz in sorted({fit.clock_mhz for fit in board.fits.values()}):
            lines += ["", f"Station at {mhz} MHz:", "", *_clocks(board, mhz)]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    print(page(), end="")
