# SPDX-License-Identifier: Apache-2.0
"""The fibre between two simulated boards that run in processes of their own.

What crosses it is secret (states, clicks) and neither encrypted nor authenticated: it stands for
the photons of a simulation, refuses real boards, and writes nothing of it down.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Annotated

import msgspec
import numpy as np
import numpy.typing as npt
import zmq

from keyrail.board import is_simulated
from keyrail.contract import SLOT_BITS
from keyrail.errors import KeyrailError
from keyrail.light import Clicks, Detector, LightError
from keyrail.transport import socket

ASK_AGAIN_S = 1.0
DEPTH = 2
"""Runs of slots under way at most."""

Number = Annotated[int, msgspec.Meta(ge=0, lt=1 << 48)]
Slot = Annotated[int, msgspec.Meta(ge=0, lt=1 << SLOT_BITS)]
Codes = Annotated[bytes, msgspec.Meta(max_length=1 << 24)]


class _Word(msgspec.Struct, frozen=True, tag=True):
    """A word between a board and the fibre; its text form tells nothing of what it carries."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}(...)"


class _Restart(_Word, frozen=True):
    board: str
    epoch: Number


class _Emit(_Word, frozen=True):
    board: str
    epoch: Number
    number: Number
    first_slot: Slot
    states: Codes


class _Ask(_Word, frozen=True):
    board: str
    epoch: Number


class _Fetch(_Word, frozen=True):
    board: str
    epoch: Number
    number: Number


class _Taken(_Word, frozen=True):
    epoch: Number
    count: Number


class _Chunk(_Word, frozen=True):
    epoch: Number
    number: Number
    first_slot: Slot
    slots: Number
    times: bytes
    channels: bytes


class _Lost(_Word, frozen=True):
    epoch: Number


class _Refused(_Word, frozen=True):
    reason: str


_requests = msgspec.msgpack.Decoder(_Restart | _Emit | _Ask | _Fetch)
_answers = msgspec.msgpack.Decoder(_Taken | _Chunk | _Lost | _Refused)


class FibreServer:
    """Carries simulated photons from one simulated board to another.

    Parameters
    ----------
    listen
        Address to wait at.
    world
        Makes the light of an epoch.
    """

    def __init__(self, listen: str, world: Callable[[int], Detector]) -> None:
        self._socket = socket(zmq.ROUTER, listen, None)
        self._world = world
        self._detector: Detector | None = None
        self._epoch = -1
        self._sender = b""
        self._emitted = self._taken = 0
        self._queue: deque[_Chunk] = deque()
        self._last: _Chunk | None = None
        self._waiting: tuple[bytes, _Fetch] | None = None

    def step(self, timeout_ms: int = 200) -> bool:
        """Answer what has come; returns whether something had."""
        if not self._socket.poll(timeout_ms):
            return False
        parts = self._socket.recv_multipart()
        if len(parts) != 2:
            return True
        peer, data = parts
        try:
            word = _requests.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return True
        if not is_simulated(word.board):
            self._send(peer, _Refused("the fibre is for simulated boards, and this one is none"))
        elif isinstance(word, _Restart):
            self._detector, self._epoch, self._sender = self._world(word.epoch), word.epoch, peer
            self._emitted = self._taken = 0
            self._queue.clear()
            self._last = None
        elif word.epoch != self._epoch or self._detector is None:
            if not isinstance(word, _Fetch):
                self._send(peer, _Lost(word.epoch))
        elif isinstance(word, _Emit):
            self._emit(peer, word)
        elif isinstance(word, _Ask):
            self._send(peer, _Taken(self._epoch, self._taken))
        else:
            self._fetch(peer, word)
        return True

    def _emit(self, peer: bytes, word: _Emit) -> None:
        assert self._detector is not None
        states = np.frombuffer(word.states, np.uint8)
        if word.number != self._emitted:
            self._send(peer, _Lost(word.epoch))
            return
        try:
            times, channels = self._detector.detect(states, word.first_slot)
        except ValueError:
            self._send(peer, _Lost(word.epoch))
            return
        self._queue.append(
            _Chunk(
                word.epoch,
                word.number,
                word.first_slot,
                len(states),
                times.astype("<i8").tobytes(),
                channels.tobytes(),
            )
        )
        self._emitted += 1
        if self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            if waiting[1].epoch == self._epoch:
                self._fetch(*waiting)

    def _fetch(self, peer: bytes, word: _Fetch) -> None:
        if self._last is not None and word.number == self._last.number:
            self._send(peer, self._last)
        elif self._queue and word.number == self._queue[0].number:
            self._last = self._queue.popleft()
            self._taken = self._last.number + 1
            self._send(peer, self._last)
            self._send(self._sender, _Taken(self._epoch, self._taken))
        else:
            self._waiting = peer, word

    def _send(self, peer: bytes, word: _Word) -> None:
        try:
            self._socket.send_multipart([peer, msgspec.msgpack.encode(word)], zmq.NOBLOCK)
        except zmq.ZMQError:
            return  # whoever is not there asks again

    def close(self) -> None:
        """Forget everything."""
        self._queue.clear()
        self._last = None
        self._socket.close(0)


class _Client:
    def __init__(self, connect: str, board: str, clock: Callable[[], float]) -> None:
        self._socket = socket(zmq.DEALER, None, connect)
        self._board, self._clock = board, clock
        self._asked = -1e9

    def _say(self, word: _Word) -> None:
        self._asked = self._clock()
        try:
            self._socket.send(msgspec.msgpack.encode(word), zmq.NOBLOCK)
        except zmq.Again:
            raise LightError("the fibre takes nothing") from None

    def _hear(self) -> _Word | None:
        while True:
            try:
                data = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return None
            try:
                word: _Word = _answers.decode(data)
            except (msgspec.MsgspecError, UnicodeDecodeError):
                continue
            if isinstance(word, _Refused):
                raise KeyrailError(f"fibre: {word.reason}")
            return word

    def _due(self) -> bool:
        return self._clock() - self._asked > ASK_AGAIN_S

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


class FibreSender(_Client):
    """The sender's end of a fibre process (`keyrail.light.SenderLight`).

    Parameters
    ----------
    connect
        The fibre's address.
    board
        Name of the board, which must be a simulated one.
    clock
        Monotonic time, s.
    """

    def __init__(
        self, connect: str, board: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(connect, board, clock)
        self._epoch = self._emitted = self._taken = 0

    def restart(self, epoch: int) -> None:
        """Begin anew at slot 0."""
        self._epoch, self._emitted, self._taken = epoch, 0, 0
        self._say(_Restart(self._board, epoch))

    def ready(self) -> bool:
        """Whether more slots may be emitted. LightError if the fibre has begun anew."""
        while (word := self._hear()) is not None:
            if isinstance(word, _Taken) and word.epoch == self._epoch:
                self._taken = max(self._taken, word.count)
            elif isinstance(word, _Lost) and word.epoch == self._epoch:
                raise LightError("the fibre has lost what was under way")
        if self._emitted - self._taken < DEPTH:
            return True
        if self._due():
            self._say(_Ask(self._board, self._epoch))
        return False

    def emit(self, first_slot: int, states: npt.NDArray[np.uint8]) -> None:
        """Send the states of slots in a row."""
        self._say(_Emit(self._board, self._epoch, self._emitted, first_slot, states.tobytes()))
        self._emitted += 1


class FibreReceiver(_Client):
    """The receiver's end of a fibre process (`keyrail.light.ReceiverLight`).

    Parameters
    ----------
    connect, board, clock
        As for `FibreSender`.
    """

    def __init__(
        self, connect: str, board: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(connect, board, clock)
        self._epoch, self._number = -1, 0

    def fetch(self, epoch: int) -> Clicks | None:
        """Next clicks of that epoch."""
        if epoch != self._epoch:
            self._epoch, self._number = epoch, 0
            self._asked = -1e9
        while (word := self._hear()) is not None:
            if isinstance(word, _Chunk) and (word.epoch, word.number) == (epoch, self._number):
                self._number += 1
                # The next one is asked for at once, so that it is under way meanwhile.
                self._say(_Fetch(self._board, epoch, self._number))
                return Clicks(
                    word.first_slot,
                    word.slots,
                    np.frombuffer(word.times, "<i8").astype(np.int64),
                    np.frombuffer(word.channels, np.uint8),
                )
        if self._due():
            self._say(_Fetch(self._board, epoch, self._number))
        return None
