# SPDX-License-Identifier: Apache-2.0
"""A station of the link: its board, and what it says in the quantum and the basis phase.

The two stations are objects that speak only through a message link. Each method is one step of
`protocol.md`'s order; what follows the basis phase is in `keyrail.session`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from keyrail import messages, tag_path
from keyrail.board import Board, BoardError
from keyrail.board_hash import engine_sizes, hash_on_board
from keyrail.contract import (
    ANNOUNCEMENT,
    BASIS,
    CHANNELS,
    CHOICE_WORD,
    CHOICES_PER_WORD,
    COIN,
    KEY_WORD,
    REPLY,
    SLOT_BITS,
    BlockCommand,
    BlockState,
    Mode,
    Randomness,
    Role,
)
from keyrail.distil.toeplitz import toeplitz_hash
from keyrail.errors import SettingError
from keyrail.layouts import Structured, pack, unpack, zeros
from keyrail.link import LinkEnd
from keyrail.messages import ProtocolError
from keyrail.randomness import Label, RandomSource
from keyrail.source import state_words
from keyrail.state_copy import StateCopy

Bits = npt.NDArray[np.uint8]
"""One bit an element."""
_PART_BITS, _PARTS = 15, 4
COINS_AHEAD = 4096
"""Coins that wait for multiple clicks of a board with inputs of its own."""


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


@dataclass(frozen=True)
class GeneratorKey:
    """What the board's generator makes a block's states from.

    Parameters
    ----------
    key
        32 bytes, secret, for one block.
    nonce
        64 bits, public.
    z, signal
        Probabilities of basis Z and of the signal intensity, in 2^-16.
    """

    key: bytes = field(repr=False)
    nonce: int
    z: int
    signal: int


class SenderStation(Station):
    """The sender's station in the quantum and the basis phase.

    The board remembers the last states in its ring; this station keeps a copy of what it fed and
    answers for slots that have left it (`StateCopy`). With a `GeneratorKey` the board makes the
    states itself, and again where they have left its ring.

    Parameters
    ----------
    board
        The station's board, open.
    link
        Its end of the message link.
    randomness
        Label of the source of the states that are fed.
    generator
        The board makes the states, from this key; None: they are fed.
    clocks
        The board's source is paced: a slot lasts so many clocks, 1 to 256, and drives the
        modulators. 0: it takes states as they come, for simulated light.

    Attributes
    ----------
    taken
        Live frames of the block whose detections were looked up, by their number, in order.
    late, lost
        Frames that came after a later one, and frames that are dropped on both sides.
    announced_until
        All detections before this slot have been announced, or lost.
    """

    def __init__(
        self,
        board: Board,
        link: LinkEnd,
        randomness: Label = "os",
        generator: GeneratorKey | None = None,
        clocks: int = 0,
    ) -> None:
        super().__init__(board, link)
        self.randomness = randomness
        self.generator = generator
        self._clocks = clocks
        self._copy = StateCopy()
        self._begin(0, 0)

    def _begin(self, first_slot: int, last_slot: int) -> None:
        self._first_slot, self._last_slot = first_slot, last_slot
        self._previous: int | None = None
        self._slots: list[npt.NDArray[np.int64]] = []
        self.taken: dict[int, messages.Announcements] = {}
        self.late = self.lost = 0
        self.announced_until = first_slot

    def open(
        self,
        block_id: int,
        first_slot: int,
        last_slot: int,
        on_host: bool,
        first_state: int | None = None,
    ) -> None:
        """Step 1: agree on a block; its slots are fixed beforehand.

        Parameters
        ----------
        block_id, first_slot, last_slot
            Of the block.
        on_host
            Block memory lies in the control PC.
        first_state
            Slot of the first state fed, a multiple of 16: slots from there to the block are
            published ones. That of the block if not given.

        Raises
        ------
        BoardError
            If the board's generator has no key, or had made these slots' states before.
        """
        self.block_id = block_id
        self._begin(first_slot, last_slot)
        first_state = first_slot if first_state is None else first_state
        self._copy.begin(first_state)
        made = self.generator
        label = Randomness[self.randomness.upper()]
        self.board.write(
            "source",
            label=label,
            recall=1,
            generator=int(made is not None),
            paced=int(self._clocks > 0),
            clocks=max(0, self._clocks - 1),
        )
        self.board.write("states_first_slot", first_state)
        if made is not None:
            self._load(made)
        self._open(first_slot, last_slot, on_host)
        if made is not None:
            status = self.board.read_fields("source_status")
            if status["repeated"] or not status["keyed"]:
                self.discard()
                why = "made these states before: wipe it" if status["keyed"] else "has no key"
                raise BoardError(f"{self.board.name}: the generator {why}")
        self.link.send(messages.OpenBlock(block_id, first_slot, last_slot))

    def _load(self, made: GeneratorKey) -> None:
        """Give the board's generator its key: one for each block, which overwrites the last."""
        self.board.write("generator_bias", z=made.z, signal=made.signal)
        self.board.write("generator_nonce", made.nonce)
        words = zeros(KEY_WORD, len(made.key) // KEY_WORD.bytes)
        words["bits"] = np.frombuffer(made.key, "<u8")
        self.board.send("generator_key", words)
        self.board.run()

    def emit(self, states: Bits) -> None:
        """Feed the states of the next slots to the board, which drives the modulators.

        Parameters
        ----------
        states
            State codes (``state`` record), one a slot; the number is a multiple of 16, padded
            after the block's last slot.

        Raises
        ------
        BoardError
            If the board makes the states itself.
        """
        if self.generator is not None:
            raise BoardError(f"{self.board.name}: the board makes the states itself")
        self._copy.feed(states)
        self.board.send("states", state_words(states))
        if not self._clocks:  # a paced source is at rest only when the block is over
            self.board.run()

    def look_up(self) -> None:
        """Step 2: look up the slots of the next frame, which has come."""
        self.take(self.link.expect(messages.Announcements))

    def take(self, frame: messages.Announcements) -> bool:
        """Step 2: look the announced slots of one frame up while their states are at hand.

        Frames may be lost: each counts from a slot that it names. One that comes after a later
        one is not looked up, and counts as lost.

        Returns
        -------
        bool
            Whether it was looked up.

        Raises
        ------
        ProtocolError
            If the frame contradicts itself or the block.
        """
        if self.taken and frame.frame <= next(reversed(self.taken)):
            self.late += 1
            return False
        if len(frame.records) % ANNOUNCEMENT.bytes:
            raise ProtocolError(f"{len(frame.records)} bytes are no whole announcements")
        slots = announced_slots(unpack(ANNOUNCEMENT, frame.records), frame.previous_slot)
        before = self._first_slot - 1 if self._previous is None else self._previous
        if len(slots) and (
            slots[0] <= before or slots[-1] > self._last_slot or (np.diff(slots) <= 0).any()
        ):
            raise ProtocolError(
                f"frame {frame.frame} announces slots that do not rise in the block"
            )
        self.taken[frame.frame] = frame
        self.announced_until = max(self.announced_until, frame.until_slot)
        if len(slots):
            base = self._first_slot if self._previous is None else self._previous
            self.board.send("announcements", announcement_records(slots, base))
            self._previous = int(slots[-1])
            self._slots.append(slots)
            if not self._clocks:
                self._settle()
        return True

    def keep_up(self) -> bool:
        """Answer for slots that have left the board's ring, and keep what block memory spills.

        With a paced source, to be called again and again while the block is open.

        Returns
        -------
        bool
            Whether anything was asked.
        """
        missed = self.board.receive("missed")
        if len(missed):
            # The board keeps the order.
            self.board.send("recalled", self._copy.answer(missed["slot"]))
        self._collect()
        return len(missed) > 0

    def _settle(self) -> None:
        """Let the board look up all that it was given."""
        self.board.run()
        while self.keep_up():
            self.board.run()

    def kept_frames(self) -> list[messages.Announcements]:
        """Frames whose detections are on both stations' list."""
        return list(self.taken.values())

    def discard(self) -> None:
        """Give the open block up: board and station wipe what they held of it."""
        self._copy.wipe()
        if self._clocks and self.board.read("block_state") == BlockState.OPEN:
            # States on their way would be the next block's: the source stops for want of more,
            # and drops those that come behind.
            self.board.run()
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
        self.agree_close(self.link.expect(messages.Close))

    def agree_close(self, close: messages.Close) -> None:
        """Step 3, the receiver's word at hand; a paced source has ended before."""
        self._settle()
        missing = missing_ranges(list(self.taken), close.frames)
        self.lost = sum(last - first + 1 for first, last in missing)
        count = sum(len(part) for part in self._slots)
        digest = slots_digest(self._slots)
        counts = self.board.ledger("state_memory")
        agreed = counts["in"] == self.board.read("block_count") == count <= close.count
        if not missing:
            agreed = agreed and (count, digest) == (close.count, close.digest)
        if agreed:
            self._command(BlockCommand.CLOSE)
        self.link.send(messages.CloseAgreed(agreed, missing, count, digest))
        if not agreed:
            self.discard()
            raise ProtocolError(
                f"the lists of detections differ: {close.count} announced, {counts} looked up"
            )

    def answer_bases(self) -> Sifted:
        """Step 4: answer the receiver's bases; returns the sender's kept detections."""
        return self.take_bases(self.link.expect(messages.Bases))

    def take_bases(self, bases: messages.Bases) -> Sifted:
        """Step 4, the bases at hand."""
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
    bases
        Active receiver: source of the basis choices.

    Attributes
    ----------
    lost
        Live frames that are dropped on both sides.
    tested
        Which of the announced detections were opened.
    """

    def __init__(
        self,
        board: Board,
        link: LinkEnd,
        coins: RandomSource,
        bases: RandomSource | None = None,
    ) -> None:
        super().__init__(board, link)
        self._coins = coins
        self._bases = bases
        self._begin(0)

    def _begin(self, first_slot: int) -> None:
        self._first_slot = first_slot
        self._rest = zeros(ANNOUNCEMENT, 0)
        self._frames: list[messages.Announcements] = []
        self._slots: list[npt.NDArray[np.int64]] = []
        self._kept = np.zeros(0, bool)
        self.lost = 0
        self.tested = np.zeros(0, bool)

    def enter_key_mode(self) -> None:
        """Switch to key mode: raw tags stay closed; the switch wipes the board."""
        self.board.write("mode", Mode.KEY)
        self.board.run()

    def open(self, on_host: bool) -> None:
        """Step 1: agree to the block that the sender opens."""
        self.take_open(self.link.expect(messages.OpenBlock), on_host)

    def take_open(self, block: messages.OpenBlock, on_host: bool) -> None:
        """Step 1, the sender's word at hand."""
        if block.last_slot < block.first_slot:
            raise ProtocolError(f"a block from slot {block.first_slot} to {block.last_slot}")
        self.block_id = block.block_id
        self._begin(block.first_slot)
        self.board.write(
            "choices_first_slot", block.first_slot - block.first_slot % CHOICES_PER_WORD
        )
        self._open(block.first_slot, block.last_slot, on_host)

    def measure(
        self,
        times: npt.NDArray[np.int64],
        channels: npt.NDArray[np.uint8],
        until: int | None = None,
        until_slot: int = 0,
    ) -> int:
        """Step 2: send clicks through the tag path and announce the slots of detections.

        Parameters
        ----------
        times, channels
            Stamped clicks in time order, ps.
        until
            Nothing more comes before this time, ps; the last click's if not given.
        until_slot
            Nothing more comes before this slot.

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
        self._collect()
        self._announce(until_slot)
        return self.board.read("block_count")

    def collect(self, until_slot: int = 0) -> bool:
        """Step 2, with light at the board's own inputs: announce what it has detected so far.

        To be called again and again while the block is open.

        Parameters
        ----------
        until_slot
            Nothing more comes before this slot, as far as known.

        Returns
        -------
        bool
            Whether anything was announced.
        """
        self._top_up_coins(2 * COINS_AHEAD)
        self._collect()
        return self._announce(until_slot, until_slot > 0)

    def _announce(self, until_slot: int, empty: bool = True) -> bool:
        """Send a frame of what the board has announced; of nothing only if it may be `empty`."""
        records = np.concatenate([self._rest, self.board.receive("announcements")])
        # A frame holds whole announcements, so that one that is lost costs no other.
        whole = np.flatnonzero(records["more"] == 0)
        cut = int(whole[-1]) + 1 if len(whole) else 0
        records, self._rest = records[:cut], records[cut:]
        if not cut and not empty:
            return False
        detections = sum(len(part) for part in self._slots)
        previous = self._first_slot
        if detections:
            previous = int(next(part[-1] for part in reversed(self._slots) if len(part)))
        self._slots.append(announced_slots(records, previous))
        frame = messages.Announcements(
            len(self._frames),
            pack(ANNOUNCEMENT, records).tobytes(),
            detections,
            previous,
            until_slot,
        )
        self._frames.append(frame)
        self.link.send(frame)
        return True

    def choose_bases(self, slots: int) -> None:
        """Active receiver: draw the basis choices of the next slots and feed them to the board.

        The first is that of the block's first slot, rounded down to a multiple of 64.

        The board keeps those of its horizon; feed and `measure` in turn. A slot whose choice has
        not come is not used.

        Parameters
        ----------
        slots
            How many, a multiple of 64.

        Raises
        ------
        SettingError
            If their number is no multiple of 64.
        BoardError
            If this station was given no source of basis choices.
        """
        if self._bases is None:
            raise BoardError(f"{self.board.name}: no random source for basis choices was given")
        if slots % CHOICES_PER_WORD:
            raise SettingError("slots", slots, f"a multiple of {CHOICES_PER_WORD}")
        words = zeros(CHOICE_WORD, slots // CHOICES_PER_WORD)
        words["choices"] = np.frombuffer(self._bases.bytes(slots // 8), "<u8")
        self.board.send("basis_choices", words)
        self.board.run()

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
        return np.concatenate([np.zeros(0, np.int64), *self._slots])

    def announce_close(self) -> None:
        """Step 3: after the last slot, say how many detections were announced, and their hash.

        Raises
        ------
        ProtocolError
            If a detector's current has left its limits: no key from such a block, which is
            discarded.
        """
        alarms = self.board.read("current_alarms")
        if alarms:
            self.discard()
            channels = ", ".join(str(c) for c in range(CHANNELS) if alarms >> c & 1)
            raise ProtocolError(
                f"{self.board.name}: currents of channel {channels} left their limits "
                f"({self.board.ledger('currents')}); the block is discarded"
            )
        count = self.board.read("block_count")
        self.link.send(messages.Close(count, slots_digest(self._slots), len(self._frames)))

    def close(self) -> None:
        """Step 3: the sender's word on the list of detections.

        Raises
        ------
        ProtocolError
            If the lists differ; the block is discarded.
        """
        self.take_close(self.link.expect(messages.CloseAgreed))

    def take_close(self, word: messages.CloseAgreed) -> None:
        """Step 3, the sender's word at hand: drop the detections of frames that it misses."""
        missing = np.zeros(len(self._frames), bool)
        after = -1
        for first, last in word.missing:
            if not after < first <= last < len(missing):
                raise ProtocolError(f"frames {first} to {last} are missing of {len(missing)}")
            missing[first : last + 1] = True
            after = last
        self.lost = int(missing.sum())
        kept = [part for part, lost in zip(self._slots, missing, strict=True) if not lost]
        self._kept = np.repeat(~missing, [len(part) for part in self._slots])
        agreed = (
            word.agreed
            and len(self._kept) == self.board.read("block_count")
            and word.count == self._kept.sum()
            and word.digest == slots_digest(kept)
        )
        self._frames = [
            frame for frame, lost in zip(self._frames, missing, strict=True) if not lost
        ]
        if not agreed:
            self.discard()
            raise ProtocolError("the sender's list of detections differs; the block is discarded")
        self._command(BlockCommand.CLOSE)

    def kept_frames(self) -> list[messages.Announcements]:
        """Frames whose detections are on both stations' list."""
        return self._frames

    def announce_bases(self) -> None:
        """Step 4: send the bases; the board holds them back unless the block has closed."""
        self._command(BlockCommand.BASES)
        self._feed_back()
        self.board.run()
        bases = self.board.receive("bases")["basis"]
        count = self.board.read("block_count")
        if len(bases) != count:
            raise BoardError(f"{self.board.name}: {len(bases)} bases of {count} detections")
        self.link.send(messages.Bases(messages.BitString.pack(bases[self._kept])))

    def resolve(self) -> Sifted:
        """Step 4: take the replies; returns the receiver's kept detections.

        Raises
        ------
        ProtocolError
            If the replies contradict the bases; the block is discarded.
        """
        return self.take_replies(self.link.expect(messages.Replies))

    def take_replies(self, replies: messages.Replies) -> Sifted:
        """Step 4, the replies at hand."""
        count = int(self._kept.sum())
        # A detection of a lost frame is dropped as if the sender had said so.
        records = zeros(REPLY, len(self._kept))
        parts = (("keep", replies.keep), ("opened", replies.opened), ("bit", replies.bits))
        for name, part in parts:
            if part.count != count:
                raise ProtocolError(f"{part.count} replies to {count} bases")
            records[name][self._kept] = part.unpack()
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


def tally_report(board: Board) -> messages.TallyReport:
    """A board's counts that both stations know: kept detections in Z, and in X by the bit sent."""
    if board.role is Role.SENDER:
        at_sender = board.ledger("sender_tally")
        z = at_sender["z_signal"] + at_sender["z_decoy"]
        return messages.TallyReport(z, at_sender["x_zero"], at_sender["x_one"])
    at_receiver = board.ledger("receiver_tally")
    return messages.TallyReport(at_receiver["z"], at_receiver["x_zero"], at_receiver["x_one"])


def check_tallies(sender: Board, receiver: Board) -> None:
    """Both boards' tallies agree by arithmetic; ProtocolError if they differ."""
    compare_tallies(tally_report(sender), tally_report(receiver))


def compare_tallies(one: messages.TallyReport, other: messages.TallyReport) -> None:
    """What both stations tell of their tallies is the same; ProtocolError if not."""
    if one != other:
        raise ProtocolError(f"the stations' tallies differ: {one} and {other}")


def slots_digest(parts: Iterable[npt.NDArray[np.int64]]) -> bytes:
    """SHA-256 of a list of slots, each as 8 bytes, little-endian."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.astype("<i8").tobytes())
    return digest.digest()


def missing_ranges(numbers: Sequence[int], count: int) -> tuple[tuple[int, int], ...]:
    """First and last of each run of numbers below `count` that is not in rising `numbers`.

    Raises
    ------
    ProtocolError
        If a number is not below `count`.
    """
    if len(numbers) and numbers[-1] >= count:
        raise ProtocolError(f"frame {numbers[-1]} came, the receiver says that it sent {count}")
    bounds = [-1, *numbers, count]
    return tuple((a + 1, b - 1) for a, b in pairwise(bounds) if b - a > 1)


def announcement_records(slots: npt.NDArray[np.int64], previous: int) -> Structured:
    """Slots as ``announcement`` records that count from `previous`; reverse of `announced_slots`.

    Parameters
    ----------
    slots
        Rising slot numbers, the first at least `previous`.
    previous
        Slot that the first record's difference counts from.
    """
    difference = np.diff(slots, prepend=previous)
    needed = np.ones(len(slots), np.int64)
    for k in range(1, _PARTS):
        needed[difference >> (_PART_BITS * k) > 0] = k + 1
    ends = np.cumsum(needed)
    records = zeros(ANNOUNCEMENT, int(needed.sum()))
    for k in range(_PARTS):
        sent = needed > k
        records["difference"][ends[sent] - 1 - k] = difference[sent] >> (_PART_BITS * k) & (
            (1 << _PART_BITS) - 1
        )
        records["more"][ends[sent] - 1 - k] = k > 0
    return records


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
        If the last record says that more follow, or a difference is no slot's.
    """
    if len(announcements) == 0:
        return np.zeros(0, np.int64)
    last = np.flatnonzero(announcements["more"] == 0)
    if len(last) == 0 or last[-1] != len(announcements) - 1:
        raise ProtocolError("the announcements end in the middle of a slot")
    starts = np.concatenate([[0], last[:-1] + 1])
    if (last - starts >= _PARTS).any():
        raise ProtocolError(f"an announcement of more than {_PARTS} records")
    index = np.arange(len(announcements))
    # Words still to come of the same slot: each shifts by 15 bits.
    behind = np.repeat(last, last - starts + 1) - index
    parts = announcements["difference"].astype(np.int64) << (_PART_BITS * behind)
    differences = np.add.reduceat(parts, starts)
    if (differences >= 1 << SLOT_BITS).any():
        raise ProtocolError("an announcement counts beyond the last slot number")
    return first_slot + np.cumsum(differences)
