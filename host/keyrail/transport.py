# SPDX-License-Identifier: Apache-2.0
"""What carries frames between the stations: whole datagrams over TCP (ZeroMQ), or a queue.

ZeroMQ serves because it keeps message boundaries, bounds their size, joins again by itself and
has heartbeats of its own; nothing rests on its delivering anything, let alone unaltered:
`keyrail.exchange` numbers, repeats and authenticates. The station that binds has a ROUTER socket,
so that a stranger who connects takes no frame away from the peer: replies go to the one that
authenticated frames came from.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

import zmq

from keyrail.errors import KeyrailError

MAXIMUM_FRAME = 1 << 26
"""Largest frame, bytes."""
HIGH_WATER = 4096
"""Frames that are queued on either side; more are dropped, as on a lossy line."""

Peer = bytes | None
"""Where a frame came from; None where there is one peer only."""


class TransportError(KeyrailError):
    """The transport cannot be set up."""


class Transport(Protocol):
    """Carries frames; may lose, repeat, reorder or alter them."""

    def send(self, data: bytes, peer: Peer) -> None:
        """Send a frame to a peer if there is room; else it is lost."""
        ...

    def receive(self) -> tuple[bytes, Peer] | None:
        """Next frame that has come, and from where; None if there is none."""
        ...

    def close(self) -> None:
        """Release it."""
        ...


class MemoryTransport:
    """One end of a queue within this process."""

    def __init__(self) -> None:
        self._incoming: deque[bytes] = deque()
        self.other: MemoryTransport | None = None

    def send(self, data: bytes, peer: Peer = None) -> None:
        """Append to the other end's queue."""
        if self.other is not None:
            self.other._incoming.append(data)

    def receive(self) -> tuple[bytes, Peer] | None:
        """Next frame."""
        return (self._incoming.popleft(), None) if self._incoming else None

    def close(self) -> None:
        """Cut both ends apart."""
        if self.other is not None:
            self.other.other = None
        self.other = None


def memory_transports() -> tuple[MemoryTransport, MemoryTransport]:
    """Both ends of a queue."""
    one, two = MemoryTransport(), MemoryTransport()
    one.other, two.other = two, one
    return one, two


def socket(kind: int, listen: str | None, connect: str | None) -> zmq.Socket[bytes]:
    """A ZeroMQ socket that drops what nobody takes, bounds sizes and forgets on close.

    Raises
    ------
    TransportError
        If the address cannot be used.
    """
    made: zmq.Socket[bytes] = zmq.Context.instance().socket(kind)
    made.setsockopt(zmq.LINGER, 200)
    made.setsockopt(zmq.SNDHWM, HIGH_WATER)
    made.setsockopt(zmq.RCVHWM, HIGH_WATER)
    made.setsockopt(zmq.MAXMSGSIZE, MAXIMUM_FRAME)
    made.setsockopt(zmq.HEARTBEAT_IVL, 1000)
    made.setsockopt(zmq.HEARTBEAT_TIMEOUT, 5000)
    made.setsockopt(zmq.RECONNECT_IVL, 100)
    made.setsockopt(zmq.RECONNECT_IVL_MAX, 2000)
    try:
        if listen is not None:
            made.bind(listen)
        if connect is not None:
            made.connect(connect)
    except zmq.ZMQError as error:
        made.close(0)
        raise TransportError(f"{listen or connect}: {error.strerror}") from None
    return made


class ZmqTransport:
    """Frames over TCP.

    Parameters
    ----------
    listen, connect
        One of them: where to wait, or whom to join, such as ``tcp://192.0.2.7:7710``.

    Raises
    ------
    TransportError
        If the address cannot be used.
    """

    def __init__(self, *, listen: str | None = None, connect: str | None = None) -> None:
        self._router = listen is not None
        self._socket = socket(zmq.ROUTER if self._router else zmq.DEALER, listen, connect)

    def send(self, data: bytes, peer: Peer) -> None:
        """Send a frame; lost if nobody takes it."""
        if self._router and peer is None:
            return
        try:
            parts = [peer, data] if self._router and peer is not None else [data]
            self._socket.send_multipart(parts, zmq.NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EAGAIN, zmq.EHOSTUNREACH):
                raise TransportError(f"cannot send: {error.strerror}") from None

    def receive(self) -> tuple[bytes, Peer] | None:
        """Next frame; messages of another shape are passed over."""
        while True:
            try:
                parts = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return None
            if self._router and len(parts) == 2:
                return parts[1], parts[0]
            if not self._router and len(parts) == 1:
                return parts[0], None

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
