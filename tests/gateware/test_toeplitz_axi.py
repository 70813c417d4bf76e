# SPDX-License-Identifier: Apache-2.0
"""The exported Toeplitz engine, driven by an independent AXI4-Stream library."""

import logging

import cocotb
import numpy as np
import pytest
from click.testing import CliRunner
from cocotb.triggers import FallingEdge

import bench
from bench import generator, until
from keyrail.cli import cli
from keyrail.contract import ToeplitzError
from keyrail.distil.toeplitz import Geometry, seed_bits, toeplitz_hash

COMMAND, N, M, FAMILY, TILE, PATIENCE, STATUS, INPUT_BITS, OUTPUT_BITS = range(9)
FAMILIES = ("plain", "modified")


async def write(dut, register, value):
    dut.register_address.value, dut.register_write_data.value = register, value
    dut.register_write.value = 1
    await FallingEdge(dut.clk)
    dut.register_write.value = 0


async def read(dut, register):
    dut.register_address.value = register
    await FallingEdge(dut.clk)
    return int(dut.register_read_data.value)


async def status(dut, mask, value):
    for _ in range(20_000):
        if await read(dut, STATUS) & mask == value:
            return
    raise AssertionError(f"status never was {value:#x}")


def streams(dut, rng):
    from cocotbext.axi import AxiStreamBus, AxiStreamSink, AxiStreamSource

    made = []
    for kind, name in (
        (AxiStreamSource, "s_axis_key"),
        (AxiStreamSource, "s_axis_seed"),
        (AxiStreamSink, "m_axis_output"),
    ):
        end = kind(AxiStreamBus.from_prefix(dut, name), dut.clk, dut.rst, byte_lanes=8)
        end.log.setLevel(logging.WARNING)
        pauses = rng.integers(0, 3, 1000) == 0
        end.set_pause_generator(bool(pause) for _ in iter(int, 1) for pause in pauses)
        made.append(end)
    return made


@cocotb.test()
async def bench_frames(dut):
    rng = generator("toeplitz axi")
    await bench.start(dut)
    key_source, seed_source, sink = streams(dut, rng)
    await status(dut, 1 << 18, 1 << 18)
    assert await read(dut, INPUT_BITS) == 1024
    assert await read(dut, OUTPUT_BITS) == 512
    for n, m, family in ((1024, 512, "plain"), (1000, 333, "modified"), (70, 65, "modified")):
        key = rng.integers(0, 2, n).astype(np.uint8)
        seed = rng.integers(0, 2, seed_bits(n, m, family)).astype(np.uint8)
        geometry = Geometry(n, m, family)
        await status(dut, 1 << 16, 1 << 16)
        for register, value in ((N, n), (M, m), (FAMILY, FAMILIES.index(family)), (COMMAND, 1)):
            await write(dut, register, value)
        assert await read(dut, N) == n
        await key_source.send(geometry.pack_key(key).astype("<u8").tobytes())
        await seed_source.send(geometry.pack_seed(seed).astype("<u8").tobytes())
        frame = await sink.recv()
        words = np.frombuffer(bytes(frame.tdata), "<u8")
        assert np.array_equal(geometry.unpack_output(words), toeplitz_hash(key, seed, m, family))
    # One word too few: named, no output, and it works again after the clear.
    await status(dut, 1 << 16, 1 << 16)
    await write(dut, COMMAND, 1)
    await key_source.send(bytes(8 * (geometry.key_words - 1)))
    await status(dut, 0xFFFF, 1 << ToeplitzError.KEY_SHORT)
    await until(dut, lambda: key_source.idle())
    assert sink.empty()
    await write(dut, COMMAND, 4)
    await status(dut, 0x1FFFF, 1 << 16)


@pytest.mark.parametrize("simulator", bench.simulators())
def test_toeplitz_axi(simulator):
    pytest.importorskip("cocotbext.axi")
    from keyrail_gateware.toeplitz_axi import ToeplitzAxi

    # The wrapper is what is tried, so the engine is the smallest to build.
    engine = ToeplitzAxi(1024, 512, width=64, splits=0, smallest=64)
    bench.run(engine, simulator, "test_toeplitz_axi")


def test_export(tmp_path):
    file = tmp_path / "toeplitz.v"
    sizes = ["--n", "4096", "--m", "1024", "--width", "64"]
    done = CliRunner().invoke(cli, ["verilog", "toeplitz", *sizes, str(file)])
    assert done.exit_code == 0, done.output
    text = file.read_text()
    assert "module keyrail_toeplitz(" in text
    for port in ("s_axis_key_tdata", "m_axis_output_tlast", "register_read_data"):
        assert port in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--width", "100"], "width 100: allowed are powers of two"),
        (["--n", "1000"], "allowed are powers of two"),
        (["--splits", "9"], "--splits"),
        (["--compact"], "compact: allowed with width 64 and no splits"),
    ],
)
def test_wrong_sizes_are_refused(tmp_path, arguments, said):
    file = tmp_path / "toeplitz.v"
    done = CliRunner().invoke(cli, ["verilog", "toeplitz", *arguments, str(file)])
    assert done.exit_code != 0
    assert said in done.output + str(done.exception)
    assert not file.exists()
