# SPDX-License-Identifier: CERN-OHL-W-2.0
"""Boards that carry Keyrail stations."""
