# SPDX-License-Identifier: Apache-2.0
"""The slotter's division: each stage proven by an SMT solver, the whole at small widths.

The proofs run over the gateware's own expressions (`keyrail_gateware.division`), with integers of
any size in place of signals: no expression of the fabric cuts a value but where it says so. The
products of limbs are free variables, so that every stage is linear.
"""

import itertools

import numpy as np
import pytest
import z3

from keyrail.contract import PERIOD_MINIMUM_PS, TIME_BITS, reciprocal
from keyrail_gateware.division import FULL, Widths, estimate, product, remainder

LIMB = 1 << FULL.limb
ONE = 1 << FULL.fraction
LEAST_PERIOD = (PERIOD_MINIMUM_PS - 1) * ONE
"""The loop may go a thousandth below the shortest period."""


class Integers:
    """Python's integers and numpy's."""

    low = staticmethod(lambda value, bits: value % (1 << bits))
    high = staticmethod(lambda value, bits: value // (1 << bits))
    up = staticmethod(lambda value, bits: value * (1 << bits))
    join = staticmethod(lambda low, high, bits: low + high * (1 << bits))
    negative = staticmethod(lambda value: (value < 0) * 1)
    times = staticmethod(lambda left, right: left * right)


class Terms(Integers):
    """Integer terms of the solver; products of limbs are free variables in their bounds."""

    def __init__(self) -> None:
        self.products: list[z3.ArithRef] = []

    high = staticmethod(lambda value, bits: value / (1 << bits))
    negative = staticmethod(lambda value: z3.If(value < 0, 1, 0))

    def times(self, left, right):
        self.products.append(z3.Int(f"p{len(self.products)}"))
        return self.products[-1]

    def bounds(self):
        return z3.And(*(z3.And(p >= 0, p <= (LIMB - 1) ** 2) for p in self.products))


def keep(value, name):
    return value


def prove(claim, *assumed):
    solver = z3.Solver()
    solver.set("timeout", 60_000)
    solver.add(*assumed, z3.Not(claim))
    assert solver.check() == z3.unsat, solver


def weighted(products, pairs):
    return sum(
        (p * LIMB ** (i + j) for p, (i, j) in zip(products, pairs, strict=True)), start=z3.IntVal(0)
    )


def test_sum_of_the_estimate():
    ops, t, r = Terms(), z3.Int("t"), z3.Int("r")
    quotient = estimate(ops, keep, FULL, t, r)
    pairs = [(a, b) for a in range(3) for b in range(3) if a + b >= 2]
    kept = weighted(ops.products, pairs)
    whole = kept / (1 << FULL.reciprocal_fraction)
    prove(quotient == whole % (1 << FULL.quotient), ops.bounds())


def test_sum_of_the_product():
    ops, q, p = Terms(), z3.Int("q"), z3.Int("p")
    low, high = product(ops, keep, FULL, q, p)
    every = weighted(ops.products, itertools.product(range(3), range(4)))
    half = LIMB**3
    prove(z3.And(low >= 0, low < half, low + half * high == every), ops.bounds())


def test_limbs_make_the_product():
    t, r = z3.Ints("t0 t1 t2"), z3.Ints("r0 r1 r2 r3")
    value = sum(x * LIMB**n for n, x in enumerate(t)) * sum(x * LIMB**n for n, x in enumerate(r))
    terms = sum(t[i] * r[j] * LIMB ** (i + j) for i in range(3) for j in range(4))
    assert z3.simplify(value - terms, som=True).eq(z3.IntVal(0))
    for count in (3, 4):
        number = z3.Int("number")
        limbs = [number / LIMB**n % LIMB for n in range(count)]
        total = sum(x * LIMB**n for n, x in enumerate(limbs))
        prove(total == number, number >= 0, number < LIMB**count)


def test_the_estimate_is_right_or_one_too_low():
    """0 <= x < 2 P: with each product a variable, and what multiplying an inequality gives."""
    total, fraction, period, lost = z3.Ints("T f P E")
    quotient = z3.Int("q")
    names = "TP TRP qP EP"
    total_period, total_inverse_period, quotient_period, lost_period = z3.Ints(names)
    numerator, unit = 1 << (FULL.reciprocal_fraction + FULL.fraction), 1 << FULL.reciprocal_fraction
    lost_most = (LIMB - 1) ** 2 * (1 + 2 * LIMB)
    assumed = [
        total >= 0,
        total < 1 << TIME_BITS,
        fraction >= 0,
        fraction < ONE,
        period >= LEAST_PERIOD,
        period < 1 << FULL.period,
        lost >= 0,
        lost <= lost_most,
        # numerator - P < R P <= numerator, times T
        total_inverse_period >= total * numerator - total_period,
        total_inverse_period <= total * numerator,
        total_period <= (1 << TIME_BITS) * period,
        # q 2^57 <= T R - E < (q + 1) 2^57, times P
        quotient_period * unit <= total_inverse_period - lost_period,
        total_inverse_period - lost_period < quotient_period * unit + unit * period,
        lost_period >= 0,
        lost_period <= lost_most * period,
    ]
    x = total * ONE + fraction - quotient_period
    prove(z3.And(x >= 0, x < 2 * period), *assumed)
    # The quotient fits its register: if it did not, q P would be this large.
    too_large = quotient_period >= (1 << FULL.quotient) * period
    prove(z3.Not(too_large), *assumed, quotient >= 0)
    # What the products above rest on.
    a, b, c = z3.Ints("a b c")
    prove(c * a <= c * b, c >= 0, a <= b)


def test_remainder_in_halves():
    total, fraction, low, high = z3.Ints("T f low high")
    half = LIMB**3
    x, over = remainder(Terms(), keep, FULL, total, fraction, low, high)
    exact = total * ONE + fraction - (low + half * high)
    limit = half << FULL.reach
    prove(
        z3.If(z3.And(exact >= 0, exact < limit), z3.And(z3.Not(over), x == exact), over),
        total >= 0,
        total < 1 << TIME_BITS,
        fraction >= 0,
        fraction < ONE,
        low >= 0,
        low < half,
        high >= 0,
    )
    assert limit >= 2 << FULL.period


def test_last_step_and_any_base():
    """One subtraction ends the division, and a base that is exact leaves no trace."""
    x, period, quotient_period, total = z3.Ints("x P qP total")
    more = z3.If(x - period >= 0, 1, 0)
    rest = z3.If(x - period >= 0, x - period, x)
    prove(
        z3.And(quotient_period + more * period + rest == total, rest >= 0, rest < period),
        period > 0,
        x >= 0,
        x < 2 * period,
        x == total - quotient_period,
    )
    time, base_time, base_slot_period, base_rest, slots = z3.Ints("t tb kbP rb qP")
    prove(
        time == base_slot_period + slots + rest,
        base_time == base_slot_period + base_rest,
        (time - base_time) + base_rest == slots + rest,
    )


SMALL = [
    Widths(limb=3, whole=5, fraction=5, reciprocal_fraction=12, quotient=8),
    Widths(limb=3, whole=6, fraction=3, reciprocal_fraction=12, quotient=7),
    Widths(limb=2, whole=5, fraction=3, reciprocal_fraction=9, quotient=5),
]


@pytest.mark.parametrize("widths", SMALL)
def test_exhaustively_at_small_widths(widths):
    """Every period, time and remainder: the quotient and remainder of Python's integers."""
    one = 1 << widths.fraction
    # As at full width, where T / 2^reciprocal_fraction and 1 / P are small.
    totals = np.arange(1 << (widths.reciprocal_fraction - 4))[:, None]
    fractions = np.arange(one)[None, :]
    count = 0
    for period in range(1 << (widths.period - 1), 1 << widths.period):
        inverse = (one << widths.reciprocal_fraction) // period
        quotient = estimate(Integers, keep, widths, totals, inverse)
        low, high = product(Integers, keep, widths, quotient, period)
        x, over = remainder(Integers, keep, widths, totals, fractions, low, high)
        assert not over.any()
        assert (x < 2 * period).all()
        more = (x >= period) * 1
        exact, rest = np.divmod(totals * one + fractions, period)
        assert np.array_equal(quotient + more, exact)
        assert np.array_equal(x - more * period, rest)
        count += x.size
    assert count > 1_000


def test_a_missing_partial_product_would_be_found():
    """The bound is no formality: without one product more the estimate is too low."""
    widths = SMALL[0]

    class Short(Integers):
        calls = 0

        @classmethod
        def times(cls, left, right):
            cls.calls += 1
            return left * right * (cls.calls != 3)

    totals = np.arange(256)
    quotient = estimate(Short, keep, widths, totals, (32 << 12) // 600)
    assert (totals * 32 - quotient * 600).max() >= 1200


def test_full_width_against_python():
    rng = np.random.default_rng(7)
    for _ in range(2_000):
        whole = int(2 ** rng.uniform(np.log2(800), np.log2(999_999)))
        period = whole * ONE + int(rng.integers(0, ONE))
        total = int(2 ** rng.uniform(0, 48)) - 1
        fraction = int(rng.integers(0, ONE))
        if rng.random() < 0.5:  # at a boundary of slots
            slot = total * ONE // period
            total, fraction = divmod(slot * period + int(rng.integers(-1, 2)), ONE)
            total, fraction = (total, fraction) if total >= 0 else (0, 0)
        quotient = estimate(Integers, keep, FULL, total, reciprocal(period))
        low, high = product(Integers, keep, FULL, quotient, period)
        x, over = remainder(Integers, keep, FULL, total, fraction, low, high)
        assert not over
        more = x >= period
        assert (quotient + more, x - more * period) == divmod(total * ONE + fraction, period)
