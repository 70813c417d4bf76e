# SPDX-License-Identifier: Apache-2.0
"""Twin of `keyrail_gateware.choices`."""

from __future__ import annotations

import numpy as np

from keyrail.contract import CHOICES_PER_WORD, CHOSEN_TAG, SLOT_TAG, TagKind
from keyrail.layouts import Structured, zeros

from .ledger import Ledger

SPARE_SLOTS = 4 * CHOICES_PER_WORD
"""Slots of the ring that count as past, though they may still be there."""


class Choices:
    """Remember the basis choices of the last slots, as the gateware does.

    Parameters
    ----------
    horizon_slots
        Slots in the ring, a power of two.
    active
        True in an active receiver.
    first_choice
        Slot of the first choice fed, a multiple of 64.
    """

    def __init__(
        self, horizon_slots: int = 1 << 17, active: bool = False, first_choice: int = 0
    ) -> None:
        self.active = active
        self.first_choice = first_choice
        self.ledger = Ledger("choices")
        self._horizon = horizon_slots
        self._ring = np.zeros(horizon_slots // CHOICES_PER_WORD, np.uint64)
        self._next: int | None = None
        self._former: int | None = None
        self._held = (0, 0, 0)  # choice, expired, dry of the last record's slot

    @property
    def next_slot(self) -> int:
        """Slot of the next choice fed."""
        return self.first_choice if self._next is None else self._next

    def feed(self, words: Structured) -> None:
        """Take ``choice_word`` records."""
        depth = len(self._ring)
        values = words["choices"][-depth:]
        start = self.next_slot // CHOICES_PER_WORD + len(words) - len(values)
        self._ring[(start + np.arange(len(values))) % depth] = values
        if len(words):
            self._next = self.next_slot + len(words) * CHOICES_PER_WORD

    def process(self, tags: Structured) -> Structured:
        """Turn a chunk of ``slot_tag`` into ``chosen_tag`` records."""
        click = tags["kind"] == TagKind.CLICK
        slot = tags["slot"].astype(np.int64)
        dry = slot >= self.next_slot
        oldest = max(self.first_choice, self.next_slot - (self._horizon - SPARE_SLOTS))
        late = (slot < oldest) & ~dry
        word = self._ring[slot // CHOICES_PER_WORD % len(self._ring)]
        choice = (word >> (slot % CHOICES_PER_WORD).astype(np.uint64) & np.uint64(1)).astype(
            np.uint8
        )
        if len(slot):
            # What was decided for the slot's first record stands, whatever has been fed since.
            same = np.logical_and.accumulate(slot == self._former)
            for index, column in enumerate((choice, late, dry)):
                column[same] = self._held[index]
            self._former = int(slot[-1])
            self._held = (int(choice[-1]), int(late[-1]), int(dry[-1]))
        if not self.active:
            choice[:], late[:], dry[:] = 0, False, False
        drops = click & (late | dry)
        self.ledger.count(
            np.flatnonzero(tags["kind"] == TagKind.FRAME),
            **{"in": click, "out": click & ~drops, "dry": click & dry, "expired": click & late},
        )
        leaves = ~drops
        result = zeros(CHOSEN_TAG, int(leaves.sum()))
        for field in SLOT_TAG.fields:
            result[field.name] = tags[field.name][leaves]
        result["choice"] = (choice * click)[leaves]
        return result

    def wipe(self) -> None:
        """Forget every choice; further clicks of the last slot find none."""
        self._ring[:] = 0
        self._next = None
        self._held = (0, 0, 1)
