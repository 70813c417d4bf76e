# SPDX-License-Identifier: Apache-2.0
"""Stations on a simulated USB: the host's own transport, the gateware's own USB core.

What python-libusb1 offers is offered here over the bus model, so that the code that drives a real
board drives this one, packet by packet. The stations' memories are smaller than those of ``sim:``
(`keyrail_sim.usb_top.CONFIGURATION`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from keyrail.contract import USB_PRODUCT, USB_VENDOR, Role, endpoints
from keyrail.usb import UsbBoard, UsbSettings
from keyrail_sim.usb_bus import CLOCK, MICROFRAME, BusError, Stalled, TransferStatus, UsbBus

SETTINGS = UsbSettings(
    in_bytes=4096, in_depth=2, out_bytes=4096, out_depth=2, quiet_s=0.0006, thread=False
)
FLUSH_US = 100
"""Time after which a partly filled packet leaves; short, since simulated time is dear."""


class SimulatedTransfer:
    """A transfer on the bus model, with python-libusb1's methods."""

    def __init__(self, context: SimulatedContext) -> None:
        self._context = context
        self._identifier: int | None = None
        self._status, self._actual = 0, 0
        self._buffer = bytearray()

    def setBulk(  # noqa: N802
        self,
        endpoint: int,
        buffer_or_len: Any,
        callback: Callable[[Any], None] | None = None,
        user_data: Any = None,
        timeout: int = 0,
    ) -> None:
        self._endpoint, self._callback, self._user_data = endpoint, callback, user_data
        is_length = isinstance(buffer_or_len, int)
        self._buffer = bytearray(buffer_or_len)
        self._length = buffer_or_len if is_length else len(buffer_or_len)

    def submit(self) -> None:
        self._context.require()
        incoming = bool(self._endpoint & 0x80)
        content = self._length if incoming else bytes(self._buffer)
        self._identifier = self._context.bus.submit(self._endpoint, content)
        self._context.flying[self._identifier] = self

    def cancel(self) -> None:
        if self._identifier is not None:
            self._context.bus.cancel(self._endpoint, self._identifier)

    def complete(self, status: int, data: bytes, actual: int) -> None:
        """Take a completion of the bus model in."""
        self._identifier = None
        self._status, self._actual = status, actual
        if self._endpoint & 0x80:
            self._buffer[:actual] = data
        if self._callback is not None:
            self._callback(self)

    def isSubmitted(self) -> bool:  # noqa: N802
        return self._identifier is not None

    def getStatus(self) -> int:  # noqa: N802
        return self._status

    def getActualLength(self) -> int:  # noqa: N802
        return self._actual

    def getBuffer(self) -> bytearray:  # noqa: N802
        return self._buffer

    def getUserData(self) -> Any:  # noqa: N802
        return self._user_data


class SimulatedHandle:
    """The opened device on the bus model, with python-libusb1's methods."""

    def __init__(self, context: SimulatedContext) -> None:
        self._context = context

    def claimInterface(self, interface: int) -> None:  # noqa: N802
        self._context.require()

    def releaseInterface(self, interface: int) -> None:  # noqa: N802
        pass

    def setInterfaceAltSetting(self, interface: int, setting: int) -> None:  # noqa: N802
        self._request(lambda bus: bus.control_out(0x01, 11, setting, interface))
        for address in endpoints(self._context.role).values():
            self._context.bus.open_endpoint(address)

    def _request(self, transfer: Callable[[UsbBus], Any]) -> Any:
        usb1 = self._context.usb1
        self._context.require()
        try:
            return transfer(self._context.bus)
        except Stalled:
            raise usb1.USBErrorPipe from None
        except BusError:
            raise usb1.USBErrorIO from None

    def controlRead(  # noqa: N802
        self, kind: int, request: int, value: int, index: int, length: int, timeout: int = 0
    ) -> bytes:
        data: bytes = self._request(lambda bus: bus.control_in(kind, request, value, index, length))
        return data

    def controlWrite(  # noqa: N802
        self, kind: int, request: int, value: int, index: int, data: bytes, timeout: int = 0
    ) -> int:
        self._request(lambda bus: bus.control_out(kind, request, value, index, bytes(data)))
        return len(data)

    def getTransfer(self) -> SimulatedTransfer:  # noqa: N802
        return SimulatedTransfer(self._context)

    def close(self) -> None:
        if self._context.present:
            for transfer in list(self._context.flying.values()):
                transfer.cancel()
            self._context.deliver()


class SimulatedDevice:
    """The device on the bus model, with python-libusb1's methods."""

    def __init__(self, context: SimulatedContext) -> None:
        self._context = context

    def getVendorID(self) -> int:  # noqa: N802
        return USB_VENDOR

    def getProductID(self) -> int:  # noqa: N802
        return USB_PRODUCT

    def getBusNumber(self) -> int:  # noqa: N802
        return 0

    def getPortNumberList(self) -> list[int]:  # noqa: N802
        return [1]

    def open(self) -> SimulatedHandle:
        self._context.require()
        return SimulatedHandle(self._context)


class SimulatedContext:
    """A bus model with one station, with python-libusb1's methods; time is the bus's own."""

    def __init__(self, role: Role, usb1: Any) -> None:
        self.role, self.usb1 = role, usb1
        self._passed = 0  # clocks before the board was plugged in
        self.present = False
        self.plug()
        self.flying: dict[int, SimulatedTransfer] = {}
        self._statuses = {
            TransferStatus.DONE: usb1.TRANSFER_COMPLETED,
            TransferStatus.STALLED: usb1.TRANSFER_STALL,
            TransferStatus.FAILED: usb1.TRANSFER_ERROR,
            TransferStatus.CANCELLED: usb1.TRANSFER_CANCELLED,
            TransferStatus.OVERFLOWN: usb1.TRANSFER_OVERFLOW,
        }

    @property
    def now(self) -> int:
        """Clocks of 60 MHz since the context was made."""
        return self._passed + (self.bus.now if self.present else 0)

    def plug(self) -> None:
        """Plug the board in: it has power anew, and is as after reset."""
        self.bus = UsbBus("station", self.role)
        self.present = True
        self.bus.plug()
        self.bus.enumerate()

    def unplug(self) -> None:
        """Pull the plug, whatever is under way."""
        for transfer in list(self.flying.values()):
            transfer.cancel()
        self._passed = self.now
        self.present = False
        self.deliver()
        self.bus.close()

    def require(self) -> None:
        """Raise what libusb raises where the board is gone."""
        if not self.present:
            raise self.usb1.USBErrorNoDevice

    def idle(self, clocks: int) -> None:
        """Let time pass."""
        if self.present:
            self.bus.idle(clocks)
        else:
            self._passed += clocks

    def getDeviceIterator(self, skip_on_error: bool = False) -> Iterator[SimulatedDevice]:  # noqa: N802
        if self.present:
            yield SimulatedDevice(self)

    def deliver(self) -> None:
        """Call back for what has completed."""
        for done in self.bus.completed():
            transfer = self.flying.pop(done.identifier)
            status = self._statuses[done.status]
            if not self.present:
                status = self.usb1.TRANSFER_NO_DEVICE
            transfer.complete(status, done.data, done.actual)

    def handleEventsTimeout(self, tv: float = 0) -> None:  # noqa: N802
        frames = max(1, round(tv * CLOCK / MICROFRAME))
        if not self.present:
            self.idle(frames * MICROFRAME)
            return
        self.bus.run(frames, stop=True)
        self.deliver()

    def close(self) -> None:
        self.bus.close()


class SimulatedUsbBoard(UsbBoard):
    """A station's real gateware with its USB core, on the bus model."""

    randomness_may_be_test = True

    def _clock(self) -> float:
        return float(self._context.now / CLOCK)

    def _sleep(self, seconds: float) -> None:
        self._context.idle(round(seconds * CLOCK))

    def unplug(self) -> None:
        """Pull the plug, whatever is under way; `plug` and `resume` bring the board back."""
        self._context.unplug()

    def plug(self) -> None:
        """Plug the board in again: it has power anew, and is as after reset."""
        self._context.plug()

    @property
    def bus(self) -> UsbBus:
        """The bus model."""
        bus: UsbBus = self._context.bus
        return bus


def open_station(role: Role, name: str) -> SimulatedUsbBoard:
    """Open the station of `role` on a simulated USB, building it first where the cache has none."""
    import usb1  # its names alone: no library is needed for them

    context = SimulatedContext(role, usb1)
    (device,) = context.getDeviceIterator()
    board = SimulatedUsbBoard(
        role, name, "0-1", device.open(), usb1, context, SETTINGS, own_context=True
    )
    board.set_flush_time(FLUSH_US)
    return board
