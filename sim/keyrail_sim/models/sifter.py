# SPDX-License-Identifier: Apache-2.0
"""Twin of `keyrail_gateware.sifter`."""

from __future__ import annotations

import numpy as np

from keyrail.contract import REPLY, SENDER_SIFTED, Basis
from keyrail.layouts import Structured, zeros

from .ledger import Ledger

_NO_FRAMES = np.zeros(0, np.int64)


class Sifter:
    """Meet the receiver's bases with block memory, as the gateware does."""

    def __init__(self) -> None:
        self.ledger = Ledger("sifter")

    def process(
        self, bases: Structured, entries: Structured, exhausted: bool = False
    ) -> tuple[Structured, Structured]:
        """Pass bases and as many entries; fewer entries only where `exhausted`.

        Parameters
        ----------
        bases, entries
            ``basis`` and ``sender_entry`` records, in order.
        exhausted
            Block memory has no more than these entries: further bases are surplus.

        Returns
        -------
        tuple
            ``reply`` records, one for each basis, and ``sender_sifted`` records.
        """
        count = min(len(bases), len(entries))
        if len(bases) > count and not exhausted:
            raise ValueError(f"{len(bases)} bases for {len(entries)} entries")
        entry = entries[:count]
        present = entry["present"] == 1
        test = entry["basis"] == Basis.X
        keep = present & (entry["basis"] == bases["basis"][:count])
        ones = np.ones(len(bases), bool)
        self.ledger.count(
            _NO_FRAMES,
            **{
                "in": ones,
                "out": keep,
                "absent": ~present,
                "mismatch": present & ~keep,
                "surplus": ones[count:],
            },
        )
        replies = zeros(REPLY, len(bases))
        replies["keep"][:count] = keep
        replies["opened"][:count] = keep & test
        replies["bit"][:count] = entry["bit"] * (keep & test)
        sifted = zeros(SENDER_SIFTED, int(keep.sum()))
        sifted["bit"] = entry["bit"][keep]
        sifted["test"] = test[keep]
        sifted["intensity"] = entry["intensity"][keep]
        return replies, sifted
