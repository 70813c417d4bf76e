# SPDX-License-Identifier: Apache-2.0
"""Bit-exact numpy twins of the gateware blocks, one file a block."""
