# SPDX-License-Identifier: Apache-2.0
"""Twin of `keyrail_gateware.histogram`."""

from __future__ import annotations

import numpy as np

from keyrail.contract import CHANNELS, HISTOGRAM_BIN, HISTOGRAM_BINS, TagKind
from keyrail.layouts import Structured

from .count_memory import CountMemory


class Histogram(CountMemory):
    """Count clicks by channel and phase, as the gateware does.

    Parameters
    ----------
    shift
        A bin is 2^shift ps wide.
    key_mode
        True in key mode.
    count_bits
        Width of the bins in memory.
    channels
        Channels that are counted.
    """

    def __init__(
        self,
        shift: int = 4,
        key_mode: bool = False,
        count_bits: int = HISTOGRAM_BIN.used_bits,
        channels: int = CHANNELS,
    ) -> None:
        super().__init__(CHANNELS * HISTOGRAM_BINS, key_mode, count_bits)
        self.shift = shift
        self._channels = channels

    def process(self, tags: Structured) -> Structured:
        """Count a chunk of ``slot_tag`` records and pass it on."""
        counted = (tags["kind"] == TagKind.CLICK) & (tags["channel"] < self._channels)
        number = np.minimum(tags["phase"][counted] >> self.shift, HISTOGRAM_BINS - 1)
        self.count(tags["channel"][counted].astype(np.intp) * HISTOGRAM_BINS + number)
        return tags
