# SPDX-License-Identifier: Apache-2.0
"""Twin of `keyrail_gateware.currents`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from keyrail.contract import CHANNELS
from keyrail.layouts import Structured

from .ledger import Ledger


class Currents:
    """Hold samples of the detectors' currents against their limits, as the gateware does.

    Parameters
    ----------
    limits
        By channel: least and largest sample without alarm.
    """

    def __init__(self, limits: Sequence[tuple[int, int]] = ((0, 0xFFFF),) * CHANNELS) -> None:
        self.limits = tuple(limits)
        self.alarms = 0
        self.ledger = Ledger("currents")

    def process(self, samples: Structured) -> None:
        """Take a chunk of ``current_sample`` records."""
        exists = samples["channel"] < CHANNELS
        channel = np.where(exists, samples["channel"], 0)
        least, most = np.array(self.limits).T
        low = exists & (samples["sample"] < least[channel])
        high = exists & (samples["sample"] > most[channel]) & ~low
        for one in np.unique(channel[low | high]):
            self.alarms |= 1 << int(one)
        every = np.ones(len(samples), bool)
        self.ledger.count(
            np.zeros(0, np.int64),
            **{
                "in": every,
                "out": exists & ~low & ~high,
                "low": low,
                "high": high,
                "bad_channel": ~exists,
            },
        )
