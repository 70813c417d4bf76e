# SPDX-License-Identifier: Apache-2.0
"""The vocabulary of the contract: fields, records, registers, counters and streams.

Plain Python without any dependency, so that gateware, host, C header and documents can all
derive their view from the same description.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum


class ContractError(ValueError):
    """A description contradicts itself (overlapping registers, a field past its record, ...)."""


class Role(IntEnum):
    """The role of a station; the value of its ``role`` register."""

    SENDER = 1
    RECEIVER = 2


class Access(Enum):
    """How the host may use a register."""

    READ = "read"
    READ_WRITE = "read-write"
    COMMAND = "command"
    """Writing acts once; it reads as zero."""


class Direction(Enum):
    """Which way a stream flows, seen from the board."""

    TO_BOARD = "to board"
    TO_HOST = "to host"


@dataclass(frozen=True)
class Field:
    """One field of a record or register.

    Parameters
    ----------
    name
        Lower-case identifier, unique in its record.
    bits
        Width, 1 to 64.
    meaning
        What the field says, with its unit; a sentence for the manual.
    unit
        Unit of the value, empty for a plain number or code.
    codes
        The enumeration its values belong to, if it is a code.
    """

    name: str
    bits: int
    meaning: str
    unit: str = ""
    codes: type[IntEnum] | None = None

    def __post_init__(self) -> None:
        if not self.name.isidentifier() or self.name != self.name.lower():
            raise ContractError(f"field name {self.name!r} is not a lower-case identifier")
        if not 1 <= self.bits <= 64:
            raise ContractError(f"field {self.name}: {self.bits} bits, allowed are 1 to 64")
        if not self.meaning:
            raise ContractError(f"field {self.name} has no meaning")


@dataclass(frozen=True)
class Record:
    """A record of fixed width: fields packed from bit 0 upwards, little-endian on the wire.

    Bits past the last field are reserved: written as zero and ignored on reading.

    Parameters
    ----------
    name
        Lower-case identifier.
    bits
        Width on the wire, a multiple of 8.
    fields
        Fields, the first in the low bits.
    meaning
        What one record stands for.
    """

    name: str
    bits: int
    fields: tuple[Field, ...]
    meaning: str

    def __post_init__(self) -> None:
        if self.bits % 8 or self.used_bits > self.bits:
            raise ContractError(f"record {self.name}: fields do not fit {self.bits} bits")
        if len({field.name for field in self.fields}) != len(self.fields):
            raise ContractError(f"record {self.name} names a field twice")

    @property
    def used_bits(self) -> int:
        """Bits that carry fields; the rest is reserved."""
        return sum(field.bits for field in self.fields)

    @property
    def bytes(self) -> int:
        """Bytes of one record on the wire."""
        return self.bits // 8

    def offset(self, name: str) -> int:
        """Bit offset of field `name`; KeyError if there is none."""
        position = 0
        for field in self.fields:
            if field.name == name:
                return position
            position += field.bits
        raise KeyError(name)


@dataclass(frozen=True)
class Register:
    """A register, one or more 32-bit words at an offset counted in words.

    A value wider than 32 bits takes two words, low word first; reading the low word latches the
    high one, so that a pair read in that order belongs together. Writing the low word holds it
    until the high word is written, then both take effect at once.

    Parameters
    ----------
    name
        Lower-case identifier.
    offset
        Address of the first word, in words.
    fields
        Fields of the value, the first in the low bits; 64 bits at most.
    access
        How the host may use it.
    meaning
        A sentence for the manual.
    roles
        Stations that have it.
    reset
        Value after reset.
    """

    name: str
    offset: int
    fields: tuple[Field, ...]
    access: Access
    meaning: str
    roles: tuple[Role, ...] = (Role.SENDER, Role.RECEIVER)
    reset: int = 0

    def __post_init__(self) -> None:
        if self.bits > 64:
            raise ContractError(f"register {self.name} is wider than 64 bits")
        if not 0 <= self.reset < 1 << self.bits:
            raise ContractError(f"register {self.name}: reset value does not fit")

    @property
    def bits(self) -> int:
        """Width of the value in bits."""
        return sum(field.bits for field in self.fields)

    @property
    def words(self) -> int:
        """Number of 32-bit words it occupies."""
        return 2 if self.bits > 32 else 1


@dataclass(frozen=True)
class Counter:
    """One counter of a block's ledger.

    Each becomes two registers of the station: ``BLOCK_NAME`` counts on, and
    ``BLOCK_NAME_at_frame`` holds what it was when the last frame marker passed.

    Parameters
    ----------
    name
        Lower-case identifier.
    meaning
        A sentence for the manual.
    event
        True if it has no part in the conservation in = out + dropped + held.
    """

    name: str
    meaning: str
    event: bool = False


@dataclass(frozen=True)
class Stream:
    """A stream between host and board: one bulk endpoint.

    Parameters
    ----------
    name
        Lower-case identifier.
    direction
        Seen from the board.
    record
        What it carries, one record after the other.
    roles
        Stations that have it.
    secret
        True if what it carries must not leave the station (board and control PC).
    meaning
        A sentence for the manual.
    """

    name: str
    direction: Direction
    record: Record
    roles: tuple[Role, ...]
    secret: bool
    meaning: str
