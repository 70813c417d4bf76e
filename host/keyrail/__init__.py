# SPDX-License-Identifier: Apache-2.0
"""Keyrail: from detector clicks to secret keys."""

from keyrail.board import Board, open  # noqa: A004 - keyrail.open is how users know it

__all__ = ["Board", "open"]
