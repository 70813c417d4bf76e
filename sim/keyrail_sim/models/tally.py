# SPDX-License-Identifier: Apache-2.0
"""Twin of `keyrail_gateware.tally`."""

from __future__ import annotations

import numpy as np

from keyrail.contract import Intensity
from keyrail.layouts import Structured

from .ledger import Ledger

_NO_FRAMES = np.zeros(0, np.int64)


class SenderTally:
    """Count the sender's kept detections by basis, intensity class and test bit."""

    def __init__(self) -> None:
        self.ledger = Ledger("sender_tally")

    def process(self, sifted: Structured) -> Structured:
        """Pass ``sender_sifted`` records."""
        test, one = sifted["test"] == 1, sifted["bit"] == 1
        signal = sifted["intensity"] == Intensity.SIGNAL
        self.ledger.count(
            _NO_FRAMES,
            z_signal=~test & signal,
            z_decoy=~test & ~signal,
            x_signal=test & signal,
            x_decoy=test & ~signal,
            x_zero=test & ~one,
            x_one=test & one,
        )
        return sifted


class ReceiverTally:
    """Count the receiver's kept detections by basis, and the test ones by bit and error."""

    def __init__(self) -> None:
        self.ledger = Ledger("receiver_tally")

    def process(self, sifted: Structured) -> Structured:
        """Pass ``receiver_sifted`` records."""
        test, error = sifted["test"] == 1, sifted["error"] == 1
        sent = (sifted["bit"] ^ sifted["error"]) == 1
        self.ledger.count(
            _NO_FRAMES,
            z=~test,
            x_zero=test & ~sent,
            x_one=test & sent,
            x_zero_error=test & ~sent & error,
            x_one_error=test & sent & error,
        )
        return sifted
