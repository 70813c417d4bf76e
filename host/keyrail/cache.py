# SPDX-License-Identifier: Apache-2.0
"""Where what was built for this machine is kept."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cache_directory"]


def cache_directory() -> Path:
    """``KEYRAIL_CACHE``, else keyrail/ in the user's cache."""
    chosen = os.environ.get("KEYRAIL_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "keyrail"
