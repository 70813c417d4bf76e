# SPDX-License-Identifier: Apache-2.0
"""The contract: one description, and views that agree with it."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyrail import contract
from keyrail.contract import RECORDS, REGISTERS, Field, Record, Register, Role, render
from keyrail.layouts import dtype, pack, unpack, zeros

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("role", list(Role))
def test_no_two_registers_share_a_word(role):
    words = [
        register.offset + word
        for register in contract.registers(role).values()
        for word in range(register.words)
    ]
    assert len(words) == len(set(words))
    assert contract.registers(role)["magic"].offset == 0


def test_names_are_unique():
    assert len({record.name for record in RECORDS}) == len(RECORDS)
    assert len({register.name for register in REGISTERS}) == len(REGISTERS)


def test_both_ends_of_the_link_speak_the_same_record():
    sender, receiver = contract.streams(Role.SENDER), contract.streams(Role.RECEIVER)
    for name in ("announcements", "bases", "replies"):
        assert sender[name].record is receiver[name].record
        assert sender[name].direction is not receiver[name].direction
        assert not sender[name].secret
        assert not receiver[name].secret


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(RECORDS), st.integers(0, 50), st.integers(0, 2**32 - 1))
def test_records_survive_the_wire(record, count, seed):
    rng = np.random.default_rng(seed)
    values = zeros(record, count)
    for field in record.fields:
        drawn = rng.integers(0, 1 << 63, count, dtype=np.uint64) >> np.uint64(0)
        values[field.name] = drawn & np.uint64((1 << min(field.bits, 63)) - 1)
    raw = pack(record, values)
    assert raw.size == count * record.bytes
    assert np.array_equal(unpack(record, raw), values)
    # The same by plain integers.
    for index in range(min(count, 3)):
        whole = int.from_bytes(raw[index * record.bytes :][: record.bytes].tobytes(), "little")
        for field in record.fields:
            expected = whole >> record.offset(field.name) & ((1 << field.bits) - 1)
            assert int(values[field.name][index]) == expected


def test_a_value_too_large_is_refused():
    values = zeros(contract.TAG, 1)
    values["kind"] = 16
    with pytest.raises(ValueError, match=r"tag\.kind: 16 does not fit 4 bits"):
        pack(contract.TAG, values)
    with pytest.raises(ValueError, match="no whole number of 8-byte tag records"):
        unpack(contract.TAG, b"1234567")


def test_contradictions_are_refused():
    field = Field("value", 8, "A value.")
    with pytest.raises(contract.ContractError, match="do not fit 8 bits"):
        Record("wide", 8, (field, Field("more", 1, "One more.")), "Too wide.")
    with pytest.raises(contract.ContractError, match="twice"):
        Record("twice", 16, (field, field), "Twice.")
    with pytest.raises(contract.ContractError, match="wider than 64 bits"):
        Register("w", 0, (Field("a", 64, "A."), field), contract.Access.READ, "Wide.")
    with pytest.raises(contract.ContractError, match="reset value"):
        Register("r", 0, (field,), contract.Access.READ, "Reset.", reset=256)
    with pytest.raises(contract.ContractError, match="identifier"):
        Field("Not a name", 1, "Name.")
    with pytest.raises(contract.ContractError, match="no meaning"):
        Field("name", 1, "")


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.name)
def test_amaranth_layout_is_the_record(record):
    from keyrail_gateware.layouts import layout

    view = layout(record)
    for field in record.fields:
        assert view[field.name].offset == record.offset(field.name)
        assert view[field.name].width == field.bits
    assert view.size == record.used_bits
    assert set(dtype(record).names or ()) == {field.name for field in record.fields}


def test_generated_files_are_those_of_the_contract():
    assert (ROOT / "firmware/keyrail_contract.h").read_text() == render.c_header()
    assert (ROOT / "docs/registers.md").read_text() == render.manual()


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs the system package g++")
def test_c_header_compiles_and_agrees(tmp_path):
    source = tmp_path / "check.cpp"
    checks = [
        f"static_assert(KEYRAIL_REGISTER_{register.name.upper()} == {register.offset}u, "
        f'"{register.name}");'
        for register in REGISTERS
    ]
    checks += [
        f"static_assert(KEYRAIL_RECORD_{record.name.upper()}_BYTES == {record.bytes}u, "
        f'"{record.name}");'
        for record in RECORDS
    ]
    header = ROOT / "firmware/keyrail_contract.h"
    source.write_text("\n".join([f'#include "{header}"', *checks, "int main() {}", ""]))
    command = ["g++", "-Wall", "-Werror", "-fsyntax-only", str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_reciprocal_is_the_floor_and_fits():
    one = 1 << contract.PERIOD_FRACTION_BITS
    for period in (800 * one, 10_000 * one, 12_495 * one + 12345, 1_000_000 * one):
        inverse = contract.reciprocal(period)
        scaled = 1 << (contract.RECIPROCAL_FRACTION_BITS + contract.PERIOD_FRACTION_BITS)
        assert inverse * period <= scaled < (inverse + 1) * period
        assert inverse < 1 << 48
    for period in (799 * one, 1_000_001 * one):
        with pytest.raises(ValueError, match="allowed are 800 to 1000000 ps"):
            contract.reciprocal(period)


def test_hash_depends_on_what_matters(monkeypatch):
    from keyrail.contract import identity

    former = identity.canonical()
    altered = (Record("tag", 64, (Field("time", 47, "Time."),), "Shorter."),)
    monkeypatch.setattr(identity, "RECORDS", altered)
    assert identity.canonical() != former
    assert re.fullmatch(r"[0-9a-f]{16}", f"{contract.CONTRACT_HASH:016x}")
