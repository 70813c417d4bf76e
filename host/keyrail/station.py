# SPDX-License-Identifier: Apache-2.0
"""A station of the link: its board, and what it says in the quantum and the basis phase.

The two stations are objects that speak only through a message link. Each method is one step of
`protocol.md`'s order; what follows the basis phase is in `keyrail.session`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from keyrail import messages, tag_path
from keyrail.board import Board, BoardError
from keyrail.board_hash import engine_sizes, hash_on_board
from keyrail.contract import (
    ANNOUNCEMENT,
    BASIS,
    COIN,
    REPLY,
    BlockCommand,
    BlockState,
    Mode,
    Randomness,
)
from keyrail.distil.toeplitz import toeplitz_hash
from keyrail.layouts import Structured, pack, unpack, zeros
from keyrail.link import LinkEnd
from keyrail.messages import ProtocolError
from keyrail.randomness import Label, RandomSource
from keyrail.source import state_words
from keyrail.state_copy import StateCopy

Bits = npt.NDArray[np.uint8]
"""One bit an element."""


@dataclass(frozen=True)
class Sifted:
    """Kept detections of a station, in slot order.

    Attributes
    ----------
    key
        Bits of the key basis Z.
    key_intensity
        Sender: intensity class of each key bit; receiver: empty.
    test_intensity
        Sender: intensity class of each test detection; receiver: empty.
    test_error
        Receiver: 1 where the opened bit of a test detection differs; sender: empty.
    """

    key: Bits = field(repr=False)
    key_intensity: Bits = field(repr=False)
    test_intensity: Bits = field(repr=False)
    test_error: Bits = field(repr=False)


class Station:
    """What both stations share.

    Parameters
    ----------
    board
        The station's board, open.
    link
        Its end of the message link.
    """

    def __init__(self, board: Board, link: LinkEnd) -> None:
        self.board = board
        self.link = link
        self._digest = hashlib.sha256()
        self._announced = 0
        self.block_id = 0
        self._spilled: list[Structured] = []
        self.hash_on = ""

    def _command(self, command: BlockCommand) -> None:
        self.board.write("block_command", command)
        self.board.run()
        if self.board.read_fields("status")["refused"]:
            state = BlockState(self.board.read("block_state")).name
            raise BoardError(f"{self.board.name}: {command.name} refused in state {state}")

    def _open(self, first_slot: int, last_slot: int, on_host: bool) -> None:
        board = self.board
        self._digest = hashlib.sha256()
        self._announced = 0
        self._spilled = []
        board.write("block_first_slot", first_slot)
        board.write("block_last_slot", last_slot)
        board.write("block_on_host", int(on_host))
        self._command(BlockCommand.OPEN)

    def _collect(self) -> None:
        """Keep what block memory spills to the control PC."""
        if self.board.read("block_on_host"):
            self._spilled.append(self.board.receive("block_out"))

    def _feed_back(self) -> None:
        """Give the board its block memory back for one read pass."""
        for part in self._spilled:
            self.board.send("block_in", part)

    def discard(self) -> None:
        """Give the open block up: the board wipes what it held of it."""
        self._spilled = []
        if self.board.read("block_state") != BlockState.IDLE:
            self.board.write("block_command", BlockCommand.DISCARD)
            self.board.run()

    def wipe(self) -> None:
        """Overwrite every memory of the board that held a secret.

        Raises
        ------
        BoardError
            If the board does not say that it is wiped.
        """
        self._spilled = []
        self.board.write("wipe", 1)
        self.board.run()
        if not self.board.read_fields("status")["wiped"]:
            raise BoardError(f"{self.board.name}: not wiped")

    def hash_block(self, key: Bits, seed: Bits, output_bits: int) -> Bits:
        """Privacy amplification: one hash of the whole key with one fresh seed.

        On the board where the block fits its engine, else on the host, which is faster than tiles
        on the board; `hash_on` says which. A block is never split over several hashes.

        Parameters
        ----------
        key, seed
            Bits; the seed has ``n - 1`` of them (modified family).
        output_bits
            Bits of the result.

        Returns
        -------
        numpy.ndarray
            Hashed key, uint8 bits.

        Raises
        ------
        BoardError
            If the engine refuses or does not answer.
        """
        largest_input, largest_output = engine_sizes(self.board)
        if len(key) > largest_input or output_bits > largest_output:
            self.hash_on = "host"
            return toeplitz_hash(key, seed, output_bits)
        self.hash_on = "board"
        return hash_on_board(self.board, key, seed, output_bits)


class SenderStation(Station):
    """The sender's station in the quantum and the basis phase.

    The board remembers the last states in its ring; this station keeps a copy of what it fed and
    answers for slots that have left it (`StateCopy`).

    Parameters
    ----------
    board
        The station's board, open.
    link
        Its end of the message link.
    randomness
        Label of the source of the states that are fed.
    """

    def __init__(self, board: Board, link: LinkEnd, randomness: Label = "os") -> None:
        super().__init__(board, link)
        self.randomness = randomness
        self._copy = StateCopy()

    def open(self, block_id: int, first_slot: int, last_slot: int, on_host: bool) -> None:
        """Step 1: agree on a block; its slots are fixed beforehand."""
        self.block_id = block_id
        self._copy.begin(first_slot)
        self.board.write("source", label=Randomness[self.randomness.upper()], recall=1)
        self.board.write("states_first_slot", first_slot)
        self._open(first_slot, last_slot, on_host)
        self.link.send(messages.OpenBlock(block_id, first_slot, last_slot))

    def emit(self, states: Bits) -> None:
        """Feed the states of the next slots to the board, which drives the modulators.

        Parameters
        ----------
        states
            State codes (``state`` record), one a slot; the number is a multiple of 16, padded
            after the block's last slot.
        """
        self._copy.feed(states)
        self.board.send("states", state_words(states))
        self.board.run()

    def look_up(self) -> None:
        """Step 2: look the announced slots of one frame up while their states are at hand."""
        frame = self.link.expect(messages.Announcements)
        self._digest.update(frame.records)
        self.board.send("announcements", unpack(ANNOUNCEMENT, frame.records))
        self.board.run()
        # What has left the board's ring is looked up here; the board keeps the order.
        while len(missed := self.board.receive("missed")):
            self.board.send("recalled", self._copy.answer(missed["slot"]))
            self.board.run()
        self._collect()

    def discard(self) -> None:
        """Give the open block up: board and station wipe what they held of it."""
        self._copy.wipe()
        super().discard()

    def wipe(self) -> None:
        """Overwrite every memory of board and station that held a secret state."""
        self._copy.wipe()
        super().wipe()

    def close(self) -> None:
        """Step 3: agree on the list of detections; only then may bases be spoken of.

        Raises
        ------
        ProtocolError
            If the lists differ; the block is discarded.
        """
        close = self.link.expect(messages.Close)
        counts = self.board.ledger("state_memory")
        agreed = (
            close.count == counts["in"] == self.board.read("block_count")
            and close.digest == self._digest.digest()
        )
        self.link.send(messages.CloseAgreed(agreed))
        if not agreed:
            self.discard()
            raise ProtocolError(
                f"the lists of detections differ: {close.count} announced, {counts} looked up"
            )
        self._command(BlockCommand.CLOSE)

    def answer_bases(self) -> Sifted:
        """Step 4: answer the receiver's bases; returns the sender's kept detections."""
        bases = self.link.expect(messages.Bases)
        count = self.board.read("block_count")
        if bases.bases.count != count:
            raise ProtocolError(f"{bases.bases.count} bases for {count} detections")
        self._command(BlockCommand.BASES)
        self._feed_back()
        records = zeros(BASIS, count)
        records["basis"] = bases.bases.unpack()
        self.board.send("bases", records)
        self.board.run()
        replies = self.board.receive("replies")
        if len(replies) != count:
            raise BoardError(f"{self.board.name}: {len(replies)} replies to {count} bases")
        pack_bits = messages.BitString.pack
        self.link.send(
            messages.Replies(
                pack_bits(replies["keep"]), pack_bits(replies["opened"]), pack_bits(replies["bit"])
            )
        )
        sifted = self.board.receive("sifted")
        test = sifted["test"] == 1
        none = np.zeros(0, np.uint8)
        return Sifted(
            sifted["bit"][~test], sifted["intensity"][~test], sifted["intensity"][test], none
        )


class ReceiverStation(Station):
    """The receiver's station in the quantum and the basis phase.

    Parameters
    ----------
    board
        The station's board, open.
    link
        Its end of the message link.
    coins
        Source of the coins that decide multiple clicks.
    """

    def __init__(self, board: Board, link: LinkEnd, coins: RandomSource) -> None:
        super().__init__(board, link)
        self._coins = coins
        self._frame = 0
        self._first_slot = 0
        self._announcements: list[Structured] = []
        self.tested = np.zeros(0, bool)

    def enter_key_mode(self) -> None:
        """Switch to key mode: raw tags stay closed; the switch wipes the board."""
        self.board.write("mode", Mode.KEY)
        self.board.run()

    def open(self, on_host: bool) -> None:
        """Step 1: agree to the block that the sender opens."""
        block = self.link.expect(messages.OpenBlock)
        self.block_id = block.block_id
        self._frame = 0
        self._first_slot = block.first_slot
        self._announcements = []
        self._open(block.first_slot, block.last_slot, on_host)

    def measure(
        self,
        times: npt.NDArray[np.int64],
        channels: npt.NDArray[np.uint8],
        until: int | None = None,
    ) -> int:
        """Step 2: send clicks through the tag path and announce the slots of detections.

        Parameters
        ----------
        times, channels
            Stamped clicks in time order, ps.
        until
            Nothing more comes before this time, ps; the last click's if not given.

        Returns
        -------
        int
            Detections of the block so far.
        """
        self._top_up_coins(len(times))
        if until is None and len(times):
            until = int(times[-1])
        self.board.send("tags", tag_path.tag_records(times, channels, until))
        self.board.run()
        announcements = self.board.receive("announcements")
        self._announcements.append(announcements)
        records = pack(ANNOUNCEMENT, announcements).tobytes()
        self._digest.update(records)
        self._collect()
        self.link.send(messages.Announcements(self._frame, records))
        self._frame += 1
        return self.board.read("block_count")

    def _top_up_coins(self, clicks: int) -> None:
        # A multiple click takes one coin and at least two clicks.
        missing = clicks // 2 + 2 - self.board.pending("coins")
        if missing > 0:
            drawn = np.frombuffer(self._coins.bytes(missing), np.uint8)
            coins = zeros(COIN, missing)
            coins["bit"], coins["basis"] = drawn & 1, drawn >> 1 & 1
            self.board.send("coins", coins)

    def slots(self) -> npt.NDArray[np.int64]:
        """Slots announced in the block so far, which are public."""
        parts = [zeros(ANNOUNCEMENT, 0), *self._announcements]
        return announced_slots(np.concatenate(parts), self._first_slot)

    def announce_close(self) -> None:
        """Step 3: after the last slot, say how many detections were announced, and their hash."""
        count = self.board.read("block_count")
        self.link.send(messages.Close(count, self._digest.digest()))

    def close(self) -> None:
        """Step 3: the sender's word on the list of detections.

        Raises
        ------
        ProtocolError
            If the lists differ; the block is discarded.
        """
        if not self.link.expect(messages.CloseAgreed).agreed:
            self.discard()
            raise ProtocolError("the sender's list of detections differs; the block is discarded")
        self._command(BlockCommand.CLOSE)

    def announce_bases(self) -> None:
        """Step 4: send the bases; the board holds them back unless the block has closed."""
        self._command(BlockCommand.BASES)
        self._feed_back()
        self.board.run()
        bases = self.board.receive("bases")["basis"]
        count = self.board.read("block_count")
        if len(bases) != count:
            raise BoardError(f"{self.board.name}: {len(bases)} bases of {count} detections")
        self.link.send(messages.Bases(messages.BitString.pack(bases)))

    def resolve(self) -> Sifted:
        """Step 4: take the replies; returns the receiver's kept detections.

        Raises
        ------
        ProtocolError
            If the replies contradict the bases; the block is discarded.
        """
        replies = self.link.expect(messages.Replies)
        count = self.board.read("block_count")
        records = zeros(REPLY, count)
        for name, part in (("keep", replies.keep), ("opened", replies.opened)):
            if part.count != count:
                raise ProtocolError(f"{part.count} replies to {count} bases")
            records[name] = part.unpack()
        if replies.bits.count != count:
            raise ProtocolError(f"{replies.bits.count} replies to {count} bases")
        records["bit"] = replies.bits.unpack()
        self.tested = records["opened"] == 1
        self._command(BlockCommand.RESOLVE)
        self._feed_back()
        self.board.send("replies", records)
        self.board.run()
        sifted = self.board.receive("sifted")
        counts = self.board.ledger("resolver")
        if counts["contradicted"] or counts["surplus"]:
            self.discard()
            raise ProtocolError(f"the replies contradict the bases: {counts}")
        test = sifted["test"] == 1
        none = np.zeros(0, np.uint8)
        return Sifted(sifted["bit"][~test], none, none, sifted["error"][test])


def check_tallies(sender: Board, receiver: Board) -> None:
    """Both boards' tallies agree by arithmetic.

    The counts are public after the basis phase: kept detections by basis, and test bits by value.

    Raises
    ------
    ProtocolError
        If they differ.
    """
    at_sender, at_receiver = sender.ledger("sender_tally"), receiver.ledger("receiver_tally")
    pairs = {
        "Z": (at_sender["z_signal"] + at_sender["z_decoy"], at_receiver["z"]),
        "X, 0 sent": (at_sender["x_zero"], at_receiver["x_zero"]),
        "X, 1 sent": (at_sender["x_one"], at_receiver["x_one"]),
    }
    for name, (sent, received) in pairs.items():
        if sent != received:
            raise ProtocolError(f"tallies differ in {name}: sender {sent}, receiver {received}")


def announced_slots(announcements: Structured, first_slot: int) -> npt.NDArray[np.int64]:
    """Slots that a run of announcements names.

    Parameters
    ----------
    announcements
        Whole ``announcement`` records from the block's first on.
    first_slot
        First slot of the block.

    Returns
    -------
    numpy.ndarray
        Slot numbers, one for each detection.

    Raises
    ------
    ProtocolError
        If the last record says that more follow.
    """
    if len(announcements) == 0:
        return np.zeros(0, np.int64)
    last = np.flatnonzero(announcements["more"] == 0)
    if len(last) == 0 or last[-1] != len(announcements) - 1:
        raise ProtocolError("the announcements end in the middle of a slot")
    starts = np.concatenate([[0], last[:-1] + 1])
    index = np.arange(len(announcements))
    # Words still to come of the same slot: each shifts by 15 bits.
    behind = np.repeat(last, last - starts + 1) - index
    parts = announcements["difference"].astype(np.int64) << (15 * behind)
    return first_slot + np.cumsum(np.add.reduceat(parts, starts))
