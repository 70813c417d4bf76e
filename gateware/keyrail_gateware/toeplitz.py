# SPDX-License-Identifier: CERN-OHL-W-2.0
"""Privacy amplification: the Toeplitz hash of a key, all memory on the chip."""

from amaranth.hdl import Array, Cat, Module, Mux, Signal
from amaranth.lib import enum, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

__all__ = ["Toeplitz", "ToeplitzProduct", "ToeplitzState"]

WORD = 64
"""Bits of a word of the engine."""


class ToeplitzProduct(wiring.Component):
    """Product of a square Toeplitz matrix and a vector over GF(2), every clock.

    y[r] = XOR over c of t[r - c + width - 1] x[c]. Split in two, with T1, T0 and T-1 the blocks
    below, on and above the diagonal (Fan and Hasan, IEEE Trans. Computers 56(2), 2007), three
    half-size products serve for four::

        P2 = T0 (x0 + x1)    P1 = (T0 + T1) x0    P0 = (T0 + T-1) x1
        y0 = P2 + P0         y1 = P2 + P1

    and so on down to ``smallest``, which is multiplied out.

    Latency: 2 k + 1 clocks, k = log2(width / smallest). Throughput: one product a clock.

    Parameters
    ----------
    width
        Rows and columns, a power of two.
    smallest
        Size of the products that are not split any more, a power of two.

    Members
    -------
    t
        Values by diagonal r - c from 1 - width up, 2 width - 1 bits.
    x, y
        Vectors of ``width`` bits.
    """

    def __init__(self, width: int = WORD, smallest: int = 8):
        if width < 1 or width & (width - 1) or smallest < 1 or smallest & (smallest - 1):
            raise ValueError(f"{width} and {smallest}: allowed are powers of two")
        self._width, self._smallest = width, smallest
        super().__init__({"t": In(2 * width - 1), "x": In(width), "y": Out(width)})

    @property
    def latency(self) -> int:
        """Clocks from t and x to y."""
        splits, width = 0, self._width
        while width > self._smallest:
            splits, width = splits + 1, width // 2
        return 2 * splits + 1

    def elaborate(self, platform: object) -> Module:
        m = Module()
        width, t, x = self._width, self.t, self.x
        if width <= self._smallest:
            terms = [
                t[width - 1 - c : 2 * width - 1 - c] & x[c].replicate(width) for c in range(width)
            ]
            total = terms[0]
            for term in terms[1:]:
                total = total ^ term
            m.d.sync += self.y.eq(total)
            return m
        half = width // 2
        products = [ToeplitzProduct(half, self._smallest) for _ in range(3)]
        m.submodules.upper, m.submodules.lower, m.submodules.middle = products
        upper, lower, middle = products
        above, on, below = t[: width - 1], t[half : half + width - 1], t[width:]
        m.d.sync += [
            upper.t.eq(on ^ above),
            upper.x.eq(x[half:]),
            lower.t.eq(on ^ below),
            lower.x.eq(x[:half]),
            middle.t.eq(on),
            middle.x.eq(x[:half] ^ x[half:]),
            self.y.eq(Cat(middle.y ^ upper.y, middle.y ^ lower.y)),
        ]
        return m


class ToeplitzState(enum.Enum, shape=3):
    """What the engine is doing."""

    WIPE = 0
    IDLE = 1
    LOAD = 2
    RUN = 3


class Toeplitz(wiring.Component):
    """Hash one key with one seed.

    After ``start``, the key's and the seed's words are taken in, in the order and number of
    `keyrail.distil.toeplitz.Geometry`, and the output's words given, the last one masked to m
    bits. Then key and seed are overwritten: a seed serves one hash.

    The matrix is walked along rows of 64 x 64 blocks, one block a clock: neighbouring blocks of a
    row share a word of the seed. With c ``columns`` and r ``rows``, a row takes c + 1 clocks, and
    a hash

        r (c + 1) + `LATENCY`

    clocks from the last word in to the last word out, provided that the output is taken at once
    and c is 4 or more. Throughput: 64 x 64 bits of the matrix a clock.

    Wiping, on command, after reset and after each hash, overwrites every word of the three
    memories and every register that held a bit of key, seed or sum.

    Parameters
    ----------
    input_bits, output_bits
        Largest n and m, multiples of 64.
    smallest
        Size of the products that are not split any more.

    Members
    -------
    key, seed, o
        Streams of 64-bit words.
    n, m
        Input and output bits of the next hash, 32 bits each.
    family
        1: modified; 0: plain.
    start
        1: begin, with the present n, m and family.
    wipe
        1: give up what is under way and overwrite everything.
    clear
        1: clear ``error``.
    state
        `ToeplitzState`.
    busy
        1 from start to the end of the wipe after the hash, and while wiping.
    working
        The same but for the time in which words are awaited.
    wiped
        1 while memories and registers are overwritten and nothing has been taken in since.
    error
        8 bits, sticky: bit 0, n or m out of range; bit 1, start while busy. Neither starts a hash.
    """

    def __init__(self, input_bits: int = 1 << 18, output_bits: int = 1 << 17, smallest: int = 8):
        if input_bits % WORD or output_bits % WORD or not 0 < output_bits <= input_bits:
            raise ValueError(
                f"{input_bits} input and {output_bits} output bits: allowed are multiples of 64, "
                "output at most input"
            )
        self._input_bits, self._output_bits = input_bits, output_bits
        self._smallest = smallest
        super().__init__(
            {
                "key": In(stream.Signature(WORD)),
                "seed": In(stream.Signature(WORD)),
                "o": Out(stream.Signature(WORD)),
                "n": In(32),
                "m": In(32),
                "family": In(1),
                "start": In(1),
                "wipe": In(1),
                "clear": In(1),
                "state": Out(ToeplitzState),
                "busy": Out(1),
                "working": Out(1),
                "wiped": Out(1),
                "error": Out(8),
            }
        )

    LATENCY = 10
    """Clocks of a hash beyond those of its rows, with the default ``smallest`` of 8."""
    QUEUE = 4
    """Output words that may be under way or wait to be taken."""

    def elaborate(self, platform: object) -> Module:
        m = Module()
        most_columns, most_rows = self._input_bits // WORD, self._output_bits // WORD
        depths = {"key": most_columns, "identity": most_rows, "seed": most_columns + most_rows}
        ports = {}
        for name, depth in depths.items():
            m.submodules[f"{name}_memory"] = memory = Memory(shape=WORD, depth=depth, init=[])
            ports[name] = (memory.write_port(), memory.read_port())
        write = {name: port[0] for name, port in ports.items()}
        read = {name: port[1] for name, port in ports.items()}
        m.submodules.product = product = ToeplitzProduct(WORD, self._smallest)

        state = self.state
        deepest = max(depths.values())
        sweep = Signal(range(deepest + 64))
        columns = Signal(range(most_columns + 1))
        rows = Signal(range(most_rows + 1))
        modified, last_bits = Signal(), Signal(6)
        m.d.comb += [
            self.busy.eq(state != ToeplitzState.IDLE),
            self.working.eq((state == ToeplitzState.WIPE) | (state == ToeplitzState.RUN)),
        ]

        # -- start -------------------------------------------------------------------------
        fits, toeplitz_bits = Signal(), Signal(32)
        m.d.comb += [
            fits.eq(
                (self.m >= 1)
                & (self.m <= self.n)
                & (self.n <= self._input_bits)
                & (self.m <= self._output_bits)
            ),
            toeplitz_bits.eq(self.n - Mux(self.family, self.m, 0)),
        ]
        with m.If(self.clear):
            m.d.sync += self.error.eq(0)
        with m.If(self.start):
            with m.If(state != ToeplitzState.IDLE):
                m.d.sync += self.error[1].eq(1)
            with m.Elif(~fits):
                m.d.sync += self.error[0].eq(1)

        # -- words in ----------------------------------------------------------------------
        key_taken, seed_taken = (
            Signal(range(most_columns + most_rows + 1)),
            Signal(range(most_columns + most_rows + 1)),
        )
        key_words, seed_words = Signal.like(key_taken), Signal.like(seed_taken)
        in_identity = Signal()
        m.d.comb += [
            key_words.eq(columns + Mux(modified, rows, 0)),
            seed_words.eq(columns + rows),
            in_identity.eq(key_taken >= columns),
            self.key.ready.eq((state == ToeplitzState.LOAD) & (key_taken != key_words)),
            self.seed.ready.eq((state == ToeplitzState.LOAD) & (seed_taken != seed_words)),
            write["key"].addr.eq(key_taken),
            write["key"].data.eq(self.key.payload),
            write["key"].en.eq(self.key.valid & self.key.ready & ~in_identity),
            write["identity"].addr.eq(key_taken - columns),
            write["identity"].data.eq(self.key.payload),
            write["identity"].en.eq(self.key.valid & self.key.ready & in_identity),
            write["seed"].addr.eq(seed_taken),
            write["seed"].data.eq(self.seed.payload),
            write["seed"].en.eq(self.seed.valid & self.seed.ready),
        ]
        with m.If(self.key.valid & self.key.ready):
            m.d.sync += key_taken.eq(key_taken + 1)
        with m.If(self.seed.valid & self.seed.ready):
            m.d.sync += seed_taken.eq(seed_taken + 1)

        # -- rows: step 0 fetches the first seed word, steps 1 to columns one block each -----
        row, step = Signal(range(most_rows + 1)), Signal(range(most_columns + 2))
        credit = Signal(range(self.QUEUE + 1))
        begins, issues, takes = Signal(), Signal(), Signal()
        m.d.comb += [
            begins.eq((state == ToeplitzState.RUN) & (row != rows) & (step == 0) & (credit != 0)),
            issues.eq((state == ToeplitzState.RUN) & (begins | (step != 0))),
            takes.eq(self.o.valid & self.o.ready),
            read["seed"].addr.eq(row + columns - step),
            read["seed"].en.eq(issues),
            read["key"].addr.eq(step - 1),
            read["key"].en.eq(issues),
        ]
        m.d.sync += credit.eq(credit - begins + takes)
        with m.If(issues):
            m.d.sync += step.eq(step + 1)
            with m.If((step != 0) & (step == columns)):
                m.d.sync += [step.eq(0), row.eq(row + 1)]

        # One clock later the words are there; the seed word before is the block's upper half.
        former = Signal(WORD)
        there, block, first, last = Signal(), Signal(), Signal(), Signal()
        m.d.sync += [
            there.eq(issues),
            block.eq(issues & (step != 0)),
            first.eq(step == 1),
            last.eq((step != 0) & (step == columns)),
        ]
        with m.If(there):
            m.d.sync += former.eq(read["seed"].data)
        with m.If(block):
            m.d.comb += [
                product.t.eq(Cat(read["seed"].data, former)),
                product.x.eq(read["key"].data),
            ]

        # What the product belongs to travels beside it; the identity's word is read just in time.
        depth = product.latency
        blocks, firsts, lasts = Signal(depth), Signal(depth), Signal(depth)
        m.d.sync += [
            blocks.eq(Cat(block, blocks)),
            firsts.eq(Cat(block & first, firsts)),
            lasts.eq(Cat(block & last, lasts)),
        ]
        out_row = Signal(range(most_rows + 1))
        starts_next = firsts[depth - 2] if depth > 1 else block & first
        m.d.comb += [
            read["identity"].addr.eq(out_row + (blocks[-1] & lasts[-1])),
            read["identity"].en.eq(starts_next),
        ]
        accumulator, total = Signal(WORD), Signal(WORD)
        m.d.comb += total.eq(
            product.y ^ Mux(firsts[-1], Mux(modified, read["identity"].data, 0), accumulator)
        )
        mask = Signal(WORD)
        m.d.comb += mask.eq(Mux((out_row == rows - 1) & last_bits.any(), (1 << last_bits) - 1, ~0))
        queue = Array(Signal(WORD, name=f"queue_{i}") for i in range(self.QUEUE))
        pushed, popped = Signal(range(self.QUEUE)), Signal(range(self.QUEUE))
        level = Signal(range(self.QUEUE + 1))
        pushes = Signal()
        m.d.comb += [
            pushes.eq(blocks[-1] & lasts[-1]),
            self.o.payload.eq(queue[popped]),
            self.o.valid.eq(level != 0),
        ]
        with m.If(blocks[-1]):
            m.d.sync += accumulator.eq(total)
        with m.If(pushes):
            m.d.sync += [
                queue[pushed].eq(total & mask),
                pushed.eq(pushed + 1),
                out_row.eq(out_row + 1),
            ]
        with m.If(takes):
            m.d.sync += popped.eq(popped + 1)
        m.d.sync += level.eq(level + pushes - takes)

        # -- states ------------------------------------------------------------------------
        restart = [
            sweep.eq(0),
            key_taken.eq(0),
            seed_taken.eq(0),
            row.eq(0),
            step.eq(0),
            credit.eq(self.QUEUE),
            out_row.eq(0),
            pushed.eq(0),
            popped.eq(0),
            level.eq(0),
            former.eq(0),
            accumulator.eq(0),
            *(word.eq(0) for word in queue),
        ]
        with m.Switch(state):
            with m.Case(ToeplitzState.WIPE):
                for port in write.values():
                    m.d.comb += [port.addr.eq(sweep), port.data.eq(0)]
                for name, port in write.items():
                    m.d.comb += port.en.eq(sweep < depths[name])
                # The read ports' registers held words too: they end with a word of zeros.
                for port in read.values():
                    m.d.comb += [port.addr.eq(0), port.en.eq(1)]
                m.d.sync += [*restart, sweep.eq(sweep + 1), there.eq(0), blocks.eq(0)]
                # The product's pipeline is longer than nothing: zeros have passed it by then.
                with m.If(sweep == deepest + depth):
                    m.d.sync += [state.eq(ToeplitzState.IDLE), self.wiped.eq(1), sweep.eq(0)]
            with m.Case(ToeplitzState.IDLE):
                with m.If(self.start & fits):
                    m.d.sync += [
                        state.eq(ToeplitzState.LOAD),
                        self.wiped.eq(0),
                        modified.eq(self.family),
                        rows.eq((self.m + WORD - 1) >> 6),
                        columns.eq(Mux(toeplitz_bits == 0, 1, (toeplitz_bits + WORD - 1) >> 6)),
                        last_bits.eq(self.m[:6]),
                    ]
            with m.Case(ToeplitzState.LOAD):
                with m.If((key_taken == key_words) & (seed_taken == seed_words)):
                    m.d.sync += state.eq(ToeplitzState.RUN)
            with m.Case(ToeplitzState.RUN):
                with m.If((out_row == rows) & (level == 0)):
                    m.d.sync += [state.eq(ToeplitzState.WIPE), sweep.eq(0)]
        with m.If(self.wipe):
            m.d.sync += [state.eq(ToeplitzState.WIPE), self.wiped.eq(0), *restart]
        return m
