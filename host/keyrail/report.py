# SPDX-License-Identifier: Apache-2.0
"""HTML reports with plots: one file that needs nothing else."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from keyrail.demo import DemoResult
from keyrail.replay import SLOT_OFFSETS, Replay
from keyrail.selftest import SelfTest

_COLOURS = ("#1f5fa8", "#c8541c", "#2f7d4f", "#7a3f98", "#8a6d00", "#b02a5b", "#3c8c95", "#555555")


def _svg(figure: Figure) -> Markup:
    text = io.StringIO()
    figure.tight_layout()
    figure.savefig(text, format="svg", metadata={"Date": None})
    # The plot goes into the page as it is: only its own drawing, no header of its own.
    return Markup(re.sub(r"^.*?(?=<svg)", "", text.getvalue(), flags=re.DOTALL))


def _page(title: str, summary: list[tuple[str, str]], plots: list[tuple[str, Markup]]) -> str:
    templates = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    environment = jinja2.Environment(loader=templates, autoescape=True)
    page = environment.get_template("report.html.j2")
    return page.render(title=title, summary=summary, plots=plots)


def _histogram(
    histogram: Any, bin_ps: int, period_ps: float, gates: dict[int, tuple[int, int]]
) -> Markup:
    figure = Figure(figsize=(8, 3.6))
    axes = figure.add_subplot()
    used = min(histogram.shape[1], int(np.ceil(period_ps / bin_ps)))
    phase = np.arange(used) * bin_ps / 1000
    top = period_ps / 1000
    for index, (channel, (start, stop)) in enumerate(gates.items()):
        colour = _COLOURS[index % len(_COLOURS)]
        counts = histogram[channel, :used]
        axes.step(phase, counts, where="post", color=colour, lw=1, label=f"channel {channel}")
        first, last = start / 1000, stop / 1000
        spans = [(first, last)] if first <= last else [(first, top), (0, last)]
        # Equal gates are drawn once.
        if (start, stop) not in list(gates.values())[:index]:
            for low, high in spans:
                axes.axvspan(low, high, color=colour, alpha=0.12, lw=0)
    axes.set_xlabel("phase in the slot (ns)")
    axes.set_ylabel(f"clicks per {bin_ps} ps")
    axes.set_xlim(0, top)
    axes.set_yscale("symlog", linthresh=10)
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper right", fontsize=8)
    return _svg(figure)


def _budget(result: DemoResult) -> Markup | None:
    block = result.result
    if block is None or block.estimate is None:
        return None
    left = float(block.estimate.secret_bits)
    steps = [*block.estimate.budget(), ("secret (estimate)", left)]
    figure = Figure(figsize=(8, 3.8))
    axes = figure.add_subplot()
    level = 0.0
    for index, (_, change) in enumerate(steps):
        whole = index in (0, len(steps) - 1)
        bottom = 0.0 if whole else min(level, level + change)
        colour = _COLOURS[0] if index == 0 else _COLOURS[2] if whole else _COLOURS[1]
        axes.bar(index, abs(change), bottom=bottom, color=colour, width=0.7)
        axes.annotate(
            f"{change:,.0f}", (index, bottom + abs(change)), ha="center", va="bottom", fontsize=8
        )
        level = change if whole else level + change
    axes.set_xticks(
        range(len(steps)), [name.replace(" ", "\n", 1) for name, _ in steps], fontsize=7
    )
    axes.set_ylabel("bits")
    axes.axhline(0, color="black", lw=0.6)
    return _svg(figure)


def demo_report(result: DemoResult) -> str:
    """Report of a demo run.

    Parameters
    ----------
    result
        What the run gave; no secret enters the page.

    Returns
    -------
    str
        HTML page: summary, phase histogram with the gate, rate and QBER over time, key budget.
    """
    plots: list[tuple[str, Markup]] = []
    if result.histogram is not None:
        gates = dict.fromkeys(range(4), result.gate)
        drawn = _histogram(result.histogram, result.bin_ps, result.period_ps, gates)
        plots.append(("Clicks of the block by phase, and the gate (shaded)", drawn))
    line = result.timeline
    if line is not None:
        figure = Figure(figsize=(8, 5))
        rate, errors = figure.subplots(2, 1, sharex=True)
        width = float(line.seconds[1] - line.seconds[0]) if len(line.seconds) > 1 else 1.0
        rate.plot(line.seconds, line.detections / width / 1e6, color=_COLOURS[0])
        rate.set_ylabel("detections (10⁶/s)")
        rate.set_ylim(bottom=0)
        tested = line.test > 0
        share = line.test_errors[tested] / line.test[tested]
        errors.plot(line.seconds[tested], 100 * share, ".-", color=_COLOURS[1], lw=0.8)
        errors.set_ylabel("QBER in X (%)")
        errors.set_ylim(bottom=0)
        errors.set_xlabel("time in the block (s)")
        plots.append(("Detection rate and error rate of the test basis over time", _svg(figure)))
    budget = _budget(result)
    if budget is not None:
        plots.append(("Key budget, from sifted to secret bits (estimate)", budget))
    return _page("Keyrail demo", result.summary(), plots)


def replay_report(result: Replay) -> str:
    """Report of a replayed recording.

    Parameters
    ----------
    result
        What the tag path made of it.

    Returns
    -------
    str
        HTML page: summary, phase histogram with the gates, tags per slot offset.
    """
    drawn = _histogram(result.histogram, result.bin_ps, result.period_ps, result.gates)
    figure = Figure(figsize=(8, 3.2))
    axes = figure.add_subplot()
    width = 0.8 / max(1, len(result.slot_offsets))
    for index, (channel, counts) in enumerate(result.slot_offsets.items()):
        place = np.arange(SLOT_OFFSETS) + index * width - 0.4 + width / 2
        axes.bar(place, counts, width, color=_COLOURS[index % len(_COLOURS)], label=f"{channel}")
    axes.set_xlabel(f"slot number modulo {SLOT_OFFSETS}")
    axes.set_ylabel("tags")
    axes.legend(title="channel", fontsize=8)
    return _page(
        f"Replay of {Path(result.recording.path).name}",
        result.summary(),
        [
            ("Clicks by phase, and the gates (shaded)", drawn),
            ("Accepted tags per slot offset", _svg(figure)),
        ],
    )


def build_report(result: dict[str, Any]) -> str:
    """Report of a station built for a board.

    Parameters
    ----------
    result
        What was built, as `keyrail_boards.stations.described` says it.

    Returns
    -------
    str
        HTML page: summary with the clocks and their slowest paths, share of the part, clocks.
    """
    summary = [
        ("Board", result["board"]),
        ("Role", result["role"]),
        ("Configuration", result["configuration"]),
        ("Sizes", ", ".join(f"{name} {value}" for name, value in result["sizes"].items())),
        ("Part", result["device"]),
        ("LUT4", f"{result['lut4']:,} of {result['lut4_of_part']:,}"),
        ("Flip-flops", f"{result['ff']:,}"),
        ("Block RAM", f"{result['bram']} of {result['bram_of_part']}"),
        ("Timing", "met" if result["closes"] else "NOT met: no bitstream was written"),
        *(("Delay lines", f"NOT as they must be: {fault}") for fault in result["line_faults"][:1]),
    ]
    for clock in result["clocks"]:
        reached = "no path" if clock["fmax_mhz"] is None else f"{clock['fmax_mhz']} MHz"
        text = f"{reached}, wanted {clock['target_mhz']:g} MHz"
        text += "" if clock["closes"] else ": too slow"
        path = clock["critical_path"]
        if path:
            text += (
                f"; slowest from {path['start']} to {path['end']}, {path['logic_ns']} ns in cells "
                f"and {path['routing_ns']} ns on {path['nets']} nets"
            )
        summary.append((f"Clock {clock['name'].removeprefix('clk_')}", text))
    for crossing in result["crossings"]:
        text = f"{crossing['delay_ns']} ns of {crossing['limit_ns']} ns"
        text += "" if crossing["holds"] else ": too slow"
        summary.append((f"From {crossing['source']} to {crossing['target']}", text))
    summary += [
        (f"From {way}", f"{delay} ns, without the pads and the board; not checked")
        for way, delay in result["pin_paths_ns"].items()
    ]
    summary += [
        ("Hash of all inputs", result["identity"]),
        ("SHA-256 of the bitstream", result["bitstream_sha256"]),
        ("nextpnr's seed", str(result["seed"])),
        ("Tools", ", ".join(f"{name} {version}" for name, version in result["tools"].items())),
    ]
    figure = Figure(figsize=(8, 2.2))
    axes = figure.add_subplot()
    shares = [
        ("LUT4", result["lut4"] / result["lut4_of_part"]),
        ("block RAM", result["bram"] / result["bram_of_part"]),
    ]
    axes.barh([name for name, _ in shares], [100 * share for _, share in shares], color=_COLOURS[0])
    axes.set_xlim(0, 100)
    axes.set_xlabel("share of the part (%)")
    clocks = Figure(figsize=(8, 1 + 0.5 * len(result["clocks"])))
    bars = clocks.add_subplot()
    for place, clock in enumerate(result["clocks"]):
        colour = _COLOURS[2] if clock["closes"] else _COLOURS[1]
        bars.barh(place, clock["fmax_mhz"] or 0, color=colour, height=0.6)
        bars.plot([clock["target_mhz"]] * 2, [place - 0.4, place + 0.4], color="black")
    bars.set_yticks(
        range(len(result["clocks"])), [c["name"].removeprefix("clk_") for c in result["clocks"]]
    )
    bars.set_xlabel("MHz reached (bar) and wanted (line)")
    title = f"{result['board']} {result['role']} {result['configuration']}"
    return _page(
        f"Build of {title}",
        summary,
        [("Share of the part", _svg(figure)), ("Clocks", _svg(clocks))],
    )


def selftest_report(result: SelfTest) -> str:
    """Report of a self-test.

    Parameters
    ----------
    result
        What the board did.

    Returns
    -------
    str
        HTML page: each check with its outcome, what was seen, and what to do.
    """
    return _page(f"Self-test of {result.board}", result.summary(), [])
