# SPDX-License-Identifier: Apache-2.0
"""Benchmark of the decoding of T2 records on the host, beside ptufile and tttrlib."""

from __future__ import annotations

import importlib.metadata
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from keyrail import ptu, t2
from keyrail.contract import TAG, TIME_BITS, LossMark, TagKind
from keyrail.layouts import zeros

__all__ = ["figure", "table"]

Tags = tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]
TAGS = 10_000_000
CHANNELS = 8
RATES = (10_000, 100_000, 1_000_000, 10_000_000, 80_000_000)
"""Tags a second: below 30,000, most records are overflows; at 80 million, USB 2.0 is full."""
LOSSES = 1_000
"""Pairs of markers in each stream."""
RUNS = 5
CHUNK = 1 << 20
"""Bytes given to the decoder at a time where the stream comes piece by piece."""


def _stream(rate: float) -> tuple[t2.Words, Tags]:
    """Records of a Poisson process with loss markers, and the clicks that are in them."""
    rng = np.random.default_rng(int(rate))
    times = np.cumsum(rng.exponential(1e12 / rate, TAGS).astype(np.int64) + 1)
    tags = zeros(TAG, TAGS)
    tags["time"] = times & ((1 << TIME_BITS) - 1)
    tags["channel"] = rng.integers(0, CHANNELS, TAGS)
    marks = np.arange(1, 2 * LOSSES + 1) * (TAGS // (2 * LOSSES + 1))
    tags["kind"][marks] = TagKind.LOSS
    tags["channel"][marks] = np.tile([LossMark.BEGIN, LossMark.END], LOSSES)
    click = tags["kind"] == TagKind.CLICK
    encoder = t2.Encoder()
    words = np.concatenate([encoder.encode(part) for part in np.array_split(tags, 20)])
    return words, (times[click], tags["channel"][click].astype(np.uint8))


def _records(path: Path) -> npt.NDArray[np.uint8]:
    raw = np.fromfile(path, np.uint8)
    return raw[raw[:4096].tobytes().index(b"Header_End") + 48 :]


def _keyrail(method: t2.Method) -> Callable[[Path], Tags]:
    def read(path: Path) -> Tags:
        events = t2.decode(_records(path), method=method)
        return events.times, events.channels

    return read


def _in_pieces(path: Path) -> Tags:
    decoder, raw = t2.Decoder(), _records(path)
    parts = [decoder.feed(raw[at : at + CHUNK]) for at in range(0, len(raw), CHUNK)]
    return np.concatenate([e.times for e in parts]), np.concatenate([e.channels for e in parts])


def _ptufile(path: Path) -> Tags:
    import ptufile

    with ptufile.PtuFile(path) as file:
        records = file.decode_records()
    photons = records[records["channel"] >= 0]
    return photons["time"].astype(np.int64), photons["channel"].astype(np.uint8)


def _ptufile_records(path: Path) -> Any:
    import ptufile

    with ptufile.PtuFile(path) as file:
        return file.decode_records()


def _tttrlib(path: Path) -> Tags:
    import tttrlib

    read = tttrlib.TTTR(str(path), "PTU")
    photon = np.asarray(read.event_types) == 0
    return (
        np.asarray(read.macro_times)[photon].astype(np.int64),
        np.asarray(read.routing_channels)[photon].astype(np.uint8),
    )


def _tttrlib_records(path: Path) -> Any:
    import tttrlib

    return tttrlib.TTTR(str(path), "PTU")


METHODS: dict[str, Callable[[Path], Any]] = {
    "keyrail": _keyrail("compiled"),
    "keyrail_in_pieces": _in_pieces,
    "keyrail_numpy": _keyrail("numpy"),
    "ptufile": _ptufile,
    "ptufile_records_alone": _ptufile_records,
    "tttrlib": _tttrlib,
    "tttrlib_opened_alone": _tttrlib_records,
}
"""The same file to times and channels of its clicks; *alone*: without taking those out."""


def _fastest(method: Callable[[Path], Any], path: Path, wanted: Tags | None) -> float:
    """Seconds of processor time of the fastest run, all threads together."""
    fastest = float("inf")
    for _ in range(RUNS):
        began = time.process_time()
        got = method(path)
        fastest = min(fastest, time.process_time() - began)
        if wanted is not None and not (
            np.array_equal(got[0], wanted[0]) and np.array_equal(got[1], wanted[1])
        ):
            raise RuntimeError("a reader gives other times or channels than were written")
        del got
    return fastest


def figure() -> dict[str, Any]:
    """Million tags a second of each reader at each rate, every result compared."""
    chosen, why = t2.implementation()
    if chosen != "compiled":
        raise RuntimeError(f"no compiled decoder on this machine: {why}")
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for rate in RATES:
            path = Path(folder) / f"{rate}.ptu"
            words, wanted = _stream(rate)
            with ptu.PtuWriter(path) as file:
                file.write(words)
            result: dict[str, Any] = {
                "tags_per_second": rate,
                "tags": len(wanted[0]),
                "records": len(words),
            }
            for name, method in METHODS.items():
                seconds = _fastest(method, path, None if name.endswith("alone") else wanted)
                result[name] = {
                    "mtags_per_second": round(len(wanted[0]) / seconds / 1e6, 1),
                    "mrecords_per_second": round(len(words) / seconds / 1e6, 1),
                }
            for other in ("ptufile", "tttrlib"):
                ratio = result["keyrail"]["mtags_per_second"] / result[other]["mtags_per_second"]
                result[f"ratio_to_{other}"] = round(ratio, 1)
            path.unlink()
            results.append(result)
    readers = {name: importlib.metadata.version(name) for name in ("ptufile", "tttrlib")}
    return {"readers": readers, "chunk_bytes": CHUNK, "runs": RUNS, "results": results}


def table(described: dict[str, Any]) -> str:
    """The figure as a Markdown page."""
    versions = {**described["versions"], **described["readers"]}
    lines = [
        "# Decoding of T2 records on the control PC",
        "",
        f"Written by `{described['command']}` at commit {described['commit']}; "
        f"{described['machine']}, one of them used; "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + ".",
        "",
        "Million tags a second, from a `.ptu` file in the system's cache to arrays of times (int64",
        "in ps) and channels of its clicks; every result is compared with what was written.",
        f"Processor time of all threads, fastest of {described['runs']} runs. *Alone*: what",
        "ptufile makes of every record; and a file opened by tttrlib, before clicks are taken out.",
        "",
        "| Tags/s in the file | Records | Keyrail | in pieces of "
        f"{described['chunk_bytes'] >> 20} MiB | by numpy alone | ptufile | alone | tttrlib | "
        "alone | Keyrail over ptufile | over tttrlib |",
        "|" + " --- |" * 11,
    ]
    for result in described["results"]:
        rates = [f"{result[name]['mtags_per_second']:,}" for name in METHODS]
        ratios = [f"{result[f'ratio_to_{name}']} times" for name in ("ptufile", "tttrlib")]
        cells = [f"{result['tags_per_second']:,}", f"{result['records']:,}", *rates, *ratios]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])
