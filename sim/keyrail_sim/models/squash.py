# SPDX-License-Identifier: Apache-2.0
"""Twin of `keyrail_gateware.squash`."""

from __future__ import annotations

import numpy as np

from keyrail.contract import DETECTION, GATED_TAG, TagKind
from keyrail.layouts import Structured, zeros

from .ledger import Ledger

_NO_GROUPS = (np.zeros(0, np.uint64), np.zeros(0, bool), np.zeros(0, bool))


class Squash:
    """Group the clicks of a slot into one detection, bit for bit as the gateware does.

    Parameters
    ----------
    discard_cross
        Rule for cross clicks: True gives the slot up, False assigns basis and bit by coins.
    """

    def __init__(self, discard_cross: bool = False) -> None:
        self.discard_cross = discard_cross
        self.ledger = Ledger("squash")
        self._pending = zeros(GATED_TAG, 0)
        self.groups: tuple[np.ndarray, np.ndarray, np.ndarray] = _NO_GROUPS
        """Slots closed in the last chunk: slot, whether a double and whether a cross click."""

    @property
    def held(self) -> int:
        """Groups pending, 0 or 1: in = out + merged + discarded + coin_dry + held."""
        return int(len(self._pending) > 0)

    def process(self, tags: Structured, coins: Structured) -> tuple[Structured, int]:
        """Pass a chunk; the pending group is kept for the next chunk.

        Parameters
        ----------
        tags
            ``gated_tag`` records.
        coins
            ``coin`` records on offer; a multiple click that finds them used up is counted as
            coin_dry.

        Returns
        -------
        detections : numpy.ndarray
            ``detection`` records.
        used : int
            Coins taken, from the first on.
        """
        # The pending group's outcomes come first again, as clicks that were counted before.
        old = len(self._pending)
        tags = np.concatenate([self._pending, tags])
        count = len(tags)
        click = tags["kind"] == TagKind.CLICK
        clicks = np.flatnonzero(click)
        self.groups = _NO_GROUPS
        if not len(clicks):
            self._count(tags, old)
            return _markers(tags), 0
        slot = tags["slot"]

        # A group ends where the slot differs from that of the last click before.
        latest = np.maximum.accumulate(np.where(click, np.arange(count), -1))
        former = np.concatenate([[-1], latest[:-1]])
        other = (former >= 0) & (slot != slot[former])
        ends = np.cumsum(other)
        first = np.ones(len(clicks), bool)
        first[1:] = ends[clicks[1:]] != ends[clicks[:-1]]
        starts = clicks[first]
        # The first end after the group's last click: at the next group or at a marker before it.
        last = np.concatenate([clicks[np.flatnonzero(first)[1:] - 1], clicks[-1:]])
        enders = np.flatnonzero(other)
        place = np.searchsorted(enders, last, side="right")
        closed = place < len(enders)
        outcome = np.left_shift(1, tags["basis"][clicks] * 2 + tags["bit"][clicks])
        seen = np.bitwise_or.reduceat(outcome, np.flatnonzero(first))
        if closed[-1]:
            self._pending = zeros(GATED_TAG, 0)
        else:
            # At most four clicks say all there is to know of a pending group.
            values = np.flatnonzero(seen[-1] >> np.arange(4) & 1)
            self._pending = zeros(GATED_TAG, len(values))
            self._pending["slot"] = slot[starts[-1]]
            self._pending["basis"], self._pending["bit"] = values >> 1, values & 1
            starts, seen, place = starts[:-1], seen[:-1], place[:-1]
        at = enders[place]

        in_z, in_x = seen & 3, seen >> 2
        cross = (in_z > 0) & (in_x > 0)
        double = ~cross & ((in_z == 3) | (in_x == 3))
        discarded = cross & self.discard_cross
        tossed = double | (cross & ~discarded)
        turn = np.cumsum(tossed) - 1
        dry = tossed & (turn >= len(coins))
        coined = tossed & ~dry
        basis, bit = (in_x > 0).astype(np.uint8), ((seen & 0b1010) > 0).astype(np.uint8)
        bit[coined] = coins["bit"][turn[coined]]
        basis[coined & cross] = coins["basis"][turn[coined & cross]]

        self.groups = (slot[starts], double, cross)
        leaves = ~discarded & ~dry
        found = zeros(DETECTION, int(leaves.sum()))
        found["slot"] = slot[starts[leaves]]
        found["basis"], found["bit"] = basis[leaves], bit[leaves]
        marked = np.flatnonzero(~click)
        # A detection goes before the marker that closes its group.
        before = np.searchsorted(marked, at[leaves])
        detections = np.insert(_markers(tags), before, found)
        merged = np.zeros(count, bool)
        merged[clicks[~first]] = True
        self._count(
            tags,
            old,
            merged=merged,
            out=_at(count, at[leaves]),
            discarded=_at(count, at[discarded]),
            coin_dry=_at(count, at[dry]),
            double_clicks=_at(count, at[double]),
            cross_clicks=_at(count, at[cross]),
        )
        return detections, int(coined.sum())

    def _count(self, tags: Structured, old: int, **steps: np.ndarray) -> None:
        """Count a chunk, its first `old` records being repeats."""
        click = tags["kind"] == TagKind.CLICK
        frames = np.flatnonzero(tags["kind"][old:] == TagKind.FRAME)
        every = dict.fromkeys(self.ledger.live, np.zeros(len(tags), bool)) | steps
        every["in"] = click
        self.ledger.count(frames, **{name: step[old:] for name, step in every.items()})


def _markers(tags: Structured) -> Structured:
    """The markers among the tags, as detections."""
    chosen = tags[tags["kind"] != TagKind.CLICK]
    result = zeros(DETECTION, len(chosen))
    result["slot"], result["kind"] = chosen["slot"], chosen["kind"]
    return result


def _at(count: int, places: np.ndarray) -> np.ndarray:
    steps = np.zeros(count, bool)
    steps[places] = True
    return steps
