# SPDX-License-Identifier: Apache-2.0
"""Twin of `keyrail_gateware.secret_fifo`."""

from __future__ import annotations

from collections import deque


class SecretFifo:
    """First in, first out; forgets everything on `wipe`.

    Parameters
    ----------
    depth
        Records in memory; one more waits at the output.
    """

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self._held: deque[int] = deque()

    def push(self, record: int) -> bool:
        """Take a record; False where there is no room for it."""
        if len(self._held) > self.depth:
            return False
        self._held.append(record)
        return True

    def pop(self) -> int:
        """Give the oldest record; IndexError if there is none."""
        return self._held.popleft()

    def wipe(self) -> None:
        """Forget everything."""
        self._held.clear()
