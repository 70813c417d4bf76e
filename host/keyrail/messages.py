# SPDX-License-Identifier: Apache-2.0
"""Messages between the stations, one class each, in the order of the protocol (MessagePack)."""

from __future__ import annotations

from typing import Annotated, Self

import msgspec
import numpy as np
import numpy.typing as npt

from keyrail.contract import SLOT_BITS
from keyrail.errors import KeyrailError

Bits = npt.NDArray[np.uint8]

Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
Slot = Annotated[int, msgspec.Meta(ge=0, lt=1 << SLOT_BITS)]
Digest = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
Payload = Annotated[bytes, msgspec.Meta(max_length=1 << 28)]
Residue = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
"""A number below 2^127 - 1, little-endian."""


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


class OpenBlock(Message, frozen=True):
    """Sender: a block begins; its slots are fixed."""

    block_id: Count
    first_slot: Slot
    last_slot: Slot


class Announcements(Message, frozen=True):
    """Receiver: slots of detections, as ``announcement`` records."""

    frame: Count
    records: Payload


class Close(Message, frozen=True):
    """Receiver: number of detections announced, and hash of the announcements."""

    count: Count
    digest: Digest


class CloseAgreed(Message, frozen=True):
    """Sender: whether its list is the same."""

    agreed: bool


class Bases(Message, frozen=True):
    """Receiver: basis of each detection."""

    bases: BitString


class Replies(Message, frozen=True):
    """Sender: keep or drop each detection, and its bits in the test basis."""

    keep: BitString
    opened: BitString
    bits: BitString


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
    """Either: it accepts the block, or gives it up."""

    accepted: bool


AnyMessage = (
    OpenBlock
    | Announcements
    | Close
    | CloseAgreed
    | Bases
    | Replies
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
