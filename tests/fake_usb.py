# SPDX-License-Identifier: Apache-2.0
"""A libusb of Python alone, with the numpy twin of a station behind it, that fails on command."""

from __future__ import annotations

from collections import defaultdict, deque

import numpy as np
import usb1

from keyrail.contract import (
    USB_PRODUCT,
    USB_VENDOR,
    Direction,
    Role,
    VendorRequest,
    endpoints,
)
from keyrail_sim import model_board


class Transfer:
    def __init__(self, device):
        self.device, self.submitted, self.cancelling = device, False, False

    def setBulk(self, endpoint, buffer_or_len, callback=None, user_data=None, timeout=0):
        assert not self.submitted
        self.endpoint, self.callback, self.user_data = endpoint, callback, user_data
        self.buffer = bytearray(buffer_or_len)

    def submit(self):
        assert not self.submitted, "submitted twice"
        assert not self.device.closed, "submitted to a closed handle"
        self.device.context.fail(("submit", self.endpoint))
        if not self.device.present:
            raise usb1.USBErrorNoDevice
        self.submitted = True
        self.device.queues[self.endpoint].append(self)

    def cancel(self):
        if not self.submitted:
            raise usb1.USBErrorNotFound
        self.cancelling = True

    def finish(self, status, actual=0):
        self.submitted = False
        self.status, self.actual = status, actual
        self.callback(self)

    def isSubmitted(self):
        return self.submitted

    def getStatus(self):
        assert not self.submitted
        return self.status

    def getActualLength(self):
        assert not self.submitted
        return self.actual

    def getBuffer(self):
        return self.buffer

    def getUserData(self):
        return self.user_data


class Device:
    """A board that is plugged in; also its own handle."""

    def __init__(self, context, role, port=1, serial=0):
        self.context, self.role, self.port, self.serial = context, role, port, serial
        self.vendor, self.product = USB_VENDOR, USB_PRODUCT
        self.present = True
        self.closed = True
        self.words = {}  # register words that answer something else
        self.power_up()

    def power_up(self):
        self.model = model_board.open_station(self.role, "model")
        self.queues = defaultdict(deque)
        self.outgoing = defaultdict(bytearray)
        self.incoming = defaultdict(bytearray)  # bytes of unfinished records
        self.limit = {}  # bytes an OUT endpoint takes before it NAKs for good
        self.names = {address: name for name, address in endpoints(self.role).items()}

    # -- device ---------------------------------------------------------------------------------

    def getVendorID(self):
        return self.vendor

    def getProductID(self):
        return self.product

    def getBusNumber(self):
        return 3

    def getPortNumberList(self):
        return [1, self.port]

    def open(self):
        self.context.fail("open")
        if not self.present:
            raise usb1.USBErrorNoDevice
        self.closed = False
        return self

    # -- handle ---------------------------------------------------------------------------------

    def claimInterface(self, interface):
        self.context.fail("claim")

    def releaseInterface(self, interface):
        self.context.fail("release")

    def setInterfaceAltSetting(self, interface, setting):
        assert (interface, setting) == (0, 0)
        self.context.fail("alternate")
        self.outgoing.clear()
        self.incoming.clear()

    def getTransfer(self):
        return Transfer(self)

    def controlRead(self, kind, request, value, index, length, timeout=0):
        self.context.fail("read")
        if not self.present:
            raise usb1.USBErrorNoDevice
        assert (kind, request, value) == (0xC0, VendorRequest.REGISTERS, 0)
        assert length % 4 == 0
        assert 0 < length <= 64
        words = []
        for offset in range(index, index + length // 4):
            word = self.words.get(offset, self.model.read_word(offset))
            place = self.model.registers["serial"].offset
            if offset in (place, place + 1):
                word = self.serial >> 32 * (offset - place) & 0xFFFF_FFFF
            words.append(word)
        return b"".join(word.to_bytes(4, "little") for word in words)[
            : self.context.short.pop("read", None)
        ]

    def controlWrite(self, kind, request, value, index, data, timeout=0):
        self.context.fail("write")
        if not self.present:
            raise usb1.USBErrorNoDevice
        assert kind == 0x40
        if request == VendorRequest.FLUSH:
            self.flush_us = value
        else:
            assert request == VendorRequest.REGISTERS
            for i in range(0, len(data), 4):
                self.model.write_word(index + i // 4, int.from_bytes(data[i : i + 4], "little"))
        return len(data)

    def close(self):
        for queue in self.queues.values():
            while queue:
                queue.popleft().finish(usb1.TRANSFER_CANCELLED)
        self.closed = True

    # -- the cable ------------------------------------------------------------------------------

    def step(self):
        """Move everything that can move; True if a transfer has ended."""
        moved = False
        streams = self.model.streams
        for address, name in self.names.items():
            stream = streams[name]
            queue = self.queues[address]
            injected = self.context.statuses.get(address)
            if queue and injected and injected[0] <= 0:
                status, actual = injected[1], injected[2]
                del self.context.statuses[address]
                transfer = queue.popleft()
                if address & 0x80 and actual:
                    transfer.buffer[:actual] = self.outgoing[name][:actual]
                    del self.outgoing[name][:actual]
                transfer.finish(status, actual)
                moved = True
                continue
            if not self.present:
                while queue:
                    transfer, actual = queue.popleft(), 0
                    if address & 0x80:  # what had come of it
                        actual = min(len(transfer.buffer), len(self.outgoing[name]))
                        transfer.buffer[:actual] = self.outgoing[name][:actual]
                        del self.outgoing[name][:actual]
                    transfer.finish(usb1.TRANSFER_NO_DEVICE, actual)
                    moved = True
                continue
            if stream.direction is Direction.TO_BOARD:
                while queue and len(queue[0].buffer) <= self.limit.get(name, 1 << 60):
                    transfer = queue.popleft()
                    data = self.incoming[name] + transfer.buffer
                    whole = len(data) - len(data) % stream.record.bytes
                    self.model.send_bytes(stream, np.frombuffer(bytes(data[:whole]), np.uint8))
                    self.incoming[name] = data[whole:]
                    moved = True
                    if injected:
                        self.context.statuses[address] = (injected[0] - 1, *injected[1:])
                    transfer.finish(usb1.TRANSFER_COMPLETED, len(transfer.buffer))
        if self.present:
            self.model.run()
            for address, name in self.names.items():
                if not address & 0x80:
                    continue
                self.outgoing[name] += self.model.receive_bytes(streams[name]).tobytes()
                queue = self.queues[address]
                while queue and self.outgoing[name]:
                    injected = self.context.statuses.get(address)
                    if injected:
                        if injected[0] <= 0:
                            moved = True
                            break
                        self.context.statuses[address] = (injected[0] - 1, *injected[1:])
                    transfer = queue.popleft()
                    size = min(len(transfer.buffer), len(self.outgoing[name]))
                    size = min(size, self.context.short.get(name, size))
                    transfer.buffer[:size] = self.outgoing[name][:size]
                    del self.outgoing[name][:size]
                    moved = True
                    transfer.finish(usb1.TRANSFER_COMPLETED, size)
        return moved


class Context:
    """python-libusb1's context, with devices that tests plug in and errors that they inject."""

    def __init__(self, *devices):
        self.devices = []
        self.errors = defaultdict(deque)  # by call: exceptions to raise, None for success
        self.statuses = {}  # by endpoint: (transfers before, status, bytes that came)
        self.short = {}  # by stream: bytes a transfer brings at most
        for role, port, serial in devices:
            self.devices.append(Device(self, role, port, serial))

    def fail(self, call):
        if self.errors[call]:
            error = self.errors[call].popleft()
            if error is not None:
                raise error

    def getDeviceIterator(self, skip_on_error=False):
        return iter([device for device in self.devices if device.present])

    def handleEventsTimeout(self, tv=0):
        self.fail("events")
        for device in self.devices:
            if not device.closed:
                device.step()

    def close(self):
        pass


def receiver_context():
    return Context((Role.RECEIVER, 1, 0))
