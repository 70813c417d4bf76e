# SPDX-License-Identifier: Apache-2.0
"""What the benches share: build a block under a simulator, drive and watch its streams.

A bench file holds cocotb benches (coroutines decorated with ``@cocotb.test()``, whose names do
not begin with ``test_``) and one pytest function that calls `run` for the block.
"""

import fcntl
import hashlib
import inspect
import json
import os
import random
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from keyrail.contract import Record
from keyrail.layouts import Structured, dtype, pack

BUILD = Path(__file__).parents[2] / "build" / "benches"
CLOCK_STEPS = 10_000
"""Steps of simulation time (1 ps) in a clock."""
LIMIT = 200_000
"""Clocks after which a wait is given up: every bench ends by itself."""
OPTIMISATION = "OPT_FAST=-O1"
"""The compiler takes most of the time of most benches, and the simulated block little of it."""
SEED = int(os.environ.get("KEYRAIL_SEED", "20260101"))


# -- building and running, in pytest's process ---------------------------------------------------


def simulators() -> list[str]:
    """Simulators to run benches under: Verilator, and Icarus where it is installed."""
    return ["verilator"] + (["icarus"] if shutil.which("iverilog") else [])


def run(
    component: Any,
    simulator: str,
    module: str,
    name: str | None = None,
    parameters: dict[str, Any] | None = None,
) -> None:
    """Convert `component` to Verilog, build it and run the cocotb benches of `module`.

    `parameters` reach the benches through `parameter`. Raises if a bench fails.
    """
    from amaranth.back import verilog
    from cocotb_tools.runner import get_results, get_runner

    from keyrail_sim.verilate import verilator_environment

    name = name or type(component).__name__.lower()
    os.environ.update(verilator_environment())
    os.environ["MAKEFLAGS"] += f" {OPTIMISATION}"
    text = verilog.convert(component, name=name, emit_src=False, strip_internal_attrs=True)
    if simulator == "icarus":
        # It runs always @* only after a change: give every block one at time zero.
        text = re.sub(r"(?m)^( *reg (\S*dump_module\S*) ) *= 0;$", r"\1;initial #0 \2 = 1;", text)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    build = BUILD / simulator / f"{name}-{digest}"
    build.mkdir(parents=True, exist_ok=True)
    # Two files of benches may have one block: the second waits until the first has run.
    with (build / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        source = build / f"{name}.v"
        source.write_text(text)
        runner = get_runner(simulator)
        arguments = ["-Wno-fatal", "-O3", "--x-initial", "0"] if simulator == "verilator" else []
        runtime = _runtime(simulator, arguments)
        for kept in runtime.glob("*.o"):
            # Newer than the makefile that Verilator is about to write, on which they depend.
            shutil.copyfile(kept, build / kept.name)
            os.utime(build / kept.name, (time.time() + 3600,) * 2)
        runner.build(
            sources=[source],
            hdl_toplevel=name,
            build_dir=build,
            build_args=arguments,
            timescale=("1ns", "1ps"),
            log_file=build / "build.log",
        )
        _keep_runtime(build, runtime)
        results = runner.test(
            hdl_toplevel=name,
            test_module=module,
            build_dir=build,
            test_dir=build,
            results_xml=str(build / f"results-{module}.xml"),
            log_file=build / f"{module}.log",
            extra_env={
                "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *map(str, _path())]),
                "KEYRAIL_SEED": str(SEED),
                "KEYRAIL_INPUTS": json.dumps(["clk", "rst", *_inputs(component)]),
                **{f"KEYRAIL_{k.upper()}": str(v) for k, v in (parameters or {}).items()},
            },
        )
    count, failed = get_results(results)
    log = (build / f"{module}.log").read_text()[-4000:]
    assert count > 0, f"{module} holds no bench\n{log}"
    assert failed == 0, f"{failed} of {count} benches failed\n{log}"


def _runtime(simulator: str, arguments: list[str]) -> Path:
    """Folder of the simulator's own objects, the same in every build with these arguments."""
    version = metadata.version("verilator") if simulator == "verilator" else ""
    described = repr((version, metadata.version("cocotb"), arguments))
    return BUILD / simulator / f"runtime-{hashlib.sha256(described.encode()).hexdigest()[:16]}"


def _keep_runtime(build: Path, runtime: Path) -> None:
    """Keep the objects of Verilator's library, which take most of a build's time to compile."""
    for made in build.glob("verilated*.o"):
        os.utime(made)
        kept = runtime / made.name
        if not kept.exists():
            runtime.mkdir(parents=True, exist_ok=True)
            # Renaming is atomic: two builds at once both end with a whole file.
            with tempfile.NamedTemporaryFile(dir=runtime, suffix=".new", delete=False) as new:
                new.write(made.read_bytes())
            Path(new.name).replace(kept)


def _inputs(component: Any) -> list[str]:
    from amaranth.lib.wiring import In

    return [
        "__".join(map(str, path))
        for path, member, _ in component.signature.flatten(component)
        if member.flow == In
    ]


def _path() -> Iterable[str]:
    import sys

    return [entry for entry in sys.path if entry]


def parameter(name: str, default: str = "") -> str:
    """A parameter that `run` handed to the benches."""
    return os.environ.get(f"KEYRAIL_{name.upper()}", default)


# -- driving and watching, in the simulator's process --------------------------------------------


def words(record: Record, values: Structured) -> list[int]:
    """Records as the integers that a stream's payload takes."""
    raw = pack(record, values).tobytes()
    size = record.bytes
    return [int.from_bytes(raw[i : i + size], "little") for i in range(0, len(raw), size)]


def structured(record: Record, payloads: list[int]) -> Structured:
    """Payload integers as a structured array; the reverse of `words`."""
    values = np.zeros(len(payloads), dtype(record))
    for field in record.fields:
        shift, mask = record.offset(field.name), (1 << field.bits) - 1
        values[field.name] = [payload >> shift & mask for payload in payloads]
    return values


def generator(*purpose: object) -> np.random.Generator:
    """A seeded generator for one bench; the seed is that of the whole run and the purpose."""
    text = repr((SEED, *purpose)).encode()
    return np.random.default_rng(int.from_bytes(hashlib.sha256(text).digest()[:8], "big"))


async def start(dut: Any) -> None:
    """Start the clock (10 ns) and reset the block; inputs that the bench did not set are 0."""
    import cocotb
    from cocotb.clock import Clock
    from cocotb.triggers import Timer

    # What the bench has set comes first; the rest is idle. Undefined inputs would make a
    # four-valued simulator doubt everything that follows.
    await Timer(1, "step")
    for name in json.loads(parameter("inputs")):
        signal = getattr(dut, name)
        if not signal.value.is_resolvable:
            signal.value = 0
    await Timer(1, "step")
    cocotb.start_soon(Clock(dut.clk, 10, unit="ns").start())
    await reset(dut)


async def reset(dut: Any, clocks: int = 2) -> None:
    """Hold reset for some clocks."""
    from cocotb.triggers import FallingEdge

    await FallingEdge(dut.clk)
    dut.rst.value = 1
    for _ in range(clocks):
        await FallingEdge(dut.clk)
    dut.rst.value = 0


class Source:
    """Drives a stream with random pauses; `valid` never waits for `ready`.

    Parameters
    ----------
    dut, name
        Block and stream.
    share
        Share of clocks in which a new payload is offered, 0 to 1.
    """

    def __init__(self, dut: Any, name: str, share: float = 1.0) -> None:
        self.valid = getattr(dut, f"{name}__valid")
        self.ready = getattr(dut, f"{name}__ready")
        self.payload = getattr(dut, f"{name}__payload", None)
        self.clk = dut.clk
        self.share = share
        self.random = random.Random(repr((SEED, name, share)))
        self.sent = 0

    async def send(self, payloads: Iterable[int]) -> None:
        """Send payloads, one after the other, until the last was taken."""
        from cocotb.triggers import FallingEdge, ReadOnly

        for payload in payloads:
            while self.random.random() >= self.share:
                await FallingEdge(self.clk)
            self.valid.value = 1
            if self.payload is not None:
                self.payload.value = payload
            for _ in range(LIMIT):
                await ReadOnly()
                taken = bool(self.ready.value)
                await FallingEdge(self.clk)
                if taken:
                    break
            else:
                raise AssertionError(f"a payload was not taken within {LIMIT} clocks")
            self.sent += 1
            self.valid.value = 0


class Sink:
    """Takes a stream with random back-pressure, and checks the rules of streams.

    Once `valid` is up it stays, with the same payload, until the transfer; otherwise the bench
    fails.

    Parameters
    ----------
    dut, name
        Block and stream.
    share
        Share of clocks in which it is ready, 0 to 1.
    """

    def __init__(self, dut: Any, name: str, share: float = 1.0) -> None:
        import cocotb

        self.valid = getattr(dut, f"{name}__valid")
        self.ready = getattr(dut, f"{name}__ready")
        self.payload = getattr(dut, f"{name}__payload")
        self.rst = dut.rst
        self.clk = dut.clk
        self.share = share
        self.random = random.Random(repr((SEED, name, share, "sink")))
        self.received: list[int] = []
        self.name = name
        self.idle = 0
        cocotb.start_soon(self._run())

    async def _run(self) -> None:
        from cocotb.triggers import FallingEdge, ReadOnly

        held: int | None = None
        while True:
            self.ready.value = int(self.random.random() < self.share)
            await ReadOnly()
            valid, ready = bool(self.valid.value), bool(self.ready.value)
            if bool(self.rst.value):
                held = None
            else:
                payload = int(self.payload.value) if valid else None
                assert held is None or payload == held, (
                    f"{self.name}: offer changed from {held:#x} to {payload} before its transfer"
                )
                held = payload if not ready else None
                self.idle = 0 if valid else self.idle + 1
                if valid and ready:
                    assert payload is not None
                    self.received.append(payload)
            await FallingEdge(self.clk)


async def until(dut: Any, condition: Callable[[], bool], limit: int = LIMIT) -> None:
    """Wait until `condition` holds; fails after `limit` clocks."""
    from cocotb.triggers import FallingEdge

    for _ in range(limit):
        if condition():
            return
        await FallingEdge(dut.clk)
    raise AssertionError(f"not done within {limit} clocks: {inspect.getsource(condition).strip()}")


async def settle(dut: Any, *sinks: Sink, quiet: int = 64, limit: int = LIMIT) -> None:
    """Wait until all sinks have seen nothing for `quiet` clocks."""
    for sink in sinks:
        sink.idle = 0
    await until(dut, lambda: all(sink.idle >= quiet for sink in sinks), limit)


async def full_rate(
    dut: Any, payloads: Iterable[int], behind: int, watch: Callable[[], None] = lambda: None
) -> list[int]:
    """Offer one payload after the other on ``i``, one a clock; the block may never make it wait.

    Parameters
    ----------
    dut
        Block, its settings in force.
    payloads
        Offered without a pause.
    behind
        Clocks in which its last records leave.
    watch
        Called in every clock.

    Returns
    -------
    list of int
        Payloads that left on ``o``, which is always ready.
    """
    from cocotb.triggers import FallingEdge, ReadOnly

    dut.o__ready.value = 1
    got = []
    for payload in [*payloads, *[None] * behind]:
        dut.i__valid.value = int(payload is not None)
        dut.i__payload.value = payload or 0
        await ReadOnly()
        assert dut.i__ready.value == 1, "the block made its input wait"
        if dut.o__valid.value:
            got.append(int(dut.o__payload.value))
        watch()
        await FallingEdge(dut.clk)
    return got


async def reset_in_mid_frame(dut: Any, before: Iterable[int], after: Iterable[int]) -> list[int]:
    """Start and reset the block with payloads under way and its output waiting, then send others.

    Returns
    -------
    list of int
        Payloads that left after the reset.
    """
    await start(dut)
    source, sink = Source(dut, "i"), Sink(dut, "o", 0.5)
    await source.send(before)
    await reset(dut)
    sink.received.clear()
    await source.send(after)
    await settle(dut, sink)
    return sink.received


def ledger(dut: Any, block: str, when: str = "live") -> dict[str, int]:
    """Counters of a block's ledger, read from its ``counts`` port (``live`` or ``at_frame``)."""
    from keyrail.contract import COUNTER_BITS, LEDGERS

    value = int(getattr(dut, f"counts__{when}").value)
    mask = (1 << COUNTER_BITS) - 1
    return {
        counter.name: value >> (COUNTER_BITS * index) & mask
        for index, counter in enumerate(LEDGERS[block][1])
    }
