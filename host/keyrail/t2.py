# SPDX-License-Identifier: Apache-2.0
"""PicoQuant T2 records: to times and back.

A T2 record has 32 bits (the contract's ``t2``): 25 bits of time at 1 ps, six of channel, and a
bit that tells clicks from overflows (how often the time has wrapped) and markers.
Format: PicoQuant, "Unified TTTR file format" (PTU), T2 mode of the HydraHarp V2 and its
successors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

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

    Parameters
    ----------
    epoch_ps
        Time of the stream's time 0, ps: that of the epoch it began at.
    """

    def __init__(self, epoch_ps: int = 0) -> None:
        self.restart(epoch_ps)

    def restart(self, epoch_ps: int) -> None:
        """Begin a new epoch: the board's time and its T2 stream have started again at 0.

        Parameters
        ----------
        epoch_ps
            Time of the new epoch in that of the first one, ps.
        """
        self._reached = epoch_ps
        self._until = epoch_ps
        self._rest = b""

    def feed(self, data: bytes | npt.NDArray[np.uint8] | Words) -> Events:
        """Decode what has come: bytes, or records as 32-bit words.

        Bytes of a record that is not complete yet are kept for the next call.

        Raises
        ------
        T2Error
            If a record is no click, overflow or marker, an overflow counts no wraps, or the time
            leaves 63 bits.
        """
        raw = self._rest + (data if isinstance(data, bytes) else np.asarray(data).tobytes())
        whole = len(raw) // 4 * 4
        self._rest = raw[whole:]
        words = np.frombuffer(raw[:whole], "<u4")
        time = (words & np.uint32(WRAP_PS - 1)).astype(np.int64)
        special = words >> _SPECIAL == 1
        channel = (words >> _CHANNEL & np.uint32(63)).astype(np.uint8)
        overflow = special & (channel == T2_OVERFLOW_CHANNEL)
        marker = special & ~overflow
        wrong = marker & ((channel < 1) | (channel > 15)) | overflow & (time == 0)
        if wrong.any():
            at = int(wrong.argmax())
            raise T2Error(
                f"T2 record {at}: {int(words[at]):#010x} is no click, overflow of 1 and more, "
                "or marker of 1 to 15"
            )
        wraps = np.cumsum(np.where(overflow, time, 0))
        reached = self._reached
        if len(words) and reached + (int(wraps[-1]) + 1) * WRAP_PS >= 1 << 63:
            raise T2Error("T2 records beyond 2^63 ps: begin a new epoch")
        base = wraps * WRAP_PS + reached
        times = base + time
        click = ~special
        if len(words):
            self._reached = int(base[-1])
            self._until = max(self._until, int(np.where(overflow, base, times).max()))
        return Events(times[click], channel[click], channel[marker], times[marker], self._until)


def decode(data: bytes | npt.NDArray[np.uint8] | Words, epoch_ps: int = 0) -> Events:
    """Decode a whole stream of T2 records; see `Decoder`.

    Raises
    ------
    T2Error
        If it does not end with a whole record, or as `Decoder.feed`.
    """
    decoder = Decoder(epoch_ps)
    events = decoder.feed(data)
    if decoder._rest:
        raise T2Error(f"T2 records: {len(decoder._rest)} bytes are left, a record has 4")
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
