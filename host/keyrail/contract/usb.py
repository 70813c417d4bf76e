# SPDX-License-Identifier: Apache-2.0
"""How a board looks on USB: numbers of its endpoints, vendor requests, identifiers.

Each stream of a station is one bulk endpoint. Streams to the board are OUT endpoints 1, 2, ... in
the order of the contract, streams to the host are IN endpoints 1, 2, ... likewise.
"""

from __future__ import annotations

from enum import IntEnum

from .description import ContractError, Direction, Role
from .records import streams

USB_VENDOR = 0x1209
"""pid.codes, which gives identifiers to open projects."""
USB_PRODUCT = 0x0001
"""One of pid.codes' test identifiers: for the bench, not for boards that are passed on."""
USB_INTERFACE_GUID = "{7a5f9d0e-3b6c-4a57-9d0c-6b6579726c31}"
"""Device interface under which Windows finds a board (WinUSB)."""
USB_ENDPOINTS = 15
"""Endpoints that USB 2.0 allows in each direction beside the control endpoint (8.3.2.2)."""
USB_REQUEST_WORDS = 16
"""Words of 32 bits that one register request moves at most."""
USB_FLUSH_US = 800
"""Longest time that data wait for a packet to fill, microseconds, after reset."""
USB_PACKET_HIGH, USB_PACKET_FULL = 512, 64
"""Largest bulk packet at high and at full speed, bytes (USB 2.0, 5.8.3)."""


class VendorRequest(IntEnum):
    """Control requests of type vendor to the device; others are refused with a stall."""

    REGISTERS = 1
    """wIndex: offset of the first word; data: words, little-endian, 1 to 16; IN reads, OUT writes.
    A write has taken effect when its status stage ends."""
    FLUSH = 2
    """wValue of a request without data: time in microseconds, 2 and more, after which a partly
    filled packet leaves; IN reads it, 2 bytes."""
    WINDOWS = 0x20
    """Microsoft's vendor code: wIndex 7 answers the MS OS 2.0 descriptor set."""


def endpoints(role: Role) -> dict[str, int]:
    """Endpoint addresses of a station's streams by name; bit 7 is set for streams to the host.

    Raises
    ------
    ContractError
        If there are more streams in a direction than USB has endpoints.
    """
    numbers = {Direction.TO_BOARD: 0, Direction.TO_HOST: 0}
    addresses = {}
    for name, stream in streams(role).items():
        numbers[stream.direction] += 1
        number = numbers[stream.direction]
        if number > USB_ENDPOINTS:
            raise ContractError(
                f"{role.name.lower()}: more than {USB_ENDPOINTS} streams {stream.direction.value}"
            )
        addresses[name] = number | (0x80 if stream.direction is Direction.TO_HOST else 0)
    return addresses
