# SPDX-License-Identifier: Apache-2.0
"""Boards: clocks within the part's limits, pins declared once, bitstreams, errors of one line."""

import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import pytest
from amaranth.back import verilog
from amaranth.hdl import ClockDomain, Module, Signal
from amaranth.lib import io
from amaranth.sim import Simulator

import board_blinker as blinker
from keyrail import cli
from keyrail.contract import STATE_WORD, STATES_PER_WORD, BoardCode, Role
from keyrail.errors import MissingExtra, SettingError
from keyrail_boards import pins, stations
from keyrail_boards import place_and_route as tools
from keyrail_boards.bitstream import (
    TOOLS,
    Bitstream,
    ClockResult,
    Packed,
    TimingFailed,
    build,
    check_timing,
    clock_results,
    crossings,
    pack,
    pin_paths,
)
from keyrail_boards.board import (
    Clocks,
    Stage,
    board_named,
    boards,
    ecp5,
    role_named,
    sampler_sizes,
    tdc_sizes,
)
from keyrail_boards.place_and_route import ToolFailed
from keyrail_boards.pll import (
    DIVIDERS,
    INPUT_MHZ,
    OUTPUT_MHZ,
    PHASE_DETECTOR_MHZ,
    VCO_MHZ,
    NoPll,
    phase_settings,
    settings,
)
from keyrail_boards.providers import DelaySteps
from keyrail_boards.tdc import LineError
from keyrail_sim.verilate import without_zero_memories

BOARDS = list(boards().values())
FITS = [(board, role, name) for board in BOARDS for role, name in board.fits]

needs_tools = pytest.mark.skipif(
    bool(tools.tools_missing(*TOOLS)),
    reason=f"not installed: {', '.join(tools.tools_missing(*TOOLS))} (extra build)",
)


def within(value, limits):
    return limits[0] <= value <= limits[1]


# -- clocks --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reference", "wanted"),
    [(48, [48, 12]), (48, [100]), (25, [60, 100]), (60, [48, 12]), (100, [80]), (25, [60, 60])],
)
def test_pll_gives_exactly_these(reference, wanted):
    found = settings(reference, wanted)
    assert [found.by_index()[n].mhz for n in range(len(wanted))] == wanted
    assert found.error_ppm == 0


def test_pll_keeps_the_limits_of_the_data_sheet():
    rng = random.Random(1)
    errors = []
    for _ in range(60):
        reference = Fraction(rng.randint(80, 4000), 10)
        wanted = [Fraction(rng.randint(32, 4000), 10) for _ in range(rng.randint(1, 4))]
        try:
            found = settings(reference, wanted, tolerance_ppm=100_000)
        except NoPll:
            continue
        # Worked out anew from the dividers alone.
        compared = reference / found.input_divider
        vco = compared * found.feedback_divider * found.outputs[0].divider
        assert within(reference, INPUT_MHZ)
        assert within(compared, PHASE_DETECTOR_MHZ)
        assert within(vco, VCO_MHZ)
        dividers = [found.input_divider, found.feedback_divider]
        for index, mhz in enumerate(wanted):
            output = found.by_index()[index]
            assert vco / output.divider == output.mhz
            assert within(output.mhz, OUTPUT_MHZ)
            assert output.error_ppm == (output.mhz - mhz) / mhz * 1_000_000
            assert abs(output.error_ppm) <= found.error_ppm
        dividers += [output.divider for output in found.outputs]
        assert all(within(divider, DIVIDERS) for divider in dividers)
        assert len(found.outputs) <= 4
        errors.append(found.error_ppm)
    assert len(errors) > 30
    assert any(errors)


@pytest.mark.parametrize(
    ("reference", "wanted", "said"),
    [
        (5, [100], "input 8 to 400"),
        (100, [3], "no settings"),
        (100, [401], "parts in a million"),
        (100, [], "1 to 4 outputs"),
        (25, [48], "parts in a million"),
    ],
)
def test_pll_refuses(reference, wanted, said):
    with pytest.raises(NoPll, match=said):
        settings(reference, wanted)


def test_settings_out_of_the_limits_are_found_out():
    good = settings(100, [80])
    with pytest.raises(NoPll, match="oscillator"):
        replace(good, feedback_divider=good.feedback_divider * 3).check()
    with pytest.raises(NoPll, match="phase detector"):
        replace(good, input_divider=20).check()


def test_stages_may_give_one_frequency_twice():
    clocks = Clocks("in", 25, (Stage("in", {"a": 60, "b": 60}), Stage("a", {"c": 48})), {"x": "c"})
    assert clocks.frequencies() == {"x": 48}


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.name)
def test_clocks_of_a_board_are_exact(board):
    for fit in board.fits.values():
        frequencies = board.clocks(fit.clock_mhz).frequencies()
        assert frequencies["sync"] == fit.clock_mhz
        assert frequencies.get("usb", 60) in (12, 60)
        assert frequencies.get("usb_io", 48) == 48


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.name)
def test_station_may_be_clocked_by_a_reference(board):
    fit = next(iter(board.fits.values()))
    for mhz in (fit.clock_mhz, 10):
        clocks = board.clocks(fit.clock_mhz).by_reference(mhz, fit.clock_mhz)
        assert clocks.frequencies()["sync"] == fit.clock_mhz
        assert clocks.sources["reference"] == mhz
        outputs = [name for stage in clocks.stages for name in stage.outputs]
        used = {*clocks.domains.values(), *(stage.source for stage in clocks.stages)}
        assert set(outputs) <= used
        others = board.clocks(fit.clock_mhz).frequencies()
        assert clocks.frequencies() == others


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.name)
def test_phases_that_sample_divide_the_clock_evenly(board):
    fit = board.fit(Role.RECEIVER, "sampled")
    for reference in (None, fit.clock_mhz):
        clocks = board.clocks(fit.clock_mhz)
        if reference:
            clocks = clocks.by_reference(reference, fit.clock_mhz)
        others = clocks.frequencies()
        clocks = clocks.in_phases(fit.phases)
        frequencies = clocks.frequencies()
        later = {f"phase_{n}": fit.clock_mhz for n in range(1, fit.phases)}
        assert frequencies == others | later
        if fit.phases == 1:
            continue
        # All of one PLL, and late by what the samplers' places in the code say.
        (stage,) = [stage for stage in clocks.stages if stage.phases]
        assert {clocks.domains[one] for one in ("sync", *later)} == set(stage.phases)
        chosen = clocks.settings()[clocks.stages.index(stage)].by_index()
        for n, (output, share) in enumerate(stage.phases.items()):
            assert share == Fraction(n, 2 * fit.phases)
            divider = chosen[list(stage.outputs).index(output)].divider
            whole, eighths = phase_settings(divider, share)
            assert whole - (divider - 1) + Fraction(eighths, 8) == share * divider


def test_phases_that_cannot_be_are_refused():
    clocks = board_named("ecpix5-45f").clocks(100)
    with pytest.raises(SettingError, match="phases = 3: allowed is 1, 2, 4"):
        clocks.in_phases(3)
    with pytest.raises(NoPll, match="a phase of 1/3"):
        phase_settings(4, Fraction(1, 3))
    with pytest.raises(SettingError, match="whole ps"):
        sampler_sizes(4, 96)


# -- pins and parts ------------------------------------------------------------------------------


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.name)
def test_pins_are_declared_once(board):
    platform = board.platform()
    platform.add_resources(board.resources())
    wanted = [(name, number) for name, number, _ in board.connections()]
    clocks = board.clocks(next(iter(board.fits.values())).clock_mhz)
    wanted += [(board.usb.resource, 0), (clocks.oscillator, 0)]
    wanted += [(board.button, 0)] if board.button else []
    for name, number in wanted:
        platform.request(name, number, dir="-")  # raises where a pin is taken
    package = platform._nextpnr_package_options[platform.package]
    assert board.device.name == f"{platform.device}-{platform.speed} {package}"
    assert board.device.arguments[0] == platform._nextpnr_device_options[platform.device]
    labels = [one.label for _, _, one in board.connections()]
    assert len(set(labels)) == len(labels)


def test_page_of_pins_is_that_of_the_boards():
    written = Path(__file__).parents[2] / "docs" / "board_pins.md"
    assert written.read_text() == pins.page(), "run: make board-pins"


def test_slot_rates_are_stated_for_every_sender():
    """By hand: 320 or 8 Mb/s at 3 bits a slot, in whole clocks of the station."""
    lines = [line.split(" | ") for line in pins.page().splitlines() if "| small |" in line]
    found = {line[0].removeprefix("| "): line[2:] for line in lines}
    assert found["ecpix5-45f"] == ["75", "320.0", "106.7", "75.0", "1", "75.0 |"]
    assert found["orangecrab-25f"] == ["48", "8.0", "2.7", "2.67", "18", "48.0 |"]
    assert set(found) == {board.name for board in BOARDS}


def test_every_board_of_the_contract_is_there():
    codes = [board.code for board in BOARDS]
    assert sorted(codes) == sorted(code for code in BoardCode if code is not BoardCode.SIMULATED)


@pytest.mark.parametrize(("board", "role", "name"), FITS, ids=lambda v: getattr(v, "name", v))
def test_configurations_are_possible(board, role, name):
    from keyrail_boards.top import StationTop

    fit = board.fit(role, name)
    top = StationTop(board, role, fit)
    assert top.configuration.board is board.code
    assert top.targets["clk_usb"] in (12, 60)
    assert fit.claims or fit.why_not


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.name)
def test_every_part_has_a_sender_with_the_ring_it_has_room_for(board):
    """2^17 states at least, 2^19 on an 85F, in block RAMs of 1024 x 18 bits."""
    deepest = max(
        fit.sizes["horizon_log2"] for (role, _), fit in board.fits.items() if role is Role.SENDER
    )
    assert deepest >= (19 if "85F" in board.device.name else 17)
    words, bits = (1 << deepest) // STATES_PER_WORD, STATE_WORD.used_bits + 1
    assert words // 1024 * -(-bits // 18) < board.device.bram / 2


def test_sizes_that_are_not_the_boards_are_refused():
    from keyrail_boards.top import StationTop

    board = board_named("orangecrab-25f")
    sender, receiver = board.fit(Role.SENDER), board.fit(Role.RECEIVER)
    with pytest.raises(ValueError, match="gear 4: the pins take 2 samples"):
        StationTop(board, Role.SENDER, replace(sender, sizes=sender.sizes | {"gear": 4}))
    # One sample a clock lasts the whole of it.
    StationTop(board, Role.SENDER, replace(sender, sizes=sender.sizes | {"gear": 1}))
    with pytest.raises(ValueError, match="has 4 detector inputs"):
        StationTop(board, Role.RECEIVER, replace(receiver, sizes=receiver.sizes | {"channels": 8}))


class Pins:
    """A platform that has every pin."""

    def request(self, name, number, dir):
        return io.SimulationPort("i", 1)


@pytest.mark.parametrize(("configuration", "samples"), [("sampled", 4), ("small", 2 * 224)])
def test_inputs_go_through_samplers_or_lines(configuration, samples):
    from keyrail_boards.top import StationTop

    board = board_named("orangecrab-25f")
    top = StationTop(board, Role.RECEIVER, board.fit(Role.RECEIVER, configuration))
    sizes = top.configuration
    assert sizes.tdc_lines * 2 * sizes.tdc_cells == samples
    # As many codes in a clock as there are samples, or taps that it reaches.
    codes = 2 * sizes.clock_ps / sizes.tdc_cell_ps
    assert samples >= codes > 0.8 * samples
    receiver = SimpleNamespace(
        sources=Signal(sizes.inputs),
        **{f"taps_{n}": Signal(samples, name=f"taps_{n}") for n in range(sizes.inputs)},
    )
    m = Module()
    m.domains.sync = ClockDomain()
    for domain in top.targets:
        if domain.startswith("clk_phase_"):
            m.domains += ClockDomain(domain.removeprefix("clk_"), reset_less=True)
    top._inputs(m, Pins(), receiver)
    taps = [getattr(receiver, f"taps_{n}") for n in range(sizes.inputs)]
    text = verilog.convert(m, ports=[receiver.sources, *taps], emit_src=False)
    cells = text.count("CCU2C_RAW")
    assert cells == (0 if configuration == "sampled" else sizes.inputs * sizes.tdc_cells)
    # Each sample has a flip-flop at its own edge: half of them fall.
    if configuration == "sampled":
        assert text.count("always @(negedge") == sizes.inputs * samples // 2


def test_lines_are_longer_than_a_clock():
    for part, speed, fast in (("LFE5U-25F", "6", 62), ("LFE5U-25F", "8", 50)):
        sizes = tdc_sizes(ecp5(part, speed, "csfBGA285"), 100)
        assert sizes["clock_ps"] == 10_000
        assert 11_200 <= sizes["tdc_cells"] * fast < 11_300
    with pytest.raises(SettingError, match="whole ps"):
        tdc_sizes(ecp5("LFE5U-25F", "6", "csfBGA285"), 96)


def test_delay_element_is_stepped_to_each_setting():
    steps = DelaySteps()
    rng = random.Random(2)
    reached = []

    async def bench(ctx):
        at, before = 64, 0  # it starts anywhere

        async def clock():
            nonlocal at, before
            _, _, loadn, move, down = await ctx.tick().sample(
                steps.loadn, steps.move, steps.direction
            )
            if not loadn:
                at = 0
            elif before and not move:
                at += -1 if down else 1
                assert 0 <= at < 128
            before = move

        for _ in range(25):
            ctx.set(steps.delay, rng.randrange(128))
            for _ in range(rng.choice((1, 7, 600))):
                await clock()
            if not ctx.get(steps.moving):
                await clock()
                assert at == ctx.get(steps.delay)
                reached.append(at)
        ctx.set(steps.delay, 127)
        for _ in range(600):
            await clock()
        assert at == 127

    simulator = Simulator(steps)
    simulator.add_clock(1e-8)
    simulator.add_testbench(bench)
    simulator.run()
    assert len(reached) > 3


# -- Verilog -------------------------------------------------------------------------------------


def test_zeros_of_a_table_stay():
    zeros = "  initial begin\n    a[0] = 9'h000;\n    a[1] = 9'h000;\n  end\n"
    mixed = "  initial begin\n    b[0] = 9'h000;\n    b[1] = 9'h012;\n  end\n"
    assert without_zero_memories(zeros + mixed) == "  initial begin\n  end\n" + mixed


def test_modules_are_shared_under_escaped_names():
    text = (
        "module \\top.a.U$7 (clk);\nendmodule\n"
        "module \\top.b.U$7 (clk);\nendmodule\n"
        "module top(clk);\n"
        "  \\top.a.U$7  \\U$7  (\n    .clk(clk)\n  );\n"
        "  \\top.b.U$7  \\U$8  (\n    .clk(clk)\n  );\n"
        "endmodule\n"
    )
    made, shared = tools.share_modules(text)
    assert shared == ["top.a.U$7"]
    assert made.count("\\top.a.U$7  \\U$") == 2
    assert "top.b" not in made


# -- timing --------------------------------------------------------------------------------------

NETLIST = {
    "cells": {},
    "netnames": {
        "clocking.clk": {"bits": [5]},
        "clocking.clk_sync": {"bits": [5]},
        "pins.clk_usb": {"bits": [6]},
    },
}
TARGETS = {"clk_sync": 100.0, "clk_usb": 60.0}


def way(start, end, delay):
    ends = {"cell": "x", "port": "Q"}
    parts = [{"type": "clk-to-q", "delay": delay, "from": ends, "to": ends}]
    return {"from": f"posedge {start}", "to": f"posedge {end}", "path": parts}


def report(sync=110.0, constraint=100.0):
    clock, usb = "$glbnet$clocking.clk", "$glbnet$pins.clk_usb"
    return {
        "fmax": {
            clock: {"achieved": sync, "constraint": constraint},
            usb: {"achieved": 70.0, "constraint": 60.0},
        },
        "critical_paths": [
            way(clock, clock, 9.0),
            way(clock, usb, 3.0),
            way(usb, clock, 12.5),
            way("<async>", clock, 80.0),
        ],
    }


def test_clocks_are_found_by_their_names():
    found = clock_results(report(), NETLIST, TARGETS)
    assert [(one.name, one.fmax_mhz, one.closes) for one in found] == [
        ("clk_sync", 110.0, True),
        ("clk_usb", 70.0, True),
    ]
    assert found[0].path is not None


def test_a_constraint_that_got_lost_is_an_error():
    with pytest.raises(ToolFailed, match=r"clk_sync was routed for 60.00 MHz instead of 100.00"):
        clock_results(report(constraint=60.0), NETLIST, TARGETS)
    with pytest.raises(ToolFailed, match="has no frequency to reach"):
        clock_results(report(), NETLIST, {"clk_usb": 60.0})


def test_crossings_have_two_periods_of_the_clock_they_go_to():
    text = report()
    text["critical_paths"].append(way("$glbnet$clocking.clk", "$glbnet$pins.clk_usb", 33.4))
    found = crossings(text, NETLIST, TARGETS)
    assert [(one.source, one.target, one.limit_ns, one.holds) for one in found] == [
        ("clk_sync", "clk_usb", 33.333, False),
        ("clk_usb", "clk_sync", 20.0, True),
    ]


def test_samples_of_later_phases_have_half_a_period():
    names = {"clocking.clk_phase_3": {"bits": [5]}, "clocking.clk_sync": {"bits": [6]}}
    ways = [way("clocking.clk_phase_3", "clocking.clk_sync", 5.1)]
    found = crossings(
        {"critical_paths": ways},
        {"netnames": names},
        {"clk_sync": 100.0, "clk_phase_3": 100.0},
    )
    assert [(one.limit_ns, one.holds) for one in found] == [(5.0, False)]


def test_ways_to_and_from_pins_are_shown():
    text = report()
    text["critical_paths"].append(way("$glbnet$pins.clk_usb", "<async>", 4.5))
    assert pin_paths(text, NETLIST, TARGETS) == {
        "clk_usb to pins": 4.5,
        "pins to clk_sync": 80.0,
    }


def test_clocks_of_one_pll_leave_a_period_of_the_faster():
    names = {"clocking.clk_usb": {"bits": [5]}, "clocking.clk_usb_io": {"bits": [6]}}
    ways = [way(f"clocking.{a}", f"clocking.{b}", 20.0) for a, b in (("clk_usb", "clk_usb_io"),)]
    ways += [way("clocking.clk_usb_io", "clocking.clk_usb", 21.0)]
    found = crossings(
        {"critical_paths": ways},
        {"netnames": names},
        {"clk_usb": 12.0, "clk_usb_io": 48.0},
    )
    assert [(one.source, one.limit_ns, one.holds) for one in found] == [
        ("clk_usb", 20.833, True),
        ("clk_usb_io", 20.833, False),
    ]


def made(tmp_path, fmax):
    (tmp_path / "top.bit").write_bytes(b"bits")
    return Bitstream(
        identity="0" * 24,
        folder=tmp_path,
        device=board_named("ecpix5-45f").device,
        clocks=(ClockResult("clk_sync", 100.0, fmax), ClockResult("clk_usb", 60.0, None)),
        crossings=(),
        pin_paths={"clk_usb to pins": 4.5},
        lut4=1,
        ff=2,
        bram=3,
        utilisation={},
        sha256="1" * 64,
        line_faults=(),
        seed=1,
        seconds=1.0,
        tools={"nextpnr": "0"},
    )


def test_a_slow_clock_is_an_error(tmp_path):
    check_timing(made(tmp_path, 100.0))
    with pytest.raises(TimingFailed, match=r"clk_sync reaches 99.9 MHz of 100 MHz"):
        check_timing(made(tmp_path, 99.9))


def test_a_broken_delay_line_is_an_error(tmp_path):
    with pytest.raises(LineError, match="seed 1: not in one row"):
        check_timing(replace(made(tmp_path, 200.0), line_faults=("not in one row",)))


# -- bitstreams ----------------------------------------------------------------------------------


CABLE = {"clk_usb": 12.0, "clk_usb_io": 48.0}


@needs_tools
def test_same_inputs_make_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setenv("KEYRAIL_CACHE", str(tmp_path / "one"))
    first = blinker.built("orangecrab-25f", 80)
    check_timing(first)
    assert first.file.read_bytes().startswith(b"\xff\x00Part: LFE5U-25F-8")
    assert first.utilisation["IOLOGIC"] == 1
    again = blinker.built("orangecrab-25f", 80)
    assert again == first  # found, not made
    packed = pack(blinker.design("orangecrab-25f", 80))
    assert packed.fits
    assert packed.used["IOLOGIC"] == packed.used["EHXPLLL"] - 1 == 1
    assert packed.used["TRELLIS_FF"] == first.ff
    assert not replace(packed, available=packed.available | {"TRELLIS_FF": 1}).fits
    # The same netlist, asked for what no part of the family does.
    made = blinker.design("orangecrab-25f", 80)
    text = made.constraints.replace("80000000.0 HZ", "900000000.0 HZ")
    too_fast = build(replace(made, constraints=text, targets={"clk_sync": 900.0, **CABLE}))
    assert too_fast.identity != first.identity
    with pytest.raises(TimingFailed, match=r"clk_sync reaches [\d.]+ MHz of 900 MHz"):
        check_timing(too_fast)
    environment = os.environ | {"KEYRAIL_CACHE": str(tmp_path / "two"), "PYTHONHASHSEED": "77"}
    done = subprocess.run(
        [sys.executable, blinker.__file__, "orangecrab-25f", "80"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == first.sha256, done.stderr


# -- command line --------------------------------------------------------------------------------


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["keyrail", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr()
    return ended.value.code, said.out, said.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("ecpix6", "sender"), "BOARD = ecpix6: allowed is ecpix5-85f"),
        (("ecpix5-45f", "alice"), "ROLE = alice: allowed is sender, receiver"),
        (("ecpix5-45f", "sender", "--configuration", "huge"), "--configuration = huge: allowed is"),
        (("ecpix5-45f", "sender", "--serial", "x"), "--serial = x"),
        (("ecpix5-45f",), "ROLE"),
    ],
)
def test_wrong_use_is_said(monkeypatch, capsys, tmp_path, arguments, said):
    monkeypatch.chdir(tmp_path)
    code, _, errors = run(monkeypatch, capsys, "build", *arguments)
    assert code == 2
    assert said in errors


@pytest.mark.parametrize("arguments", [("build",), ("build", "board"), ("program",)])
def test_help(monkeypatch, capsys, arguments):
    code, out, _ = run(monkeypatch, capsys, *arguments, "--help")
    assert code == 0
    assert "BOARD" in out


def test_a_slow_build_leaves_reports_and_no_bitstream(monkeypatch, capsys, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    bitstream = folder / "ecpix5-45f-sender-small.bit"
    bitstream.write_bytes(b"of an earlier build")
    monkeypatch.setattr(stations, "build_station", lambda *a, **k: made(tmp_path, 50.0))
    command = ("build", "ecpix5-45f", "sender", "--configuration", "small")
    code, _, errors = run(monkeypatch, capsys, *command, "--output", str(folder))
    assert code == cli.EXIT_TIMING
    assert "clk_sync reaches 50.0 MHz of 100 MHz" in errors
    assert not bitstream.exists()
    assert "NOT met" in bitstream.with_suffix(".html").read_text()
    monkeypatch.setattr(stations, "build_station", lambda *a, **k: made(tmp_path, 101.0))
    code, out, _ = run(monkeypatch, capsys, *command, "--output", str(folder))
    assert code == 0
    assert bitstream.read_bytes() == b"bits"
    assert "0" * 24 in out


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "amaranth_boards", None)
    with pytest.raises(MissingExtra, match=r"amaranth_boards is missing: pip install"):
        stations.design(board_named("ecpix5-45f"), Role.SENDER)


def test_pack_only_says_the_area_and_whether_it_fits(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    used = {"TRELLIS_COMB": 15_000, "DP16KD": 16, "TRELLIS_FF": 12_000}
    packed = Packed(board_named("cynthion").device, used, used, 1.0, {})
    monkeypatch.setattr(stations, "design", lambda *a, **k: None)
    monkeypatch.setattr("keyrail_boards.bitstream.pack", lambda *a, **k: packed)
    code, out, _ = run(monkeypatch, capsys, "build", "cynthion", "sender", "--pack-only")
    assert code == 0
    assert "15,000 of 24,288 LUT4, 16 of 56 block RAMs" in out
    packed = replace(packed, available=used | {"DP16KD": 15})
    code, _, errors = run(monkeypatch, capsys, "build", "cynthion", "sender", "--pack-only")
    assert code == 2
    assert "it does not fit LFE5U-12F-8" in errors
    assert not list(tmp_path.iterdir())


def test_program_needs_the_loader_and_the_right_part(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    file = tmp_path / "a.bit"
    file.write_bytes(b"\xff\x00Part: LFE5U-25F-8CSFBGA285\0")
    code, _, errors = run(monkeypatch, capsys, "program", "orangecrab-25f", str(file))
    assert code == 2
    assert "dfu-util is missing: install the system package dfu-util" in errors
    code, _, errors = run(monkeypatch, capsys, "program", "ecpix5-45f", str(file))
    assert code == 2
    assert "a bitstream for LFE5U-25F-8CSFBGA285; ECPIX-5 45F has an LFE5UM5G-45F" in errors
    file.write_bytes(b"nonsense")
    code, _, errors = run(monkeypatch, capsys, "program", "ecpix5-45f", str(file))
    assert code == 2
    assert "no bitstream" in errors
    code, _, errors = run(monkeypatch, capsys, "program", "ecpix5-45f", str(tmp_path / "none"))
    assert code == 2
    assert "No such file" in errors


def test_program_calls_the_loader(monkeypatch, capsys, tmp_path):
    loader = tmp_path / "openFPGALoader"
    loader.write_text('#!/bin/sh\necho "$@" > "$0.said"\ntest ! -e "$0.fails"\n')
    loader.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    file = tmp_path / "a.bit"
    file.write_bytes(b"\xff\x00Part: LFE5UM5G-45F-8CABGA554\0")
    code, _, _ = run(monkeypatch, capsys, "program", "ecpix5-45f", str(file))
    assert code == 0
    assert Path(f"{loader}.said").read_text().split() == ["--board", "ecpix5", str(file)]
    Path(f"{loader}.fails").touch()
    code, _, errors = run(monkeypatch, capsys, "program", "ecpix5-45f", str(file))
    assert code == 2
    assert "openFPGALoader ended with code 1" in errors


def claiming(monkeypatch):
    """The ECPIX-5 45F, whose small sender claims to fit."""
    board = board_named("ecpix5-45f")
    key = (Role.SENDER, "small")
    fits = board.fits | {key: replace(board.fits[key], claims=True, why_not="")}
    for other in set(fits) - {key}:
        fits[other] = replace(fits[other], claims=False, why_not="too slow")
    monkeypatch.setattr(stations, "board_named", lambda name: replace(board, fits=fits))


def test_what_claims_to_fit_must_close(monkeypatch, tmp_path):
    claiming(monkeypatch)
    monkeypatch.setattr(stations, "build_station", lambda *a, **k: made(tmp_path, 101.0))
    (one,) = stations.measure(["ecpix5-45f"], lambda line: None)
    assert (one["board"], one["role"], one["configuration"]) == ("ecpix5-45f", "sender", "small")
    assert one["closes"]
    monkeypatch.setattr(stations, "build_station", lambda *a, **k: made(tmp_path, 99.0))
    with pytest.raises(TimingFailed):
        list(stations.measure(["ecpix5-45f"], lambda line: None))
    # What claims nothing is in the table as it is.
    found = stations.measure(["x"], lambda line: None, only=["sender-full"], everything=True)
    assert [one["closes"] for one in found] == [False]


def test_a_part_of_the_table_is_made_anew(monkeypatch, tmp_path):
    claiming(monkeypatch)
    monkeypatch.setattr(stations, "build_station", lambda *a, **k: made(tmp_path, 101.0))
    file = tmp_path / "boards.json"
    arguments = ["--board", "ecpix5-45f", "--everything", str(file)]
    assert stations.main([*arguments, "--only", "sender-small"]) == 0
    assert stations.main([*arguments, "--only", "sender-full"]) == 0
    results = json.loads(file.read_text())["results"]
    assert [one["configuration"] for one in results] == ["small", "full"]
    assert "commit" in results[0]
    assert "sender small" in file.with_suffix(".md").read_text()

    def fails(*arguments, **options):
        raise ToolFailed("yosys: no")

    monkeypatch.setattr(stations, "build_station", fails)
    assert stations.main(["--board", "ecpix5-45f", str(file)]) == 2


def test_names_are_found_whatever_their_case():
    assert board_named("ECPIX5-85F").code is BoardCode.ECPIX5_85F
    assert role_named("Sender") is Role.SENDER
    with pytest.raises(SettingError, match="part = LFE5X-85F"):
        ecp5("LFE5X-85F", "8", "caBGA554")


def test_table_says_what_does_not_close():
    result = {
        "board": "b",
        "role": "sender",
        "configuration": "small",
        "sizes": {"gear": 2},
        "lut4": 1,
        "closes": False,
        "clocks": [{"name": "clk_sync", "fmax_mhz": 50.0, "target_mhz": 100.0}],
    }
    failed = {"board": "c", "role": "sender", "configuration": "small", "sizes": {}, "error": "E!"}
    packed = result | {"packed_only": True, "fits": False, "clocks": []}
    results = [result, failed, packed]
    page = stations.table({"command": "x", "tools": {"y": "1"}, "commit": "z", "results": results})
    assert "sync 50.0 / 100 | no |" in page
    assert "E! | no |" in page
    assert "does not fit |" in page
