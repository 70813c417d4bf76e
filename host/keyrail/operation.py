# SPDX-License-Identifier: Apache-2.0
"""A station in continuous operation: session after session, block after block, until stopped.

Each station is a set of generators that yield while they wait, advanced by `Runner.step`: one for
training, quantum and basis phase, one for the distillation of the block before. So block N + 1 is
measured while block N is distilled. Sessions that break off and blocks that fail are discarded,
and the next ones begin by themselves; what must stop a station is raised: a pool that is dry,
restored or out of step, settings that differ, repeated forgeries.
"""

from __future__ import annotations

import hashlib
import time
import uuid
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from keyrail import messages, tag_path
from keyrail.acquire import NoPeriodError
from keyrail.authentication import (
    PAD_BITS,
    PAD_BYTES,
    RESERVE,
    Authenticator,
    ForgeryError,
    PhaseTranscript,
    Pool,
    PoolError,
    other_role,
)
from keyrail.board import Board, BoardError
from keyrail.contract import Mode, Role
from keyrail.distil.estimate import DecoySource
from keyrail.errors import KeyrailError
from keyrail.exchange import Exchange, Setting
from keyrail.keystore import Keystore
from keyrail.light import ReceiverLight, SenderLight
from keyrail.link import LinkEnd, receive
from keyrail.messages import Message, ProtocolError, decode, encode
from keyrail.randomness import Label, RandomSource, named_label, security
from keyrail.session import BlockResult, DistilSettings, ReceiverDistiller, SenderDistiller
from keyrail.simulated_generator import StatesOf
from keyrail.source import quantised, random_states, whole_words
from keyrail.station import (
    GeneratorKey,
    ReceiverStation,
    SenderStation,
    Sifted,
    Station,
    compare_tallies,
    tally_report,
)
from keyrail.training import TrainingError, training_states
from keyrail.tuning import Tuning, tune

Bits = npt.NDArray[np.uint8]
Step = Generator[None, None, None]

GUARD_SLOTS = 64
"""Dark slots behind a block: clicks that the light still holds back fall into them."""
CLOSING, ACCEPTING, RELEASING, RESUMING = 1, 2, 3, 4
"""Phases, each with its own tags."""
PADS_PER_BLOCK = {Role.SENDER: 3, Role.RECEIVER: 2}
"""Tags of a block that comes to a key, by direction."""
BLOCKS_AT_ONCE = 2
MAXIMUM_FORGERIES = 3
"""Blocks in a row that fail by a wrong information-theoretic tag before the station stops."""


class OperationError(KeyrailError):
    """The station must stop."""


@dataclass(frozen=True)
class Plan:
    """What both stations have set alike; compared at the begin of each session.

    Parameters
    ----------
    block_slots
        Slots of a block.
    training_slots
        Published slots of a training.
    training_every
        Slots after which the receiver is trained anew, between blocks.
    chunk_slots
        Slots between two announcement frames.
    intensities
        Mean photon numbers of signal and decoy.
    p_z, p_signal
        Probabilities of the sender's key basis and of the signal; realised in units of 2^-16.
    eps_sec, eps_cor
        Secrecy and correctness of a key.
    authentication_share
        Share of a key that may go back into the pools.
    """

    block_slots: int = 20_000_000
    training_slots: int = 1 << 20
    training_every: int = 100_000_000
    chunk_slots: int = 1 << 15
    intensities: tuple[float, float] = (0.6, 0.2)
    p_z: float = 0.7
    p_signal: float = 0.3
    eps_sec: float = 1e-10
    eps_cor: float = 1e-15
    authentication_share: float = 0.05

    def shared(self) -> dict[str, Setting]:
        """Every setting by name."""
        settings = {name: getattr(self, name) for name in self.__dataclass_fields__}
        signal, decoy = settings.pop("intensities")
        return {**settings, "signal": signal, "decoy": decoy}

    @property
    def source(self) -> DecoySource:
        """Intensities and the probabilities that are really drawn."""
        signal = quantised(self.p_signal)
        return DecoySource(self.intensities, (signal, 1 - signal))


@dataclass
class BlockReport:
    """What became of a block; public counts only.

    Attributes
    ----------
    block
        Number in its session.
    slots, detections, frames_lost
        Slots; detections on both stations' list; live frames dropped on both sides.
    result
        Of the distillation; its key is wiped once it is stored.
    secret_bits
        Bits of key stored for use, without those that went into the pools.
    reason
        Why there is no key, else empty.
    security
        What the key may be called by the randomness it comes from.
    """

    block: int
    slots: int = 0
    detections: int = 0
    frames_lost: int = 0
    result: BlockResult | None = None
    secret_bits: int = 0
    reason: str = ""
    epsilon: float = 0.0
    security: str = ""

    def text(self) -> str:
        """One line."""
        head = f"block {self.block}: {self.detections:,} detections in {self.slots:,} slots"
        if self.frames_lost:
            head += f", {self.frames_lost} frames lost"
        result = self.result
        if result is not None and result.qber_x is not None:
            head += f", QBER X {result.qber_x:.2%}"
        if result is not None and result.qber_z is not None:
            head += f", Z {result.qber_z:.2%}"
        if self.reason:
            return f"{head}; no key: {self.reason}"
        return f"{head}; {self.secret_bits:,} secret bits (estimate), {self.security}"


class BlockChannel(LinkEnd):
    """A block's messages at one station, with the transcript of its present phase.

    Parameters
    ----------
    exchange, authenticator
        Carry the messages; make and check the tags.
    block
        Number of the block; 0 is for what belongs to none.
    """

    authenticated = True

    def __init__(self, exchange: Exchange, authenticator: Authenticator, block: int) -> None:
        super().__init__(exchange.role.name.lower(), None)
        self._exchange, self._authenticator = exchange, authenticator
        self._generation = exchange.generation
        self.session = exchange.session or b""
        self.role, self.block = exchange.role, block
        self.phase, self.phase_transcript = CLOSING, PhaseTranscript()
        self.ended = ""
        self.epsilon = 0.0
        self.live: deque[messages.Announcements] = deque()
        self._messages: deque[tuple[Message, bytes]] = deque()

    def _give(self, data: bytes) -> None:
        self.bytes_sent += len(data)
        self._exchange.send(self.block.to_bytes(4, "little") + data, self._generation)

    def send(self, message: Message) -> None:
        """Send a message: announcements once, everything else until it arrives."""
        data = encode(message)
        if isinstance(message, messages.Announcements):
            self.bytes_sent += len(data)
            self._exchange.send_live(self.block.to_bytes(4, "little") + data, self._generation)
            return
        self.phase_transcript.add(self.role, data)
        self._give(data)

    def put(self, message: Message, data: bytes) -> None:
        """Take in a message of the other station."""
        if isinstance(message, messages.Announcements):
            self.live.append(message)
        elif isinstance(message, messages.Discard):
            self.ended = self.ended or f"the other station gave the block up: {message.reason}"
        else:
            self._messages.append((message, data))

    def require_open(self) -> None:
        """Raise `ProtocolError` if the block was given up."""
        if self.ended:
            raise ProtocolError(self.ended)

    def receive(self) -> Message:
        """Take the next message; ProtocolError if the block was given up."""
        self.require_open()
        if not self._messages:
            raise ProtocolError(f"{self.name}: no message has come")
        message, data = self._messages.popleft()
        if not isinstance(message, messages.PhaseTag):
            self.phase_transcript.add(other_role(self.role), data)
        return message

    @property
    def pending(self) -> int:
        """Messages that wait to be received; not 0 if the block was given up."""
        return len(self._messages) or (1 if self.ended else 0)

    def add_frames(self, frames: list[messages.Announcements]) -> None:
        """Put the live frames that are on both stations' list into the transcript."""
        for frame in frames:
            self.phase_transcript.add(Role.RECEIVER, encode(frame))

    def send_tag(self) -> None:
        """Authenticate the phase so far to the other station."""
        index, tag = self._authenticator.tag(
            self.session, self.block, self.phase, self.phase_transcript
        )
        self._give(encode(messages.PhaseTag(self.phase, index, tag)))

    def check_tag(self) -> Step:
        """Wait for the other station's tag of the phase so far, and check it."""
        message = yield from receive(self, messages.PhaseTag)
        if message.phase != self.phase:
            raise ProtocolError(f"a tag of phase {message.phase} in phase {self.phase}")
        self.epsilon += self._authenticator.check(
            self.session, self.block, self.phase, self.phase_transcript, message.index, message.tag
        )

    def next_phase(self) -> None:
        """Begin the next phase with an empty transcript."""
        self.phase += 1
        self.phase_transcript = PhaseTranscript()


class Runner(ABC):
    """What both stations' operation shares.

    Parameters
    ----------
    board
        The station's board, open.
    exchange
        Its end of the classical link.
    pool, keystore
        Its one-time key, and where keys go.
    sources
        Gives a new source of randomness for a purpose; asked once for each.
    plan
        Settings shared with the other station.
    say
        Takes one line of text for the operator.
    polled
        The exchange is polled elsewhere (`keyrail.exchange.Pump`).
    clock
        Monotonic time, s.
    stall_s
        The session is given up if nothing goes on for so long while something is under way.
    blocks
        Blocks to make before it ends; None for no end.

    Attributes
    ----------
    reports
        Blocks that have ended.
    totals
        Counts since the start: blocks, keys, bits, what was discarded.
    moved
        The last step did something.
    """

    role: Role

    def __init__(
        self,
        board: Board,
        exchange: Exchange,
        pool: Pool,
        keystore: Keystore,
        sources: Callable[[str], RandomSource],
        plan: Plan,
        say: Callable[[str], None] = lambda text: None,
        polled: bool = False,
        clock: Callable[[], float] = time.monotonic,
        stall_s: float = 120.0,
        blocks: int | None = None,
    ) -> None:
        self.board, self.exchange, self.pool, self.keystore = board, exchange, pool, keystore
        self.plan, self._say, self._polled = plan, say, polled
        self._make_source, self._made = sources, dict[str, RandomSource]()
        self.authenticator = Authenticator(pool)
        self.settings = DistilSettings(plan.source, plan.eps_sec, plan.eps_cor)
        self.reports: deque[BlockReport] = deque(maxlen=1000)
        self.totals: Counter[str] = Counter()
        self.moved = False
        self._clock, self._stall, self._moved_at = clock, stall_s, clock()
        self._blocks = blocks
        self._generation = exchange.generation
        self._channels: dict[int, BlockChannel] = {}
        self._control = BlockChannel(exchange, self.authenticator, 0)
        self._main: Step | None = None
        self._distilling: Step | None = None
        self._stations: dict[int, Station] = {}
        self._last_block = 0
        self._forgeries = 0

    def sources(self, purpose: str) -> RandomSource:
        """The source of randomness for a purpose, always the same object."""
        if purpose not in self._made:
            self._made[purpose] = self._make_source(purpose)
        return self._made[purpose]

    # -- steps -------------------------------------------------------------------------------

    def step(self) -> bool:
        """Advance everything by one step.

        Returns
        -------
        bool
            Whether anything moved; if not, the caller may sleep.

        Raises
        ------
        OperationError, PoolError, BoardError
            If the station must stop.
        """
        self.moved = False
        if not self._polled:
            self.exchange.poll()
        if self.exchange.generation != self._generation:
            self._new_session()
        self._dispatch()
        try:
            self._main = self._advance(self._main)
            self._distilling = self._advance(self._distilling)
        except (PoolError, OperationError) as error:
            self._tell(str(error))
            raise
        except ProtocolError as error:
            # Outside any block: the stations are out of step.
            self.exchange.give_up(f"out of step: {error}")
        if self.moved or not self._under_way:
            self._moved_at = self._clock()
        elif self._clock() - self._moved_at > self._stall:
            self._moved_at = self._clock()
            self.exchange.give_up(f"nothing has gone on for {self._stall:g} s")
        return self.moved

    @property
    def finished(self) -> bool:
        """All blocks asked for have ended, and what was said about them has arrived."""
        return (
            self._blocks is not None
            and self.totals["blocks"] >= self._blocks
            and self._distilling is None
            and not self.exchange.unacknowledged
        )

    @property
    def _under_way(self) -> bool:
        return self._main is not None or self._distilling is not None

    def _tell(self, reason: str) -> None:
        """Say to the other station that this one stops, as far as it hears."""
        self._control.send(messages.Discard(reason[:500]))
        self.exchange.farewell()

    def _advance(self, part: Step | None) -> Step | None:
        if part is None:
            return None
        try:
            next(part)
        except StopIteration:
            self.moved = True
            return None
        return part

    def _new_session(self) -> None:
        self.moved = True
        self._generation = self.exchange.generation
        for part in (self._main, self._distilling):
            if part is not None:
                part.close()
        open_blocks = sorted(self._channels)
        self._main = self._distilling = None
        for station in self._stations.values():
            station.discard()
        self._stations, self._channels, self._last_block = {}, {}, 0
        for block in open_blocks:
            self._end(BlockReport(block, reason=self.exchange.reason or "the session broke off"))
        self._control = BlockChannel(self.exchange, self.authenticator, 0)
        greeting = self.exchange.greeting
        if self.exchange.session is None or greeting is None:
            self._say(f"no session: {self.exchange.reason}")
            return
        theirs, ours = greeting.settings, self.plan.shared()
        different = [
            f"{name} is {ours.get(name, 'not set')} here and {theirs.get(name, 'not set')} there"
            for name in sorted({*ours, *theirs})
            if ours.get(name) != theirs.get(name)
        ]
        if different:
            raise OperationError("the stations' settings differ: " + "; ".join(different))
        self.pool.agree(greeting.counters())
        if not self.totals["sessions"]:
            # A board outlives the process that drove it, with the block that was open then.
            self._wipe()
        self.totals["sessions"] += 1
        self._say(f"session {self.exchange.session.hex()[:8]} begins; {self.budget()}")
        self._main = self._operate()

    def budget(self) -> str:
        """What the pools hold, in one line."""
        left = {role: self.pool.left(role) for role in Role}
        spent, made = self.authenticator.spent, self.totals["pads refilled"]
        return (
            f"one-time pads left: {left[Role.SENDER]} sender, {left[Role.RECEIVER]} receiver "
            f"({spent} spent here, {made} refilled)"
        )

    def _dispatch(self) -> None:
        live, reliable = self.exchange.receive(self._generation)
        for payload in [*live, *reliable]:
            self.moved = True
            try:
                if len(payload) < 4:
                    raise ProtocolError(f"a message of {len(payload)} bytes")
                message = decode(payload[4:])
            except ProtocolError as error:
                # Its tag was right: the other station is out of order.
                self.exchange.give_up(f"malformed message: {error}")
                return
            self._take(int.from_bytes(payload[:4], "little"), message, payload[4:])

    def _take(self, block: int, message: Message, data: bytes) -> None:
        if block == 0:
            if isinstance(message, messages.Discard):
                self._say(f"the other station stops: {message.reason}")
            else:
                self._take_control(message, data)
            return
        channel = self._channels.get(block)
        if channel is None:
            channel = self._opened(block, message)
        if channel is None:
            self.totals["messages of blocks that have ended"] += 1
        else:
            channel.put(message, data)

    def _take_control(self, message: Message, data: bytes) -> None:
        self._control.put(message, data)

    def _opened(self, block: int, message: Message) -> BlockChannel | None:
        """Channel of a block that the other station opens; None if it may not."""
        return None

    @abstractmethod
    def _operate(self) -> Step:
        """What the station does in a session."""

    def _new_channel(self, block: int) -> BlockChannel:
        self._channels[block] = BlockChannel(self.exchange, self.authenticator, block)
        self._last_block = block
        return self._channels[block]

    # -- blocks ------------------------------------------------------------------------------

    def _guarded(self, channel: BlockChannel, part: Step) -> Generator[None, None, bool]:
        """Run a part of a block; what goes wrong discards the block, and it alone."""
        try:
            yield from part
        except ForgeryError as error:
            self.totals["forgeries"] += 1
            self._forgeries += 1
            self._give_up(channel, str(error))
            if self._forgeries >= MAXIMUM_FORGERIES:
                raise OperationError(
                    f"{self._forgeries} blocks in a row failed by a wrong tag: {error}"
                ) from None
            return False
        except BoardError as error:
            # Its counters are not public: the other station hears no more than that it failed.
            self._give_up(channel, str(error), "its board failed")
            return False
        except ProtocolError as error:
            self._give_up(channel, str(error))
            return False
        return True

    def _give_up(self, channel: BlockChannel, reason: str, told: str = "") -> None:
        if not channel.ended:
            channel.send(messages.Discard((told or reason)[:500]))
        station = self._stations.pop(channel.block, None)
        if station is not None:
            station.discard()
        self._end(BlockReport(channel.block, reason=reason))

    def _end(self, report: BlockReport) -> None:
        self._channels.pop(report.block, None)
        self._stations.pop(report.block, None)
        self.reports.append(report)
        self.totals["blocks"] += 1
        if report.reason:
            self.totals["blocks without a key"] += 1
        else:
            self._forgeries = 0
            self.totals["keys"] += 1
            self.totals["secret bits"] += report.secret_bits
        self._say(report.text())

    def _require_pads(self) -> None:
        self.pool.require(
            {role: RESERVE + BLOCKS_AT_ONCE * pads for role, pads in PADS_PER_BLOCK.items()}
        )

    def _hand_over(self, channel: BlockChannel, report: BlockReport, part: Step) -> Step:
        """Let a sifted block be distilled once the block before has ended."""
        station = self._stations.pop(channel.block)
        station.discard()
        self.totals["blocks sifted"] += 1
        while self._distilling is not None:
            channel.require_open()
            yield
        self._distilling = self._distilled(channel, report, part)

    def _distilled(self, channel: BlockChannel, report: BlockReport, part: Step) -> Step:
        ended = yield from self._guarded(channel, part)
        if ended:
            self._end(report)

    def _run(
        self, distiller: SenderDistiller | ReceiverDistiller, sifted: Sifted, report: BlockReport
    ) -> Step:
        """Distil a block to its end; whatever that is, sifted and secret key are wiped."""
        try:
            yield from distiller.run()
        finally:
            sifted.key[:] = 0
            result = distiller.result
            report.result, report.reason = result, result.reason
            if result.secret is not None:
                result.secret[:] = 0
                result.secret = None

    def _key_id(self, channel: BlockChannel) -> str:
        text = channel.session + channel.block.to_bytes(8, "little")
        digest = hashlib.blake2b(text, digest_size=16, person=b"keyrail key").digest()
        return str(uuid.UUID(bytes=digest, version=4))

    def _ends(self) -> tuple[int, int]:
        counters = self.pool.counters
        return counters[Role.SENDER].end, counters[Role.RECEIVER].end

    def _ledger(
        self,
        channel: BlockChannel,
        report: BlockReport,
        result: BlockResult,
        refill: int,
        theirs: messages.Accept,
    ) -> dict[str, Any]:
        estimate = result.estimate
        assert estimate is not None
        counts = estimate.counts
        labels, other = self._labels(result), theirs.randomness
        report.epsilon = channel.epsilon
        # Both stations' uses count; one that names none vouches for nothing.
        report.security = security(
            [*labels.values(), *other.values(), self.pool.label] if other else []
        )
        return {
            "session": channel.session.hex(),
            "block": channel.block,
            "slots": report.slots,
            "detections": report.detections,
            "frames_lost": report.frames_lost,
            "counts": {
                "n_z": counts.n_z, "m_z": counts.m_z, "n_x": counts.n_x, "m_x": counts.m_x
            },
            "leak": result.leak,
            "secret_bits_before_refill": estimate.secret_bits,
            "refill_bits": refill * PAD_BITS,
            "authentication_bits_spent": sum(PADS_PER_BLOCK.values()) * PAD_BITS,
            "eps_sec": estimate.eps_sec,
            "eps_cor": estimate.eps_cor,
            "eps_authentication": channel.epsilon,
            "length_is": estimate.label,
            "for": "demonstrations: no proof is applied yet",
            "randomness": labels,
            "randomness_of_the_other": other,
            "pool_randomness": self.pool.label,
            "security": report.security,
        }  # fmt: skip

    def _labels(self, result: BlockResult) -> dict[str, Label]:
        """Label of each use of randomness that a block's key rests on at this station."""
        return {**result.randomness, **self._uses()}

    def _uses(self) -> dict[str, Label]:
        """Label of each use of randomness so far, by its name."""
        return {purpose: source.label for purpose, source in self._made.items()}

    def randomness(self) -> dict[str, Label]:
        """Label of each use of randomness so far, the pools' first key among them."""
        return {**self._uses(), "authentication": named_label(self.pool.label)}

    def _cut(self, secret: Bits, refill: tuple[int, int]) -> tuple[dict[Role, bytes], Bits]:
        """The pads of both directions, and what is left of a key."""
        packed = np.packbits(secret[: sum(refill) * PAD_BITS], bitorder="little").tobytes()
        cut = refill[0] * PAD_BYTES
        pads = {Role.SENDER: packed[:cut], Role.RECEIVER: packed[cut:]}
        return pads, secret[sum(refill) * PAD_BITS :]

    def _refill(self, pads: dict[Role, bytes]) -> None:
        self.pool.refill(pads)
        self.totals["pads refilled"] += sum(len(part) for part in pads.values()) // PAD_BYTES

    def close(self, reason: str = "the station stops") -> None:
        """Give open blocks up, say so, and wipe the board."""
        for part in (self._main, self._distilling):
            if part is not None:
                part.close()
        for channel in list(self._channels.values()):
            self._give_up(channel, reason)
        self._tell(reason)
        self.exchange.poll()
        self._wipe()

    def _on_host(self, detections_per_slot: float) -> bool:
        """Whether a block's detections are too many for the board's block memory."""
        memory = 1 << self.board.read_fields("configuration")["block_memory_log2"]
        return 1.1 * self.plan.block_slots * detections_per_slot > memory

    def _wipe(self) -> None:
        self.board.write("wipe", 1)
        self.board.run()


class SenderOperation(Runner):
    """The sender's station in operation, wherever its light is."""

    role = Role.SENDER

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._epoch = 0
        # Detections a slot that the receiver found in the last training.
        self._share = 1.0

    @property
    def finished(self) -> bool:
        """All blocks asked for have ended, and what was said about them has arrived."""
        return super().finished and not self._channels

    def _take_control(self, message: Message, data: bytes) -> None:
        if not isinstance(message, messages.Resume):
            super()._take_control(message, data)
            return
        # The receiver may not know whether a key of an earlier session was released.
        released = message.key_id in self.keystore.released()
        answer = messages.ResumeAnswer(message.key_id, released)
        channel = BlockChannel(self.exchange, self.authenticator, 0)
        channel.phase = RESUMING
        channel.phase_transcript.add(Role.RECEIVER, data)
        channel.send(answer)
        channel.send_tag()

    def _uses(self) -> dict[str, Label]:
        return {**super()._uses(), **self.board.randomness()}

    def _goes_on(self) -> bool:
        """Whether a further block is to be opened."""
        return self._blocks is None or self.totals["blocks"] + len(self._channels) < self._blocks

    def _begin(self) -> Step:
        """Wait until the receiver is ready in a new session."""
        self._epoch = int.from_bytes((self.exchange.session or bytes(4))[:4], "little")
        yield from receive(self._control, messages.Ready)

    def _enter(self, channel: BlockChannel, station: SenderStation) -> None:
        self._stations[channel.block] = station
        self.board.write("mode", Mode.KEY)
        self.board.run()

    def _draw_states(self, slots: int) -> npt.NDArray[np.uint8]:
        """Secret states of so many slots of a block."""
        plan = self.plan
        drawn = self.sources("states").bytes
        return random_states(drawn, slots, plan.p_z, plan.source.probabilities[0])

    @abstractmethod
    def _quantum(self, channel: BlockChannel) -> Generator[None, None, SenderStation]:
        """Open a block and send its states; returns once they have left."""

    def _block(self, channel: BlockChannel) -> Step:
        board, plan = self.board, self.plan
        station = yield from self._quantum(channel)
        while not channel.pending:
            self._look_up(channel, station)
            yield
        self._look_up(channel, station)
        station.agree_close(channel.expect(messages.Close))
        channel.add_frames(station.kept_frames())
        channel.send_tag()
        yield from channel.check_tag()
        channel.next_phase()
        bases = yield from receive(channel, messages.Bases)
        sifted = station.take_bases(bases)
        report = BlockReport(
            channel.block, plan.block_slots, board.read("block_count"), station.lost
        )
        channel.send(tally_report(board))
        theirs = yield from receive(channel, messages.TallyReport)
        compare_tallies(tally_report(board), theirs)
        yield from self._hand_over(channel, report, self._distil(channel, station, sifted, report))

    def _look_up(self, channel: BlockChannel, station: SenderStation) -> None:
        while channel.live:
            station.take(channel.live.popleft())
            self.moved = True

    def _distil(
        self, channel: BlockChannel, station: SenderStation, sifted: Sifted, report: BlockReport
    ) -> Step:
        def closing(result: BlockResult, secret: Bits) -> Generator[None, None, bool]:
            wanted = self.pool.refill_wanted(len(secret), self.plan.authentication_share)
            refill = wanted[Role.SENDER], wanted[Role.RECEIVER]
            ends = self._ends()
            channel.send(messages.Accept(True, ends, refill, self._labels(result)))
            channel.send_tag()
            other = yield from receive(channel, messages.Accept)
            yield from channel.check_tag()
            if (other.pool_ends, other.refill) != (ends, refill):
                raise ProtocolError("the receiver accepts another refill of the pools")
            if not other.accepted:
                return False
            # The receiver has the key on disk: from here on it is this station's word that counts.
            pads, rest = self._cut(secret, refill)
            key_id = self._key_id(channel)
            ledger = self._ledger(channel, report, result, sum(refill), other)
            self.keystore.store(key_id, rest, ledger, released=True)
            report.secret_bits = len(rest)
            self._refill(pads)
            channel.next_phase()
            channel.send(messages.Released(key_id))
            channel.send_tag()
            return True

        distiller = SenderDistiller(
            channel, sifted.key, sifted.key_intensity, sifted.test_intensity,
            self.settings, self.sources, station.hash_block, closing,
        )  # fmt: skip
        yield from self._run(distiller, sifted, report)


class SenderRunner(SenderOperation):
    """The sender's station in operation, with simulated light.

    Parameters
    ----------
    light
        Where its simulated board's light goes.
    horizon_slots
        Slots that the board remembers: light waits until they have been announced.
    patience_s
        How long the light waits for announcements; then their frames are taken for lost.
    generates
        The board makes the states: gives a key for it and, for the light, the states that it
        makes, from a source and the probabilities of Z and signal. None: the host draws them.
    """

    def __init__(
        self,
        *arguments: Any,
        light: SenderLight,
        horizon_slots: int = 1 << 17,
        patience_s: float = 2.0,
        generates: Callable[[RandomSource, float, float], tuple[GeneratorKey, StatesOf]]
        | None = None,
        **options: Any,
    ) -> None:
        super().__init__(*arguments, **options)
        self._light, self._horizon, self._patience = light, horizon_slots, patience_s
        self._generates = generates
        self._slot = 0

    def _operate(self) -> Step:
        yield from self._begin()
        self._begin_light()
        trained_until = 0
        failures = 0
        while self._goes_on():
            self._require_pads()
            if self._slot >= trained_until or failures:
                try:
                    yield from self._train()
                except ProtocolError as error:
                    failures += 1
                    self._say(f"training failed: {error}")
                    self._begin_light()
                    continue
                trained_until, failures = self._slot + self.plan.training_every, 0
            channel = self._new_channel(self._last_block + 1)
            done = yield from self._guarded(channel, self._block(channel))
            failures += not done

    def _begin_light(self) -> None:
        self._epoch = (self._epoch + 1) % (1 << 32)
        self._light.restart(self._epoch)
        self._slot = 0

    def _train(self) -> Step:
        plan = self.plan
        first = self._slot
        # Blocks begin with a whole word of states.
        self._slot += whole_words(plan.training_slots)
        self._control.send(messages.Train(self._epoch, first, plan.training_slots))
        pattern = training_states(plan.training_slots)
        for begin in range(0, plan.training_slots, plan.chunk_slots):
            while not self._light.ready():
                yield
            self._light.emit(first + begin, pattern[begin : begin + plan.chunk_slots])
            self.moved = True
            yield
        trained = yield from receive(self._control, messages.Trained)
        if not trained.found:
            raise ProtocolError(trained.reason)
        self._share = trained.detections_per_slot

    def _quantum(self, channel: BlockChannel) -> Generator[None, None, SenderStation]:
        plan = self.plan
        made, states_of = None, None
        if self._generates is None:
            label = self.sources("states").label
        else:
            # A new key for each block; the wipe ends the old one, and its record of slots made.
            self._wipe()
            source = self.sources("generator key")
            made, states_of = self._generates(source, plan.p_z, plan.p_signal)
            label = source.label
        station = SenderStation(self.board, channel, label, made)
        self._enter(channel, station)
        first, last = self._slot, self._slot + plan.block_slots - 1
        station.open(channel.block, first, last, self._on_host(self._share))
        yield from receive(channel, messages.BlockOpened)
        yield from self._emit(channel, station, first, last, states_of)
        return station

    def _emit(
        self,
        channel: BlockChannel,
        station: SenderStation,
        first: int,
        last: int,
        states_of: StatesOf | None,
    ) -> Step:
        plan = self.plan
        while self._slot <= last:
            begin, slots = self._slot, min(plan.chunk_slots, last + 1 - self._slot)
            guard = 0
            if begin + slots > last:
                guard = whole_words(slots + GUARD_SLOTS) - slots
            waits_since = self._clock()
            while True:
                channel.require_open()
                self._look_up(channel, station)
                ahead = begin + slots + guard - station.announced_until
                late = self._clock() - waits_since > self._patience
                if self._light.ready() and (ahead <= self._horizon or late):
                    break
                yield
            emitted = np.zeros(slots + guard, np.uint8)
            if states_of is not None:
                emitted[:slots] = states_of(begin, slots)
            else:
                emitted[:slots] = self._draw_states(slots)
                # The board's words end with the block; only the light goes on for the guard.
                station.emit(emitted[: whole_words(slots)])
            self._slot += slots + guard
            self._light.emit(begin, emitted)
            self.moved = True
            yield


class ReceiverOperation(Runner):
    """The receiver's station in operation, wherever its light is."""

    role = Role.RECEIVER

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._opening: deque[int] = deque()
        self._training = False
        self._tuning: Tuning | None = None
        self._epoch = 0

    def _opened(self, block: int, message: Message) -> BlockChannel | None:
        if not isinstance(message, messages.OpenBlock) or block <= self._last_block:
            return None
        self._opening.append(block)
        return self._new_channel(block)

    def _operate(self) -> Step:
        self._opening.clear()
        self._tuning = None
        yield from self._resume()
        self._control.send(messages.Ready())
        while True:
            while not self._control.pending and not self._opening:
                yield
            if self._control.pending:
                yield from self._train(self._control.expect(messages.Train))
            else:
                channel = self._channels[self._opening.popleft()]
                yield from self._guarded(channel, self._block(channel))

    @property
    def _under_way(self) -> bool:
        # Waiting for the sender to train or to open a block is no stall of this station.
        return bool(self._channels) or self._training

    def _resume(self) -> Step:
        """Settle what an earlier session left open: the sender knows whether it released."""
        for key_id in self.keystore.pending():
            channel = self._control
            channel.phase, channel.phase_transcript = RESUMING, PhaseTranscript()
            channel.send(messages.Resume(key_id))
            answer = yield from receive(channel, messages.ResumeAnswer)
            if answer.key_id != key_id:
                raise ProtocolError("an answer about another key")
            yield from channel.check_tag()
            if answer.released:
                self.keystore.release(key_id)
                self._say(f"key {key_id}: the sender has released it, and so does this station")
            else:
                self.keystore.discard(key_id)
                self._say(f"key {key_id}: the sender never released it; discarded")
            self.totals["keys resumed" if answer.released else "keys discarded"] += 1

    def _train(self, train: messages.Train) -> Step:
        if train.slots != self.plan.training_slots:
            raise ProtocolError(f"{train.slots} training slots were not agreed")
        self._training = True
        try:
            found = yield from self._trained(train)
        except (TrainingError, NoPeriodError) as error:
            self._say(f"training failed: {error}")
            self._control.send(messages.Trained(False, str(error)[:500], epoch=train.epoch))
        else:
            if found is not None:
                self._tuning = found
                share = min(1.0, found.detections_per_slot)
                self._control.send(messages.Trained(True, "", share, train.epoch))
        finally:
            self._training = False

    @abstractmethod
    def _trained(self, train: messages.Train) -> Generator[None, None, Tuning | None]:
        """Learn the slots from published ones; None if the sender broke off to begin anew.

        Raises
        ------
        TrainingError, NoPeriodError
            If the slots are not found.
        """

    def _block(self, channel: BlockChannel) -> Step:
        board, tuning = self.board, self._tuning
        self._require_pads()
        block = channel.expect(messages.OpenBlock)
        if tuning is None or block.block_id != channel.block:
            raise ProtocolError("a block without training, or with another number")
        if block.last_slot - block.first_slot + 1 != self.plan.block_slots:
            raise ProtocolError(f"slots {block.first_slot} to {block.last_slot} were not agreed")
        station = ReceiverStation(board, channel, self.sources("coins"))
        self._stations[channel.block] = station
        station.enter_key_mode()
        tuning.apply(board)
        station.take_open(block, self._on_host(tuning.detections_per_slot))
        channel.send(messages.BlockOpened(block.block_id))
        yield from self._measure(channel, station, tuning, block)
        station.announce_close()
        word = yield from receive(channel, messages.CloseAgreed)
        station.take_close(word)
        channel.add_frames(station.kept_frames())
        yield from channel.check_tag()
        channel.send_tag()
        channel.next_phase()
        # Only now, with the list of detections agreed and authenticated, do bases leave.
        station.announce_bases()
        replies = yield from receive(channel, messages.Replies)
        sifted = station.take_replies(replies)
        report = BlockReport(channel.block, self.plan.block_slots, word.count, station.lost)
        theirs = yield from receive(channel, messages.TallyReport)
        channel.send(tally_report(board))
        compare_tallies(tally_report(board), theirs)
        yield from self._hand_over(channel, report, self._distil(channel, station, sifted, report))

    @abstractmethod
    def _measure(
        self,
        channel: BlockChannel,
        station: ReceiverStation,
        tuning: Tuning,
        block: messages.OpenBlock,
    ) -> Step:
        """Announce the detections of an open block; returns once it is over."""

    def _distil(
        self, channel: BlockChannel, station: ReceiverStation, sifted: Sifted, report: BlockReport
    ) -> Step:
        def closing(result: BlockResult, secret: Bits) -> Generator[None, None, bool]:
            accept = yield from receive(channel, messages.Accept)
            yield from channel.check_tag()
            if not accept.accepted:
                return False
            if accept.pool_ends != self._ends():
                raise ProtocolError(
                    f"the pools are out of step: {accept.pool_ends} there, {self._ends()} here"
                )
            if sum(accept.refill) * PAD_BITS > self.plan.authentication_share * len(secret):
                raise ProtocolError("the sender would put too much of the key into the pools")
            pads, rest = self._cut(secret, accept.refill)
            key_id = self._key_id(channel)
            ledger = self._ledger(channel, report, result, sum(accept.refill), accept)
            self.keystore.store(key_id, rest, ledger, released=False)
            labels = self._labels(result)
            channel.send(messages.Accept(True, accept.pool_ends, accept.refill, labels))
            channel.send_tag()
            channel.next_phase()
            released = yield from receive(channel, messages.Released)
            yield from channel.check_tag()
            if released.key_id != key_id:
                raise ProtocolError("the sender released another key")
            self.keystore.release(key_id)
            report.secret_bits = len(rest)
            self._refill(pads)
            return True

        distiller = ReceiverDistiller(
            channel, sifted.key, sifted.test_error,
            self.settings, self.sources, station.hash_block, closing,
        )  # fmt: skip
        yield from self._run(distiller, sifted, report)


class ReceiverRunner(ReceiverOperation):
    """The receiver's station in operation, with simulated light.

    Parameters
    ----------
    light
        Where its simulated board's clicks come from.
    """

    def __init__(self, *arguments: Any, light: ReceiverLight, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._light = light

    def _trained(self, train: messages.Train) -> Generator[None, None, Tuning | None]:
        self._epoch = train.epoch
        parts = []
        slots = 0
        while slots < train.slots:
            if self._control.pending:
                return None  # the sender's light broke off, and training begins anew
            clicks = self._light.fetch(train.epoch)
            if clicks is None:
                yield
                continue
            self.moved = True
            if clicks.first_slot >= train.first_slot:
                parts.append(clicks)
                slots += clicks.slots
        times = np.concatenate([part.times for part in parts])
        channels = np.concatenate([part.channels for part in parts])
        pattern = training_states(train.slots)
        return tune(self.board, times, channels, pattern, train.first_slot)

    def _measure(
        self,
        channel: BlockChannel,
        station: ReceiverStation,
        tuning: Tuning,
        block: messages.OpenBlock,
    ) -> Step:
        last = block.last_slot
        before = self.board.ledger("squash")["out"]
        done = False
        while not done:
            channel.require_open()
            clicks = self._light.fetch(self._epoch)
            if clicks is None:
                yield
                continue
            self.moved = True
            if clicks.end_slot <= block.first_slot:
                continue
            done = clicks.end_slot > last + GUARD_SLOTS // 2
            # A time record behind the block shows that it is over.
            until = tuning.slot_start(last + 3 if done else clicks.end_slot - 1)
            until = max(until, int(clicks.times.max(initial=0)))
            until_slot = min(last + 1, clicks.end_slot - 2)
            station.measure(clicks.times, clicks.channels, until, until_slot)
            tuning.check_lock(self.board)
            if done:
                tag_path.send_frame(self.board, until + 1)
                self.board.run()
                tag_path.check_ledgers(self.board, tag_path.CHAIN, before_block=before)
            yield
