# SPDX-License-Identifier: CERN-OHL-W-2.0
"""The sender's station on a real part: its size and clock frequency.

``python -m keyrail_boards.sender FILE`` measures it and writes the file.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from keyrail.errors import KeyrailError, MissingExtra

from .figure import document, write
from .place_and_route import device_named, harness_size, place_and_route, synthesise

__all__ = ["DEVICE", "SIZES", "measure"]

DEVICE = "LFE5U-25F-6"
FREQUENCY = 100.0
"""Target in MHz: a slot a clock at 100 M slots/s."""
SIZES = {
    "toeplitz_input_log2": 16,
    "toeplitz_output_log2": 15,
    "block_memory_log2": 14,
    "horizon_log2": 17,
}
"""What fits the 56 block RAMs of the part; a larger block lies in the control PC."""


def measure(device: str = DEVICE, seed: int = 1) -> dict[str, Any]:
    """Synthesise, place and route the sender.

    Raises
    ------
    KeyrailError
        If an extra is missing, the part does not exist or a tool fails.
    """
    try:
        from keyrail_gateware.station import Configuration, Sender
    except ModuleNotFoundError as error:
        raise MissingExtra(error.name or "amaranth", "build") from None

    def progress(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    part = device_named(device)
    configuration = Configuration(**SIZES)
    station = Sender(configuration)
    netlist = synthesise(station, part, output_registers=True, progress=progress)
    routed = place_and_route(netlist, seed=seed, frequency=FREQUENCY, progress=progress)
    harness = harness_size(station)
    return {
        "device": part.name,
        **asdict(configuration),
        "lut4": routed.lut4,
        "ff": routed.ff,
        "bram": routed.bram,
        "lut4_of_part": part.lut4,
        "bram_of_part": part.bram,
        "harness_lut4": harness["lut4"],
        "harness_ff": harness["ff"],
        "output_registers": netlist.moved,
        "seed": routed.seed,
        "target_mhz": FREQUENCY,
        "fmax_mhz": routed.fmax_mhz,
        "critical_path": routed.path.summary() if routed.path else None,
        "seconds": routed.seconds,
    }


def main(arguments: list[str]) -> int:
    """Measure the sender and write the file."""
    parser = argparse.ArgumentParser(prog="python -m keyrail_boards.sender")
    parser.add_argument("file", type=Path, help="JSON file to write")
    parser.add_argument("--device", default=DEVICE, help=f"part (default {DEVICE})")
    parser.add_argument("--seed", type=int, default=1, help="nextpnr's seed (default 1)")
    chosen = parser.parse_args(arguments)
    try:
        result = measure(chosen.device, chosen.seed)
    except KeyrailError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    write(chosen.file, document("make pnr-sender", [result]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
