# SPDX-License-Identifier: CERN-OHL-W-2.0
"""The Toeplitz engine on real parts: its size, clock frequency and rate, and variants of it.

``python -m keyrail_boards.toeplitz FILE`` measures `FIGURE` and writes the file.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

from keyrail.distil.toeplitz import WORD, Family, Geometry, places, seed_bits
from keyrail.errors import KeyrailError, MissingExtra, SettingError

from .figure import commit, document, rows
from .figure import write as write_files
from .place_and_route import (
    DEVICES,
    Netlist,
    Progress,
    Routed,
    ToolFailed,
    device_named,
    harness_size,
    place_and_route,
    synthesise,
)

__all__ = [
    "FIGURE",
    "Run",
    "ToeplitzConfiguration",
    "cable_mbps",
    "entry",
    "explore",
    "measure",
    "tiled",
    "variants",
]

WIDTHS, SMALLEST, SPLITS = (64, 128, 256), (4, 8, 16), (0, 1, 2, 3)
"""Variants that are explored unless others are named."""
TILED = (1 << 25, 1 << 23)
"""n and m of the hash in tiles whose rate is stated."""
CABLE_MBPS = 320.0
"""Payload of high-speed USB that key, seed and output share."""


@dataclass(frozen=True)
class ToeplitzConfiguration:
    """What the engine's constructor is given.

    Parameters
    ----------
    input_bits, output_bits
        Largest n and m.
    width
        Block size of the product core.
    smallest
        Size of the products that are not split any more.
    splits
        Levels of splitting over blocks in memory.
    ahead
        Whether a key block may stream in while the last is worked on.
    compact
        Few logic cells and a slow clock.
    """

    input_bits: int = 1 << 18
    output_bits: int = 1 << 17
    width: int = 64
    smallest: int = 8
    splits: int = 1
    ahead: bool = True
    compact: bool = False

    def engine(self) -> Any:
        """The engine.

        Raises
        ------
        SettingError
            If there is no such engine.
        MissingExtra
            If Amaranth is not installed.
        """
        try:
            from keyrail_gateware.toeplitz import Toeplitz
        except ModuleNotFoundError as error:
            raise MissingExtra(error.name or "amaranth", "build") from None
        if self.smallest < 1 or self.smallest & (self.smallest - 1):
            raise SettingError("--smallest", self.smallest, "powers of two")
        try:
            return Toeplitz(
                self.input_bits,
                self.output_bits,
                width=self.width,
                smallest=self.smallest,
                splits=self.splits,
                ahead=self.ahead,
                compact=self.compact,
            )
        except ValueError as error:
            raise SettingError("engine", self.name, str(error)) from None

    def check(self, n: int, m: int, family: Family) -> None:
        """Raise `SettingError` if the engine cannot hash n bits to m."""
        try:
            Geometry(n, m, family)
        except ValueError as error:
            raise SettingError("--n, --m", f"{n}, {m}", str(error)) from None
        if n > self.input_bits or m > self.output_bits:
            allowed = f"n to {self.input_bits} and m to {self.output_bits}: the engine's memory"
            raise SettingError("--n, --m", f"{n}, {m}", allowed)

    def clocks(self, engine: Any, n: int, m: int, family: Family) -> int:
        """Clocks that a block takes in steady state, key and seed taken in without a pause."""
        return int(engine.clocks(n, m, family))

    @property
    def name(self) -> str:
        """The configuration in a few letters, for progress and errors."""
        sizes = f"{self.input_bits} to {self.output_bits} bits"
        compact = ", compact" if self.compact else ""
        kind = f"width {self.width}, smallest {self.smallest}, splits {self.splits}{compact}"
        return f"{kind}, {sizes}"


@dataclass(frozen=True)
class Run:
    """One configuration to measure on one part.

    Parameters
    ----------
    configuration, device
        Engine, and name of the part.
    n, m, family
        The hash whose rate is stated.
    seeds
        nextpnr's seeds, one result each; none: synthesis alone.
    frequency
        nextpnr's target, MHz.
    output_registers
        Use the output registers of block RAM (ECP5).
    placed_for
        Part with the same fabric whose placement is taken, if not the part's own.
    memories_sited
        Put block RAM where `memory_sites` says.
    """

    configuration: ToeplitzConfiguration
    device: str
    n: int
    m: int
    family: Family = "modified"
    seeds: tuple[int, ...] = (1,)
    frequency: float = 200.0
    output_registers: bool = False
    placed_for: str | None = None
    memories_sited: bool = False


LARGEST = ToeplitzConfiguration(1 << 20, 1 << 19, width=512, splits=2)
SMALLER = ToeplitzConfiguration(1 << 18, 1 << 17, width=128, splits=2)
SMALLEST_ENGINE = ToeplitzConfiguration(1 << 14, 1 << 12, width=64, splits=0, compact=True)

FIGURE: tuple[Run, ...] = (
    Run(SMALLER, "LFE5U-25F-6", 1 << 18, 1 << 16, "modified", (1, 2, 3), 150.0, True),
    Run(SMALLEST_ENGINE, "iCE40UP5K", 1 << 14, 1 << 12, "modified", (1, 2, 3), 30.0),
    *(
        Run(
            LARGEST,
            device,
            1 << 20,
            1 << 18,
            seeds=(seed,),
            frequency=130.0,
            output_registers=True,
            placed_for="LFE5U-85F-6",
            memories_sited=True,
        )
        for seed in (1, 2, 3)
        for device in ("LFE5U-85F-6", "LFE5UM5G-85F-8")
    ),
)
"""What ``make pnr-toeplitz`` measures."""

EXPLORED: tuple[Run, ...] = tuple(
    Run(
        ToeplitzConfiguration(1 << 20, 1 << 19, width=width, smallest=smallest, splits=splits),
        "LFE5U-85F-6",
        1 << 20,
        1 << 18,
        seeds=seeds,
        frequency=100.0,
        output_registers=True,
    )
    for width, smallest, splits, seeds in (
        *((64, 8, splits, (1,) if splits == 2 else ()) for splits in (0, 1, 2, 3)),
        *((128, smallest, 2, ()) for smallest in (4, 16, 32)),
        *((128, 8, splits, (1,) if splits == 2 else ()) for splits in (0, 1, 2, 3)),
        *((256, smallest, 2, ()) for smallest in (4, 16)),
        *((256, 8, splits, ()) for splits in (0, 1, 2, 3)),
        *((512, smallest, 2, ()) for smallest in (4, 16)),
        *((512, 8, splits, ()) for splits in (0, 1, 2)),
    )
)
"""What ``make figure-toeplitz_explored`` measures; without seeds, it is synthesised alone."""


_MEMORY = re.compile(r"component\.(key|sum)_(\d+)_(\d+)\.0\.(\d+)")
# Block RAM of the 85F: four rows of groups of four, seven groups left of the middle, six right.
_BRAM_ROWS = (22, 46, 70, 82)
_BRAM_COLUMNS = tuple(
    (start + 9 * group + 2 * i, i)
    for start, groups in ((4, 7), (69, 6))
    for group in range(groups)
    for i in range(4)
)


def memory_sites(netlist: Netlist) -> dict[str, str]:
    """Sites of the 512-bit engine's memories on an 85F: cells of the netlist, and nextpnr's names.

    A bank of the key and its bank of sums share a row, in the order of their bits, so that a bit of
    a block lies in one column for all banks. Placed freely, the wires of an address go from one end
    of the part to the other, and what they fight for takes routing an hour.

    Raises
    ------
    ToolFailed
        If there are not as many banks as rows, or the memories of one are more than a row holds.
    """
    design = json.loads((netlist.folder / "netlist.json").read_text())
    banks: dict[int, list[tuple[int, str]]] = {}
    for name, cell in design["modules"]["top"]["cells"].items():
        found = _MEMORY.fullmatch(name)
        if found and cell["type"] == "DP16KD":
            bits = 18 if found[1] == "key" else 36
            middle = (5 * int(found[3]) + int(found[4])) * 2 * bits + bits
            banks.setdefault(int(found[2]), []).append((middle, name))
    if len(banks) != len(_BRAM_ROWS):
        raise ToolFailed(f"{len(banks)} banks of memory: {len(_BRAM_ROWS)} rows have sites")
    sites: dict[str, str] = {}
    for bank, row in zip(sorted(banks), _BRAM_ROWS, strict=True):
        first = (len(_BRAM_COLUMNS) - len(banks[bank])) // 2
        if first < 0:
            raise ToolFailed(f"{len(banks[bank])} block RAMs: a row has {len(_BRAM_COLUMNS)}")
        columns = _BRAM_COLUMNS[first:]
        for (_middle, name), (x, index) in zip(sorted(banks[bank]), columns, strict=False):
            sites[name] = f"X{x}/Y{row}/EBR{index}"
    return sites


def cable_mbps(input_mbps: float, n: int, m: int, family: Family) -> float:
    """Input rate when one high-speed USB cable carries key, seed and output of every block."""
    carried = n + seed_bits(n, m, family) + m
    return min(input_mbps, CABLE_MBPS * n / carried)


def tiled(
    configuration: ToeplitzConfiguration, engine: Any, n: int, m: int, family: Family, mhz: float
) -> dict[str, Any]:
    """What a hash that is larger than the engine takes, in tiles: clocks, and bytes over USB.

    The tile before is worked on while the next one's key comes in, so the rate is that of the
    slower: engine or cable.
    """
    clocks = words = tiles = 0
    clocks_of = cache(engine.clocks)  # a small engine has millions of tiles, few of them unlike
    rows = places(n, m, family, configuration.input_bits, configuration.output_bits)
    for row in rows:
        for place in row:
            one = place.geometry
            clocks += int(clocks_of(one.n, one.m, one.family, unfinished=place.unfinished))
            words += one.key_words + one.seed_words + (0 if place.unfinished else one.rows)
            tiles += 1
    carried = words * WORD
    return {
        "n": n,
        "m": m,
        "family": family,
        "tiles": tiles,
        "cycles": clocks,
        "usb_bytes": carried // 8,
        "input_mbps": round(n * mhz / clocks, 3),
        "cable_mbps": round(min(n * mhz / clocks, CABLE_MBPS * n / carried), 3),
    }


def entry(run: Run, engine: Any, netlist: Netlist, routed: Routed | None = None) -> dict[str, Any]:
    """One result: a configuration, and one seed if it has been routed.

    LUT4, flip-flops and block RAM are nextpnr's after packing, or the netlist's before. The
    harness is in them, and stated beside them.
    """
    configuration = run.configuration
    clocks = configuration.clocks(engine, run.n, run.m, run.family)
    harness = harness_size(engine)
    counts = netlist.counts
    result: dict[str, Any] = {
        "device": run.device,
        "placed_for": run.placed_for or run.device,
        "memories_sited": run.memories_sited,
        **asdict(configuration),
        "n": run.n,
        "m": run.m,
        "family": run.family,
        "lut4": routed.lut4 if routed else counts["lut4"],
        "ff": routed.ff if routed else counts["ff"],
        "bram": routed.bram if routed else counts["bram"],
        "netlist": counts,
        "output_registers": netlist.moved,
        "harness_lut4": harness["lut4"],
        "harness_ff": harness["ff"],
        "cycles": clocks,
        "target_mhz": run.frequency,
        "mbps_at_target": round(run.n * run.frequency / clocks, 2),
    }
    rate = 1000 * run.n * run.frequency / clocks
    result["mbps_at_target_per_klut4"] = round(rate / result["lut4"], 2)
    if routed is None:
        return result
    rate = run.n * routed.fmax_mhz / clocks
    return result | {
        "seed": routed.seed,
        "fmax_mhz": routed.fmax_mhz,
        "input_mbps": round(rate, 2),
        "cable_mbps": round(cable_mbps(rate, run.n, run.m, run.family), 2),
        "mbps_per_klut4": round(1000 * rate / routed.lut4, 2),
        "critical_path": routed.path.summary() if routed.path else None,
        "tiled": tiled(configuration, engine, *TILED, run.family, routed.fmax_mhz),
    }


def measure(run: Run, progress: Progress, route: bool = True) -> Iterator[dict[str, Any]]:
    """Results of a run, one a seed as each is there; without routing, one of the netlist.

    Raises
    ------
    KeyrailError
        If an extra is missing, a setting is out of range or a tool fails.
    """
    device = device_named(run.device)
    run.configuration.check(run.n, run.m, run.family)
    engine = run.configuration.engine()

    def say(line: str) -> None:
        progress(f"{run.configuration.name}: {line}")

    mapped = device_named(run.placed_for) if run.placed_for else device
    netlist = synthesise(engine, mapped, output_registers=run.output_registers, progress=say)
    if not route or not run.seeds:
        yield entry(run, engine, netlist)
        return
    sites = memory_sites(netlist) if run.memories_sited else None
    for seed in run.seeds:
        routed = place_and_route(
            netlist,
            seed=seed,
            frequency=run.frequency,
            placer="static" if device.family == "ecp5" else "heap",
            device=device,
            sites=sites,
            progress=say,
        )
        yield entry(run, engine, netlist, routed)


def variants(
    base: Run, widths: Iterable[int] = (), smallest: Iterable[int] = (), splits: Iterable[int] = ()
) -> list[Run]:
    """The run with each combination of the values, or of the usual ones where none are given."""
    return [
        replace(base, configuration=replace(base.configuration, width=w, smallest=s, splits=levels))
        for w, s, levels in product(
            tuple(widths) or WIDTHS, tuple(smallest) or SMALLEST, tuple(splits) or SPLITS
        )
    ]


def explore(
    runs: Iterable[Run],
    progress: Progress,
    *,
    route: bool,
    jobs: int = 1,
    found: Callable[[dict[str, Any]], None] = lambda result: None,
) -> list[dict[str, Any]]:
    """Results of many runs in their order.

    A run whose engine does not exist or that a tool refuses gives one entry with ``error``.

    Parameters
    ----------
    runs
        What to measure.
    progress
        Told of each step.
    route
        Place and route too, or synthesise alone.
    jobs
        Runs at a time.
    found
        Called with each result as it comes, one call at a time.
    """
    lock = threading.Lock()

    def one(run: Run) -> list[dict[str, Any]]:
        results = []
        try:
            for result in measure(run, progress, route):
                results.append(result)
                with lock:
                    found(result)
        except (SettingError, ToolFailed) as error:
            result = {
                "device": run.device,
                **asdict(run.configuration),
                "n": run.n,
                "m": run.m,
                "family": run.family,
                "error": str(error).split(" (log:")[0],
            }
            results.append(result)
            with lock:
                found(result)
        return results

    with ThreadPoolExecutor(jobs) as pool:
        return [result for results in pool.map(one, runs) for result in results]


COLUMNS = {
    "Part": "device",
    "Seed": "seed",
    "Block": "width",
    "Smallest": "smallest",
    "Splits": "splits",
    "n": "n",
    "m": "m",
    "LUT4": "lut4",
    "FF": "ff",
    "Block RAM": "bram",
    "MHz": "fmax_mhz",
    "Clocks a block": "cycles",
    "Mb/s in": "input_mbps",
    "Mb/s over USB": "cable_mbps",
    "Mb/s per 1,000 LUT4": "mbps_per_klut4",
    "Commit": "commit",
}
EXPLORED_COLUMNS = {
    "Block": "width",
    "Smallest": "smallest",
    "Splits": "splits",
    "LUT4": "lut4",
    "FF": "ff",
    "Block RAM": "bram",
    "Clocks a block": "cycles",
    "Mb/s in at 100 MHz": "mbps_at_target",
    "per 1,000 LUT4": "mbps_at_target_per_klut4",
    "MHz where routed": "fmax_mhz",
    "Mb/s in": "input_mbps",
}
PATH_COLUMNS = {
    "Part": "device",
    "Seed": "seed",
    "From": "start",
    "To": "end",
    "Logic, ns": "logic_ns",
    "Routing, ns": "routing_ns",
    "Nets": "nets",
    "Largest fan-out": "largest_fan_out",
}
TILED_COLUMNS = {
    "Part": "device",
    "Seed": "seed",
    "n": "n",
    "m": "m",
    "Tiles": "tiles",
    "Clocks": "cycles",
    "Bytes over USB": "usb_bytes",
    "Mb/s in": "input_mbps",
    "Mb/s over USB": "cable_mbps",
}


def table(described: dict[str, Any]) -> str:
    """The results of a `document` as a Markdown page."""
    tools = ", ".join(f"{name} {version}" for name, version in described["tools"].items())
    results = described["results"]
    lines = [
        "# Toeplitz engine, placed and routed",
        "",
        f"Written by `{described['command']}` at commit {described['commit']}, with {tools}.",
        "Modified family. A small harness on the pins is included in LUT4 and FF.",
        "",
    ]
    routed = [one for one in results if "seed" in one]
    if len(routed) == len(results):
        paths = [one | (one["critical_path"] or {}) for one in routed]
        tiles = [{"device": one["device"], "seed": one["seed"]} | one["tiled"] for one in routed]
        lines += [
            *rows(COLUMNS, results),
            "",
            "## Critical paths",
            "",
            *rows(PATH_COLUMNS, paths),
            "",
            "## A hash larger than the engine, in tiles",
            "",
            *rows(TILED_COLUMNS, tiles),
        ]
    else:
        lines[0] = "# Variants of the Toeplitz engine"
        first = results[0]
        lines[3] += f" {first['device']}, {first['n']:,} to {first['m']:,} bits."
        lines += rows(EXPLORED_COLUMNS, results)
    return "\n".join([*lines, ""])


def _order(result: dict[str, Any]) -> tuple[Any, ...]:
    names = list(DEVICES)
    numbers = (result[k] for k in ("width", "smallest", "splits", "input_bits", "output_bits"))
    return (names.index(result["device"]), *numbers, result.get("seed", 0))


def main(arguments: list[str]) -> int:
    """Measure `FIGURE` or `EXPLORED`; the file is written anew after each result.

    With parts or seeds named, rows of others stay in it.
    """
    parser = argparse.ArgumentParser(prog="python -m keyrail_boards.toeplitz")
    parser.add_argument("file", type=Path, help="JSON file to write")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (default 1)")
    parser.add_argument(
        "--device", action="append", default=[], help="part (all if not given; repeat it for more)"
    )
    parser.add_argument(
        "--seed", action="append", default=[], type=int, help="nextpnr's seed (likewise)"
    )
    parser.add_argument("--explored", action="store_true", help="variants, most of them not routed")
    chosen = parser.parse_args(arguments)
    command = "make figure-toeplitz_explored" if chosen.explored else "make pnr-toeplitz"
    if chosen.device:
        command += f' DEVICES="{" ".join(chosen.device)}"'
    if chosen.seed:
        command += f' SEEDS="{" ".join(map(str, chosen.seed))}"'

    def progress(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    results: list[dict[str, Any]] = []
    others: list[dict[str, Any]] = []
    at = commit()

    def write(result: dict[str, Any]) -> None:
        results.append(result | {"command": command, "commit": at})
        described = document(command, sorted([*others, *results], key=_order))
        write_files(chosen.file, described, table(described))

    try:
        devices = {device_named(name).name for name in chosen.device} or set(DEVICES)
        runs = EXPLORED if chosen.explored else FIGURE
        runs = tuple(run for run in runs if run.device in devices)
        if chosen.seed:
            wanted = (tuple(s for s in run.seeds if s in chosen.seed) for run in runs)
            chosen_seeds = zip(runs, wanted, strict=True)
            runs = tuple(replace(run, seeds=seeds) for run, seeds in chosen_seeds if seeds)
        if (chosen.device or chosen.seed) and chosen.file.exists():
            # Rows of others stay, with command and commit that they are from.
            before = json.loads(chosen.file.read_text())
            made = {name: before[name] for name in ("command", "commit")}
            measured = {(run.device, seed) for run in runs for seed in run.seeds or (None,)}
            others += [
                made | one
                for one in before["results"]
                if (one["device"], one.get("seed")) not in measured
            ]
        explore(runs, progress, route=True, jobs=max(1, chosen.jobs), found=write)
    except KeyrailError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    failed = [result for result in results if "error" in result]
    for result in failed:
        print(f"error: {result['device']}: {result['error']}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
