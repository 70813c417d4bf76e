# SPDX-License-Identifier: CERN-OHL-W-2.0
"""Keyrail gateware: one file a block, joined by streams."""
