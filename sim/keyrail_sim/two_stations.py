# SPDX-License-Identifier: Apache-2.0
"""Two stations in one process, on a clock of their own, on a link that may be disturbed.

For tests, fuzzing and figures: everything is seeded, so that a run can be had again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import keyrail
from keyrail.authentication import Pool, provision
from keyrail.board import Board
from keyrail.contract import Role
from keyrail.exchange import Exchange, Timing
from keyrail.keystore import Keystore
from keyrail.light import Fibre
from keyrail.operation import (
    Plan,
    ReceiverOperation,
    ReceiverRunner,
    SenderOperation,
    SenderRunner,
)
from keyrail.randomness import TestRandom
from keyrail.transport import MemoryTransport, Peer, memory_transports
from keyrail_sim.photonics import LinkSettings, Photonics

KEY_PLAN = Plan(
    block_slots=1_000_000,
    training_slots=1 << 16,
    training_every=10_000_000,
    intensities=(0.4, 0.1),
    eps_sec=1e-3,
    authentication_share=0.3,
)
"""The smallest block that gives a key: no fibre, no misalignment, a modest epsilon."""
SHORT_PLAN = Plan(
    block_slots=1 << 16,
    training_slots=1 << 16,
    training_every=10_000_000,
    chunk_slots=1 << 13,
    intensities=(0.4, 0.1),
    eps_sec=1e-3,
    authentication_share=0.3,
)
"""A block that is sifted and given up as too short for a key, in little time."""
STATIONS = {Role.SENDER: "alice", Role.RECEIVER: "bob"}
STEP_S = 0.02
TIMING = Timing(heartbeat_s=0.5, repeat_s=0.3, silence_s=3.0, give_up_s=6.0)
STALL_S = 15.0

Change = Callable[[bytes], list[bytes]]


class Wire:
    """A transport's end through which one sees, changes or drops what is sent.

    Attributes
    ----------
    sent
        Every frame that the station sent.
    change
        Gives the frames that go on instead of one.
    """

    def __init__(self, inner: MemoryTransport) -> None:
        self.inner = inner
        self.sent: list[bytes] = []
        self.change: Change = lambda frame: [frame]

    def send(self, data: bytes, peer: Peer) -> None:
        """Send what `change` makes of a frame."""
        self.sent.append(data)
        for each in self.change(data):
            self.inner.send(each, peer)

    def receive(self) -> tuple[bytes, Peer] | None:
        """Next frame."""
        return self.inner.receive()

    def close(self) -> None:
        """Cut both ends apart."""
        self.inner.close()


class TwoStations:
    """Both stations; either can be started anew.

    Parameters
    ----------
    folder
        Where pools and keystores lie.
    plan
        Settings of both.
    kind
        Kind of the boards.
    blocks
        Blocks after which they are finished; None for no end.
    pads
        Of each direction.
    board
        Opens a board by role and name.
    light
        The simulated link, of which the clocks count: intensities are the plan's, and nothing is
        lost or misaligned.
    seed
        Of all randomness.
    """

    def __init__(
        self,
        folder: Path,
        plan: Plan = SHORT_PLAN,
        kind: str = "sim-model",
        *,
        blocks: int | None = None,
        pads: int = 200,
        board: Callable[[Role, str], Board] = lambda role, name: keyrail.open(name),
        light: LinkSettings | None = None,
        seed: int = 1,
    ) -> None:
        self.folder, self.plan, self.kind = folder, plan, kind
        self.blocks, self._board, self.seed = blocks, board, seed
        self.now = 0.0
        self.lines: list[str] = []
        self.runners: dict[Role, SenderOperation | ReceiverOperation] = {}
        self.paths = {role: folder / f"{name}.pool" for role, name in STATIONS.items()}
        provision(self.paths, TestRandom(seed, "pool"), pads)
        link = replace(
            light or LinkSettings(),
            distance_km=0.0,
            intensities=plan.intensities,
            misalignment=0.0,
            dark_counts_per_slot=0,
        )
        self.fibre = Fibre(lambda epoch: Photonics(link, epoch + seed * (1 << 32)))
        one, two = memory_transports()
        self.wires = {Role.SENDER: Wire(one), Role.RECEIVER: Wire(two)}
        self._starts = 0
        for role in Role:
            self.start(role)

    def start(self, role: Role) -> None:
        """Start a station, as after a crash of the one before: it says and wipes nothing."""
        old = self.runners.pop(role, None)
        if old is not None:
            old.pool.close()
            old.keystore.close()
        self._starts += 1
        start, name = self.seed * 1000 + self._starts, STATIONS[role]
        keystore = Keystore(self.folder / f"{name}.keys")
        pool = Pool(self.paths[role], role, keystore)
        exchange = Exchange(
            role,
            self.wires[role],
            pool.live_key,
            pool.link_id,
            self.plan.shared(),
            lambda: pool.counters,
            TestRandom(start, f"nonces {name}"),
            TIMING,
            lambda: self.now,
        )
        common = (
            self._board(role, f"{self.kind}:{name}"),
            exchange,
            pool,
            keystore,
            lambda purpose: TestRandom(start, f"{name} {purpose}"),
            self.plan,
            lambda text: self.lines.append(f"{name}: {text}"),
        )
        options = {"blocks": self.blocks, "clock": lambda: self.now, "stall_s": STALL_S}
        self.runners[role] = self._runner(role, common, options)

    def _runner(
        self, role: Role, common: tuple[Any, ...], options: dict[str, Any]
    ) -> SenderOperation | ReceiverOperation:
        kind = SenderRunner if role is Role.SENDER else ReceiverRunner
        return kind(*common, light=self.fibre, **options)

    def step(self) -> None:
        """Advance the clock and both stations."""
        self.now += STEP_S
        for role in Role:
            self.runners[role].step()

    def run(self, until: Callable[[TwoStations], bool], steps: int = 20_000) -> None:
        """Step until a condition holds.

        Raises
        ------
        AssertionError
            If it does not in so many steps.
        """
        for _ in range(steps):
            if until(self):
                return
            self.step()
        raise AssertionError("stall: " + " | ".join(self.lines[-6:]))

    def finished(self) -> bool:
        """All blocks asked for have ended at both stations."""
        return all(runner.finished for runner in self.runners.values())

    def total(self, name: str) -> int:
        """A count, of both stations together."""
        return sum(runner.totals[name] for runner in self.runners.values())

    def keys(self) -> dict[Role, dict[str, bytes]]:
        """Released keys of both stations, one byte a bit."""
        return {
            role: {
                each: np.asarray(runner.keystore.key(each)).tobytes()
                for each in runner.keystore.released()
            }
            for role, runner in self.runners.items()
        }

    def reseal(self, role: Role, frame: bytes, content: bytes) -> bytes:
        """A frame of other content with a right computational tag: as if that tag were broken.

        Frames of a session that is over stay as they are.
        """
        exchange = self.runners[role].exchange
        session, number = (int.from_bytes(frame[at : at + 8], "little") for at in (4, 12))
        keys = exchange._keys
        if keys is None or keys.number != session:
            return frame
        return exchange._seal(keys.ours, frame[2], session, number, content)

    def close(self) -> None:
        """Stop both stations."""
        for runner in self.runners.values():
            runner.close()
            runner.pool.close()
            runner.keystore.close()
