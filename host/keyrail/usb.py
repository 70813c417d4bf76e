# SPDX-License-Identifier: Apache-2.0
"""Boards on USB: asynchronous transfers queued ahead, through python-libusb1.

The system's libusb is used where there is one; python-libusb1's own wheels carry it for Windows
and macOS, and the package ``libusb-package`` for Linux too.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from keyrail.board import Board, BoardError
from keyrail.contract import (
    CONTRACT_HASH,
    CONTRACT_VERSION,
    MAGIC,
    REGISTERS,
    USB_PRODUCT,
    USB_REQUEST_WORDS,
    USB_VENDOR,
    BoardCode,
    Direction,
    Role,
    Stream,
    VendorRequest,
    endpoints,
)
from keyrail.errors import ContractMismatch, KeyrailError, MissingExtra, SettingError

PAYLOAD_MBPS = {"high speed": 320.0, "full speed": 8.0}
"""Payload that a cable carries, both directions together, Mb/s: taken, not measured."""
UDEV_FILE = "70-keyrail.rules"
UDEV_FOLDER = Path("/etc/udev/rules.d")
_IN_VENDOR, _OUT_VENDOR = 0xC0, 0x40  # bmRequestType: vendor, to the device
_PLACE = {register.name: register.offset for register in REGISTERS}
_IDENTITY_WORDS = _PLACE["serial"] + 2  # magic to serial
_OF_INPUTS = frozenset(("raw", "losses", "gated", "announcements", "block_out"))
"""Streams on which a board with inputs of its own says what these see, whatever the host does."""


class UsbError(BoardError):
    """What USB reports of a board."""


class NoPermission(UsbError):
    """The system does not let this user open the board."""


class Unplugged(UsbError):
    """The board went away; what came before is kept, and `UsbBoard.resume` goes on."""


class NoBoard(UsbError):
    """No board, or not the one that was asked for."""


@dataclass(frozen=True)
class UsbSettings:
    """How a board on USB is driven.

    Parameters
    ----------
    in_bytes, in_depth
        Bytes of a transfer from the board, a multiple of 512, and how many are queued ahead for
        each stream.
    out_bytes, out_depth
        The same to the board.
    control_ms
        Longest time for a register access, ms.
    quiet_s
        A board is at rest when nothing has moved for so long, s; longer than it holds a partly
        filled packet back.
    rest_s
        `Board.run` gives up after so long, s.
    identifiers
        Vendor and product identifiers of boards.
    thread
        Handle events in a thread of their own; without, only while the board is called.
    """

    in_bytes: int = 16_384
    in_depth: int = 8
    out_bytes: int = 65_536
    out_depth: int = 4
    control_ms: int = 1_000
    quiet_s: float = 0.005
    rest_s: float = 600.0
    identifiers: tuple[tuple[int, int], ...] = ((USB_VENDOR, USB_PRODUCT),)
    thread: bool = True

    def __post_init__(self) -> None:
        for name in ("in_bytes", "out_bytes"):
            value = getattr(self, name)
            if not 512 <= value <= 1 << 24 or value % 512:
                raise SettingError(name, value, "a multiple of 512 up to 16777216")
        for name in ("in_depth", "out_depth"):
            if not 1 <= getattr(self, name) <= 256:
                raise SettingError(name, getattr(self, name), "1 to 256")
        if self.control_ms < 1:
            raise SettingError("control_ms", self.control_ms, "1 and more")
        for name in ("quiet_s", "rest_s"):
            if getattr(self, name) <= 0:
                raise SettingError(name, getattr(self, name), "above 0")
        for identifier in self.identifiers:
            if not all(0 < part < 1 << 16 for part in identifier):
                raise SettingError("identifiers", identifier, "two numbers of 1 to 65535")


@dataclass(frozen=True)
class Found:
    """A board that is plugged in.

    Parameters
    ----------
    place
        Bus and ports, such as ``1-4.2``; stays the same as long as the cable does.
    role, board, serial, contract
        What its registers say; None where they could not be read.
    problem
        Why it cannot be used, or empty.
    """

    place: str
    role: Role | None = None
    board: str = ""
    serial: str = ""
    contract: str = ""
    problem: str = ""

    @property
    def name(self) -> str:
        """What `keyrail.open` takes."""
        return f"usb:{self.serial if self.serial.strip('0') else self.place}"


def load_libusb() -> Any:
    """Module ``usb1`` with its library loaded.

    Raises
    ------
    MissingExtra
        If a package is missing.
    KeyrailError
        If there is no libusb, neither the system's nor a wheel's.
    """
    try:
        import usb1
    except ModuleNotFoundError:
        raise MissingExtra("usb1", "usb") from None
    with contextlib.suppress(OSError):
        usb1.loadLibrary()
        return usb1
    if importlib.util.find_spec("libusb_package") is not None:
        import libusb_package

        path = libusb_package.get_library_path()
        if path is not None:
            usb1.loadLibrary(ctypes.CDLL(str(path), use_errno=True))
            return usb1
    raise KeyrailError(
        "no libusb: pip install 'keyrail[usb]' brings it, or the system package libusb-1.0-0"
    )


def udev_rule(settings: UsbSettings = UsbSettings()) -> str:
    """Rule that lets the user at the machine, and the group plugdev, open boards."""
    return "# Keyrail boards\n" + "".join(
        f'SUBSYSTEM=="usb", ATTR{{idVendor}}=="{vendor:04x}", ATTR{{idProduct}}=="{product:04x}", '
        'MODE="0660", GROUP="plugdev", TAG+="uaccess"\n'
        for vendor, product in settings.identifiers
    )


def install_udev(folder: Path = UDEV_FOLDER, settings: UsbSettings = UsbSettings()) -> Path:
    """Write the udev rule; where it is.

    Raises
    ------
    KeyrailError
        If the folder cannot be written.
    """
    path = folder / UDEV_FILE
    try:
        path.write_text(udev_rule(settings))
    except OSError as error:
        raise KeyrailError(
            f"{path}: {error.strerror}; as root: sudo keyrail install-udev"
        ) from None
    return path


def _place(device: Any) -> str:
    ports = ".".join(str(port) for port in device.getPortNumberList())
    return f"{device.getBusNumber()}-{ports}"


def _explain(usb1: Any, error: Exception, name: str, doing: str) -> UsbError:
    """What a libusb error means for the user."""
    if isinstance(error, usb1.USBErrorAccess):
        rule = udev_rule().strip().splitlines()[-1]
        return NoPermission(
            f"{name}: no permission to {doing}; `sudo keyrail install-udev` writes this rule to "
            f"{UDEV_FOLDER / UDEV_FILE}, then plug the board in again: {rule}"
        )
    if isinstance(error, usb1.USBErrorNoDevice):
        return Unplugged(f"{name}: the board was unplugged")
    meanings = {
        "USBErrorBusy": "another program uses it",
        "USBErrorPipe": "the board refused the request",
        "USBErrorTimeout": "the board did not answer in time",
        "USBErrorIO": "input or output failed; check cable and hub",
        "USBErrorNotFound": "the board has no such interface or endpoint; is it configured?",
        "USBErrorOverflow": "the board sent more than was asked for",
        "USBErrorNotSupported": "not supported here; on Windows, its WinUSB driver is missing",
        "USBErrorNoMem": "out of memory for transfers; lower in_depth or in_bytes",
        "USBErrorInterrupted": "interrupted; try again",
        "USBErrorInvalidParam": "refused by the system; transfers too large? lower in_bytes",
    }
    meaning = meanings.get(type(error).__name__, str(error))
    return UsbError(f"{name}: cannot {doing}: {meaning} ({type(error).__name__})")


def _words(usb1: Any, handle: Any, offset: int, count: int, name: str, timeout: int) -> list[int]:
    """Words of the register bus."""
    values: list[int] = []
    while len(values) < count:
        part = min(USB_REQUEST_WORDS, count - len(values))
        at = offset + len(values)
        try:
            data = bytes(
                handle.controlRead(_IN_VENDOR, VendorRequest.REGISTERS, 0, at, 4 * part, timeout)
            )
        except usb1.USBError as error:
            raise _explain(usb1, error, name, f"read register {at:#x}") from None
        if len(data) != 4 * part:
            raise UsbError(f"{name}: register {at:#x}: {len(data)} bytes instead of {4 * part}")
        values += [int.from_bytes(data[i : i + 4], "little") for i in range(0, len(data), 4)]
    return values


def _identity(usb1: Any, handle: Any, name: str, timeout: int) -> dict[str, int]:
    """Identity registers of a board of any contract.

    Raises
    ------
    UsbError
        If it is no Keyrail board.
    """
    words = _words(usb1, handle, 0, _IDENTITY_WORDS, name, timeout)
    if words[0] != MAGIC:
        raise UsbError(
            f"{name}: register 0 answers {words[0]:#010x} instead of {MAGIC:#010x}; no Keyrail "
            "board (test identifiers are shared), or one without its bitstream"
        )
    at = _PLACE
    return {
        "version": words[at["contract_version"]],
        "hash": words[at["contract_hash"]] | words[at["contract_hash"] + 1] << 32,
        "role": words[at["role"]],
        "board": words[at["board"]],
        "serial": words[at["serial"]] | words[at["serial"] + 1] << 32,
    }


def _check_contract(name: str, identity: dict[str, int]) -> Role:
    """Role of a board that speaks this contract; ContractMismatch for any other."""
    found = (identity["version"], identity["hash"])
    if found != (CONTRACT_VERSION, CONTRACT_HASH):
        role = identity["role"]
        known = role in list(Role)
        command = f"keyrail build BOARD {Role(role).name.lower() if known else 'ROLE'}"
        raise ContractMismatch(
            f"{name}: the board speaks contract {found[0]} ({found[1]:016x}), this library "
            f"{CONTRACT_VERSION} ({CONTRACT_HASH:016x}); rebuild its gateware with this version "
            f"(`{command}`), or install the library that it was built with"
        )
    if identity["role"] not in list(Role):
        raise UsbError(f"{name}: the board says role {identity['role']}, which does not exist")
    return Role(identity["role"])


def _devices(context: Any, settings: UsbSettings) -> Iterator[Any]:
    for device in context.getDeviceIterator(skip_on_error=True):
        if (device.getVendorID(), device.getProductID()) in settings.identifiers:
            yield device


def devices(
    settings: UsbSettings = UsbSettings(), usb1: Any = None, context: Any = None
) -> list[Found]:
    """Boards that are plugged in, those with a problem too.

    Parameters
    ----------
    settings
        Identifiers to look for.
    usb1, context
        Module and context of python-libusb1; loaded if absent.
    """
    usb1 = usb1 or load_libusb()
    if context is None:
        with usb1.USBContext() as own:
            return devices(settings, usb1, own)
    found = []
    for device in _devices(context, settings):
        place = _place(device)
        name = f"usb:{place}"
        try:
            handle = device.open()
        except usb1.USBError as error:
            found.append(Found(place, problem=str(_explain(usb1, error, name, "open the board"))))
            continue
        try:
            seen = _identity(usb1, handle, name, settings.control_ms)
        except UsbError as error:
            found.append(Found(place, problem=str(error)))
            continue
        finally:
            handle.close()
        problem = ""
        role = Role(seen["role"]) if seen["role"] in list(Role) else None
        board = (
            BoardCode(seen["board"]).name.lower()
            if seen["board"] in list(BoardCode)
            else f"board {seen['board']}"
        )
        try:
            _check_contract(name, seen)
        except KeyrailError as error:
            problem = str(error)
        contract = f"{seen['version']} {seen['hash']:016x}"
        found.append(Found(place, role, board, f"{seen['serial']:016x}", contract, problem))
    return found


def _wanted(found: Found, selector: str) -> bool:
    roles = {"alice": Role.SENDER, "bob": Role.RECEIVER}
    roles |= {role.name.lower(): role for role in Role}
    if selector in roles:
        return found.role is roles[selector]
    return selector in ("", found.place, found.serial, found.serial.lstrip("0"))


class _In:
    """What has come on a stream from the board, and how it ended."""

    def __init__(self) -> None:
        self.chunks: deque[bytearray] = deque()
        self.transfers: list[Any] = []
        self.error: BoardError | None = None
        self.ended = False  # one of its own transfers failed: nothing follows without a gap

    def wipe(self) -> None:
        for chunk in self.chunks:
            chunk[:] = bytes(len(chunk))
        self.chunks.clear()


class _Out:
    """What waits on a stream to the board."""

    def __init__(self) -> None:
        self.waiting: deque[bytearray] = deque()
        self.flying: dict[int, bytearray] = {}
        self.transfers: list[Any] = []
        self.error: BoardError | None = None

    @property
    def bytes(self) -> int:
        return sum(map(len, self.waiting)) + sum(map(len, self.flying.values()))

    def wipe(self) -> None:
        for chunk in (*self.waiting, *self.flying.values()):
            chunk[:] = bytes(len(chunk))
        self.waiting.clear()
        self.flying.clear()


class UsbBoard(Board):
    """A station's board on USB.

    A stream that failed gives out what came before its error, whole records, and raises the
    error from then on, until `resume`.

    Parameters
    ----------
    role
        Role of the station.
    name
        Where it was opened.
    selector
        What the board is found by again: serial number or place.
    handle
        Open handle of python-libusb1; the board closes it.
    usb1, context
        Module and context the handle comes from.
    settings
        Sizes and depth of transfers, and times.
    own_context
        Close the context with the board.
    """

    def __init__(
        self,
        role: Role,
        name: str,
        selector: str,
        handle: Any,
        usb1: Any,
        context: Any,
        settings: UsbSettings = UsbSettings(),
        own_context: bool = False,
    ) -> None:
        super().__init__(role, name)
        self.settings = settings
        self.segment = 0
        """Counts up with every `resume`: data of different segments do not join."""
        self._selector = selector
        self._usb1, self._context, self._own_context = usb1, context, own_context
        self._handle: Any = handle
        self._addresses = endpoints(role)
        self._change = threading.Condition()
        self._events = 0  # completions so far
        self._events_of_inputs = 0  # of them, on `_OF_INPUTS`
        self._has_inputs: bool | None = None
        self._lost: Unplugged | None = None
        self._closing = False
        self._in: dict[str, _In] = {}
        self._out: dict[str, _Out] = {}
        self._thread: threading.Thread | None = None
        self._start()

    # -- life ----------------------------------------------------------------------------------

    def _start(self) -> None:
        """Claim the board and queue transfers ahead."""
        usb1 = self._usb1
        self._closing, self._lost = False, None
        try:
            self._handle.claimInterface(0)
            # Endpoints begin anew: what an earlier session left behind is dropped and wiped.
            self._handle.setInterfaceAltSetting(0, 0)
        except usb1.USBError as error:
            self._handle.close()
            self._handle = None
            raise _explain(usb1, error, self.name, "claim the board") from None
        self._in = {
            s.name: _In() for s in self.streams.values() if s.direction is Direction.TO_HOST
        }
        self._out = {
            s.name: _Out() for s in self.streams.values() if s.direction is Direction.TO_BOARD
        }
        for name, stream in self._in.items():
            for _ in range(self.settings.in_depth):
                transfer = self._handle.getTransfer()
                transfer.setBulk(
                    self._addresses[name],
                    self.settings.in_bytes,
                    callback=self._came,
                    user_data=name,
                    timeout=0,
                )
                stream.transfers.append(transfer)
                try:
                    transfer.submit()
                except usb1.USBError as error:
                    explained = _explain(usb1, error, self.name, f"queue transfers for {name}")
                    self._stop()
                    raise explained from None
        if self.settings.thread:
            self._thread = threading.Thread(
                target=self._handle_events, name=f"keyrail {self.name}", daemon=True
            )
            self._thread.start()

    def _handle_events(self) -> None:
        while not self._closing:
            try:
                self._context.handleEventsTimeout(0.1)
            except self._usb1.USBErrorInterrupted:
                continue
            except self._usb1.USBError as error:
                with self._change:
                    self._fail_all(_explain(self._usb1, error, self.name, "handle events"))
                return

    def _pump(self, seconds: float) -> None:
        """Let transfers move for up to `seconds`, or until one has completed."""
        if self._thread is not None:
            with self._change:
                before = self._events
                self._change.wait_for(lambda: self._events != before, seconds)
            return
        try:
            self._context.handleEventsTimeout(seconds)
        except self._usb1.USBErrorInterrupted:
            return
        except self._usb1.USBError as error:
            with self._change:
                self._fail_all(_explain(self._usb1, error, self.name, "handle events"))

    def _fail_all(self, error: BoardError) -> None:
        if isinstance(error, Unplugged):
            self._lost = self._lost or error
        streams: list[_In | _Out] = [*self._in.values(), *self._out.values()]
        for stream in streams:
            stream.error = stream.error or error
        self._change.notify_all()

    def _failure(self, status: int, name: str) -> BoardError:
        usb1 = self._usb1
        if status == usb1.TRANSFER_NO_DEVICE:
            return Unplugged(f"{self.name}: the board was unplugged; stream {name} ends here")
        meanings = {
            usb1.TRANSFER_STALL: "the board has halted it",
            usb1.TRANSFER_OVERFLOW: "the board sent more than was asked for",
            usb1.TRANSFER_TIMED_OUT: "it timed out",
            usb1.TRANSFER_ERROR: "packets failed; check cable and hub",
            usb1.TRANSFER_CANCELLED: "it was cancelled",
        }
        meaning = meanings.get(status, f"status {status}")
        return UsbError(f"{self.name}: stream {name} ends here: {meaning}")

    def _came(self, transfer: Any) -> None:
        """A transfer from the board is complete."""
        name = transfer.getUserData()
        status, actual = transfer.getStatus(), transfer.getActualLength()
        with self._change:
            stream = self._in[name]
            # Whatever the end, what came is kept; after a gap nothing may follow it.
            if actual and not stream.ended:
                stream.chunks.append(bytearray(transfer.getBuffer()[:actual]))
            stream.ended |= status != self._usb1.TRANSFER_COMPLETED
            self._events += 1
            self._events_of_inputs += name in _OF_INPUTS
            if status == self._usb1.TRANSFER_COMPLETED:
                if not self._closing and stream.error is None:
                    try:
                        transfer.submit()
                    except self._usb1.USBError as error:
                        # What is queued already still follows without a gap.
                        self._fail(stream, _explain(self._usb1, error, self.name, f"go on {name}"))
            elif not self._closing:
                self._fail(stream, self._failure(status, name))
            self._change.notify_all()

    def _fail(self, stream: _In | _Out, error: BoardError) -> None:
        if isinstance(error, Unplugged):
            self._fail_all(error)
        else:
            stream.error = stream.error or error

    def _went(self, transfer: Any) -> None:
        """A transfer to the board is complete."""
        name = transfer.getUserData()
        status, actual = transfer.getStatus(), transfer.getActualLength()
        with self._change:
            stream = self._out[name]
            chunk = stream.flying.pop(id(transfer), bytearray())
            self._events += 1
            complete = status == self._usb1.TRANSFER_COMPLETED
            if complete and actual != len(chunk):
                self._fail(
                    stream,
                    UsbError(
                        f"{self.name}: stream {name} ends here: the board took {actual} of "
                        f"{len(chunk)} bytes"
                    ),
                )
            elif not complete and not self._closing:
                self._fail(stream, self._failure(status, name))
            chunk[:] = bytes(len(chunk))
            stream.transfers.append(transfer)
            self._push(name)
            self._change.notify_all()

    def _push(self, name: str) -> None:
        """Queue what waits, as deep as is set."""
        stream = self._out[name]
        while (
            stream.waiting
            and stream.error is None
            and not self._closing
            and len(stream.flying) < self.settings.out_depth
        ):
            chunk = stream.waiting.popleft()
            if len(chunk) > self.settings.out_bytes:
                rest = chunk[self.settings.out_bytes :]
                stream.waiting.appendleft(rest)
                first = chunk[: self.settings.out_bytes]
                chunk[:] = bytes(len(chunk))
                chunk = first
            transfer = stream.transfers.pop() if stream.transfers else self._handle.getTransfer()
            transfer.setBulk(
                self._addresses[name], chunk, callback=self._went, user_data=name, timeout=0
            )
            stream.flying[id(transfer)] = chunk
            try:
                transfer.submit()
            except self._usb1.USBError as error:
                del stream.flying[id(transfer)]
                stream.transfers.append(transfer)
                self._fail(stream, _explain(self._usb1, error, self.name, f"send {name}"))

    def close(self) -> None:
        """Give the board free and wipe its queues; harmless when it is closed already."""
        self._stop()
        if self._own_context:
            self._own_context = False
            self._context.close()

    def _stop(self) -> None:
        """Take every transfer back, give the board free and wipe the queues."""
        if self._handle is None:
            return
        usb1 = self._usb1
        with self._change:
            self._closing = True
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
            self._thread = None
        transfers = [t for s in self._in.values() for t in s.transfers]
        transfers += [t for s in self._out.values() for t in s.transfers]
        with contextlib.suppress(usb1.USBError):
            self._handle.releaseInterface(0)
        # The handle takes every transfer back before it is closed.
        self._handle.close()
        self._handle = None
        for transfer in transfers:
            with contextlib.suppress(Exception):
                buffer = transfer.getBuffer()
                buffer[:] = bytes(len(buffer))
        streams: list[_In | _Out] = [*self._in.values(), *self._out.values()]
        for stream in streams:
            stream.wipe()

    def resume(self, wait_s: float = 30.0) -> dict[str, npt.NDArray[np.uint8]]:
        """Open the board again after it was unplugged, as a new segment.

        Its registers have their reset values again, and what was queued for it is gone: set it up
        as after `keyrail.open`.

        Parameters
        ----------
        wait_s
            Longest time to wait for it, s.

        Returns
        -------
        dict of str to numpy.ndarray
            Bytes of the former segment that had come and were not taken yet, by stream: whole
            records.

        Raises
        ------
        NoBoard
            If it does not come back.
        ContractMismatch, UsbError
            If it came back as something else.
        """
        left = {}
        for stream_name, stream in self._in.items():
            stream.error = stream.error or UsbError(f"{self.name}: opened again")
            if stream.chunks:
                whole = sum(map(len, stream.chunks)) // self.streams[stream_name].record.bytes
                if whole:
                    left[stream_name] = self.receive_bytes(self.streams[stream_name])
        self._stop()
        until = self._clock() + wait_s
        problem = ""
        while True:
            for device in _devices(self._context, self.settings):
                try:
                    handle = device.open()
                except self._usb1.USBError as error:
                    # Its node may not be ready yet.
                    problem = f"; {_explain(self._usb1, error, self.name, 'open the board')}"
                    continue
                try:
                    seen = _identity(self._usb1, handle, self.name, self.settings.control_ms)
                    found = Found(_place(device), serial=f"{seen['serial']:016x}")
                    if _wanted(found, self._selector):
                        role = _check_contract(self.name, seen)
                        if role is not self.role:
                            raise UsbError(f"{self.name}: it came back as a {role.name.lower()}")
                        self._handle = handle
                        self._start()
                        self.segment += 1
                        return left
                except Unplugged:
                    pass
                except BaseException:
                    handle.close()
                    raise
                handle.close()
            if self._clock() >= until:
                raise NoBoard(
                    f"{self.name}: it was not plugged in again within {wait_s:g} s{problem}"
                )
            self._sleep(0.1)

    # Simulated boards have a time of their own.
    def _clock(self) -> float:
        return time.monotonic()

    def _sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    # -- Board ---------------------------------------------------------------------------------

    def _alive(self) -> Any:
        if self._lost is not None:
            raise self._lost
        if self._handle is None:
            raise UsbError(f"{self.name}: the board is closed")
        return self._handle

    def read_word(self, offset: int) -> int:
        """Read the 32-bit word at `offset` by a control request."""
        timeout = self.settings.control_ms
        return _words(self._usb1, self._alive(), offset, 1, self.name, timeout)[0]

    def read(self, name: str) -> int:
        """Value of register `name`; both words of a pair come with one request."""
        register = self.register(name)
        handle, timeout = self._alive(), self.settings.control_ms
        words = _words(self._usb1, handle, register.offset, register.words, self.name, timeout)
        return sum(word << 32 * i for i, word in enumerate(words))

    def write_word(self, offset: int, value: int) -> None:
        """Write the 32-bit word at `offset`; it has taken effect on return."""
        handle = self._alive()
        try:
            handle.controlWrite(
                _OUT_VENDOR,
                VendorRequest.REGISTERS,
                0,
                offset,
                value.to_bytes(4, "little"),
                self.settings.control_ms,
            )
        except self._usb1.USBError as error:
            explained = _explain(self._usb1, error, self.name, f"write register {offset:#x}")
            raise explained from None

    def set_flush_time(self, microseconds: int) -> None:
        """Set the longest time that a partly filled packet waits on the board.

        Parameters
        ----------
        microseconds
            2 to 65535. Set `UsbSettings.quiet_s` above it.
        """
        if not 2 <= microseconds < 1 << 16:
            raise SettingError("flush time", microseconds, "2 to 65535 us")
        try:
            self._alive().controlWrite(
                _OUT_VENDOR, VendorRequest.FLUSH, microseconds, 0, b"", self.settings.control_ms
            )
        except self._usb1.USBError as error:
            raise _explain(self._usb1, error, self.name, "set the flush time") from None

    def send_bytes(self, stream: Stream, data: npt.NDArray[np.uint8]) -> None:
        """Queue whole records for a stream to the board; raises the error of one that failed."""
        self._alive()
        with self._change:
            queue = self._out[stream.name]
            if queue.error is not None:
                raise queue.error
            if data.size:
                queue.waiting.append(bytearray(np.ascontiguousarray(data).tobytes()))
                self._push(stream.name)

    def receive_bytes(self, stream: Stream) -> npt.NDArray[np.uint8]:
        """Take whole records that have come; once there are none, raise the stream's error."""
        if self._thread is None and self._handle is not None and self._lost is None:
            self._pump(0)
        with self._change:
            queue = self._in[stream.name]
            data = bytearray().join(queue.chunks)
            rest = len(data) % stream.record.bytes
            whole = data[: len(data) - rest]
            queue.wipe()
            if rest and not queue.ended:
                queue.chunks.append(data[len(whole) :])
            if not whole:
                if queue.error is not None:
                    raise queue.error
                self._alive()
            return np.frombuffer(whole, np.uint8)

    def pending(self, name: str) -> int:
        """Records queued for stream `name` whose transfers are not complete."""
        stream = self.stream(name, Direction.TO_BOARD)
        with self._change:
            return self._out[name].bytes // stream.record.bytes

    def run(self) -> None:
        """Return when the board is idle and nothing has moved for `quiet_s`.

        What a receiver's own inputs bring does not count: light does not come to rest.
        """
        until = self._clock() + self.settings.rest_s
        if self._has_inputs is None:
            self._has_inputs = self.input_count() > 0
        while True:
            self._alive()
            with self._change:
                before = self._moved()
            quiet = self._clock() + self.settings.quiet_s
            while self._moved() == before and self._clock() < quiet:
                self._pump(max(0.0, quiet - self._clock()))
            if self._moved() == before and not self.read_fields("status")["busy"]:
                return
            if self._clock() > until:
                raise BoardError(f"{self.name}: still at work after {self.settings.rest_s:g} s")

    def _moved(self) -> int:
        return self._events - (self._events_of_inputs if self._has_inputs else 0)


def open_board(
    name: str,
    settings: UsbSettings = UsbSettings(),
    usb1: Any = None,
    context: Any = None,
) -> UsbBoard:
    """Open a board on USB.

    Parameters
    ----------
    name
        ``usb:`` and, where several are plugged in, the serial number, the place (``1-4.2``) or
        the role (``sender`` or ``alice``, ``receiver`` or ``bob``).
    settings
        How to drive it.
    usb1, context
        Module and context of python-libusb1; loaded if absent.

    Raises
    ------
    NoBoard
        If there is none, or more than one that fits.
    NoPermission, ContractMismatch, UsbError
        If it cannot be used; the message says what to do.
    """
    selector = name.partition(":")[2].lower()
    usb1 = usb1 or load_libusb()
    own = context is None
    if own:
        context = usb1.USBContext()
        context.open()
    try:
        found = devices(settings, usb1, context)
        wanted = [one for one in found if _wanted(one, selector)]
        if not wanted and len(found) == 1 and found[0].problem and found[0].role is None:
            wanted = found  # the only board there is: its own problem says more
        if not wanted:
            seen = "; ".join(f"{one.name} {one.problem or one.role}" for one in found)
            raise NoBoard(
                f"{name}: no such board is plugged in"
                + (f"; there is {seen}" if seen else "; is it powered, and its bitstream loaded?")
            )
        if len(wanted) > 1:
            names = ", ".join(one.name for one in wanted)
            raise NoBoard(f"{name}: several boards fit; name one of {names}")
        (one,) = wanted
        device = next((d for d in _devices(context, settings) if _place(d) == one.place), None)
        if device is None:
            raise Unplugged(f"{name}: the board was unplugged")
        try:
            handle = device.open()
        except usb1.USBError as error:
            raise _explain(usb1, error, name, "open the board") from None
        try:
            role = _check_contract(name, _identity(usb1, handle, name, settings.control_ms))
        except BaseException:
            handle.close()
            raise
        again = one.serial if one.serial.strip("0") else one.place
        return UsbBoard(role, name, again, handle, usb1, context, settings, own)
    except BaseException:
        if own:
            context.close()
        raise


def watch(
    settings: UsbSettings = UsbSettings(), period_s: float = 0.5, context: Any = None
) -> Iterator[tuple[list[Found], list[Found]]]:
    """Boards that came and boards that went, whenever that changes; endless.

    Parameters
    ----------
    settings
        Identifiers to look for.
    period_s
        Time between two looks, s.
    context
        Context of python-libusb1; loaded if absent.
    """
    usb1 = load_libusb()
    before: dict[str, Found] = {}
    with contextlib.ExitStack() as stack:
        if context is None:
            context = stack.enter_context(usb1.USBContext())
        while True:
            places = {_place(device) for device in _devices(context, settings)}
            if places != set(before) or not before:
                now = {one.place: one for one in devices(settings, usb1, context)}
                came = [one for place, one in now.items() if place not in before]
                went = [one for place, one in before.items() if place not in now]
                before = now
                if came or went:
                    yield came, went
            time.sleep(period_s)


__all__ = [
    "Found",
    "NoBoard",
    "NoPermission",
    "Unplugged",
    "UsbBoard",
    "UsbError",
    "UsbSettings",
    "devices",
    "install_udev",
    "load_libusb",
    "open_board",
    "udev_rule",
    "watch",
]
