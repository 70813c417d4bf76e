# SPDX-License-Identifier: Apache-2.0
"""Twin of `keyrail_gateware.generator`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from keyrail.contract import RECALLED, STATES_PER_WORD
from keyrail.layouts import Structured, zeros

from .chacha20 import blocks

_BITS = 512


class Generator:
    """States by slot number, as the gateware makes them.

    Parameters
    ----------
    key
        32 bytes.
    nonce
        64 bits.
    z, signal
        Probabilities of basis Z and of the signal intensity, in 2^-16.
    """

    def __init__(self, key: bytes, nonce: int, z: int, signal: int) -> None:
        self._key = np.frombuffer(key, "<u4")
        self._nonce = [nonce & 0xFFFF_FFFF, nonce >> 32]
        self.z, self.signal = z, signal

    def _blocks(self, numbers: npt.NDArray[np.int64], domain: int) -> npt.NDArray[np.uint32]:
        nonces = np.empty((len(numbers), 3), np.uint32)
        nonces[:, 0] = domain << 31 | numbers >> 32
        nonces[:, 1:] = self._nonce
        return blocks(self._key, (numbers & 0xFFFF_FFFF).astype(np.uint32), nonces)

    def _codes(
        self,
        choices: npt.NDArray[np.uint32],
        bits: npt.NDArray[np.uint8],
    ) -> npt.NDArray[np.uint8]:
        basis = ((choices & 0xFFFF) >= self.z).astype(np.uint8)
        decoy = ((choices >> np.uint32(16)) >= self.signal).astype(np.uint8)
        return (basis | bits << 1 | decoy << 2).astype(np.uint8)

    def states(self, first_slot: int, count: int) -> npt.NDArray[np.uint8]:
        """Codes (basis, bit, intensity) of `count` slots in a row from `first_slot` on."""
        end = first_slot + count
        words = np.arange(first_slot // STATES_PER_WORD, -(-end // STATES_PER_WORD), dtype=np.int64)
        groups = np.arange(first_slot // _BITS, -(-end // _BITS), dtype=np.int64)
        choices = self._blocks(words, 0).reshape(-1)
        packed = np.ascontiguousarray(self._blocks(groups, 1).astype("<u4")).view(np.uint8)
        bits = np.unpackbits(packed.reshape(-1), bitorder="little")
        return self._codes(
            choices[first_slot % STATES_PER_WORD :][:count], bits[first_slot % _BITS :][:count]
        )

    def states_at(self, slots: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """Codes (basis, bit, intensity) of any slots."""
        if len(slots) == 0:
            return np.zeros(0, np.uint8)
        choices = self._blocks(slots // STATES_PER_WORD, 0)[
            np.arange(len(slots)), slots % STATES_PER_WORD
        ]
        packed = np.ascontiguousarray(self._blocks(slots // _BITS, 1).astype("<u4")).view(np.uint8)
        at = slots % _BITS
        held = packed[np.arange(len(slots)), at // 8] >> (at % 8).astype(np.uint8)
        bits = (held & 1).astype(np.uint8)
        return self._codes(choices, bits)

    def recall(self, slots: npt.NDArray[np.int64]) -> Structured:
        """Answers to missed slots: ``recalled`` records."""
        codes = self.states_at(slots)
        answers = zeros(RECALLED, len(slots))
        for shift, name in enumerate(("basis", "bit", "intensity")):
            answers[name] = codes >> shift & 1
        answers["present"] = answers["known"] = 1
        return answers
