# SPDX-License-Identifier: Apache-2.0
"""Stations on a simulated USB: the host's own transport, the gateware's own USB core.

What python-libusb1 offers is offered here over the bus model, so that the code that drives a real
board drives this one, packet by packet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from keyrail.contract import USB_PRODUCT, USB_VENDOR, Role, endpoints
from keyrail.usb import UsbBoard, UsbSettings
from keyrail_sim.usb_bus import CLOCK, MICROFRAME, BusError, Stalled, TransferStatus, UsbBus

SETTINGS = UsbSettings(
    in_bytes=4096, in_depth=2, out_bytes=4096, out_depth=2, quiet_s=0.0025, thread=False
)


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
        pass

    def releaseInterface(self, interface: int) -> None:  # noqa: N802
        pass

    def setInterfaceAltSetting(self, interface: int, setting: int) -> None:  # noqa: N802
        self._request(lambda bus: bus.control_out(0x01, 11, setting, interface))
        for address in endpoints(self._context.role).values():
            self._context.bus.open_endpoint(address)

    def _request(self, transfer: Callable[[UsbBus], Any]) -> Any:
        usb1 = self._context.usb1
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
        return SimulatedHandle(self._context)


class SimulatedContext:
    """A bus model with one station, with python-libusb1's methods; time is the bus's own."""

    def __init__(self, role: Role, usb1: Any) -> None:
        self.role, self.usb1 = role, usb1
        self.bus = UsbBus("station", role)
        self.flying: dict[int, SimulatedTransfer] = {}
        self._statuses = {
            TransferStatus.DONE: usb1.TRANSFER_COMPLETED,
            TransferStatus.STALLED: usb1.TRANSFER_STALL,
            TransferStatus.FAILED: usb1.TRANSFER_ERROR,
            TransferStatus.CANCELLED: usb1.TRANSFER_CANCELLED,
            TransferStatus.OVERFLOWN: usb1.TRANSFER_OVERFLOW,
        }
        self.bus.plug()
        self.bus.enumerate()

    def getDeviceIterator(self, skip_on_error: bool = False) -> Iterator[SimulatedDevice]:  # noqa: N802
        yield SimulatedDevice(self)

    def deliver(self) -> None:
        """Call back for what has completed."""
        for done in self.bus.completed():
            transfer = self.flying.pop(done.identifier)
            transfer.complete(self._statuses[done.status], done.data, done.actual)

    def handleEventsTimeout(self, tv: float = 0) -> None:  # noqa: N802
        self.bus.run(max(1, round(tv * CLOCK / MICROFRAME)), stop=True)
        self.deliver()

    def close(self) -> None:
        self.bus.close()


class SimulatedUsbBoard(UsbBoard):
    """A station's real gateware with its USB core, on the bus model."""

    randomness_may_be_test = True

    def _clock(self) -> float:
        return float(self._context.bus.now / CLOCK)

    def _sleep(self, seconds: float) -> None:
        self._context.bus.idle(round(seconds * CLOCK))

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
    return SimulatedUsbBoard(
        role, name, "0-1", device.open(), usb1, context, SETTINGS, own_context=True
    )
