# SPDX-License-Identifier: Apache-2.0
"""Toeplitz product on the host's own carry-less multiplier, compiled on first use.

The source beside this file needs a C++ compiler and a processor with carry-less multiplication
(PCLMULQDQ, PMULL). Where either is missing, `load` says so, and the hash is made otherwise.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .. import compiled
from ..compiled import NotCompiled as ProductUnavailable

__all__ = ["ProductUnavailable", "arithmetic", "load", "toeplitz_product"]

Words = npt.NDArray[np.uint64]
SOURCE = Path(__file__).with_suffix(".cpp")


def load() -> ctypes.CDLL:
    """The compiled product, built if it is not in the cache (some seconds).

    Raises
    ------
    ProductUnavailable
        If it cannot be built on this machine.
    """
    library = compiled.load(SOURCE)
    words = np.ctypeslib.ndpointer(np.uint64, 1, flags="C_CONTIGUOUS")
    library.keyrail_toeplitz_arithmetic.restype = ctypes.c_char_p
    product = library.keyrail_toeplitz_product
    product.argtypes = (words, words, words, ctypes.c_size_t, ctypes.c_size_t)
    product.restype = ctypes.c_int
    return library


def arithmetic() -> str:
    """Instruction that multiplies: ``vpclmulqdq``, ``pclmulqdq`` or ``pmull``.

    Raises
    ------
    ProductUnavailable
        If there is no compiled product.
    """
    return str(load().keyrail_toeplitz_arithmetic().decode())


def toeplitz_product(seed: Words, key: Words, rows: int) -> Words:
    """Output words of the Toeplitz part, from words as `keyrail.distil.toeplitz.Geometry` packs.

    Time grows with size to the power of 1.585, in constant time for constant sizes: no table and
    no branch depends on the bits. Memory is linear; what it held is overwritten.

    Parameters
    ----------
    seed
        columns + rows words.
    key
        columns words, at least one.
    rows
        Words of output, at least one.

    Raises
    ------
    ProductUnavailable
        If there is no compiled product.
    ValueError
        If the sizes do not fit.
    MemoryError
        If there is no memory for it.
    """
    columns = len(key)
    if rows < 1 or columns < 1 or len(seed) != columns + rows:
        raise ValueError(f"{len(seed)} words of seed for {columns} of key and {rows} of output")
    output = np.empty(rows, np.uint64)
    if load().keyrail_toeplitz_product(seed, key, output, rows, columns):
        raise MemoryError(f"no memory for a hash of {columns + rows} words")
    return output
