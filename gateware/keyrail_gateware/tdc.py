# SPDX-License-Identifier: CERN-OHL-W-2.0
"""Time-to-digital converter: from the level of a pin to a time in picoseconds.

Three kinds of classes, so that each is tested without the others:

- what takes a pin to a line: `DirectLaunch`, `ToggleLaunch`, with an `Oscillator` to calibrate by;
- what samples the line, all taps at once, every clock: `CarryLines` (ECP5) or `PhaseSampler`
  (any part);
- the core, `Tdc`, which sees sampled taps alone.
"""

from amaranth.hdl import (
    Array,
    Cat,
    ClockDomain,
    ClockSignal,
    Const,
    Instance,
    Module,
    Mux,
    Signal,
    Value,
    signed,
)
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from keyrail.contract import TDC_HITS_LOG2_MAXIMUM, TDC_INPUTS, TIME_BITS, TdcResult

from .ledger import Counts, Ledger

__all__ = [
    "CLOCK_PS",
    "DELAY_FRACTION_BITS",
    "GROUP",
    "CarryLines",
    "Decoder",
    "DelayTable",
    "DirectLaunch",
    "Oscillator",
    "PhaseSampler",
    "Tdc",
    "ToggleLaunch",
]

CLOCK_PS = 10_000
"""Clock period the TDC is built for unless told otherwise, ps."""
DELAY_FRACTION_BITS = 4
"""Fraction bits of a delay in the table: 1/16 ps."""
DELAY_BITS = 14
"""Whole bits of a delay; holds clock periods up to 16,383 ps."""
GROUP = 15
"""Taps that are counted together; bubbles must lie within fewer."""
_COUNT_BITS = 4
_RADIX = 4
"""Numbers that one pipeline stage of the sum adds."""
SETTLE = 32
"""Clocks after a change of an input's source in which its edges are not looked at."""
_READ_CLOCKS = 2
"""Clocks of a look-up in a table."""
NOMINAL_FRACTION_BITS = 12
"""Fraction bits, below 1/16 ps, of the ideal line's step from code to code."""
_CONTROL = (
    "oscillator",
    "photons",
    "hits_log2",
    "start",
    "start_input",
    "start_falling",
    "start_photons",
    "abort",
    "busy",
    "result",
    "done_input",
    "done_falling",
    "moved",
    "uneven",
)
"""Ports of the calibrator that are the core's too."""
_ENTRY = DELAY_BITS + DELAY_FRACTION_BITS


def _full_adder(a: Value, b: Value, c: Value) -> tuple[Value, Value]:
    """Sum and carry of three vectors, bit by bit."""
    half = a ^ b
    return half ^ c, (a & b) | (c & half)


def _stages(numbers: int) -> int:
    """Pipeline stages in which that many numbers become one."""
    count = 0
    while numbers > 1:
        numbers = -(-numbers // _RADIX)
        count += 1
    return count


class Decoder(wiring.Component):
    """Thermometer code of several lines to the number of taps that an edge has passed.

    An edge is a change of the first tap of line 0 between two clocks; that tap alone decides to
    which clock an edge belongs. Its taps are those that differ from the level before the edge,
    counted over all lines. So coarse and fine part come from one and the same sample, and an edge
    at the clock boundary is either young in this sample or old in the next: never both, never
    neither.

    Bubbles (a tap that changes before its neighbour towards the pin) change the count by no more
    than the taps themselves: a count is monotonic in time whatever the order in which taps change
    (ones counter). Of each line, taps are counted in groups of 15 from the pin up to the first
    group without any change; what lies behind is an older edge on its way out, and is not counted.

    For an edge to be counted right, the level before and the level after it must each last one
    clock, and longer by as much as a line's first tap comes before line 0's; a clock must span
    three groups. Shorter levels may be missed (`short`); they never make an edge that was not
    there.

    Latency: `latency` clocks from `taps` to `edge`, 4 and those of the sum. Throughput: 1 edge a
    clock.

    Parameters
    ----------
    lines
        Lines, 1 and more.
    taps
        Taps of a line, 1 and more.

    Members
    -------
    taps
        Sampled taps, `lines` times `taps` bits, line 0 first, of each the tap next to the pin
        first. They come out of flip-flops, which may be metastable: they are taken over once
        before anything is made of them.
    edge
        1: an edge.
    falling
        1: it went from 1 to 0.
    code
        Taps it has passed, 1 to `lines` times `taps`.
    short
        1: line 0 holds a level that its first tap never showed.

    Raises
    ------
    ValueError
        For fewer than one line or tap.
    """

    def __init__(self, lines: int, taps: int):
        if lines < 1 or taps < 1:
            raise ValueError(f"{lines} lines of {taps} taps, allowed are 1 and more")
        self._lines, self._taps = lines, taps
        self._groups = -(-taps // GROUP)
        self.code_bits = (lines * taps).bit_length()
        self.latency = 4 + _stages(lines * self._groups)
        super().__init__(
            {
                "taps": In(lines * taps),
                "edge": Out(1),
                "falling": Out(1),
                "code": Out(self.code_bits),
                "short": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        groups, count = self._groups, self._groups * self._lines

        def register(value: Value, name: str) -> Signal:
            # No reset: an edge needs a level before it, and what was there at reset is no matter.
            signal = Signal(len(value), name=name, reset_less=True)
            m.d.sync += signal.eq(value)
            return signal

        # 1: taken over. 2: bits of each group's count, one vector a weight, all groups in each.
        sampled = register(self.taps, "sampled")
        level = register(sampled[0], "level")
        padding = groups * GROUP - self._taps
        padded = []
        for line in range(self._lines):
            padded += [*sampled[line * self._taps :][: self._taps], *[level] * padding]
        columns = [Signal(count, name=f"column_{n}") for n in range(GROUP)]
        m.d.comb += [columns[n].eq(Cat(*padded[n::GROUP])) for n in range(GROUP)]
        by_weight: list[list[Value]] = [list(columns), [], [], []]
        for weight, pending in enumerate(by_weight):
            while len(pending) > 1:
                a, b, c = pending[:3]
                del pending[:3]
                total, carry = Signal(count), Signal(count)
                for target, value in zip((total, carry), _full_adder(a, b, c), strict=True):
                    m.d.comb += target.eq(value)
                pending.append(total)
                by_weight[weight + 1].append(carry)
        planes = [register(pending[0], f"count_{n}") for n, pending in enumerate(by_weight)]
        level_2, tap_2 = register(level, "level_2"), register(sampled[0], "tap_2")

        # 3: groups with taps that differ from the level before.
        planes_3 = [register(p, f"count_3_{n}") for n, p in enumerate(planes)]
        any_3 = Signal(count, name="any_3", reset_less=True)
        m.d.sync += any_3.eq(
            (planes[0] ^ level_2.replicate(count))
            | (planes[1] ^ level_2.replicate(count))
            | (planes[2] ^ level_2.replicate(count))
            | (planes[3] ^ level_2.replicate(count))
        )
        edge_3, falling_3 = register(level_2 ^ tap_2, "edge_3"), register(level_2, "falling_3")

        # 4: taps that differ, only of groups with no empty one before them. 15 less a count is its
        # complement.
        keep: list[Value] = []
        for line in range(self._lines):
            running = any_3[line * groups :][:groups]
            reach = 1
            while reach < groups:
                after = Signal(groups, name=f"running_{line}_{reach}")
                ones = Const((1 << reach) - 1, reach)
                m.d.comb += after.eq(running & Cat(ones, running[: groups - reach]))
                running, reach = after, 2 * reach
            keep.append(Cat(Const(1, 1), running[: groups - 1]) if groups > 1 else Const(1, 1))
        kept = [
            register((p ^ falling_3.replicate(count)) & Cat(*keep), f"kept_{n}")
            for n, p in enumerate(planes_3)
        ]
        edges = [register(edge_3, "edge_4")]
        fallings = [register(falling_3, "falling_4")]

        # A level that was in line 0, and not at its first tap in this clock or beside it.
        inside = register(any_3[:groups].any() & ~edge_3, "inside_4")
        before = register(edges[0] | inside, "before_4")
        lonely = register(inside & ~before, "lonely_5")
        # Whether an edge follows is known one clock later.
        short = register(lonely & ~edges[0], "short_6")

        # 5 and on: the sum.
        numbers: list[Value] = [Cat(*(plane[n] for plane in kept)) for n in range(count)]
        stage, most = 5, GROUP
        while len(numbers) > 1:
            parts = [numbers[at : at + _RADIX] for at in range(0, len(numbers), _RADIX)]
            most *= _RADIX
            numbers = [
                register(sum(part[1:], start=part[0])[: most.bit_length()], f"sum_{stage}_{n}")
                for n, part in enumerate(parts)
            ]
            edges.append(register(edges[-1], f"edge_{stage}"))
            fallings.append(register(fallings[-1], f"falling_{stage}"))
            stage += 1
        m.d.comb += [
            self.edge.eq(edges[-1]),
            self.falling.eq(fallings[-1]),
            self.code.eq(numbers[0]),
            self.short.eq(short),
        ]
        return m


class DelayTable(wiring.Component):
    """Code to delay, of one input: two banks, one in use while the other is written.

    A look-up always comes first; a `peek` waits for a clock without one.

    Latency: 2 clocks from `lookup` to `delay`. Throughput: 1 look-up a clock.

    Parameters
    ----------
    code_bits
        Width of a code.
    both_edges
        Falling edges have a table of their own.

    Members
    -------
    lookup, falling, code
        Look `code` up in the bank in use.
    delay
        Delay from the edge to the clock that sampled it, 1/16 ps, 18 bits.
    peek, peek_code
        Ask for an entry of the bank in use, with `write_falling`, until `peeked`.
    peeked, peek_delay
        1 in the clock in which `peek_delay` is what was asked for.
    write, write_falling, write_code, write_delay
        Write an entry of the bank not in use, of the one in use if `fill` is 1.
    swap
        The bank just written comes into use, for edges of `write_falling`.
    calibrated
        For rising and falling edges: 1 once a bank was swapped in.
    """

    def __init__(self, code_bits: int, both_edges: bool):
        self._code_bits, self._both = code_bits, both_edges
        super().__init__(
            {
                "lookup": In(1),
                "falling": In(1),
                "code": In(code_bits),
                "delay": Out(_ENTRY),
                "peek": In(1),
                "peek_code": In(code_bits),
                "peeked": Out(1),
                "peek_delay": Out(_ENTRY),
                "write": In(1),
                "write_falling": In(1),
                "write_code": In(code_bits),
                "write_delay": In(_ENTRY),
                "fill": In(1),
                "swap": In(1),
                "calibrated": Out(2),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        depth = 2 << (self._code_bits + self._both)
        # The bank that is written is not read, but for `fill`, when nothing is looked up.
        memory = Memory(shape=_ENTRY, depth=depth, init=[], attrs={"no_rw_check": 1})
        m.submodules.memory = memory
        read, write = memory.read_port(), memory.write_port()
        bank = Signal(2)

        def address(code: Value, falling: Value, bank: Value) -> Value:
            return Cat(code, falling, bank) if self._both else Cat(code, bank)

        def of(bits: Value, falling: Value) -> Value:
            return Mux(falling, bits[1], bits[0]) if self._both else bits[0]

        m.d.comb += [
            read.addr.eq(
                Mux(
                    self.lookup,
                    address(self.code, self.falling, of(bank, self.falling)),
                    address(self.peek_code, self.write_falling, of(bank, self.write_falling)),
                )
            ),
            read.en.eq(1),
            write.addr.eq(
                address(
                    self.write_code,
                    self.write_falling,
                    of(bank, self.write_falling) ^ ~self.fill,
                )
            ),
            write.data.eq(self.write_delay),
            write.en.eq(self.write),
            self.peek_delay.eq(read.data),
        ]
        m.d.sync += [self.delay.eq(read.data), self.peeked.eq(self.peek & ~self.lookup)]
        with m.If(self.swap):
            for falling in range(1 + self._both):
                with m.If(self.write_falling == falling):
                    m.d.sync += [
                        bank[falling].eq(~bank[falling]),
                        self.calibrated[falling].eq(1),
                    ]
        return m


class Calibrator(wiring.Component):
    """Fills the delay tables by code density, one input and one kind of edge at a time.

    2^h edges that fall evenly over the clock are counted by code. With H(c) of them at code c and
    C(c) at codes below, an edge of code c lies at the middle of its bin, a delay of
    d(c) = T (2 C(c) + H(c)) / 2^(h+1), T the clock (code density test: J. Rivoir, "Statistical
    Linearity Calibration of Time-To-Digital Converters Using a Free-Running Ring Oscillator",
    IEEE Asian Test Symposium 2006).
    It is rounded down to 1/16 ps, and lies in 0 to T whatever was counted.

    The edges are those of a free-running oscillator, to which the input is switched meanwhile, or
    of the photons themselves. Photons count only if they fall evenly, which light locked to the
    board's reference does not: against the table in use, no delay may move by more than
    `moved_limit_ps`, and the changes of the bins' widths must not add up to more than
    `uneven_limit_ps`. Otherwise the table stays as it is, and the result is ``UNEVEN``. Photons
    can refine a table; they cannot make the first.

    After reset, and until `ready`, the tables are filled with the delays of an ideal line; what is
    stamped by those is marked as not calibrated.

    Time: the edges asked for, at most one in 3 clocks, then h + 8 clocks a code, and more only if
    the input's own edges leave no clock for a look at the table in use.

    Parameters
    ----------
    inputs
        Inputs.
    code_bits
        Width of a code.
    both_edges
        Falling edges have tables of their own.
    nominal_codes
        Codes that an ideal line passes through in one clock.
    clock_ps
        Clock period, ps.
    hits_log2_maximum
        Largest h.
    patience_log2
        After 2^this clocks edges are too few, and it is given up.
    moved_limit_ps, uneven_limit_ps
        Limits of the test of photons, ps.

    Members
    -------
    oscillator, photons
        1: calibrate all inputs in turn, for ever, from the one or the other; the first comes
        first. Clearing it aborts what it began.
    wanted
        For rising and falling edges, each a bit an input: what calibrating in turn includes.
    hits_log2
        h, 1 to `hits_log2_maximum` (larger ones count as that).
    start, start_input, start_falling, start_photons
        Command for one calibration, which begins when the one under way has ended; another
        command before that replaces it.
    abort
        Give up collecting, or waiting for a look at the table in use, and what was asked for.
    ready
        1 once the tables are filled after reset.
    busy, result
        Under way, and `TdcResult` of the last one that ended.
    done_input, done_falling
        What that was.
    moved
        Largest change of a delay it found, ps.
    uneven
        Sum of the changes of the bins' widths it found, ps.
    source
        A bit an input: 1 switches it to the oscillator.
    closed
        A bit an input: 1 while its edges are not the pin's.
    hit, code
        An edge of the input and kind chosen by `input` and `falling`, delayed by whatever.
    input, falling
        What is being calibrated.
    calibrated
        For rising and falling edges, each a bit an input.
    peek, peek_code, peeked, peek_delay, write, write_code, write_delay, fill, swap
        To the tables, see `DelayTable`; `write` and `swap` have a bit an input.
    """

    def __init__(
        self,
        inputs: int,
        code_bits: int,
        both_edges: bool,
        nominal_codes: float,
        clock_ps: int = CLOCK_PS,
        hits_log2_maximum: int = TDC_HITS_LOG2_MAXIMUM,
        patience_log2: int = 28,
        moved_limit_ps: int = 40,
        uneven_limit_ps: int | None = None,
    ):
        self._inputs, self._code_bits, self._both = inputs, code_bits, both_edges
        self._full = clock_ps << DELAY_FRACTION_BITS
        self._step = round((self._full << NOMINAL_FRACTION_BITS) / nominal_codes)
        self._most_hits, self._patience = hits_log2_maximum, patience_log2
        self._moved_limit = moved_limit_ps << DELAY_FRACTION_BITS
        limit = clock_ps // 16 if uneven_limit_ps is None else uneven_limit_ps
        self._uneven_limit = limit << DELAY_FRACTION_BITS
        super().__init__(
            {
                "oscillator": In(1),
                "photons": In(1),
                "wanted": In(2 * inputs),
                "hits_log2": In(5),
                "start": In(1),
                "start_input": In(range(TDC_INPUTS)),
                "start_falling": In(1),
                "start_photons": In(1),
                "abort": In(1),
                "ready": Out(1),
                "busy": Out(1),
                "result": Out(TdcResult),
                "done_input": Out(range(TDC_INPUTS)),
                "done_falling": Out(1),
                "moved": Out(DELAY_BITS),
                "uneven": Out(16),
                "source": Out(inputs),
                "closed": Out(inputs),
                "hit": In(1),
                "code": In(code_bits),
                "input": Out(range(TDC_INPUTS)),
                "falling": Out(1),
                "calibrated": In(2 * inputs),
                "peek": Out(1),
                "peek_code": Out(code_bits),
                "peeked": In(1),
                "peek_delay": In(_ENTRY),
                "write": Out(inputs),
                "write_code": Out(code_bits),
                "write_delay": Out(_ENTRY),
                "fill": Out(1),
                "swap": Out(inputs),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        inputs, most = self._inputs, self._most_hits
        memory = Memory(
            shape=most + 1, depth=1 << self._code_bits, init=[], attrs={"no_rw_check": 1}
        )
        m.submodules.histogram = memory
        read, write = memory.read_port(), memory.write_port()
        m.d.comb += read.en.eq(1)

        code = Signal(self._code_bits)
        last = code.all()
        photons, in_turn = Signal(), Signal()
        settle = Signal(range(SETTLE))
        hits_log2, collected = Signal(range(most + 1)), Signal(most + 1)
        patience = Signal(self._patience + 1)
        taken, present = Signal(self._code_bits), Signal(most + 1)
        outcome = Signal(TdcResult)

        chosen = Signal(inputs)  # one-hot of the input
        m.d.comb += chosen.eq(Cat(self.input == n for n in range(inputs)))
        turn, turn_falling = Signal(range(inputs)), Signal()
        pending, aborting, give_up = Signal(), Signal(), Signal()
        asked = Signal(data.StructLayout({"input": range(TDC_INPUTS), "falling": 1, "photons": 1}))
        with m.If(self.abort):
            m.d.sync += [aborting.eq(1), pending.eq(0)]
        with m.Elif(self.start):
            m.d.sync += [
                pending.eq(1),
                asked.input.eq(self.start_input),
                asked.falling.eq(self.start_falling),
                asked.photons.eq(self.start_photons),
            ]
        m.d.sync += give_up.eq(
            aborting | (in_turn & ~Mux(photons, self.photons & ~self.oscillator, self.oscillator))
        )

        def take_turn() -> None:
            with m.If(turn_falling | (not self._both)):
                m.d.sync += turn.eq(Mux(turn == inputs - 1, 0, turn + 1))
            if self._both:
                m.d.sync += turn_falling.eq(~turn_falling)

        def begin() -> list:
            return [
                settle.eq(SETTLE - 1),
                collected.eq(0),
                patience.eq(0),
                hits_log2.eq(Mux(self.hits_log2 > most, most, self.hits_log2)),
            ]

        nominal = Signal(_ENTRY + NOMINAL_FRACTION_BITS + 1)
        whole = nominal[NOMINAL_FRACTION_BITS:]
        below, mid, rest = Signal(most + 1), Signal(most + 2), Signal(most + 2)
        step = Signal(range(most + 2))
        product, old = Signal(_ENTRY + 1), Signal(_ENTRY)
        peeking = Signal()
        delta, delta_before = Signal(signed(_ENTRY + 2)), Signal(signed(_ENTRY + 2))
        bend = Signal(_ENTRY + 2)
        size = Signal(_ENTRY + 1)
        moved, uneven = Signal(_ENTRY + 1), Signal(_ENTRY + 4)
        m.d.comb += [
            self.peek.eq(peeking),
            self.peek_code.eq(code),
            self.busy.eq(1),
            write.addr.eq(code),
        ]
        with m.If(self.peeked & peeking):
            m.d.sync += [old.eq(self.peek_delay), peeking.eq(0)]

        with m.FSM():
            with m.State("FILL"):
                # Every table and the histogram; the delay of an ideal line at mid-bin.
                m.d.comb += [
                    self.fill.eq(1),
                    self.write.eq((1 << inputs) - 1),
                    self.write_code.eq(code),
                    self.write_delay.eq(Mux(whole > self._full, self._full, whole)),
                    write.en.eq(1),
                ]
                m.d.sync += code.eq(code + 1)
                with m.If(code == 0):
                    m.d.sync += nominal.eq(self._step >> 1)
                with m.Elif(whole <= self._full):
                    m.d.sync += nominal.eq(nominal + self._step)
                with m.If(last):
                    m.d.sync += nominal.eq(0)
                    with m.If(self.falling == int(self._both)):
                        m.d.sync += self.ready.eq(1)
                        m.next = "IDLE"
                    with m.Else():
                        m.d.sync += self.falling.eq(1)
            with m.State("IDLE"):
                m.d.comb += self.busy.eq(pending)
                m.d.sync += [code.eq(0), in_turn.eq(0), photons.eq(0), aborting.eq(self.abort)]
                with m.If(pending):
                    m.d.sync += [
                        self.input.eq(asked.input),
                        self.falling.eq(asked.falling),
                        photons.eq(asked.photons),
                        pending.eq(self.start & ~self.abort),
                    ]
                    m.next = "CHECK"
                with m.Elif((self.oscillator | self.photons) & ~self.abort & ~aborting):
                    m.d.sync += [
                        self.input.eq(turn),
                        self.falling.eq(turn_falling),
                        photons.eq(~self.oscillator),
                        in_turn.eq(1),
                    ]
                    take_turn()
                    m.next = "CHECK"
            with m.State("CHECK"):
                m.d.sync += begin()
                place = Signal(2 * inputs)
                m.d.comb += place.eq(
                    Cat(
                        chosen & ~self.falling.replicate(inputs),
                        chosen & self.falling.replicate(inputs),
                    )
                )
                exists = place.any() if self._both else place[:inputs].any()
                first = photons & ~(place & self.calibrated).any()
                with m.If(in_turn & (first | ~(place & self.wanted).any())):
                    m.next = "IDLE"
                with m.Elif(~exists | first):
                    m.d.sync += outcome.eq(TdcResult.REFUSED)
                    m.next = "END"
                with m.Else():
                    with m.If(~photons):
                        m.d.sync += [self.source.eq(chosen), self.closed.eq(chosen)]
                    m.next = "SETTLE"
            with m.State("SETTLE"):
                m.d.sync += settle.eq(settle - 1)
                with m.If(settle == 0):
                    m.next = "COLLECT"
            with m.State("COLLECT"):
                m.d.comb += read.addr.eq(self.code)
                m.d.sync += [taken.eq(self.code), patience.eq(patience + 1), settle.eq(SETTLE - 1)]
                with m.If(give_up):
                    m.d.sync += outcome.eq(TdcResult.ABORTED)
                    m.next = "RELEASE"
                with m.Elif(patience[-1]):
                    m.d.sync += outcome.eq(TdcResult.TOO_FEW)
                    m.next = "RELEASE"
                with m.Elif((collected >> hits_log2)[0]):
                    m.d.sync += outcome.eq(TdcResult.DONE)
                    m.next = "RELEASE"
                with m.Elif(self.hit):
                    m.next = "FETCHED"
            with m.State("FETCHED"):
                m.d.sync += [present.eq(read.data + 1), collected.eq(collected + 1)]
                m.next = "COUNTED"
            with m.State("COUNTED"):
                m.d.comb += [write.addr.eq(taken), write.data.eq(present), write.en.eq(1)]
                m.next = "COLLECT"
            with m.State("RELEASE"):
                m.d.sync += [
                    self.source.eq(0),
                    settle.eq(settle - 1),
                    below.eq(0),
                    delta_before.eq(0),
                    moved.eq(0),
                    uneven.eq(0),
                    code.eq(0),
                ]
                with m.If(settle == 0):
                    m.d.sync += self.closed.eq(0)
                    with m.If(outcome == TdcResult.DONE):
                        m.next = "READ"
                    with m.Else():
                        m.next = "CLEAR"
            with m.State("CLEAR"):
                m.d.comb += write.en.eq(1)
                m.d.sync += code.eq(code + 1)
                with m.If(last):
                    m.next = "END"
            with m.State("READ"):
                m.d.comb += read.addr.eq(code)
                m.d.sync += peeking.eq(1)
                m.next = "HELD"
            with m.State("HELD"):
                m.d.comb += write.en.eq(1)  # cleared for the next time
                m.d.sync += present.eq(read.data)
                m.next = "MIDDLE"
            with m.State("MIDDLE"):
                m.d.sync += [
                    mid.eq((below << 1) + present),
                    below.eq(below + present),
                    step.eq(hits_log2 + 1),
                    product.eq(0),
                ]
                m.next = "MULTIPLY"
            with m.State("MULTIPLY"):
                # Least bit first; what is shifted out are the product's own low bits.
                m.d.comb += rest.eq(mid >> 1)
                m.d.sync += [
                    mid.eq(rest),
                    step.eq(step - 1),
                    product.eq((product + Mux(mid[0], self._full, 0)) >> 1),
                ]
                with m.If(step == 1):
                    m.next = "ROUND"
            with m.State("ROUND"):
                # 2 C + H reaches 2^(h+1) once all are below; nothing else is left of it then.
                with m.If(mid[0]):
                    m.d.sync += product.eq(self._full)
                with m.If(~peeking):
                    m.next = "COMPARE"
                with m.Elif(give_up):
                    # An input with edges in every clock leaves none for a peek.
                    m.d.sync += [peeking.eq(0), outcome.eq(TdcResult.ABORTED), code.eq(0)]
                    m.next = "CLEAR"
            with m.State("COMPARE"):
                m.d.sync += delta.eq(product - old)
                m.next = "MEASURE"
            with m.State("MEASURE"):
                m.d.sync += [
                    bend.eq(Mux(delta < delta_before, delta_before - delta, delta - delta_before)),
                    size.eq(Mux(delta < 0, -delta, delta)),
                    delta_before.eq(delta),
                ]
                m.next = "STORE"
            with m.State("STORE"):
                m.d.comb += [
                    self.write.eq(chosen),
                    self.write_code.eq(code),
                    self.write_delay.eq(product),
                ]
                m.d.sync += [code.eq(code + 1), uneven.eq(uneven + bend)]
                with m.If(size > moved):
                    m.d.sync += moved.eq(size)
                with m.If(last):
                    m.next = "JUDGE"
                with m.Else():
                    m.next = "READ"
            with m.State("JUDGE"):
                m.d.sync += [
                    self.moved.eq(moved >> DELAY_FRACTION_BITS),
                    self.uneven.eq(uneven >> DELAY_FRACTION_BITS),
                ]
                with m.If(photons & ((moved > self._moved_limit) | (uneven > self._uneven_limit))):
                    m.d.sync += outcome.eq(TdcResult.UNEVEN)
                with m.Else():
                    m.d.comb += self.swap.eq(chosen)
                m.next = "END"
            with m.State("END"):
                m.d.sync += [
                    self.result.eq(outcome),
                    self.done_input.eq(self.input),
                    self.done_falling.eq(self.falling),
                ]
                m.next = "IDLE"
        return m


class TagPort(wiring.Signature):
    """Stamped edges of one input, which cannot be held back.

    Members
    -------
    valid
        1: an edge, in this clock only.
    time
        Its time, ps modulo 2^48.
    falling
        1: a falling edge of the line.
    calibrated
        0: stamped by the delays of an ideal line, before the first calibration.
    watermark
        In no later clock comes an edge of an earlier time, modulo 2^48 ps. (An edge in the same
        clock may be earlier, by a clock period at most.)
    """

    def __init__(self):
        super().__init__(
            {
                "valid": Out(1),
                "time": Out(TIME_BITS),
                "falling": Out(1),
                "calibrated": Out(1),
                "watermark": Out(TIME_BITS),
            }
        )


class Tdc(wiring.Component):
    """Time-to-digital converter of several inputs: sampled taps to stamped edges.

    An edge whose taps were sampled in clock i, counted from reset, leaves in clock i + `latency`
    with time (i + `latency` - 1) T - d(code) rounded to 1 ps (half up), T the clock and d from the
    input's table, 0 to T. So within an input times never fall, and the watermark, (i + `latency` -
    1) T in that clock, holds for whatever the tables say.

    Nothing from the pins stops anything: at most one edge a clock and input leaves, and only if
    the first tap of line 0 changed between two clocks. Edges on adjacent clocks are stamped, so it
    is armed again after 1 clock.

    Detectors, sync and pulse-per-second inputs are all alike.

    Latency: `latency` clocks from taps to `o`. Throughput: 1 edge a clock and input.

    Parameters
    ----------
    inputs
        1 to 10.
    lines, taps
        Lines of an input, and taps of a line.
    nominal_codes
        Codes that an ideal line passes through in one clock: what stands in the tables before the
        first calibration. As many as taps, if all of them span just one clock.
    clock_ps
        Clock period, ps, up to 16,383.
    both_edges
        Falling edges can be stamped too; takes twice the block RAM for tables.
    calibration
        Further parameters of `Calibrator`.

    Members
    -------
    taps_0, taps_1, ...
        Sampled taps of an input, see `Decoder`.
    o
        `TagPort` of each input.
    rising, falling
        A bit an input: which edges are stamped. `falling` is ignored unless `both_edges`.
    source
        A bit an input: 1 switches it to the oscillator.
    calibrated
        Rising, then falling edges, a bit an input each.
    ready
        0 after reset while the tables are filled; edges are not stamped before.
    oscillator, photons, hits_log2, start, start_input, start_falling, start_photons, abort, busy,
    result, done_input, done_falling, moved, uneven
        See `Calibrator`.
    frame
        Latch the counters.
    counts
        Ledger of ``tdc``.

    Raises
    ------
    ValueError
        For numbers out of range.
    """

    def __init__(
        self,
        inputs: int,
        lines: int,
        taps: int,
        nominal_codes: float,
        clock_ps: int = CLOCK_PS,
        both_edges: bool = False,
        **calibration: int,
    ):
        if not 1 <= inputs <= TDC_INPUTS:
            raise ValueError(f"{inputs} inputs, allowed are 1 to {TDC_INPUTS}")
        if not 1 <= clock_ps < 1 << DELAY_BITS:
            raise ValueError(f"clock of {clock_ps} ps, allowed are 1 to {(1 << DELAY_BITS) - 1} ps")
        if not 1 <= nominal_codes <= lines * taps:
            raise ValueError(f"{nominal_codes} codes a clock, allowed are 1 to {lines * taps}")
        self._decoders = [Decoder(lines, taps) for _ in range(inputs)]
        self._inputs, self._clock_ps, self._both = inputs, clock_ps, both_edges
        code_bits = self._decoders[0].code_bits
        self._calibrator = Calibrator(
            inputs, code_bits, both_edges, nominal_codes, clock_ps, **calibration
        )
        self.latency = self._decoders[0].latency + _READ_CLOCKS + 1
        assert self.latency + 8 < SETTLE
        members: dict[str, wiring.Member] = {f"taps_{n}": In(lines * taps) for n in range(inputs)}
        shared = self._calibrator.signature.members
        for name in _CONTROL:
            members[name] = shared[name]
        super().__init__(
            members
            | {
                "o": Out(TagPort()).array(inputs),
                "rising": In(inputs),
                "falling": In(inputs),
                "source": Out(inputs),
                "calibrated": Out(2 * inputs),
                "ready": Out(1),
                "frame": In(1),
                "counts": Out(Counts("tdc")),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.ledger = ledger = Ledger("tdc")
        m.submodules.calibrator = calibrator = self._calibrator
        inputs = range(self._inputs)
        m.d.comb += [
            self.counts.live.eq(ledger.counts.live),
            self.counts.at_frame.eq(ledger.counts.at_frame),
            calibrator.wanted.eq(Cat(self.rising, self.falling)),
            calibrator.calibrated.eq(self.calibrated),
            self.source.eq(calibrator.source),
            self.ready.eq(calibrator.ready),
        ]
        for name, member in calibrator.signature.members.items():
            if name in _CONTROL:
                ours, theirs = getattr(self, name), getattr(calibrator, name)
                m.d.comb += theirs.eq(ours) if member.flow == In else ours.eq(theirs)

        now = Signal(TIME_BITS)
        m.d.sync += now.eq(now + self._clock_ps)

        edges, fallings, codes, shorts = [], [], [], []
        outs, others, closed_edges, open_shorts = [], [], [], []
        for n in inputs:
            decoder = self._decoders[n]
            table = DelayTable(decoder.code_bits, self._both)
            m.submodules[f"decoder_{n}"], m.submodules[f"table_{n}"] = decoder, table
            seen, wanted, hit = Signal(name=f"seen_{n}"), Signal(), Signal(name=f"hit_{n}")
            m.d.comb += [
                decoder.taps.eq(getattr(self, f"taps_{n}")),
                seen.eq(decoder.edge & calibrator.ready & ~calibrator.closed[n]),
                wanted.eq(Mux(decoder.falling, self.falling[n] & int(self._both), self.rising[n])),
                hit.eq(seen & wanted),
                table.lookup.eq(hit),
                table.falling.eq(decoder.falling),
                table.code.eq(decoder.code),
                table.peek.eq(calibrator.peek),
                table.peek_code.eq(calibrator.peek_code),
                table.write.eq(calibrator.write[n]),
                table.write_falling.eq(calibrator.falling),
                table.write_code.eq(calibrator.write_code),
                table.write_delay.eq(calibrator.write_delay),
                table.fill.eq(calibrator.fill),
                table.swap.eq(calibrator.swap[n]),
                self.calibrated[n].eq(table.calibrated[0]),
                self.calibrated[n + self._inputs].eq(table.calibrated[1]),
            ]
            edges.append(decoder.edge)
            fallings.append(decoder.falling)
            codes.append(decoder.code)
            shorts.append(decoder.short)
            outs.append(hit)
            others.append(seen & ~wanted)
            closed_edges.append(decoder.edge & ~seen)
            open_shorts.append(decoder.short & calibrator.ready & ~calibrator.closed[n])

            valid, falling, known = (
                hit,
                decoder.falling,
                Mux(decoder.falling, table.calibrated[1], table.calibrated[0]),
            )
            for clock in range(_READ_CLOCKS):
                stage = [Signal(name=f"{what}_{n}_{clock}") for what in ("valid", "fall", "known")]
                m.d.sync += [a.eq(b) for a, b in zip(stage, (valid, falling, known), strict=True)]
                valid, falling, known = stage
            rounded = Signal(DELAY_BITS + 1, name=f"rounded_{n}")
            # What rounds down to a half is later by less: half up of the time, not of the delay.
            half = (1 << (DELAY_FRACTION_BITS - 1)) - 1
            m.d.comb += rounded.eq((table.delay + half) >> DELAY_FRACTION_BITS)
            m.d.sync += [
                self.o[n].valid.eq(valid),
                self.o[n].time.eq(now - rounded),
                self.o[n].falling.eq(falling),
                self.o[n].calibrated.eq(known),
                self.o[n].watermark.eq(now),
            ]

        # The calibrator's own edges, whichever input they come from.
        at = calibrator.input
        picked = [Signal(name="picked_edge"), Signal(name="picked_falling")]
        picked_code = Signal(len(codes[0]))
        count = len(edges)
        m.d.sync += [
            picked[0].eq(Array(edges)[at] if count > 1 else edges[0] & (at == 0)),
            picked[1].eq(Array(fallings)[at] if count > 1 else fallings[0]),
            picked_code.eq(Array(codes)[at] if count > 1 else codes[0]),
            calibrator.code.eq(picked_code),
            calibrator.hit.eq(picked[0] & (picked[1] == calibrator.falling)),
        ]
        tables = [m.submodules[f"table_{n}"] for n in inputs]
        m.d.comb += [
            calibrator.peeked.eq(Array([t.peeked for t in tables])[at]),
            calibrator.peek_delay.eq(Array([t.peek_delay for t in tables])[at]),
        ]

        # Sums of up to ten bits, a clock before they are counted.
        for name, bits in (
            ("in", edges),
            ("out", outs),
            ("other_edge", others),
            ("not_pin", closed_edges),
            ("short", open_shorts),
        ):
            step = Signal(4, name=f"step_{name}")
            m.d.sync += step.eq(sum(bits[1:], start=bits[0]))
            m.d.comb += [ledger.step[name].eq(step), ledger.frame[name].eq(self.frame)]
        return m


class DirectLaunch(wiring.Component):
    """The pin's level goes to the line; rising and falling edges are what they are on the pin.

    Each level must last one clock and a little more (see `Decoder`). Shorter pulses need
    `ToggleLaunch`.

    Members
    -------
    pin, oscillator
        Inputs.
    source
        1: the oscillator instead of the pin.
    launch
        To the line.
    """

    pin: In(1)
    oscillator: In(1)
    source: In(1)
    launch: Out(1)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.d.comb += self.launch.eq(Mux(self.source, self.oscillator, self.pin))
        return m


class ToggleLaunch(wiring.Component):
    """Each rising edge of the pin turns the line's level over, so that short pulses are seen.

    The pin clocks one flip-flop: a pulse must be as wide as that needs, not a clock. Edges of the
    line of both kinds are rising edges of the pin: build the core with ``both_edges``, and stamp
    rising and falling ones. Rising edges of the pin less than a clock apart may be missed, in
    pairs.

    Members
    -------
    pin, oscillator, source, launch
        As `DirectLaunch`.
    """

    pin: In(1)
    oscillator: In(1)
    source: In(1)
    launch: Out(1)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.domains.pin = ClockDomain(local=True, reset_less=True)
        m.d.comb += ClockSignal("pin").eq(Mux(self.source, self.oscillator, self.pin))
        m.d.pin += self.launch.eq(~self.launch)
        return m


class Oscillator(wiring.Component):
    """Free-running oscillator of the ECP5 (OSCG), some 310 MHz divided.

    Parameters
    ----------
    divider
        2 to 128.

    Members
    -------
    oscillator
        Its output, synchronous to nothing.

    Raises
    ------
    ValueError
        For another divider.
    """

    oscillator: Out(1)

    def __init__(self, divider: int = 16):
        if not 2 <= divider <= 128:
            raise ValueError(f"oscillator divider {divider}, allowed are 2 to 128")
        self._divider = divider
        super().__init__()

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.oscg = Instance("OSCG", p_DIV=self._divider, o_OSC=self.oscillator)
        return m


class CarryLines(wiring.Component):
    """Delay lines on the ECP5's carry chain, one beside the other from the same net.

    Each cell (CCU2C) passes its carry on and shows it at both sum outputs, which go to the
    flip-flops of the same slice. The cells are black boxes until after the mapping, which would
    otherwise simplify the line away: `keyrail_boards.place_and_route` turns ``CCU2C_RAW`` into
    ``CCU2C``, and `keyrail_boards.tdc` checks what became of it.

    Latency: the sample is the clock's. A line must be longer than a clock, in the fastest corner,
    by as much as the lines' first taps lie apart.

    Parameters
    ----------
    lines
        Lines.
    cells
        Cells of a line; two taps each.

    Members
    -------
    launch
        Level to be sampled.
    taps
        Sampled taps, `lines` times 2 `cells` bits, in the order of `Decoder`.

    Raises
    ------
    ValueError
        For fewer than one line or cell.
    """

    def __init__(self, lines: int, cells: int):
        if lines < 1 or cells < 1:
            raise ValueError(f"{lines} lines of {cells} cells, allowed are 1 and more")
        self._lines, self._cells = lines, cells
        super().__init__({"launch": In(1), "taps": Out(2 * lines * cells)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        # A cell shows the complement of its carry.
        start = Signal(name="start")
        m.d.comb += start.eq(~self.launch)
        sums: list[Value] = []
        for line in range(self._lines):
            carry: Value = start
            for cell in range(self._cells):
                s0, s1, after = Signal(), Signal(), Signal()
                m.submodules[f"line_{line}_cell_{cell}"] = Instance(
                    "CCU2C_RAW",
                    p_INIT0=Const(0xFFFF, 16),
                    p_INIT1=Const(0xFFFF, 16),
                    p_INJECT1_0="NO",
                    p_INJECT1_1="NO",
                    i_CIN=carry,
                    **{f"i_{pin}{half}": Const(1, 1) for pin in "ABCD" for half in (0, 1)},
                    o_S0=s0,
                    o_S1=s1,
                    o_COUT=after,
                )
                sums += [s0, s1]
                carry = after
        # Kept even where nothing reads them, so that lines can be routed by themselves.
        keep = {"keep": 1}
        taps = Signal(len(self.taps), name="tap_registers", reset_less=True, attrs=keep)
        m.d.sync += taps.eq(Cat(*sums))
        m.d.comb += self.taps.eq(taps)
        return m


class PhaseSampler(wiring.Component):
    """Samples a pin at both edges of several phases of the clock: an oversampling front end.

    For pins without a placed line, and for any part. P phases give 2 P taps that span just one
    clock: T / (2 P) each, and the core's ``nominal_codes`` is 2 P. A single line's worth of taps:
    the core is built with one line.

    Latency: an edge is in `taps` 2 to 3 clocks later, one more clock than with a carry chain.

    Parameters
    ----------
    domains
        Clock domains of the clock's frequency, their rising edges 0, 1, 2, ... times T / (2 P)
        after those of ``sync``, which is the first.

    Members
    -------
    launch
        Level to be sampled.
    taps
        2 P samples of one clock, the youngest first.

    Raises
    ------
    ValueError
        Without a domain, or if the first is not ``sync``.
    """

    def __init__(self, domains: tuple[str, ...] = ("sync",)):
        if not domains or domains[0] != "sync":
            raise ValueError(f"phases {domains}, the first must be sync")
        self._domains = domains
        super().__init__({"launch": In(1), "taps": Out(2 * len(domains))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        rising, falling = [], []
        for n, name in enumerate(self._domains):
            domain = ClockDomain(f"fall_{n}", clk_edge="neg", reset_less=True, local=True)
            m.domains += domain
            m.d.comb += domain.clk.eq(ClockSignal(name))
            early, late = (Signal(name=f"{kind}_{n}", reset_less=True) for kind in ("rise", "fall"))
            held = Signal(2, name=f"held_{n}", reset_less=True)
            m.d[name] += [early.eq(self.launch), held.eq(Cat(early, late))]
            m.d[domain.name] += late.eq(self.launch)
            rising.append(held[0])
            falling.append(held[1])
        taps = Signal(len(self.taps), name="tap_registers", reset_less=True)
        m.d.sync += taps.eq(Cat(*reversed(rising + falling)))
        m.d.comb += self.taps.eq(taps)
        return m
