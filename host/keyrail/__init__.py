# SPDX-License-Identifier: Apache-2.0
"""Keyrail: from detector clicks to secret keys."""

from keyrail.board import Board, open

__all__ = ["Board", "open"]
