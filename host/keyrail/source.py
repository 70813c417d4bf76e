# SPDX-License-Identifier: Apache-2.0
"""The sender's states, drawn from random bytes on the host."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from keyrail.contract import STATE_BITS, STATE_WORD, STATES_PER_WORD
from keyrail.layouts import Structured, zeros

__all__ = [
    "BASIS_BIT",
    "BIT_BIT",
    "DECOY_BIT",
    "PRESENT_BIT",
    "quantised",
    "random_states",
    "state_words",
    "threshold",
    "word_states",
]

BASIS_BIT, BIT_BIT, DECOY_BIT, PRESENT_BIT = 1, 2, 4, 8
"""Masks of a state's code, as in the contract's ``state``: basis X, bit 1, decoy, present."""

_BLOCK = 1 << 18  # states drawn at once: fits a cache, and bounds the memory


def quantised(probability: float) -> float:
    """Give the probability that is really drawn: the nearest multiple of 2^-16.

    Parameters
    ----------
    probability : float
        Wanted; 0 to 1.

    Returns
    -------
    float
        Exact; what a security estimate has to be given.

    Raises
    ------
    ValueError
        If the probability lies outside 0 to 1.
    """
    return threshold("probability", probability) / 65536


def random_states(
    rng_bytes: Callable[[int], bytes], slots: int, p_z: float, p_signal: float
) -> NDArray[np.uint8]:
    """Draw the states of slots in a row; basis, intensity and bit independent of one another.

    Each slot takes 16 bits for the basis, 16 for the intensity (compared with a threshold, so that
    the probabilities are exactly `quantised`) and one for the bit. Slots are drawn in blocks of
    2^18, each with three requests for bytes. More than 20 million states a second on one core,
    with a byte source that keeps up.

    Parameters
    ----------
    rng_bytes : callable
        Gives that many uniform bytes, such as the ``bytes`` of a `keyrail.randomness.RandomSource`.
        The states are as secret as these bytes.
    slots : int
        How many; at least 0.
    p_z : float
        Probability of basis Z, 0 to 1.
    p_signal : float
        Probability of the signal intensity, 0 to 1, independent of the basis.

    Returns
    -------
    ndarray of uint8, shape (slots,)
        Codes as in the contract's ``state``: bit 0 basis (0 = Z, 1 = X), bit 1 the bit, bit 2
        intensity (0 = signal, 1 = decoy), bit 3 present, always 1.

    Raises
    ------
    ValueError
        If a value is out of range, or the source gives fewer or more bytes than asked for.
    """
    if slots < 0:
        raise ValueError(f"slots: {slots}; at least 0")
    z, signal = threshold("p_z", p_z), threshold("p_signal", p_signal)
    states = np.empty(slots, dtype=np.uint8)
    for start in range(0, slots, _BLOCK):
        block = states[start : start + _BLOCK]
        size = len(block)
        basis = _draw(rng_bytes, 2 * size).view("<u2") >= z
        decoy = _draw(rng_bytes, 2 * size).view("<u2") >= signal
        bits = np.unpackbits(_draw(rng_bytes, -(-size // 8)), count=size, bitorder="little")
        block[:] = bits
        block <<= 1
        block |= basis.view(np.uint8)
        block |= decoy.view(np.uint8) << np.uint8(2)
        block |= np.uint8(PRESENT_BIT)
    return states


def _draw(rng_bytes: Callable[[int], bytes], n: int) -> NDArray[np.uint8]:
    drawn = rng_bytes(n)
    if len(drawn) != n:
        raise ValueError(f"random source gave {len(drawn)} bytes, {n} were asked for")
    return np.frombuffer(drawn, dtype=np.uint8)


def threshold(name: str, probability: float) -> int:
    """Give the threshold that 16 uniform bits are compared with, 0 to 65536.

    Parameters
    ----------
    name : str
        What the probability is called in an error.
    probability : float
        0 to 1.

    Raises
    ------
    ValueError
        If the probability lies outside 0 to 1.
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"{name}: {probability}; allowed is 0 to 1")
    return round(probability * 65536)


def whole_words(slots: int) -> int:
    """Slots of the words of states that so many slots take."""
    return slots + -slots % STATES_PER_WORD


def state_words(states: NDArray[np.uint8]) -> Structured:
    """Pack states as they go to the board, 3 bits a slot.

    Parameters
    ----------
    states : ndarray of uint8, shape (16 n,)
        State codes; what lies above bit 2 is left out.

    Returns
    -------
    ndarray
        ``state_word`` records, shape (n,).

    Raises
    ------
    ValueError
        If the number of states is no multiple of 16.
    """
    if len(states) % STATES_PER_WORD:
        raise ValueError(f"{len(states)} states; allowed is a multiple of {STATES_PER_WORD}")
    words = zeros(STATE_WORD, len(states) // STATES_PER_WORD)
    for i in range(STATES_PER_WORD):
        words[f"state_{i}"] = states[i::STATES_PER_WORD] & ((1 << STATE_BITS) - 1)
    return words


def word_states(words: Structured) -> NDArray[np.uint8]:
    """Give the states of ``state_word`` records, codes of 3 bits; the reverse of `state_words`."""
    states = np.empty(len(words) * STATES_PER_WORD, np.uint8)
    for i in range(STATES_PER_WORD):
        states[i::STATES_PER_WORD] = words[f"state_{i}"]
    return states
