# SPDX-License-Identifier: Apache-2.0
"""PicoQuant T2 records: to times and back.

A T2 record has 32 bits (the contract's ``t2``): 25 bits of time at 1 ps, six of channel, and a
bit that tells clicks from overflows (how often the time has wrapped) and markers.
Format: PicoQuant, "Unified TTTR file format" (PTU), T2 mode of the HydraHarp V2 and its
successors.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
import numpy.typing as npt

from keyrail import compiled
from keyrail.compiled import NotCompiled
from keyrail.contract import (
    T2_OVERFLOW_CHANNEL,
    T2_OVERFLOW_MAXIMUM,
    T2_TIME_BITS,
    TIME_BITS,
    LossMark,
    T2Marker,
    TagKind,
)
from keyrail.errors import KeyrailError
from keyrail.layouts import Structured

WRAP_PS = 1 << T2_TIME_BITS
"""Time after which the time of a T2 record wraps, ps."""
_CHANNEL, _SPECIAL = np.uint32(T2_TIME_BITS), np.uint32(31)
Words = npt.NDArray[np.uint32]
Method = Literal["compiled", "numpy"]
_Decode = Callable[..., tuple[int, int, int, int]]
_SOURCE = Path(__file__).with_name("t2_decode.cpp")
_BLOCK = 16_384
"""Records that numpy decodes at a time: what it makes of them fits a core's cache."""


class T2Error(KeyrailError):
    """T2 records that cannot be."""


@dataclass(frozen=True)
class Events:
    """Decoded T2 records, in the order of the stream.

    Attributes
    ----------
    times
        Clicks, ps since the epoch; int64, never wrapping.
    channels
        Their channels.
    markers, marker_times
        `T2Marker` codes, and their times, ps.
    until
        Nothing more comes before this time, ps.
    """

    times: npt.NDArray[np.int64]
    channels: npt.NDArray[np.uint8]
    markers: npt.NDArray[np.uint8]
    marker_times: npt.NDArray[np.int64]
    until: int


class Decoder:
    """Decode a stream of T2 records piece by piece.

    Throughput: hundreds of millions of records a second on one core where the C++ beside this
    module can be compiled, about a hundred by numpy; `make figure-decode` measures both.

    Parameters
    ----------
    epoch_ps
        Time of the stream's time 0, ps: that of the epoch it began at.
    method
        ``compiled`` or ``numpy``, which give the same; the better one of this machine if not
        given.

    Raises
    ------
    ValueError
        If there is no such method.
    NotCompiled
        If ``compiled`` is asked for where there is none.
    """

    def __init__(self, epoch_ps: int = 0, method: Method | None = None) -> None:
        if method not in (None, "compiled", "numpy"):
            raise ValueError(f"method {method!r}: allowed are 'compiled' and 'numpy'")
        if (method or implementation()[0]) == "compiled":
            self._decode: _Decode = partial(_by_compiled, _load().keyrail_t2_decode)
        else:
            self._decode = _by_numpy
        self.restart(epoch_ps)

    def restart(self, epoch_ps: int) -> None:
        """Begin a new epoch: the board's time and its T2 stream have started again at 0.

        Parameters
        ----------
        epoch_ps
            Time of the new epoch in that of the first one, ps, below 2^63 in size.
        """
        if not -(1 << 63) <= epoch_ps < 1 << 63:
            raise T2Error(f"epoch at {epoch_ps} ps: allowed are 63 bits")
        self._reached = epoch_ps
        self._until = epoch_ps
        self._rest = b""

    @property
    def rest(self) -> int:
        """Bytes of a record that is not complete yet: 0 to 3."""
        return len(self._rest)

    def feed(self, data: bytes | bytearray | memoryview | npt.NDArray[np.uint8] | Words) -> Events:
        """Decode what has come: bytes, or records as 32-bit words.

        Bytes of a record that is not complete yet are kept for the next call. After an error the
        decoder is as it was before the call.

        Raises
        ------
        T2Error
            If a record is no click, overflow or marker, an overflow counts no wraps, or the time
            leaves 63 bits.
        """
        if isinstance(data, np.ndarray):
            raw = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        else:
            raw = np.frombuffer(data, np.uint8)
        if self._rest:
            raw = np.concatenate((np.frombuffer(self._rest, np.uint8), raw))
        whole = len(raw) // 4 * 4
        words = np.require(raw[:whole].view("<u4"), np.uint32, ["C", "A"])
        # Memory that nothing is written to costs nothing: there is room for every case.
        count = len(words)
        times, marker_times = np.empty(count, np.int64), np.empty(count, np.int64)
        channels, markers = np.empty(count, np.uint8), np.empty(count, np.uint8)
        clicks, marked, self._reached, self._until = self._decode(
            words, self._reached, self._until, times, channels, markers, marker_times
        )
        self._rest = raw[whole:].tobytes()
        return Events(
            _first(clicks, times),
            _first(clicks, channels),
            _first(marked, markers),
            _first(marked, marker_times),
            self._until,
        )


def _first(count: int, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The first elements, without keeping much more memory than they take."""
    return array[:count] if 2 * count > len(array) else array[:count].copy()


def _refuse(words: Words, at: int) -> NoReturn:
    raise T2Error(
        f"T2 record {at}: {int(words[at]):#010x} is no click, overflow of 1 and more, "
        "or marker of 1 to 15"
    )


def _refuse_time() -> NoReturn:
    raise T2Error("T2 records beyond 2^63 ps: begin a new epoch")


def _load() -> ctypes.CDLL:
    library = compiled.load(_SOURCE)
    function, pointer, number = library.keyrail_t2_decode, ctypes.c_void_p, ctypes.c_int64
    function.argtypes = (pointer, number, *[pointer] * 6)
    function.restype = number
    return library


def _by_compiled(
    function: Callable[..., int], words: Words, reached: int, until: int, *outputs: npt.NDArray[Any]
) -> tuple[int, int, int, int]:
    """As `_by_numpy`."""
    state, found = (ctypes.c_int64 * 2)(reached, until), (ctypes.c_int64 * 2)()
    places = [array.ctypes.data for array in outputs]
    done = function(words.ctypes.data, len(words), state, *places, found)
    if done < 0:
        _refuse_time()
    if done != len(words):
        _refuse(words, done)
    return found[0], found[1], state[0], state[1]


def _by_numpy(
    words: Words,
    reached: int,
    until: int,
    times: npt.NDArray[np.int64],
    channels: npt.NDArray[np.uint8],
    markers: npt.NDArray[np.uint8],
    marker_times: npt.NDArray[np.int64],
) -> tuple[int, int, int, int]:
    """Decode records into arrays that have room for them: clicks, markers, last wrap, until."""
    clicks = marked = 0
    for begin in range(0, len(words), _BLOCK):
        block = words[begin : begin + _BLOCK]
        click = block.view(np.int32) >= 0
        places = np.flatnonzero(~click)
        special = block[places]
        code, count = special >> _CHANNEL & np.uint32(63), special & np.uint32(WRAP_PS - 1)
        wrap = code == T2_OVERFLOW_CHANNEL
        wrong = np.where(wrap, count == 0, (code < 1) | (code > 15))
        if wrong.any():
            _refuse(words, begin + int(places[wrong.argmax()]))
        # Wraps before each record that is special, and after the last one.
        wraps = np.zeros(len(places) + 1, np.int64)
        np.cumsum(np.where(wrap, count, 0), out=wraps[1:])
        if reached + (int(wraps[-1]) + 1) * WRAP_PS > 1 << 63:
            _refuse_time()
        base = reached + (wraps << T2_TIME_BITS)
        kept = block if len(places) == 0 else block[click]
        out = times[clicks : clicks + len(kept)]
        channels[clicks : clicks + len(kept)] = kept >> _CHANNEL
        out[:] = kept & np.uint32(WRAP_PS - 1)
        if len(places) == 0:
            out += reached
        else:
            out += np.repeat(base, np.diff(places, prepend=-1, append=len(block)) - 1)
        mark = np.flatnonzero(~wrap)
        markers[marked : marked + len(mark)] = code[mark]
        at = base[mark] + count[mark]
        marker_times[marked : marked + len(mark)] = at
        clicks, marked, reached = clicks + len(kept), marked + len(mark), int(base[-1])
        until = max(until, reached, int(out.max(initial=until)), int(at.max(initial=until)))
    return clicks, marked, reached, until


def implementation() -> tuple[Method, str]:
    """How this machine decodes, and why not faster (empty if there is nothing faster)."""
    try:
        _load()
    except NotCompiled as why:
        return "numpy", str(why)
    return "compiled", ""


def decode(
    data: bytes | npt.NDArray[np.uint8] | Words, epoch_ps: int = 0, method: Method | None = None
) -> Events:
    """Decode a whole stream of T2 records; see `Decoder`.

    Raises
    ------
    T2Error
        If it does not end with a whole record, or as `Decoder.feed`.
    """
    decoder = Decoder(epoch_ps, method)
    events = decoder.feed(data)
    if decoder.rest:
        raise T2Error(f"T2 records: {decoder.rest} bytes are left, a record has 4")
    return events


def _words(time: Any, channel: Any, special: Any) -> Words:
    words: Words = (
        np.asarray(time).astype(np.uint32)
        | np.asarray(channel).astype(np.uint32) << _CHANNEL
        | np.asarray(special).astype(np.uint32) << _SPECIAL
    )
    return words


class Encoder:
    """Encode records of the tag stream as the board does, bit for bit.

    Parameters
    ----------
    time_bits
        Bits of the tags' time, after which it wraps.

    Attributes
    ----------
    clicks, out_of_order
        Clicks so far, and those of them that were dropped as earlier than the last record.
    """

    def __init__(self, time_bits: int = TIME_BITS) -> None:
        self.clicks = self.out_of_order = 0
        self._half, self._mask = 1 << (time_bits - 1), (1 << time_bits) - 1
        self._last = 0  # modulo 2^time_bits
        self._started = False

    def encode(self, tags: Structured) -> Words:
        """T2 records of ``tag`` records (fields time, channel and kind).

        Parameters
        ----------
        tags
            In time order; an earlier click is dropped, an earlier marker gets the last time.

        Returns
        -------
        numpy.ndarray
            uint32, one element a T2 record.
        """
        if len(tags) == 0:
            return np.zeros(0, np.uint32)
        raw = tags["time"].astype(np.int64)
        kind, click = tags["kind"], tags["kind"] == TagKind.CLICK
        gaps = np.diff(raw, prepend=self._last) & self._mask
        keep = np.ones(len(tags), np.bool_)
        if (gaps[1:] >= self._half).any() or (self._started and gaps[0] >= self._half):
            gaps, keep = self._disorder(raw, click)
        # Times since the last wrap of T2 that was told.
        start = self._last & (WRAP_PS - 1)
        times = start + np.cumsum(gaps)
        epochs = times >> T2_TIME_BITS
        wraps = np.diff(epochs, prepend=0)
        full, rest = np.divmod(np.maximum(wraps - 1, 0), T2_OVERFLOW_MAXIMUM)
        rest = np.where(wraps > 0, rest + 1, 0)
        own = (keep & (kind != TagKind.TIME)).astype(np.int64)
        counts = full + (rest > 0) + own
        ends = np.cumsum(counts)
        out = np.full(int(ends[-1]), _words(T2_OVERFLOW_MAXIMUM, T2_OVERFLOW_CHANNEL, 1), np.uint32)
        some = rest > 0
        at = ends - own - 1
        out[at[some]] = _words(rest[some], T2_OVERFLOW_CHANNEL, 1)
        channel = np.where(
            kind == TagKind.LOSS,
            np.where(tags["channel"] == LossMark.END, T2Marker.LOSS_END, T2Marker.LOSS_BEGIN),
            np.where(kind == TagKind.FRAME, T2Marker.FRAME, tags["channel"]),
        )
        mine = own == 1
        records = _words(times & (WRAP_PS - 1), channel, ~click)
        out[ends[mine] - 1] = records[mine]
        self._last = (self._last + int(gaps.sum())) & self._mask
        self._started = True
        self.clicks += int(click.sum())
        self.out_of_order += int((~keep).sum())
        return out

    def _disorder(
        self, raw: npt.NDArray[np.int64], click: npt.NDArray[np.bool_]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Gaps between records, and which have a record of their own, one by one."""
        last, gaps, keep = self._last, np.zeros_like(raw), np.ones(len(raw), np.bool_)
        for index, time in enumerate(raw.tolist()):
            gap = (time - last) & self._mask
            if gap < self._half or not self._started:
                gaps[index], last = gap, time
                self._started = True
            else:
                keep[index] = not click[index]
        return gaps, keep
