# SPDX-License-Identifier: Apache-2.0
"""Twin of `keyrail_gateware.histogram`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from keyrail.contract import (
    CHANNELS,
    HISTOGRAM_BIN,
    HISTOGRAM_BINS,
    KEY_MODE_HISTOGRAM_MINIMUM,
    TagKind,
)
from keyrail.layouts import Structured, zeros


class Histogram:
    """Count clicks by channel and phase, as the gateware does.

    Parameters
    ----------
    shift
        A bin is 2^shift ps wide.
    key_mode
        True in key mode.
    count_bits
        Width of the bins in memory.
    """

    def __init__(
        self,
        shift: int = 4,
        key_mode: bool = False,
        count_bits: int = HISTOGRAM_BIN.used_bits,
    ) -> None:
        self.shift = shift
        self.key_mode = key_mode
        self._most = (1 << count_bits) - 1
        self._counts: npt.NDArray[np.int64] = np.zeros(CHANNELS * HISTOGRAM_BINS, np.int64)

    def process(self, tags: Structured) -> Structured:
        """Count a chunk of ``slot_tag`` records and pass it on."""
        counted = (tags["kind"] == TagKind.CLICK) & (tags["channel"] < CHANNELS)
        number = np.minimum(tags["phase"][counted] >> self.shift, HISTOGRAM_BINS - 1)
        place = tags["channel"][counted].astype(np.intp) * HISTOGRAM_BINS + number
        self._counts += np.bincount(place, minlength=len(self._counts))
        return tags

    def dump(self) -> Structured | None:
        """The 8192 ``histogram_bin`` records, which begin again at zero; None if refused."""
        if self.key_mode and int(self._counts.sum()) < KEY_MODE_HISTOGRAM_MINIMUM:
            return None
        bins = zeros(HISTOGRAM_BIN, len(self._counts))
        bins["count"] = np.minimum(self._counts, self._most)
        self.wipe()
        return bins

    def wipe(self) -> None:
        """Clear all bins."""
        self._counts[:] = 0
