# SPDX-License-Identifier: CERN-OHL-W-2.0
"""Descriptors of a station's USB device (USB 2.0, 9.6), and what Windows asks besides."""

import struct
import uuid
import warnings
from dataclasses import dataclass

from keyrail.contract import (
    CONTRACT_HASH,
    CONTRACT_VERSION,
    GATEWARE_VERSION,
    USB_INTERFACE_GUID,
    USB_PACKET_FULL,
    USB_PACKET_HIGH,
    USB_PRODUCT,
    USB_VENDOR,
    BoardCode,
    Role,
    VendorRequest,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    from usb_protocol.emitters import DeviceDescriptorCollection
    from usb_protocol.types import USBTransferType
    from usb_protocol.types.descriptors.standard import StandardDescriptorNumbers

__all__ = ["CONTROL_PACKET", "SERIAL_STRING", "Identity", "descriptors", "windows_descriptor_set"]

CONTROL_PACKET = 64
"""Largest packet of the control endpoint, bytes: what high speed demands (5.5.3)."""
SERIAL_STRING = 3
"""Index of the serial number's string, which the device fills in when it is asked."""
_DEVICE_QUALIFIER, _OTHER_SPEED, _BOS = 0x06, 0x07, 0x0F
_CURRENT = 250  # units of 2 mA: a board may draw what a port gives


@dataclass(frozen=True)
class Identity:
    """What a device says of itself.

    Parameters
    ----------
    role, board
        Role of the station; board it is built for.
    sizes
        Configuration in words, for people.
    vendor, product
        Identifiers; pid.codes' test range by default.
    """

    role: Role
    board: BoardCode = BoardCode.SIMULATED
    sizes: str = ""
    vendor: int = USB_VENDOR
    product: int = USB_PRODUCT

    def __post_init__(self) -> None:
        for name in ("vendor", "product"):
            if not 0 < getattr(self, name) < 1 << 16:
                raise ValueError(f"USB {name} identifier {getattr(self, name)}: allowed 1 to 65535")


def _standard(
    identity: Identity, addresses: list[int], packet: int
) -> dict[tuple[int, int], bytes]:
    """Device, configuration and strings for one speed, by type and index."""
    collection = DeviceDescriptorCollection()
    role = identity.role.name.lower()
    board = identity.board.name.lower()
    contract = f"contract {CONTRACT_VERSION} {CONTRACT_HASH:016x} gateware {GATEWARE_VERSION}"
    with collection.DeviceDescriptor() as device:
        device.bcdUSB = 2.01  # from 2.01 on hosts ask for the BOS descriptor
        device.idVendor, device.idProduct = identity.vendor, identity.product
        device.bcdDevice = float(f"{GATEWARE_VERSION}.0")
        device.bMaxPacketSize0 = CONTROL_PACKET
        device.iManufacturer = "Keyrail"
        device.iProduct = f"Keyrail {role} ({board})"
        device.iSerialNumber = "0" * 16
        device.bNumConfigurations = 1
    assert device.iSerialNumber == SERIAL_STRING
    with collection.ConfigurationDescriptor() as configuration:
        configuration.iConfiguration = identity.sizes or role
        configuration.bMaxPower = _CURRENT
        with configuration.InterfaceDescriptor() as interface:
            interface.bInterfaceNumber = 0
            interface.bInterfaceClass = 0xFF
            interface.bInterfaceSubclass = 0xFF
            interface.bInterfaceProtocol = 0xFF
            interface.iInterface = contract
            for address in addresses:
                with interface.EndpointDescriptor() as endpoint:
                    endpoint.bEndpointAddress = address
                    endpoint.bmAttributes = USBTransferType.BULK
                    endpoint.wMaxPacketSize = packet
                    endpoint.bInterval = 0
    return {(int(kind), index): bytes(raw) for kind, index, raw in collection}


def windows_descriptor_set() -> bytes:
    """MS OS 2.0 descriptor set: WinUSB for the whole device, and the interface's GUID.

    Source: Microsoft, "Microsoft OS 2.0 Descriptors Specification" (2017), tables 10, 13, 14.
    """
    compatible = struct.pack("<HH8s8s", 20, 0x03, b"WINUSB", b"")
    name = "DeviceInterfaceGUIDs\0".encode("utf-16-le")
    value = f"{USB_INTERFACE_GUID}\0\0".encode("utf-16-le")
    registry = struct.pack("<HHHH", 10 + len(name) + len(value), 0x04, 7, len(name)) + name
    registry += struct.pack("<H", len(value)) + value
    total = 10 + len(compatible) + len(registry)
    return struct.pack("<HHIH", 10, 0x00, 0x06030000, total) + compatible + registry


def _bos() -> bytes:
    """Binary object store: USB 2.0 extension, and where the MS OS 2.0 set is found."""
    extension = struct.pack("<BBBI", 7, 0x10, 0x02, 0)
    platform = uuid.UUID("D8DD60DF-4589-4CC7-9CD2-659D9E648A9F").bytes_le
    windows = struct.pack("<BBBB", 28, 0x10, 0x05, 0) + platform
    windows += struct.pack(
        "<IHBB", 0x06030000, len(windows_descriptor_set()), VendorRequest.WINDOWS, 0
    )
    body = extension + windows
    return struct.pack("<BBHB", 5, _BOS, 5 + len(body), 2) + body


def descriptors(
    identity: Identity, addresses: list[int], high_speed: bool
) -> tuple[dict[tuple[int, int], bytes], dict[tuple[int, int], bytes]]:
    """Descriptors by type and index, as the device answers at full speed and at high speed.

    Parameters
    ----------
    identity
        What the device says of itself.
    addresses
        Addresses of the bulk endpoints.
    high_speed
        The board can do high speed.

    Returns
    -------
    tuple of dict
        At full speed; at high speed.
    """
    number = StandardDescriptorNumbers
    full = _standard(identity, addresses, USB_PACKET_FULL)
    high = _standard(identity, addresses, USB_PACKET_HIGH)
    for mine, other in ((full, high), (high, full)):
        mine[_BOS, 0] = _bos()
        if high_speed:
            device = mine[int(number.DEVICE), 0]
            # 9.6.2: the fields of the device descriptor that may depend on the speed.
            mine[_DEVICE_QUALIFIER, 0] = (
                struct.pack("<BB", 10, _DEVICE_QUALIFIER) + device[2:8] + bytes((1, 0))
            )
            configuration = bytearray(other[int(number.CONFIGURATION), 0])
            configuration[1] = _OTHER_SPEED
            mine[_OTHER_SPEED, 0] = bytes(configuration)
    return full, high
