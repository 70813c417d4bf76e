# SPDX-License-Identifier: CERN-OHL-W-2.0
"""Product of a held Toeplitz matrix and a vector, one vector a clock: the core of the hash."""

from amaranth.hdl import Cat, Module, Signal, Value, ValueLike
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

__all__ = [
    "ToeplitzProduct",
    "diagonal_parts",
    "joined",
    "register_copies",
    "vector_parts",
]


def vector_parts(x: Value, levels: int) -> list[Value]:
    """Vectors of the 3^levels products that a product is split in."""
    if not levels:
        return [x]
    half = len(x) // 2
    parts = (x[:half] ^ x[half:], x[:half], x[half:])
    return [part for one in parts for part in vector_parts(one, levels - 1)]


def diagonal_parts(t: Value, levels: int) -> list[Value]:
    """Diagonals of the 3^levels products that a product is split in."""
    if not levels:
        return [t]
    width = (len(t) + 1) // 2
    on = t[width // 2 : width // 2 + width - 1]
    parts = (on, on ^ t[width:], on ^ t[: width - 1])
    return [part for one in parts for part in diagonal_parts(one, levels - 1)]


def joined(products: list[Value], levels: int) -> Value:
    """The product, of the 3^levels that it was split in."""
    if not levels:
        return products[0]
    third = len(products) // 3
    middle, lower, upper = (
        joined(products[i * third : (i + 1) * third], levels - 1) for i in range(3)
    )
    return Cat(middle ^ upper, middle ^ lower)


def _exponent(width: int, smallest: int) -> int:
    """Levels of splitting from one size to the other."""
    return max(0, (width // smallest).bit_length() - 1)


class RegisterCopy(wiring.Component):
    """A register of its own, whatever others hold the same: it keeps the fan-out small.

    Latency: one clock. Synthesis must not merge modules of this name.

    Parameters
    ----------
    bits
        Width of ``i`` and ``o``.
    """

    def __init__(self, bits: int = 1):
        super().__init__({"i": In(bits), "o": Out(bits)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        copy = Signal(len(self.o), reset_less=True)
        m.d.sync += copy.eq(self.i)
        m.d.comb += self.o.eq(copy)
        return m


def register_copies(m: Module, name: str, value: ValueLike, count: int) -> list[Value]:
    """The value one clock later, in a `RegisterCopy` for each of so many places."""
    made: list[Value] = []
    for i in range(count):
        copy = RegisterCopy(len(Value.cast(value)))
        m.submodules[f"{name}_register_copy_{i}"] = copy
        m.d.comb += copy.i.eq(value)
        made.append(copy.o)
    return made


class ToeplitzSums(wiring.Component):
    """Diagonals of all smallest products, of the diagonals of a product.

    Latency: one clock for every two levels or part of them. Throughput: one a clock.

    Members
    -------
    t
        Diagonals, 2 width - 1 bits.
    o
        3^k times 2 smallest - 1 bits, k = log2(width / smallest).
    """

    def __init__(self, width: int, smallest: int):
        self._levels = _exponent(width, smallest)
        super().__init__({"t": In(2 * width - 1), "o": Out(3**self._levels * (2 * smallest - 1))})

    @property
    def latency(self) -> int:
        """Clocks from t to o."""
        return -(-self._levels // 2)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        parts, left = [self.t], self._levels
        while left:
            step = min(2, left)
            sums = [part for one in parts for part in diagonal_parts(one, step)]
            bits = sum(len(one) for one in sums)
            registers = Signal(bits, name=f"sums_{left}", reset_less=True)
            m.d.sync += registers.eq(Cat(sums))
            size = len(sums[0])
            parts = [registers[i * size : (i + 1) * size] for i in range(len(sums))]
            left -= step
        m.d.comb += self.o.eq(Cat(parts))
        return m


class SmallestProduct(wiring.Component):
    """Product that is multiplied out, its diagonals held twice: in use, and for the next swap.

    Latency: 1 clock from x to y; a swap serves the x of the next clock.
    """

    def __init__(self, width: int):
        self._width = width
        self.loads = 1
        super().__init__(
            {
                "t": In(2 * width - 1),
                "load": In(1),
                "swap": In(1),
                "x": In(width),
                "y": Out(width),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        width, x = self._width, self.x
        following = Signal(2 * width - 1, reset_less=True)
        held = Signal(2 * width - 1, reset_less=True)
        with m.If(self.load):
            m.d.sync += following.eq(self.t)
        with m.If(self.swap):
            m.d.sync += held.eq(following)
        terms = [
            held[width - 1 - c : 2 * width - 1 - c] & x[c].replicate(width) for c in range(width)
        ]
        # A tree, so that pairs of terms share a look-up table.
        while len(terms) > 1:
            terms = [
                terms[i] ^ terms[i + 1] if i + 1 < len(terms) else terms[i]
                for i in range(0, len(terms), 2)
            ]
        product = Signal(width, reset_less=True)
        m.d.sync += product.eq(terms[0])
        m.d.comb += self.y.eq(product)
        return m


class _Split(wiring.Component):
    """A product split one or two levels at once, with registers before and after the parts.

    Compact, without those before them.
    """

    def __init__(self, width: int, smallest: int, compact: bool):
        self._width, self._smallest, self._compact = width, smallest, compact
        self._step = min(2, _exponent(width, smallest))
        self.leaves = 3 ** _exponent(width, smallest)
        # Registers of its own for each part, to load it.
        self.loads = 1 if compact else 3**self._step
        super().__init__(
            {
                "t": In(self.leaves * (2 * smallest - 1)),
                "load": In(self.loads),
                "swap": In(1),
                "x": In(width),
                "y": Out(width),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        sizes = self._width, self._smallest
        products, whole = _parts(m, self, *sizes, [self._step], self._compact)
        share = len(self.t) // len(products)
        for i, product in enumerate(products):
            m.d.comb += [
                product.t.eq(self.t[i * share : (i + 1) * share]),
                product.load.eq(self.load[i % self.loads].replicate(len(product.load))),
            ]
        m.d.comb += self.y.eq(whole)
        return m


def _parts(
    m: Module,
    product: wiring.Component,
    width: int,
    smallest: int,
    steps: list[int],
    compact: bool,
) -> tuple[list["SmallestProduct | _Split"], Signal]:
    """The products that a product is split in, between registers for each step, and the whole.

    A step is a number of levels. Compact, there are registers behind the products alone.
    """
    swap, vectors = product.swap, [product.x]
    for stage, step in enumerate(steps):
        terms = [part for one in vectors for part in vector_parts(one, step)]
        if compact:
            vectors = terms
            continue
        m.submodules[f"register_copy_{stage}"] = copy = RegisterCopy()
        m.d.comb += copy.i.eq(swap)
        swap = copy.o
        vectors = []
        for i, one in enumerate(terms):
            vectors.append(Signal(len(one), name=f"vector_{stage}_{i}", reset_less=True))
            m.d.sync += vectors[-1].eq(one)
    parts: list[SmallestProduct | _Split] = []
    for i, vector in enumerate(vectors):
        m.submodules[f"part_{i}"] = part = _product(width >> sum(steps), smallest, compact)
        m.d.comb += [part.x.eq(vector), part.swap.eq(swap)]
        parts.append(part)
    products: list[Value] = [part.y for part in parts]
    for stage, step in reversed(list(enumerate(steps))):
        group = 3**step
        wholes = []
        for i in range(len(products) // group):
            one = joined(products[i * group : (i + 1) * group], step)
            wholes.append(Signal(len(one), name=f"whole_{stage}_{i}", reset_less=True))
            m.d.sync += wholes[-1].eq(one)
        products = [*wholes]
    return parts, wholes[0]


def _product(width: int, smallest: int, compact: bool) -> SmallestProduct | _Split:
    return SmallestProduct(width) if width <= smallest else _Split(width, smallest, compact)


class ToeplitzProduct(wiring.Component):
    """Product of a square Toeplitz matrix that is held and a vector over GF(2), every clock.

    y[r] = XOR over c of t[r - c + width - 1] x[c]. Split in two, with T1, T0 and T-1 the blocks
    below, on and above the diagonal (Fan and Hasan, IEEE Trans. Computers 56(2), 2007), three
    half-size products serve for four::

        P2 = T0 (x0 + x1)    P1 = (T0 + T1) x0    P0 = (T0 + T-1) x1
        y0 = P2 + P0         y1 = P2 + P1

    and so on down to ``smallest``, which is multiplied out. Two levels are taken at once, so that
    the four terms that make a bit of y meet in one look-up table.

    The matrix stays for many vectors, so the sums of its diagonals are made one part after the
    other by one small circuit, and held twice: loading the next matrix takes `loading` clocks
    beside the products, and ``swap`` puts it in use.

    Reset leaves vectors and matrix as they are: they serve no one until others are taken in.

    Latency: `latency` clocks from x to y. Throughput: one product a clock.

    Parameters
    ----------
    width
        Rows and columns, a power of two.
    smallest
        Size of the products that are not split any more, a power of two.
    compact
        Leave out the registers before the parts, for parts with few logic cells and a slow clock.

    Members
    -------
    t
        Values by diagonal r - c from 1 - width up, 2 width - 1 bits; stable for `held` clocks
        after ``load``.
    load
        1: begin to take ``t`` in. Not while it is being taken in.
    swap
        1: the matrix taken in last serves the vectors from the next clock on.
    x, y
        Vectors of ``width`` bits.
    """

    def __init__(self, width: int = 64, smallest: int = 8, *, compact: bool = False):
        for size in (width, smallest):
            if size < 1 or size & (size - 1):
                raise ValueError(f"{width} and {smallest}: allowed are powers of two")
        self._width, self._smallest = width, min(width, smallest)
        self._compact = compact
        self._levels = _exponent(width, smallest)
        self._step = min(2, self._levels)
        # The more parts a matrix is taken in by, the fewer wires go to all of them, but the longer
        # it takes; a small core has no long wires.
        self._large = self._levels > 4 and not compact
        self._load_step = 3 if self._large else self._step
        # Registers that the sums pass on their way to the parts: how many at each stage.
        self._way = [3, 3, 9] if self._large else []
        self._steps = [1, 1] if self._large else [self._step]
        self._sums = ToeplitzSums(width >> self._load_step, self._smallest)
        super().__init__(
            {
                "t": In(2 * width - 1),
                "load": In(1),
                "swap": In(1),
                "x": In(width),
                "y": Out(width),
            }
        )

    @property
    def splits(self) -> int:
        """Stages of splitting, of one or two levels each."""
        return -(-self._levels // 2)

    @property
    def latency(self) -> int:
        """Clocks from x to y."""
        return self.splits + 1 if self._compact else 2 * (self.splits + self._large) + 1

    @property
    def swapping(self) -> int:
        """Clocks from ``swap`` until the matrix taken in last may be overwritten."""
        return 1 if self._compact else self.splits + self._large + 1

    @property
    def held(self) -> int:
        """Clocks from ``load`` for which ``t`` must be stable."""
        return 3**self._load_step + 1

    @property
    def first_load(self) -> int:
        """Clocks from ``load`` until the first part is overwritten."""
        return 1 + self._load_step + self._sums.latency + len(self._way)

    @property
    def loading(self) -> int:
        """Clocks from ``load`` until the matrix is taken in."""
        return self.first_load + 3**self._load_step

    def elaborate(self, platform: object) -> Module:
        m = Module()
        step, size, count = self._load_step, self._width >> self._step, 3**self._load_step
        m.submodules.sums = sums = self._sums

        # Parts are taken one after the other: which, as one bit each, level by level.
        # The last of them marks the part that is taken in this clock, those before it the parts of
        # the clocks to come; the first part comes from neither side, so nobody asks for it ahead.
        parts = Signal(count, reset_less=True)
        first = Cat(self.load, parts)[:count]
        track = [Cat(0, first)[:count], first, parts]
        m.d.sync += parts.eq(first)
        former = self.t
        for level in range(step):
            choices = diagonal_parts(former, 1)
            width = (len(former) + 1) // 2
            group = count // 3 ** (level + 1)
            index = range(count)
            # Found two clocks before, then in registers of their own for every 64 bits.
            choosing = []
            for name, third in (("below", 1), ("above", 2)):
                bit = Signal(name=f"{name}_{level}", reset_less=True)
                members = Cat(track[-3][i] for i in index if i // group % 3 == third)
                m.d.sync += bit.eq(members.any())
                made = register_copies(m, f"{name}_{level}", bit, -(-width // 64))
                choosing.append(Cat(one.replicate(64) for one in made)[: width - 1])
            diagonals = Signal(width - 1, name=f"diagonals_{level}", reset_less=True)
            m.d.sync += diagonals.eq(
                choices[0] ^ (former[width:] & choosing[0]) ^ (former[: width - 1] & choosing[1])
            )
            track.append(Signal(count, name=f"chosen_{level}", reset_less=True))
            m.d.sync += track[-1].eq(track[-2])
            former = diagonals
        m.d.comb += sums.t.eq(former)
        for i in range(sums.latency + len(self._way)):
            track.append(Signal(count, name=f"summed_{i}", reset_less=True))
            m.d.sync += track[-1].eq(track[-2])

        if self._step:
            sizes = self._width, self._smallest
            products, whole = _parts(m, self, *sizes, self._steps, self._compact)
            m.d.comb += self.y.eq(whole)
        else:
            m.submodules.part_0 = product = _product(size, self._smallest, self._compact)
            m.d.comb += [product.x.eq(self.x), product.swap.eq(self.swap), self.y.eq(product.y)]
            products = [product]
        # On their way the sums pass registers for each third of the core, then for each part.
        ways: list[Value] = [sums.o]
        for i, number in enumerate(self._way):
            following: list[Value] = []
            for j in range(number):
                m.submodules[f"sums_{i}_register_copy_{j}"] = copy = RegisterCopy(len(sums.o))
                m.d.comb += copy.i.eq(ways[j * len(ways) // number])
                following.append(copy.o)
            ways = following
        # A part of the core takes its share of the matrix in by `turns` parts of the loading, each
        # of which serves as many of the parts that it is split in.
        turns = count // len(products)
        for i, product in enumerate(products):
            m.d.comb += product.t.eq(ways[i * len(ways) // len(products)].replicate(turns))
            if self._compact:
                chosen = track[-1][i * turns : (i + 1) * turns]
                m.d.comb += product.load.eq(chosen)
                continue
            for j in range(product.loads):
                m.submodules[f"load_{i}_register_copy_{j}"] = one = RegisterCopy()
                m.d.comb += [
                    one.i.eq(track[-2][i * turns + j * turns // product.loads]),
                    product.load[j].eq(one.o),
                ]
        return m
