# SPDX-License-Identifier: Apache-2.0
"""Views of the contract for C and for people: ``python -m keyrail.contract.render``."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterable
from enum import IntEnum
from itertools import pairwise

from .description import Field, Record, Role
from .identity import CONTRACT_HASH, CONTRACT_VERSION
from .records import RECORDS, STREAMS, LossMark, T2Marker, TagKind
from .registers import (
    MAGIC,
    REGISTERS,
    BlockCommand,
    BlockState,
    BoardCode,
    HistogramCommand,
    Mode,
    ReceiverKind,
    TdcResult,
    ToeplitzCommand,
    ToeplitzError,
    ToeplitzFamily,
)
from .usb import USB_REQUEST_WORDS, VendorRequest, endpoints

ENUMERATIONS: tuple[type[IntEnum], ...] = (
    Role,
    BoardCode,
    Mode,
    ReceiverKind,
    HistogramCommand,
    TagKind,
    LossMark,
    T2Marker,
    BlockCommand,
    BlockState,
    TdcResult,
    ToeplitzCommand,
    ToeplitzError,
    ToeplitzFamily,
    VendorRequest,
)


def _masks(prefix: str, fields: Iterable[Field]) -> list[str]:
    lines, shift = [], 0
    for field in fields:
        name = f"{prefix}_{field.name}".upper()
        lines.append(f"#define {name}_SHIFT {shift}")
        lines.append(f"#define {name}_MASK 0x{(1 << field.bits) - 1:x}ull")
        shift += field.bits
    return lines


def c_header() -> str:
    """C header with identity, enumerations, register offsets and field positions."""
    lines = [
        "/* SPDX-License-Identifier: Apache-2.0 */",
        "/* Generated from keyrail.contract by `make contract`; do not edit. */",
        "#ifndef KEYRAIL_CONTRACT_H",
        "#define KEYRAIL_CONTRACT_H",
        "",
        f"#define KEYRAIL_MAGIC 0x{MAGIC:08x}u",
        f"#define KEYRAIL_CONTRACT_VERSION {CONTRACT_VERSION}u",
        f"#define KEYRAIL_CONTRACT_HASH 0x{CONTRACT_HASH:016x}ull",
        "",
    ]
    for enumeration in ENUMERATIONS:
        stem = "".join(f"_{c}" if c.isupper() else c for c in enumeration.__name__).upper()
        lines += [f"#define KEYRAIL{stem}_{c.name} {c.value}u" for c in enumeration] + [""]
    lines.append("/* Registers: offsets in 32-bit words; a pair has its low word first. */")
    for register in REGISTERS:
        stem = f"KEYRAIL_REGISTER_{register.name.upper()}"
        lines.append(f"#define {stem} 0x{register.offset:03x}u")
        if len(register.fields) > 1:
            lines += _masks(stem, register.fields)
    lines += ["", "/* Records: sizes in bytes; shifts count from bit 0 of the record. */"]
    for record in RECORDS:
        stem = f"KEYRAIL_RECORD_{record.name.upper()}"
        lines += [f"#define {stem}_BYTES {record.bytes}u", *_masks(stem, record.fields)]
    return "\n".join([*lines, "", "#endif", ""])


def _record_table(record: Record) -> list[str]:
    rows = ["| bits | field | unit | meaning |", "|---|---|---|---|"]
    for field in record.fields:
        low = record.offset(field.name)
        span = f"{low + field.bits - 1}..{low}" if field.bits > 1 else f"{low}"
        rows.append(f"| {span} | `{field.name}` | {field.unit} | {field.meaning} |")
    if record.used_bits < record.bits:
        rows.append(f"| {record.bits - 1}..{record.used_bits} | | | reserved, zero |")
    return rows


def _codes(codes: type[IntEnum]) -> str:
    return ", ".join(f"{c.value} {c.name}" for c in codes)


def _meanings(enumeration: type[IntEnum]) -> dict[str, str]:
    """What is written below each member of an enumeration."""
    (definition,) = ast.parse(inspect.getsource(enumeration)).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for member, text in pairwise(definition.body):
        if (
            isinstance(member, ast.Assign)
            and isinstance(member.targets[0], ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
        ):
            found[member.targets[0].id] = str(text.value.value)
    return found


def manual() -> str:
    """The chapter of the manual on registers, streams and records, in Markdown."""
    lines = [
        "# Registers, streams and records",
        "",
        "Generated from `keyrail.contract` by `make contract`; do not edit.",
        "",
        f"Contract version {CONTRACT_VERSION}, hash `{CONTRACT_HASH:016x}`. A host refuses a "
        "board whose registers `contract_version` and `contract_hash` say otherwise.",
        "",
        "## Streams",
        "",
        "Each is one bulk endpoint. *Secret* streams stay inside the station (board and control "
        "PC).",
        "",
        "| stream | stations | direction | record | secret | meaning |",
        "|---|---|---|---|---|---|",
    ]
    for stream in STREAMS:
        roles = ", ".join(role.name.lower() for role in stream.roles)
        secret = "yes" if stream.secret else "no"
        lines.append(
            f"| `{stream.name}` | {roles} | {stream.direction.value} | `{stream.record.name}` "
            f"| {secret} | {stream.meaning} |"
        )
    lines += ["", "## Records", ""]
    for record in RECORDS:
        lines += [f"### `{record.name}` ({record.bytes} bytes)", "", record.meaning, ""]
        lines += [*_record_table(record), ""]
    lines += [
        "## Registers",
        "",
        "Offsets count 32-bit words. A value of more than 32 bits takes two words: read the low "
        "word first (it latches the high one); a write takes effect with the high word.",
        "",
        "| offset | register | stations | access | reset | fields | meaning |",
        "|---|---|---|---|---|---|---|",
    ]
    for register in REGISTERS:
        roles = ", ".join(role.name.lower() for role in register.roles)
        shift, fields = 0, []
        for field in register.fields:
            span = f"{shift + field.bits - 1}..{shift}" if field.bits > 1 else f"{shift}"
            text = f"{span} `{field.name}`" + (f" ({field.unit})" if field.unit else "")
            codes = f": {_codes(field.codes)}" if field.codes else ""
            fields.append(f"{text} {field.meaning}{codes}")
            shift += field.bits
        lines.append(
            f"| {register.offset:#05x} | `{register.name}` | {roles} | {register.access.value} "
            f"| {register.reset:#x} | {'<br>'.join(fields)} | {register.meaning} |"
        )
    lines += [
        "",
        "## USB",
        "",
        "Addresses of the bulk endpoints; bit 7 is set for those to the host.",
        "",
        "| stream | sender | receiver |",
        "|---|---|---|",
    ]
    addresses = {role: endpoints(role) for role in Role}
    for name in dict.fromkeys(stream.name for stream in STREAMS):
        cells = [
            f"{addresses[role][name]:#04x}" if name in addresses[role] else ""
            for role in (Role.SENDER, Role.RECEIVER)
        ]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    lines += [
        "",
        f"Vendor requests to the device; at most {USB_REQUEST_WORDS} words at a time.",
        "",
        "| bRequest | name | meaning |",
        "|---|---|---|",
    ]
    meanings = _meanings(VendorRequest)
    lines += [
        f"| {one.value} | `{one.name.lower()}` | {' '.join(meanings[one.name].split())} |"
        for one in VendorRequest
    ]
    lines += [
        "",
        "## Errors of the Toeplitz engine",
        "",
        "Bits of `error` in `toeplitz_status`. Any of them stops and wipes the engine.",
        "",
        "| bit | error | meaning |",
        "|---|---|---|",
    ]
    meanings = _meanings(ToeplitzError)
    lines += [
        f"| {one.value} | `{one.name.lower()}` | {meanings[one.name]} |" for one in ToeplitzError
    ]
    return "\n".join([*lines, ""])


def main(arguments: list[str]) -> int:
    """Print the view that is asked for: ``header`` or ``manual``."""
    views = {"header": c_header, "manual": manual}
    if len(arguments) != 1 or arguments[0] not in views:
        print("usage: python -m keyrail.contract.render header|manual", file=sys.stderr)
        return 2
    print(views[arguments[0]](), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
