# SPDX-License-Identifier: CERN-OHL-W-2.0
"""Histograms of the gaps between clicks, beside the tag path."""

from amaranth.hdl import Array, Cat, Module, Mux, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from keyrail.contract import (
    CHANNELS,
    GAP_BINS,
    GATE_WINDOWS,
    HISTOGRAM_BIN,
    SLOT_BITS,
    SLOT_TAG,
    TagKind,
)

from .count_memory import CountMemory
from .gate import WINDOW, WINDOWS
from .layouts import layout
from .squash import GROUP

__all__ = ["Gaps", "Outcomes"]

_BIN_BITS = GAP_BINS.bit_length() - 1


def _bin(m: Module, gap: Value, shift: Value) -> Signal:
    """Bin of a gap, min(gap >> shift, 63), two clocks later."""
    scaled, number = Signal(SLOT_BITS), Signal(_BIN_BITS)
    far = Signal()
    reach = 16 + _BIN_BITS  # the shift is at most 15
    m.d.sync += [
        scaled.eq(gap[:reach] >> shift),
        far.eq(gap[reach:].any()),
        number.eq(Mux(far | scaled[_BIN_BITS:].any(), GAP_BINS - 1, scaled)),
    ]
    return number


class _Reading(wiring.Signature):
    def __init__(self):
        super().__init__(
            {
                "bins": Out(stream.Signature(HISTOGRAM_BIN.bits)),
                "shift": In(4),
                "key_mode": In(1),
                "dump": In(1),
                "wipe": In(1),
                "refused": Out(1),
                "dumping": Out(1),
                "busy": Out(1),
            }
        )


def _memory(m: Module, reading: object, bins: int, depth: int) -> CountMemory:
    """A `CountMemory` behind the ports; commands take `depth` clocks, as long as events do."""
    m.submodules.memory = memory = CountMemory(bins)
    dump = Signal(depth)
    m.d.sync += dump.eq(Cat(reading.dump, dump) & ~reading.wipe.replicate(depth))
    m.d.comb += [
        memory.key_mode.eq(reading.key_mode),
        memory.wipe.eq(reading.wipe),
        memory.dump.eq(dump[-1]),
        reading.refused.eq(memory.refused),
        reading.dumping.eq(memory.dumping | dump.any()),
        reading.busy.eq(memory.busy | dump.any()),
    ]
    wiring.connect(m, memory.bins, wiring.flipped(reading.bins))
    return memory


class Gaps(wiring.Component):
    """Count raw clicks by channel, by whether they fall outside the gate, and by their gap.

    The gap of a click is the number of slots since the last raw click of its channel; the first
    after reset has none and is not counted. It counts in bin min(gap >> shift, 63) of

    - row 2 c for a click of channel c outside both of its windows, or where neither is open,
    - row 2 c + 1 for one inside.

    Outside the gate there is no signal. Given that a channel has been quiet for d slots, the rate
    of such clicks is the dark count where d is large; what it exceeds that by at small d are
    afterpulses (`keyrail.detectors` calculates both). Blanking comes later, so that nothing is
    missing here.

    Latency: 6 clocks to the count. Throughput: 1 click a clock. `CountMemory` has the rules of
    reading.

    Parameters
    ----------
    channels
        Channels that are built, a power of two up to 8.

    Members
    -------
    tag, valid
        ``slot_tag``, and 1 in the clock in which it passes.
    windows
        `WINDOWS` of the gate. A window counts if it is open for either basis choice.
    reading
        ``bins`` (1024 words a dump), ``shift``, ``key_mode``, ``dump``, ``wipe``, ``refused``
        (in the seventh clock after `dump`), ``dumping`` and ``busy``, as `Histogram` has them.
    """

    tag: In(layout(SLOT_TAG))
    valid: In(1)
    windows: In(WINDOWS)
    reading: Out(_Reading())

    def __init__(self, channels: int = CHANNELS):
        self._channels = channels
        super().__init__()

    def elaborate(self, platform: object) -> Module:
        m = Module()
        channel_bits = (self._channels - 1).bit_length()
        memory = _memory(m, self.reading, CHANNELS * 2 * GAP_BINS, 6)

        # 1: the click, and the last of its channel. The memory is read without a clock, so that
        # the next click finds this one there.
        tag_1, click_1 = Signal(layout(SLOT_TAG)), Signal()
        m.d.sync += [
            tag_1.eq(self.tag),
            click_1.eq(
                self.valid
                & (self.tag.kind == TagKind.CLICK)
                & (self.tag.channel < self._channels)
                & ~self.reading.wipe
            ),
        ]
        channel_1 = tag_1.channel[:channel_bits]
        m.submodules.last = last = Memory(shape=SLOT_BITS, depth=self._channels, init=[])
        read, write = last.read_port(domain="comb"), last.write_port()
        known = Signal(self._channels)
        m.d.comb += [
            read.addr.eq(channel_1),
            write.addr.eq(channel_1),
            write.data.eq(tag_1.slot),
            write.en.eq(click_1),
        ]
        with m.If(click_1):
            m.d.sync += known.bit_select(channel_1, 1).eq(1)
        # 2: the last slot and the windows; 3: gap and comparisons; 4, 5: bin; 6: the count.
        former_2, tag_2, click_2 = Signal(SLOT_BITS), Signal(layout(SLOT_TAG)), Signal()
        gap_3 = Signal(SLOT_BITS)
        m.d.sync += [
            former_2.eq(read.data),
            tag_2.eq(tag_1),
            click_2.eq(click_1 & known.bit_select(channel_1, 1)),
            gap_3.eq(tag_2.slot - former_2),
        ]
        number_5 = _bin(m, gap_3, self.reading.shift)
        inside = []
        for n in range(GATE_WINDOWS):
            window = Signal(WINDOW, name=f"window_{n}_2")
            built = Array(
                self.windows[c * GATE_WINDOWS + n].as_value() for c in range(self._channels)
            )
            after, before, wraps, opens = (
                Signal(name=f"{name}_{n}_3") for name in ("after", "before", "wraps", "opens")
            )
            hit = Signal(name=f"hit_{n}_4")
            m.d.sync += [
                window.as_value().eq(built[channel_1]),
                after.eq(tag_2.phase >= window.start),
                before.eq(tag_2.phase < window.stop),
                wraps.eq(window.stop < window.start),
                opens.eq(window.enable | window.enable_1),
                hit.eq(opens & Mux(wraps, after | before, after & before)),
            ]
            inside.append(hit)
        inside_5 = Signal()
        m.d.sync += inside_5.eq(inside[0] | inside[1])
        channel, click = tag_2.channel[:channel_bits], click_2
        for _ in range(3):
            passed = (Signal(channel_bits), Signal())
            m.d.sync += [passed[0].eq(channel), passed[1].eq(click & ~self.reading.wipe)]
            channel, click = passed
        m.d.sync += [
            memory.count.eq(click & ~self.reading.wipe),
            memory.number.eq(Cat(number_5, inside_5, channel)),
        ]
        with m.If(self.reading.wipe):
            m.d.sync += [known.eq(0), click_2.eq(0)]
        return m


class Outcomes(wiring.Component):
    """Count slots with clicks by what they are, and by the slots since the last such slot.

    It counts in bin min(gap >> shift, 63) of row 0 for clicks of one outcome, row 1 for double
    clicks, row 2 for cross clicks, each slot that the squash closes but the first. Weak light gives
    the same shares of double and cross clicks whatever the gap; bright light that blinds detectors
    and makes them click does not (`docs/gating.md`).

    Latency: 4 clocks to the count. Throughput: 1 slot a clock. `CountMemory` has the rules of
    reading.

    Members
    -------
    group
        `GROUP` of the squash.
    reading
        ``bins`` (256 words a dump, the last 64 of them 0), ``shift``, ``key_mode``, ``dump``,
        ``wipe``, ``refused`` (in the fifth clock after `dump`), ``dumping`` and ``busy``, as
        `Histogram` has them.
    """

    group: In(GROUP)
    reading: Out(_Reading())

    def elaborate(self, platform: object) -> Module:
        m = Module()
        memory = _memory(m, self.reading, 4 * GAP_BINS, 4)
        last, known = Signal(SLOT_BITS), Signal()
        gap_1, row = Signal(SLOT_BITS), Cat(self.group.double, self.group.cross)
        valid = self.group.valid & ~self.reading.wipe
        with m.If(valid):
            m.d.sync += [last.eq(self.group.slot), known.eq(1)]
        m.d.sync += gap_1.eq(self.group.slot - last)
        number_3 = _bin(m, gap_1, self.reading.shift)
        counts = valid & known
        for _ in range(3):
            passed = (Signal(2), Signal())
            m.d.sync += [passed[0].eq(row), passed[1].eq(counts & ~self.reading.wipe)]
            row, counts = passed
        m.d.sync += [
            memory.count.eq(counts & ~self.reading.wipe),
            memory.number.eq(Cat(number_3, row)),
        ]
        with m.If(self.reading.wipe):
            m.d.sync += known.eq(0)
        return m
