# SPDX-License-Identifier: Apache-2.0
"""Twin of `keyrail_gateware.t2_encoder`."""

from __future__ import annotations

import numpy as np

from keyrail.contract import T2, TIME_BITS, TagKind
from keyrail.layouts import Structured, unpack
from keyrail.t2 import Encoder

from .ledger import Ledger


class T2Encoder:
    """Turn tags into T2 records, bit for bit as the gateware does, serialised.

    Parameters
    ----------
    time_bits
        As the gateware's.
    """

    def __init__(self, time_bits: int = TIME_BITS) -> None:
        self.encoder = Encoder(time_bits)
        self.ledger = Ledger("t2_encoder")

    def process(self, tags: Structured) -> Structured:
        """Turn a chunk of ``tag`` records into ``t2`` records."""
        frames = np.flatnonzero(tags["kind"] == TagKind.FRAME)
        # Counters at a frame marker: those of the records up to it.
        cut = int(frames[-1]) + 1 if len(frames) else 0
        parts = [self.encoder.encode(tags[:cut])]
        if cut:
            self._count()
            self.ledger.at_frame = dict(self.ledger.live)
        parts.append(self.encoder.encode(tags[cut:]))
        self._count()
        return unpack(T2, np.concatenate(parts).astype("<u4").view(np.uint8))

    def _count(self) -> None:
        encoder = self.encoder
        self.ledger.live["in"] = encoder.clicks
        self.ledger.live["out"] = encoder.clicks - encoder.out_of_order
        self.ledger.live["out_of_order"] = encoder.out_of_order
