# SPDX-License-Identifier: Apache-2.0
"""HTML reports: whole pages that need nothing else, from made-up results."""

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from keyrail.acquire import Acquisition
from keyrail.contract import GATED_TAG
from keyrail.demo import DemoResult, DemoSettings, Timeline
from keyrail.distil.estimate import DecoySource, estimate_key_length, expected_counts
from keyrail.layouts import zeros
from keyrail.recordings import Recording
from keyrail.replay import Replay
from keyrail.report import demo_report, replay_report
from keyrail.session import BlockResult


def histogram(centres, seed=1):
    rng = np.random.default_rng(seed)
    counts = np.zeros((8, 1024), np.int64)
    for channel, centre in centres.items():
        phases = np.concatenate([rng.normal(centre, 100, 5_000), rng.integers(0, 10_000, 300)])
        counts[channel] = np.bincount((phases % 10_000).astype(int) // 16, minlength=1024)
    return counts


def demo(slots=10_000_000):
    source = DecoySource()
    estimate = estimate_key_length(expected_counts(slots, source), source, slots * 0.002)
    secret = np.random.default_rng(2).integers(0, 2, estimate.secret_bits).astype(np.uint8)
    result = BlockResult(
        accepted=estimate.secret_bits > 0,
        reason=estimate.reason,
        secret=secret if len(secret) else None,
        sifted_bits=estimate.sifted_bits,
        qber_z=0.01,
        qber_x=0.011,
        estimate=estimate,
    )
    tests = np.array([50, 40, 0, 60])
    return DemoResult(
        DemoSettings(slots=slots),
        accepted=result.accepted,
        reason=result.reason,
        result=result,
        histogram=histogram(dict.fromkeys(range(4), 5_000)),
        bin_ps=16,
        gate=(4_700, 5_300),
        period_ps=10_000.0,
        timeline=Timeline(np.arange(4) + 0.5, tests * 9, tests, np.array([1, 0, 0, 2])),
        randomness={"states": "test"},
    )


def replayed(name="a.qutag", found=True):
    times = np.arange(10, dtype=np.int64)
    acquisition = Acquisition(
        10_000 << 44, 10_000.0, 1e-6, 0.98, {1: 0.97, 2: 0.99}, {}, 0, False, ""
    )
    return Replay(
        recording=Recording(name, "qutag", times, np.ones(10, np.uint16), 10, out_of_order=3),
        acquisition=acquisition if found else None,
        note="" if found else "no pulse period found",
        period_ps=10_000.0,
        backend="model",
        tags_in=10_600,
        tags_out=10_000,
        dropped={"gate: outside": 600},
        gates={1: (4_700, 5_300), 2: (9_700, 300)} if found else {1: (0, 10_000), 2: (0, 10_000)},
        slot_offsets={1: [625] * 8, 2: [5_000] + [0] * 7},
        histogram=histogram({1: 5_000, 2: 0}),
        bin_ps=16,
        stream_sha256={},
        gated=zeros(GATED_TAG, 0),
        decoded=zeros(GATED_TAG, 0),
    )


def check_page(page, plots):
    """Rows, headings and plots of a page that is well-formed and loads nothing."""
    # The page is XML but for its doctype and its meta elements without an end.
    root = ElementTree.fromstring(re.sub("<meta ([^>]*)>", r"<meta \1/>", page.split("\n", 1)[1]))
    drawings = [e for e in root.iter() if e.tag.endswith("svg")]
    assert len(drawings) == plots
    names = [e.get("id") for e in root.iter() if e.get("id")]
    used = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', page)
    assert used
    assert {one or other for one, other in used} <= set(names)
    assert not re.search(r'<script|<link|<img|src=|@import|href="http', page)
    figures = list(root.iter("figure"))
    assert all(figure.get("aria-label") for figure in figures)
    rows = {row.find("th").text: row.find("td").text for row in root.iter("tr")}
    headings = [e.text for e in root.iter("h2")]
    assert len(headings) == plots
    return rows, headings, drawings


def test_demo_report():
    result = demo()
    page = demo_report(result)
    rows, headings, _ = check_page(page, 3)
    assert result.result.secret_bits > 0
    assert rows["Secret bits (estimate)"] == f"{result.result.secret_bits:,}"
    # A secret length is nowhere shown without the word.
    shown = [text for text in [*rows, *headings] if "secret" in text.lower()]
    assert len(shown) == 2
    assert all("estimate" in text for text in shown)
    # matplotlib leaves the text of a label as a comment above its drawing.
    assert "secret" in page
    assert "(estimate)" in page
    assert f"{result.result.secret_bits:,}" in page.split("</table>")[1]
    assert "".join(map(str, result.result.secret))[:64] not in page


def test_demo_report_without_key():
    rows, _, _ = check_page(demo_report(demo(50_000)), 3)
    assert rows["Secret bits (estimate)"] == "0"
    assert rows["No key because"]
    # Stopped before the block: only the table.
    early = DemoResult(DemoSettings(), reason="training pattern not found")
    page = demo_report(early)
    assert "<svg" not in page
    assert "training pattern not found" in page


@pytest.mark.parametrize("found", [True, False])
def test_replay_report(found):
    rows, headings, _ = check_page(replay_report(replayed(found=found)), 2)
    assert rows["Dropped by gate: outside"] == "600"
    assert rows["Channel 2: gate"] == ("9700 to 300 ps" if found else "0 to 10000 ps")
    assert rows.get("Channel 2: visibility") == ("0.9900 with one period" if found else None)
    assert rows.get("Note on the period") == (None if found else "no pulse period found")
    assert "gates (shaded)" in headings[0]


def test_names_of_files_are_no_markup():
    page = replay_report(replayed("<script>alert(1)<b>.qutag"))
    assert "<script" not in page
    assert "&lt;script&gt;" in page
