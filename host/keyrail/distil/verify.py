# SPDX-License-Identifier: Apache-2.0
"""Verification: a universal hash tells whether the reconciled keys are equal."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from keyrail.randomness import RandomSource

PRIME = (1 << 127) - 1
_CHUNK = 15  # bytes: 120 bits, below the prime
TAG_BITS = 127


def draw_key(randomness: RandomSource) -> int:
    """A uniform number below 2^127 - 1, drawn after reconciliation."""
    while True:
        key = int.from_bytes(randomness.bytes(16), "little") >> 1
        if key < PRIME:
            return key


def tag(bits: npt.NDArray[np.uint8], key: int) -> int:
    """Polynomial hash over GF(2^127 - 1) of a string and its length.

    The string is cut into chunks of 120 bits, the coefficients of a polynomial whose last one is
    the length in bits, evaluated at `key` (Carter and Wegman, J. Comput. Syst. Sci. 18 (1979);
    polynomial form as in den Boer 1993). Different strings are given different polynomials.

    Parameters
    ----------
    bits
        Key bits, one an element.
    key
        Number below 2^127 - 1.
    """
    packed = np.packbits(bits, bitorder="little").tobytes()
    value = 1
    for start in range(0, len(packed), _CHUNK):
        value = (value * key + int.from_bytes(packed[start : start + _CHUNK], "little")) % PRIME
    return (value * key + len(bits)) % PRIME * key % PRIME


def collision_bound(bits: int) -> float:
    """Largest probability that two different strings of so many bits have the same tag."""
    return (-(-bits // (8 * _CHUNK)) + 2) / PRIME
