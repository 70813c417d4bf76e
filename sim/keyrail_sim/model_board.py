# SPDX-License-Identifier: Apache-2.0
"""The numpy twins of both stations behind the interface of a board: the same bytes, faster."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from keyrail.board import Board, BoardError
from keyrail.contract import (
    CHANNELS,
    CONTRACT_HASH,
    CONTRACT_VERSION,
    GATE_WINDOWS,
    GATEWARE_VERSION,
    LEDGERS,
    MAGIC,
    MISSED_SLOT,
    RECEIVER_ENTRY,
    SENDER_ENTRY,
    STATES_PER_WORD,
    Access,
    BlockCommand,
    BlockState,
    BoardCode,
    Direction,
    HistogramCommand,
    Mode,
    Randomness,
    ReceiverKind,
    Role,
    Stream,
    TagKind,
    ToeplitzCommand,
    ToeplitzFamily,
    registers,
)
from keyrail.layouts import Structured, dtype, pack, unpack, zeros
from keyrail.source import state_words
from keyrail_sim.models.announcer import Announcer
from keyrail_sim.models.blanking import Blanking
from keyrail_sim.models.block_memory import BlockMemory
from keyrail_sim.models.choices import Choices
from keyrail_sim.models.count_memory import CountMemory
from keyrail_sim.models.currents import Currents
from keyrail_sim.models.gaps import Gaps, Outcomes
from keyrail_sim.models.gate import Gate, Window
from keyrail_sim.models.generator import Generator
from keyrail_sim.models.histogram import Histogram
from keyrail_sim.models.ledger import Ledger
from keyrail_sim.models.resolver import Resolver
from keyrail_sim.models.sifter import Sifter
from keyrail_sim.models.slotter import Slotter
from keyrail_sim.models.source import Source
from keyrail_sim.models.squash import Squash
from keyrail_sim.models.state_memory import StateMemory
from keyrail_sim.models.t2_encoder import T2Encoder
from keyrail_sim.models.tally import ReceiverTally, SenderTally
from keyrail_sim.models.toeplitz import Toeplitz
from keyrail_sim.models.tracker import TrackerSettings


@dataclass(frozen=True)
class Sizes:
    """Sizes of the station, as the gateware's default configuration has them."""

    toeplitz_input_log2: int = 18
    toeplitz_output_log2: int = 17
    block_memory_log2: int = 18
    horizon_log2: int = 17
    gear: int = 4
    modulators: int = 6
    choices_log2: int = 17


class ModelBoard(Board):
    """What both model stations share: registers, streams, block control, Toeplitz engine."""

    randomness_may_be_test = True

    def __init__(self, role: Role, name: str) -> None:
        super().__init__(role, name)
        self.sizes = Sizes()
        self._by_offset = {
            register.offset + word: (register, word)
            for register in self.registers.values()
            for word in range(register.words)
        }
        self.values = {
            register.name: register.reset
            for register in self.registers.values()
            if register.access is Access.READ_WRITE
        }
        self._held = 0
        self._latched = 0
        self._closed = False
        self._input: dict[str, list[npt.NDArray[np.uint8]]] = {}
        self._output: dict[str, list[npt.NDArray[np.uint8]]] = {}
        for stream in self.streams.values():
            queues = self._input if stream.direction is Direction.TO_BOARD else self._output
            queues[stream.name] = []
        self.state = BlockState.IDLE
        self.refused = False
        self.wiped = True
        record = SENDER_ENTRY if role is Role.SENDER else RECEIVER_ENTRY
        self.memory = BlockMemory(record, 1 << self.sizes.block_memory_log2)
        self.toeplitz = Toeplitz(
            1 << self.sizes.toeplitz_input_log2, 1 << self.sizes.toeplitz_output_log2
        )
        self._restart_block()

    # -- registers ---------------------------------------------------------------------------

    def _alive(self) -> None:
        if self._closed:
            raise BoardError(f"{self.name}: the board is closed")

    def read_word(self, offset: int) -> int:
        self._alive()
        if offset not in self._by_offset:
            return 0
        register, word = self._by_offset[offset]
        if register.access is Access.COMMAND:
            return 0
        if word:
            return self._latched
        if register.access is Access.READ_WRITE:
            value = self.values[register.name]
        else:
            value = self._status(register.name)
        self._latched = value >> 32
        return value & 0xFFFF_FFFF

    def write_word(self, offset: int, value: int) -> None:
        self._alive()
        if offset not in self._by_offset:
            return
        register, word = self._by_offset[offset]
        if register.access is Access.READ:
            return
        if register.words == 2 and not word:
            self._held = value
            return
        if word:
            value = self._held | value << 32
        value &= (1 << register.bits) - 1
        if register.access is Access.READ_WRITE:
            former = self.values[register.name]
            self.values[register.name] = value
            if register.name == "mode" and value != former:
                self._wipe()
        else:
            self._command(register.name, value)

    def _status(self, name: str) -> int:
        sizes = self.sizes
        sender = self.role is Role.SENDER
        fixed = {
            "magic": MAGIC,
            "contract_version": CONTRACT_VERSION,
            "contract_hash": CONTRACT_HASH,
            "gateware_version": GATEWARE_VERSION,
            "role": int(self.role),
            "configuration": sizes.toeplitz_input_log2
            | sizes.toeplitz_output_log2 << 8
            | sizes.block_memory_log2 << 16
            | (sizes.horizon_log2 << 24 if sender else CHANNELS << 32 | sizes.choices_log2 << 40),
            "board": int(BoardCode.SIMULATED),
            "serial": 0,
            "status": self.wiped << 1 | self.refused << 2,
            "block_state": int(self.state),
            "block_count": self.memory.count,
            "toeplitz_status": self.toeplitz.busy
            | self.toeplitz.wiped << 1
            | int(self.toeplitz.error) << 2,
        }
        if name in fixed:
            return int(fixed[name])
        if name.startswith("tdc_"):
            return 0  # tags enter behind the time-to-digital converter
        for block, ledger in self._ledgers().items():
            for counter in LEDGERS[block][1]:
                if name == f"{block}_{counter.name}":
                    return ledger.live[counter.name]
                if name == f"{block}_{counter.name}_at_frame":
                    return ledger.at_frame[counter.name]
        raise KeyError(name)

    def _ledgers(self) -> dict[str, Ledger]:
        raise NotImplementedError

    def _command(self, name: str, value: int) -> None:
        if name == "wipe":
            self._wipe()
        elif name == "block_command":
            self._block_command(value)
        elif name == "toeplitz_command":
            if value == ToeplitzCommand.START:
                self.toeplitz.start(
                    self.values["toeplitz_n"],
                    self.values["toeplitz_m"],
                    ToeplitzFamily(self.values["toeplitz_family"]),
                    bool(self.values["toeplitz_tile"] & 1),
                    bool(self.values["toeplitz_tile"] & 2),
                )
            elif value == ToeplitzCommand.WIPE:
                self.toeplitz.wipe()
            elif value == ToeplitzCommand.CLEAR_ERROR:
                self.toeplitz.clear()

    def _wipe(self) -> None:
        self.toeplitz.wipe()
        self.memory.wipe()
        self.state = BlockState.IDLE
        self.refused = False
        self.wiped = True
        self._restart_block()

    def _restart_block(self) -> None:
        raise NotImplementedError

    def _block_command(self, command: int) -> None:
        receiver = self.role is Role.RECEIVER
        state = self.state
        if (
            command == BlockCommand.OPEN
            and state is BlockState.IDLE
            and self.values["mode"] == Mode.KEY
        ):
            self._restart_block()
            self.state = BlockState.OPEN
        elif command == BlockCommand.CLOSE and state is BlockState.OPEN:
            self.state = BlockState.CLOSED
        elif command == BlockCommand.BASES and state is BlockState.CLOSED:
            self.memory.rewind()
            self.state = BlockState.BASES
        elif command == BlockCommand.RESOLVE and receiver and state is BlockState.ANSWERED:
            self.memory.rewind()
            self.state = BlockState.RESOLVE
        elif command == BlockCommand.DISCARD and state is not BlockState.IDLE:
            self.memory.wipe()
            self._discard()
            self.state = BlockState.IDLE
        else:
            self.refused = True

    def _discard(self) -> None:
        """Wipe what else belongs to the block."""

    # -- streams -----------------------------------------------------------------------------

    def send_bytes(self, stream: Stream, data: npt.NDArray[np.uint8]) -> None:
        self._alive()
        if data.size:
            self._input[stream.name].append(data)

    def receive_bytes(self, stream: Stream) -> npt.NDArray[np.uint8]:
        self._alive()
        chunks = self._output[stream.name]
        self._output[stream.name] = []
        return np.concatenate([np.zeros(0, np.uint8), *chunks])

    def pending(self, name: str) -> int:
        stream = self.stream(name, Direction.TO_BOARD)
        return sum(chunk.size for chunk in self._input[name]) // stream.record.bytes

    def _take(self, name: str) -> Structured:
        """All records waiting on an input stream."""
        chunks = self._input[name]
        self._input[name] = []
        if chunks:
            self.wiped = False
        return unpack(self.streams[name].record, np.concatenate([np.zeros(0, np.uint8), *chunks]))

    def _return(self, name: str, records: Structured) -> None:
        """Put back what the board has not taken."""
        self._input[name].insert(0, pack(self.streams[name].record, records))

    def _give(self, name: str, records: Structured) -> None:
        record = self.streams[name].record
        if records.dtype != dtype(record):
            fields = zeros(record, len(records))
            for field in record.fields:
                fields[field.name] = records[field.name]
            records = fields
        if len(records):
            self._output[name].append(pack(record, records))

    def _run_toeplitz(self) -> None:
        for name, feed in (
            ("toeplitz_key", self.toeplitz.feed_key),
            ("toeplitz_seed", self.toeplitz.feed_seed),
        ):
            words = self._take(name)
            taken = feed(words["bits"])
            if taken < len(words):
                self._return(name, words[taken:])
        out = zeros(self.streams["toeplitz_out"].record, 0)
        result = self.toeplitz.output()
        if len(result):
            out = zeros(self.streams["toeplitz_out"].record, len(result))
            out["bits"] = result
        self._give("toeplitz_out", out)

    def close(self) -> None:
        self._wipe()
        self._input = {name: [] for name in self._input}
        self._output = {name: [] for name in self._output}
        self._closed = True


class ModelReceiver(ModelBoard):
    """Numpy twin of the receiver's station."""

    def __init__(self, name: str) -> None:
        super().__init__(Role.RECEIVER, name)
        self._restart_tags()

    def _restart_tags(self) -> None:
        # The gateware samples period and origin with the first record after its reset.
        self.slotter: Slotter | None = None
        # Without clocks nothing waits: the tag FIFO is never full, real time or not.
        self.tag_fifo = Ledger("tag_fifo")
        self.t2_encoder = T2Encoder()
        self.histogram = Histogram()
        self.gaps = Gaps()
        self.blanking = Blanking()
        self.choices = Choices(1 << self.sizes.choices_log2)
        self.gate = Gate()
        self.squash = Squash()
        self.outcomes = Outcomes()
        self.announcer = Announcer()
        self.currents = Currents()

    def _restart_block(self) -> None:
        self.announcer = Announcer()
        self.resolver = Resolver()
        self.tally = ReceiverTally()

    def _wipe(self) -> None:
        super()._wipe()
        self._restart_tags()

    def _discard(self) -> None:
        self.choices.wipe()

    def _ledgers(self) -> dict[str, Ledger]:
        return {
            # Tags come stamped and in order: there is nothing in front of the tag FIFO.
            "condition": Ledger("condition"),
            "merge": Ledger("merge"),
            "tag_fifo": self.tag_fifo,
            "t2_encoder": self.t2_encoder.ledger,
            "slotter": self.slotter.ledger if self.slotter else Ledger("slotter"),
            "tracker": self.slotter.tracker.ledger if self.slotter else Ledger("tracker"),
            "blanking": self.blanking.ledger,
            "choices": self.choices.ledger,
            "gate": self.gate.ledger,
            "squash": self.squash.ledger,
            "announcer": self.announcer.ledger,
            "currents": self.currents.ledger,
            "resolver": self.resolver.ledger,
            "receiver_tally": self.tally.ledger,
        }

    @property
    def _raw(self) -> bool:
        """True if tags go out on ``raw`` too."""
        fields = registers(Role.RECEIVER)["tag_input"].fields
        bit = [field.name for field in fields].index("raw")
        return bool(self.values["tag_input"] >> bit & 1) and self.values["mode"] != Mode.KEY

    def write_word(self, offset: int, value: int) -> None:
        super().write_word(offset, value)
        if not self._raw:
            self.t2_encoder = T2Encoder()

    def _status(self, name: str) -> int:
        if name.startswith("tracker_"):
            loop = self.slotter.tracker if self.slotter else None
            shown = {
                "tracker_status": loop.locked | loop.holding << 1 if loop else 2,
                "tracker_period": loop.period if loop else 0,
                "tracker_slot": loop.slot if loop else 0,
                "tracker_error": loop.error[0] | loop.error[1] << 36 if loop else 0,
            }
            if name in shown:
                return shown[name]
        if name == "choices_next_slot":
            self._configure()
            return self.choices.next_slot
        if name == "current_alarms":
            return self.currents.alarms
        front = ("inputs", "merge_held", "rate_alarm", "tag_fifo_held")
        absent = name in front or name.removeprefix("rate_").removeprefix("windows_").isdecimal()
        return 0 if absent else super()._status(name)

    def _command(self, name: str, value: int) -> None:
        if name == "tag_path_reset":
            self._restart_tags()
        elif name == "histogram_command":
            memories: dict[int, CountMemory] = {
                HistogramCommand.PHASES: self.histogram,
                HistogramCommand.GAPS: self.gaps,
                HistogramCommand.OUTCOMES: self.outcomes,
            }
            memory = memories.get(value)
            bins = None
            if memory is not None:
                memory.key_mode = self.values["mode"] == Mode.KEY
                bins = memory.dump()
            if bins is None:
                self.refused = True
            else:
                self._give("histogram", bins)
        else:
            super()._command(name, value)

    def _configure(self) -> None:
        values = self.values
        self.histogram.shift = values["histogram_shift"]
        self.blanking.slots = tuple(values[f"blanking_slots_{c}"] for c in range(CHANNELS))
        self.choices.active = values["receiver_kind"] == ReceiverKind.ACTIVE
        self.choices.first_choice = values["choices_first_slot"]
        limits = [values[f"current_limits_{c}"] for c in range(CHANNELS)]
        self.currents.limits = tuple((one & 0xFFFF, one >> 16) for one in limits)
        self.squash.discard_cross = bool(values["squash_discard_cross"])
        self.gate.windows = tuple(
            Window.from_register(values[f"gate_{channel}_{window}"])
            for channel in range(CHANNELS)
            for window in range(GATE_WINDOWS)
        )
        self.gaps.windows = self.gate.windows
        self.gaps.shift = self.outcomes.shift = values["gap_shift"]
        self.announcer.first_slot = values["block_first_slot"]
        self.announcer.last_slot = values["block_last_slot"]
        self.memory.on_host = bool(values["block_on_host"])

    def run(self) -> None:
        self._configure()
        takes = self.state is BlockState.OPEN or self.values["mode"] == Mode.INSTRUMENT
        if takes and self.choices.active:
            self.choices.feed(self._take("basis_choices"))
        self.currents.process(self._take("currents"))
        tags = self._take("tags")
        if len(tags):
            if self.slotter is None:
                self.slotter = Slotter(
                    self.values["slotter_period"],
                    self.values["slotter_reciprocal"],
                    self.values["slotter_origin"],
                    TrackerSettings.from_registers(self.values),
                )
            click = tags["kind"] == TagKind.CLICK
            frames = np.flatnonzero(tags["kind"] == TagKind.FRAME)
            self.tag_fifo.count(frames, **{"in": click, "out": click})
            if self._raw:
                self._give("raw", self.t2_encoder.process(tags))
            slot_tags = self.slotter.process(tags)
            self.histogram.process(slot_tags)
            self.gaps.process(slot_tags)
            gated = self.gate.process(self.choices.process(self.blanking.process(slot_tags)))
            if self.values["mode"] == Mode.INSTRUMENT:
                self._give("gated", gated)
            else:
                self._detect(gated)
        if self.state is BlockState.BASES:
            self._give("bases", self.memory.read(None, self._take_fill()))
            if self.memory.done:
                self.state = BlockState.ANSWERED
        if self.state in (BlockState.RESOLVE, BlockState.DONE):
            self._resolve()
        self._run_toeplitz()

    def _detect(self, gated: Structured) -> None:
        coins = self._take("coins")
        detections, used = self.squash.process(gated, coins)
        self.outcomes.process(*self.squash.groups)
        if used < len(coins):
            self._return("coins", coins[used:])
        is_open = self.state is BlockState.OPEN
        announcements, entries = self.announcer.process(detections, is_open, self.memory.room)
        self._give("announcements", announcements)
        self._give("block_out", self.memory.write(entries))

    def _take_fill(self) -> Structured:
        return self._take("block_in") if self.memory.on_host else zeros(RECEIVER_ENTRY, 0)

    def _resolve(self) -> None:
        replies = self._take("replies")
        entries = self.memory.read(len(replies), self._take_fill())
        if len(entries) < len(replies) and not self.memory.done:
            # What block memory still waits for from the control PC holds the replies back.
            self._return("replies", replies[len(entries) :])
            replies = replies[: len(entries)]
        self._give("sifted", self.tally.process(self.resolver.process(replies, entries, True)))
        if self.memory.done:
            self.state = BlockState.DONE


class ModelSender(ModelBoard):
    """Numpy twin of the sender's station.

    Time does not pass here: a paced source never starves.
    """

    def __init__(self, name: str) -> None:
        self.state_memory = StateMemory(1 << Sizes().horizon_log2)
        self._generator_key = b""
        self._unused_word = 0
        super().__init__(Role.SENDER, name)

    def _restart_block(self) -> None:
        # Settings of the source hold for a whole block.
        values = self.values
        first, last = values["states_first_slot"], values["block_last_slot"]
        source, frame = self.split("source", values["source"]), values["source_frame"]
        bias = values["generator_bias"]
        self.source = Source(
            first // STATES_PER_WORD,
            last // STATES_PER_WORD,
            bool(source["paced"]),
            frame & 0x3F,
            frame >> 6,
        )
        self.sifter = Sifter()
        self.tally = SenderTally()
        self._by_generator = bool(source["generator"])
        self._recall = bool(source["recall"]) or self._by_generator
        self._bias = (bias & 0x1FFFF, bias >> 17)
        self._nonce = values["generator_nonce"]
        self._last_word = last // STATES_PER_WORD
        self._repeated = self._by_generator and first // STATES_PER_WORD < self._unused_word

    def _discard(self) -> None:
        self.state_memory.wipe()

    def _wipe(self) -> None:
        super()._wipe()
        self._discard()
        self._generator_key = b""
        self._unused_word = 0

    def _ledgers(self) -> dict[str, Ledger]:
        return {
            "source": self.source.ledger,
            "state_memory": self.state_memory.ledger,
            "sifter": self.sifter.ledger,
            "sender_tally": self.tally.ledger,
        }

    def _status(self, name: str) -> int:
        if name == "states_next_slot":
            return self.state_memory.next_slot
        if name == "states_randomness":
            source = self.split("source", self.values["source"])
            return int(Randomness.GENERATOR) if source["generator"] else source["label"]
        if name == "source_configuration":
            return self.sizes.gear | self.sizes.modulators << 3 | 1 << 7
        if name == "source_status":
            running = self.source.paced and not self.source.ended and self.source.ledger.live["in"]
            return (
                bool(running and self.state is BlockState.OPEN)
                | (self.source.ended and self.state is BlockState.OPEN) << 1
                | self._keyed << 3
                | self._repeated << 4
            )
        return super()._status(name)

    @property
    def _keyed(self) -> bool:
        return len(self._generator_key) == 32

    def run(self) -> None:
        if self.state is BlockState.IDLE:
            self._take_key()
        if self.state is BlockState.OPEN:
            self._look_up()
        if self.state in (BlockState.BASES, BlockState.DONE):
            self._sift()
        self._run_toeplitz()

    def _take_key(self) -> None:
        words = self._take("generator_key")["bits"]
        for word in words.astype("<u8"):
            held = self._generator_key if not self._keyed else b""
            self._generator_key = held + word.tobytes()

    def _look_up(self) -> None:
        memory, source = self.state_memory, self.source
        memory.first_state = self.values["states_first_slot"]
        memory.first_slot = self.values["block_first_slot"]
        memory.recall = self._recall
        memory.words_log2, memory.sync_words = source.words_log2, source.sync_words
        self.memory.on_host = bool(self.values["block_on_host"])
        if self._by_generator:
            generator = self._generate()
        else:
            memory.feed(*source.process(self._take("states")))
        memory.stopped = source.ended or source.starved
        missed = memory.look_up(self._take("announcements"))
        if not self._by_generator:
            records = zeros(MISSED_SLOT, len(missed))
            records["slot"] = missed
            self._give("missed", records)
            memory.answer(self._take("recalled"))
        elif generator is not None:
            memory.answer(generator.recall(missed))
        self._give("block_out", self.memory.write(memory.entries(self.memory.room)))

    def _generate(self) -> Generator | None:
        """Make the states up to the block's end; None where there is no key to make them with."""
        if not self._keyed or self._repeated:
            return None
        generator = Generator(self._generator_key, self._nonce, self._bias[0], self._bias[1])
        while self.source.following <= self._last_word:
            first = self.source.following
            count = min(1 << 16, self._last_word + 1 - first)
            states = generator.states(first * STATES_PER_WORD, count * STATES_PER_WORD)
            self.state_memory.feed(*self.source.process(state_words(states)))
            self._unused_word = first + count
        return generator

    def _sift(self) -> None:
        bases = self._take("bases")
        fill = self._take("block_in") if self.memory.on_host else None
        entries = self.memory.read(len(bases), fill)
        if len(entries) < len(bases) and not self.memory.done:
            self._return("bases", bases[len(entries) :])
            bases = bases[: len(entries)]
        replies, sifted = self.sifter.process(bases, entries, True)
        self._give("replies", replies)
        self._give("sifted", self.tally.process(sifted))
        if self.memory.done:
            self.state = BlockState.DONE


def open_station(role: Role, name: str) -> ModelBoard:
    """Open the numpy twin of the station of `role`."""
    return ModelSender(name) if role is Role.SENDER else ModelReceiver(name)
