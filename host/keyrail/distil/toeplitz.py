# SPDX-License-Identifier: Apache-2.0
"""Toeplitz hashing on the host, and how keys and seeds are packed for the board's engine.

For n input and m output bits, output = M x over GF(2). *Plain*: M is the m x n matrix with
M[i, j] = seed[i - j], negative indices counting from the end of the seed of n + m - 1 bits.
*Modified* (identity-augmented, Hayashi, IEEE Trans. Inf. Theory 57(6), 2011): M = [T | 1] with T
such a matrix of m x (n - m), from a seed of n - 1 bits. The last m bits of the input meet the
identity.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
import scipy.fft

from .toeplitz_product import ProductUnavailable, arithmetic, toeplitz_product

Family = Literal["modified", "plain"]
Bits = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint64]

WORD = 64
"""Bits of a word of the engine."""
LARGEST_INPUT = 1 << 27
"""Largest input; a transform of it is proven exact, and takes some 10 GiB."""
Method = Literal["product", "transform"]
"""How the host hashes: see `toeplitz_hash`."""


def _check(n: int, m: int, family: str) -> None:
    if family not in ("modified", "plain"):
        raise ValueError(f"family {family!r}: allowed are 'modified' and 'plain'")
    if not 1 <= m <= n:
        raise ValueError(f"{m} output bits from {n} input bits: allowed are 1 to {n}")
    if n > LARGEST_INPUT:
        raise ValueError(f"{n} input bits: allowed are up to {LARGEST_INPUT}")


def seed_bits(n: int, m: int, family: Family = "modified") -> int:
    """Bits of seed that one hash takes.

    Parameters
    ----------
    n, m
        Input and output bits, 1 <= m <= n.
    family
        ``modified``: n - 1 bits (none if m = n); ``plain``: n + m - 1.

    Raises
    ------
    ValueError
        If the sizes are out of range.
    """
    _check(n, m, family)
    if family == "plain":
        return n + m - 1
    return n - 1 if n > m else 0


def _as_bits(name: str, bits: npt.ArrayLike, length: int) -> Bits:
    array = np.asarray(bits)
    if array.shape != (length,):
        raise ValueError(f"{name}: shape {array.shape}, needed are {length} bits")
    if not (array.max(initial=0) <= 1 if array.dtype == np.uint8 else np.isin(array, (0, 1)).all()):
        raise ValueError(f"{name}: values other than 0 and 1")
    return array.astype(np.uint8, copy=False)


def _diagonals(seed: Bits, n_toeplitz: int, m: int) -> Bits:
    """Matrix values by diagonal i - j from 1 - n_toeplitz to m - 1."""
    return np.concatenate([seed[m:], seed[:m]]) if n_toeplitz else seed[:0]


def error_bound(levels: int, ones_x: int, ones_t: int) -> float:
    """Largest error of a cyclic convolution of bits by transforms in double precision.

    For length 2^k it is |x| |t| ((1 + e)^(3 k) (1 + sqrt(5) e)^(3 k + 1) (1 + b)^(3 k) - 1), with
    e = 2^-53 and b the error of the roots of unity (Percival, Math. Comp. 72 (2003), theorem 5.1).
    b = 4 e is taken, which leaves room for roots made of two factors. The theorem counts passes of
    radix 2; those of radix 4 and 8, and real transforms, round less often.

    Parameters
    ----------
    levels
        k.
    ones_x, ones_t
        Ones in either operand: the squares of |x| and |t|.
    """
    e = 2.0**-53
    roundings = 3 * levels * e + (3 * levels + 1) * math.sqrt(5) * e + 3 * levels * 4 * e
    return math.sqrt(ones_x) * math.sqrt(ones_t) * math.expm1(roundings)


def implementation() -> tuple[Method, str]:
    """How `toeplitz_hash` works on this machine unless told, and the instruction or reason."""
    try:
        return "product", arithmetic()
    except ProductUnavailable as error:
        return "transform", str(error)


def toeplitz_hash(
    key: npt.ArrayLike,
    seed: npt.ArrayLike,
    output_bits: int,
    family: Family = "modified",
    *,
    method: Method | None = None,
) -> Bits:
    """Hash a key.

    By ``product``, the matrix is multiplied on the processor's carry-less multiplier, split in
    three again and again (`keyrail.distil.toeplitz_product`). By ``transform``, for machines
    without a C++ compiler or such a multiplier, it is a convolution, by real transforms of length
    2^k in double precision. That is exact too: its sums are integers, and `error_bound` is below
    2 x 10^-5 for the largest input, all ones, where one quarter would do to round them rightly;
    bound and distance from integers are checked on every call. Memory is linear in n + m.

    Parameters
    ----------
    key
        n bits, one an element.
    seed
        `seed_bits` bits, one an element; fresh for every hash.
    output_bits
        m.
    family
        ``modified`` or ``plain``.
    method
        ``product`` or ``transform``; the better one of this machine if not given.

    Returns
    -------
    numpy.ndarray
        m bits, uint8.

    Raises
    ------
    ValueError
        If a length is out of range or does not fit, or a value is no bit.
    ProductUnavailable
        If ``product`` is asked for where there is none.
    ArithmeticError
        If rounding was not safe, which the bound rules out.
    """
    if method not in (None, "product", "transform"):
        raise ValueError(f"method {method!r}: allowed are 'product' and 'transform'")
    n, m = np.size(key), output_bits
    x = _as_bits("key", key, n)
    t = _as_bits("seed", seed, seed_bits(n, m, family))
    columns = n - m if family == "modified" else n
    if columns == 0:
        return x.copy()
    if (method or implementation()[0]) == "product":
        geometry = Geometry(n, m, family)
        words = geometry.pack_key(x)
        hashed = toeplitz_product(geometry.pack_seed(t), words[: geometry.columns], geometry.rows)
        if family == "modified":
            hashed ^= words[geometry.columns :]
        return geometry.unpack_output(hashed)
    convolved = _convolve(x[:columns], _diagonals(t, columns, m), m)
    return convolved ^ x[columns:] if family == "modified" else convolved


def _convolve(x: Bits, values: Bits, m: int) -> Bits:
    """Product of the Toeplitz matrix with these values by diagonal, by transforms."""
    columns = len(x)
    # Of the cyclic convolution only sums that do not wrap are used. The bound is for powers of two.
    levels = (columns + m - 2).bit_length()
    spectrum = scipy.fft.rfft(x.astype(np.float64), 1 << levels)
    spectrum *= scipy.fft.rfft(values.astype(np.float64), 1 << levels)
    sums: npt.NDArray[np.float64] = scipy.fft.irfft(spectrum, 1 << levels)
    sums = sums[columns - 1 : columns - 1 + m]
    rounded = np.rint(sums)
    bound = error_bound(levels, int(x.sum()), int(values.sum()))
    if bound >= 0.25 or float(np.abs(sums - rounded).max()) >= 0.25:
        raise ArithmeticError("transform lost precision; this machine's arithmetic is at fault")
    return (rounded.astype(np.int64) & 1).astype(np.uint8)


def _pack(bits: Bits, words: int) -> Words:
    padded = np.zeros(words * WORD, np.uint8)
    padded[: len(bits)] = bits
    return np.packbits(padded, bitorder="little").view("<u8").astype(np.uint64)


@dataclass(frozen=True)
class Geometry:
    """How the board's engine lays a hash out in words of 64 bits.

    The matrix is cut into blocks of 64 x 64, ``rows`` by ``columns`` of them, padded with zeros.
    Blocks on one diagonal share their 127 seed bits, of which two neighbouring words of the
    packed seed hold all.

    Parameters
    ----------
    n, m
        Input and output bits.
    family
        ``modified`` or ``plain``.

    Raises
    ------
    ValueError
        If the sizes are out of range.
    """

    n: int
    m: int
    family: Family = "modified"

    part: bool = False
    """Tile of a larger matrix: then m may exceed n, and n - m may not be the matrix's columns."""

    def __post_init__(self) -> None:
        if not self.part:
            _check(self.n, self.m, self.family)

    @classmethod
    def tile(cls, columns: int, rows: int, identity: bool) -> Self:
        """Geometry of a tile of ``columns`` x ``rows`` bits, with the identity part or not."""
        n = columns + rows if identity else columns
        return cls(n, rows, "modified" if identity else "plain", True)

    @property
    def toeplitz_bits(self) -> int:
        """Input bits that meet the Toeplitz part of the matrix."""
        return self.n - self.m if self.family == "modified" else self.n

    @property
    def columns(self) -> int:
        """Words of input that meet the Toeplitz part; at least one, for the engine's sake."""
        return max(1, -(-self.toeplitz_bits // WORD))

    @property
    def rows(self) -> int:
        """Words of output."""
        return -(-self.m // WORD)

    @property
    def key_words(self) -> int:
        """Words of the packed key."""
        return self.columns + (self.rows if self.family == "modified" else 0)

    @property
    def seed_words(self) -> int:
        """Words of the packed seed."""
        return self.columns + self.rows

    def pack_key(self, key: npt.ArrayLike) -> Words:
        """Pack a key: the Toeplitz part, then the identity part from a word of its own.

        The identity part begins a word so that the engine needs no shifter.
        """
        bits = _as_bits("key", key, self.n)
        words = _pack(bits[: self.toeplitz_bits], self.columns)
        if self.family == "modified":
            words = np.concatenate([words, _pack(bits[self.toeplitz_bits :], self.rows)])
        return words

    def pack_seed(self, seed: npt.ArrayLike) -> Words:
        """Pack a seed by diagonals of the matrix.

        Bit b of word w holds the diagonal i - j = 64 (w - columns) + 1 + b, so that the block in
        row I and column J needs words I - J + columns - 1 and I - J + columns, unshifted.
        """
        bits = _as_bits("seed", seed, seed_bits(self.n, self.m, self.family))
        return self.pack_diagonals(_diagonals(bits, self.toeplitz_bits, self.m))

    def pack_diagonals(self, values: Bits) -> Words:
        """Pack a seed whose bits are in the order of the diagonals already."""
        # Bit 0 of word 0 is diagonal 1 - 64 columns; the first value is diagonal 1 - n_toeplitz.
        lead = WORD * self.columns - self.toeplitz_bits
        return _pack(np.concatenate([np.zeros(lead, np.uint8), values]), self.seed_words)

    def unpack_output(self, words: npt.ArrayLike) -> Bits:
        """The m bits of the engine's output words.

        Raises
        ------
        ValueError
            If the number of words is not `rows`.
        """
        array = np.ascontiguousarray(words, "<u8")
        if array.shape != (self.rows,):
            raise ValueError(f"{array.shape} output words, needed are {self.rows}")
        return np.unpackbits(array.view(np.uint8), bitorder="little")[: self.m]


@dataclass(frozen=True)
class Place:
    """Where a tile of a hash lies that is larger than the board's engine.

    Parameters
    ----------
    geometry
        The tile's own.
    top, left
        Its first row and column of the Toeplitz part of the matrix.
    continued, unfinished
        Whether tiles of the same row go before it, and follow.
    """

    geometry: Geometry
    top: int
    left: int
    continued: bool
    unfinished: bool


def places(n: int, m: int, family: Family, width: int, height: int) -> Iterator[list[Place]]:
    """Rows of tiles that make up one hash, of ``width`` x ``height`` bits at most.

    The first tile of a row holds the identity part of these rows.

    Raises
    ------
    ValueError
        If the sizes are out of range.
    """
    _check(n, m, family)
    columns = n - m if family == "modified" else n
    for top in range(0, m, height):
        rows = min(height, m - top)
        yield [
            Place(
                Geometry.tile(min(width, columns - left), rows, family == "modified" and left == 0),
                top,
                left,
                left > 0,
                left + width < columns,
            )
            for left in range(0, max(columns, 1), width)
        ]


@dataclass(frozen=True)
class Tile:
    """One tile of a hash that is larger than the board's engine: what the engine is given.

    Parameters
    ----------
    n, m, family, continued, unfinished
        The engine's registers.
    key, seed
        Words, uint64.
    """

    n: int
    m: int
    family: Family
    continued: bool
    unfinished: bool
    key: Words
    seed: Words


def tiles(
    key: npt.ArrayLike,
    seed: npt.ArrayLike,
    output_bits: int,
    family: Family,
    width: int,
    height: int,
) -> Iterator[list[Tile]]:
    """Cut one hash into rows of tiles for an engine that hashes ``width`` to ``height`` bits.

    The product is linear, so the tiles of a row add up in the engine's accumulators: still one
    matrix, one seed and one hash. The output is that of the rows one behind the other.

    Parameters
    ----------
    key, seed, output_bits, family
        As for `toeplitz_hash`.
    width, height
        Most columns and rows of a tile.

    Yields
    ------
    list of Tile
        One row of tiles.

    Raises
    ------
    ValueError
        If a length is out of range or does not fit, or a value is no bit.
    """
    n, m = np.size(key), output_bits
    x = _as_bits("key", key, n)
    seeds = _as_bits("seed", seed, seed_bits(n, m, family))
    columns = n - m if family == "modified" else n
    values = _diagonals(seeds, columns, m)
    for places_of_row in places(n, m, family, width, height):
        row = []
        for place in places_of_row:
            geometry, top, left = place.geometry, place.top, place.left
            here, rows = geometry.toeplitz_bits, geometry.m
            # Values start with diagonal 1 - columns; the tile's with top - left - (here - 1).
            first = top - left - here + columns
            part = x[left : left + here]
            if geometry.family == "modified":
                part = np.concatenate([part, x[columns + top : columns + top + rows]])
            row.append(
                Tile(
                    geometry.n,
                    rows,
                    geometry.family,
                    place.continued,
                    place.unfinished,
                    geometry.pack_key(part),
                    geometry.pack_diagonals(values[first : first + here + rows - 1]),
                )
            )
        yield row
