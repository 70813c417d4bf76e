# SPDX-License-Identifier: CERN-OHL-W-2.0
"""The state of the block of key under way, and what it allows."""

from amaranth.hdl import Assert, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from keyrail.contract import BlockCommand, BlockState, Role

__all__ = ["BlockControl"]


class BlockControl(wiring.Component):
    """Holds bases back until the block has closed, whatever the host asks for.

    Commands that the present state does not allow are refused and change nothing.

    ========  =======================  =================================================
    command   allowed in               effect
    ========  =======================  =================================================
    OPEN      IDLE, in key mode        OPEN: detections of the block's slots are kept
    CLOSE     OPEN                     CLOSED: the list of detections is fixed
    BASES     CLOSED                   BASES: first read pass over block memory
    RESOLVE   ANSWERED (receiver)      RESOLVE: second read pass over block memory
    DISCARD   any but IDLE             WIPING, then IDLE
    ========  =======================  =================================================

    The sender goes from BASES to DONE when its pass has ended, the receiver from BASES to
    ANSWERED and from RESOLVE to DONE.

    Assertions under ``platform="formal"``: where detections are kept, neither bases nor replies
    pass before the block has been closed, whatever is commanded when, and none are kept from then
    on until the next one. Proven by k-induction in the bench.

    Latency: 1 clock from command to state.

    Parameters
    ----------
    role
        Station it serves.

    Members
    -------
    command, strobe
        Value (3 bits) and strobe of the ``block_command`` register.
    key_mode
        1 in key mode.
    wipe
        1: give the block up at once and wipe.
    pass_done
        Block memory's read pass has delivered its last entry, and what it fed has drained.
    memory_busy
        Block memory is still being wiped.
    state
        `BlockState`, 3 bits.
    restart
        1 in the clock after OPEN was accepted: blocks that count from the block's start restart.
    open, basis, resolve
        1 while detections are kept; bases may pass; replies may pass.
    rewind
        1 in the clock in which a read pass begins.
    wipe_memory
        1 in the clock in which block memory must begin to wipe.
    refused
        1 in the clock after a command was refused.
    """

    command: In(3)
    strobe: In(1)
    key_mode: In(1)
    wipe: In(1)
    pass_done: In(1)
    memory_busy: In(1)
    state: Out(3)
    restart: Out(1)
    open: Out(1)
    basis: Out(1)
    resolve: Out(1)
    rewind: Out(1)
    wipe_memory: Out(1)
    refused: Out(1)

    def __init__(self, role: Role):
        self._role = role
        super().__init__()

    def elaborate(self, platform: object) -> Module:
        m = Module()
        receiver = self._role is Role.RECEIVER
        state = Signal(BlockState, init=BlockState.WIPING)
        started = Signal()  # the read pass has had a clock to take its rewind in
        m.d.comb += [
            self.state.eq(state),
            self.open.eq((state == BlockState.OPEN) & ~self.restart),
            self.basis.eq(
                (state == BlockState.BASES) | ((state == BlockState.DONE) & (not receiver))
            ),
            self.resolve.eq((state == BlockState.RESOLVE) | (state == BlockState.DONE)),
        ]
        m.d.sync += [
            self.restart.eq(0),
            self.refused.eq(0),
            self.wipe_memory.eq(0),
            self.rewind.eq(0),
            started.eq(~self.rewind),
        ]

        # Transitions that follow the work; a command in the same clock comes after and wins.
        with m.If(~self.rewind & started & self.pass_done):
            with m.If(state == BlockState.BASES):
                m.d.sync += state.eq(BlockState.ANSWERED if receiver else BlockState.DONE)
            with m.If(state == BlockState.RESOLVE):
                m.d.sync += state.eq(BlockState.DONE)
        with m.If((state == BlockState.WIPING) & ~self.memory_busy & ~self.wipe_memory):
            m.d.sync += state.eq(BlockState.IDLE)

        with m.If(self.strobe):
            m.d.sync += self.refused.eq(1)

            def accept(following: BlockState) -> None:
                m.d.sync += [self.refused.eq(0), state.eq(following)]

            with m.Switch(self.command):
                with m.Case(BlockCommand.OPEN):
                    with m.If((state == BlockState.IDLE) & self.key_mode):
                        accept(BlockState.OPEN)
                        m.d.sync += self.restart.eq(1)
                with m.Case(BlockCommand.CLOSE), m.If(state == BlockState.OPEN):
                    accept(BlockState.CLOSED)
                with m.Case(BlockCommand.BASES), m.If(state == BlockState.CLOSED):
                    accept(BlockState.BASES)
                    m.d.sync += [self.rewind.eq(1), started.eq(0)]
                if receiver:
                    with m.Case(BlockCommand.RESOLVE):
                        with m.If(state == BlockState.ANSWERED):
                            accept(BlockState.RESOLVE)
                            m.d.sync += [self.rewind.eq(1), started.eq(0)]
                with m.Case(BlockCommand.DISCARD):
                    with m.If((state != BlockState.IDLE) & (state != BlockState.WIPING)):
                        accept(BlockState.WIPING)
                        m.d.sync += self.wipe_memory.eq(1)
        with m.If(self.wipe):
            m.d.sync += [
                state.eq(BlockState.WIPING),
                self.wipe_memory.eq(1),
                self.rewind.eq(0),
                self.restart.eq(0),
            ]
        if platform == "formal":
            self._prove(m, state)
        return m

    def _prove(self, m: Module, state: Signal) -> None:
        """Bases stay where detections are still taken, or were taken without a close since."""
        taking = Signal()
        with m.If(self.wipe_memory | (self.strobe & (self.command == BlockCommand.CLOSE))):
            # A refused close changes nothing: only that of an open block counts.
            m.d.sync += taking.eq(taking & ~self.wipe_memory & ~self.open)
        with m.Elif(self.open):
            m.d.sync += taking.eq(1)
        idle = (state == BlockState.IDLE) | ((state == BlockState.WIPING) & ~self.wipe_memory)
        m.d.comb += [
            Assert(~((self.basis | self.resolve) & (taking | self.open))),
            # What the induction starts from.
            Assert(~(taking & (idle | self.restart))),
            Assert(~taking | (state == BlockState.OPEN) | (state == BlockState.WIPING)),
            Assert(~self.restart | (state == BlockState.OPEN)),
        ]
