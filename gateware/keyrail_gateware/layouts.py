# SPDX-License-Identifier: CERN-OHL-W-2.0
"""The Amaranth view of the contract: records as struct layouts."""

from functools import lru_cache

from amaranth.lib import data

from keyrail.contract import COUNTER_BITS, LEDGERS, Field, Record

__all__ = ["fields_layout", "layout", "ledger_layout"]


def fields_layout(fields: tuple[Field, ...]) -> data.StructLayout:
    """Struct layout of fields, the first in the low bits."""
    return data.StructLayout({field.name: field.bits for field in fields})


@lru_cache
def layout(record: Record) -> data.StructLayout:
    """Struct layout of a record inside the fabric: its fields without the reserved bits."""
    return fields_layout(record.fields)


@lru_cache
def ledger_layout(block: str) -> data.StructLayout:
    """Struct layout of a block's counters, by the names of the contract."""
    return data.StructLayout({counter.name: COUNTER_BITS for counter in LEDGERS[block][1]})
