# SPDX-License-Identifier: Apache-2.0
"""One object for every board, simulated or real."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod

import numpy as np
import numpy.typing as npt

from keyrail.contract import (
    CONTRACT_HASH,
    CONTRACT_VERSION,
    MAGIC,
    Access,
    Direction,
    Randomness,
    Register,
    Role,
    Stream,
    registers,
    streams,
)
from keyrail.errors import ContractMismatch, KeyrailError, MissingExtra, SettingError
from keyrail.layouts import Structured, pack, unpack
from keyrail.randomness import Label, named_label

STATIONS = {"alice": Role.SENDER, "bob": Role.RECEIVER}
"""Names of the simulated stations."""
BACKENDS = {
    "sim": "keyrail_sim.verilated",
    "sim-model": "keyrail_sim.model_board",
    "sim-usb": "keyrail_sim.usb_board",
}
"""Kinds of simulated boards, and the module of each."""


def is_simulated(name: str) -> bool:
    """Whether the name is a simulated board's."""
    return name.partition(":")[0] in BACKENDS


class BoardError(KeyrailError):
    """A board did not do what it was asked."""


class Board(ABC):
    """A station's board: registers and streams by their names in the contract.

    Parameters
    ----------
    role
        Role of the station.
    name
        Where it was opened, such as ``sim:alice``.
    """

    randomness_may_be_test = False
    """True on simulated boards only: a real board refuses seeded randomness."""

    def __init__(self, role: Role, name: str) -> None:
        self.role = role
        self.name = name
        self.registers = registers(role)
        self.streams = streams(role)

    # -- what a back end provides ------------------------------------------------------------

    @abstractmethod
    def read_word(self, offset: int) -> int:
        """Read the 32-bit word at `offset`."""

    @abstractmethod
    def write_word(self, offset: int, value: int) -> None:
        """Write the 32-bit word at `offset`."""

    @abstractmethod
    def send_bytes(self, stream: Stream, data: npt.NDArray[np.uint8]) -> None:
        """Queue whole records for a stream to the board."""

    @abstractmethod
    def receive_bytes(self, stream: Stream) -> npt.NDArray[np.uint8]:
        """Take all bytes that have come from the board on a stream."""

    @abstractmethod
    def pending(self, name: str) -> int:
        """Records queued for stream `name` that the board has not taken yet."""

    @abstractmethod
    def run(self) -> None:
        """Return when the board is idle: nothing moves any more and no block is at work.

        Raises
        ------
        BoardError
            If it does not come to rest.
        """

    @abstractmethod
    def close(self) -> None:
        """Release the board; its queues are wiped."""

    # -- what users call ---------------------------------------------------------------------

    def register(self, name: str) -> Register:
        """Description of register `name`; BoardError if this station has none of that name."""
        try:
            return self.registers[name]
        except KeyError:
            raise BoardError(
                f"{self.name}: a {self.role.name.lower()} has no register {name!r}"
            ) from None

    def read(self, name: str) -> int:
        """Value of register `name`, fields joined, the first in the low bits."""
        register = self.register(name)
        value = self.read_word(register.offset)
        if register.words == 2:
            value |= self.read_word(register.offset + 1) << 32
        return value

    def read_fields(self, name: str) -> dict[str, int]:
        """Value of register `name` by field."""
        return self.split(name, self.read(name))

    def input_count(self) -> int:
        """Inputs of its own that the board has, sync and pulse per second among them."""
        return self.read("inputs") if self.role is Role.RECEIVER else 0

    def split(self, name: str, value: int) -> dict[str, int]:
        """A value of register `name` by field."""
        fields = {}
        for field in self.register(name).fields:
            fields[field.name] = value & ((1 << field.bits) - 1)
            value >>= field.bits
        return fields

    def write(self, name: str, value: int = 0, **fields: int) -> None:
        """Write register `name`, as one value or by fields (those not given are zero).

        Raises
        ------
        SettingError
            If a value does not fit.
        BoardError
            If the register cannot be written.
        """
        register = self.register(name)
        if register.access is Access.READ:
            raise BoardError(f"{self.name}: register {name} is read-only")
        known = {field.name: field for field in register.fields}
        shift = 0
        for field in register.fields:
            part = fields.pop(field.name, 0)
            if not 0 <= part < 1 << field.bits:
                raise SettingError(f"{name}.{field.name}", part, f"0 to {(1 << field.bits) - 1}")
            value |= part << shift
            shift += field.bits
        if fields:
            raise SettingError(name, ", ".join(fields), f"one of the fields {', '.join(known)}")
        if not 0 <= value < 1 << register.bits:
            raise SettingError(name, value, f"0 to {(1 << register.bits) - 1}")
        self.write_word(register.offset, value & 0xFFFF_FFFF)
        if register.words == 2:
            self.write_word(register.offset + 1, value >> 32)

    def stream(self, name: str, direction: Direction) -> Stream:
        """Description of stream `name`; BoardError if it does not exist in this direction."""
        stream = self.streams.get(name)
        if stream is None or stream.direction is not direction:
            raise BoardError(
                f"{self.name}: a {self.role.name.lower()} has no stream {name!r} {direction.value}"
            )
        return stream

    def send(self, name: str, records: Structured) -> None:
        """Queue records for stream `name` (structured array of its record's fields)."""
        stream = self.stream(name, Direction.TO_BOARD)
        self.send_bytes(stream, pack(stream.record, records))

    def receive(self, name: str) -> Structured:
        """Take all records that have come on stream `name`."""
        stream = self.stream(name, Direction.TO_HOST)
        return unpack(stream.record, self.receive_bytes(stream))

    def identify(self) -> dict[str, int]:
        """Identity registers; checked before anything else.

        Returns
        -------
        dict of str to int
            ``contract_version``, ``contract_hash``, ``gateware_version``, ``role``, the fields of
            ``configuration``, and of a sender ``states_randomness`` (`Randomness`).

        Raises
        ------
        BoardError
            If nothing that speaks this protocol answers, or the station has the other role.
        ContractMismatch
            If the board was built for another contract.
        """
        magic = self.read("magic")
        if magic != MAGIC:
            raise BoardError(
                f"{self.name}: register 0 answers {magic:#010x} instead of {MAGIC:#010x}; "
                "this is no Keyrail board, or it is not configured: load its bitstream"
            )
        version, contract = self.read("contract_version"), self.read("contract_hash")
        if (version, contract) != (CONTRACT_VERSION, CONTRACT_HASH):
            raise ContractMismatch(
                f"{self.name}: contract {version} ({contract:016x}), this library speaks "
                f"{CONTRACT_VERSION} ({CONTRACT_HASH:016x}); rebuild the gateware with this "
                "version, or install the library that it was built with"
            )
        role = self.read("role")
        if role != self.role:
            raise BoardError(f"{self.name}: role {role} instead of {self.role} (see `role`)")
        sender = {}
        if self.role is Role.SENDER:
            sender["states_randomness"] = self.read("states_randomness")
        return {
            "contract_version": version,
            "contract_hash": contract,
            "gateware_version": self.read("gateware_version"),
            "role": role,
            **self.read_fields("configuration"),
            **sender,
        }

    def randomness(self) -> dict[str, Label]:
        """Source of each use of randomness that the board itself answers for, by its label.

        A sender's states: with the on-board generator (computational) it says so, whatever the
        host claims of the states; else it repeats the host's word.
        """
        if self.role is not Role.SENDER:
            return {}
        return {"states": named_label(Randomness(self.read("states_randomness")).name)}

    def ledger(self, block: str, at_frame: bool = False) -> dict[str, int]:
        """Counters of a block by name, live or as the last frame marker found them."""
        from keyrail.contract import LEDGERS

        suffix = "_at_frame" if at_frame else ""
        return {c.name: self.read(f"{block}_{c.name}{suffix}") for c in LEDGERS[block][1]}

    def __enter__(self) -> Board:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def open(name: str) -> Board:
    """Open a board and check its identity.

    Parameters
    ----------
    name
        ``sim:alice`` or ``sim:bob``: the station's gateware, Verilated.
        ``sim-model:alice`` or ``sim-model:bob``: its numpy twin; the same bytes, faster.
        ``sim-usb:alice`` or ``sim-usb:bob``: the gateware with its USB core, on a simulated bus.
        ``usb:``: a board on USB; see `keyrail.usb.open_board` for which one.

    Returns
    -------
    Board
        Ready for use; a context manager.

    Raises
    ------
    SettingError
        If the name is not one of these.
    MissingExtra, MissingTool
        If the simulation lacks a package or a system tool.
    ContractMismatch, BoardError
        If the board does not fit this library.
    """
    kind, colon, station = name.partition(":")
    if kind == "usb" and colon:
        from keyrail.usb import open_board

        return _identified(open_board(name))
    if kind not in BACKENDS or station not in STATIONS:
        simulated = (f"{one}:{end}" for one in BACKENDS for end in STATIONS)
        raise SettingError("board", name, f"usb:, {', '.join(simulated)}")
    module = BACKENDS[kind]
    try:
        backend = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtra(error.name or module, "sim") from None
    return _identified(backend.open_station(STATIONS[station], name))


def _identified(board: Board) -> Board:
    try:
        board.identify()
    except BaseException:
        board.close()
        raise
    return board
