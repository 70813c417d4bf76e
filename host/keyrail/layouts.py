# SPDX-License-Identifier: Apache-2.0
"""The numpy view of the contract: structured arrays to wire bytes and back."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from keyrail.contract import Record

Structured = np.ndarray[Any, np.dtype[Any]]
"""A structured array with one element a record."""
Bytes = npt.NDArray[np.uint8]


@lru_cache
def dtype(record: Record) -> np.dtype[Any]:
    """Numpy dtype of decoded records: each field in the smallest unsigned integer that holds it."""

    def width(bits: int) -> int:
        return next(w for w in (8, 16, 32, 64) if bits <= w)

    return np.dtype([(field.name, f"u{width(field.bits) // 8}") for field in record.fields])


def zeros(record: Record, count: int) -> Structured:
    """`count` decoded records, every field zero."""
    return np.zeros(count, dtype(record))


def pack(record: Record, values: Structured) -> Bytes:
    """Encode records as they go over the wire.

    Parameters
    ----------
    record
        Description of the record.
    values
        Structured array with the record's fields, shape (count,).

    Returns
    -------
    numpy.ndarray
        uint8, shape (count * record.bytes,), little-endian, reserved bits zero.

    Raises
    ------
    ValueError
        If a value does not fit its field.
    """
    words = np.zeros((len(values), -(-record.bits // 64)), "<u8")
    for field in record.fields:
        column = values[field.name].astype(np.uint64)
        if field.bits < 64 and len(column) and int(column.max()) >> field.bits:
            raise ValueError(
                f"{record.name}.{field.name}: {int(column.max())} does not fit {field.bits} bits"
            )
        word, shift = divmod(record.offset(field.name), 64)
        words[:, word] |= column << np.uint64(shift)
        if shift + field.bits > 64:
            words[:, word + 1] |= column >> np.uint64(64 - shift)
    return np.ascontiguousarray(words.view(np.uint8)[:, : record.bytes]).reshape(-1)


def unpack(record: Record, data: Bytes | bytes) -> Structured:
    """Decode wire bytes into a structured array; the reverse of `pack`.

    Parameters
    ----------
    record
        Description of the record.
    data
        Bytes of whole records.

    Raises
    ------
    ValueError
        If the bytes are no whole number of records.
    """
    raw = np.frombuffer(data, np.uint8)
    if len(raw) % record.bytes:
        raise ValueError(
            f"{len(raw)} bytes are no whole number of {record.bytes}-byte {record.name} records"
        )
    count = len(raw) // record.bytes
    padded = np.zeros((count, -(-record.bits // 64) * 8), np.uint8)
    padded[:, : record.bytes] = raw.reshape(count, record.bytes)
    words = padded.view("<u8")
    values = zeros(record, count)
    for field in record.fields:
        word, shift = divmod(record.offset(field.name), 64)
        column = words[:, word] >> np.uint64(shift)
        if shift + field.bits > 64:
            column = column | (words[:, word + 1] << np.uint64(64 - shift))
        if field.bits < 64:
            column = column & np.uint64((1 << field.bits) - 1)
        values[field.name] = column
    return values
