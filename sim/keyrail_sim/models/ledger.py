# SPDX-License-Identifier: Apache-2.0
"""Twin of the gateware's ledger."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from keyrail.contract import LEDGERS


class Ledger:
    """Counters of one block, by the contract's names, live and at the last frame marker.

    Parameters
    ----------
    block
        Name of the block in the contract's ``LEDGERS``.
    """

    def __init__(self, block: str) -> None:
        self.live = {counter.name: 0 for counter in LEDGERS[block][1]}
        self.at_frame = dict(self.live)

    def count(self, frames: npt.NDArray[np.int64], **steps: npt.NDArray[np.bool_]) -> None:
        """Add a chunk of records.

        Parameters
        ----------
        frames
            Indices of the frame markers in the chunk.
        steps
            By counter name, one element a record of the chunk: what it adds.
        """
        for name, step in steps.items():
            if len(frames):
                self.at_frame[name] = self.live[name] + int(step[: frames[-1] + 1].sum())
            self.live[name] += int(step.sum())
