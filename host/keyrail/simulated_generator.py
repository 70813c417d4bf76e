# SPDX-License-Identifier: Apache-2.0
"""A key for a simulated board's generator, and the states that it makes of it.

A real board's states leave it as light alone. A simulated one has none: the same states are made
a second time, by the generator's twin, for the simulated fibre.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from keyrail.errors import MissingExtra
from keyrail.randomness import RandomSource
from keyrail.source import PRESENT_BIT, threshold
from keyrail.station import GeneratorKey

StatesOf = Callable[[int, int], npt.NDArray[np.uint8]]
"""States of so many slots in a row, from a slot on."""

KEY_BYTES = 32


def simulated_generator(
    source: RandomSource, p_z: float, p_signal: float
) -> tuple[GeneratorKey, StatesOf]:
    """Draw a key, and make the states of any slots that a board makes of it.

    Parameters
    ----------
    source
        Gives key and nonce; the states are never better than it.
    p_z, p_signal
        Probabilities of basis Z and of the signal intensity; realised in units of 2^-16.

    Raises
    ------
    MissingExtra
        If the simulator is not installed.
    """
    try:
        from keyrail_sim.models.generator import Generator
    except ModuleNotFoundError as error:
        raise MissingExtra(error.name or "keyrail_sim", "sim") from None
    made = GeneratorKey(
        source.bytes(KEY_BYTES),
        int.from_bytes(source.bytes(8), "little"),
        threshold("p_z", p_z),
        threshold("p_signal", p_signal),
    )
    twin = Generator(made.key, made.nonce, made.z, made.signal)

    def states_of(first_slot: int, count: int) -> npt.NDArray[np.uint8]:
        return twin.states(first_slot, count) | np.uint8(PRESENT_BIT)

    return made, states_of
