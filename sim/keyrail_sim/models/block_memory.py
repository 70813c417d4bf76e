# SPDX-License-Identifier: Apache-2.0
"""Twin of `keyrail_gateware.block_memory`."""

from __future__ import annotations

import numpy as np

from keyrail.contract import Record
from keyrail.layouts import Structured, zeros


class BlockMemory:
    """A block's entries, on the board or in the control PC, as the gateware keeps them.

    Parameters
    ----------
    record
        Record of an entry.
    depth
        Entries the board holds.
    """

    def __init__(self, record: Record, depth: int) -> None:
        self.record = record
        self.depth = depth
        self.on_host = False
        self.wipe()

    def wipe(self) -> None:
        """Forget everything."""
        self.count = 0
        self._stored: list[Structured] = []
        self._filled = zeros(self.record, 0)
        self._passing = False
        self._given = 0

    @property
    def room(self) -> int | None:
        """Entries that can still be taken; None for any number."""
        return None if self.on_host else self.depth - self.count

    @property
    def done(self) -> bool:
        """The read pass has given its last entry; false before the first pass."""
        return self._passing and self._given == self.count

    def write(self, entries: Structured) -> Structured:
        """Take entries; returns those that leave for the control PC.

        Raises
        ------
        ValueError
            If the memory cannot take them all: the block before it must look at `room`.
        """
        if self.room is not None and len(entries) > self.room:
            raise ValueError(f"{len(entries)} entries for room of {self.room}")
        self.count += len(entries)
        if self.on_host:
            return entries
        if len(entries):
            self._stored.append(entries)
        return zeros(self.record, 0)

    def rewind(self) -> None:
        """Begin a read pass at entry 0."""
        self._passing = True
        self._given = 0

    def read(self, most: int | None = None, fill: Structured | None = None) -> Structured:
        """Give the next entries of the read pass.

        Parameters
        ----------
        most
            At most so many; None for all there are.
        fill
            Entries that come from the control PC.

        Returns
        -------
        Structured
            Entries, none where no pass is under way.
        """
        if fill is not None and len(fill):
            self._filled = np.concatenate([self._filled, fill])
        if not self._passing:
            return zeros(self.record, 0)
        left = self.count - self._given
        if self.on_host:
            left = min(left, len(self._filled))
        number = left if most is None else min(left, most)
        if self.on_host:
            entries, self._filled = self._filled[:number], self._filled[number:]
        else:
            self._stored = [np.concatenate([zeros(self.record, 0), *self._stored])]
            entries = self._stored[0][self._given : self._given + number]
        self._given += number
        return entries
