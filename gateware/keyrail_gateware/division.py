# SPDX-License-Identifier: CERN-OHL-W-2.0
"""The slotter's division, stage by stage, in operations that hardware and integers share.

Each function takes the operations to work with: `Fabric` makes Amaranth values of them, a proof
or a test passes integers (or a solver's) through the very same expressions. `keep` puts a
register round a value in the fabric; elsewhere it gives the value back.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from amaranth.hdl import Cat, Value

from keyrail.contract import PERIOD_FRACTION_BITS, PHASE_BITS, RECIPROCAL_FRACTION_BITS

__all__ = ["FULL", "Fabric", "Widths", "estimate", "product", "remainder"]

Keep = Callable[[Any, str], Any]
"""Called with a value and the name of its register."""


@dataclass(frozen=True)
class Widths:
    """Widths of the division.

    Parameters
    ----------
    limb
        Operands of the multipliers.
    whole, fraction
        Bits of the period's two parts.
    reciprocal_fraction
        The reciprocal is floor(2^this / P).
    quotient
        Bits of the quotient.
    """

    limb: int = 18
    whole: int = PHASE_BITS
    fraction: int = PERIOD_FRACTION_BITS
    reciprocal_fraction: int = RECIPROCAL_FRACTION_BITS
    quotient: int = 39

    @property
    def period(self) -> int:
        """Bits of the period."""
        return self.whole + self.fraction

    @property
    def reach(self) -> int:
        """Bits of a remainder below 2 P, less those of its lower half."""
        return self.period + 1 - 3 * self.limb


FULL = Widths()
"""As the slotter is built: 18-bit multipliers of the ECP5, period 20.44."""


class Fabric:
    """The operations on Amaranth values."""

    @staticmethod
    def low(value: Value, bits: int) -> Value:
        """Value modulo 2^bits."""
        return value[:bits]

    @staticmethod
    def high(value: Value, bits: int) -> Value:
        """Value over 2^bits, rounded down."""
        return value >> bits

    @staticmethod
    def up(value: Value, bits: int) -> Value:
        """Value times 2^bits."""
        return value << bits

    @staticmethod
    def join(low: Value, high: Value, bits: int) -> Value:
        """low + 2^bits high, for a low of so many bits."""
        return Cat(low[:bits], high)

    @staticmethod
    def negative(value: Value) -> Value:
        """1 where the value is below zero, else 0."""
        return value[-1]

    @staticmethod
    def times(left: Value, right: Value) -> Value:
        """Product of two limbs."""
        return left * right


def _limbs(ops: Any, value: Any, count: int, limb: int) -> list[Any]:
    return [ops.low(ops.high(value, n * limb), limb) for n in range(count)]


def estimate(ops: Any, keep: Keep, widths: Widths, total: Any, inverse: Any) -> Any:
    """Estimate floor(T / P) from the six higher of nine partial products; four stages.

    floor((T R - E) / 2^reciprocal_fraction), where E is what the three lowest partial products
    add, taken modulo 2^quotient.
    """
    limb = widths.limb
    t, r = _limbs(ops, total, 3, limb), _limbs(ops, inverse, 3, limb)
    p = {
        (a, b): keep(ops.times(t[a], r[b]), f"estimate_{a}_{b}")
        for a in range(3)
        for b in range(3)
        if a + b >= 2
    }
    s2 = keep(p[0, 2] + p[1, 1] + p[2, 0], "estimate_2")
    s3 = keep(p[1, 2] + p[2, 1], "estimate_3")
    s4 = keep(p[2, 2], "estimate_4")
    s23 = keep(s2 + ops.up(s3, limb), "estimate_23")
    s4 = keep(s4, "estimate_4_late")
    whole = ops.high(s23 + ops.up(s4, 2 * limb), widths.reciprocal_fraction - 2 * limb)
    return keep(ops.low(whole, widths.quotient), "quotient")


def product(ops: Any, keep: Keep, widths: Widths, quotient: Any, period: Any) -> tuple[Any, Any]:
    """Product of quotient and period, low part of three limbs and the rest; five stages."""
    limb = widths.limb
    a, b = _limbs(ops, quotient, 3, limb), _limbs(ops, period, 4, limb)
    p = {
        (i, j): keep(ops.times(a[i], b[j]), f"product_{i}_{j}") for i in range(3) for j in range(4)
    }
    d = []
    for weight in range(6):
        terms = [value for (i, j), value in p.items() if i + j == weight]
        d.append(keep(sum(terms[1:], start=terms[0]), f"product_{weight}"))
    e0, e2, e4 = (
        keep(d[n] + ops.up(d[n + 1], limb), f"product_{n}_{n + 1}") for n in range(0, 6, 2)
    )
    y = keep(ops.high(e0, 2 * limb) + e2, "product_middle")
    e0 = keep(ops.low(e0, 2 * limb), "product_bottom")
    e4 = keep(e4, "product_top")
    top = ops.high(y, 2 * limb) + e4
    low = keep(ops.join(e0, ops.low(y, limb), 2 * limb), "product_low")
    high = keep(ops.join(ops.low(ops.high(y, limb), limb), top, limb), "product_high")
    return low, high


def remainder(
    ops: Any, keep: Keep, widths: Widths, total: Any, fraction: Any, low: Any, high: Any
) -> tuple[Any, Any]:
    """x = (T + f) - q' P by halves, and 1 where it is outside 0 to 2^(period bits + 1).

    The first half has three limbs; a borrow passes from it to the second. Two stages to x, and one
    more to the bit that goes with it.
    """
    half = 3 * widths.limb
    part = half - widths.fraction
    below = keep(ops.join(fraction, ops.low(total, part), widths.fraction) - low, "rest_low")
    above = keep(ops.high(total, part) - high, "rest_high")
    borrowed = above - ops.negative(below)
    x = keep(ops.join(ops.low(below, half), ops.low(borrowed, widths.reach), half), "rest")
    beyond = keep(ops.high(borrowed, widths.reach), "rest_beyond")
    over = keep(beyond != 0, "over")
    return x, over
