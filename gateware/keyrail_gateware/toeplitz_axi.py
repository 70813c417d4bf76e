# SPDX-License-Identifier: CERN-OHL-W-2.0
"""The Toeplitz engine with AXI4-Stream ports and a small register port, for other toolchains."""

from amaranth.hdl import Cat, Module
from amaranth.lib import enum, wiring
from amaranth.lib.wiring import In, Out

from .toeplitz import WORD, Toeplitz

__all__ = ["ToeplitzAxi", "ToeplitzRegister"]


class ToeplitzRegister(enum.IntEnum):
    """Numbers of the registers, 32 bits each.

    ``COMMAND``: bit 0 start, bit 1 wipe, bit 2 clear the error. ``TILE``: bit 0 continued, bit 1
    unfinished. ``STATUS``: bits 0 to 15 the error (`keyrail.contract.ToeplitzError`), bit 16 free,
    bit 17 busy, bit 18 wiped.
    """

    COMMAND = 0
    N = 1
    M = 2
    FAMILY = 3
    TILE = 4
    PATIENCE = 5
    STATUS = 6
    INPUT_BITS = 7
    OUTPUT_BITS = 8


class ToeplitzAxi(wiring.Component):
    """`Toeplitz` behind ports that other toolchains know.

    Key and seed come in, and the hash goes out, as AXI4-Stream frames of 64-bit words (Arm IHI
    0051, without optional signals but TLAST). TLAST is checked: a frame of the wrong length is an
    error of the engine. After a wipe or an error TVALID may fall without a transfer.

    Registers are written in one clock, and read in the same clock that names them. Latency and
    throughput are those of the engine.

    Members
    -------
    s_axis_key_*, s_axis_seed_*, m_axis_output_*
        Streams.
    register_address, register_write, register_write_data, register_read_data
        Register port, see `ToeplitzRegister`.
    """

    def __init__(self, input_bits: int, output_bits: int, **core: int):
        self._engine = Toeplitz(input_bits, output_bits, **core)
        self._sizes = (input_bits, output_bits)
        members = {}
        for name, towards, back in (
            ("s_axis_key", In, Out),
            ("s_axis_seed", In, Out),
            ("m_axis_output", Out, In),
        ):
            members |= {
                f"{name}_tdata": towards(WORD),
                f"{name}_tlast": towards(1),
                f"{name}_tvalid": towards(1),
                f"{name}_tready": back(1),
            }
        super().__init__(
            members
            | {
                "register_address": In(4),
                "register_write": In(1),
                "register_write_data": In(32),
                "register_read_data": Out(32),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.engine = engine = self._engine
        for port, name in ((engine.key, "s_axis_key"), (engine.seed, "s_axis_seed")):
            m.d.comb += [
                port.payload.word.eq(getattr(self, f"{name}_tdata")),
                port.payload.last.eq(getattr(self, f"{name}_tlast")),
                port.valid.eq(getattr(self, f"{name}_tvalid")),
                getattr(self, f"{name}_tready").eq(port.ready),
            ]
        m.d.comb += [
            self.m_axis_output_tdata.eq(engine.o.payload.word),
            self.m_axis_output_tlast.eq(engine.o.payload.last),
            self.m_axis_output_tvalid.eq(engine.o.valid),
            engine.o.ready.eq(self.m_axis_output_tready),
            engine.framed.eq(1),
        ]
        written = {
            ToeplitzRegister.N: engine.n,
            ToeplitzRegister.M: engine.m,
            ToeplitzRegister.FAMILY: engine.family,
            ToeplitzRegister.TILE: Cat(engine.continued, engine.unfinished),
            ToeplitzRegister.PATIENCE: engine.patience,
        }
        read = {
            ToeplitzRegister.STATUS: Cat(engine.error, engine.free, engine.busy, engine.wiped),
            ToeplitzRegister.INPUT_BITS: self._sizes[0],
            ToeplitzRegister.OUTPUT_BITS: self._sizes[1],
        }
        with m.Switch(self.register_address):
            for number, value in (written | read).items():
                with m.Case(number):
                    m.d.comb += self.register_read_data.eq(value)
                    if number in written:
                        with m.If(self.register_write):
                            m.d.sync += value.eq(self.register_write_data)
            with m.Case(ToeplitzRegister.COMMAND):
                with m.If(self.register_write):
                    m.d.comb += Cat(engine.start, engine.wipe, engine.clear).eq(
                        self.register_write_data
                    )
        return m
