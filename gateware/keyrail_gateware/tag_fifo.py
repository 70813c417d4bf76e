# SPDX-License-Identifier: CERN-OHL-W-2.0
"""Tag FIFO: the one place of the tag path where clicks may be lost, marked and counted."""

from amaranth.hdl import Assert, Assume, Module, Mux, ResetInserter, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.wiring import In, Out

from keyrail.contract import COUNTER_BITS, LOSS, TAG, TIME_BITS, LossMark, TagKind

from .layouts import layout
from .ledger import Counts, Ledger

__all__ = ["TagFifo"]

COUNTED = 12
"""Low bits of the counters that the proof compares."""


class TagFifo(wiring.Component):
    """Hold tags for a sink that may be slower, and lose clicks only by rule.

    In real time (``real_time``) the input never waits. A click that finds no room begins a loss:
    a loss record (``LossMark.BEGIN``, with the time of that click) takes its place in the stream,
    and all clicks from there on are dropped and counted until the FIFO holds ``resume`` records
    or fewer. Then a loss record (``LossMark.END``, with the time of the last record that came)
    ends it, and one record of the loss ledger says begin, end and how many clicks were missed.
    Time and frame markers have `reserve` places of their own, so that they pass during a loss;
    where even these are full they are dropped and counted.
    The stream stays in time order, and the loss ends only where the loss ledger has room for its
    record: no record of the ledger is ever lost.

    What blocks in front had no room for (``refused``) begins a loss as well: it ends once the
    stream has passed the time ``until`` given with it.

    Otherwise (``real_time`` 0) the input waits, and nothing is lost.

    Latency: 3 clocks. Throughput: 1 record a clock.

    Parameters
    ----------
    depth
        Records it holds, a power of two.
    reserve
        Places out of these for markers alone, at least 3.
    ledger_depth
        Records of the loss ledger it holds.

    Members
    -------
    i, o
        Streams of ``tag``, in time order.
    losses
        Stream of ``loss``: the loss ledger.
    real_time
        1: the input never waits, but while ``busy`` and in the clock after ``refused``.
    refused, until
        Clicks that a block in front had no room for in this clock (0 to 15), and a time that is
        not before any of theirs, ps.
    flush
        Strobe: empty the FIFO, overwrite its memory, clear the counters. A record taken in its
        clock goes with the others.
    busy
        1 while it does so (at most some 2 ``depth`` clocks).
    level
        Records held.
    counts
        Ledger of ``tag_fifo``.
    """

    def __init__(self, depth: int = 4096, reserve: int = 16, ledger_depth: int = 16):
        if depth & depth - 1 or not 3 <= reserve <= depth // 2:
            raise ValueError(
                f"tag FIFO of {depth} with {reserve} in reserve: allowed are a power of two, "
                "and 3 to half of it"
            )
        self.depth, self.reserve, self.ledger_depth = depth, reserve, ledger_depth
        self.resume = depth // 2
        super().__init__(
            {
                "i": In(stream.Signature(layout(TAG))),
                "o": Out(stream.Signature(layout(TAG))),
                "losses": Out(stream.Signature(layout(LOSS))),
                "real_time": In(1),
                "refused": In(4),
                "until": In(TIME_BITS),
                "flush": In(1),
                "busy": Out(1),
                "level": Out(range(depth + 2)),
                "counts": Out(Counts("tag_fifo")),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        flush = Signal()  # close by; the strobe comes from far away
        m.d.sync += flush.eq(self.flush)
        m.submodules.ledger = ledger = ResetInserter(flush)(Ledger("tag_fifo"))
        m.submodules.fifo = fifo = SyncFIFOBuffered(width=layout(TAG).size, depth=self.depth + 1)
        m.submodules.kept = kept = ResetInserter(flush)(
            SyncFIFOBuffered(width=layout(LOSS).size, depth=self.ledger_depth + 1)
        )
        sweeping, swept = Signal(), Signal(range(self.depth + 1))
        level = Signal(range(self.depth + 2))
        m.d.comb += [
            self.counts.live.eq(ledger.counts.live),
            self.counts.at_frame.eq(ledger.counts.at_frame),
            self.level.eq(level),
            self.losses.payload.as_value().eq(kept.r_data),
            self.losses.valid.eq(kept.r_rdy),
            kept.r_en.eq(self.losses.ready),
        ]

        # What the records held mean for this clock are flip-flops, set by what was written and read
        # in the clock before.
        writes, reads = Signal(), Signal()
        m.d.comb += reads.eq(fifo.r_en & fifo.r_rdy)

        def below(name: str, limit: int) -> Signal:
            flag, if_written, if_not = Signal(name=name, init=1), Signal(), Signal()
            # Whether something is written comes last.
            m.d.comb += [
                if_written.eq(Mux(reads, level < limit, level < limit - 1)),
                if_not.eq(Mux(reads, level <= limit, level < limit)),
            ]
            m.d.sync += flag.eq(Mux(writes, if_written, if_not))
            return flag

        m.d.sync += level.eq(Mux(writes == reads, level, Mux(writes, level + 1, level - 1)))
        # A loss is under way; its first marker is still to be written; it is not to end before
        # the stream has passed `horizon`.
        losing, begin_due, waiting = Signal(), Signal(), Signal()
        horizon, latest, begin = Signal(TIME_BITS), Signal(TIME_BITS), Signal(TIME_BITS)
        # Counted a clock late; `begins` a loss then.
        missed, more, begins = Signal(COUNTER_BITS), Signal(5), Signal()

        tag = self.i.payload
        taken, click, marker = Signal(), Signal(), Signal()
        # Of the places for markers one stays free for the marker that begins a loss.
        room = below("room", self.depth - self.reserve)
        marker_room = below("marker_room", self.depth - 1)
        few = below("few", self.resume + 1)
        refused = Signal()
        caught_up = Signal()  # the stream has passed the horizon; known a clock after
        beginning, ending, dropped = Signal(), Signal(), Signal()
        written = Signal(layout(TAG))
        m.d.comb += [
            refused.eq((self.refused != 0) & ~sweeping),
            self.i.ready.eq(~(sweeping | flush | begin_due) & (self.real_time | room)),
            taken.eq(self.i.valid & self.i.ready),
            click.eq(taken & (tag.kind == TagKind.CLICK)),
            marker.eq(taken & (tag.kind != TagKind.CLICK)),
            dropped.eq(click & (losing | refused | ~room)),
            beginning.eq(begin_due | (click & ~losing & (refused | ~room))),
            ending.eq(
                losing & ~begin_due & few & kept.w_rdy & caught_up & ~marker & ~refused & ~sweeping
            ),
            # Records, and what begins or ends a loss; there is always a place for them.
            writes.eq(begin_due | (click & ~losing) | (marker & marker_room) | ending),
        ]
        # Whatever is written bears the time of the last record that came: a clock later that is
        # `latest`.
        m.d.comb += [
            written.time.eq(Mux(taken, tag.time, latest)),
            written.kind.eq(tag.kind),
            written.channel.eq(tag.channel),
        ]
        with m.If(beginning | ending):
            m.d.comb += [
                written.kind.eq(TagKind.LOSS),
                written.channel.eq(Mux(ending, LossMark.END, LossMark.BEGIN)),
            ]

        m.d.comb += [
            self.o.payload.as_value().eq(fifo.r_data),
            self.o.valid.eq(fifo.r_rdy & ~(sweeping | flush)),
            fifo.r_en.eq(self.o.ready | sweeping),
            self.busy.eq(sweeping | flush | self.flush),
        ]
        # Both are written a clock after the decision; the level counts at once.
        record, entry = Signal(layout(LOSS)), Signal(layout(TAG))
        kind, channel = Signal.like(tag.kind), Signal.like(tag.channel)
        total = Signal(COUNTER_BITS)  # missed, with those of the clock before
        m.d.comb += [
            total.eq(Mux(begins, 0, missed) + more),
            record.begin.eq(begin),
            record.end.eq(latest),
            record.missed.eq(total),
            entry.time.eq(latest),
            entry.kind.eq(kind),
            entry.channel.eq(channel),
            fifo.w_data.eq(entry),
            kept.w_data.eq(record),
        ]
        m.d.sync += [
            fifo.w_en.eq(writes),
            kind.eq(written.kind),
            channel.eq(written.channel),
            kept.w_en.eq(ending & ~flush),
            missed.eq(total),
            more.eq(0),
            begins.eq(0),
        ]

        with m.If(taken):
            m.d.sync += latest.eq(tag.time)
        m.d.sync += caught_up.eq(~refused & ~(waiting & (latest - horizon)[TIME_BITS - 1]))
        with m.If(refused):
            m.d.sync += [waiting.eq(1), horizon.eq(self.until)]
        with m.If(begin_due):
            m.d.sync += begin_due.eq(0)
        with m.If(losing | refused | dropped):
            m.d.sync += more.eq(click + self.refused)
        with m.If(~losing & (refused | dropped)):
            m.d.sync += [losing.eq(1), begin_due.eq(~click), begins.eq(1)]
        with m.If(begins):
            m.d.sync += begin.eq(latest)
        with m.If(ending):
            m.d.sync += [losing.eq(0), waiting.eq(0)]

        # What leaves comes late, out of the memory: it is counted a clock after.
        left, left_kind = Signal(), Signal.like(tag.kind)
        m.d.sync += [
            left.eq(self.o.valid & self.o.ready),
            left_kind.eq(self.o.payload.kind),
        ]
        m.d.comb += [
            ledger.step["in"].eq(click),
            ledger.step.out.eq(left & (left_kind == TagKind.CLICK)),
            ledger.step.missed.eq(dropped),
            ledger.step.refused.eq(Mux(sweeping, 0, self.refused)),
            ledger.step.losses.eq(ending),
            ledger.step.markers_missed.eq(marker & ~marker_room),
        ]
        with m.If(marker & marker_room & (tag.kind == TagKind.FRAME)):
            m.d.comb += [
                ledger.frame[name].eq(1) for name in ledger.frame.shape().members if name != "out"
            ]
        with m.If(left & (left_kind == TagKind.FRAME)):
            m.d.comb += ledger.frame.out.eq(1)

        # Zeros pass through every place of the memory, and are thrown away at the output.
        with m.If(sweeping):
            m.d.comb += [
                written.kind.eq(0),
                written.channel.eq(0),
                writes.eq(~swept[-1] & room),
            ]
            with m.If(writes):
                m.d.sync += swept.eq(swept + 1)
            with m.If(swept[-1] & (level == 0)):
                m.d.sync += sweeping.eq(0)
        with m.If(flush):
            m.d.sync += [sweeping.eq(1), swept.eq(0)]
            m.d.sync += [register.eq(0) for register in (losing, begin_due, waiting, begins)]
            m.d.sync += [register.eq(0) for register in (horizon, latest, begin, missed, more)]

        if platform == "formal":
            due = ledger.due
            decided = (writes & ~sweeping, written)
            counting = (begins, more, total)
            self._properties(
                m,
                due,
                fifo,
                kept,
                decided,
                record,
                entry,
                (flush, sweeping),
                begin_due,
                losing,
                latest,
                counting,
            )
            m.d.comb += [
                Assert(level <= self.depth + sweeping),
                Assert(level == fifo.level + fifo.w_en),
                Assert(room == (level < self.depth - self.reserve)),
                Assert(marker_room == (level < self.depth - 1)),
                Assert(few == (level <= self.resume)),
            ]
        return m

    def _properties(
        self,
        m,
        due,
        fifo,
        kept,
        decided,
        record,
        entry,
        emptying,
        begin_due,
        losing,
        latest,
        counting,
    ) -> None:
        """What is proven of it, for an input in time order and any traffic otherwise.

        The FIFO itself is Amaranth's, with invariants of its own. Counters are compared modulo
        2^12, further than one clock can take them.
        """
        # Counters are a clock behind: with what they are about to count.
        live = ((name, self.counts.live[name]) for name in self.counts.live.shape().members)
        counted = {name: count + due[name] for name, count in live}
        time = self.i.payload.time
        written, read = Signal(COUNTED), Signal(COUNTED)
        stored, closed, begins, ends = (Signal(COUNTED) for _ in range(4))
        former = Signal(TIME_BITS)  # time of the record written last
        # What is decided in this clock, and written in the next.
        writes, mark = decided
        begun, more, total = counting
        flush, sweeping = emptying
        m.d.comb += [
            Assume(~self.i.valid | (time >= latest)),
        ]
        m.d.sync += [
            written.eq(written + (fifo.w_en & fifo.w_rdy)),
            read.eq(read + (fifo.r_en & fifo.r_rdy)),
        ]
        with m.If(writes):
            m.d.sync += former.eq(mark.time)
            with m.If(mark.kind == TagKind.CLICK):
                m.d.sync += stored.eq(stored + 1)
            with m.Elif(
                (mark.kind == TagKind.LOSS)
                & ~(self.i.valid & self.i.ready & (self.i.payload.kind != TagKind.CLICK))
            ):
                m.d.sync += [
                    begins.eq(begins + (mark.channel == LossMark.BEGIN)),
                    ends.eq(ends + (mark.channel == LossMark.END)),
                ]
        with m.If(kept.w_en):
            m.d.sync += closed.eq(closed + record.missed)
        with m.If(flush):
            m.d.sync += [x.eq(0) for x in (stored, closed, begins, ends, former)]
        m.d.comb += [
            # Nothing is written where there is no room, in either FIFO.
            Assert(~fifo.w_en | fifo.w_rdy),
            Assert(~kept.w_en | (kept.w_rdy & ~losing)),
            Assert((written - read)[:COUNTED] == fifo.level),
            # The ledgers: every click is stored or missed, every miss in a record of a loss.
            Assert(counted["in"][:COUNTED] == (stored + counted["missed"])[:COUNTED]),
            Assert(
                (counted["missed"] + counted["refused"])[:COUNTED]
                == (closed + Mux(losing | kept.w_en, total, 0))[:COUNTED]
            ),
            # Each loss has its two markers, in turn, and one record.
            Assert(begins == (ends + (losing & ~begin_due))[:COUNTED]),
            Assert(counted["losses"][:COUNTED] == ends),
            # The stream is in time order.
            Assert(former <= latest),
            Assert(~begin_due | (losing & begun)),
            Assert(~begun | losing),
            Assert(~writes | (mark.time >= former)),
            # What is decided is what is written.
            Assert(~fifo.w_en | sweeping | (entry.time == former)),
            Assert(losing | kept.w_en | (more == 0)),
            Assert(~sweeping | ~(losing | begin_due)),
        ]
        with m.If(~sweeping):
            m.d.comb += Assert(losing | (fifo.level + fifo.w_en < self.depth))
