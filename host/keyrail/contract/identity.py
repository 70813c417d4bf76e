# SPDX-License-Identifier: Apache-2.0
"""Version and hash of the contract."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

from .description import Field
from .records import RECORDS, STREAMS
from .registers import REGISTERS
from .usb import USB_REQUEST_WORDS, VendorRequest

CONTRACT_VERSION = 1
"""Raised when an older host could misread a newer board."""
GATEWARE_VERSION = 1
"""Version of the gateware of this release."""


def _fields(fields: Iterable[Field]) -> list[object]:
    return [
        [f.name, f.bits, f.unit, [[c.name, c.value] for c in f.codes] if f.codes else []]
        for f in fields
    ]


def canonical() -> str:
    """What both sides must agree on, as one line of JSON; texts for people are left out."""
    described = {
        "version": CONTRACT_VERSION,
        "records": [[r.name, r.bits, _fields(r.fields)] for r in RECORDS],
        "streams": [[s.name, s.direction.value, s.record.name, list(s.roles)] for s in STREAMS],
        "registers": [
            [r.name, r.offset, r.access.value, r.reset, list(r.roles), _fields(r.fields)]
            for r in REGISTERS
        ],
        "usb": [USB_REQUEST_WORDS, [[r.name, r.value] for r in VendorRequest]],
    }
    return json.dumps(described, separators=(",", ":"), sort_keys=True)


CONTRACT_HASH = int.from_bytes(hashlib.sha256(canonical().encode()).digest()[:8], "big")
"""First 64 bits of the SHA-256 of `canonical`."""
