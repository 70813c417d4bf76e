# SPDX-License-Identifier: Apache-2.0
"""Why bases wait for the close: an attack on a build that announces them live. **For tests only.**

Eve measures every photon in a basis of her own and sends on what she found. On the classical link
she sees each announcement frame before the sender does, and may drop it, which costs both stations
its detections and nothing else. Where the frame names the bases too, she lets those through in
which every basis was hers: the sifted key has no error, and she knows all of it. Where it names
slots alone, her choice cannot depend on the bases, and a quarter of the test bits is wrong.

Both builds are the stations' own code; the one that announces bases live is made of it by letting
Eve see, with each frame, the bases that the receiver's block memory holds of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from keyrail import messages, tag_path
from keyrail.contract import ANNOUNCEMENT, PERIOD_FRACTION_BITS, RECEIVER_ENTRY, Basis, Mode
from keyrail.layouts import unpack, zeros
from keyrail.link import memory_pair
from keyrail.randomness import TestRandom
from keyrail.source import BASIS_BIT, BIT_BIT, random_states
from keyrail.station import ReceiverStation, SenderStation, announced_slots
from keyrail_sim.model_board import ModelReceiver, ModelSender

PERIOD_PS = 10_000
GATE_PS = (4_800, 5_200)


@dataclass(frozen=True)
class Outcome:
    """What Eve got.

    Attributes
    ----------
    frames, frames_kept
        Announcement frames, and those that she let through.
    key_bits, key_errors
        Sifted bits of the key basis, and where the stations differ in them.
    tests, test_errors
        Opened bits of the test basis, and errors among them.
    known
        Bits of the sender's sifted key that Eve's result equals.
    """

    frames: int
    frames_kept: int
    key_bits: int
    key_errors: int
    tests: int
    test_errors: int
    known: int


def attack(bases_live: bool, frames: int, seed: int, frame_slots: int = 64) -> Outcome:
    """One block under Eve.

    Parameters
    ----------
    bases_live
        Announce each detection's basis with its slot, as no build may.
    frames
        Frames of the block.
    seed
        Of states, detections and Eve.
    frame_slots
        Slots a frame, a multiple of 16.

    Returns
    -------
    Outcome
        Of the whole block; both stations' bits are looked at, as only a simulation can.
    """
    rng = np.random.default_rng(seed)
    alice_board, bob_board = ModelSender("sim-model:alice"), ModelReceiver("sim-model:bob")
    for board in (alice_board, bob_board):
        board.write("mode", Mode.KEY)
        board.run()
    tag_path.set_slots(bob_board, PERIOD_PS << PERIOD_FRACTION_BITS, 0)
    gates = dict.fromkeys(tag_path.OUTCOMES, GATE_PS)
    tag_path.set_gates(bob_board, gates, tag_path.OUTCOMES)
    at_alice, at_bob = memory_pair()
    alice = SenderStation(alice_board, at_alice, "test")
    bob = ReceiverStation(bob_board, at_bob, TestRandom(seed, "coins"))
    slots = frames * frame_slots
    alice.open(1, 0, slots - 1, False)
    bob.open(False)
    states = random_states(TestRandom(seed, "states").bytes, slots, 0.5, 0.5)
    basis, bit = states & BASIS_BIT, (states & BIT_BIT) // BIT_BIT
    eve_basis = rng.integers(0, 2, slots)
    eve_bit = np.where(eve_basis == basis, bit, rng.integers(0, 2, slots))
    bob_basis = rng.integers(0, 2, slots)
    bob_bit = np.where(bob_basis == eve_basis, eve_bit, rng.integers(0, 2, slots))
    clicked = rng.random(slots) < 1.5 / frame_slots

    taken: list[np.ndarray[tuple[int], np.dtype[np.int64]]] = []
    for first in range(0, slots, frame_slots):
        last = first + frame_slots
        alice.emit(states[first:last])
        hit = first + np.flatnonzero(clicked[first:last])
        channels = (2 * bob_basis[hit] + bob_bit[hit]).astype(np.uint8)
        bob.measure(hit * PERIOD_PS + PERIOD_PS // 2, channels, last * PERIOD_PS, last)
        frame = at_alice.expect(messages.Announcements)
        named = announced_slots(unpack(ANNOUNCEMENT, frame.records), frame.previous_slot)
        if bases_live:
            count = frame.first_detection + len(named)
            held = np.concatenate([zeros(RECEIVER_ENTRY, 0), *bob_board.memory._stored])
            seen = held["basis"][frame.first_detection : count]
            passes = bool((seen == eve_basis[named]).all())
        else:
            # She knows the slots and her own results: nothing that tells one frame from another.
            passes = rng.random() < 0.5
        if passes:
            alice.take(frame)
            taken.append(named)
    bob.announce_close()
    alice.close()
    bob.close()
    bob.announce_bases()
    sender, receiver = alice.answer_bases(), bob.resolve()
    kept = np.concatenate([np.zeros(0, np.int64), *taken])
    sifted = kept[(basis[kept] == Basis.Z) & (bob_basis[kept] == Basis.Z)]
    return Outcome(
        frames,
        len(taken),
        len(sender.key),
        int((sender.key != receiver.key).sum()),
        len(receiver.test_error),
        int(receiver.test_error.sum()),
        int((eve_bit[sifted] == sender.key).sum()),
    )
