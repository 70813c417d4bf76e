# SPDX-License-Identifier: CERN-OHL-W-2.0
"""Privacy amplification: the Toeplitz hash of a key, all memory on the chip."""

from functools import reduce
from operator import or_, xor

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, Value, ValueLike
from amaranth.lib import data, enum, stream, wiring
from amaranth.lib.memory import Memory, WritePort
from amaranth.lib.wiring import In, Out

from keyrail.contract import ToeplitzError

from .toeplitz_product import ToeplitzProduct, register_copies

__all__ = ["Toeplitz", "ToeplitzProduct", "ToeplitzState", "split_over_blocks"]

WORD = 64
"""Bits of a word of the engine's streams."""

_KEY_CUT, _SUM_CUT = 90, 180
"""Bits of a block in one memory: multiples of what a block RAM holds, 5 of them on the ECP5."""

WORD_LAYOUT = data.StructLayout({"word": WORD, "last": 1})


class ToeplitzState(enum.Enum, shape=3):
    """What the engine is doing with the block that is worked on."""

    WIPE = 0
    IDLE = 1
    RUN = 2
    FINISH = 3
    DRAIN = 4
    FAILED = 5


class _Load(enum.Enum, shape=3):
    """What is being done with the block that streams in."""

    IDLE = 0
    SIZES = 1
    CHECK = 2
    WORDS = 3
    COUNT = 4
    KEY = 5
    IDENTITY = 6
    DONE = 7


def split_over_blocks(levels: int) -> list[tuple[set[int], set[int], set[int]]]:
    """How a matrix of blocks is split into 3^levels products with 2^-levels rows and columns.

    Rows and columns are dealt out by their number modulo S = 2^levels, so that the matrix need
    not be square. Of the block diagonals d = S e + k, product i sums over k in the first set; of
    the vector's blocks j = S f + q over q in the second; its blocks are added to all output blocks
    S g + p with p in the third.
    """
    parts: list[tuple[set[int], set[int], set[int]]] = [({0}, {0}, {0})]
    for _ in range(levels):
        parts = [
            (
                {2 * k + more for k in diagonals for more in here},
                {2 * q + more for q in inputs for more in vectors},
                {2 * p + more for p in outputs for more in results},
            )
            for here, vectors, results in (
                ({0}, {0, 1}, {0, 1}),
                ({0, 1}, {0}, {1}),
                ({0, -1}, {1}, {0}),
            )
            for diagonals, inputs, outputs in parts
        ]
    return parts


def _bits(members: set[int], count: int, offset: int = 0) -> int:
    return sum(1 << (i + offset) for i in members if 0 <= i + offset < count)


class Toeplitz(wiring.Component):
    """Hash keys, each with a seed of its own.

    After ``start`` the key's words are taken in and, while the product is formed, the seed's, in
    the order and number of `keyrail.distil.toeplitz.Geometry`; then the output's words are given,
    the last one masked to m bits. A seed is used up as it streams by, so one seed serves one hash;
    the same seed sent again for the next hash is an error (`ToeplitzError`).

    The matrix is cut in blocks of ``width`` x ``width`` bits, and split over blocks ``splits``
    times: 3^splits products of R x C blocks, R = ceil(m / (width 2^splits)) and C likewise of the
    columns. Their diagonals are walked, one block a clock: the Toeplitz block of a diagonal is
    made while the one before is worked on, which takes `SLOT` clocks, so that a diagonal takes the
    more of `SLOT` and its length.

    Throughput: one block in `clocks` clocks, see there. With ``ahead``, the next key is taken in
    meanwhile, but for the part that meets the identity, which waits for the accumulators.

    *Tiles*: of a larger matrix a row of tiles is worked on with ``continued`` from the second on,
    which keeps the accumulators, and ``unfinished`` but for the last, which gives no output. Only
    the first tile's key ends with the part that meets the identity. A continued tile's n counts
    columns alone.

    Wiping, on command, after reset, upon an error and after a hash that no other follows,
    overwrites every word of the memories and every register that held a bit of key, seed or sum.
    A key's memory is also overwritten as soon as the key is worked on. After an error the streams
    are taken and discarded until ``clear``.

    Parameters
    ----------
    input_bits, output_bits
        Largest n and m, powers of two and multiples of width 2^splits.
    width
        Rows and columns of a block, a power of two from 64.
    smallest
        Size of the products that are not split any more.
    splits
        Levels of splitting over blocks in memory.
    ahead
        Whether a key may stream in while another is worked on; doubles the key's memory.
    compact
        For parts with few logic cells and a slow clock: leave out the registers that keep ways and
        fan-out short, hold the seed's window in block RAM, and give each word of output straight
        from memory. Width 64 and no splits.

    Members
    -------
    key, seed, o
        Streams of 64-bit words, and a mark on the last of a block.
    framed
        1: ``last`` of key and seed is checked; 0: words are only counted.
    n, m
        Input and output bits of the next hash, 32 bits each.
    family
        1: modified; 0: plain.
    continued, unfinished
        Tile that goes on with the accumulators; tile after which others follow.
    patience
        Clocks to wait for a word that does not come, 32 bits; 0: for ever.
    start
        1: begin, with the present n, m, family and tile.
    wipe
        1: give up what is under way and overwrite everything.
    clear
        1: clear ``error``.
    state
        `ToeplitzState`.
    free
        1: ``start`` is accepted.
    busy
        1 from start to the end of the wipe after the hash, and while wiping.
    working
        The same but for the time in which words are awaited.
    wiped
        1 while memories and registers are overwritten and nothing has been taken in since.
    error
        16 bits, sticky: `ToeplitzError`.
    """

    def __init__(
        self,
        input_bits: int = 1 << 18,
        output_bits: int = 1 << 17,
        *,
        width: int = 64,
        smallest: int = 8,
        splits: int = 1,
        ahead: bool = True,
        compact: bool = False,
    ):
        group = width << splits
        if width < WORD or width & (width - 1):
            raise ValueError(f"width {width}: allowed are powers of two from {WORD}")
        if compact and group > WORD:
            raise ValueError(f"compact: allowed with width {WORD} and no splits")
        for size in (input_bits, output_bits):
            if size < 2 * group or size & (size - 1):
                raise ValueError(
                    f"{input_bits} input and {output_bits} output bits: allowed are powers of two "
                    f"from {2 * group}"
                )
        self._input_bits, self._output_bits = input_bits, output_bits
        self._width, self._splits, self._ahead = width, splits, ahead
        self._compact = compact
        self._product = ToeplitzProduct(width, smallest, compact=compact)
        self._scan = 2 << splits
        # Clocks from a block's first column to its vector, less one: then the matrix is put in use.
        self._swap_after = 0 if compact else 5
        # A matrix is not taken in before the one before it has been put in use everywhere.
        in_use = self._swap_after + self._product.swapping - 1
        self._load_at = max(self._scan, in_use - self._product.first_load)
        # Nor put in use before it has been taken in.
        self.SLOT = self._load_at + max(self._product.held, self._product.loading - in_use)
        """Clocks that a diagonal takes at least."""
        super().__init__(
            {
                "key": In(stream.Signature(WORD_LAYOUT)),
                "seed": In(stream.Signature(WORD_LAYOUT)),
                "o": Out(stream.Signature(WORD_LAYOUT)),
                "framed": In(1),
                "n": In(32),
                "m": In(32),
                "family": In(1),
                "continued": In(1),
                "unfinished": In(1),
                "patience": In(32),
                "start": In(1),
                "wipe": In(1),
                "clear": In(1),
                "state": Out(ToeplitzState),
                "free": Out(1),
                "busy": Out(1),
                "working": Out(1),
                "wiped": Out(1),
                "error": Out(16),
            }
        )

    def clocks(self, n: int, m: int, family: str = "modified", *, unfinished: bool = False) -> int:
        """Clocks from a block's first word to the next one's, with `ahead` and without waiting.

        The next one has the same sizes and family. The sum of

        - 3^splits times the sum over diagonals of max(`SLOT`, length), for R x C groups of
          2^splits blocks: R + C - 1 diagonals of length min(d, R, C, R + C - d), d from 1;
        - 2 2^splits width / 64 + `SLOT` to take in the first blocks of the seed and make the first
          Toeplitz block;
        - latency of the product + 20 (compact: 5) until the last sum is there;
        - two clocks a word of output, and 5 (compact: none) between groups of them;
        - modified family: what is left of the next key's identity part when the output is taken.
          It comes in a clock a word and one more a block, behind the output group by group, a
          block waiting in front: L - min(L, width / 64) clocks and one a block for the L words of
          the last group, and more where that is so short that the group before still comes in.

        An ``unfinished`` tile has no output: 7 clocks (compact: 1) less, and without the last two.
        """
        chunks, banks = self._width // WORD, 1 << self._splits
        group = self._width * banks
        columns = -(-max(1, n - m if family == "modified" else n) // group)
        rows, words = -(-m // group), -(-m // WORD)
        walk = 3**self._splits * sum(
            max(self.SLOT, min(d, rows, columns, rows + columns - d))
            for d in range(1, rows + columns)
        )
        begin = 2 * banks * chunks + self.SLOT
        last = words - (rows - 1) * banks * chunks
        identity = 0
        if family == "modified":
            first, blocks = min(last, chunks), -(-last // chunks)
            identity = last - first + blocks
            if rows > 1 and not self._compact:
                # Clocks from when the group before has been given out: when the last one has been,
                # and when the first of the identity's blocks that take its place is written, if
                # those before it are. A block is not let in while a group is being marked as given.
                given = 2 * last + 5
                behind, step = 3 + (banks - 1) * (chunks + 1), chunks + 1
                behind += (given - 2) % step == 0 and (given - 2) // step < banks
                identity += max(0, behind + first + 1 - (given + 3))
        last_sum, fetch, tile = 20, 5, 7
        if self._compact:
            last_sum, fetch, tile = 5, 0, 1
        output = -tile if unfinished else 2 * words + fetch * (rows - 1) + identity
        return walk + begin + self._product.latency + last_sum + output

    def elaborate(self, platform: object) -> Module:
        m = Module()
        width, splits, compact = self._width, self._splits, self._compact
        banks = 1 << splits
        chunks = width // WORD
        group_words = banks * chunks
        columns_most = self._input_bits // (width * banks)
        rows_most = self._output_bits // (width * banks)
        buffers = 2 if self._ahead else 1
        window_depth = 4 * banks
        parts = split_over_blocks(splits)
        m.submodules.product = product = self._product

        # -- memories -----------------------------------------------------------------------
        # What is read while it is written is never used, so no logic need compare addresses.
        def memory(name: str, shape: int, depth: int) -> Memory:
            attributes: dict[str, object] = {"no_rw_check": 1}
            if compact:
                attributes["ram_style"] = "block"
            made = Memory(shape=shape, depth=depth, init=[], attrs=attributes)
            m.submodules[name] = made
            return made

        # Blocks are cut, so that a register of an address serves few block RAMs, close together.
        def cut(bits: int) -> list[slice]:
            return [slice(low, min(low + bits, width)) for low in range(0, width, bits)]

        def banked(name: str, cuts: list[slice], depth: int) -> list[list[Memory]]:
            return [
                [
                    memory(f"{name}_{i}_{j}", one.stop - one.start, depth)
                    for j, one in enumerate(cuts)
                ]
                for i in range(banks)
            ]

        key_cuts, sum_cuts = cut(_KEY_CUT), cut(_SUM_CUT)
        key_memories = banked("key", key_cuts, columns_most * buffers)
        sum_memories = banked("sum", sum_cuts, rows_most)
        windows = [memory(f"window_{i}", WORD, window_depth) for i in range(chunks)]
        key_write = [[one.write_port() for one in bank] for bank in key_memories]
        key_read = [[one.read_port() for one in bank] for bank in key_memories]
        sum_write = [[one.write_port() for one in bank] for bank in sum_memories]
        sum_read = [[one.read_port() for one in bank] for bank in sum_memories]
        window_write = [one.write_port() for one in windows]
        window_read = [one.read_port(domain="sync" if compact else "comb") for one in windows]

        # Registers on long ways: they hold what is assigned one clock later, or are none.
        way = "comb" if compact else "sync"

        def copies(name: str, value: ValueLike, count: int) -> list[Value]:
            """The value for so many places: in a register each, one clock later, or as it is."""
            if compact:
                return [Value.cast(value)] * count
            return register_copies(m, name, value, count)

        def over_block(name: str, bit: ValueLike) -> Value:
            """A bit once for each bit of a block, in `copies`."""
            return Cat(copy.replicate(WORD) for copy in copies(name, bit, chunks))

        def write(
            name: str,
            ports: list[WritePort],
            cuts: list[slice],
            address: ValueLike,
            enable: ValueLike,
            block: Value,
        ) -> None:
            """Write a block, in its cuts; address and enable are of the clock before."""
            addresses = copies(f"{name}_address", address, len(ports))
            enables = copies(f"{name}_enable", enable, len(ports))
            for port, one, at, enabled in zip(ports, cuts, addresses, enables, strict=True):
                m.d.comb += [port.addr.eq(at), port.en.eq(enabled), port.data.eq(block[one])]

        # -- errors, and what stops the engine ----------------------------------------------
        # An error acts two clocks later, so that finding it and stopping are short paths.
        state = self.state
        load = Signal(_Load)
        # One bit a state too, so that they need no decoding.
        flags = {
            one: Signal(name=f"is_{one.name.lower()}", init=one == ToeplitzState.WIPE)
            for one in ToeplitzState
        }
        idle, draining, wiping, failed = (
            flags[one]
            for one in (
                ToeplitzState.IDLE,
                ToeplitzState.DRAIN,
                ToeplitzState.WIPE,
                ToeplitzState.FAILED,
            )
        )

        def enters(following: ToeplitzState) -> list[object]:
            return [
                state.eq(following),
                *(flag.eq(one == following) for one, flag in flags.items()),
            ]

        raised = Signal(16)
        raised_before = Signal(16)
        restarts = Signal()
        restarted = Signal()
        stops = Signal()
        faulty = Signal()
        m.d.sync += [
            raised_before.eq(raised),
            self.error.eq(Mux(self.clear, 0, self.error) | raised_before),
            stops.eq(self.wipe | restarts | raised_before.any()),
            restarted.eq(~self.wipe & ~raised_before.any()),
            faulty.eq((faulty & ~self.clear) | raised_before.any()),
        ]

        def raise_error(error: ToeplitzError) -> object:
            return raised[error].eq(1)

        # -- sizes of the block that streams in ---------------------------------------------
        column_words = range(columns_most * group_words + 1)
        row_words = range(rows_most * group_words + 1)
        # Compact, what no engine of this size could hash is seen as it comes, by its higher bits.
        n_bits = (self._input_bits + self._output_bits).bit_length() if compact else 32
        m_bits = self._output_bits.bit_length() if compact else 32
        n = Signal(n_bits)
        rows_bits = Signal(m_bits)
        beyond = Signal()
        modified = Signal()
        continued = Signal()
        unfinished = Signal()
        toeplitz_bits = Signal(n_bits + 1)
        negative = Signal()
        fits = Signal()
        in_order = Signal()
        columns = Signal(column_words)
        rows = Signal(row_words)
        seed_words = Signal(range((columns_most + rows_most) * group_words + 1))
        seedless = Signal()
        seed_short = Signal()
        open_tile = Signal()
        open_rows = Signal(m_bits)
        m.d.comb += self.free.eq((load == _Load.IDLE) & ~failed & ~faulty & (~stops | restarted))
        with m.If(self.start):
            with m.If(self.free):
                m.d.sync += [
                    load.eq(_Load.SIZES),
                    n.eq(self.n),
                    rows_bits.eq(self.m),
                    *([beyond.eq(self.n[n_bits:].any() | self.m[m_bits:].any())] * compact),
                    modified.eq(self.family & ~self.continued),
                    continued.eq(self.continued),
                    unfinished.eq(self.unfinished),
                    self.wiped.eq(0),
                ]
            with m.Else():
                m.d.comb += raise_error(ToeplitzError.BUSY)
        with m.If(load == _Load.SIZES):
            m.d.sync += [
                toeplitz_bits.eq(n - Mux(modified, rows_bits, 0)),
                negative.eq((rows_bits > n) & ~continued & ~unfinished),
                load.eq(_Load.CHECK),
            ]
        with m.If(load == _Load.CHECK):
            m.d.sync += [
                fits.eq(
                    (rows_bits != 0)
                    & (n != 0)
                    & ~negative
                    & ~toeplitz_bits[n_bits]
                    & (toeplitz_bits <= self._input_bits)
                    & (rows_bits <= self._output_bits)
                ),
                in_order.eq((continued == open_tile) & (~continued | (open_rows == rows_bits))),
                seedless.eq(toeplitz_bits == 0),
                rows.eq((rows_bits + WORD - 1) >> 6),
                open_tile.eq(unfinished),
                open_rows.eq(rows_bits),
                load.eq(_Load.WORDS),
            ]
        with m.If(load == _Load.WORDS):
            with m.If(~fits | beyond if compact else ~fits):
                m.d.comb += raise_error(ToeplitzError.SIZE)
            with m.Elif(~in_order):
                m.d.comb += raise_error(ToeplitzError.TILE_ORDER)
            m.d.sync += [
                columns.eq(Mux(seedless, 1, (toeplitz_bits + WORD - 1) >> 6)),
                load.eq(_Load.COUNT),
            ]
        group_exponent = group_words.bit_length() - 1
        last_column = Signal(range(columns_most))
        last_row = Signal(range(rows_most))
        m.d.sync += [
            seed_words.eq(columns + rows),
            seed_short.eq(seedless | (seed_words < 4)),
        ]

        # -- key in: words are gathered to blocks -------------------------------------------
        into = Signal(range(buffers))
        clean = Signal(buffers, init=-1)
        gather = Signal(width, reset_less=True)
        full = Signal()
        full_identity = Signal()
        chunk = Signal(chunks, init=1)
        chunk_first = Signal()
        chunk_last = Signal()
        bank = Signal(banks, init=1)  # one bit a bank
        address = Signal(range(max(columns_most, rows_most)))
        full_bank = Signal.like(bank)
        full_address = Signal.like(address)
        words_left = Signal(range(max(columns_most, rows_most) * group_words + 1))
        words_some = Signal()  # words_left != 0, == 1
        words_end = Signal()
        identity_free = Signal()
        into_clean = Signal()
        in_identity = Signal()
        sweeping = Signal()
        sweep_pending = Signal()
        sweep_waits = Signal()
        loading = Signal()
        takes = Signal()
        accepts = Signal()
        completes = Signal()
        m.d.sync += into_clean.eq(clean.bit_select(into, 1) & ~wiping)
        m.d.comb += [
            chunk_first.eq(chunk[0]),
            chunk_last.eq(chunk[-1]),
            loading.eq((load == _Load.KEY) | (load == _Load.IDENTITY)),
            takes.eq(
                words_some
                & into_clean
                & (~full_identity | identity_free)
                & ~(sweep_waits & chunk_first)
            ),
            accepts.eq(self.key.valid & takes),
            completes.eq(accepts & (chunk_last | words_end)),
            self.key.ready.eq(failed | takes),
        ]
        frame_ends = Signal()
        # Of what is raised, one clock before.
        key_misses = Signal(2)
        m.d.sync += key_misses.eq(0)
        m.d.comb += [
            raised[ToeplitzError.KEY_SHORT].eq(key_misses[0]),
            raised[ToeplitzError.KEY_LONG].eq(key_misses[1]),
        ]
        m.d.comb += frame_ends.eq(words_end & ((load == _Load.IDENTITY) | ~modified))
        key_address_bits = (columns_most - 1).bit_length()
        key_write_address = Signal(range(columns_most * buffers))
        key_write_enable = Signal(banks)
        m.d.sync += key_write_enable.eq(0)
        with m.If(~full_identity | identity_free):
            m.d.sync += [full.eq(0), full_identity.eq(0)]
        # A clock after it is accepted a word is put where it belongs, by registers for each chunk.
        key_word = Signal(WORD, reset_less=True)
        m.d[way] += key_word.eq(self.key.payload.word & words_some.replicate(WORD))
        puts = [
            Cat(copies(f"put_{i}", Cat(accepts & chunk[i], accepts & chunk_first), 1))
            for i in range(chunks)
        ]
        # No word is accepted as a sweep begins, so none is put where it empties.
        sweep_begins = Signal()
        empty = copies("empty", sweep_begins | wiping, chunks)
        for i, put in enumerate(puts):
            with m.If(put[0]):
                m.d.sync += gather[i * WORD : (i + 1) * WORD].eq(key_word)
            with m.If(empty[i] | (put[1] & ~put[0])):
                m.d.sync += gather[i * WORD : (i + 1) * WORD].eq(0)
        with m.If(accepts):
            m.d.sync += [
                key_misses[0].eq(self.framed & self.key.payload.last & ~frame_ends),
                key_misses[1].eq(self.framed & ~self.key.payload.last & frame_ends),
            ]
            m.d.sync += [
                words_left.eq(words_left - 1),
                words_some.eq(~words_end),
                words_end.eq(words_left == 2),
                chunk.eq(chunk.rotate_left(1)),
            ]
        m.d.sync += key_write_address.eq(Cat(address[:key_address_bits], into))
        with m.If(completes):
            m.d.sync += [
                chunk.eq(1),
                full.eq(1),
                full_identity.eq(in_identity),
                full_bank.eq(bank),
                full_address.eq(address),
                bank.eq(bank.rotate_left(1)),
                key_write_enable.eq(bank & (~in_identity).replicate(banks)),
            ]
            with m.If(bank[-1]):
                m.d.sync += address.eq(address + 1)
        with m.If(load == _Load.COUNT):
            m.d.sync += [
                words_left.eq(columns),
                words_some.eq(1),
                words_end.eq(columns == 1),
                last_column.eq((columns - 1) >> group_exponent),
                last_row.eq((rows - 1) >> group_exponent),
                load.eq(_Load.KEY),
                bank.eq(1),
                address.eq(0),
                chunk.eq(1),
            ]
        with m.If((load == _Load.KEY) & ~words_some):
            m.d.sync += [bank.eq(1), address.eq(0)]
            with m.If(modified):
                m.d.sync += [
                    load.eq(_Load.IDENTITY),
                    in_identity.eq(1),
                    words_left.eq(rows),
                    words_some.eq(1),
                    words_end.eq(rows == 1),
                ]
            with m.Else():
                m.d.sync += load.eq(_Load.DONE)
        with m.If((load == _Load.IDENTITY) & ~words_some):
            m.d.sync += [load.eq(_Load.DONE), in_identity.eq(0)]

        # -- what is worked on --------------------------------------------------------------
        begins = Signal()
        begun = Signal()  # a clock later
        continues = Signal()
        running = Signal()
        buffer = Signal(range(buffers))
        run_last_column = Signal.like(last_column)
        run_last_row = Signal.like(last_row)
        run_rows = Signal(row_words)
        last_bits = Signal(6)
        run_unfinished = Signal()  # too short a seed to tell apart
        run_seed_short = Signal()
        m.d.comb += begins.eq(idle & (load == _Load.DONE) & ~full)
        m.d.sync += [begun.eq(begins), continues.eq(continued)]

        # -- slots: one diagonal of one product is walked, that of the next is made -----------
        # Comparisons are made a clock ahead, in registers that say what they found.
        slot, scan = self.SLOT, self._scan
        step = Signal(range(slot))
        step_first = Signal()
        step_last = Signal()
        step_scans = Signal()
        step_loads = Signal()
        scans = Signal()
        part = Signal(range(len(parts)))
        part_following = Signal(range(len(parts)))
        part_last = Signal()
        few_blocks = Signal()
        scan_column = Signal.like(last_column)
        scan_row = Signal.like(last_row)
        scan_column_some = Signal()
        scan_row_more = Signal()
        scan_short = Signal()
        column = Signal.like(last_column)
        row = Signal.like(last_row)
        before_last_column = Signal.like(last_column)
        before_last_row = Signal.like(last_row)
        walking = Signal()
        last_block = Signal()
        input_mask = Signal(banks)
        output_mask = Signal(banks)
        moves = Signal()
        issues = Signal()
        ends = Signal()
        releases = Signal()
        m.d.comb += [
            moves.eq(running & ~(step_first & scans & few_blocks)),
            issues.eq(moves & walking),
            ends.eq(running & step_last & (~walking | last_block)),
            releases.eq(ends & scans & part_last),
        ]
        m.d.sync += [
            part_last.eq(part == len(parts) - 1),
            part_following.eq(Mux(part == len(parts) - 1, 0, part + 1)),
            scan_column_some.eq(scan_column != 0),
            scan_row_more.eq(scan_row != run_last_row),
            scan_short.eq((scan_column == run_last_column) | (scan_row == run_last_row)),
            before_last_column.eq(run_last_column - 1),
            before_last_row.eq(run_last_row - 1),
        ]
        m.d.sync += step_loads.eq(0)
        with m.If(moves & ~step_last):
            m.d.sync += [
                step.eq(step + 1),
                step_first.eq(0),
                step_last.eq(step == slot - 2),
                step_loads.eq(step == self._load_at - 1),
            ]
            with m.If(step == scan - 1):
                m.d.sync += step_scans.eq(0)
        with m.If(issues):
            m.d.sync += [
                column.eq(column + 1),
                row.eq(row + 1),
                last_block.eq((column == before_last_column) | (row == before_last_row)),
            ]
            with m.If(last_block):
                m.d.sync += walking.eq(0)
        terms = [Array(_bits(one[0], 2 * banks, banks - more) for one in parts) for more in (1, 0)]
        # Which blocks of the window belong to the diagonals below and above: by steps.
        term_bits = [Signal(2 * banks, name=name) for name in ("lower_terms", "upper_terms")]
        for bits, of_part in zip(term_bits, terms, strict=True):
            following = Signal(2 * banks, name=f"{bits.name}_following")
            m.d.sync += following.eq(of_part[part_following])
            with m.If(moves):
                m.d.sync += bits.eq(bits >> 1)
            with m.If(ends):
                m.d.sync += bits.eq(following)
        part_inputs = Signal(banks)
        part_outputs = Signal(banks)
        m.d.sync += [
            part_inputs.eq(Array(_bits(one[1], banks) for one in parts)[part]),
            part_outputs.eq(Array(_bits(one[2], banks) for one in parts)[part]),
        ]
        with m.If(ends):
            m.d.sync += [step.eq(0), step_first.eq(1), step_last.eq(0), step_scans.eq(1)]
            with m.If(scans):
                m.d.sync += [
                    column.eq(scan_column),
                    row.eq(scan_row),
                    last_block.eq(scan_short),
                    walking.eq(1),
                    input_mask.eq(part_inputs),
                    output_mask.eq(part_outputs),
                    part.eq(part_following),
                ]
                with m.If(part_last):
                    with m.If(scan_column_some):
                        m.d.sync += scan_column.eq(scan_column - 1)
                    with m.Elif(scan_row_more):
                        m.d.sync += scan_row.eq(scan_row + 1)
                    with m.Else():
                        m.d.sync += scans.eq(0)
            with m.Else():
                m.d.sync += [*enters(ToeplitzState.FINISH), running.eq(0)]

        # -- seed in: a window of blocks by diagonals, padded with zeros --------------------
        lead_left = Signal(range(group_words))
        lead_some = Signal()
        seed_left = Signal.like(seed_words)
        seed_some = Signal()
        seed_end = Signal()
        tail_left = Signal(range(group_words))
        tail_some = Signal()
        ready_blocks = Signal(range(window_depth + 1))
        window_room = Signal()
        held_blocks = Signal(range(window_depth + 1))
        released = Signal()
        window_head = Signal(range(window_depth))
        seed_chunk = Signal(range(chunks))
        seed_chunk_last = Signal()
        seed_real = Signal()
        seed_moves = Signal()
        block_made = Signal()
        m.d.comb += [
            seed_chunk_last.eq(seed_chunk == chunks - 1),
            seed_real.eq(~lead_some & seed_some),
            self.seed.ready.eq(failed | (running & window_room & seed_real)),
            seed_moves.eq(
                running & window_room & Mux(seed_real, self.seed.valid, lead_some | tail_some)
            ),
            block_made.eq(seed_moves & seed_chunk_last),
        ]
        window_address = Signal(range(window_depth))
        seed_word = Signal(WORD, reset_less=True)
        # Open before a word is taken and a clock after the last.
        (seed_open,) = copies("seed_open", running | (load == _Load.DONE), 1)
        window_enable = Signal(chunks)
        seed_taken = Signal()
        m.d[way] += [
            window_address.eq(window_head),
            seed_word.eq(self.seed.payload.word & seed_open.replicate(WORD)),
            window_enable.eq(seed_moves << seed_chunk),
            seed_taken.eq(seed_moves & seed_real),
        ]
        fingerprint = Signal(WORD)
        former_fingerprint = Signal(WORD)
        former_valid = Signal()
        same_seed = Signal()
        all_same = Signal()
        same = Signal(WORD // 8)
        m.d.sync += [
            *(
                same[i].eq(fingerprint.word_select(i, 8) == former_fingerprint.word_select(i, 8))
                for i in range(WORD // 8)
            ),
            all_same.eq(same.all()),
            same_seed.eq(former_valid & all_same),
        ]
        seed_misses = Signal(2)
        m.d.sync += seed_misses.eq(0)
        m.d.comb += [
            raised[ToeplitzError.SEED_SHORT].eq(seed_misses[0]),
            raised[ToeplitzError.SEED_LONG].eq(seed_misses[1]),
        ]
        with m.If(seed_moves):
            m.d.sync += seed_chunk.eq(Mux(seed_chunk_last, 0, seed_chunk + 1))
            with m.If(lead_some):
                m.d.sync += [lead_left.eq(lead_left - 1), lead_some.eq(lead_left != 1)]
            with m.Elif(seed_some):
                m.d.sync += [
                    seed_left.eq(seed_left - 1),
                    seed_some.eq(~seed_end),
                    seed_end.eq(seed_left == 2),
                ]
                m.d.sync += [
                    seed_misses[0].eq(self.framed & self.seed.payload.last & ~seed_end),
                    seed_misses[1].eq(self.framed & ~self.seed.payload.last & seed_end),
                ]
            with m.Else():
                m.d.sync += [tail_left.eq(tail_left - 1), tail_some.eq(tail_left != 1)]
        # A clock later, in registers that may lie farther from the stream.
        keeps_fingerprint = Signal()
        another_seed = begins & ~continued if compact else begun & ~continues
        (late,) = copies(
            "fingerprint", Cat(seed_taken, another_seed | wiping, keeps_fingerprint, seed_word), 1
        )
        late_word = late[3:]
        with m.If(late[0]):
            # Value at a fixed point of the polynomial over GF(2^64) that the words make up;
            # x^64 + x^4 + x^3 + x + 1 is irreducible.
            shifted = Cat(0, fingerprint[:-1]) ^ Mux(fingerprint[-1], 0b11011, 0)
            m.d.sync += fingerprint.eq(shifted ^ late_word)
        with m.If(late[1]):
            m.d.sync += fingerprint.eq(0)
        with m.If(late[2]):
            m.d.sync += [former_fingerprint.eq(fingerprint), former_valid.eq(1)]
        with m.If(block_made):
            m.d.sync += window_head.eq(window_head + 1)
        # A block counts as made two clocks after room for it is taken: only then it can be read.
        block_ready = Signal()
        m.d.sync += [
            block_ready.eq(block_made),
            ready_blocks.eq(
                Mux(releases, ready_blocks - banks + block_ready, ready_blocks + block_ready)
            ),
            few_blocks.eq(Mux(releases, ready_blocks < 3 * banks, ready_blocks < 2 * banks)),
            # Room is counted a clock after a block has been read for the last time.
            released.eq(releases),
            held_blocks.eq(held_blocks - Mux(released, banks, 0) + block_made),
            window_room.eq(
                released | (window_room & ~(block_made & (held_blocks == window_depth - 1)))
            ),
        ]

        # The Toeplitz block: sums of blocks of the window, read one after the other.
        window_base = Signal(range(window_depth))
        window_next = Signal(range(window_depth))
        window_after = Signal(range(window_depth))
        scan_address = Signal(range(window_depth))
        scan_next = Signal(range(window_depth))
        m.d.sync += window_next.eq(window_base + banks)
        scan_after = Signal(range(window_depth))
        m.d.sync += window_after.eq(Mux(scans & part_last, window_next, window_base))
        m.d.comb += scan_after.eq(scan_address + 1)
        with m.If(ends):
            m.d.comb += scan_next.eq(window_after)
            m.d.sync += window_base.eq(window_after)
        with m.Elif(wiping | begun):
            m.d.comb += scan_next.eq(0)
        with m.Else():
            m.d.comb += scan_next.eq(Mux(moves, scan_after, scan_address))
        m.d.sync += scan_address.eq(scan_next)
        read_at = copies("scan_address", scan_next, chunks)
        window_word = seed_word & seed_taken.replicate(WORD)
        for i in range(chunks):
            (put,) = copies(f"window_{i}", Cat(window_enable[i], window_address, window_word), 1)
            m.d.comb += [
                Cat(window_write[i].en, window_write[i].addr, window_write[i].data).eq(put),
                window_read[i].addr.eq(read_at[i]),
            ]
        seed_block = Signal(width, reset_less=True)
        t_lower = Signal(width, reset_less=True)
        t_upper = Signal(width, reset_less=True)
        m.d[way] += seed_block.eq(Cat(port.data for port in window_read))
        adding = over_block("adding", (moves & step_scans) | wiping)
        keeps = over_block("keeps", ~step_first & ~wiping)
        for total, bits in ((t_lower, term_bits[0]), (t_upper, term_bits[1])):
            adds = over_block(f"adds_{total.name}", bits[0] & scans & ~wiping)
            following = (total & keeps) ^ (seed_block & adds)
            if compact:
                with m.If(adding[0]):
                    m.d.sync += total.eq(following)
            else:
                m.d.sync += total.eq((adding & following) | (~adding & total))
        m.d.comb += [
            product.t.eq(Cat(t_lower, t_upper)),
            product.load.eq(step_loads & scans),
        ]

        # -- the product's input ------------------------------------------------------------
        masks, raw = [input_mask], []
        for i in range(0 if compact else 3):
            masks.append(Signal(banks, name=f"input_mask_{i}", reset_less=True))
            m.d.sync += masks[-1].eq(masks[-2])
        key_columns = copies("key_column", Cat(column, buffer) & ~wiping.replicate(32), banks)
        for i, ports in enumerate(key_read):
            # Without reset, and read at every clock: the register that block RAM brings along.
            raw.append(Signal(width, name=f"key_block_{i}", reset_less=True))
            at = copies(f"key_address_{i}", key_columns[i], len(ports))
            m.d.comb += [port.addr.eq(one) for port, one in zip(ports, at, strict=True)]
            m.d[way] += raw[-1].eq(Cat(port.data for port in ports))
        # Sums of pairs first: what is masked and added is one look-up table a bit.
        # A compact engine's one bank is in every product.
        masked = raw
        if not compact:
            mask = masks[-1]
            masked = [one & over_block(f"input_mask_{i}", mask[i]) for i, one in enumerate(raw)]
        pairs = []
        for i in range(0, banks, 2):
            pairs.append(Signal(width, name=f"pair_{i}", reset_less=True))
            m.d[way] += pairs[-1].eq(reduce(xor, masked[i : i + 2]))
        vector = Signal(width, reset_less=True)
        m.d[way] += vector.eq(reduce(xor, pairs))
        m.d.comb += product.x.eq(vector)
        swaps = [issues & step_first]
        for i in range(self._swap_after):
            swaps.append(Signal(name=f"swap_{i}", reset_less=True))
            m.d.sync += swaps[-1].eq(swaps[-2])

        # -- the sums -----------------------------------------------------------------------
        latency = product.latency + (0 if compact else 2)
        to_read = latency if compact else latency + 1
        to_write = latency + 1 if compact else latency + 4
        on_way = [Cat(row, output_mask & issues.replicate(banks))]
        for i in range(to_write):
            on_way.append(Signal(len(on_way[0]), name=f"on_way_{i}", reset_less=True))
            m.d.sync += on_way[-1].eq(on_way[-2])
        row_bits = len(row)
        sum_next = Signal(range(rows_most))
        sum_enable = Signal(banks)
        enable_next = Signal(banks)
        addend = Signal(width, reset_less=True)
        keep = Signal()
        drain_row = Signal(range(rows_most))
        clear_row = Signal(range(rows_most))
        clears = Signal()
        clears_next = Signal()
        takes_gather = Signal()
        takes_identity = Signal()
        m.d.comb += [
            sum_next.eq(on_way[to_write][:row_bits]),
            enable_next.eq(on_way[to_write][row_bits:]),
            takes_gather.eq(idle | draining),
            takes_identity.eq(full_identity & identity_free),
        ]
        m.d.sync += [
            clears.eq(clears_next),
            clear_row.eq(drain_row),
        ]
        m.d[way] += sum_enable.eq(enable_next)
        # A clock after `gather`, in registers that may lie farther from the stream.
        (gathered,) = copies("gather", gather, 1)
        gathers = over_block("gathers", takes_gather)
        cleared = Signal()
        m.d[way] += cleared.eq(clears)
        nothing = over_block("nothing", cleared | wiping)
        m.d[way] += addend.eq(((gathered & gathers) | (product.y & ~gathers)) & ~nothing)
        sum_words = []
        sum_addresses = copies("sum_address", sum_next, banks)
        reads = Mux(draining, drain_row, on_way[to_read][:row_bits])
        read_rows = copies("read_row", reads, banks)
        for i, (sources, sinks) in enumerate(zip(sum_read, sum_write, strict=True)):
            sum_word = Signal(width, name=f"sum_block_{i}", reset_less=True)
            m.d[way] += sum_word.eq(Cat(source.data for source in sources))
            written = Signal(width, name=f"written_{i}", reset_less=True)
            m.d[way] += written.eq((sum_word & over_block(f"keep_{i}", keep)) ^ addend)
            read_at = copies(f"read_address_{i}", read_rows[i], len(sources))
            m.d.comb += [port.addr.eq(one) for port, one in zip(sources, read_at, strict=True)]
            write(f"sum_write_{i}", sinks, sum_cuts, sum_addresses[i], sum_enable[i], written)
            sum_words.append(sum_word)

        # The identity's part of the key: first content of the sums, behind the output.
        drained = Signal(range(rows_most + 1))
        behind_output = idle | (draining & (full_address < drained))
        if compact:
            m.d.comb += identity_free.eq(behind_output & ~clears)
        else:
            m.d.sync += identity_free.eq(
                behind_output & full_identity & ~identity_free & ~clears_next
            )
        with m.If(clears):
            m.d.sync += drained.eq(drained + 1)
        # The sums are overwritten when `gathered` holds the block: two clocks later, or at once.
        overwrite = [Cat(clears | takes_identity, Mux(clears, clear_row, full_address))]
        overwrite_banks = [Mux(clears, Const(-1, banks), full_bank)]
        for i in range(0 if compact else 2):
            overwrite.append(Signal.like(overwrite[-1], name=f"overwrite_{i}"))
            overwrite_banks.append(Signal(banks, name=f"overwrite_banks_{i}"))
            m.d.sync += [
                overwrite[-1].eq(overwrite[-2]),
                overwrite_banks[-1].eq(overwrite_banks[-2]),
            ]
        # Of the clock before, as it goes through one register more than address and enable.
        overwrites = overwrite[0 if compact else -2][0]
        m.d[way] += keep.eq(~overwrites & ~wiping)
        with m.If(overwrite[-1][0]):
            m.d.comb += [
                sum_next.eq(overwrite[-1][1:]),
                enable_next.eq(overwrite_banks[-1]),
            ]

        # -- output: words of a group of blocks, then the next group is fetched ---------------
        fetching = 1 if compact else 5
        fetch = Signal(3)
        fetched = Signal()
        out_word = Signal(range(group_words))
        out_word_last = Signal()
        out_left = Signal(row_words)
        out_some = Signal()
        out_end = Signal()
        out_bank = Signal(banks, init=1)
        takes_word = Signal()
        taken = Signal()
        m.d[way] += taken.eq(takes_word)
        m.d.comb += clears_next.eq(taken & (out_word_last | out_end))
        chunk_bits = (chunks - 1).bit_length()
        last_bit = Signal(6)
        chosen_valid = Signal()
        spare_valid = Signal()
        # Flags of registers that a word of output is in.
        occupied: list[Value] = []
        if compact:
            # An error that is found as the output begins stops it before its first word.
            m.d.comb += [
                self.o.valid.eq(fetched & out_some & ~stops),
                takes_word.eq(self.o.valid & self.o.ready),
                self.o.payload.last.eq(out_end),
            ]
            m.d.sync += last_bit.eq(last_bits - 1)
            # The last word's bytes before that of its last bit, that byte, and the bits of it:
            # tables, as comparisons with numbers would be chains of carries on an iCE40.
            coarse, fine = last_bit[3:], last_bit[:3]
            before = Array(Const((1 << i) - 1, 8) for i in range(8))[coarse]
            at = Array(Const(1 << i, 8) for i in range(8))[coarse]
            bits = Array(Const((2 << i) - 1, 8) for i in range(8))[fine]
            whole = (before | (~out_end).replicate(8)) & self.o.valid.replicate(8)
            partly = at & self.o.valid.replicate(8)
            mask = Cat(whole[i].replicate(8) | (partly[i].replicate(8) & bits) for i in range(8))
            m.d.comb += self.o.payload.word.eq(sum_words[0] & mask)
        else:
            chosen = [Signal(WORD, name=f"chosen_{i}", reset_less=True) for i in range(banks)]
            chosen_last = Signal()
            # A word more than the output holds, so that its `ready` ends at few registers.
            spare = Signal.like(self.o.payload, reset_less=True)
            out = Signal.like(self.o.payload, reset_less=True)
            m.d.comb += self.o.payload.eq(out)
            spare_next = Signal()
            selected = Signal.like(self.o.payload)
            last_mask = Signal(WORD, reset_less=True)
            m.d.comb += [
                spare_next.eq(self.o.valid & ~self.o.ready & (spare_valid | chosen_valid)),
                takes_word.eq(fetched & out_some & ~taken & (~chosen_valid | ~spare_valid)),
                selected.word.eq(
                    reduce(or_, chosen) & (last_mask | (~chosen_last).replicate(WORD))
                ),
                selected.last.eq(chosen_last),
            ]
            m.d.sync += [
                last_bit.eq(last_bits - 1),
                last_mask.eq(Cat(last_bit >= i for i in range(WORD))),
            ]
            m.d.sync += spare_valid.eq(spare_next)
            with m.If(~self.o.valid | self.o.ready):
                m.d.sync += [
                    self.o.valid.eq(spare_valid | chosen_valid),
                    out.eq(Mux(spare_valid, spare, selected)),
                ]
            with m.If(~spare_valid):
                m.d.sync += [spare.eq(selected), chosen_valid.eq(0)]
            blocked = copies("blocked", spare_next, banks)
            ways = zip(chosen, sum_words, blocked, strict=True)
            for i, (one, sum_word, stays) in enumerate(ways):
                # Its words step along, so that none comes from one end of the part to the other:
                # the first one at once, the others by controls in registers, a clock later. What
                # the last one becomes is never given.
                block = Signal(width, name=f"out_block_{i}", reset_less=True)
                controls = Cat(~fetched, ~fetched | (taken & out_bank[i]))
                steps = [controls, *copies(f"out_block_controls_{i}", controls, chunks - 1)]
                for j, (fill, moves_on) in enumerate(steps):
                    here = slice(j * WORD, (j + 1) * WORD)
                    behind = block[(j + 1) * WORD :][:WORD] if j + 1 < chunks else sum_word[here]
                    with m.If(moves_on):
                        m.d.sync += block[here].eq(Mux(fill, sum_word[here], behind))
                with m.If(~chosen_valid | ~stays):
                    m.d.sync += one.eq(block[:WORD] & out_bank[i].replicate(WORD))
            with m.If(~chosen_valid | ~spare_valid):
                m.d.sync += chosen_last.eq(out_end)
            with m.If(takes_word):
                m.d.sync += chosen_valid.eq(1)
            occupied = [chosen_valid, self.o.valid, spare_valid]
        with m.If(taken & (out_word[:chunk_bits] == chunks - 1)):
            m.d.sync += out_bank.eq(out_bank.rotate_left(1))
        with m.If(taken):
            m.d.sync += [
                out_word.eq(Mux(out_word_last, 0, out_word + 1)),
                out_word_last.eq((out_word == group_words - 2) | (group_words == 1)),
                out_left.eq(out_left - 1),
                out_some.eq(~out_end),
                out_end.eq(out_left == 2),
            ]
        with m.If(draining & (fetch != fetching)):
            m.d.sync += [fetch.eq(fetch + 1), fetched.eq(fetch == fetching - 1)]
        with m.If(clears_next):
            m.d.sync += [drain_row.eq(drain_row + 1), fetch.eq(0), fetched.eq(0)]

        # -- the key's memory: written, and overwritten once used ---------------------------
        sweep = Signal(range(max(columns_most * buffers, rows_most, window_depth)))
        sweep_buffer = Signal(range(buffers))
        sweep_last = Signal.like(last_column)
        late_enable = Signal.like(key_write_enable)
        m.d[way] += late_enable.eq(key_write_enable)
        late_addresses = copies("key_write_address", key_write_address, banks)
        for i, ports in enumerate(key_write):
            write(f"key_write_{i}", ports, key_cuts, late_addresses[i], late_enable[i], gathered)
        # It stays pending until done, which keeps the key from coming in.
        sweep_ends = Signal()
        m.d.sync += [
            sweep_ends.eq(sweeping & (sweep == sweep_last)),
            sweep_waits.eq(sweep_pending & ~in_identity),
        ]
        # `sweep_waits` is a clock old; once the identity part comes in, `gather` is no longer free.
        m.d.comb += sweep_begins.eq(sweep_waits & ~in_identity & ~sweeping & ~full & chunk_first)
        with m.If(sweep_begins):
            m.d.sync += [sweeping.eq(1), sweep.eq(0)]
        with m.If(sweeping):
            m.d.sync += [
                sweep.eq(sweep + 1),
                key_write_address.eq(Cat(sweep[:key_address_bits], sweep_buffer)),
                key_write_enable.eq(-1),
            ]
            with m.If(sweep_ends):
                m.d.sync += [
                    sweeping.eq(0),
                    sweep_pending.eq(0),
                    sweep_waits.eq(0),
                    sweep_ends.eq(0),
                    clean.bit_select(sweep_buffer, 1).eq(1),
                    sweep.eq(0),
                ]

        # -- states -------------------------------------------------------------------------
        dirty = Signal()
        m.d.sync += keeps_fingerprint.eq(0)
        finishing = product.latency - 1 if compact else latency + 6
        finish = Signal(range(max(latency + 9, 16)))
        finish_over = Signal()
        with m.If(begins):
            m.d.sync += [
                *enters(ToeplitzState.RUN),
                running.eq(1),
                load.eq(_Load.IDLE),
                buffer.eq(into),
                into.eq(into + 1 if buffers == 2 else 0),
                clean.bit_select(into, 1).eq(0),
                run_last_column.eq(last_column),
                run_last_row.eq(last_row),
                run_rows.eq(rows),
                last_bits.eq(rows_bits[:6]),
                run_unfinished.eq(unfinished),
                run_seed_short.eq(seed_short),
                lead_left.eq((-columns)[:group_exponent]),
                lead_some.eq(columns[:group_exponent] != 0),
                seed_left.eq(seed_words),
                seed_some.eq(1),
                seed_end.eq(0),
                tail_left.eq((-rows)[:group_exponent]),
                tail_some.eq(rows[:group_exponent] != 0),
                scans.eq(1),
                scan_column.eq(last_column),
                scan_row.eq(0),
                part.eq(0),
                step.eq(0),
                step_first.eq(1),
                step_last.eq(0),
                step_scans.eq(1),
                walking.eq(0),
                window_base.eq(0),
                window_head.eq(0),
                ready_blocks.eq(0),
                held_blocks.eq(0),
                released.eq(0),
                window_room.eq(1),
                few_blocks.eq(1),
                seed_chunk.eq(0),
                finish.eq(0),
                finish_over.eq(0),
                drained.eq(0),
                dirty.eq(1),
                *(bits.eq(of_part[0]) for bits, of_part in zip(term_bits, terms, strict=True)),
            ]
        with m.If(state == ToeplitzState.FINISH):
            m.d.sync += finish.eq(finish + 1)
            # The key before must have been overwritten, which outlasts a block that is far shorter.
            m.d.sync += finish_over.eq((finish == finishing) | (finish_over & sweep_pending))
            with m.If(finish_over & ~sweep_pending):
                m.d.sync += [
                    sweep_pending.eq(1),
                    sweep_buffer.eq(buffer),
                    sweep_last.eq(run_last_column),
                    drain_row.eq(0),
                    fetch.eq(0),
                    fetched.eq(0),
                    out_word.eq(0),
                    out_word_last.eq(group_words == 1),
                    out_bank.eq(1),
                    out_left.eq(run_rows),
                    out_some.eq(1),
                    out_end.eq(run_rows == 1),
                ]
                with m.If(run_unfinished):
                    m.d.sync += enters(ToeplitzState.IDLE)
                with m.Else():
                    m.d.sync += enters(ToeplitzState.DRAIN)
                    with m.If(~run_seed_short):
                        m.d.sync += keeps_fingerprint.eq(1)
                        # Long before the first word of output is there.
                        with m.If(same_seed):
                            m.d.comb += raise_error(ToeplitzError.SEED_REUSED)
        empties = Signal()
        m.d[way] += empties.eq(
            draining & ~out_some & ~chosen_valid & ~spare_valid & (~self.o.valid | self.o.ready)
        )
        with m.If(draining & empties):
            m.d.sync += enters(ToeplitzState.IDLE)
        m.d.comb += restarts.eq(
            idle & (load == _Load.IDLE) & ~self.start & dirty & ~open_tile & ~stops
        )

        # -- waiting for words that do not come ---------------------------------------------
        patient = Signal()
        m.d.sync += patient.eq(self.patience == 0)
        for port, error in (
            (self.key, ToeplitzError.KEY_MISSING),
            (self.seed, ToeplitzError.SEED_MISSING),
        ):
            waits = Signal(name=f"waits_{error}")
            waited = Signal(32, name=f"waited_{error}")
            enough = Signal(name=f"waited_enough_{error}")
            m.d.sync += [
                waits.eq(port.ready & ~port.valid & ~failed),
                waited.eq(Mux(waits, waited + 1, 0)),
                enough.eq(waits & (waited == self.patience)),
            ]
            m.d.comb += raised[error].eq(~patient & waits & enough)

        # -- wiping: zeros to every memory, then through every register ---------------------
        flush = Signal(range(256))
        flushed = product.loading + product.swapping + latency + 24
        swap_at = product.loading + 8
        sweep_end = max(columns_most * buffers, rows_most, window_depth) - 1
        flushing = Signal()
        sweep_over = Signal()
        flush_over = Signal()
        m.d.sync += [
            sweep_over.eq(wiping & (sweep == sweep_end)),
            flush_over.eq(flush == flushed - 1),
        ]
        m.d.comb += [
            product.swap.eq(swaps[-1] | (wiping & (flush == swap_at))),
        ]
        with m.If(wiping):
            m.d.comb += [
                sum_next.eq(sweep),
                enable_next.eq((~flushing).replicate(banks)),
                product.load.eq(flush == 4),
            ]
            m.d[way] += [
                window_address.eq(sweep),
                window_enable.eq((~flushing).replicate(chunks)),
            ]
            m.d.sync += [
                key_write_address.eq(sweep),
                key_write_enable.eq((~flushing).replicate(banks)),
            ]
            # What is still on the way to a memory goes there before the sweep begins.
            with m.If(flush == 0):
                m.d.sync += flush.eq(1)
            with m.Elif(flush == 1):
                m.d.sync += sweep.eq(sweep + 1)
                with m.If(sweep_over):
                    m.d.sync += [flush.eq(2), sweep.eq(0), sweep_over.eq(0)]
            with m.Else():
                m.d.comb += flushing.eq(1)
                m.d.sync += flush.eq(flush + 1)
                with m.If(flush_over):
                    m.d.sync += [
                        flush.eq(0),
                        flush_over.eq(0),
                        *enters(ToeplitzState.IDLE),
                        self.wiped.eq((load == _Load.IDLE) & ~self.start),
                    ]
                    with m.If(faulty & ~self.clear):
                        m.d.sync += enters(ToeplitzState.FAILED)
        with m.If(self.clear & failed):
            m.d.sync += enters(ToeplitzState.IDLE)
        with m.If(self.wipe):
            m.d.sync += self.wiped.eq(0)
        with m.If(stops):
            m.d[way] += seed_taken.eq(0)
            m.d.sync += [
                *enters(ToeplitzState.WIPE),
                running.eq(0),
                self.wiped.eq(0),
                flush.eq(0),
                flush_over.eq(0),
                sweep.eq(0),
                sweep_over.eq(0),
                sweep_ends.eq(0),
                dirty.eq(0),
                full.eq(0),
                full_identity.eq(0),
                chunk.eq(1),
                words_some.eq(0),
                in_identity.eq(0),
                sweeping.eq(0),
                sweep_pending.eq(0),
                sweep_waits.eq(0),
                clean.eq(-1),
                into.eq(0),
                scans.eq(0),
                walking.eq(0),
                open_tile.eq(0),
                keeps_fingerprint.eq(0),
                key_misses.eq(0),
                seed_misses.eq(0),
                clears.eq(0),
                fetched.eq(0),
                out_some.eq(0),
                last_bits.eq(0),
                *(one.eq(0) for one in occupied),
                seed_some.eq(0),
            ]
            # A hash started since then is not what is to be stopped.
            with m.If(~restarted):
                m.d.sync += load.eq(_Load.IDLE)
        m.d.sync += [
            self.busy.eq(~idle | (load != _Load.IDLE) | dirty | stops | self.o.valid),
            self.working.eq(
                wiping
                | moves
                | seed_moves
                | (state == ToeplitzState.FINISH)
                | draining
                | sweeping
                | restarts
                | stops
                | begins
                | ((load != _Load.IDLE) & ~loading & (load != _Load.DONE))
            ),
        ]
        return m
