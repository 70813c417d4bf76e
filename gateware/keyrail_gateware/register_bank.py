# SPDX-License-Identifier: CERN-OHL-W-2.0
"""Registers of a station, from the contract."""

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from keyrail.contract import Access, Register, Role, registers

from .layouts import fields_layout

__all__ = ["BusSignature", "RegisterBank"]


class BusSignature(wiring.Signature):
    """Register bus, seen from the master.

    Members
    -------
    address
        Offset in 32-bit words, 16 bits.
    write, data
        Write `data`, 32 bits, in this clock.
    read
        Read in this clock; ``value`` holds the answer one clock later and until the next read.
        Offsets without a register read as zero.
    value
        Answer, 32 bits.
    """

    def __init__(self):
        super().__init__(
            {"address": Out(16), "write": Out(1), "data": Out(32), "read": Out(1), "value": In(32)}
        )


def _struct(chosen: list[Register]) -> data.StructLayout:
    return data.StructLayout({r.name: fields_layout(r.fields) for r in chosen})


class RegisterBank(wiring.Component):
    """Decodes the register bus of a station.

    Pairs of words are read low word first, which latches the high word, and written low word
    first, taking effect with the high word.

    Latency: 1 clock from read to value, 1 clock from write to effect. Throughput: one access a
    clock.

    Parameters
    ----------
    role
        Station whose registers the bank holds.

    Members
    -------
    bus
        Register bus (`BusSignature`, from the host's side).
    values
        Struct by register name: present values of the read-write registers.
    status
        Struct by register name: what read-only registers answer.
    commands
        Struct by register name: value last written to a command register, valid with its strobe.
    strobes
        Struct by register name: 1 in the clock after a command was written.
    """

    def __init__(self, role: Role):
        self._registers = registers(role)
        by_access = {
            access: [r for r in self._registers.values() if r.access is access] for access in Access
        }
        super().__init__(
            {
                "bus": In(BusSignature()),
                "values": Out(_struct(by_access[Access.READ_WRITE])),
                "status": In(_struct(by_access[Access.READ])),
                "commands": Out(_struct(by_access[Access.COMMAND])),
                "strobes": Out(data.StructLayout({r.name: 1 for r in by_access[Access.COMMAND]})),
            }
        )
        self._by_access = by_access

    def elaborate(self, platform: object) -> Module:
        m = Module()
        bus = self.bus
        held = Signal(32)  # low word of a pair being written
        latched = Signal(32)  # high word of the pair last read
        store = Signal(
            self.values.shape(),
            name="store",
            init={r.name: _unflatten(r) for r in self._by_access[Access.READ_WRITE]},
        )
        m.d.comb += self.values.eq(store)
        m.d.sync += self.strobes.eq(0)

        with m.If(bus.write), m.Switch(bus.address):
            for register in self._registers.values():
                if register.access is Access.READ:
                    continue
                target = (store if register.access is Access.READ_WRITE else self.commands)[
                    register.name
                ].as_value()
                strobe = (
                    [self.strobes[register.name].eq(1)] if register.access is Access.COMMAND else []
                )
                if register.words == 1:
                    with m.Case(register.offset):
                        m.d.sync += [target.eq(bus.data), *strobe]
                else:
                    with m.Case(register.offset):
                        m.d.sync += held.eq(bus.data)
                    with m.Case(register.offset + 1):
                        m.d.sync += [target.eq(Cat(held, bus.data)), *strobe]
        with m.If(bus.read):
            m.d.sync += bus.value.eq(0)
            with m.Switch(bus.address):
                for register in self._registers.values():
                    if register.access is Access.COMMAND:
                        continue
                    source = (store if register.access is Access.READ_WRITE else self.status)[
                        register.name
                    ].as_value()
                    with m.Case(register.offset):
                        m.d.sync += [bus.value.eq(source[:32]), latched.eq(source[32:])]
                    if register.words == 2:
                        with m.Case(register.offset + 1):
                            m.d.sync += bus.value.eq(latched)
        return m


def _unflatten(register: Register) -> dict[str, int]:
    """Reset value of a register as values of its fields."""
    fields, value = {}, register.reset
    for field in register.fields:
        fields[field.name] = value & ((1 << field.bits) - 1)
        value >>= field.bits
    return fields
