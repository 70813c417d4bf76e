# SPDX-License-Identifier: Apache-2.0
"""The message link between the stations, within one process."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import TypeVar

from keyrail.messages import Message, ProtocolError, decode, encode

M = TypeVar("M", bound=Message)


@dataclass
class Transcript:
    """Everything that crossed a link, in order: sender's name and bytes."""

    messages: list[tuple[str, bytes]] = field(default_factory=list, repr=False)

    def charged_bits(self) -> dict[str, int]:
        """Charged bits by message class, in both directions."""
        charged: dict[str, int] = {}
        for _, data in self.messages:
            message = decode(data)
            if message.charged_bits:
                name = type(message).__name__
                charged[name] = charged.get(name, 0) + message.charged_bits
        return charged


class LinkEnd:
    """One end of a link. Messages cross it as bytes, encoded and decoded.

    The link is **not authenticated** yet (`authenticated`): what rests on it is for
    demonstrations.

    Attributes
    ----------
    authenticated
        False.
    bytes_sent
        Bytes sent from this end.
    transcript
        What crossed, shared by both ends; None unless asked for.
    """

    authenticated = False

    def __init__(self, name: str, transcript: Transcript | None) -> None:
        self.name = name
        self.transcript = transcript
        self.bytes_sent = 0
        self._incoming: deque[bytes] = deque()
        self._other: LinkEnd | None = None

    def join(self, other: LinkEnd) -> None:
        """Make `other` the far end."""
        self._other, other._other = other, self

    def send(self, message: Message) -> None:
        """Send a message to the other end."""
        if self._other is None:
            raise ProtocolError(f"{self.name}: the link has no other end")
        data = encode(message)
        self.bytes_sent += len(data)
        if self.transcript is not None:
            self.transcript.messages.append((self.name, data))
        self._other._incoming.append(data)

    def receive(self) -> Message:
        """Take the next message; ProtocolError if none has come or it is malformed."""
        if not self._incoming:
            raise ProtocolError(f"{self.name}: no message has come")
        return decode(self._incoming.popleft())

    def expect(self, kind: type[M]) -> M:
        """Take the next message, which must be of class `kind`."""
        message = self.receive()
        if not isinstance(message, kind):
            raise ProtocolError(f"{type(message).__name__} came where {kind.__name__} was due")
        return message

    @property
    def pending(self) -> int:
        """Messages that wait to be received."""
        return len(self._incoming)


def memory_pair(record: bool = False) -> tuple[LinkEnd, LinkEnd]:
    """Both ends of a link within this process, the sender's first.

    Parameters
    ----------
    record
        Keep a transcript of everything that crosses.
    """
    transcript = Transcript() if record else None
    sender, receiver = LinkEnd("sender", transcript), LinkEnd("receiver", transcript)
    sender.join(receiver)
    return sender, receiver


def receive(link: LinkEnd, kind: type[M]) -> Generator[None, None, M]:
    """Wait for the next message, which must be of class `kind`; yields while none has come."""
    while not link.pending:
        yield
    return link.expect(kind)
