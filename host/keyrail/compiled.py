# SPDX-License-Identifier: Apache-2.0
"""C++ beside a module, compiled on first use for the processor that it runs on.

Where there is no compiler, or it cannot build the source, `load` says so, and the caller does its
work otherwise.
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

from .cache import cache_directory

__all__ = ["NotCompiled", "load"]

FLAGS = ("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC")


class NotCompiled(Exception):
    """There is no such library on this machine; the text says why."""


def _compiler() -> str:
    for name in (os.environ.get("CXX", ""), "c++", "g++", "clang++"):
        found = shutil.which(name) if name else None
        if found:
            return found
    raise NotCompiled("no C++ compiler: install the system package g++")


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise NotCompiled(f"{command[0]}: {error}") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line]
        raise NotCompiled(f"{command[0]}: {(lines or ['failed'])[0].strip()}")
    return done.stdout


def _require_own(path: Path) -> None:
    """Refuse what someone else than this user, or root, could have written."""
    found = path.stat()
    others = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    sticky = stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX
    if found.st_uid not in (0, os.getuid()) or (others and not sticky):
        raise NotCompiled(f"{path}: others may write it")


def _library(source: Path) -> Path:
    compiler = _compiler()
    # The macros tell the processor as the compiler sees it: another machine makes its own library.
    described = _run([compiler, *FLAGS[:3], "-dM", "-E", "-x", "c++", os.devnull])
    digest = hashlib.sha256(source.read_bytes() + b"\0" + "\n".join((*FLAGS, described)).encode())
    path = cache_directory() / f"{source.stem.replace('_', '-')}-{digest.hexdigest()[:24]}.so"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Who may write the folder may exchange the file after it has been looked at.
    _require_own(path.parent)
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=path.parent) as directory:
            built = Path(directory) / path.name
            _run([compiler, *FLAGS, str(source), "-o", str(built)])
            built.chmod(0o500)
            built.replace(path)
    _require_own(path)
    return path


@lru_cache
def _loaded(source: Path) -> ctypes.CDLL | str:
    try:
        return ctypes.CDLL(str(_library(source)))
    except (OSError, NotCompiled) as error:
        return str(error)


def load(source: Path) -> ctypes.CDLL:
    """Shared library of a C++ source, built if it is not in the cache (some seconds).

    Parameters
    ----------
    source
        The file; it needs nothing but the standard library.

    Raises
    ------
    NotCompiled
        If it cannot be built on this machine; asked once, answered alike ever after.
    """
    library = _loaded(source)
    if isinstance(library, str):
        raise NotCompiled(library)
    return library
