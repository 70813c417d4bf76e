# SPDX-License-Identifier: CERN-OHL-W-2.0
"""Sizes that several boards have in common: parameters of `keyrail_gateware.station.Configuration`.

Modulators have two samples a clock: that is what a pin's double data rate register gives.
"""

from __future__ import annotations

__all__ = [
    "RECEIVER_FULL",
    "RECEIVER_SMALL",
    "SENDER_DEEP",
    "SENDER_DEEPEST",
    "SENDER_FULL",
    "SENDER_SMALL",
]

SENDER_SMALL = {
    "toeplitz_input_log2": 0,
    "toeplitz_output_log2": 0,
    "block_memory_log2": 12,
    "horizon_log2": 12,
    "gear": 2,
}
"""No Toeplitz engine: the control PC hashes. States older than 2^12 slots are recalled from it."""
SENDER_DEEP = SENDER_SMALL | {"horizon_log2": 17}
"""The same with a ring of 2^17 states, 24 block RAMs: what a 25F has room for."""
SENDER_DEEPEST = SENDER_SMALL | {"horizon_log2": 19}
"""A ring of 2^19 states, 96 block RAMs, for an 85F."""
SENDER_FULL = {
    "toeplitz_input_log2": 17,
    "toeplitz_output_log2": 16,
    "block_memory_log2": 16,
    "horizon_log2": 17,
    "gear": 2,
}
RECEIVER_SMALL = {
    "toeplitz_input_log2": 0,
    "toeplitz_output_log2": 0,
    "block_memory_log2": 12,
    "channels": 4,
    "choices_log2": 12,
    "tag_fifo_log2": 10,
    "inputs": 6,
    "tdc_lines": 1,
}
"""Four detectors, sync and pulse per second, one delay line each; the control PC hashes."""
RECEIVER_FULL = {
    "toeplitz_input_log2": 17,
    "toeplitz_output_log2": 16,
    "block_memory_log2": 16,
    "channels": 8,
    "choices_log2": 15,
    "inputs": 10,
    "tdc_lines": 1,
}
