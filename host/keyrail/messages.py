# SPDX-License-Identifier: Apache-2.0
"""Messages between the stations, one class each, in the order of the protocol (MessagePack)."""

from __future__ import annotations

from typing import Annotated, Self

import msgspec
import numpy as np
import numpy.typing as npt

from keyrail.contract import SLOT_BITS
from keyrail.errors import KeyrailError
from keyrail.randomness import Label

Bits = npt.NDArray[np.uint8]

Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
Slot = Annotated[int, msgspec.Meta(ge=0, lt=1 << SLOT_BITS)]
Digest = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
Payload = Annotated[bytes, msgspec.Meta(max_length=1 << 28)]
Residue = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
"""A number below 2^127 - 1, little-endian; or a tag."""
Index = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Reason = Annotated[str, msgspec.Meta(max_length=500)]
KeyId = Annotated[str, msgspec.Meta(min_length=36, max_length=36)]
Uses = Annotated[
    dict[Annotated[str, msgspec.Meta(max_length=40)], Label], msgspec.Meta(max_length=32)
]
"""Label of each use of randomness, by its name."""


class ProtocolError(KeyrailError):
    """The other station said something that the protocol does not allow here."""


class Message(msgspec.Struct, frozen=True, tag=True, repr_omit_defaults=True):
    """A message of the link."""

    @property
    def charged_bits(self) -> int:
        """Bits that this message tells of the key, all of them charged to its length."""
        return 0


class BitString(msgspec.Struct, frozen=True):
    """Bits packed eight to a byte, the first in bit 0."""

    count: Count
    packed: Payload

    @classmethod
    def pack(cls, bits: Bits) -> Self:
        """Pack bits, one an element."""
        return cls(len(bits), np.packbits(bits, bitorder="little").tobytes())

    def unpack(self) -> Bits:
        """One bit an element; ProtocolError if count and bytes disagree."""
        if len(self.packed) != -(-self.count // 8):
            raise ProtocolError(f"{len(self.packed)} bytes for {self.count} bits")
        packed = np.frombuffer(self.packed, np.uint8)
        return np.unpackbits(packed, count=self.count, bitorder="little")


class Ready(Message, frozen=True):
    """Receiver: in a new session, all that was pending is settled; training may begin."""


class Train(Message, frozen=True):
    """Sender: published training slots come next, of light that begins anew with each epoch."""

    epoch: Count
    first_slot: Slot
    slots: Count


class Listening(Message, frozen=True):
    """Receiver: its detectors are heard; the training slots of that epoch may be sent."""

    epoch: Count


class TrainingSent(Message, frozen=True):
    """Sender: the last training slot of that epoch has left."""

    epoch: Count


class Trained(Message, frozen=True):
    """Receiver: whether it found the training slots, and how often it detects."""

    found: bool
    reason: Reason = ""
    detections_per_slot: Share = 0.0
    epoch: Count = 0


class OpenBlock(Message, frozen=True):
    """Sender: a block begins; its slots are fixed."""

    block_id: Count
    first_slot: Slot
    last_slot: Slot


class BlockOpened(Message, frozen=True):
    """Receiver: it takes detections of the block."""

    block_id: Count


class Announcements(Message, frozen=True):
    """Receiver: slots of detections, as ``announcement`` records. Never repeated.

    The first record counts from ``previous_slot``; ``first_detection`` detections came in frames
    before; nothing before ``until_slot`` is left to come in frames after.
    """

    frame: Count
    records: Payload
    first_detection: Count = 0
    previous_slot: Slot = 0
    until_slot: Slot = 0


class Close(Message, frozen=True):
    """Receiver: detections announced, hash of their slots, and frames they were sent in."""

    count: Count
    digest: Digest
    frames: Count = 0


class CloseAgreed(Message, frozen=True):
    """Sender: whether its list stands, and what it is: all frames but the ``missing`` ranges.

    Both stations drop the detections of missing frames.
    """

    agreed: bool
    missing: Annotated[tuple[tuple[Count, Count], ...], msgspec.Meta(max_length=1 << 16)] = ()
    count: Count = 0
    digest: Digest = bytes(32)


class Bases(Message, frozen=True):
    """Receiver: basis of each detection."""

    bases: BitString


class Replies(Message, frozen=True):
    """Sender: keep or drop each detection, and its bits in the test basis."""

    keep: BitString
    opened: BitString
    bits: BitString


class TallyReport(Message, frozen=True):
    """Either: kept detections in Z, and in X by the bit sent; all three are public by now."""

    z: Count
    x_zero: Count
    x_one: Count


class TestResult(Message, frozen=True):
    """Receiver: detections in the test basis, and errors among them; both are public."""

    tests: Count
    errors: Count


class ReconcileStart(Message, frozen=True):
    """Sender: how the key bits are permuted and cut into frames; public randomness."""

    bits: Count
    frames: Count
    permutation_seed: Digest


class Syndrome(Message, frozen=True):
    """Sender: syndrome bits of one frame; every one is charged."""

    frame: Count
    part: BitString

    @property
    def charged_bits(self) -> int:
        """All bits of the syndrome."""
        return self.part.count


class FrameResult(Message, frozen=True):
    """Receiver: whether the frame decoded; the answer itself is charged."""

    frame: Count
    decoded: bool

    @property
    def charged_bits(self) -> int:
        """One."""
        return 1


class OpenedFrame(Message, frozen=True):
    """Sender: all bits of a frame that did not decode; they stay in the count, charged in full."""

    frame: Count
    opened: BitString

    @property
    def charged_bits(self) -> int:
        """All bits of the frame."""
        return self.opened.count


class VerifyTag(Message, frozen=True):
    """Sender: key and value of the universal hash of the reconciled key."""

    key: Residue
    tag: Residue

    @property
    def charged_bits(self) -> int:
        """Bits of the value; the key is public randomness."""
        return 127


class VerifyResult(Message, frozen=True):
    """Receiver: whether the values agree."""

    agreed: bool

    @property
    def charged_bits(self) -> int:
        """One."""
        return 1


class Intensities(Message, frozen=True):
    """Sender: intensity class of each kept detection, after verification."""

    key: BitString
    test: BitString


class ErrorCounts(Message, frozen=True):
    """Receiver: errors by basis and intensity class (signal, decoy).

    The key basis' counts tell something of the key: ceil(log2(n + 1)) bits each are charged, n
    being the number of key bits of the class. The test basis is public.
    """

    key_sizes: tuple[Count, Count]
    key_errors: tuple[Count, Count]
    test_errors: tuple[Count, Count]

    @property
    def charged_bits(self) -> int:
        """Bits that name the counts of the key basis."""
        return sum(size.bit_length() for size in self.key_sizes)


class Length(Message, frozen=True):
    """Receiver: length of the key that it estimates, 0 for none."""

    secret_bits: Count


class Seed(Message, frozen=True):
    """Sender: fresh seed of the hash, drawn after the length was fixed."""

    seed: BitString


class Accept(Message, frozen=True):
    """Either: it accepts the block, or gives it up.

    With it go what the pools of one-time key hold, and what of the new key goes into them (pads of
    the sender's and the receiver's direction), and the label of each of its uses of randomness.
    """

    accepted: bool
    pool_ends: tuple[Index, Index] = (0, 0)
    refill: tuple[Count, Count] = (0, 0)
    randomness: Uses = {}


class PhaseTag(Message, frozen=True):
    """Either: information-theoretic tag of a phase's transcript."""

    phase: Count
    index: Index
    tag: Residue


class Released(Message, frozen=True):
    """Sender: it has released the key, as the receiver accepted it and has it on disk."""

    key_id: KeyId


class Resume(Message, frozen=True):
    """Receiver: in a new session, which of its pending keys has the sender released?"""

    key_id: KeyId


class ResumeAnswer(Message, frozen=True):
    """Sender: whether it has released that key."""

    key_id: KeyId
    released: bool


class Discard(Message, frozen=True):
    """Either: the block is given up."""

    reason: Reason


AnyMessage = (
    Ready
    | Train
    | Listening
    | TrainingSent
    | Trained
    | OpenBlock
    | BlockOpened
    | Announcements
    | Close
    | CloseAgreed
    | Bases
    | Replies
    | TallyReport
    | TestResult
    | ReconcileStart
    | Syndrome
    | FrameResult
    | OpenedFrame
    | VerifyTag
    | VerifyResult
    | Intensities
    | ErrorCounts
    | Length
    | Seed
    | Accept
    | PhaseTag
    | Released
    | Resume
    | ResumeAnswer
    | Discard
)
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(AnyMessage)
_encoder = msgspec.msgpack.Encoder()


def encode(message: Message) -> bytes:
    """Bytes of a message."""
    return _encoder.encode(message)


def decode(data: bytes) -> Message:
    """The message that bytes hold; ProtocolError if they hold none."""
    try:
        return _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ProtocolError(f"malformed message of {len(data)} bytes: {error}") from None
