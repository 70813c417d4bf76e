# SPDX-License-Identifier: CERN-OHL-W-2.0
"""Registers of a station, from the contract."""

from amaranth.hdl import Cat, Module, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from keyrail.contract import Access, Register, Role, registers

from .layouts import fields_layout

__all__ = ["ACCESS_CLOCKS", "BusSignature", "RegisterBank"]

ACCESS_CLOCKS = 4
"""Clocks from an access to the value read, or until the effect of a write can be read."""
_GROUP = 12
"""Registers whose answers meet in the first level."""


class BusSignature(wiring.Signature):
    """Register bus, seen from the master.

    Members
    -------
    address
        Offset in 32-bit words, 16 bits.
    write, data
        Write `data`, 32 bits, in this clock.
    read
        Read in this clock; ``value`` holds the answer `ACCESS_CLOCKS` later and until that of the
        next read. Offsets without a register read as zero.
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

    Latency: 4 clocks (`ACCESS_CLOCKS`) from read to value, 3 clocks from write to effect, so that a
    read sees every write before it. Throughput: one access a clock.

    Each register has a flip-flop that selects it, and answers meet in two levels of ORs: some
    hundred registers make no long path.

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

        # 1: the access; 2: the register it is for.
        address, data_1, data_2 = Signal(16), Signal(32), Signal(32)
        write_1, write_2, read_1, read_2, read_3 = (Signal() for _ in range(5))
        m.d.sync += [
            address.eq(bus.address),
            data_1.eq(bus.data),
            data_2.eq(data_1),
            write_1.eq(bus.write),
            write_2.eq(write_1),
            read_1.eq(bus.read),
            read_2.eq(read_1),
            read_3.eq(read_2),
        ]
        answers, highs, high_3 = [], [], Signal()
        for register in self._registers.values():
            low = Signal(name=f"low_{register.name}")
            high = Signal(name=f"high_{register.name}")
            m.d.sync += low.eq(address == register.offset)
            last = low
            if register.words == 2:
                m.d.sync += high.eq(address == register.offset + 1)
                highs.append(high)
                last = high
            if register.access is not Access.READ:
                writable = store if register.access is Access.READ_WRITE else self.commands
                target = writable[register.name].as_value()
                with m.If(write_2 & last):
                    m.d.sync += target.eq(data_2 if register.words == 1 else Cat(held, data_2))
                    if register.access is Access.COMMAND:
                        m.d.sync += self.strobes[register.name].eq(1)
                if register.words == 2:
                    with m.If(write_2 & low):
                        m.d.sync += held.eq(data_2)
            if register.access is not Access.COMMAND:
                readable = store if register.access is Access.READ_WRITE else self.status
                value = readable[register.name].as_value()
                answers.append((register, value, low))
        m.d.sync += high_3.eq(Cat(highs).any())
        answer = self._answer(m, answers)
        with m.If(read_3):
            with m.If(high_3):
                m.d.sync += bus.value.eq(latched)
            with m.Else():
                m.d.sync += [bus.value.eq(answer[:32]), latched.eq(answer[32:])]
        return m

    def _answer(self, m: Module, readable: list[tuple[Register, Value, Signal]]) -> Value:
        """What the register that is selected holds, 64 bits, a clock later.

        Parameters
        ----------
        readable
            Each register that can be read, with what it holds, and 1 where it is selected.
        """
        # 3: groups of answers; 4: the answer.
        answers = [value & low.replicate(len(value)) for _, value, low in readable]
        level = []
        for index in range(0, len(answers), _GROUP):
            group = Signal(64, name=f"group_{index // _GROUP}")
            m.d.sync += group.eq(_either(answers[index : index + _GROUP]))
            level.append(group)
        answer = Signal(64)
        m.d.comb += answer.eq(_either(level))
        return answer


def _either(values: list[Value]) -> Value:
    """OR of values, as a tree."""
    while len(values) > 1:
        values = [
            values[i] | values[i + 1] if i + 1 < len(values) else values[i]
            for i in range(0, len(values), 2)
        ]
    return values[0]


def _unflatten(register: Register) -> dict[str, int]:
    """Reset value of a register as values of its fields."""
    fields, value = {}, register.reset
    for field in register.fields:
        fields[field.name] = value & ((1 << field.bits) - 1)
        value >>= field.bits
    return fields
