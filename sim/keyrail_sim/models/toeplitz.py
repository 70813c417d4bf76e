# SPDX-License-Identifier: Apache-2.0
"""Twin of `keyrail_gateware.toeplitz`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from keyrail.contract import ToeplitzError, ToeplitzFamily
from keyrail.distil.toeplitz import Family, Geometry, toeplitz_hash

Words = npt.NDArray[np.uint64]

_FAMILIES: dict[int, Family] = {ToeplitzFamily.PLAIN: "plain", ToeplitzFamily.MODIFIED: "modified"}


class Toeplitz:
    """Hash one key with one seed, word by word as the engine takes and gives them.

    Parameters
    ----------
    input_bits, output_bits
        Largest n and m.
    """

    def __init__(self, input_bits: int = 1 << 18, output_bits: int = 1 << 17) -> None:
        self._input_bits, self._output_bits = input_bits, output_bits
        self.error = 0
        self._former_seed = np.zeros(0, np.uint64)
        self.wipe()

    def wipe(self) -> None:
        """Give up what is under way and forget everything."""
        self._open_rows: int | None = None
        self._sums: npt.NDArray[np.uint8] | None = None
        self._seed_so_far = np.zeros(0, np.uint64)
        self._forget_block()

    def _forget_block(self) -> None:
        self._geometry: Geometry | None = None
        self._key = np.zeros(0, np.uint64)
        self._seed = np.zeros(0, np.uint64)

    def _raise(self, error: ToeplitzError) -> None:
        self.error |= 1 << error
        self.wipe()

    def clear(self) -> None:
        """Clear the sticky error."""
        self.error = 0

    @property
    def busy(self) -> bool:
        """From start to the end of the hash."""
        return self._geometry is not None or self._open_rows is not None

    @property
    def wiped(self) -> bool:
        """Nothing has been taken in since everything was overwritten."""
        return not self.busy

    def start(
        self, n: int, m: int, family: int, continued: bool = False, unfinished: bool = False
    ) -> None:
        """Begin a hash of these sizes, or a tile of one."""
        modified = family == ToeplitzFamily.MODIFIED and not continued
        columns = n - m if modified else n
        whole = not (continued or unfinished)
        if self.error or self._geometry:
            self._raise(ToeplitzError.BUSY)
        elif (
            n < 1
            or m < 1
            or m > self._output_bits
            or not 0 <= columns <= self._input_bits
            or (whole and m > n)
        ):
            self._raise(ToeplitzError.SIZE)
        elif continued != (self._open_rows is not None) or (continued and self._open_rows != m):
            self._raise(ToeplitzError.TILE_ORDER)
        else:
            self._geometry = Geometry.tile(columns, m, modified)
            self._unfinished = unfinished
            self._open_rows = m if unfinished else None
            if not continued:
                self._seed_so_far = np.zeros(0, np.uint64)
                self._seedless = columns == 0

    def feed_key(self, words: Words) -> int:
        """Offer words of the key; returns how many were taken."""
        needed = self._geometry.key_words - len(self._key) if self._geometry else 0
        self._key = np.concatenate([self._key, words[:needed]])
        return min(needed, len(words))

    def feed_seed(self, words: Words) -> int:
        """Offer words of the seed; returns how many were taken."""
        needed = self._geometry.seed_words - len(self._seed) if self._geometry else 0
        self._seed = np.concatenate([self._seed, words[:needed]])
        return min(needed, len(words))

    def output(self) -> Words:
        """Words of the hash, once key and seed are complete; then everything is forgotten."""
        geometry = self._geometry
        none = np.zeros(0, np.uint64)
        if geometry is None or len(self._key) < geometry.key_words:
            return none
        if len(self._seed) < geometry.seed_words:
            return none
        self._seed_so_far = np.concatenate([self._seed_so_far, self._seed])
        short = self._seedless or geometry.seed_words < 4
        self._sums = self._hash(geometry)
        self._forget_block()
        if self._unfinished:
            return none
        if not short:
            reused = np.array_equal(self._former_seed, self._seed_so_far)
            self._former_seed = self._seed_so_far
            if reused:
                self._raise(ToeplitzError.SEED_REUSED)
                return none
        self._sums[geometry.m :] = 0
        result = np.packbits(self._sums, bitorder="little").view("<u8").astype(np.uint64)
        self.wipe()
        return result

    def _hash(self, geometry: Geometry) -> npt.NDArray[np.uint8]:
        # Whatever the words hold is hashed, padding included, as the engine does: the whole
        # padded matrix is a plain Toeplitz matrix of its own.
        def bits(words: Words) -> npt.NDArray[np.uint8]:
            return np.unpackbits(words.astype("<u8").view(np.uint8), bitorder="little")

        rows, columns = geometry.rows, geometry.columns
        key, diagonals = bits(self._key), bits(self._seed)
        # Diagonals 1 - 64 columns to 64 rows - 1, turned to the order of a plain seed.
        used = diagonals[: 64 * (rows + columns) - 1]
        seed = np.roll(used, -(64 * columns - 1))
        input_bits = 64 * max(rows, columns)
        if rows > columns:
            # The host's function takes no more output than input: pad the input with zeros.
            lead = np.zeros(64 * (rows - columns), np.uint8)
            seed = np.roll(np.concatenate([lead, used]), -(64 * rows - 1))
        padded = np.zeros(input_bits, np.uint8)
        padded[: 64 * columns] = key[: 64 * columns]
        out = toeplitz_hash(padded, seed, 64 * rows, "plain")
        if geometry.family == "modified":
            out ^= key[64 * columns :]
        if self._sums is not None:
            out ^= self._sums
        return out
