# SPDX-License-Identifier: Apache-2.0
"""Twin of `keyrail_gateware.tag_fifo`."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from keyrail.contract import LOSS, TAG, TIME_BITS, LossMark, TagKind
from keyrail.layouts import Structured, zeros

from .ledger import Ledger


class Clock(NamedTuple):
    """What the FIFO's ports see in one clock.

    Parameters
    ----------
    offered
        Record offered: time, channel, kind; None if there is none.
    ready
        True if the sink takes a record.
    ledger_ready
        True if the loss ledger's sink takes one.
    refused, until
        Clicks refused in front, and the time they are not after, ps.
    """

    offered: tuple[int, int, int] | None
    ready: bool
    ledger_ready: bool = True
    refused: int = 0
    until: int = 0


class _Queue:
    """A FIFO whose output is a register behind the memory, and whose input is one before it.

    So records are held and not yet shown.
    """

    def __init__(self, depth: int) -> None:
        self.inner: deque[tuple[int, ...]] = deque()
        self.output: tuple[int, ...] | None = None
        self.coming: tuple[int, ...] | None = None
        self.depth = depth

    @property
    def level(self) -> int:
        return len(self.inner) + (self.output is not None) + (self.coming is not None)

    @property
    def writable(self) -> bool:
        return len(self.inner) < self.depth  # what is coming is in well before the next

    def clock(self, written: tuple[int, ...] | None, taken: bool) -> None:
        moves = bool(self.inner) and (self.output is None or taken)
        if taken:
            self.output = None
        if moves:
            self.output = self.inner.popleft()
        if self.coming is not None:
            self.inner.append(self.coming)
        self.coming = written


class TagFifo:
    """Lose clicks by rule, clock by clock, as the gateware does.

    Parameters
    ----------
    depth, reserve, ledger_depth
        As the gateware's.
    real_time
        True: the input never waits.
    """

    def __init__(
        self,
        depth: int = 4096,
        reserve: int = 16,
        ledger_depth: int = 16,
        real_time: bool = True,
    ) -> None:
        self.depth, self.reserve, self.real_time = depth, reserve, real_time
        self.resume = depth // 2
        self.queue, self.kept = _Queue(depth), _Queue(ledger_depth)
        self.ledger = Ledger("tag_fifo")
        self.losing = self.begin_due = self.waiting = self.caught_up = False
        self.horizon = self.latest = self.begin = self.missed = 0
        self.out: list[tuple[int, ...]] = []
        self.losses: list[tuple[int, ...]] = []

    @property
    def ready(self) -> bool:
        """True if a record offered now is taken."""
        return not self.begin_due and (
            self.real_time or self.queue.level < self.depth - self.reserve
        )

    def clock(self, now: Clock) -> bool:
        """Go through one clock; returns True if the record offered was taken."""
        count, level = self.ledger.live, self.queue.level
        taken = now.offered is not None and self.ready
        time, _, kind = now.offered if now.offered is not None and taken else (0, 0, -1)
        click, marker = kind == TagKind.CLICK, taken and kind != TagKind.CLICK
        room, marker_room = level < self.depth - self.reserve, level < self.depth - 1
        refused = now.refused > 0
        behind = not self.caught_up
        self.caught_up = not refused and not (
            self.waiting and (self.latest - self.horizon) >> (TIME_BITS - 1) & 1
        )
        dropped = click and (self.losing or refused or not room)
        ending = (
            self.losing
            and not self.begin_due
            and level <= self.resume
            and self.kept.writable
            and not behind
            and not marker
            and not refused
        )
        written: tuple[int, ...] | None = None
        loss: tuple[int, ...] | None = None
        if ending:
            end = time if click else self.latest
            written = (end, LossMark.END, TagKind.LOSS)
            loss = (self.begin, end, self.missed + click)
        elif self.begin_due:
            written = (self.begin, LossMark.BEGIN, TagKind.LOSS)
        elif dropped and not self.losing:
            written = (time, LossMark.BEGIN, TagKind.LOSS)
        elif (click and not dropped) or (marker and marker_room):
            written = now.offered

        out = self.queue.output if now.ready else None
        kept = self.kept.output if now.ledger_ready else None
        if out is not None:
            self.out.append(out)
        if kept is not None:
            self.losses.append(kept)
        left = out is not None and out[2] == TagKind.CLICK
        for name, step in (
            ("in", click),
            ("out", left),
            ("missed", dropped),
            ("refused", now.refused),
            ("losses", ending),
            ("markers_missed", marker and not marker_room),
        ):
            count[name] += int(step)
        if kind == TagKind.FRAME and marker_room:
            self.ledger.at_frame |= {name: n for name, n in count.items() if name != "out"}
        if out is not None and out[2] == TagKind.FRAME:
            self.ledger.at_frame["out"] = count["out"]

        if self.losing:
            self.missed += click + now.refused
        elif refused or dropped:
            self.begin = time if taken else self.latest
            self.missed = click + now.refused
        self.begin_due = not self.losing and refused and not click
        self.losing = (self.losing or refused or dropped) and not ending
        if refused:
            self.waiting, self.horizon = True, now.until
        if ending:
            self.waiting = False
        if taken:
            self.latest = time
        self.queue.clock(written, out is not None)
        self.kept.clock(loss, kept is not None)
        return taken

    def run(self, clocks: Iterable[Clock]) -> tuple[Structured, Structured]:
        """Go through clocks; returns what has left so far, ``tag`` and ``loss`` records."""
        for now in clocks:
            self.clock(now)
        return self.records()

    def records(self) -> tuple[Structured, Structured]:
        """All that has left so far, as ``tag`` and ``loss`` records."""
        tags, losses = zeros(TAG, len(self.out)), zeros(LOSS, len(self.losses))
        for target, rows, record in ((tags, self.out, TAG), (losses, self.losses, LOSS)):
            for index, field in enumerate(record.fields):
                target[field.name] = [row[index] for row in rows]
        return tags, losses
