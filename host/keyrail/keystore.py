# SPDX-License-Identifier: Apache-2.0
"""Keys of a station with their ledgers, in an SQLite file of mode 0600.

A key is `pending` while the other station may not have it yet, then `released`. Key material
leaves this module through `key` alone and is in no text form.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from keyrail.authentication import check_private, connect, create_private, transaction
from keyrail.contract import Role
from keyrail.errors import KeyrailError

Bits = npt.NDArray[np.uint8]

_TABLES = (
    "CREATE TABLE IF NOT EXISTS keys (id TEXT PRIMARY KEY, state TEXT NOT NULL,"
    " count INTEGER NOT NULL, bits BLOB NOT NULL, ledger TEXT NOT NULL, stored REAL NOT NULL)",
    "CREATE TABLE IF NOT EXISTS marks (role INTEGER PRIMARY KEY, next INTEGER NOT NULL)",
)


class KeystoreError(KeyrailError):
    """The keystore cannot be used."""


class Keystore:
    """Keys with their ledgers, and the marks by which a restored pool is found out.

    Parameters
    ----------
    path
        File; made if it is not there.

    Raises
    ------
    KeystoreError, PoolError
        If the file is damaged, in use, or readable by others.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.exists():
            create_private(self.path, "keystore")
        check_private(self.path, "keystore")
        try:
            self._db = connect(self.path)
            with self._transaction():
                for table in _TABLES:
                    self._db.execute(table)
        except sqlite3.Error as error:
            raise KeystoreError(f"{path}: {error}") from None

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            with transaction(self._db):
                yield
        except sqlite3.Error as error:
            raise KeystoreError(f"{self.path}: {error}") from None

    def close(self) -> None:
        """Release the file."""
        self._db.close()

    def __repr__(self) -> str:
        return f"Keystore({str(self.path)!r})"

    # -- marks (keyrail.authentication.Marks) ------------------------------------------------

    def mark(self, role: Role) -> int:
        """Lowest index of a direction's pads that may still be used, as far as is known."""
        row = self._db.execute("SELECT next FROM marks WHERE role = ?", (int(role),)).fetchone()
        return int(row[0]) if row else 0

    def set_mark(self, role: Role, index: int) -> None:
        """Remember it; on disk before this returns."""
        with self._transaction():
            self._db.execute("INSERT OR REPLACE INTO marks VALUES (?, ?)", (int(role), index))

    # -- keys --------------------------------------------------------------------------------

    def store(self, key_id: str, bits: Bits, ledger: Mapping[str, Any], released: bool) -> None:
        """Store a key with its ledger; on disk before this returns."""
        packed = np.packbits(bits, bitorder="little").tobytes()
        state = "released" if released else "pending"
        with self._transaction():
            self._db.execute(
                "INSERT INTO keys VALUES (?, ?, ?, ?, ?, ?)",
                (key_id, state, len(bits), packed, json.dumps(ledger), time.time()),
            )

    def release(self, key_id: str) -> None:
        """A pending key is at both stations."""
        with self._transaction():
            self._db.execute("UPDATE keys SET state = 'released' WHERE id = ?", (key_id,))

    def discard(self, key_id: str) -> None:
        """Delete a pending key; its bytes are overwritten."""
        with self._transaction():
            self._db.execute("DELETE FROM keys WHERE id = ? AND state = 'pending'", (key_id,))

    def pending(self) -> list[str]:
        """Identifiers of keys that the other station may not have."""
        return [row[0] for row in self._db.execute("SELECT id FROM keys WHERE state = 'pending'")]

    def released(self) -> dict[str, int]:
        """Bits of each released key by its identifier."""
        rows = self._db.execute(
            "SELECT id, count FROM keys WHERE state = 'released' ORDER BY stored, rowid"
        )
        return dict(rows.fetchall())

    def key(self, key_id: str) -> Bits:
        """Bits of a released key; KeystoreError if there is none."""
        row = self._db.execute(
            "SELECT bits, count FROM keys WHERE id = ? AND state = 'released'", (key_id,)
        ).fetchone()
        if row is None:
            raise KeystoreError(f"{self.path}: no released key {key_id}")
        packed = np.frombuffer(row[0], np.uint8)
        return np.unpackbits(packed, count=row[1], bitorder="little")

    def ledger(self, key_id: str) -> dict[str, Any]:
        """Ledger of a key; KeystoreError if there is none."""
        row = self._db.execute("SELECT ledger FROM keys WHERE id = ?", (key_id,)).fetchone()
        if row is None:
            raise KeystoreError(f"{self.path}: no key {key_id}")
        ledger: dict[str, Any] = json.loads(row[0])
        return ledger
