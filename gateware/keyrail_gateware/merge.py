# SPDX-License-Identifier: CERN-OHL-W-2.0
"""Merge of all inputs of the time tagger in time order."""

from amaranth.hdl import Assert, Assume, C, Cat, Module, Mux, ResetInserter, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.wiring import In, Out

from keyrail.contract import (
    CHANNEL_BITS,
    TAG,
    TAG_LEAD_MAXIMUM_PS,
    TDC_INPUTS,
    TIME_BITS,
    TIME_RECORD_LOG2_PS,
    TagKind,
)

from .condition import event_layout
from .layouts import layout
from .ledger import Counts, Ledger
from .skid import Skid

FALLING, UNCALIBRATED = 16, 32
"""Added to the channel of an event."""

__all__ = ["FALLING", "UNCALIBRATED", "Merge", "MergeTree", "bounded_layout"]


def bounded_layout(time_bits: int = TIME_BITS) -> data.StructLayout:
    """Payload of a stream with a bound.

    ``time`` counts whether or not the stream is valid: nothing before it will come. ``source``
    says which input an event is from, ``kind`` what it is, ``known`` that the bound is one.
    """
    return data.StructLayout({"time": time_bits, "source": CHANNEL_BITS, "kind": 4, "known": 1})


class MergeTree(wiring.Component):
    """Merge streams with bounds in time order.

    A tree of nodes, each of which takes the earlier of two streams: the one whose bound is lower,
    the first one where both are equal. If that stream has no event yet, none is taken, but the
    bound goes on. So events of one time leave in the order of the inputs, and what comes out
    depends on the times alone, not on when the events came. A node holds two events, so that
    whether it takes one goes by a flip-flop.

    Latency: 1 clock for each halving of the number of inputs. Throughput: 1 event a clock.

    Parameters
    ----------
    inputs
        Number of inputs, 2 and more.
    time_bits
        Bits of the time, which wraps; all bounds lie within half its range of each other.

    Members
    -------
    i_0, i_1, ...
        Streams of `bounded_layout`. Bounds never step back, and the time of an event that is
        offered is the bound.
    o
        The merged stream of the same kind.
    held
        Clicks in its registers.
    """

    def __init__(self, inputs: int, time_bits: int = TIME_BITS):
        self.inputs, self.time_bits = inputs, time_bits
        port = stream.Signature(bounded_layout(time_bits))
        super().__init__(
            {f"i_{n}": In(port) for n in range(inputs)}
            | {"o": Out(port), "held": Out(range(2 * inputs))}
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        streams = [getattr(self, f"i_{n}") for n in range(self.inputs)]
        self._nodes = []
        level = 0
        while len(streams) > 1:
            pairs = [streams[n : n + 2] for n in range(0, len(streams), 2)]
            streams = [
                self._node(m, *pair, f"node_{level}_{n}") if len(pair) == 2 else pair[0]
                for n, pair in enumerate(pairs)
            ]
            level += 1
        wiring.connect(m, wiring.flipped(self.o), streams[0])
        clicks = []
        for out, behind, full, _ in self._nodes:
            clicks += [
                out.valid & (out.payload.kind == TagKind.CLICK),
                full & (behind.kind == TagKind.CLICK),
            ]
        m.d.comb += self.held.eq(sum(clicks))
        if platform == "formal":
            self._properties(m)
        return m

    def _node(self, m: Module, a: object, b: object, name: str) -> object:
        first, known = (Signal(name=f"{name}_{x}") for x in ("first", "known"))
        # It takes an event while the one before waits, and passes bounds without events too.
        m.submodules[name] = node = Skid(bounded_layout(self.time_bits))
        chosen = node.i.payload
        m.d.comb += [
            known.eq(a.payload.known & b.payload.known),
            first.eq(~(b.payload.time - a.payload.time)[self.time_bits - 1]),
            chosen.eq(Mux(first, a.payload, b.payload)),
            chosen.known.eq(known),
            node.i.valid.eq(known & Mux(first, a.valid, b.valid)),
            a.ready.eq(node.i.ready & known & first),
            b.ready.eq(node.i.ready & known & ~first),
        ]
        self._nodes.append((node.o, node.held, node.full, (a, b)))
        return node.o

    def _properties(self, m: Module) -> None:
        """What is proven of it, for any times and any back-pressure."""
        inputs = [getattr(self, f"i_{n}") for n in range(self.inputs)]
        half = 1 << (self.time_bits - 1)
        # Times are seen from that of the event that left last: so a wrap is nothing special.
        reference = Signal(self.time_bits)
        with m.If(self.o.valid & self.o.ready):
            m.d.sync += reference.eq(self.o.payload.time)

        def ahead(time: object) -> object:
            return (time - reference)[: self.time_bits]

        # One event, any, is followed: the solver picks it by a bit of its kind.
        followed = Signal(bounded_layout(self.time_bits))
        picked, left = Signal(), Signal()

        def is_followed(port: object) -> object:
            return port.valid & port.payload.kind[3]

        m.d.comb += Assume(sum((is_followed(port) for port in inputs), picked) <= 1)
        for n, port in enumerate(inputs):
            bound, former = port.payload, Signal(port.payload.shape(), name=f"former_{n}")
            held = Signal(name=f"held_{n}")
            m.d.sync += [former.eq(port.payload), held.eq(port.valid & ~port.ready)]
            m.d.comb += [
                Assume(~port.valid | bound.known),
                Assume(bound.source == n),
                # A bound never steps back; an event that is offered stays until it is taken.
                Assume(~bound.known | (ahead(bound.time) < half)),
                Assume(~former.known | (bound.known & (ahead(bound.time) >= ahead(former.time)))),
                Assume(~held | (port.valid & (bound.as_value() == former.as_value()))),
            ]
            with m.If(is_followed(port) & port.ready):
                m.d.sync += [picked.eq(1), followed.eq(bound)]
        for node, behind, full, children in self._nodes:
            payload = node.payload
            last = Mux(full, behind.time, payload.time)
            m.d.comb += [
                Assert(~node.valid | payload.known),
                Assert(~full | (node.valid & behind.known)),
                Assert(~full | (ahead(payload.time) <= ahead(behind.time))),
            ]
            for child in children:
                m.d.comb += [
                    Assert(~payload.known | child.payload.known),
                    # No node has gone further than what may still come from below.
                    Assert(~payload.known | (ahead(last) <= ahead(child.payload.time))),
                ]
            with m.If(is_followed(node)):
                m.d.comb += Assert(picked & (payload.as_value() == followed.as_value()))
            with m.If(full & behind.kind[3]):
                m.d.comb += Assert(picked & (behind.as_value() == followed.as_value()))
        with m.If(is_followed(self.o) & self.o.ready):
            m.d.sync += left.eq(1)
        places = [is_followed(node) for node, *_ in self._nodes]
        places += [full & behind.kind[3] for _, behind, full, _ in self._nodes]
        held_marks = sum(places, Signal(2))
        m.d.comb += [
            # In time order: what leaves is not before what left.
            Assert(~self.o.valid | (ahead(self.o.payload.time) < half)),
            # The event is in exactly one place until it has left, once, and as it came.
            Assert(held_marks == (picked & ~left)),
            Assert(~left | picked),
        ]


class Merge(wiring.Component):
    """Take the events of all inputs, and give them out in time order as tags.

    Each input has a queue: events of one input wait there for those of the others, whose
    watermarks say when nothing earlier can come any more. A time record is put at each multiple
    of 2^29 ps (0.54 ms), so that darkness is told from silence; events of one time leave in the
    order of the inputs, after a time record of that time. The merge loses nothing that a queue
    has taken; an event that its queue has no room for is told to the tag FIFO behind
    (``refused``), which marks and counts it: the decision on a loss is there alone.

    Latency: 2 clocks for the queue, then 4 with 10 inputs, after the watermarks of all inputs have
    passed the event. Throughput: 1 tag a clock; an event a clock on each input until its queue
    is full.

    Parameters
    ----------
    inputs
        Number of inputs, up to 15; input n becomes channel n, plus `FALLING` for a falling edge,
        plus `UNCALIBRATED` for one stamped before the first calibration: none of these two is
        taken for a detector.
    depth
        Events a queue holds, a power of two. It must hold what comes while another input, whose
        delay is larger, falls behind: 2 us at 50 Mevents/s are 100.
    time_bits, time_record_log2
        Bits of the time, and time records at each multiple of 2^this ps; other than the
        contract's for tests.

    Members
    -------
    i_0, i_1, ...
        `event_layout` each, as they leave `Condition`; events at most `TAG_LEAD_MAXIMUM_PS` after
        any watermark, delays included.
    o
        Stream of ``tag``.
    flush
        Strobe: empty the queues, overwrite their memories, clear the counters.
    busy
        1 while it does so (``depth`` clocks and some); events are not taken meanwhile.
    frame
        Strobe: the next time record is a frame marker.
    refused, until
        For the tag FIFO: events refused in the last clock, and a time that is not before theirs.
    held
        Events in the queues and in the tree.
    counts
        Ledger of ``merge``, at the frame marker as it leaves.
    """

    def __init__(
        self,
        inputs: int = TDC_INPUTS,
        depth: int = 512,
        time_bits: int = TIME_BITS,
        time_record_log2: int = TIME_RECORD_LOG2_PS,
    ):
        if not 1 <= inputs <= 15 or depth < 2 or depth & depth - 1:
            raise ValueError(
                f"merge of {inputs} inputs with queues of {depth}: allowed are 1 to 15 inputs, "
                "and a power of two"
            )
        self.inputs, self.depth = inputs, depth
        self.time_bits, self.time_record_log2 = time_bits, time_record_log2
        super().__init__(
            {f"i_{n}": In(event_layout()) for n in range(inputs)}
            | {
                "o": Out(stream.Signature(layout(TAG))),
                "flush": In(1),
                "busy": Out(1),
                "frame": In(1),
                "refused": Out(4),
                "until": Out(TIME_BITS),
                "held": Out(range(inputs * (depth + 2) + 2 * inputs + 2)),
                "counts": Out(Counts("merge")),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        # Zeros pass through every place of the queues; then all begins anew.
        sweeping, swept, clean = Signal(), Signal(range(self.depth + 8)), Signal()
        m.d.comb += self.busy.eq(sweeping | self.flush)
        m.d.sync += clean.eq(0)
        with m.If(sweeping):
            m.d.sync += swept.eq(swept + 1)
            with m.If(swept == self.depth + 7):
                m.d.sync += [sweeping.eq(0), clean.eq(1)]
        with m.If(self.flush):
            m.d.sync += [sweeping.eq(1), swept.eq(0)]
        fresh = Signal()  # 1 while everything but the sweep is held in reset
        m.d.comb += fresh.eq(sweeping | clean)
        anew = ResetInserter(fresh)
        m.submodules.ledger = ledger = anew(Ledger("merge"))
        tree = MergeTree(self.inputs + 1, self.time_bits)
        m.submodules.tree = anew(tree)
        own: list[Signal] = []
        m.d.comb += [
            self.counts.live.eq(ledger.counts.live),
            self.counts.at_frame.eq(ledger.counts.at_frame),
        ]
        refused, taken, held = [], [], []
        for n in range(self.inputs):
            event = getattr(self, f"i_{n}")
            leaf = getattr(tree, f"i_{n + 1}")
            kept = data.StructLayout({"time": self.time_bits, "falling": 1, "raw": 1})
            queue = SyncFIFOBuffered(width=kept.size, depth=self.depth + 1)
            head, entry = data.View(kept, queue.r_data), Signal(kept, name=f"entry_{n}")
            m.submodules[f"queue_{n}"] = ResetInserter(clean)(queue)
            m.d.comb += [
                entry.time.eq(event.time),
                entry.falling.eq(event.falling),
                entry.raw.eq(~event.calibrated),
                queue.w_data.eq(Mux(sweeping, 0, entry)),
                queue.w_en.eq((event.valid & ~clean) | sweeping),
            ]
            refused.append(event.valid & ~queue.w_rdy & ~fresh)
            taken.append(event.valid & queue.w_rdy & ~fresh)
            edge = Signal(2, name=f"edge_{n}")
            valid, time, known = (
                Signal(name=f"valid_{n}"),
                Signal(self.time_bits, name=f"time_{n}"),
                Signal(name=f"known_{n}"),
            )
            m.d.comb += [
                leaf.valid.eq(valid),
                leaf.payload.time.eq(time),
                leaf.payload.source.eq(Cat(C(n, 4), edge)),
                leaf.payload.known.eq(known),
                leaf.payload.kind.eq(TagKind.CLICK),
                queue.r_en.eq(~valid | leaf.ready | sweeping),
            ]
            held.append(queue.level + valid)
            own += [valid, time, known, edge]
            with m.If(~valid | leaf.ready):
                m.d.sync += [valid.eq(queue.r_rdy), known.eq(1)]
                with m.If(queue.r_rdy):
                    m.d.sync += [time.eq(head.time), edge.eq(Cat(head.falling, head.raw))]
                with m.Elif(queue.level == 0):
                    m.d.sync += time.eq(event.watermark)
                # Else an event is on its way through the queue's memory: the bound stays.

        # Time records come from a clock of their own, always one ahead of the first input.
        beat = Signal(self.time_bits - self.time_record_log2)
        started, frame = Signal(), Signal()
        clock = tree.i_0
        m.d.comb += [
            clock.valid.eq(started),
            clock.payload.known.eq(started),
            clock.payload.time.eq(beat << self.time_record_log2),
            clock.payload.source.eq(0),
            clock.payload.kind.eq(Mux(frame, TagKind.FRAME, TagKind.TIME)),
        ]
        with m.If(~started):
            m.d.sync += [
                started.eq(1),
                beat.eq(self.i_0.watermark[self.time_record_log2 : self.time_bits] + 1),
            ]
        with m.Elif(clock.ready):
            m.d.sync += beat.eq(beat + 1)

        # The record on offer must not change: a frame marker waits for the one after.
        wanted = Signal()
        with m.If(clock.valid & clock.ready):
            m.d.sync += [frame.eq(wanted | self.frame), wanted.eq(0)]
        with m.Elif(self.frame):
            m.d.sync += wanted.eq(1)

        out = tree.o.payload
        leaving = Signal()
        m.d.comb += [
            self.o.valid.eq(tree.o.valid & ~fresh),
            self.o.payload.time.eq(out.time),
            self.o.payload.kind.eq(out.kind),
            self.o.payload.channel.eq(out.source),
            tree.o.ready.eq(self.o.ready),
            leaving.eq(self.o.valid & self.o.ready),
        ]
        m.d.comb += self.held.eq(sum(held) + tree.held)
        m.d.sync += [
            self.refused.eq(sum(refused)),
            self.until.eq(self.i_0.watermark + 2 * TAG_LEAD_MAXIMUM_PS),
        ]
        m.d.comb += [
            ledger.step["in"].eq(sum(taken)),
            ledger.step.out.eq(leaving & (out.kind == TagKind.CLICK)),
            ledger.step.refused.eq(sum(refused)),
        ]
        with m.If(leaving & (out.kind == TagKind.FRAME)):
            m.d.comb += ledger.frame.eq(~0)
        own += [beat, started, frame, wanted, self.refused, self.until]
        with m.If(fresh):
            m.d.sync += [register.eq(0) for register in own]
        # On a platform of its own: the tree's properties take its inputs to be free.
        if platform == "formal merge":
            self._properties(m, taken, leaving)
        return m

    def _properties(self, m: Module, taken: list[Value], leaving: Signal) -> None:
        """What is checked of queues, watermarks and tree together, for any events and times.

        One event, any, is followed: the only one that is not calibrated.
        """
        half = 1 << (self.time_bits - 1)
        out = self.o.payload
        click = out.kind == TagKind.CLICK
        # Times are seen from that of the record that left last: so a wrap is nothing special.
        reference, inside = Signal(self.time_bits), Signal(8)
        followed = Signal(data.StructLayout({"time": self.time_bits, "channel": CHANNEL_BITS}))
        picked, left = Signal(), Signal()

        def ahead(time: object) -> object:
            return (time - reference)[: self.time_bits]

        with m.If(leaving):
            m.d.sync += reference.eq(out.time)
        m.d.sync += inside.eq(inside + sum(taken) - (leaving & click))
        odd = []
        for n in range(self.inputs):
            event = getattr(self, f"i_{n}")
            last, former = (Signal(self.time_bits, name=f"{x}_{n}") for x in ("last", "former"))
            time, mark = event.time[: self.time_bits], event.watermark[: self.time_bits]
            m.d.sync += former.eq(mark)
            with m.If(event.valid):
                m.d.sync += last.eq(time)
            odd.append(event.valid & ~event.calibrated)
            m.d.comb += [
                # What an input promises: watermark and times never step back, no event before it.
                Assume((ahead(mark) < half) & (ahead(mark) >= ahead(former))),
                Assume(
                    ~event.valid
                    | ((ahead(time) < half) & (ahead(time) >= ahead(mark)))
                    & ((time - last)[: self.time_bits] < half)
                ),
            ]
            with m.If(odd[n] & taken[n]):
                m.d.sync += [
                    picked.eq(1),
                    followed.time.eq(time),
                    followed.channel.eq(n + UNCALIBRATED + FALLING * event.falling),
                ]
        m.d.comb += [
            Assume(~self.flush),
            Assume(sum(odd, Signal(4)) + picked <= 1),
            # In time order, and each click that was taken is held until it leaves.
            Assert(~self.o.valid | (ahead(out.time) < half)),
            Assert(inside == self.held),
        ]
        with m.If(self.o.valid & click & out.channel[5]):
            m.d.comb += Assert(
                picked & ~left & (out.time == followed.time) & (out.channel == followed.channel)
            )
            with m.If(self.o.ready):
                m.d.sync += left.eq(1)
