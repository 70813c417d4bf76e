# SPDX-License-Identifier: CERN-OHL-W-2.0
"""Privacy amplification: the Toeplitz hash of a key, all memory on the chip."""

from amaranth.hdl import Array, Cat, Module, Mux, Signal
from amaranth.lib import data, enum, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from keyrail.contract import ToeplitzError

from .toeplitz_product import RegisterCopy, ToeplitzProduct

__all__ = ["Toeplitz", "ToeplitzProduct", "ToeplitzState", "split_over_blocks"]

WORD = 64
"""Bits of a word of the engine's streams."""

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
    COUNT = 3
    KEY = 4
    IDENTITY = 5
    DONE = 6


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
    ):
        group = width << splits
        if width < WORD or width & (width - 1):
            raise ValueError(f"width {width}: allowed are powers of two from {WORD}")
        for size in (input_bits, output_bits):
            if size < 2 * group or size & (size - 1):
                raise ValueError(
                    f"{input_bits} input and {output_bits} output bits: allowed are powers of two "
                    f"from {2 * group}"
                )
        self._input_bits, self._output_bits = input_bits, output_bits
        self._width, self._splits, self._ahead = width, splits, ahead
        self._product = ToeplitzProduct(width, smallest)
        self._scan = 2 << splits
        self.SLOT = self._scan + self._product.held
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

    def clocks(self, n: int, m: int, family: str = "modified") -> int:
        """Clocks from a block's first word to the next one's, with `ahead` and without waiting.

        The sum of

        - 3^splits times the sum over diagonals of max(`SLOT`, length), for R x C groups of
          2^splits blocks: R + C - 1 diagonals of length min(d, R, C, R + C - d), d from 1;
        - 2 2^splits width / 64 + `SLOT` to take in the first blocks of the seed and make the first
          Toeplitz block;
        - latency of the product + 14 until the last sum is there;
        - the words of output, and 4 - width / 64 (if positive) between groups of them;
        - modified family: what is left of the next key's identity part when the output is taken.
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
        output = words + (rows - 1) * max(0, 4 - chunks)
        last = words - (rows - 1) * banks * chunks
        tail = (last - 1) % chunks + 1
        identity = max(0, last - min(last, chunks) - tail - 1) if family == "modified" else 0
        return walk + begin + self._product.latency + 14 + output + identity

    def elaborate(self, platform: object) -> Module:
        m = Module()
        width, splits = self._width, self._splits
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
            made = Memory(shape=shape, depth=depth, init=[], attrs={"no_rw_check": 1})
            m.submodules[name] = made
            return made

        key_memories = [memory(f"key_{i}", width, columns_most * buffers) for i in range(banks)]
        sum_memories = [memory(f"sum_{i}", width, rows_most) for i in range(banks)]
        window = memory("window", width, window_depth)
        key_write = [one.write_port() for one in key_memories]
        key_read = [one.read_port() for one in key_memories]
        sum_write = [one.write_port() for one in sum_memories]
        sum_read = [one.read_port() for one in sum_memories]
        window_write = window.write_port(granularity=WORD)
        window_read = window.read_port(domain="comb")

        state = self.state
        load = Signal(_Load)
        failing, restarts = Signal(), Signal()
        raised = Signal(16)
        m.d.comb += failing.eq(raised.any())

        def raise_error(error: ToeplitzError) -> object:
            return raised[error].eq(1)

        with m.If(self.clear):
            m.d.sync += self.error.eq(0)
        with m.Elif(failing):
            m.d.sync += self.error.eq(self.error | raised)

        # -- sizes of the block that streams in ---------------------------------------------
        column_words = range(columns_most * group_words + 1)
        row_words = range(rows_most * group_words + 1)
        n, rows_bits = Signal(32), Signal(32)
        modified, continued, unfinished = Signal(), Signal(), Signal()
        toeplitz_bits, negative = Signal(33), Signal()
        columns, rows = Signal(column_words), Signal(row_words)
        seedless = Signal()
        open_tile, open_rows = Signal(), Signal(32)
        m.d.comb += self.free.eq(
            (load == _Load.IDLE) & (state != ToeplitzState.FAILED) & ~self.error.any()
        )
        with m.If(self.start):
            with m.If(self.free):
                m.d.sync += [
                    load.eq(_Load.SIZES),
                    n.eq(self.n),
                    rows_bits.eq(self.m),
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
            fits = (
                (rows_bits != 0)
                & (n != 0)
                & ~negative
                & ~toeplitz_bits[32]
                & (toeplitz_bits <= self._input_bits)
                & (rows_bits <= self._output_bits)
            )
            with m.If(~fits):
                m.d.comb += raise_error(ToeplitzError.SIZE)
            with m.Elif((continued != open_tile) | (continued & (open_rows != rows_bits))):
                m.d.comb += raise_error(ToeplitzError.TILE_ORDER)
            m.d.sync += [
                seedless.eq(toeplitz_bits == 0),
                columns.eq(Mux(toeplitz_bits == 0, 1, (toeplitz_bits + WORD - 1) >> 6)),
                rows.eq((rows_bits + WORD - 1) >> 6),
                open_tile.eq(unfinished),
                open_rows.eq(rows_bits),
                load.eq(_Load.COUNT),
            ]
        group_exponent = group_words.bit_length() - 1
        column_groups = Signal(range(columns_most + 1))
        row_groups = Signal(range(rows_most + 1))
        last_column, last_row = Signal(range(columns_most)), Signal(range(rows_most))
        m.d.comb += [
            column_groups.eq((columns + group_words - 1) >> group_exponent),
            row_groups.eq((rows + group_words - 1) >> group_exponent),
        ]

        # -- key in: words are gathered to blocks -------------------------------------------
        into = Signal(range(buffers))
        clean = Signal(buffers, init=-1)
        gather = Signal(width)
        full, full_identity = Signal(), Signal()
        chunk = Signal(range(chunks))
        bank, address = Signal(range(banks)), Signal(range(max(columns_most, rows_most)))
        full_bank, full_address = Signal.like(bank), Signal.like(address)
        words_left = Signal(range(max(columns_most, rows_most) * group_words + 1))
        identity_free = Signal()
        sweeping, sweep_pending = Signal(), Signal()
        takes_block, loading, accepts = Signal(), Signal(), Signal()
        m.d.comb += [
            takes_block.eq(full & (~full_identity | identity_free)),
            loading.eq((load == _Load.KEY) | (load == _Load.IDENTITY)),
            accepts.eq(self.key.valid & self.key.ready & loading),
            self.key.ready.eq(
                (state == ToeplitzState.FAILED)
                | (
                    loading
                    & (words_left != 0)
                    & (state != ToeplitzState.WIPE)
                    & clean.bit_select(into, 1)
                    & (~full | takes_block)
                    & ~sweeping
                    & ~(sweep_pending & (chunk == 0) & (load != _Load.IDENTITY))
                )
            ),
        ]
        section_ends, frame_ends = Signal(), Signal()
        m.d.comb += [
            section_ends.eq(words_left == 1),
            frame_ends.eq(section_ends & ((load == _Load.IDENTITY) | ~modified)),
        ]
        with m.If(takes_block):
            m.d.sync += full.eq(0)
        with m.If(accepts):
            with m.If(self.framed & (self.key.payload.last != frame_ends)):
                m.d.comb += [
                    raised[ToeplitzError.KEY_SHORT].eq(~frame_ends),
                    raised[ToeplitzError.KEY_LONG].eq(frame_ends),
                ]
            for i in range(chunks):
                with m.If(chunk == i):
                    m.d.sync += gather[i * WORD : (i + 1) * WORD].eq(self.key.payload.word)
                with m.Elif(chunk == 0):
                    m.d.sync += gather[i * WORD : (i + 1) * WORD].eq(0)
            m.d.sync += [words_left.eq(words_left - 1), chunk.eq(chunk + 1)]
            if chunks == 1:
                m.d.sync += chunk.eq(0)
            with m.If((chunk == chunks - 1) | section_ends):
                m.d.sync += [
                    chunk.eq(0),
                    full.eq(1),
                    full_identity.eq(load == _Load.IDENTITY),
                    full_bank.eq(bank),
                    full_address.eq(address),
                    bank.eq(bank + 1),
                ]
                with m.If(bank == banks - 1):
                    m.d.sync += [bank.eq(0), address.eq(address + 1)]
        with m.If(load == _Load.COUNT):
            m.d.sync += [
                words_left.eq(columns),
                last_column.eq(column_groups - 1),
                last_row.eq(row_groups - 1),
                load.eq(_Load.KEY),
                bank.eq(0),
                address.eq(0),
                chunk.eq(0),
            ]
        with m.If((load == _Load.KEY) & (words_left == 0)):
            m.d.sync += [
                load.eq(Mux(modified, _Load.IDENTITY, _Load.DONE)),
                words_left.eq(rows),
                bank.eq(0),
                address.eq(0),
            ]
        with m.If((load == _Load.IDENTITY) & (words_left == 0)):
            m.d.sync += load.eq(_Load.DONE)

        # -- what is worked on --------------------------------------------------------------
        begins = Signal()
        buffer = Signal(range(buffers))
        run_last_column, run_last_row = Signal.like(last_column), Signal.like(last_row)
        run_rows, last_bits = Signal(row_words), Signal(6)
        run_unfinished, run_seedless = Signal(), Signal()  # too short a seed to tell apart
        m.d.comb += begins.eq((state == ToeplitzState.IDLE) & (load == _Load.DONE) & ~full)

        # -- seed in: a window of blocks by diagonals, padded with zeros --------------------
        lead_left = Signal(range(group_words + 1))
        seed_left = Signal(range((columns_most + rows_most) * group_words + 1))
        tail_left = Signal(range(group_words + 1))
        ready_blocks = Signal(range(window_depth + 1))
        window_base, window_head = Signal(range(window_depth)), Signal(range(window_depth))
        seed_chunk = Signal(range(chunks))
        space, seed_moves, seed_real, block_made, releases = (Signal() for _ in range(5))
        running = Signal()
        m.d.comb += [
            running.eq(state == ToeplitzState.RUN),
            space.eq(running & (ready_blocks != window_depth)),
            seed_real.eq((lead_left == 0) & (seed_left != 0)),
            self.seed.ready.eq((state == ToeplitzState.FAILED) | (space & seed_real)),
            seed_moves.eq(
                space & Mux(seed_real, self.seed.valid, (lead_left != 0) | (tail_left != 0))
            ),
            block_made.eq(seed_moves & (seed_chunk == chunks - 1)),
            window_write.addr.eq(window_head),
            window_write.data.eq(Mux(seed_real, self.seed.payload.word, 0).replicate(chunks)),
        ]
        for i in range(chunks):
            m.d.comb += window_write.en[i].eq(seed_moves & (seed_chunk == i))
        fingerprint, former_fingerprint = Signal(WORD), Signal(WORD)
        former_valid = Signal()
        with m.If(seed_moves):
            m.d.sync += seed_chunk.eq(Mux(seed_chunk == chunks - 1, 0, seed_chunk + 1))
            with m.If(lead_left != 0):
                m.d.sync += lead_left.eq(lead_left - 1)
            with m.Elif(seed_real):
                m.d.sync += seed_left.eq(seed_left - 1)
                with m.If(self.framed & (self.seed.payload.last != (seed_left == 1))):
                    m.d.comb += [
                        raised[ToeplitzError.SEED_SHORT].eq(seed_left != 1),
                        raised[ToeplitzError.SEED_LONG].eq(seed_left == 1),
                    ]
                # Value at a fixed point of the polynomial over GF(2^64) that the words make up;
                # x^64 + x^4 + x^3 + x + 1 is irreducible.
                shifted = Cat(0, fingerprint[:-1]) ^ Mux(fingerprint[-1], 0b11011, 0)
                m.d.sync += fingerprint.eq(shifted ^ self.seed.payload.word)
            with m.Else():
                m.d.sync += tail_left.eq(tail_left - 1)
        with m.If(block_made):
            m.d.sync += window_head.eq(window_head + 1)
        m.d.sync += ready_blocks.eq(ready_blocks + block_made - Mux(releases, banks, 0))

        # -- slots: one diagonal of one product is walked, that of the next is made -----------
        slot = self.SLOT
        step = Signal(range(slot))
        scans = Signal()
        part = Signal(range(len(parts)))
        scan_column, scan_row = Signal.like(last_column), Signal.like(last_row)
        column, row = Signal.like(last_column), Signal.like(last_row)
        walking = Signal()
        input_mask, output_mask = Signal(banks), Signal(banks)
        moves, starved, issues, last_block, ends = (Signal() for _ in range(5))
        m.d.comb += [
            starved.eq(running & (step == 0) & scans & (ready_blocks < 2 * banks)),
            moves.eq(running & ~starved),
            issues.eq(moves & walking),
            last_block.eq((column == run_last_column) | (row == run_last_row)),
            ends.eq(moves & (step == slot - 1) & (~walking | last_block)),
        ]
        with m.If(moves & (step != slot - 1)):
            m.d.sync += step.eq(step + 1)
        with m.If(issues):
            m.d.sync += [column.eq(column + 1), row.eq(row + 1)]
            with m.If(last_block):
                m.d.sync += walking.eq(0)
        lower_terms = Array(_bits(one[0], 2 * banks, banks - 1) for one in parts)
        upper_terms = Array(_bits(one[0], 2 * banks, banks) for one in parts)
        with m.If(ends):
            m.d.sync += step.eq(0)
            with m.If(scans):
                m.d.sync += [
                    column.eq(scan_column),
                    row.eq(scan_row),
                    walking.eq(1),
                    input_mask.eq(Array(_bits(one[1], banks) for one in parts)[part]),
                    output_mask.eq(Array(_bits(one[2], banks) for one in parts)[part]),
                    part.eq(part + 1),
                ]
                with m.If(part == len(parts) - 1):
                    m.d.comb += releases.eq(1)
                    m.d.sync += [part.eq(0), window_base.eq(window_base + banks)]
                    with m.If(scan_column != 0):
                        m.d.sync += scan_column.eq(scan_column - 1)
                    with m.Elif(scan_row != run_last_row):
                        m.d.sync += scan_row.eq(scan_row + 1)
                    with m.Else():
                        m.d.sync += scans.eq(0)
            with m.Else():
                m.d.sync += [state.eq(ToeplitzState.FINISH), step.eq(0)]

        # The Toeplitz block: sums of blocks of the window, read one after the other.
        wiping = Signal()
        seed_block = Signal(width)
        adds_lower, adds_upper, first = Signal(), Signal(), Signal()
        t_lower, t_upper = Signal(width), Signal(width)
        scan_step = step[: (self._scan - 1).bit_length()]
        m.d.comb += window_read.addr.eq(window_base + scan_step)
        m.d.sync += [
            seed_block.eq(window_read.data),
            adds_lower.eq(lower_terms[part].bit_select(scan_step, 1) & scans),
            adds_upper.eq(upper_terms[part].bit_select(scan_step, 1) & scans),
            first.eq((step == 0) | wiping),
        ]
        adding = Signal()
        m.d.sync += adding.eq((moves & (step < self._scan)) | wiping)
        with m.If(adding):
            for total, adds in ((t_lower, adds_lower), (t_upper, adds_upper)):
                m.d.sync += total.eq(
                    (total & (~first).replicate(width))
                    ^ (seed_block & (adds & ~wiping).replicate(width))
                )
        m.d.comb += [
            product.t.eq(Cat(t_lower, t_upper)),
            product.load.eq(moves & (step == self._scan) & scans),
        ]

        # -- the product's input ------------------------------------------------------------
        key_address = Signal(range(columns_most * buffers))
        m.d.sync += key_address.eq(column + Mux(buffer, columns_most, 0))
        masks, raw = [input_mask], []
        for i in range(3):
            masks.append(Signal(banks, name=f"input_mask_{i}"))
            m.d.sync += masks[-1].eq(masks[-2])
        for i, port in enumerate(key_read):
            # Without reset, and read at every clock: the register that block RAM brings along.
            raw.append(Signal(width, name=f"key_block_{i}", reset_less=True))
            m.d.comb += port.addr.eq(key_address)
            m.d.sync += raw[-1].eq(port.data)
        vector = Signal(width)
        terms = [one & masks[3][i].replicate(width) for i, one in enumerate(raw)]
        total = terms[0]
        for term in terms[1:]:
            total = total ^ term
        m.d.sync += vector.eq(total)
        m.d.comb += product.x.eq(vector)
        swaps = [issues & (step == 0)]
        for i in range(3):
            swaps.append(Signal(name=f"swap_{i}"))
            m.d.sync += swaps[-1].eq(swaps[-2])

        # -- the sums -----------------------------------------------------------------------
        latency = product.latency
        on_way = [Cat(row, output_mask & issues.replicate(banks))]
        for i in range(latency + 4):
            on_way.append(Signal(len(on_way[0]), name=f"on_way_{i}"))
            m.d.sync += on_way[-1].eq(on_way[-2])
        row_bits = len(row)
        sum_address, read_address = Signal(range(rows_most)), Signal(range(rows_most))
        sum_enable, addend = Signal(banks), Signal(width)
        keep_next = Signal()
        drain_row, drains = Signal(range(rows_most)), Signal()
        clears = Signal()
        m.d.sync += [
            read_address.eq(on_way[latency + 2][:row_bits]),
            addend.eq(product.y),
            sum_address.eq(on_way[latency + 4][:row_bits]),
            sum_enable.eq(on_way[latency + 4][row_bits:]),
        ]
        m.d.comb += keep_next.eq(1)
        with m.If(drains):
            m.d.sync += read_address.eq(drain_row)
        sum_words = []
        for i, (source, sink) in enumerate(zip(sum_read, sum_write, strict=True)):
            m.submodules[f"register_copy_{i}"] = copy = RegisterCopy()
            sum_word = Signal(width, name=f"sum_block_{i}", reset_less=True)
            m.d.sync += sum_word.eq(source.data)
            m.d.comb += [
                copy.i.eq(keep_next),
                source.addr.eq(read_address),
                sink.addr.eq(sum_address),
                sink.en.eq(sum_enable[i]),
                sink.data.eq((sum_word & copy.o.replicate(width)) ^ addend),
            ]
            sum_words.append(sum_word)

        # The identity's part of the key: first content of the sums, behind the output.
        drained = Signal(range(rows_most + 1))
        m.d.comb += identity_free.eq(
            ~clears
            & (
                (state == ToeplitzState.IDLE)
                | ((state == ToeplitzState.DRAIN) & (full_address < drained))
            )
        )
        with m.If(clears):
            m.d.comb += keep_next.eq(0)
            m.d.sync += [sum_address.eq(drain_row), sum_enable.eq(-1), addend.eq(0)]
        with m.Elif(full & full_identity & identity_free):
            m.d.comb += keep_next.eq(0)
            m.d.sync += [
                sum_address.eq(full_address),
                sum_enable.eq(1 << full_bank),
                addend.eq(gather),
            ]

        # -- output -------------------------------------------------------------------------
        fetch, out_bank = Signal(2), Signal(range(banks))
        out_block, out_there, out_chunk = Signal(width), Signal(), Signal(range(chunks))
        out_left, fetch_left = Signal(row_words), Signal(row_words)
        o_moves, next_block, out_ends = Signal(), Signal(), Signal()
        m.d.comb += [
            drains.eq(state == ToeplitzState.DRAIN),
            o_moves.eq(out_there & (~self.o.valid | self.o.ready)),
            out_ends.eq((out_chunk == chunks - 1) | (out_left == 1)),
            next_block.eq(
                drains & (fetch == 3) & (fetch_left != 0) & (~out_there | (o_moves & out_ends))
            ),
            clears.eq(next_block & ((out_bank == banks - 1) | (fetch_left <= chunks))),
        ]
        with m.If(self.o.ready):
            m.d.sync += self.o.valid.eq(0)
        with m.If(o_moves):
            mask = Mux((out_left == 1) & last_bits.any(), (1 << last_bits) - 1, (1 << WORD) - 1)
            m.d.sync += [
                self.o.valid.eq(1),
                self.o.payload.word.eq(out_block.word_select(out_chunk, WORD) & mask),
                self.o.payload.last.eq(out_left == 1),
                out_left.eq(out_left - 1),
                out_chunk.eq(out_chunk + 1),
            ]
            with m.If(out_ends):
                m.d.sync += [out_chunk.eq(0), out_there.eq(0)]
        with m.If(drains & (fetch != 3)):
            m.d.sync += fetch.eq(fetch + 1)
        with m.If(next_block):
            m.d.sync += [
                out_there.eq(1),
                out_block.eq(Array(sum_words)[out_bank]),
                out_bank.eq(out_bank + 1),
                fetch_left.eq(Mux(fetch_left <= chunks, 0, fetch_left - chunks)),
            ]
            with m.If(clears):
                m.d.sync += [
                    out_bank.eq(0),
                    drain_row.eq(drain_row + 1),
                    drained.eq(drained + 1),
                    fetch.eq(0),
                ]

        # -- the key's memory: written, and overwritten once used ---------------------------
        sweep = Signal(range(max(columns_most * buffers, rows_most, window_depth)))
        sweep_buffer, sweep_last = Signal(range(buffers)), Signal.like(last_column)
        for i, port in enumerate(key_write):
            m.d.comb += [
                port.addr.eq(full_address + Mux(into, columns_most, 0)),
                port.data.eq(gather),
                port.en.eq(full & ~full_identity & (full_bank == i)),
            ]
            with m.If(sweeping):
                m.d.comb += [
                    port.addr.eq(sweep + Mux(sweep_buffer, columns_most, 0)),
                    port.en.eq(1),
                ]
        with m.If(sweep_pending & ~full & (chunk == 0) & (load != _Load.IDENTITY)):
            m.d.sync += [sweep_pending.eq(0), sweeping.eq(1), gather.eq(0), sweep.eq(0)]
        with m.If(sweeping):
            m.d.sync += sweep.eq(sweep + 1)
            with m.If(sweep == sweep_last):
                m.d.sync += [sweeping.eq(0), clean.bit_select(sweep_buffer, 1).eq(1), sweep.eq(0)]

        # -- states -------------------------------------------------------------------------
        dirty = Signal()
        finish = Signal(range(max(latency + 8, 16)))
        with m.If(begins):
            m.d.sync += [
                state.eq(ToeplitzState.RUN),
                load.eq(_Load.IDLE),
                buffer.eq(into),
                into.eq(into + 1 if buffers == 2 else 0),
                clean.bit_select(into, 1).eq(0),
                run_last_column.eq(last_column),
                run_last_row.eq(last_row),
                run_rows.eq(rows),
                last_bits.eq(rows_bits[:6]),
                run_unfinished.eq(unfinished),
                run_seedless.eq(seedless | (columns + rows < 4)),
                lead_left.eq((-columns)[:group_exponent]),
                seed_left.eq(columns + rows),
                tail_left.eq((-rows)[:group_exponent]),
                scans.eq(1),
                scan_column.eq(last_column),
                scan_row.eq(0),
                part.eq(0),
                step.eq(0),
                walking.eq(0),
                window_base.eq(0),
                window_head.eq(0),
                ready_blocks.eq(0),
                seed_chunk.eq(0),
                finish.eq(0),
                drained.eq(0),
                dirty.eq(1),
            ]
            with m.If(~continued):
                m.d.sync += fingerprint.eq(0)
        with m.If(state == ToeplitzState.FINISH):
            m.d.sync += finish.eq(finish + 1)
            with m.If(finish == latency + 6):
                m.d.sync += [
                    sweep_pending.eq(1),
                    sweep_buffer.eq(buffer),
                    sweep_last.eq(run_last_column),
                    drain_row.eq(0),
                    out_bank.eq(0),
                    fetch.eq(0),
                    out_left.eq(run_rows),
                    fetch_left.eq(run_rows),
                    out_chunk.eq(0),
                ]
                with m.If(run_unfinished):
                    m.d.sync += state.eq(ToeplitzState.IDLE)
                with m.Else():
                    m.d.sync += state.eq(ToeplitzState.DRAIN)
                    with m.If(~run_seedless):
                        m.d.sync += [former_fingerprint.eq(fingerprint), former_valid.eq(1)]
                        with m.If(former_valid & (former_fingerprint == fingerprint)):
                            m.d.comb += raise_error(ToeplitzError.SEED_REUSED)
        with m.If(drains & (out_left == 0) & ~self.o.valid):
            m.d.sync += state.eq(ToeplitzState.IDLE)
        with m.If(
            (state == ToeplitzState.IDLE) & (load == _Load.IDLE) & ~self.start & dirty & ~open_tile
        ):
            m.d.comb += restarts.eq(1)

        # -- waiting for words that do not come ---------------------------------------------
        for port, error in (
            (self.key, ToeplitzError.KEY_MISSING),
            (self.seed, ToeplitzError.SEED_MISSING),
        ):
            waited = Signal(32, name=f"waited_{error}")
            waits = port.ready & ~port.valid & (state != ToeplitzState.FAILED)
            m.d.sync += waited.eq(Mux(waits, waited + 1, 0))
            with m.If((self.patience != 0) & waits & (waited == self.patience)):
                m.d.comb += raised[error].eq(1)

        # -- wiping: zeros to every memory, then through every register ---------------------
        flush = Signal(range(256))
        flushed = product.loading + product.swapping + latency + 24
        swap_at = product.loading + 8
        sweep_end = max(columns_most * buffers, rows_most, window_depth) - 1
        flushing = Signal()
        m.d.comb += [
            wiping.eq(state == ToeplitzState.WIPE),
            product.swap.eq(swaps[3] | (wiping & (flush == swap_at))),
        ]
        with m.If(wiping):
            for port in key_write:
                m.d.comb += [port.addr.eq(sweep), port.en.eq(~flushing)]
            m.d.comb += [
                window_write.addr.eq(sweep),
                window_write.data.eq(0),
                window_write.en.eq((~flushing).replicate(chunks)),
                window_read.addr.eq(0),
                keep_next.eq(0),
                product.load.eq(flush == 4),
            ]
            m.d.sync += [
                gather.eq(0),
                key_address.eq(0),
                read_address.eq(0),
                sum_address.eq(sweep),
                sum_enable.eq((~flushing).replicate(banks)),
                addend.eq(0),
            ]
            # The first clock's gather may still hold a block: the sweep begins after it.
            with m.If(flush == 0):
                m.d.sync += flush.eq(1)
                m.d.comb += [port.en.eq(0) for port in key_write]
            with m.Elif(flush == 1):
                m.d.sync += sweep.eq(sweep + 1)
                with m.If(sweep == sweep_end):
                    m.d.sync += [flush.eq(2), sweep.eq(0)]
            with m.Else():
                m.d.comb += flushing.eq(1)
                m.d.sync += flush.eq(flush + 1)
                with m.If(flush == flushed):
                    m.d.sync += [
                        flush.eq(0),
                        state.eq(Mux(self.error.any(), ToeplitzState.FAILED, ToeplitzState.IDLE)),
                        self.wiped.eq((load == _Load.IDLE) & ~self.start),
                    ]
        with m.If(self.clear & (state == ToeplitzState.FAILED)):
            m.d.sync += state.eq(ToeplitzState.IDLE)
        with m.If(self.wipe | failing | restarts):
            m.d.sync += [
                state.eq(ToeplitzState.WIPE),
                self.wiped.eq(0),
                load.eq(_Load.IDLE),
                flush.eq(0),
                sweep.eq(0),
                dirty.eq(0),
                full.eq(0),
                chunk.eq(0),
                words_left.eq(0),
                sweeping.eq(0),
                sweep_pending.eq(0),
                clean.eq(-1),
                into.eq(0),
                gather.eq(0),
                scans.eq(0),
                walking.eq(0),
                step.eq(0),
                open_tile.eq(0),
                fingerprint.eq(0),
                out_block.eq(0),
                out_there.eq(0),
                self.o.valid.eq(0),
                self.o.payload.eq(0),
                seed_left.eq(0),
            ]
        m.d.comb += [
            self.busy.eq(
                (state != ToeplitzState.IDLE) | (load != _Load.IDLE) | dirty | self.o.valid
            ),
            self.working.eq(
                wiping
                | (moves & running)
                | seed_moves
                | (state == ToeplitzState.FINISH)
                | drains
                | sweeping
                | restarts
                | begins
                | (load == _Load.SIZES)
                | (load == _Load.CHECK)
                | (load == _Load.COUNT)
            ),
        ]
        return m
