# SPDX-License-Identifier: Apache-2.0
"""Low-density parity-check codes for reconciliation, made for any length and number of checks.

Both stations make the same code from its sizes alone; nothing about a code is secret.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
import scipy.sparse

_DOMAIN = 0x4B65_7972_6169_6C31
HIGH_DEGREE = 6
HIGH_SHARE = 0.3
"""Share of columns of degree `HIGH_DEGREE`."""
STAIRCASE_SHARE = 0.5
"""Columns of degree 2, as a share of the checks: a chain without cycles."""


@lru_cache(maxsize=16)
def parity_check(columns: int, checks: int, extension: int = 0) -> scipy.sparse.csr_matrix:
    """Parity-check matrix of an irregular code.

    Columns of degree 2 form a staircase through half of the checks; the others have degree 3 or
    `HIGH_DEGREE`, spread evenly over the checks and redrawn while two columns share two checks
    (cycles of length 4), as in repeat-accumulate codes (Jin, Khandekar and McEliece, 2000).

    Parameters
    ----------
    columns
        Bits of a frame.
    checks
        Syndrome bits.
    extension
        0 for the code itself; 1, 2, ... for further checks that are sent when a frame does not
        decode, without a staircase.

    Returns
    -------
    scipy.sparse.csr_matrix
        checks x columns, uint8; the same on every machine.

    Raises
    ------
    ValueError
        If the sizes leave no room for a code.
    """
    if not 4 <= checks < columns:
        raise ValueError(f"{checks} checks for {columns} bits: allowed are 4 to {columns - 1}")
    rng = np.random.Generator(np.random.PCG64([_DOMAIN, columns, checks, extension]))
    stairs = 0 if extension else min(int(STAIRCASE_SHARE * checks), columns // 2)
    degrees = np.full(columns, 3)
    degrees[rng.random(columns) < HIGH_SHARE] = min(HIGH_DEGREE, checks)
    if extension:
        # Each bit meets about one further check.
        degrees = rng.permutation(np.arange(columns) % 3)
    degrees[:stairs] = 2
    starts = np.concatenate([[0], np.cumsum(degrees)])
    owner = np.repeat(np.arange(columns), degrees)
    # A run of permutations spreads the edges evenly over the checks.
    runs = -(-len(owner) // checks) + 1
    edges = np.concatenate([rng.permutation(checks) for _ in range(runs)])[: len(owner)]
    stair = np.arange(stairs)
    edges[0 : 2 * stairs : 2], edges[1 : 2 * stairs : 2] = stair, stair + 1

    for _ in range(12):
        bad = np.unique(_conflicts(starts, edges, degrees, checks))
        bad = bad[bad >= stairs]
        if len(bad) == 0:
            break
        chosen = np.flatnonzero(np.isin(owner, bad))
        edges[chosen] = rng.integers(0, checks, len(chosen))
    # What is left of double edges cancels out: they are taken once.
    matrix = scipy.sparse.csr_matrix(
        (np.ones(len(edges), np.uint8), (edges, owner)), shape=(checks, columns)
    )
    matrix.sum_duplicates()
    matrix.data[:] = 1
    return matrix


def _conflicts(
    starts: npt.NDArray[np.int64],
    edges: npt.NDArray[np.int64],
    degrees: npt.NDArray[np.int64],
    checks: int,
) -> npt.NDArray[np.int64]:
    """Columns with a double edge, or that share two checks with an earlier column."""
    pairs, owners = [], []
    for degree in np.unique(degrees):
        members = np.flatnonzero(degrees == degree)
        if degree < 2 or len(members) == 0:
            continue
        table = np.sort(edges[starts[members][:, None] + np.arange(degree)], axis=1)
        for i in range(degree):
            for j in range(i + 1, degree):
                pairs.append(table[:, i] * checks + table[:, j])
                owners.append(members)
                same = table[:, i] == table[:, j]
                pairs.append(np.full(int(same.sum()), -1))
                owners.append(members[same])
    every, whose = np.concatenate(pairs), np.concatenate(owners)
    order = np.lexsort((whose, every))
    every, whose = every[order], whose[order]
    again = np.concatenate([[False], every[1:] == every[:-1]]) | (every == -1)
    found: npt.NDArray[np.int64] = whose[again]
    return found
