# SPDX-License-Identifier: Apache-2.0
"""Reading and writing recordings of time tags: quTAG and qcrypto."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from keyrail.errors import RecordingError

Times = npt.NDArray[np.int64]
Channels = npt.NDArray[np.uint16]

_QUTAG_HEADER = 40
_QUTAG = np.dtype([("time", "<u8"), ("channel", "<u2")])
_QUTAG_CHANNELS = 64
_LATEST_PS = 1 << 62
_DUMMY = 1 << 4
_DETECTORS = 4


@dataclass(frozen=True)
class Recording:
    """A recording in time order.

    Attributes
    ----------
    path, format
        Where it came from, and in which format.
    times
        Tags, ps.
    channels
        Their channels.
    events
        Records of the file that are events: dummies and void ones left out.
    multi_clicks
        Events of several detectors at once; each makes a tag a detector.
    dummies, void
        Records that only keep the clock known, and empty ones.
    out_of_order
        Steps back in time in the file, put in order by a stable sort.
    """

    path: str
    format: str
    times: Times
    channels: Channels
    events: int
    multi_clicks: int = 0
    dummies: int = 0
    void: int = 0
    out_of_order: int = 0


def _ordered(times: Times, channels: Channels) -> tuple[Times, Channels, int]:
    steps = int((np.diff(times) < 0).sum())
    if steps:
        order = np.argsort(times, kind="stable")
        times, channels = times[order], channels[order]
    return times, channels, steps


def _whole(path: Path, size: int, header: int, record: int, name: str) -> None:
    if size == 0:
        raise RecordingError(path, "byte 0", "the file is empty")
    if size < header:
        raise RecordingError(
            path, f"byte {size}", f"the header is cut short, {name} begins with {header} bytes"
        )
    left = (size - header) % record
    if left:
        raise RecordingError(
            path,
            f"byte {size - left}",
            f"{left} bytes are left, the file is truncated",
            f"{name} has records of {record} bytes",
        )
    if size == header:
        raise RecordingError(path, f"byte {header}", "the file holds no tags")


def _read_qutag(path: Path, raw: bytes) -> Recording:
    _whole(path, len(raw), _QUTAG_HEADER, _QUTAG.itemsize, ".qutag")
    records = np.frombuffer(raw, _QUTAG, offset=_QUTAG_HEADER)

    def refuse(bad: npt.NDArray[np.bool_], field: str, right: str) -> None:
        if bad.any():
            index = int(bad.argmax())
            offset = _QUTAG_HEADER + index * _QUTAG.itemsize
            raise RecordingError(
                path,
                f"byte {offset}",
                f"{field} {int(records[field][index])} is out of range",
                right,
            )

    # A wrong header shifts the records: channels of 16 bits then go beyond all bounds.
    wrong = "allowed are 0 to 63; is this a .qutag file with a header of 40 bytes?"
    refuse(records["channel"] >= _QUTAG_CHANNELS, "channel", wrong)
    refuse(records["time"] >= _LATEST_PS, "time", "allowed is below 2^62 ps")
    times = records["time"].astype(np.int64)
    times, channels, steps = _ordered(times, records["channel"].astype(np.uint16))
    return Recording(str(path), "qutag", times, channels, len(times), out_of_order=steps)


def _hexadecimal(path: Path, raw: bytes, digits: int) -> npt.NDArray[np.uint64]:
    """Numbers of a text file, one a line of so many hexadecimal digits."""
    if not raw:
        raise RecordingError(path, "byte 0", "the file is empty")
    values, offset = [], 0
    pattern = re.compile(rb"[0-9a-fA-F]{%d}" % digits)
    for number, line in enumerate(raw.split(b"\n"), 1):
        text = line.strip()
        if text:
            if not pattern.fullmatch(text):
                raise RecordingError(
                    path,
                    f"byte {offset} (line {number})",
                    f"{text[:20].decode(errors='replace')!r} is no record",
                    f"each line has {digits} hexadecimal digits",
                )
            values.append(int(text, 16))
        offset += len(line) + 1
    return np.array(values, np.uint64)


def _read_a0(path: Path, raw: bytes) -> npt.NDArray[np.uint64]:
    halves = _hexadecimal(path, raw, 8)
    if len(halves) % 2:
        raise RecordingError(
            path, f"byte {len(raw)}", "half a record is left", "records have two lines"
        )
    return halves[0::2] | halves[1::2] << np.uint64(32)


def _read_a1(path: Path, raw: bytes) -> npt.NDArray[np.uint64]:
    _whole(path, len(raw), 0, 8, "-a1")
    return np.frombuffer(raw, "<u8").astype(np.uint64)


def _read_a2(path: Path, raw: bytes) -> npt.NDArray[np.uint64]:
    return _hexadecimal(path, raw, 16)


_QCRYPTO: dict[str, Callable[[Path, bytes], npt.NDArray[np.uint64]]] = {
    "a0": _read_a0,
    "a1": _read_a1,
    "a2": _read_a2,
}
FORMATS = ("qutag", "a0", "a0X", "a1", "a1X", "a2", "a2X")
"""Names of formats; X: the two 32-bit halves of each record are swapped."""


def _swap(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    return words << np.uint64(32) | words >> np.uint64(32)


def _read_qcrypto(path: Path, raw: bytes, name: str) -> Recording:
    words = _QCRYPTO[name[:2]](path, raw)
    if name.endswith("X"):
        words = _swap(words)
    void = words == 0
    dummy = ~void & (words & np.uint64(_DUMMY) > 0)
    pattern = words & np.uint64(15)
    event = ~void & ~dummy
    strange = event & (pattern == 0)
    if strange.any():
        index = int(strange.argmax())
        raise RecordingError(
            path,
            f"record {index}",
            "an event without a detector",
            "bits 3 to 0 name the detectors; are the halves swapped (format with X)?",
        )
    # 1/256 ns is 125/32 ps: exact in integers up to the last division, which rounds down.
    units = (words >> np.uint64(10)).astype(np.int64)
    unit_times = units // 32 * 125 + units % 32 * 125 // 32
    pattern, unit_times = pattern[event], unit_times[event]
    which = np.arange(_DETECTORS)
    hit = (pattern[:, None] >> which.astype(np.uint64) & np.uint64(1)) == 1
    times = np.repeat(unit_times, hit.sum(axis=1))
    channels = (np.nonzero(hit)[1] + 1).astype(np.uint16)
    times, channels, steps = _ordered(times, channels)
    if len(times) == 0:
        raise RecordingError(path, f"byte {len(raw)}", "the file holds no events")
    return Recording(
        str(path),
        name,
        times,
        channels,
        events=int(event.sum()),
        multi_clicks=int((hit.sum(axis=1) > 1).sum()),
        dummies=int(dummy.sum()),
        void=int(void.sum()),
        out_of_order=steps,
    )


def format_of(path: Path) -> str:
    """Format that a file's name tells; RecordingError if it tells none."""
    if path.suffix == ".qutag":
        return "qutag"
    found = re.search(r"\.A(a[012])f?\d*(X?)(?:\.ts)?$", path.name) or re.search(
        r"[.-](a[012])(X?)$", path.name
    )
    # qcrypto's names carry the run's number behind the format.
    found = found or re.search(r"\.A?(a[012])[^.]*?(X?)(?:\.ts)?$", path.name)
    if found is None:
        raise RecordingError(
            path, "name", "tells no format", f"give one with --format: {', '.join(FORMATS)}"
        )
    return found.group(1) + found.group(2)


def read(path: str | Path, format: str | None = None) -> Recording:
    """Read a recording and put it in time order.

    ``.qutag``: a header of 40 bytes, then records of 10: time in ps, channel (little-endian u64
    and u16). qcrypto: records of 64 bits, time in units of 1/256 ns in bits 63 to 10 (rounded
    down to ps), dummy flag in bit 4, detectors in bits 3 to 0, which become channels 1 to 4; as
    text in two lines (``a0``, lower half first), binary little-endian (``a1``), or text in one
    line (``a2``).

    Parameters
    ----------
    path
        File.
    format
        One of `FORMATS`; by the file's name if not given.

    Raises
    ------
    RecordingError
        If the file is missing, empty, truncated or holds what cannot be; says where.
    """
    path = Path(path)
    if format is not None and format not in FORMATS:
        raise RecordingError(path, "format", f"{format!r} is unknown", f"one of {FORMATS}")
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise RecordingError(path, "file", error.strerror or "cannot be read") from None
    name = format or format_of(path)
    return _read_qutag(path, raw) if name == "qutag" else _read_qcrypto(path, raw, name)


def write_qutag(path: str | Path, times: Times, channels: npt.NDArray[np.integer]) -> None:
    """Write tags as ``.qutag``, in the order given; the header is empty."""
    records = np.zeros(len(times), _QUTAG)
    records["time"], records["channel"] = times, channels
    Path(path).write_bytes(bytes(_QUTAG_HEADER) + records.tobytes())


def write_qcrypto(path: str | Path, words: npt.NDArray[np.uint64], format: str) -> None:
    """Write qcrypto's 64-bit records in one of its formats."""
    words = _swap(words) if format.endswith("X") else words
    if format.startswith("a1"):
        Path(path).write_bytes(words.astype("<u8").tobytes())
        return
    low, mask = words.tolist(), (1 << 32) - 1
    lines = (
        [f"{w & mask:08x}\n{w >> 32:08x}\n" for w in low]
        if format.startswith("a0")
        else [f"{w:016x}\n" for w in low]
    )
    Path(path).write_text("".join(lines))
