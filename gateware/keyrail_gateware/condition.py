# SPDX-License-Identifier: CERN-OHL-W-2.0
"""Conditioning of one input of the time tagger, before the merge."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from keyrail.contract import (
    KEY_MODE_HISTOGRAM_MINIMUM,
    RATE_WINDOW_LOG2_PS,
    TIME_BITS,
    Role,
    registers,
)

from .layouts import fields_layout

__all__ = ["Condition", "condition_layout", "event_layout"]


def event_layout() -> data.StructLayout:
    """One input of a time tagger, in one clock: nothing there can be held back.

    ``valid``: an event, at ``time`` (ps, modulo 2^48), on the ``falling`` edge or the rising one,
    stamped ``calibrated`` or not. ``watermark``: in no later clock comes an event of an earlier
    time. Times of an input never step back.
    """
    return data.StructLayout(
        {"valid": 1, "time": TIME_BITS, "falling": 1, "calibrated": 1, "watermark": TIME_BITS}
    )


def condition_layout() -> data.StructLayout:
    """Settings of one input: the fields of its register."""
    return fields_layout(registers(Role.RECEIVER)["condition_0"].fields)


class Condition(wiring.Component):
    """Enable, dead time, divider and delay of one input; its rate, and an alarm.

    In this order: all events are counted for the rate; those of an input that is off are dropped;
    then those within the dead time of an event that passed (non-paralysable) or of any event
    (paralysable); of the rest one in ``divider`` passes, the first one first; the delay is added
    to its time. Dead time goes by the times of the events, not by clocks. In key mode there is
    neither dead time nor divider, whatever is set: they would be filters that the proof does not
    know.

    The rate is a number of events and the windows they came in. In key mode an input's clicks are
    key bits, so what is shown is an aggregate: windows are put together until they hold
    ``aggregate`` events, and no more than so many in one window raise the alarm.

    Latency: 4 clocks, watermark included. Throughput: 1 event a clock.

    Parameters
    ----------
    window_log2
        A window of the rate is 2^this ps; other than the contract's for tests.
    aggregate
        Fewest events that a rate is shown of in key mode; likewise.

    Members
    -------
    i, o
        `event_layout`: the input, and what leaves it; there the watermark holds for an event in
        the same clock too.
    settings
        `condition_layout`. The delay is constant while events pass: to change it breaks the
        promise of the watermark.
    key_mode
        1: neither dead time nor divider.
    limit
        Events in a window above which the alarm is raised; 0: no alarm. In key mode ``aggregate``
        where that is more.
    clear
        Strobe: take the alarm back.
    rate, windows
        Events in the last whole windows, saturating, to within the lag of the watermark; and how
        many windows, 0 before the first.
    alarm
        1 since the limit was passed, until ``clear``.
    passed, disabled, dead, divided
        1 in the clock in which an event passed, or was dropped for this reason.
    """

    i: In(event_layout())
    o: Out(event_layout())
    settings: In(condition_layout())
    key_mode: In(1)
    limit: In(32)
    clear: In(1)
    rate: Out(32)
    windows: Out(24)
    alarm: Out(1)
    passed: Out(1)
    disabled: Out(1)
    dead: Out(1)
    divided: Out(1)

    def __init__(
        self,
        window_log2: int = RATE_WINDOW_LOG2_PS,
        aggregate: int = KEY_MODE_HISTOGRAM_MINIMUM,
    ):
        self.window_log2, self.aggregate = window_log2, aggregate
        super().__init__()

    def elaborate(self, platform: object) -> Module:
        m = Module()
        settings = self.settings
        first, second, third = (Signal(event_layout(), name=f"stage_{n}") for n in (1, 2, 3))
        before = Signal(TIME_BITS)
        m.d.sync += [
            first.eq(self.i),
            # From here on it holds for the same clock too.
            before.eq(self.i.watermark),
            first.watermark.eq(before),
            second.eq(first),
            third.eq(second),
        ]

        # Rate: a window ends when the watermark passes it; in key mode some may make one.
        window, count = Signal(), Signal(32)
        total, windows = Signal(32), Signal(len(self.windows))
        together, whole = Signal(33), Signal(32)
        shown, excess = Signal(), Signal()
        m.d.comb += [
            together.eq(total + count),
            whole.eq(Mux(together[32], ~0, together)),
            shown.eq(~self.key_mode | (whole >= self.aggregate)),
        ]
        m.d.sync += [
            count.eq(count + (first.valid & ~count.all())),
            excess.eq(
                (self.limit != 0)
                & (count > self.limit)
                & (~self.key_mode | (count > self.aggregate))
            ),
        ]
        with m.If(excess):
            m.d.sync += self.alarm.eq(1)
        with m.If(self.clear):
            m.d.sync += self.alarm.eq(0)
        with m.If(window != first.watermark[self.window_log2]):
            m.d.sync += [
                window.eq(first.watermark[self.window_log2]),
                count.eq(first.valid),
                total.eq(Mux(shown, 0, whole)),
                windows.eq(Mux(shown, 0, windows + ~windows.all())),
            ]
            with m.If(shown):
                m.d.sync += [self.rate.eq(whole), self.windows.eq(windows + ~windows.all())]

        # Dead time: `live_at` counts for as long as the watermark has not passed it, so that it
        # never grows stale.
        live_at, armed = Signal(TIME_BITS), Signal()
        until = Signal(TIME_BITS)  # end of the dead time that the event in the second stage begins
        dead = Signal()
        divider, reached = Signal(len(settings.divider)), Signal()
        left = Signal(len(settings.divider))
        event, on = Signal(), Signal()
        m.d.sync += [
            until.eq(first.time + settings.dead_time),
            on.eq(settings.enable),
            reached.eq(~(first.watermark - live_at)[TIME_BITS - 1]),
        ]
        m.d.comb += [
            event.eq(second.valid & on),
            dead.eq(event & armed & (second.time - live_at)[TIME_BITS - 1] & ~self.key_mode),
            divider.eq(Mux(self.key_mode, 0, settings.divider)),
            self.disabled.eq(second.valid & ~on),
            self.dead.eq(dead),
            self.divided.eq(event & ~dead & (left != 0)),
            self.passed.eq(event & ~dead & (left == 0)),
        ]
        with m.If(event & (~dead | settings.paralysable)):
            m.d.sync += [live_at.eq(until), armed.eq(settings.dead_time != 0), reached.eq(0)]
        with m.Elif(reached):
            m.d.sync += armed.eq(0)
        with m.If(event & ~dead):
            m.d.sync += left.eq(Mux(left == 0, Mux(divider == 0, 0, divider - 1), left - 1))
        m.d.sync += third.valid.eq(self.passed)

        delay = settings.delay.as_signed()
        m.d.sync += [
            self.o.eq(third),
            self.o.time.eq(third.time + delay),
            self.o.watermark.eq(third.watermark + delay),
        ]
        return m
