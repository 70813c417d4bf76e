# SPDX-License-Identifier: Apache-2.0
"""Information-theoretic authentication of the classical link (Wegman and Carter).

A tag is Poly1305 (RFC 8439, 2.5) of a phase's whole transcript, under one secret polynomial key r
of the direction, which is kept, and a one-time pad s of 128 bits, which no other tag ever uses::

    tag = ((c_1 r^n + c_2 r^(n-1) + ... + c_n r) mod (2^130 - 5) + s) mod 2^128

The c_i are the transcript's 16-byte chunks, each with a one bit behind it. Two different
transcripts of at most L bytes collide under any given difference with probability at most
8 ceil(L / 16) / 2^106 over r (Bernstein, "The Poly1305-AES message-authentication code", FSE 2005,
theorem 3.3; r has 106 free bits), and pads that are uniform and independent hide r from tags
(Wegman and Carter, J. Comput. Syst. Sci. 22 (1981), section 4). So each attempt at a forgery
succeeds with at most that probability, whatever the attacker's computing power; an index of the
pool admits one attempt. The pads of a pool are no better than the source they came from: a pool
from the operating system's generator is a computational one, and is called so.

The pool is an SQLite file of mode 0600. An index is on disk, and its pad is overwritten there,
before the tag is given out.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.poly1305 import Poly1305

from keyrail.contract import Role
from keyrail.errors import KeyrailError
from keyrail.messages import ProtocolError
from keyrail.randomness import RandomSource

PAD_BYTES = 16
"""Bytes of a pad, and of a tag."""
PAD_BITS = 8 * PAD_BYTES
LIVE_KEY_BYTES = 32
RESERVE = 16
"""Pads of each direction that only closing an open block and resuming after a restart may use."""
MAXIMUM_SKIP = 64
"""Pads that one tag may leave unused before it: more in one session is no station's doing."""
DEFAULT_PADS = 4096
MAXIMUM_PADS = 1 << 20
_DOMAIN = b"keyrail tag 1"
_FORMAT = b"keyrail pool 1"


class PoolError(KeyrailError):
    """The pool cannot be used."""


class PoolDry(PoolError):
    """No one-time key is left for what was asked."""


class PoolRestored(PoolError):
    """The pool is older than what is known of it: a copy or a backup, whose pads may be spent."""


class ForgeryError(ProtocolError):
    """A tag does not fit its transcript, or its index has had its attempt."""


def other_role(role: Role) -> Role:
    """Role of the other station."""
    return Role.RECEIVER if role is Role.SENDER else Role.SENDER


def forgery_bound(transcript_bytes: int) -> float:
    """Largest probability that one attempt passes a wrong transcript of so many bytes."""
    return float(8 * -(-transcript_bytes // 16) / 2.0**106)


class Marks(Protocol):
    """Memory of the pool's indices that lies elsewhere than the pool."""

    def mark(self, role: Role) -> int:
        """Lowest index of the direction that may still be used, as far as is known."""
        ...

    def set_mark(self, role: Role, index: int) -> None:
        """Remember it, on disk before this returns."""
        ...


@dataclass(frozen=True)
class Counters:
    """One direction's state: pads ``next`` up to ``end`` (excluded) are unused."""

    next: int
    end: int

    @property
    def left(self) -> int:
        """Unused pads."""
        return self.end - self.next


class PhaseTranscript:
    """All messages of one phase of one block, by sender of the message, in order."""

    def __init__(self) -> None:
        self._messages: dict[Role, list[bytes]] = {Role.SENDER: [], Role.RECEIVER: []}

    def add(self, author: Role, message: bytes) -> None:
        """Append a message that `author` sent."""
        self._messages[author].append(message)

    def parts(self) -> Iterator[bytes]:
        """The transcript in an encoding that has one reading: counts and lengths first."""
        for role in (Role.SENDER, Role.RECEIVER):
            messages = self._messages[role]
            yield len(messages).to_bytes(8, "little")
            for message in messages:
                yield len(message).to_bytes(8, "little")
                yield message


def _columns() -> str:
    return (
        "CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL);"
        "CREATE TABLE counters (role INTEGER PRIMARY KEY, next INTEGER NOT NULL,"
        " end INTEGER NOT NULL);"
        "CREATE TABLE pads (role INTEGER, number INTEGER, pad BLOB NOT NULL,"
        " PRIMARY KEY (role, number)) WITHOUT ROWID;"
    )


def connect(path: str | Path) -> sqlite3.Connection:
    """Open an SQLite file for this process alone; what is deleted is overwritten, commits are
    flushed to the disk before they return.
    """
    connection = sqlite3.connect(path, isolation_level=None, timeout=0.5)
    for setting in (
        "locking_mode=EXCLUSIVE",
        "journal_mode=TRUNCATE",
        "secure_delete=ON",
        "synchronous=EXTRA",
    ):
        connection.execute(f"PRAGMA {setting}").fetchall()
    return connection


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All or nothing: whatever is raised inside, the file stays as it was."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def create_private(path: Path, what: str) -> None:
    """Create an empty file of mode 0600; PoolError if it exists or cannot be made."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        raise PoolError(
            f"{path}: exists already and is not overwritten; "
            f"name another file, or move the {what} away"
        ) from None
    except OSError as error:
        raise PoolError(f"{path}: {error.strerror}") from None


def check_private(path: Path, what: str) -> None:
    """Refuse a file that is not there or that others may read (PoolError)."""
    try:
        status = path.stat()
    except OSError as error:
        raise PoolError(f"{path}: no {what}: {error.strerror}") from None
    if status.st_mode & 0o077:
        raise PoolError(
            f"{path}: mode {status.st_mode & 0o777:04o} lets others at the {what}; "
            "allowed is 0600, and what others could read is to be provisioned anew"
        )


def provision(paths: Mapping[Role, Path], source: RandomSource, pads: int = DEFAULT_PADS) -> None:
    """Write the first pools of a link, one file for each station.

    Parameters
    ----------
    paths
        File by role. Each is carried to its station by trusted hands, and exists once.
    source
        Where the key comes from; its label is stored with the pool.
    pads
        One-time pads of each direction; each serves one tag.

    Raises
    ------
    PoolError
        If a file exists already or cannot be written.
    """
    if not 2 * RESERVE <= pads <= MAXIMUM_PADS:
        raise PoolError(f"pads = {pads}: allowed is {2 * RESERVE} to {MAXIMUM_PADS}")
    if paths[Role.SENDER].resolve() == paths[Role.RECEIVER].resolve():
        raise PoolError(f"{paths[Role.SENDER]}: one file for both stations; name two")
    drawn = {role: source.bytes(pads * PAD_BYTES) for role in paths}
    common = {
        "format": _FORMAT,
        "link": source.bytes(16),
        "live": source.bytes(LIVE_KEY_BYTES),
        "label": source.label.encode(),
        "capacity": str(pads).encode(),
        **{f"r{int(role)}": source.bytes(PAD_BYTES) for role in paths},
    }
    made: list[Path] = []
    try:
        for role, path in paths.items():
            create_private(path, "pool")
            made.append(path)
            connection = connect(path)
            try:
                connection.executescript(f"BEGIN; {_columns()} COMMIT;")
                connection.execute("BEGIN IMMEDIATE")
                meta = {**common, "role": str(int(role)).encode()}
                connection.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
                for each, block in drawn.items():
                    connection.execute("INSERT INTO counters VALUES (?, 0, ?)", (int(each), pads))
                    connection.executemany(
                        "INSERT INTO pads VALUES (?, ?, ?)",
                        (
                            (int(each), i, block[i * PAD_BYTES : (i + 1) * PAD_BYTES])
                            for i in range(pads)
                        ),
                    )
                connection.execute("COMMIT")
            finally:
                connection.close()
    except BaseException:
        for path in made:  # half a pool is none
            path.unlink(missing_ok=True)
        raise


class Pool:
    """A station's pool of one-time key, one part a direction; open in one process at a time.

    Parameters
    ----------
    path
        File that `provision` wrote.
    role
        This station's role.
    marks
        Memory elsewhere by which a restored pool is found out; None does without.

    Raises
    ------
    PoolError
        If the file is missing, readable by others, damaged, in use, or the other station's.
    PoolRestored
        If the file is a copy of a pool that was in use, or is behind the marks.
    """

    def __init__(self, path: str | Path, role: Role, marks: Marks | None = None) -> None:
        self.path, self.role, self._marks = Path(path), role, marks
        check_private(self.path, "pool")
        try:
            self._db = connect(self.path)
        except sqlite3.Error as error:
            raise PoolError(f"{path}: {_database_error(error)}") from None
        try:
            self._load()
        except sqlite3.Error as error:
            self._db.close()
            raise PoolError(f"{path}: {_database_error(error)}") from None
        except BaseException:
            self._db.close()
            raise

    def _load(self) -> None:
        meta = dict(self._db.execute("SELECT name, value FROM meta"))
        if meta.get("format") != _FORMAT:
            raise PoolError(f"{self.path}: no pool of this version; `keyrail provision` makes one")
        if meta["role"] != str(int(self.role)).encode():
            raise PoolError(
                f"{self.path}: the other station's pool; this station is the "
                f"{self.role.name.lower()}"
            )
        self.link_id: bytes = meta["link"]
        self.label: str = meta["label"].decode()
        self.capacity = int(meta["capacity"])
        self.live_key: bytes = meta["live"]
        self._r: dict[Role, bytes] = {role: meta[f"r{int(role)}"] for role in Role}
        self._counters = {
            Role(role): Counters(first, end)
            for role, first, end in self._db.execute("SELECT role, next, end FROM counters")
        }
        inode = str(self.path.stat().st_ino).encode()
        with self._transaction():
            if "inode" not in meta:
                self._db.execute("INSERT INTO meta VALUES ('inode', ?)", (inode,))
        if meta.get("inode", inode) != inode:
            raise PoolRestored(
                f"{self.path}: a copy of a pool that was in use (another inode): its pads may be "
                "spent; provision the link anew"
            )
        for role, counters in self._counters.items():
            if self._marks is not None and counters.next < self._marks.mark(role):
                raise PoolRestored(
                    f"{self.path}: at index {counters.next} of the {role.name.lower()}'s pads, "
                    f"the keystore knows of {self._marks.mark(role)}: restored from a backup; "
                    "provision the link anew"
                )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            with transaction(self._db):
                yield
        except sqlite3.Error as error:
            raise PoolError(f"{self.path}: {_database_error(error)}") from None

    def close(self) -> None:
        """Release the file."""
        self._db.close()

    def __repr__(self) -> str:
        return f"Pool({str(self.path)!r}, {self.role.name})"

    @property
    def counters(self) -> dict[Role, Counters]:
        """State of both directions."""
        return dict(self._counters)

    def left(self, role: Role) -> int:
        """Unused pads of a direction."""
        return self._counters[role].left

    def polynomial_key(self, role: Role) -> bytes:
        """The key r of a direction. Secret."""
        return self._r[role]

    def use(self, role: Role, index: int | None = None) -> tuple[int, bytes]:
        """Take a pad out for ever; that is on disk before this returns.

        Parameters
        ----------
        role
            Direction: the station whose tag it is.
        index
            Index that came with a tag; None for the next one. All pads below it are given up.

        Returns
        -------
        tuple of int and bytes
            Index and pad.

        Raises
        ------
        PoolDry
            If there is none, or the index is beyond the pool's end.
        ForgeryError
            If the index was used before, or is so far ahead that it would waste the pool.
        """
        counters = self._counters[role]
        index = counters.next if index is None else index
        if index < counters.next:
            raise ForgeryError(
                f"index {index} of the {role.name.lower()}'s pads has been used: a replay"
            )
        if index > counters.next + MAXIMUM_SKIP:
            raise ForgeryError(
                f"index {index} of the {role.name.lower()}'s pads where {counters.next} is due"
            )
        if index >= counters.end:
            raise PoolDry(
                f"the pool of the {role.name.lower()}'s tags is dry at index {index}; provision "
                "the link anew"
            )
        row = self._db.execute(
            "SELECT pad FROM pads WHERE role = ? AND number = ?", (int(role), index)
        ).fetchone()
        if row is None:
            raise PoolError(f"{self.path}: pad {index} is missing; provision the link anew")
        self._move(role, Counters(index + 1, counters.end))
        return index, row[0]

    def _move(self, role: Role, to: Counters) -> None:
        """Make `to` the direction's state on disk, and overwrite the pads outside it."""
        with self._transaction():
            self._db.execute(
                "UPDATE counters SET next = ?, end = ? WHERE role = ?",
                (to.next, to.end, int(role)),
            )
            self._db.execute(
                "DELETE FROM pads WHERE role = ? AND (number < ? OR number >= ?)",
                (int(role), to.next, to.end),
            )
        self._counters[role] = to
        if self._marks is not None:
            self._marks.set_mark(role, to.next)

    def agree(self, other: Mapping[Role, Counters]) -> None:
        """Meet the other station's counters at the begin of a session.

        What this station spends must be no further there than here, else this pool is a restored
        one; the other way round the other station's is. Of what one station has given up or has
        not got, the other gives up as much.

        Raises
        ------
        PoolRestored
            If one of the pools was restored from a backup; or if someone who can make the
            computational tag named a later index, which is used up by that attempt.
        """
        mine, theirs = self.role, other_role(self.role)
        if other[mine].next > self._counters[mine].next:
            raise PoolRestored(
                f"{self.path}: at index {self._counters[mine].next} of its own pads, the other "
                f"station has seen {other[mine].next}: restored from a backup, or a later index "
                "was forged there; provision the link anew"
            )
        if other[theirs].next < self._counters[theirs].next:
            raise PoolRestored(
                f"the other station's pool is at index {other[theirs].next} of its own pads, "
                f"{self._counters[theirs].next} have been seen here: restored from a backup, or "
                "a later index was forged here; provision the link anew"
            )
        for role, here in self._counters.items():
            first = max(here.next, other[role].next)
            end = max(first, min(here.end, other[role].end))
            if (first, end) != (here.next, here.end):
                self._move(role, Counters(first, end))

    def refill(self, pads: Mapping[Role, bytes]) -> None:
        """Append new one-time key, the same at both stations; whole pads."""
        with self._transaction():
            for role, block in pads.items():
                end = self._counters[role].end
                self._db.executemany(
                    "INSERT INTO pads VALUES (?, ?, ?)",
                    ((int(role), end + i, pad) for i, pad in enumerate(_split(block))),
                )
                self._db.execute(
                    "UPDATE counters SET end = ? WHERE role = ?",
                    (end + len(block) // PAD_BYTES, int(role)),
                )
        for role, block in pads.items():
            here = self._counters[role]
            self._counters[role] = Counters(here.next, here.end + len(block) // PAD_BYTES)

    def refill_wanted(self, key_bits: int, share: float) -> dict[Role, int]:
        """Pads to append out of a new key, by direction: the emptier direction first, until both
        are as full as at first or `share` of the key is spent.
        """
        room = int(key_bits * share) // PAD_BITS
        wanted = dict.fromkeys(Role, 0)
        missing = {role: max(0, self.capacity - self.left(role)) for role in Role}
        total = min(room, sum(missing.values()))
        for _ in range(total):
            role = max(Role, key=lambda each: missing[each] - wanted[each])
            wanted[role] += 1
        return wanted

    def require(self, pads: Mapping[Role, int]) -> None:
        """Refuse to begin what may take so many pads of each direction (PoolDry)."""
        for role, count in pads.items():
            if self.left(role) < count:
                raise PoolDry(
                    f"{self.path}: {self.left(role)} pads of the {role.name.lower()}'s tags are "
                    f"left, a block needs {count} with the reserve; provision the link anew"
                )


def _split(block: bytes) -> Iterable[bytes]:
    if len(block) % PAD_BYTES:
        raise ValueError(f"{len(block)} bytes are no whole number of pads")
    return (block[i : i + PAD_BYTES] for i in range(0, len(block), PAD_BYTES))


def _database_error(error: sqlite3.Error) -> str:
    if "locked" in str(error):
        return "in use by another process"
    return f"damaged or no pool: {error}"


class Authenticator:
    """Makes and checks the tags of a station's pool.

    Parameters
    ----------
    pool
        The station's pool.
    """

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.spent = 0
        self.epsilon = 0.0
        """Sum of the forgery bounds of all tags checked."""

    def tag(
        self, session: bytes, block: int, phase: int, transcript: PhaseTranscript
    ) -> tuple[int, bytes]:
        """Tag a phase's transcript; the index is on disk before this returns.

        Parameters
        ----------
        session
            Identifier of the session, fresh on both sides.
        block, phase
            What the transcript is of.
        transcript
            Everything that was said in it, in both directions.

        Returns
        -------
        tuple of int and bytes
            Index in the pool and tag of 16 bytes.

        Raises
        ------
        PoolDry
            If no pad is left.
        """
        role = self.pool.role
        index, pad = self.pool.use(role)
        mac, _ = self._mac(role, pad, index, session, block, phase, transcript)
        self.spent += 1
        return index, mac.finalize()

    def check(
        self,
        session: bytes,
        block: int,
        phase: int,
        transcript: PhaseTranscript,
        index: int,
        tag: bytes,
    ) -> float:
        """Check the other station's tag, in constant time; its index has this one attempt.

        Returns
        -------
        float
            Bound of the probability that a forgery would have passed.

        Raises
        ------
        ForgeryError
            If the tag is wrong or the index has been used.
        PoolDry
            If the index lies beyond the pool.
        """
        role = other_role(self.pool.role)
        _, pad = self.pool.use(role, index)
        mac, size = self._mac(role, pad, index, session, block, phase, transcript)
        try:
            mac.verify(tag)
        except InvalidSignature:
            raise ForgeryError(
                f"the {role.name.lower()}'s tag of block {block}, phase {phase} does not fit: "
                "the messages were altered on their way"
            ) from None
        self.epsilon += forgery_bound(size)
        return forgery_bound(size)

    def _mac(
        self,
        role: Role,
        pad: bytes,
        index: int,
        session: bytes,
        block: int,
        phase: int,
        transcript: PhaseTranscript,
    ) -> tuple[Poly1305, int]:
        mac = Poly1305(self.pool.polynomial_key(role) + pad)
        head = _DOMAIN + len(session).to_bytes(1, "little") + session
        head += b"".join(
            number.to_bytes(8, "little") for number in (block, phase, int(role), index)
        )
        size = len(head)
        mac.update(head)
        for part in transcript.parts():
            mac.update(part)
            size += len(part)
        return mac, size
