# SPDX-License-Identifier: Apache-2.0
"""Twin of `keyrail_gateware.chacha20`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint32]

CONSTANTS = (0x61707865, 0x3320646E, 0x79622D32, 0x6B206574)
"""First four words of the state, RFC 8439, section 2.3."""
_ROUNDS = (
    *((i, 4 + i, 8 + i, 12 + i) for i in range(4)),
    *((i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4) for i in range(4)),
)


def _turn(word: Words, by: int, spare: Words) -> None:
    np.right_shift(word, np.uint32(32 - by), out=spare)
    np.left_shift(word, np.uint32(by), out=word)
    np.bitwise_or(word, spare, out=word)


def blocks(key: npt.ArrayLike, counters: npt.ArrayLike, nonces: npt.ArrayLike) -> Words:
    """ChaCha20 blocks (RFC 8439, section 2.3).

    Parameters
    ----------
    key
        Eight 32-bit words.
    counters
        Shape (n,).
    nonces
        Shape (n, 3), or (3,) for all blocks.

    Returns
    -------
    numpy.ndarray
        uint32, shape (n, 16).
    """
    count = len(np.atleast_1d(np.asarray(counters)))
    initial = np.empty((16, count), np.uint32)
    initial[:4] = np.array(CONSTANTS, np.uint32)[:, None]
    initial[4:12] = np.asarray(key, np.uint32)[:, None]
    initial[12] = np.asarray(counters, np.uint32)
    initial[13:] = np.asarray(nonces, np.uint32).reshape(-1, 3).T
    state, spare = initial.copy(), np.empty(count, np.uint32)
    for _ in range(10):
        for a, b, c, d in _ROUNDS:
            for target, other, turned, by in (
                (a, b, d, 16),
                (c, d, b, 12),
                (a, b, d, 8),
                (c, d, b, 7),
            ):
                state[target] += state[other]
                state[turned] ^= state[target]
                _turn(state[turned], by, spare)
    state += initial
    return np.ascontiguousarray(state.T)
