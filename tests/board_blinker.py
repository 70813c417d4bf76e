# SPDX-License-Identifier: Apache-2.0
"""A small design for a board: clocks, and a counter at the modulators' pins.

``python board_blinker.py BOARD MHZ`` builds it and prints the bitstream's hash.
"""

import sys

from amaranth.hdl import Elaboratable, Module, Signal

from keyrail_boards.bitstream import build, convert
from keyrail_boards.board import board_named
from keyrail_boards.providers import Clocking, DelayedOutput


class Blinker(Elaboratable):
    def __init__(self, board, mhz):
        self.board, self.clocks = board, board.clocks(mhz)
        frequencies = self.clocks.frequencies()
        self.targets = {f"clk_{name}": float(f) for name, f in frequencies.items()}

    def elaborate(self, platform):
        m = Module()
        platform.add_resources(self.board.resources())
        sources = {name: platform.request(name, dir="-") for name in self.clocks.sources}
        m.submodules.clocking = clocking = Clocking(self.clocks, sources)
        for name, signal in clocking.signals.items():
            platform.add_clock_constraint(signal, self.targets[f"clk_{name}"] * 1e6)
        count = Signal(24)
        m.d.sync += count.eq(count + 1)
        m.submodules.output = output = DelayedOutput(platform.request("modulator", 0, dir="-"))
        m.d.comb += [output.samples.eq(count[2:4]), output.delay.eq(count[-7:])]
        return m


def design(board_name, mhz):
    board = board_named(board_name)
    top = Blinker(board, mhz)
    return convert(board.platform(), top, board.device, top.targets, board.packer)


def built(board_name, mhz):
    return build(design(board_name, mhz))


if __name__ == "__main__":
    print(built(sys.argv[1], int(sys.argv[2])).sha256)
