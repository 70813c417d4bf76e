# SPDX-License-Identifier: Apache-2.0
"""Overload of a receiver in real time: more tags than the sink takes, and where they went."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import time
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from keyrail import t2, tag_path
from keyrail.cache import cache_directory
from keyrail.contract import PERIOD_FRACTION_BITS, TAG, TIME_RECORD_LOG2_PS, Role, TagKind
from keyrail.errors import KeyrailError, MissingExtra
from keyrail.layouts import Structured, zeros
from keyrail_sim import verilate, verilated

SINK_PER_S = 12_000_000
"""Records a second that the sink takes, the clock being 10 ns."""
CHUNK = 1 << 20
"""Clocks simulated at a time."""
_Clicks = tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]


KEPT_BACK = 1000
"""Records still queued when a chunk ends."""


@dataclass(frozen=True)
class Overload:
    """What became of the tags of an overload, from the records themselves and the counters.

    Attributes
    ----------
    clocks
        Clocks in which a record was offered.
    offered, stored, missed
        Clicks offered, found in the T2 stream, and counted as missed by the board.
    losses, missed_in_ledger
        Records of the loss ledger, and the clicks they say were missed.
    time_records
        Time records offered among the clicks.
    clocks_per_second
        Speed of the simulation.
    """

    clocks: int
    offered: int
    stored: int
    missed: int
    losses: int
    missed_in_ledger: int
    time_records: int
    clocks_per_second: int


def _tags(start: int, count: int, rng: np.random.Generator) -> Structured:
    """A record for each of `count` clocks: clicks, and a time record at each 2^29 ps."""
    tags = zeros(TAG, count)
    clock = np.arange(start, start + count) * verilated.CLOCK_PS
    due = clock >> TIME_RECORD_LOG2_PS != (clock - verilated.CLOCK_PS) >> TIME_RECORD_LOG2_PS
    tags["time"] = clock + rng.integers(0, verilated.CLOCK_PS, count)
    tags["channel"] = rng.integers(0, 8, count)
    tags["kind"][due], tags["channel"][due] = TagKind.TIME, 0
    tags["time"][due] = clock[due]
    return tags


class _Account:
    """Follows every click from where it was offered to the T2 stream or into a loss."""

    def __init__(self) -> None:
        self.offered = self.stored = 0
        self._told = 0  # losses accounted for
        self._sent: _Clicks = _nothing()
        self._came: _Clicks = _nothing()
        self._until = 0

    def offer(self, tags: Structured) -> None:
        click = tags[tags["kind"] == TagKind.CLICK]
        self.offered += len(click)
        self._sent = _joined(self._sent, (click["time"].astype(np.int64), click["channel"]))

    def take(self, events: t2.Events) -> None:
        self.stored += len(events.times)
        self._came = _joined(self._came, (events.times, events.channels))
        self._until = events.until

    def close(self, ledger: Structured, last: bool) -> None:
        """Account for all clicks up to the end of the last loss that both streams have told."""
        ends = ledger["end"].astype(np.int64)
        known = len(ledger) if last else int(np.searchsorted(ends, self._until))
        limit = np.iinfo(np.int64).max if last else int(ends[known - 1]) if known else -1
        losses = ledger[self._told : known]
        self._told = known
        (times, channels), self._sent = _split(self._sent, limit)
        (left, left_channels), self._came = _split(self._came, limit)
        at = np.searchsorted(times, left)
        if not (
            np.array_equal(times[np.minimum(at, len(times) - 1)], left)
            and np.array_equal(channels[at], left_channels)
        ):
            raise KeyrailError("a click came out that did not go in, or out of order")
        gone = np.ones(len(times), np.bool_)
        gone[at] = False
        missing = times[gone]
        which = np.searchsorted(losses["end"].astype(np.int64), missing)
        if len(missing) and (
            int(which.max()) >= len(losses) or (losses["begin"][which] > missing).any()
        ):
            raise KeyrailError("a click is missing that no loss covers")
        if not np.array_equal(np.bincount(which, minlength=len(losses)), losses["missed"]):
            raise KeyrailError("a record of the loss ledger counts wrongly")


def _nothing() -> _Clicks:
    return np.zeros(0, np.int64), np.zeros(0, np.uint8)


def _joined(first: _Clicks, second: _Clicks) -> _Clicks:
    return np.concatenate([first[0], second[0]]), np.concatenate([first[1], second[1]])


def _split(clicks: _Clicks, limit: int) -> tuple[_Clicks, _Clicks]:
    """Clicks up to a time, and those after it."""
    cut = int(np.searchsorted(clicks[0], limit, side="right"))
    return (clicks[0][:cut], clicks[1][:cut]), (clicks[0][cut:], clicks[1][cut:])


def run(clocks: int, seed: int = 1) -> Overload:
    """Offer a record in every clock to the receiver's gateware, its sink at `SINK_PER_S`.

    Each click that was offered must be in the T2 stream or lie inside a loss whose record counts
    it: times and channels are compared one by one, loss by loss.

    Parameters
    ----------
    clocks
        Clocks in which a record is offered.
    seed
        Of channels, times within the clock, and the clocks in which the sink takes.

    Returns
    -------
    Overload
        The account; every sum has been checked.

    Raises
    ------
    ValueError
        If there are no clocks, or too many.
    KeyrailError
        If a click is missing that no loss covers, or a count does not close.
    """
    rng = np.random.default_rng(seed)
    decoder = t2.Decoder()
    account = _Account()
    if not 0 < clocks < (1 << 48) // verilated.CLOCK_PS:
        raise ValueError(f"{clocks} clocks: allowed is 1 to a wrap of the time (2^48 ps)")
    losses: list[Structured] = []
    began = time.perf_counter()
    with closing(verilated.open_station(Role.RECEIVER, "sim:bob")) as board:
        board.write("tag_input", raw=1, real_time=1)
        tag_path.set_slots(board, 10_000 << PERIOD_FRACTION_BITS, 0)
        board.pauses(seed, take=SINK_PER_S * verilated.CLOCK_PS / 1e12)
        markers = done = 0
        while done < clocks:
            count = min(CHUNK, clocks - done)
            tags = _tags(done, count, rng)
            markers += int((tags["kind"] == TagKind.TIME).sum())
            account.offer(tags)
            board.send("tags", tags)
            done += count
            if done < clocks:
                # Some are kept back, so that the next clock has one too.
                board.step(board.pending("tags") - KEPT_BACK)
            else:
                board.run()
            account.take(decoder.feed(board.receive_bytes(board.streams["raw"])))
            losses.append(board.receive("losses"))
            account.close(np.concatenate(losses), done == clocks)
            board.receive("gated")
        counts = board.ledger("tag_fifo")
        passed = board.cycles
    seconds = time.perf_counter() - began
    ledger = np.concatenate(losses)
    result = Overload(
        clocks=clocks,
        offered=account.offered,
        stored=account.stored,
        missed=counts["missed"],
        losses=len(ledger),
        missed_in_ledger=int(ledger["missed"].sum()),
        time_records=markers,
        clocks_per_second=round(passed / seconds),
    )
    _check(result, counts)
    return result


def _program() -> Path:
    """The tag FIFO with T2 encoder under Verilator and its C++ loop, built if need be."""
    os.environ["AMARANTH_USE_YOSYS"] = verilate.verilator_environment()["AMARANTH_USE_YOSYS"]
    try:
        from amaranth.back import verilog

        from keyrail_sim.t2_path import T2Path
    except ModuleNotFoundError as error:
        raise MissingExtra(error.name or "amaranth", "sim") from None
    text = verilog.convert(T2Path(), name="overload", emit_src=False, strip_internal_attrs=True)
    loop = (Path(__file__).parent / "overload.cpp").read_text()
    key = hashlib.sha256((text + loop + repr(verilated.FLAGS)).encode()).hexdigest()[:24]
    path = cache_directory() / f"overload-{key}"
    if path.exists():
        return path
    verilate.build(T2Path(), "overload", loop, path, verilated.FLAGS, "-std=c++17")
    return path


def benchmark(clocks: int, seed: int = 1) -> Overload:
    """Overload of tag FIFO and T2 encoder alone, without the rest of a receiver: some ten times
    faster than `run`. The account is the same: each click one by one, loss by loss.

    Parameters
    ----------
    clocks
        Clocks in which a record is offered.
    seed
        Of channels and times within the clock; the sink takes 12 of 100 clocks, evenly.

    Raises
    ------
    KeyrailError
        If it cannot be built, or the account does not close.
    """
    program = _program()
    share = SINK_PER_S * verilated.CLOCK_PS // 10**10
    began = time.perf_counter()
    done = subprocess.run(
        [program, str(clocks), str(seed), str(share)], capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - began
    if done.returncode:
        raise KeyrailError(f"overload: {done.stderr.strip()}")
    account = json.loads(done.stdout)
    counters = account.pop("counters")
    result = Overload(**account, clocks_per_second=round(clocks / seconds))
    _check(result, counters)
    return result


def _check(result: Overload, counters: dict[str, int]) -> None:
    """Raise KeyrailError if counters, ledger and stream do not agree."""
    expected = {
        "in": result.offered,
        "out": result.stored,
        "missed": result.offered - result.stored,
        "refused": 0,
        "losses": result.losses,
        "markers_missed": 0,
    }
    if counters != expected or not result.missed == result.missed_in_ledger == counters["missed"]:
        raise KeyrailError(f"overload: counters {counters} and records {expected} differ: {result}")


def figure() -> dict[str, Any]:
    """Overload of tag FIFO and T2 encoder for 10^8 clocks: a second of a board."""
    return {
        "clock_ns": verilated.CLOCK_PS / 1000,
        "sink_records_per_second": SINK_PER_S,
        "tag_fifo_records": 1 << 12,
        "results": [asdict(benchmark(100_000_000))],
    }
