# SPDX-License-Identifier: Apache-2.0
"""Privacy amplification on a board's Toeplitz engine, whole or in tiles."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .board import Board, BoardError
from .contract import TOEPLITZ_WORD, ToeplitzCommand, ToeplitzError, ToeplitzFamily
from .distil.toeplitz import WORD, Bits, Family, seed_bits, tiles
from .layouts import zeros

__all__ = ["engine_sizes", "hash_on_board"]


def engine_sizes(board: Board) -> tuple[int, int]:
    """Largest input and output of the board's engine, bits."""
    sizes = board.read_fields("configuration")
    return 1 << sizes["toeplitz_input_log2"], 1 << sizes["toeplitz_output_log2"]


def hash_on_board(
    board: Board,
    key: npt.ArrayLike,
    seed: npt.ArrayLike,
    output_bits: int,
    family: Family = "modified",
    tile: tuple[int, int] | None = None,
) -> Bits:
    """Hash a key on the board.

    What is larger than the board's engine is hashed in tiles: one matrix, one seed, one hash, with
    the sums of a row of tiles kept on the board.

    Parameters
    ----------
    board
        Board whose engine is at rest.
    key
        n bits, one an element.
    seed
        `keyrail.distil.toeplitz.seed_bits` bits, one an element; fresh for every hash.
    output_bits
        m.
    family
        ``modified`` or ``plain``.
    tile
        Most columns and rows of a tile; what the engine holds if not given.

    Returns
    -------
    numpy.ndarray
        m bits, uint8.

    Raises
    ------
    ValueError
        If a length is out of range or does not fit, or a value is no bit.
    BoardError
        If the engine refuses or does not answer: with the sizes, and the errors it names. What it
        holds is wiped by then; it works again after ``CLEAR_ERROR``.
    """
    x = np.asarray(key)
    seed_bits(len(x), output_bits, family)
    width, height = tile or engine_sizes(board)
    rows = []
    for row in tiles(x, seed, output_bits, family, width, height):
        for part in row:
            board.write("toeplitz_n", part.n)
            board.write("toeplitz_m", part.m)
            board.write("toeplitz_family", ToeplitzFamily[part.family.upper()])
            board.write("toeplitz_tile", part.continued | part.unfinished << 1)
            board.write("toeplitz_command", ToeplitzCommand.START)
            for name, words in (("toeplitz_key", part.key), ("toeplitz_seed", part.seed)):
                records = zeros(TOEPLITZ_WORD, len(words))
                records["bits"] = words
                board.send(name, records)
            board.run()
        words = np.ascontiguousarray(board.receive("toeplitz_out")["bits"], "<u8")
        error = board.read_fields("toeplitz_status")["error"]
        expected = -(-row[0].m // WORD)
        if error or len(words) != expected:
            named = [one.name.lower() for one in ToeplitzError if error >> one & 1]
            raise BoardError(
                f"{board.name}: Toeplitz engine, {len(x)} bits to {output_bits}, gave "
                f"{len(words)} of {expected} words: {', '.join(named) or 'no error named'}"
            )
        rows.append(np.unpackbits(words.view(np.uint8), bitorder="little")[: row[0].m])
    return np.concatenate(rows)
