# SPDX-License-Identifier: Apache-2.0
"""Place and route: reports read right, errors of one line, and one small design through it all."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from amaranth.hdl import Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from keyrail.errors import MissingExtra, SettingError
from keyrail_boards import place_and_route as tools
from keyrail_boards import receiver
from keyrail_boards import toeplitz as engines
from keyrail_boards.place_and_route import DEVICES, ToolFailed

KEYRAIL = Path(sys.executable).parent / "keyrail"

needs_tools = pytest.mark.skipif(
    bool(tools.tools_missing()),
    reason=f"not installed: {', '.join(tools.tools_missing())} (extra build)",
)


def end(cell, port):
    return {"cell": cell, "loc": [1, 1], "port": port}


def part(kind, delay, start, stop, **more):
    return {"type": kind, "delay": delay, "from": start, "to": stop, **more}


REPORT = {
    "critical_paths": [
        {
            "from": "<async>",
            "to": "posedge clk",
            "path": [part("source", 90.0, end("pin", "O"), end("pin", "O"))],
        },
        {
            "from": "posedge clk",
            "to": "posedge clk",
            "path": [
                part("clk-to-q", 5.6, end("ram", "DOA0"), end("ram", "DOA0")),
                part("routing", 1.25, end("ram", "DOA0"), end("sum", "A"), net="word[1]"),
                part("logic", 0.25, end("sum", "A"), end("sum", "F")),
                part("routing", 0.5, end("sum", "F"), end("reg", "DI"), net="y"),
                part("setup", 0.0, end("reg", "DI"), end("reg", "DI")),
            ],
        },
    ],
    "fmax": {"clk": {"achieved": 131.5789, "constraint": 200.0}},
    "utilization": {
        "TRELLIS_COMB": {"available": 10, "used": 7},
        "TRELLIS_FF": {"available": 10, "used": 5},
        "DP16KD": {"available": 10, "used": 1},
        "EHXPLLL": {"available": 4, "used": 0},
    },
}
NETLIST = {
    "cells": {
        "ram": {"type": "DP16KD", "connections": {"DOA0": [7], "DOA1": [8]}},
        "sum": {"type": "LUT4", "connections": {"A": [8], "B": [7], "Z": [9]}},
        "reg": {"type": "TRELLIS_FF", "connections": {"DI": [9], "M": [8], "Q": [10]}},
    },
    "netnames": {"word": {"bits": [7, 8]}, "y": {"bits": [9]}},
}


def test_report_is_read():
    fmax, counts, used = tools.parse_report(REPORT, "ecp5")
    assert fmax == 131.58
    assert counts == {"lut4": 7, "ff": 5, "bram": 1}
    assert "EHXPLLL" not in used
    used = {"ICESTORM_LC": {"used": 9}, "ICESTORM_RAM": {"used": 2}}
    _, counts, _ = tools.parse_report(REPORT | {"utilization": used}, "ice40", flip_flops=4)
    assert counts == {"lut4": 9, "ff": 4, "bram": 2}


def test_report_without_a_clock_is_an_error():
    with pytest.raises(ToolFailed, match="no clock"):
        tools.parse_report(REPORT | {"fmax": {}}, "ecp5")


def test_critical_path_is_the_slowest_within_a_clock():
    path = tools.parse_critical_path(REPORT, NETLIST)
    assert path is not None
    assert (path.start, path.start_kind) == ("ram", "DP16KD")
    assert (path.end, path.end_kind) == ("reg", "TRELLIS_FF")
    assert (path.logic_ns, path.routing_ns) == (5.85, 1.75)
    assert [(hop.kind, hop.fan_out) for hop in path.hops] == [("DP16KD", 2), ("LUT4", 1)]
    assert path.summary()["largest_fan_out"] == 2
    assert tools.parse_critical_path({"critical_paths": []}, NETLIST) is None


def test_devices_are_found_whatever_the_case():
    assert tools.device_named("lfe5u-85f-6") is DEVICES["LFE5U-85F-6"]
    with pytest.raises(SettingError, match="--device = LFE5U-99F: allowed is LFE5U-85F-6, "):
        tools.device_named("LFE5U-99F")


def test_missing_tool_names_its_extra():
    with pytest.raises(
        MissingExtra, match=r"yowasp_none is missing: pip install 'keyrail\[build\]"
    ):
        tools.require_tools("yowasp_none")


def test_cable_carries_key_seed_and_output():
    n, m = 1 << 16, 1 << 14
    assert engines.cable_mbps(1000.0, n, m, "modified") == pytest.approx(320 * n / (2 * n + m - 1))
    assert engines.cable_mbps(1000.0, n, m, "plain") == pytest.approx(320 * n / (2 * n + 2 * m - 1))
    assert engines.cable_mbps(10.0, n, m, "plain") == 10.0


BASE = engines.Run(engines.ToeplitzConfiguration(1024, 512), "LFE5U-25F-6", 1024, 256)


def test_variants_are_all_combinations():
    assert len(engines.variants(BASE)) == 3 * 3 * 4
    few = engines.variants(BASE, widths=[64], smallest=[8, 16], splits=[1])
    assert [(r.configuration.smallest, r.configuration.splits) for r in few] == [(8, 1), (16, 1)]


def test_what_does_not_exist_is_an_entry_and_not_the_end():
    wrong = replace(BASE, configuration=replace(BASE.configuration, width=96))
    found = []
    results = engines.explore([wrong], lambda line: None, route=False, found=found.append)
    assert results == found
    assert "96" in results[0]["error"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--device", "abacus"], "--device = abacus: allowed is LFE5U-85F-6"),
        (["--family", "other"], "--family = other: allowed is modified or plain"),
        (["--frequency", "0"], "--frequency = 0.0: allowed is 1 to 1000 MHz"),
        (["--jobs", "0"], "--jobs = 0: allowed is 1 and more"),
        (["--width", "64", "--width", "128"], "or several with --explore"),
        (["--json", "/no/such/folder/x.json"], "does not exist"),
    ],
)
def test_wrong_use_is_one_line_and_code_2(arguments, text):
    done = keyrail(*arguments)
    assert done.returncode == 2
    assert text in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@needs_tools
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--n", "99999999"], "--n, --m = 99999999, 24999999: allowed is n to 65536"),
        (["--m", "0"], "--n, --m = 65536, 0: allowed is"),
        (["--smallest", "3"], "--smallest = 3: allowed is powers of two"),
        (["--input-bits", "100"], "allowed are powers of two"),
    ],
)
def test_engines_that_cannot_be_are_one_line_and_code_2(arguments, text):
    done = keyrail(*arguments)
    assert done.returncode == 2
    assert text in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def keyrail(*arguments):
    return subprocess.run(
        [str(KEYRAIL), "build", "toeplitz", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


class RegisterCopy(wiring.Component):
    """One of several registers of the same word."""

    d: In(8)
    q: Out(8)

    def elaborate(self, platform):
        m = Module()
        m.d.sync += self.q.eq(self.d)
        return m


class Small(wiring.Component):
    """A stream through two copies of a register."""

    i: In(stream.Signature(8))
    o: Out(stream.Signature(8))

    def __init__(self, name="register_copy"):
        self._name = name
        super().__init__()

    def elaborate(self, platform):
        m = Module()
        held, valid = Signal(8), Signal()
        copies = [RegisterCopy(), RegisterCopy()]
        for index, copy in enumerate(copies):
            m.submodules[f"{self._name}_{index}"] = copy
            m.d.comb += copy.d.eq(self.i.payload)
        m.d.sync += [valid.eq(self.i.valid), held.eq(copies[0].q + 3)]
        m.d.comb += [
            self.i.ready.eq(self.o.ready),
            self.o.payload.eq(held ^ copies[1].q),
            self.o.valid.eq(valid),
        ]
        return m


class Store(wiring.Component):
    """A memory with a register behind its read port."""

    def __init__(self, *, reset):
        self._reset = reset
        super().__init__(
            {"i": In(36), "to": In(9), "en": In(1), "at": In(9), "take": In(1), "o": Out(36)}
        )

    def elaborate(self, platform):
        m = Module()
        # Nothing reads what is written in the same clock: no logic that compares addresses.
        attributes = {"no_rw_check": 1}
        m.submodules.memory = memory = Memory(shape=36, depth=512, init=[], attrs=attributes)
        write, read = memory.write_port(), memory.read_port()
        word = Signal(36, reset_less=not self._reset)
        m.d.comb += [write.addr.eq(self.to), write.data.eq(self.i), write.en.eq(self.en)]
        m.d.comb += [read.addr.eq(self.at), read.en.eq(1), self.o.eq(word)]
        with m.If(self.take):
            m.d.sync += word.eq(read.data)
        return m


@needs_tools
def test_output_registers_of_block_ram_are_used():
    part = DEVICES["LFE5U-25F-6"]
    fmax = {}
    for registers in (False, True):
        netlist = tools.synthesise(Store(reset=False), part, output_registers=registers)
        routed = tools.place_and_route(netlist, frequency=300.0)
        assert netlist.moved == (36 if registers else 0)
        assert routed.ff == netlist.counts["ff"]
        assert (routed.lut4 > 0, routed.bram) == (True, 1)
        fmax[registers] = routed.fmax_mhz
    assert fmax[False] < 160 < 200 < fmax[True]


class Product(wiring.Component):
    """A product with a register behind it."""

    i: In(36)
    take: In(1)
    o: Out(36)

    def elaborate(self, platform):
        m = Module()
        held = Signal(36, reset_less=True)
        m.d.comb += self.o.eq(held)
        with m.If(self.take):
            m.d.sync += held.eq(self.i[:18] * self.i[18:])
        return m


@needs_tools
def test_output_registers_of_multipliers_are_used():
    part = DEVICES["LFE5U-25F-6"]
    fmax = {}
    for registers in (False, True):
        netlist = tools.synthesise(Product(), part, output_registers=registers)
        routed = tools.place_and_route(netlist, frequency=300.0)
        assert netlist.moved == (36 if registers else 0)
        assert netlist.counts["multiplier"] == routed.utilisation["MULT18X18D"] == 1
        assert routed.ff == netlist.counts["ff"]
        fmax[registers] = routed.fmax_mhz
    assert fmax[False] < fmax[True]


@needs_tools
def test_cells_are_placed_where_they_are_told():
    part = DEVICES["LFE5U-25F-6"]
    netlist = tools.synthesise(Store(reset=False), part, output_registers=True)
    cells = json.loads((netlist.folder / "netlist.json").read_text())["modules"]["top"]["cells"]
    (memory,) = (name for name, cell in cells.items() if cell["type"] == "DP16KD")
    placed = {}
    for site in (None, "X6/Y25/EBR1"):
        sites = {memory: site} if site else None
        folder = tools.place(netlist, frequency=300.0, sites=sites)
        design = json.loads((folder / "placed.json").read_text())["modules"]["top"]["cells"]
        placed[site] = design[memory]["attributes"]["NEXTPNR_BEL"]
        assert [file.name for file in folder.glob("netlist*")] == []
    assert placed[None] != placed["X6/Y25/EBR1"] == "X6/Y25/EBR1"


@needs_tools
def test_registers_with_a_reset_stay_outside_of_block_ram():
    netlist = tools.synthesise(Store(reset=True), DEVICES["LFE5U-25F-6"], output_registers=True)
    assert netlist.moved == 0


@needs_tools
def test_harness_keeps_every_bit():
    size = tools.harness_size(Small())
    # 10 bits in, 10 out; 3 + 1 XORs of four fold those.
    assert size == {"lut4": 4, "ff": 1 + 10 + 10 + 4}
    netlist = tools.synthesise(Small("other"), DEVICES["iCE40UP5K"])
    assert netlist.counts["ff"] == size["ff"] + 8 + 8 + 1


@needs_tools
@pytest.mark.parametrize("device", ["iCE40UP5K", "LFE5U-25F-6"])
def test_register_copies_survive_through_placement(device):
    lines = []
    chosen = DEVICES[device]
    kept = tools.synthesise(Small(), chosen, progress=lines.append)
    merged = tools.synthesise(Small("other"), chosen)
    assert kept.counts["ff"] == merged.counts["ff"] + 8
    routed = tools.place_and_route(kept, seed=3, frequency=50.0, progress=lines.append)
    assert routed.fmax_mhz > 50
    assert routed.ff == kept.counts["ff"]
    assert 0 < routed.lut4 < 100
    assert routed.path is not None
    assert routed.path.end_kind != "packed"
    assert all(hop.fan_out is None or hop.fan_out >= 1 for hop in routed.path.hops)
    assert json.dumps(routed.path.summary())
    assert lines[0] == "Verilog ..."
    lines.clear()
    again = tools.place_and_route(kept, seed=3, frequency=50.0, progress=lines.append)
    assert again == routed
    assert lines == []


def test_rows_of_other_parts_stay(monkeypatch, tmp_path):
    measured = json.loads((Path(__file__).parents[2] / "docs/figures/toeplitz.json").read_text())
    # As rows were before each had its own command and commit.
    row = {k: v for k, v in measured["results"][0].items() if k not in ("command", "commit")}

    def explore(runs, progress, *, route, jobs, found):
        for run in runs:
            for seed in run.seeds:
                found(row | {"device": run.device, "seed": seed})

    monkeypatch.setattr(engines, "explore", explore)
    file = tmp_path / "toeplitz.json"
    file.write_text(json.dumps(measured | {"results": [row], "command": "x", "commit": "y"}))
    assert engines.main(["--device", "ice40up5k", str(file)]) == 0
    written = json.loads(file.read_text())["results"]
    assert [(one["device"], one["seed"]) for one in written] == [
        (row["device"], row["seed"]),
        *(("iCE40UP5K", seed) for seed in (1, 2, 3)),
    ]
    assert (written[0]["command"], written[0]["commit"]) == ("x", "y")
    assert written[1]["command"] == 'make pnr-toeplitz DEVICES="ice40up5k"'
    assert file.with_suffix(".md").read_text().count("iCE40UP5K") > 3
    # So do rows of other seeds of a part, with what they were made by.
    assert engines.main(["--device", "iCE40UP5K", "--seed", "2", str(file)]) == 0
    written = json.loads(file.read_text())["results"]
    assert [one["seed"] for one in written[1:]] == [1, 2, 3]
    one, two, three = (row["command"] for row in written[1:])
    assert one == three == 'make pnr-toeplitz DEVICES="ice40up5k"'
    assert two == 'make pnr-toeplitz DEVICES="iCE40UP5K" SEEDS="2"'
    # All of them anew.
    assert engines.main([str(file)]) == 0
    assert len(json.loads(file.read_text())["results"]) == sum(len(r.seeds) for r in engines.FIGURE)


def with_memories(folder, banks, slices):
    """What `memory_sites` reads of a netlist, with as many slices of five block RAMs in a bank."""
    cells = {
        f"component.{kind}_{bank}_{i}.0.{j}": {"type": "DP16KD"}
        for bank in range(banks)
        for kind, count in slices
        for i in range(count)
        for j in range(5)
    }
    cells["component.window_0.0.0"] = {"type": "TRELLIS_DPR16X4"}
    (folder / "netlist.json").write_text(json.dumps({"modules": {"top": {"cells": cells}}}))
    return tools.Netlist(DEVICES["LFE5U-85F-6"], folder, {}, 0.0)


def test_memories_lie_in_the_order_of_their_bits(tmp_path):
    sites = engines.memory_sites(with_memories(tmp_path, 4, [("key", 6), ("sum", 3)]))
    assert len(sites) == len(set(sites.values())) == 4 * 9 * 5
    assert not any("window" in cell for cell in sites)
    rows = {}
    for cell, site in sites.items():
        bank = int(cell.split("_")[1])
        x, y, _ = site.split("/")
        rows.setdefault((bank, y), {})[cell.replace(f"_{bank}_", "_")] = int(x[1:])
    assert sorted(rows) == [(0, "Y22"), (1, "Y46"), (2, "Y70"), (3, "Y82")]
    # All banks alike, and the same bits of key and sums close to each other.
    first, *others = rows.values()
    assert all(row == first for row in others)
    order = sorted(first, key=first.__getitem__)
    assert order[:3] == ["component.key_0.0.0", "component.sum_0.0.0", "component.key_0.0.1"]
    assert order[-1] in ("component.key_5.0.4", "component.sum_2.0.4")


@pytest.mark.parametrize(
    ("banks", "key_slices", "words"), [(2, 6, "2 banks"), (4, 12, "75 block RAMs")]
)
def test_memories_that_have_no_sites(banks, key_slices, words, tmp_path):
    netlist = with_memories(tmp_path, banks, [("key", key_slices), ("sum", 3)])
    with pytest.raises(tools.ToolFailed, match=words):
        engines.memory_sites(netlist)


class Queue(wiring.Component):
    """A FIFO out of block RAM."""

    def __init__(self):
        super().__init__({"i": In(36), "put": In(1), "take": In(1), "o": Out(36), "some": Out(1)})

    def elaborate(self, platform):
        m = Module()
        m.submodules.fifo = fifo = SyncFIFOBuffered(width=36, depth=513)
        m.d.comb += [
            fifo.w_data.eq(self.i),
            fifo.w_en.eq(self.put),
            fifo.r_en.eq(self.take),
            self.o.eq(fifo.r_data),
            self.some.eq(fifo.r_rdy),
        ]
        return m


@needs_tools
def test_memories_that_are_read_apart_get_no_logic_for_reads_of_what_is_written():
    part = DEVICES["LFE5U-25F-6"]
    plain = tools.synthesise(Queue(), part)
    apart = tools.synthesise(Queue(), part, apart=("*.fifo.storage",))
    # A register of the word written, and the multiplexer that chooses it.
    assert plain.counts["ff"] - apart.counts["ff"] >= 36
    assert plain.counts["lut4"] - apart.counts["lut4"] >= 36
    assert plain.counts["bram"] == apart.counts["bram"] > 0


def test_a_receiver_is_measured_in_one_design_or_in_two():
    by_part = {}
    for run in receiver.FIGURE:
        by_part.setdefault(run.device, []).append(run)
    assert [run.scope for run in by_part["LFE5U-25F-6"]] == ["tag path", "front end"]
    (whole,) = by_part["LFE5U-85F-6"]
    assert (whole.scope, whole.channels, whole.inputs, whole.lines) == ("station", 8, 8, 4)
    design = by_part["LFE5U-25F-6"][1].design()
    assert design.inputs == 4
