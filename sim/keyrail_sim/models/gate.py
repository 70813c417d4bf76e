# SPDX-License-Identifier: Apache-2.0
"""Twin of `keyrail_gateware.gate`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from keyrail.contract import CHANNELS, GATE_WINDOWS, GATED_TAG, Role, TagKind, registers
from keyrail.layouts import Structured, zeros

from .ledger import Ledger

_FIELDS = registers(Role.RECEIVER)["gate_0_0"].fields


class Window(NamedTuple):
    """A gate window: the fields of its register.

    Parameters
    ----------
    start, stop
        First phase accepted and first phase past the window, ps; stop < start wraps.
    enable, basis, bit
        1 if the window is open, and what a click in it stands for, where the basis choice is 0 and
        in a passive receiver.
    enable_1, basis_1, bit_1
        The same where the basis choice is 1.
    """

    start: int = 0
    stop: int = 0
    enable: int = 0
    basis: int = 0
    bit: int = 0
    enable_1: int = 0
    basis_1: int = 0
    bit_1: int = 0

    @classmethod
    def from_register(cls, value: int) -> Window:
        """Window that a register's value describes."""
        fields: dict[str, int] = {}
        for field in _FIELDS:
            fields[field.name] = value & ((1 << field.bits) - 1)
            value >>= field.bits
        return cls(**fields)

    def register(self) -> int:
        """Value of the register; ValueError if a field does not fit."""
        value = position = 0
        for field in _FIELDS:
            content = int(getattr(self, field.name))
            if not 0 <= content < 1 << field.bits:
                raise ValueError(f"gate window: {field.name} {content} not in {field.bits} bits")
            value |= content << position
            position += field.bits
        return value


class Gate:
    """Accept the clicks inside a gate window, bit for bit as the gateware does.

    Parameters
    ----------
    windows
        The 16 windows, at index channel x 2 + window.

    Raises
    ------
    ValueError
        If there are not 16.
    """

    def __init__(self, windows: Sequence[Window] = (Window(),) * (CHANNELS * GATE_WINDOWS)) -> None:
        if len(windows) != CHANNELS * GATE_WINDOWS:
            raise ValueError(f"{len(windows)} gate windows, not {CHANNELS * GATE_WINDOWS}")
        self.windows = tuple(windows)
        self.ledger = Ledger("gate")

    def process(self, tags: Structured) -> Structured:
        """Turn a chunk of ``chosen_tag`` into ``gated_tag`` records."""
        click = tags["kind"] == TagKind.CLICK
        exists = tags["channel"] < CHANNELS
        index = np.where(exists, tags["channel"], 0).astype(np.intp) * GATE_WINDOWS
        phase = tags["phase"]
        columns = np.array(self.windows, np.uint32).T
        # By choice and window: enable, basis, bit.
        meaning = columns[2:].reshape(2, 3, -1)
        choice = tags["choice"].astype(np.intp)
        hits = []
        for number in range(GATE_WINDOWS):
            start, stop = (column[index + number] for column in columns[:2])
            enable = meaning[choice, 0, index + number]
            after, before = phase >= start, phase < stop
            inside = np.where(stop < start, after | before, after & before)
            hits.append(exists & (enable != 0) & inside)
        accepted = click & (hits[0] | hits[1])
        leaves = ~click | accepted
        window = click & ~hits[0]
        index += window

        result = zeros(GATED_TAG, int(leaves.sum()))
        for name in ("slot", "channel", "kind", "phase"):
            result[name] = tags[name][leaves]
        result["basis"] = (meaning[choice, 1, index] * click)[leaves]
        result["bit"] = (meaning[choice, 2, index] * click)[leaves]
        result["window"] = window[leaves]
        self.ledger.count(
            np.flatnonzero(tags["kind"] == TagKind.FRAME),
            **{"in": click, "out": accepted, "gated_out": click & ~accepted},
        )
        return result
