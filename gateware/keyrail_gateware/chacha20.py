# SPDX-License-Identifier: CERN-OHL-W-2.0
"""The ChaCha20 block function (RFC 8439, section 2.3), several blocks in flight."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFO
from amaranth.lib.wiring import In, Out

__all__ = ["CONSTANTS", "LATENCY", "PARTS", "PART_BITS", "STEPS", "ChaCha20"]

CONSTANTS = (0x61707865, 0x3320646E, 0x79622D32, 0x6B206574)
"""First four words of the state ("expand 32-byte k"), RFC 8439, section 2.3."""
PART_BITS = 64
"""Bits of a block that leave in a clock."""
PARTS = 512 // PART_BITS
"""Parts of a block."""
STEPS = 8
"""Pipeline stages of a double round, and so blocks in flight."""
DOUBLE_ROUNDS = 10
LATENCY = STEPS * DOUBLE_ROUNDS + 2
"""Clocks from a request that is taken at once to the first part of its block."""
CLOCKS_PER_BLOCK = DOUBLE_ROUNDS
"""Clocks a block in the mean, at full load: eight blocks in eighty clocks."""

_ROTATIONS = (16, 12, 8, 7)
_COLUMNS = tuple((i, 4 + i, 8 + i, 12 + i) for i in range(4))
_DIAGONALS = tuple((i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4) for i in range(4))
_DEPTH = 16  # more requests than can be in flight


class ChaCha20(wiring.Component):
    """Compute ChaCha20 blocks, in the order of their requests.

    A double round is a ring of eight stages, one addition, exclusive or and rotation of each of
    four quarter rounds a stage; a block goes round ten times. Blocks begin at least eight clocks
    apart, so that each has left, with the initial state added, before the next comes out.

    Latency: 82 clocks (`LATENCY`) from request to first part where a stage is free. Throughput: 8
    blocks in 80 clocks.

    Parameters
    ----------
    tag_bits
        Width of a tag that goes with each block.

    Members
    -------
    key
        256 bits, the words of RFC 8439 with the first in the low bits. Constant while blocks are
        in flight.
    request
        Stream: ``counter`` (32 bits), ``nonce`` (96 bits, first word in the low bits), ``tag``.
    o
        Stream: ``bits``, 64 bits of the block a record, the first in the low bits (words 2 i and
        2 i + 1 in record i), ``part`` (0 to 7) and ``tag``.
    idle
        1 when no block is in flight.
    """

    def __init__(self, tag_bits: int = 1):
        self._request = data.StructLayout({"counter": 32, "nonce": 96, "tag": tag_bits})
        super().__init__(
            {
                "key": In(256),
                "request": In(stream.Signature(self._request)),
                "o": Out(
                    stream.Signature(
                        data.StructLayout({"bits": PART_BITS, "part": 3, "tag": tag_bits})
                    )
                ),
                "idle": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        # What a block was asked with waits here, in order, for its addition at the end.
        m.submodules.asked = asked = SyncFIFO(width=self._request.size, depth=_DEPTH)
        words = [[Signal(32, name=f"word_{s}_{i}") for i in range(16)] for s in range(STEPS)]
        valid = [Signal(name=f"valid_{s}") for s in range(STEPS)]
        trips = [Signal(4, name=f"trips_{s}") for s in range(STEPS)]
        moves = Signal()
        request = self.request.payload

        # The ring's beginning: a block on its way, or a new one.
        last = STEPS - 1
        returns = Signal()
        begins = Signal()
        spacing = Signal(range(STEPS))
        ended = Signal()
        m.d.comb += [
            self.request.ready.eq(moves & ~returns & (spacing == 0) & asked.w_rdy),
            begins.eq(self.request.valid & self.request.ready),
            asked.w_data.eq(request.as_value()),
            asked.w_en.eq(begins),
        ]
        initial = [
            *(Const(word, 32) for word in CONSTANTS),
            *(self.key.word_select(i, 32) for i in range(8)),
            request.counter,
            *(request.nonce.word_select(i, 32) for i in range(3)),
        ]
        first = [Signal(32, name=f"first_{i}") for i in range(16)]
        m.d.comb += [
            signal.eq(Mux(returns, around, fresh))
            for signal, around, fresh in zip(first, words[last], initial, strict=True)
        ]
        with m.If(moves):
            # Whether a block in the last step ends there is known a step before.
            ends = trips[last - 1] == DOUBLE_ROUNDS - 1
            m.d.sync += [
                ended.eq(valid[last - 1] & ends),
                returns.eq(valid[last - 1] & ~ends),
                spacing.eq(Mux(begins, STEPS - 1, Mux(spacing == 0, 0, spacing - 1))),
                valid[0].eq(returns | begins),
                trips[0].eq(Mux(returns, trips[last] + 1, 0)),
            ]
            for s in range(1, STEPS):
                m.d.sync += [valid[s].eq(valid[s - 1]), trips[s].eq(trips[s - 1])]
            for s in range(STEPS):
                before = list(first if s == 0 else words[s - 1])
                for a, b, c, d in _COLUMNS if s < 4 else _DIAGONALS:
                    # a += b; d ^= a; d <<<= 16, or the same with c, d and b.
                    target, turned, other = (a, d, b) if s % 2 == 0 else (c, b, d)
                    total = Signal(32, name=f"total_{s}_{a}")
                    mixed = Signal(32, name=f"mixed_{s}_{a}")
                    m.d.comb += [
                        total.eq(before[target] + before[other]),
                        mixed.eq((before[turned] ^ total).rotate_left(_ROTATIONS[s % 4])),
                    ]
                    before[target], before[turned] = total, mixed
                m.d.sync += [mine.eq(new) for mine, new in zip(words[s], before, strict=True)]

        # The end: the initial state is added to two words a clock.
        result = Signal(512)
        part = Signal(range(PARTS))
        parts_left = Signal()
        asked_with = data.View(self._request, asked.r_data)
        pairs = [
            *(Cat(initial[i], initial[i + 1]) for i in range(0, 12, 2)),
            Cat(asked_with.counter, asked_with.nonce[:32]),
            asked_with.nonce[32:],
        ]
        addend, total = Signal(64), Signal(64)
        with m.Switch(part):
            for i, pair in enumerate(pairs):
                with m.Case(i):
                    m.d.comb += addend.eq(pair)
        m.d.comb += [
            total.eq(
                Cat(
                    (result[:32] + addend[:32])[:32],
                    (result[32:64] + addend[32:])[:32],
                )
            ),
            moves.eq(~self.o.valid | self.o.ready),
            asked.r_en.eq(moves & parts_left & (part == PARTS - 1)),
            self.idle.eq(~Cat(*valid, parts_left, self.o.valid).any()),
        ]
        with m.If(moves):
            m.d.sync += [
                self.o.valid.eq(parts_left),
                self.o.payload.bits.eq(total),
                self.o.payload.part.eq(part),
                self.o.payload.tag.eq(asked_with.tag),
                result.eq(result >> PART_BITS),
            ]
            with m.If(parts_left):
                m.d.sync += part.eq(part + 1)
                with m.If(part == PARTS - 1):
                    m.d.sync += parts_left.eq(0)
            with m.If(ended):
                m.d.sync += [result.eq(Cat(*words[last])), parts_left.eq(1), part.eq(0)]
        return m
