# SPDX-License-Identifier: Apache-2.0
"""Published training slots, from which the receiver learns which slot is which.

The sender emits a fixed pattern of present and absent pulses before a block. It is public and
never in a tally; the receiver correlates the slots of its clicks with it.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from keyrail.errors import KeyrailError

_DOMAIN = b"keyrail training pattern 1"
SIGNIFICANCE = 8.0
"""Standard deviations by which the correlation must exceed chance, over all offsets tried."""


class TrainingError(KeyrailError):
    """The training pattern was not found in the receiver's clicks."""


def training_states(slots: int) -> npt.NDArray[np.uint8]:
    """States of the training slots.

    Parameters
    ----------
    slots
        How many.

    Returns
    -------
    numpy.ndarray
        State codes (``state`` record): a pulse of signal intensity is present in half of the
        slots, all four polarisations in turn at random; the pattern is the same everywhere.
    """
    drawn = np.frombuffer(hashlib.shake_256(_DOMAIN).digest(slots), np.uint8)
    present = drawn >> 2 & 1
    return np.where(present == 1, 8 | (drawn & 3), 0).astype(np.uint8)


def find_first_slot(slots: npt.NDArray[np.int64], pattern: npt.NDArray[np.uint8]) -> int:
    """Find which slot of the receiver is slot 0 of the training pattern.

    Parameters
    ----------
    slots
        Slots of clicks in the receiver's own count, 0 or more.
    pattern
        State codes of the training slots.

    Returns
    -------
    int
        Receiver's slot in which the pattern's slot 0 fell; may be negative.

    Raises
    ------
    TrainingError
        If no offset stands out from chance.
    """
    if len(slots) == 0:
        raise TrainingError("no click during the training slots; allowed is at least one a channel")
    span = int(slots.max()) + 1
    length = 1 << (span + len(pattern) - 1).bit_length()
    clicks = np.bincount(slots, minlength=length).astype(np.float64)
    # Present +1, absent -1: clicks that have nothing to do with the pattern average to zero.
    signs = np.zeros(length)
    signs[: len(pattern)] = np.where(pattern >> 3 & 1, 1.0, -1.0)
    score = np.fft.irfft(np.fft.rfft(clicks) * np.conj(np.fft.rfft(signs)), length)
    best = int(score.argmax())
    # By chance each click adds +1 or -1.
    significance = score[best] / np.sqrt((clicks**2).sum())
    if significance < SIGNIFICANCE:
        raise TrainingError(
            f"training pattern not found: {significance:.1f} standard deviations over chance, "
            f"needed are {SIGNIFICANCE:.0f} ({len(slots)} clicks)"
        )
    return best if best < span else best - length
