# SPDX-License-Identifier: Apache-2.0
"""Writing PicoQuant's ``.ptu`` files: a header, then the raw stream of T2 records.

Format: PicoQuant, "Unified TTTR file format" (PTU): tagged header, record type "generic T2"
(0x00010207), which MultiHarp and later instruments write.
"""

from __future__ import annotations

import csv
import importlib.metadata
import io
import struct
import uuid
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final

import numpy as np
import numpy.typing as npt

from keyrail.errors import KeyrailError
from keyrail.layouts import Structured
from keyrail.t2 import Words

RECORD_TYPE = 0x00010207
"""PicoQuant's number of the record type: generic T2."""
_INTEGER, _BOOLEAN, _FLOAT, _TEXT, _EMPTY = (
    0x10000008,
    0x00000008,
    0x20000008,
    0x4001FFFF,
    0xFFFF0008,
)
_DATE: Final = 0x21000008
_PS = 1e-12


def _tag(name: str, kind: int, value: int | float | str | None) -> bytes:
    head = struct.pack("<32siI", name.encode("ascii"), -1, kind)
    if isinstance(value, str):
        text = value.encode("latin-1", "replace") + b"\0"
        text += bytes(-len(text) % 8)
        return head + struct.pack("<q", len(text)) + text
    if kind in (_FLOAT, _DATE):
        return head + struct.pack("<d", value)
    return head + struct.pack("<q", value or 0)


class PtuWriter:
    """Write a ``.ptu`` file as its records come; a context manager.

    The header is complete at every moment but for the number of records, which is set when the
    file is closed.

    Parameters
    ----------
    path
        File; replaced if it exists.
    comment
        Text for the header.

    Raises
    ------
    KeyrailError
        If the file cannot be written.
    """

    def __init__(self, path: str | Path, comment: str = "") -> None:
        self.path = Path(path)
        self.records = 0
        self._rest = b""
        header, self._count_at = _header(comment)
        try:
            self._file: BinaryIO = self.path.open("wb")
        except OSError as error:
            raise KeyrailError(f"{path}: {error.strerror}") from None
        self._file.write(header)

    def write(self, data: bytes | npt.NDArray[np.uint8] | Words) -> None:
        """Append bytes of the ``raw`` stream, or T2 records as 32-bit words."""
        raw = self._rest + (data if isinstance(data, bytes) else np.asarray(data).tobytes())
        whole = len(raw) // 4 * 4
        self._file.write(raw[:whole])
        self._rest = raw[whole:]
        self.records += whole // 4

    def close(self) -> None:
        """Set the number of records, and close the file.

        Raises
        ------
        KeyrailError
            If the stream ended inside a record; the whole records are in the file.
        """
        if self._file.closed:
            return
        self._file.seek(self._count_at)
        self._file.write(struct.pack("<q", self.records))
        self._file.close()
        if self._rest:
            raise KeyrailError(
                f"{self.path}: the stream ended {len(self._rest)} bytes into a record"
            )

    def __enter__(self) -> PtuWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _header(comment: str) -> tuple[bytes, int]:
    """Header, and where in it the number of records is."""
    out = io.BytesIO()
    out.write(b"PQTTTR\0\0" + b"1.0.00\0\0")
    tags: tuple[tuple[str, int, int | float | str | None], ...] = (
        ("File_GUID", _TEXT, "{" + str(uuid.uuid4()).upper() + "}"),
        ("File_Comment", _TEXT, comment),
        ("CreatorSW_Name", _TEXT, "Keyrail"),
        ("CreatorSW_Version", _TEXT, importlib.metadata.version("keyrail")),
        ("Measurement_Mode", _INTEGER, 2),
        ("Measurement_SubMode", _INTEGER, 0),
        ("HW_Type", _TEXT, "Keyrail"),
        ("MeasDesc_AcquisitionTime", _INTEGER, 0),
        ("MeasDesc_GlobalResolution", _FLOAT, _PS),
        ("MeasDesc_Resolution", _FLOAT, _PS),
        ("TTResult_SyncRate", _INTEGER, 0),
        ("TTResultFormat_TTTRRecType", _INTEGER, RECORD_TYPE),
        ("TTResultFormat_BitsPerRecord", _INTEGER, 32),
        ("TTResult_NumberOfRecords", _INTEGER, 0),
        ("Header_End", _EMPTY, None),
    )
    count_at = 0
    for name, kind, value in tags:
        out.write(_tag(name, kind, value))
        if name == "TTResult_NumberOfRecords":
            count_at = out.tell() - 8
    return out.getvalue(), count_at


def losses_path(path: str | Path) -> Path:
    """Where the loss ledger of a ``.ptu`` file lies: beside it."""
    return Path(f"{path}.losses.csv")


def write_losses(path: str | Path, losses: Structured) -> Path:
    """Write the loss ledger beside a ``.ptu`` file: begin and end in ps, clicks missed.

    Parameters
    ----------
    path
        The ``.ptu`` file.
    losses
        ``loss`` records of the stream ``losses``, with the T2 markers 1 and 2 in their order.

    Returns
    -------
    Path
        The ledger's file.
    """
    target = losses_path(path)
    try:
        with target.open("w", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(["begin_ps", "end_ps", "missed"])
            table.writerows(losses[["begin", "end", "missed"]].tolist())
    except OSError as error:
        raise KeyrailError(f"{target}: {error.strerror}") from None
    return target
