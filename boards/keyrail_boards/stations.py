# SPDX-License-Identifier: CERN-OHL-W-2.0
"""Stations for boards: one by ``keyrail build``, all that claim to fit by ``make bitstreams``.

``python -m keyrail_boards.stations FILE`` builds those and writes their table.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

from keyrail.contract import Role
from keyrail.errors import KeyrailError, MissingExtra, MissingTool, SettingError

from .bitstream import TOOLS, Bitstream, Design, Packed, build, check_timing, convert, pack
from .board import Board, Fit, board_named, boards
from .figure import commit, document, rows, write
from .place_and_route import Progress, ToolFailed, step

__all__ = [
    "SERIALS",
    "build_station",
    "command_to_load",
    "described",
    "design",
    "measure",
    "program",
    "table",
]

SERIALS = 1 << 64
"""Serial numbers are below this."""

COMMANDS = "make bitstreams; make board-areas"
"""What writes the table; each result has its own command, which may be a part of these."""
LINE_SEEDS = 5
"""Seeds tried until the delay lines are as they must be."""
_PACKAGES = {"openFPGALoader": "openfpgaloader", "dfu-util": "dfu-util"}


def design(
    board: Board,
    role: Role,
    configuration: str | None = None,
    *,
    serial: int = 0,
    reference_mhz: Fraction | int | None = None,
    progress: Progress = lambda _: None,
) -> Design:
    """A station for a board as Verilog and constraints.

    Parameters
    ----------
    board, role
        What to build.
    configuration
        One of the board's for that role; its first if absent.
    serial
        Serial number that the station is to say.
    reference_mhz
        Frequency of a reference that the station is to be clocked by.
    progress
        Told of each step.

    Raises
    ------
    KeyrailError
        If there is no such configuration, a clock cannot be had, or an extra is missing.
    """
    fit = board.fit(role, configuration)
    if not 0 <= serial < SERIALS:
        raise SettingError("--serial", serial, f"0 to {SERIALS - 1}")
    try:
        from .top import StationTop

        platform = board.platform()
    except ModuleNotFoundError as error:
        raise MissingExtra(error.name or "amaranth", "build") from None
    with step(progress, "gateware to Verilog"):
        top = StationTop(board, role, fit, serial, reference_mhz)
        sizes = top.configuration
        placed = role is Role.RECEIVER and not fit.phases
        converters = sizes.inputs * sizes.tdc_lines if placed else 0
        lines = (converters, sizes.tdc_cells if converters else 0)
        return convert(platform, top, board.device, top.targets, board.packer, lines)


def build_station(
    board: Board,
    role: Role,
    configuration: str | None = None,
    *,
    serial: int = 0,
    seed: int | None = None,
    reference_mhz: Fraction | int | None = None,
    progress: Progress = lambda _: None,
) -> Bitstream:
    """Build a station for a board, or find that it was.

    Parameters
    ----------
    board, role, configuration, serial, reference_mhz, progress
        As of `design`.
    seed
        nextpnr's; if absent that of the configuration, and the ones after it while delay lines are
        not as they must be.

    Raises
    ------
    KeyrailError
        As of `design`, or if a tool fails. A clock that is too slow is no error here: see
        `bitstream.check_timing`.
    """
    made = design(
        board,
        role,
        configuration,
        serial=serial,
        reference_mhz=reference_mhz,
        progress=progress,
    )
    if seed is not None:
        return build(made, seed=seed, progress=progress)
    first = board.fit(role, configuration).seed
    for tried in range(first, first + LINE_SEEDS):
        built = build(made, seed=tried, progress=progress)
        if not built.line_faults:
            break
        progress(f"seed {tried}: {built.line_faults[0]}")
    return built


def described(
    board: Board, role: Role, configuration: str, fit: Fit, built: Bitstream | Packed
) -> dict[str, Any]:
    """What a table or report says of a built station, or of one that was only packed."""
    return {
        "board": board.name,
        "role": role.name.lower(),
        "configuration": configuration,
        "claims_to_fit": fit.claims,
        "sizes": fit.sizes,
        **built.as_dict(),
    }


# -- loading -------------------------------------------------------------------------------------


def command_to_load(board: Board, file: Path) -> list[str]:
    """The command that loads a bitstream into a board.

    Raises
    ------
    KeyrailError
        If the file is no bitstream for the board's part.
    MissingTool
        If the loader is not installed.
    """
    try:
        head = file.read_bytes()[:256]
    except OSError as error:
        raise KeyrailError(f"{file}: {error.strerror}") from None
    part = board.device.name.rpartition("-")[0]
    if not head.startswith(b"\xff\x00Part: "):
        raise KeyrailError(f"{file}: no bitstream of an ECP5")
    found = head[8 : head.index(b"\0", 8)].decode(errors="replace")
    if not found.startswith(f"{part}-"):
        raise KeyrailError(f"{file}: a bitstream for {found}; {board.title} has an {part}")
    tool = board.loader[0]
    if shutil.which(tool) is None:
        raise MissingTool(tool, _PACKAGES[tool])
    return [*board.loader, str(file)]


def program(board: Board, file: Path) -> None:
    """Load a bitstream into a board by its loader.

    Raises
    ------
    KeyrailError
        As of `command_to_load`, or if the loader fails.
    """
    command = command_to_load(board, file)
    done = subprocess.run(command, check=False)
    if done.returncode:
        raise KeyrailError(
            f"{command[0]} ended with code {done.returncode}: is the board plugged in?"
        )


# -- the table -----------------------------------------------------------------------------------


def measure(
    names: list[str],
    progress: Progress,
    *,
    only: list[str] | None = None,
    everything: bool = False,
    pack_only: bool = False,
) -> Iterator[dict[str, Any]]:
    """Results of all stations that claim to fit, as each is there.

    Parameters
    ----------
    names
        Boards; all if none are named.
    progress
        Told of each step.
    only
        Stations as role and configuration, such as ``sender-small``; all if none are named.
    everything
        Those that claim nothing too.
    pack_only
        Of those that claim nothing, the area alone.

    Raises
    ------
    TimingFailed
        If one that claims to fit does not close.
    KeyrailError
        If a tool fails.
    """
    chosen = [board_named(name) for name in names] or list(boards().values())
    for board in chosen:
        for (role, configuration), fit in board.fits.items():
            if (not fit.claims and not everything) or (
                only and f"{role.name.lower()}-{configuration}" not in only
            ):
                continue
            progress(f"{board.name} {role.name.lower()} {configuration}")
            if pack_only and not fit.claims:
                packed = pack(
                    design(board, role, configuration, progress=progress), progress=progress
                )
                yield described(board, role, configuration, fit, packed)
                continue
            try:
                built = build_station(board, role, configuration, progress=progress)
            except ToolFailed as error:
                if fit.claims:
                    raise
                yield {
                    "board": board.name,
                    "role": role.name.lower(),
                    "configuration": configuration,
                    "claims_to_fit": False,
                    "sizes": fit.sizes,
                    "error": str(error).split(" (log:")[0],
                }
                continue
            if fit.claims:
                check_timing(built)
            yield described(board, role, configuration, fit, built)


_COLUMNS = {
    "Board": "board",
    "Role": "role",
    "Configuration": "configuration",
    "LUT4": "lut4",
    "of": "lut4_of_part",
    "FF": "ff",
    "Block RAM": "bram",
    "of ": "bram_of_part",
    "Clocks: MHz reached / wanted": "clocks_text",
    "Fits and closes": "closes",
}


def _row(result: dict[str, Any]) -> dict[str, Any]:
    clocks = result.get("clocks", [])
    text = ", ".join(
        f"{one['name'].removeprefix('clk_')} {one['fmax_mhz'] or '-'} / {one['target_mhz']:g}"
        for one in clocks
    )
    if result.get("packed_only"):
        closes: object = "not routed" if result["fits"] else "does not fit"
    else:
        closes = result.get("closes", False)
    return result | {"clocks_text": text or result.get("error", ""), "closes": closes}


def table(figure: dict[str, Any]) -> str:
    """The results of a `document` as a Markdown page."""
    tools = ", ".join(f"{name} {version}" for name, version in figure["tools"].items())
    lines = [
        "# Stations built for boards",
        "",
        f"Written by `{figure['command']}` at commit {figure['commit']}, with {tools}.",
        "No board has been loaded with any of them yet.",
        "",
        *rows(_COLUMNS, [_row(one) for one in figure["results"]]),
        "",
    ]
    for one in figure["results"]:
        sizes = ", ".join(f"{key} {value}" for key, value in one["sizes"].items())
        lines.append(f"- {one['board']} {one['role']} {one['configuration']}: {sizes}.")
        if "command" in one:
            lines[-1] += f" `{one['command']}` at {one['commit']}."
    return "\n".join([*lines, ""])


def main(arguments: list[str]) -> int:
    """Build and write the table; the file is written anew after each result."""
    parser = argparse.ArgumentParser(prog="python -m keyrail_boards.stations")
    parser.add_argument("file", type=Path, help="JSON file to write; its .md page lies beside it")
    parser.add_argument("--board", action="append", default=[], help="all if not given")
    parser.add_argument(
        "--only", action="append", default=[], help="such as sender-small; all if not given"
    )
    parser.add_argument(
        "--everything", action="store_true", help="those that do not claim to fit, too"
    )
    parser.add_argument(
        "--pack-only", action="store_true", help="of those, the area alone (minutes each)"
    )
    chosen = parser.parse_args(arguments)

    def progress(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    def key(result: dict[str, Any]) -> tuple[str, str, str]:
        return result["board"], result["role"], result["configuration"]

    command = "make bitstreams"
    if chosen.board:
        command += f' BOARDS="{" ".join(chosen.board)}"'
    if chosen.only or chosen.everything or chosen.pack_only:
        given = [one for one in arguments if one != str(chosen.file)]
        command = " ".join(["python -m keyrail_boards.stations", *given, chosen.file.name])
    at = commit()
    results: dict[tuple[str, str, str], dict[str, Any]] = {}
    if command != "make bitstreams" and chosen.file.exists():
        # A part of the table is made anew; the rest stays, with command and commit it is from.
        results = {key(one): one for one in json.loads(chosen.file.read_text())["results"]}
    try:
        for result in measure(
            chosen.board,
            progress,
            only=chosen.only,
            everything=chosen.everything,
            pack_only=chosen.pack_only,
        ):
            results[key(result)] = result | {"command": command, "commit": at}
            figure = document(COMMANDS, list(results.values()), *TOOLS)
            write(chosen.file, figure, table(figure))
        if not results:
            progress("no station claims to fit: --everything builds those that do not, too")
    except KeyrailError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
