# SPDX-License-Identifier: Apache-2.0
"""The state of a block: every command in every state, against the table of its docstring."""

import cocotb
import pytest
from cocotb.triggers import FallingEdge

import bench
from bench import generator
from keyrail.contract import BlockCommand, BlockState, Role

SIDES = {role.name.lower(): role for role in Role}
STAYS = {BlockState.IDLE, BlockState.WIPING}


def follows(receiver: bool, state: BlockState, command: int, key_mode: int) -> BlockState | None:
    """State after a command, None where it is refused."""
    if command == BlockCommand.DISCARD:
        return None if state in STAYS else BlockState.WIPING
    allowed = {
        (BlockState.OPEN, BlockCommand.CLOSE): BlockState.CLOSED,
        (BlockState.CLOSED, BlockCommand.BASES): BlockState.BASES,
    }
    if key_mode:
        allowed[BlockState.IDLE, BlockCommand.OPEN] = BlockState.OPEN
    if receiver:
        allowed[BlockState.ANSWERED, BlockCommand.RESOLVE] = BlockState.RESOLVE
    return allowed.get((state, command))


@cocotb.test()
async def bench_every_command_in_every_state(dut):
    receiver = bench.parameter("side") == "receiver"
    rng = generator("block control", receiver)
    for name in ("command", "strobe", "key_mode", "wipe", "pass_done", "memory_busy"):
        getattr(dut, name).value = 0
    await bench.start(dut)
    tried = set()
    now = BlockState(int(dut.state.value))
    for _ in range(4_000):
        state, wiping = now, int(dut.wipe_memory.value)
        # Work ends often enough that every state is reached, and seldom enough to be tried in.
        done, busy, wipe = (int(rng.random() < share) for share in (0.15, 0.3, 0.01))
        strobe, key_mode = int(rng.random() < 0.4), int(rng.random() < 0.9)
        command = int(rng.integers(0, 8))
        dut.pass_done.value, dut.memory_busy.value, dut.wipe.value = done, busy, wipe
        dut.strobe.value, dut.command.value, dut.key_mode.value = strobe, command, key_mode
        expected = follows(receiver, state, command, key_mode) if strobe else None
        await FallingEdge(dut.clk)
        now = BlockState(int(dut.state.value))
        if wipe:
            assert now is BlockState.WIPING
        elif expected is not None:
            assert now is expected
        elif now is not state:
            # Nothing but work that has ended moves it.
            assert (state, now) in {
                (BlockState.WIPING, BlockState.IDLE),
                (BlockState.BASES, BlockState.ANSWERED if receiver else BlockState.DONE),
                (BlockState.RESOLVE, BlockState.DONE),
            }
            assert not (wiping or busy) if state is BlockState.WIPING else done
        if strobe:
            tried.add((state, command))
        assert int(dut.refused.value) == (strobe and expected is None), (state, command)
        done_here = now is BlockState.DONE
        restart = int(dut.restart.value)
        assert int(dut.open.value) == (now is BlockState.OPEN and not restart)
        assert int(dut.basis.value) == (now is BlockState.BASES or (done_here and not receiver))
        assert int(dut.resolve.value) == (now is BlockState.RESOLVE or done_here)
    states = set(BlockState) - (set() if receiver else {BlockState.ANSWERED, BlockState.RESOLVE})
    assert tried == {(state, command) for state in states for command in range(8)}


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("simulator", bench.simulators())
def test_block_control(simulator, side):
    from keyrail_gateware.block_control import BlockControl

    component = BlockControl(SIDES[side])
    bench.run(component, simulator, "test_block_control", parameters={"side": side})


@pytest.mark.parametrize("role", list(Role))
def test_bases_wait_for_the_close_whatever_is_commanded(role):
    from formal import prove
    from keyrail_gateware.block_control import BlockControl

    prove(BlockControl(role), 4)
