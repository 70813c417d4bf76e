# SPDX-License-Identifier: Apache-2.0
"""Twin of `keyrail_gateware.resolver`."""

from __future__ import annotations

import numpy as np

from keyrail.contract import RECEIVER_SIFTED, Basis
from keyrail.layouts import Structured, zeros

from .ledger import Ledger

_NO_FRAMES = np.zeros(0, np.int64)


class Resolver:
    """Meet the sender's replies with block memory, as the gateware does."""

    def __init__(self) -> None:
        self.ledger = Ledger("resolver")

    def process(
        self, replies: Structured, entries: Structured, exhausted: bool = False
    ) -> Structured:
        """Pass replies and as many entries; fewer entries only where `exhausted`.

        Parameters
        ----------
        replies, entries
            ``reply`` and ``receiver_entry`` records, in order.
        exhausted
            Block memory has no more than these entries: further replies are surplus.

        Returns
        -------
        Structured
            ``receiver_sifted`` records.
        """
        count = min(len(replies), len(entries))
        surplus = len(replies) - count
        if surplus and not exhausted:
            raise ValueError(f"{len(replies)} replies for {len(entries)} entries")
        reply, entry = replies[:count], entries[:count]
        keep, opened = reply["keep"] == 1, reply["opened"] == 1
        test = entry["basis"] == Basis.X
        contradicted = (opened != (keep & test)) | ((reply["bit"] == 1) & ~opened)
        kept = keep & ~contradicted
        ones = np.ones(len(replies), bool)
        self.ledger.count(
            _NO_FRAMES,
            **{
                "in": ones,
                "out": kept,
                "contradicted": contradicted,
                "dropped": ~keep & ~contradicted,
                "surplus": ones[count:],
            },
        )
        sifted = zeros(RECEIVER_SIFTED, int(kept.sum()))
        sifted["bit"] = entry["bit"][kept]
        sifted["test"] = test[kept]
        sifted["error"] = ((entry["bit"] ^ reply["bit"]) & test)[kept]
        return sifted
