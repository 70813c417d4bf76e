# SPDX-License-Identifier: Apache-2.0
"""Twin of `keyrail_gateware.count_memory`."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from keyrail.contract import HISTOGRAM_BIN, KEY_MODE_HISTOGRAM_MINIMUM
from keyrail.layouts import Structured, zeros


class CountMemory:
    """Count events by number, as the gateware does.

    Parameters
    ----------
    bins
        Bins.
    key_mode
        True in key mode.
    count_bits
        Width of the bins in memory.
    """

    def __init__(
        self, bins: int, key_mode: bool = False, count_bits: int = HISTOGRAM_BIN.used_bits
    ) -> None:
        self.key_mode = key_mode
        self._most = (1 << count_bits) - 1
        self._counts: npt.NDArray[np.int64] = np.zeros(bins, np.int64)

    def count(self, numbers: npt.NDArray[np.integer[Any]]) -> None:
        """Count one event for each bin number."""
        self._counts += np.bincount(numbers, minlength=len(self._counts))

    def dump(self) -> Structured | None:
        """All bins as ``histogram_bin`` records, which begin again at zero; None if refused."""
        if self.key_mode and int(self._counts.sum()) < KEY_MODE_HISTOGRAM_MINIMUM:
            return None
        bins = zeros(HISTOGRAM_BIN, len(self._counts))
        bins["count"] = np.minimum(self._counts, self._most)
        self.wipe()
        return bins

    def wipe(self) -> None:
        """Clear all bins."""
        self._counts[:] = 0
