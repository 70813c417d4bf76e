# SPDX-License-Identifier: Apache-2.0
"""Numbered, tagged, repeated frames between two stations, in sessions that either may restart.

A frame is ::

    magic, version, kind, author (1 byte each) | session (8) | number (8) | payload | tag (16)

little-endian. The tag is BLAKE2b (RFC 7693), keyed, 128 bits, over all that is before it. It is
**computational**, and there to turn away forged, altered, replayed and foreign frames early; what
a key rests on is `keyrail.authentication`.

A session begins with fresh nonces of both stations, which its keys and its identifier come from,
so that no frame of another session fits. The receiver's station says ``KNOCK`` while it has none;
the sender's says ``HELLO`` until the receiver's answers ``WELCOME``, which takes the session for
begun with the first frame that fits it: a ``HELLO`` that is replayed ends nothing.

Reliable messages are repeated until they are acknowledged, and given on once, in order. Live ones
are sent once; what comes late or twice is dropped and counted. A station that hears nothing for
`silence_s`, or whose message stays unacknowledged for `give_up_s`, gives the session up.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import msgspec

from keyrail.authentication import Counters, other_role
from keyrail.contract import Role
from keyrail.messages import Index, ProtocolError
from keyrail.randomness import RandomSource
from keyrail.transport import MAXIMUM_FRAME, Peer, Transport

MAGIC, VERSION = 0x4B, 1
HELLO, WELCOME, RELIABLE, LIVE, ACK, KNOCK = 1, 2, 3, 4, 5, 6
_HEAD = struct.Struct("<BBBBQQ")
TAG_BYTES = 16
WINDOW = 1024
"""Reliable frames that may come ahead of a lost one."""
MAXIMUM_PEERS = 8
"""Peers that a sender without a session calls; strangers are turned away by the tags."""

Nonce = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
Setting = str | float | int | bool


class Greeting(msgspec.Struct, frozen=True):
    """What each station says of itself at the begin of a session; all of it is public.

    Attributes
    ----------
    nonce
        Fresh.
    answers
        The other station's nonce; zeros in a ``HELLO``.
    link
        Identifier of the provisioned link.
    settings
        What both stations must have set alike.
    next, end
        Counters of the pool, of the sender's and the receiver's direction.
    """

    nonce: Nonce
    answers: Nonce
    link: Nonce
    settings: dict[str, Setting]
    next: tuple[Index, Index]
    end: tuple[Index, Index]

    def counters(self) -> dict[Role, Counters]:
        """Counters by direction."""
        return {
            role: Counters(self.next[i], self.end[i])
            for i, role in enumerate((Role.SENDER, Role.RECEIVER))
        }


_greetings: msgspec.msgpack.Decoder[Greeting] = msgspec.msgpack.Decoder(Greeting)


@dataclass(frozen=True)
class Timing:
    """When to repeat and when to give up, s."""

    heartbeat_s: float = 0.5
    repeat_s: float = 0.3
    silence_s: float = 10.0
    give_up_s: float = 20.0


@dataclass
class _Keys:
    session: bytes
    ours: bytes
    theirs: bytes
    greeting: Greeting

    @property
    def number(self) -> int:
        return int.from_bytes(self.session[:8], "little")


@dataclass
class _Waiting:
    data: bytes
    first: float
    last: float


class Exchange:
    """One station's end of the classical link.

    Every method may be called from any thread.

    Parameters
    ----------
    role
        This station's role.
    transport
        Carries the frames.
    live_key
        Secret of both stations, from provisioning, 32 bytes.
    link_id
        Public identifier of the link, 16 bytes.
    settings
        What both stations must have set alike.
    counters
        Gives the pool's counters for a greeting.
    randomness
        Source of the nonces.
    timing
        When to repeat and to give up.
    clock
        Monotonic time, s.

    Attributes
    ----------
    generation
        Counts sessions that began; changes also when one is given up.
    session
        Identifier of the session, 16 bytes; None if there is none.
    reason
        Why the last session ended.
    counts
        Frames by what became of them.
    """

    def __init__(
        self,
        role: Role,
        transport: Transport,
        live_key: bytes,
        link_id: bytes,
        settings: dict[str, Setting],
        counters: Callable[[], dict[Role, Counters]],
        randomness: RandomSource,
        timing: Timing | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.role, self._transport = role, transport
        self._live_key, self._link_id, self._settings = live_key, link_id, settings
        self._describe, self._random = counters, randomness
        self._timing, self._clock = timing or Timing(), clock
        self._lock = threading.RLock()
        self.counts: Counter[str] = Counter()
        self.generation = 0
        self.session: bytes | None = None
        self.greeting: Greeting | None = None
        self.reason = "no session yet"
        self._keys: _Keys | None = None
        self._answers: OrderedDict[bytes, tuple[bytes, _Keys]] = OrderedDict()
        self._peer: Peer = None
        self._seen: OrderedDict[Peer, None] = OrderedDict({None: None})
        self._nonce = b""
        self._hello_at = -1e9
        self._reset()

    def _reset(self) -> None:
        self._unacknowledged: OrderedDict[int, _Waiting] = OrderedDict()
        self._ahead: dict[int, bytes] = {}
        self._inbox: deque[bytes] = deque()
        self._live_inbox: deque[bytes] = deque()
        self._next_out = self._next_live = self._next_ack = 0
        self._next_in = 0
        self._last_live = self._last_ack = -1
        self._heard = self._told = self._clock()
        self._must_acknowledge = False

    # -- what the station calls --------------------------------------------------------------

    def send(self, payload: bytes, generation: int) -> None:
        """Send a message that is repeated until it has arrived; lost if that session is over.

        Raises
        ------
        ProtocolError
            If it is larger than a frame may be.
        """
        if len(payload) + _HEAD.size + TAG_BYTES > MAXIMUM_FRAME:
            raise ProtocolError(f"a message of {len(payload)} bytes does not fit a frame")
        with self._lock:
            if self._keys is None or generation != self.generation:
                return
            now = self._clock()
            data = self._frame(RELIABLE, self._next_out, payload)
            self._unacknowledged[self._next_out] = _Waiting(data, now, now)
            self._next_out += 1
            self._give(data)

    def send_live(self, payload: bytes, generation: int) -> None:
        """Send a message once; lost if that session is over."""
        with self._lock:
            if self._keys is None or generation != self.generation:
                return
            self._give(self._frame(LIVE, self._next_live, payload))
            self._next_live += 1

    def receive(self, generation: int) -> tuple[list[bytes], list[bytes]]:
        """Take all live and all reliable messages that have come in that session.

        A live message that was sent before a reliable one is never given later than that.
        """
        with self._lock:
            if generation != self.generation:
                return [], []
            live, messages = list(self._live_inbox), list(self._inbox)
            self._live_inbox.clear()
            self._inbox.clear()
            return live, messages

    def give_up(self, reason: str) -> None:
        """End the session; a new one begins by itself."""
        with self._lock:
            if self._keys is None:
                return
            self.reason = reason
            self.counts["sessions given up"] += 1
            self._keys = self.session = self.greeting = None
            self.generation += 1
            self._nonce, self._hello_at = b"", -1e9
            self._reset()

    def poll(self) -> None:
        """Take in what has come, repeat what is due."""
        with self._lock:
            while (item := self._transport.receive()) is not None:
                self._take(*item)
            self._work()

    @property
    def unacknowledged(self) -> int:
        """Reliable messages that have not arrived yet, as far as is known."""
        with self._lock:
            return len(self._unacknowledged)

    def farewell(self) -> None:
        """Acknowledge some times over, before this station stops."""
        with self._lock:
            for _ in range(3):
                self._acknowledge()

    # -- frames ------------------------------------------------------------------------------

    def _greeting_key(self, author: Role) -> bytes:
        return hashlib.blake2b(
            bytes([author]), key=self._live_key, digest_size=32, person=b"keyrail greeting"
        ).digest()

    def _session_keys(self, sender: bytes, receiver: bytes, greeting: Greeting) -> _Keys:
        def derive(author: Role) -> bytes:
            text = bytes([author]) + sender + receiver + self._link_id
            return hashlib.blake2b(
                text, key=self._live_key, digest_size=32, person=b"keyrail session"
            ).digest()

        name = hashlib.blake2b(
            sender + receiver + self._link_id, digest_size=16, person=b"keyrail name"
        )
        return _Keys(name.digest(), derive(self.role), derive(other_role(self.role)), greeting)

    def _seal(self, key: bytes, kind: int, session: int, number: int, payload: bytes) -> bytes:
        body = _HEAD.pack(MAGIC, VERSION, kind, int(self.role), session, number) + payload
        return body + _tag(key, body)

    def _frame(self, kind: int, number: int, payload: bytes) -> bytes:
        assert self._keys is not None
        return self._seal(self._keys.ours, kind, self._keys.number, number, payload)

    def _give(self, data: bytes) -> None:
        self.counts["sent"] += 1
        self._transport.send(data, self._peer)

    def _greet(self, kind: int, nonce: bytes, answers: bytes, peer: Peer) -> bytes:
        counters = self._describe()
        roles = (Role.SENDER, Role.RECEIVER)
        greeting = Greeting(
            nonce,
            answers,
            self._link_id,
            self._settings,
            (counters[roles[0]].next, counters[roles[1]].next),
            (counters[roles[0]].end, counters[roles[1]].end),
        )
        payload = msgspec.msgpack.encode(greeting)
        data = self._seal(self._greeting_key(self.role), kind, 0, 0, payload)
        self.counts["sent"] += 1
        self._transport.send(data, peer)
        return data

    def _take(self, data: bytes, peer: Peer) -> None:
        self.counts["received"] += 1
        self._seen[peer] = None
        self._seen.move_to_end(peer)
        while len(self._seen) > MAXIMUM_PEERS:
            self._seen.popitem(last=False)
        if len(data) < _HEAD.size + TAG_BYTES or len(data) > MAXIMUM_FRAME:
            self.counts["rejected: malformed"] += 1
            return
        magic, version, kind, author, session, number = _HEAD.unpack_from(data)
        if (magic, version, author) != (MAGIC, VERSION, int(other_role(self.role))):
            self.counts["rejected: malformed"] += 1
            return
        if kind in (HELLO, WELCOME, KNOCK):
            self._take_greeting(kind, data, peer)
        elif kind in (RELIABLE, LIVE, ACK):
            self._take_session(kind, session, number, data, peer)
        else:
            self.counts["rejected: malformed"] += 1

    def _fits(self, key: bytes, data: bytes) -> bool:
        return hmac.compare_digest(_tag(key, data[:-TAG_BYTES]), data[-TAG_BYTES:])

    def _take_greeting(self, kind: int, data: bytes, peer: Peer) -> None:
        if not self._fits(self._greeting_key(other_role(self.role)), data):
            self.counts["rejected: tag"] += 1
            return
        if kind == KNOCK:
            # A station that is there is heard at each heartbeat: this one has begun anew.
            quiet = self._clock() - self._heard
            if self.role is Role.SENDER and quiet > 4 * self._timing.heartbeat_s:
                self.give_up("the other station has begun anew")
            return
        try:
            greeting = _greetings.decode(data[_HEAD.size : -TAG_BYTES])
        except (msgspec.MsgspecError, UnicodeDecodeError):
            self.counts["rejected: malformed"] += 1
            return
        if greeting.link != self._link_id:
            self.counts["rejected: another link"] += 1
            return
        if kind == HELLO and self.role is Role.RECEIVER:
            self._answer(greeting, peer)
        elif kind == WELCOME and self.role is Role.SENDER:
            if self._keys is None and self._nonce and greeting.answers == self._nonce:
                self._begin(self._session_keys(self._nonce, greeting.nonce, greeting), peer)
                self._acknowledge()
            else:
                self.counts["rejected: replayed"] += 1
        else:
            self.counts["rejected: malformed"] += 1

    def _answer(self, hello: Greeting, peer: Peer) -> None:
        """Welcome a sender; a session it asks for begins only once it shows to be there now."""
        if self._keys is not None and self._keys.greeting.nonce == hello.nonce:
            self.counts["rejected: replayed"] += 1
            return
        if hello.nonce in self._answers:
            data, _ = self._answers[hello.nonce]
            self.counts["sent"] += 1
            self._transport.send(data, peer)
            return
        nonce = self._random.bytes(16)
        keys = self._session_keys(hello.nonce, nonce, hello)
        self._answers[hello.nonce] = (self._greet(WELCOME, nonce, hello.nonce, peer), keys)
        while len(self._answers) > 8:  # replayed greetings must not fill the memory
            self._answers.popitem(last=False)

    def _begin(self, keys: _Keys, peer: Peer) -> None:
        self._keys, self.session, self.greeting = keys, keys.session, keys.greeting
        self._peer = peer
        self._answers.clear()
        self.generation += 1
        self.counts["sessions"] += 1
        self.reason = ""
        self._reset()

    def _take_session(self, kind: int, session: int, number: int, data: bytes, peer: Peer) -> None:
        keys = self._keys
        if keys is None or session != keys.number:
            keys = next((k for _, k in self._answers.values() if k.number == session), None)
            if keys is None:
                self.counts["rejected: another session"] += 1
                return
        if not self._fits(keys.theirs, data):
            self.counts["rejected: tag"] += 1
            return
        if keys is not self._keys:
            self._begin(keys, peer)
        payload = data[_HEAD.size : -TAG_BYTES]
        if kind == RELIABLE:
            fresh = self._take_reliable(number, payload)
        elif kind == LIVE:
            fresh = self._take_live(number, payload)
        else:
            fresh = self._take_acknowledgement(number, payload)
        if fresh:
            # Only what is new shows that the peer is there, and where.
            self._heard, self._peer = self._clock(), peer
        else:
            self.counts["rejected: replayed"] += 1

    def _take_reliable(self, number: int, payload: bytes) -> bool:
        self._must_acknowledge = True
        if number < self._next_in or number in self._ahead:
            return False
        if number >= self._next_in + WINDOW:
            return False
        if number > self._next_in:
            self.counts["came ahead"] += 1
        self._ahead[number] = payload
        while self._next_in in self._ahead:
            self._inbox.append(self._ahead.pop(self._next_in))
            self._next_in += 1
        return True

    def _take_live(self, number: int, payload: bytes) -> bool:
        if number <= self._last_live:
            return False
        self.counts["live frames lost"] += number - self._last_live - 1
        self._last_live = number
        self._live_inbox.append(payload)
        return True

    def _take_acknowledgement(self, number: int, payload: bytes) -> bool:
        if number <= self._last_ack:
            return False
        self._last_ack = number
        if len(payload) == 8:
            arrived = int.from_bytes(payload, "little")
            while self._unacknowledged and next(iter(self._unacknowledged)) < arrived:
                self._unacknowledged.popitem(last=False)
        return True

    def _acknowledge(self) -> None:
        if self._keys is None:
            return
        self._give(self._frame(ACK, self._next_ack, self._next_in.to_bytes(8, "little")))
        self._next_ack += 1
        self._told = self._clock()
        self._must_acknowledge = False

    def _work(self) -> None:
        now = self._clock()
        timing = self._timing
        if self._keys is None:
            if now - self._hello_at >= timing.repeat_s:
                self._hello_at = now
                self._call()
            return
        if now - self._heard > timing.silence_s:
            self.give_up(f"nothing heard of the other station for {timing.silence_s:g} s")
            return
        if self._must_acknowledge or now - self._told >= timing.heartbeat_s:
            self._acknowledge()
        for number, waiting in self._unacknowledged.items():
            if now - waiting.first > timing.give_up_s:
                self.give_up(f"message {number} stays lost for {timing.give_up_s:g} s")
                return
            if now - waiting.last >= timing.repeat_s:
                waiting.last = now
                self.counts["repeated"] += 1
                self._give(waiting.data)

    def _call(self) -> None:
        if self.role is Role.RECEIVER:
            self._give(self._seal(self._greeting_key(self.role), KNOCK, 0, 0, b""))
            return
        if not self._nonce:
            self._nonce = self._random.bytes(16)
        for peer in self._seen:
            self._greet(HELLO, self._nonce, bytes(16), peer)


def _tag(key: bytes, body: bytes) -> bytes:
    return hashlib.blake2b(body, key=key, digest_size=TAG_BYTES, person=b"keyrail frame").digest()


class Pump(threading.Thread):
    """Polls an exchange in a thread of its own, so that a long computation is no silence."""

    def __init__(self, exchange: Exchange, interval_s: float = 0.01) -> None:
        super().__init__(name="keyrail link", daemon=True)
        self._exchange, self._interval = exchange, interval_s
        self._stopping = threading.Event()
        self.error: BaseException | None = None

    def run(self) -> None:
        """Poll until stopped; an error ends it and is kept."""
        try:
            while not self._stopping.wait(self._interval):
                self._exchange.poll()
        except BaseException as error:
            self.error = error

    def stop(self) -> None:
        """End the thread."""
        self._stopping.set()
        self.join(5)
