# SPDX-License-Identifier: Apache-2.0
"""Toeplitz product on the host's own carry-less multiplier, compiled on first use.

The source beside this file needs a C++ compiler and a processor with carry-less multiplication
(PCLMULQDQ, PMULL). Where either is missing, `load` says so, and the hash is made otherwise.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import stat
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..cache import cache_directory

__all__ = ["ProductUnavailable", "arithmetic", "load", "toeplitz_product"]

Words = npt.NDArray[np.uint64]
FLAGS = ("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC")
SOURCE = Path(__file__).with_suffix(".cpp")


class ProductUnavailable(Exception):
    """There is no compiled product on this machine; the text says why."""


def _compiler() -> str:
    for name in (os.environ.get("CXX", ""), "c++", "g++", "clang++"):
        found = shutil.which(name) if name else None
        if found:
            return found
    raise ProductUnavailable("no C++ compiler: install the system package g++")


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise ProductUnavailable(f"{command[0]}: {error}") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line]
        raise ProductUnavailable(f"{command[0]}: {(lines or ['failed'])[0].strip()}")
    return done.stdout


def _require_own(path: Path) -> None:
    """Refuse what someone else than this user, or root, could have written."""
    found = path.stat()
    others = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    sticky = stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX
    if found.st_uid not in (0, os.getuid()) or (others and not sticky):
        raise ProductUnavailable(f"{path}: others may write it")


def _library() -> Path:
    compiler = _compiler()
    # The macros tell the processor as the compiler sees it: another machine makes its own library.
    described = _run([compiler, *FLAGS[:3], "-dM", "-E", "-x", "c++", os.devnull])
    source = SOURCE.read_bytes()
    digest = hashlib.sha256(source + b"\0" + "\n".join((*FLAGS, described)).encode())
    path = cache_directory() / f"toeplitz-product-{digest.hexdigest()[:24]}.so"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Who may write the folder may exchange the file after it has been looked at.
    _require_own(path.parent)
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=path.parent) as directory:
            built = Path(directory) / path.name
            _run([compiler, *FLAGS, str(SOURCE), "-o", str(built)])
            built.chmod(0o500)
            built.replace(path)
    _require_own(path)
    return path


@lru_cache
def _loaded() -> ctypes.CDLL | str:
    try:
        library = ctypes.CDLL(str(_library()))
    except (OSError, ProductUnavailable) as error:
        return str(error)
    words = np.ctypeslib.ndpointer(np.uint64, 1, flags="C_CONTIGUOUS")
    library.keyrail_toeplitz_arithmetic.restype = ctypes.c_char_p
    product = library.keyrail_toeplitz_product
    product.argtypes = (words, words, words, ctypes.c_size_t, ctypes.c_size_t)
    product.restype = ctypes.c_int
    return library


def load() -> ctypes.CDLL:
    """The compiled product, built if it is not in the cache (some seconds).

    Raises
    ------
    ProductUnavailable
        If it cannot be built on this machine; asked once, answered alike ever after.
    """
    library = _loaded()
    if isinstance(library, str):
        raise ProductUnavailable(library)
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
