# SPDX-License-Identifier: CERN-OHL-W-2.0
"""The two stations: their blocks joined by streams, behind registers."""

from dataclasses import dataclass

from amaranth.hdl import Cat, Module, Mux, ResetInserter, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from keyrail.contract import (
    ANNOUNCEMENT,
    CHANNELS,
    CHOSEN_TAG,
    CONTRACT_HASH,
    CONTRACT_VERSION,
    DETECTION,
    GATE_WINDOWS,
    GATED_TAG,
    GATEWARE_VERSION,
    MAGIC,
    MISSED_SLOT,
    RECALLED,
    RECEIVER_ENTRY,
    SENDER_ENTRY,
    SLOT_TAG,
    STATES_PER_WORD,
    TAG,
    TDC_INPUTS,
    BlockState,
    BoardCode,
    Direction,
    HistogramCommand,
    Mode,
    Randomness,
    ReceiverKind,
    Role,
    ToeplitzCommand,
    streams,
)

from .announcer import Announcer
from .blanking import Blanking
from .block_control import BlockControl
from .block_memory import BlockMemory
from .choices import Choices
from .condition import event_layout
from .currents import Currents
from .front_end import FrontEnd
from .gaps import Gaps, Outcomes
from .gate import Gate
from .generator import Generator
from .histogram import Histogram
from .layouts import layout
from .register_bank import BusSignature, RegisterBank
from .resolver import Resolver
from .sifter import Sifter
from .skid import Skid, Stage
from .source import Source
from .squash import Squash
from .state_memory import StateMemory
from .t2_encoder import T2Encoder, T2Serialiser, t2_pair
from .tag_fifo import TagFifo
from .tally import ReceiverTally, SenderTally
from .tdc import CLOCK_PS, Tdc
from .toeplitz import Toeplitz
from .tracker import TrackedSlotter

__all__ = ["Configuration", "Receiver", "Sender"]


@dataclass(frozen=True)
class Configuration:
    """Sizes a station is built with.

    Parameters
    ----------
    toeplitz_input_log2, toeplitz_output_log2
        The Toeplitz engine hashes up to 2^this bits into up to 2^this bits; both 0: there is no
        engine, and the control PC hashes.
    block_memory_log2
        Block memory on the board holds 2^this detections.
    horizon_log2
        The sender's state memory holds the last 2^this slots.
    tag_fifo_log2
        The receiver's tag FIFO holds 2^this records.
    inputs
        Inputs of the receiver's time tagger, up to the contract's ``TDC_INPUTS``. 0: there is none,
        and tags come stamped and in order, on the stream ``tags``.
    board
        Board it is built for, as the register ``board`` says.
    order_log2
        2^this announcements can wait in the sender until states past its ring are recalled.
    gear, modulators
        Samples a clock of each modulator output of the sender, and their number.
    channels
        Detector channels of the receiver: 2, 4 or 8. Clicks of others are dropped.
    choices_log2
        The receiver keeps the basis choices of the last 2^this slots.
    tdc_lines, tdc_cells
        Delay lines of each input's time-to-digital converter, and carry cells of a line. 0 lines:
        there is none, and the events of the inputs come stamped.
    tdc_falling
        The converter can stamp falling edges too; its tables take twice the block RAM.
    tdc_cell_ps
        Typical delay of a cell, before the first calibration.
    clock_ps
        Period of the station's clock, which the converter stamps by.
    """

    toeplitz_input_log2: int = 18
    toeplitz_output_log2: int = 17
    block_memory_log2: int = 18
    horizon_log2: int = 17
    tag_fifo_log2: int = 12
    inputs: int = 0
    board: BoardCode = BoardCode.SIMULATED
    order_log2: int = 10
    gear: int = 4
    modulators: int = 6
    channels: int = CHANNELS
    choices_log2: int = 17
    tdc_lines: int = 0
    tdc_cells: int = 180
    tdc_falling: bool = False
    tdc_cell_ps: int = 66
    clock_ps: int = CLOCK_PS

    def __post_init__(self):
        if not 0 <= self.inputs <= TDC_INPUTS:
            raise ValueError(f"{self.inputs} inputs: allowed are 0 to {TDC_INPUTS}")
        if self.tdc_lines and not self.inputs:
            raise ValueError("a time-to-digital converter without inputs")
        if self.channels not in (2, 4, 8):
            raise ValueError(f"{self.channels} channels: allowed are 2, 4 and 8")
        if (self.toeplitz_input_log2 == 0) != (self.toeplitz_output_log2 == 0):
            raise ValueError("a Toeplitz engine has an input and an output, or there is none")

    @property
    def hashes(self) -> bool:
        """Whether the board has a Toeplitz engine."""
        return self.toeplitz_input_log2 > 0


class _Station(wiring.Component):
    """What both stations share: registers, identity, Toeplitz engine, block control, wipe."""

    role: Role

    def __init__(self, configuration: Configuration = Configuration()):
        self.configuration = configuration
        members: dict[str, wiring.Member] = {
            "bus": In(BusSignature()),
            "busy": Out(1),
            "serial": In(64),
            # One clock: every memory begins to wipe, those of the cable's endpoints too, which
            # answer with `cable_wiping` from the next clock on, and hold `cable_dirty` while
            # something from the host lies in them.
            "wipe": Out(1),
            "cable_wiping": In(1),
            "cable_dirty": In(1),
        }
        for name, described in streams(self.role).items():
            flow = In if described.direction is Direction.TO_BOARD else Out
            members[name] = flow(stream.Signature(described.record.bits))
        if self.role is Role.RECEIVER and configuration.tdc_lines:
            taps = configuration.tdc_lines * 2 * configuration.tdc_cells
            members |= {f"taps_{n}": In(taps) for n in range(configuration.inputs)}
            members["sources"] = Out(configuration.inputs)
        elif self.role is Role.RECEIVER:
            members |= {f"event_{n}": In(event_layout()) for n in range(configuration.inputs)}
        super().__init__(members | self._outputs())

    def _outputs(self) -> dict[str, wiring.Member]:
        """Ports beside the streams."""
        return {}

    def _registers(self) -> RegisterBank:
        """The registers; a figure has others in their place."""
        return RegisterBank(self.role)

    def _common(self, m: Module) -> None:
        """Registers, identity, mode, wipe, Toeplitz engine and block control."""
        sizes = self.configuration
        m.submodules.registers = self.bank = bank = self._registers()
        bus = self.bus
        m.d.comb += [
            bank.bus.address.eq(bus.address),
            bank.bus.write.eq(bus.write),
            bank.bus.data.eq(bus.data),
            bank.bus.read.eq(bus.read),
            bus.value.eq(bank.bus.value),
        ]
        values, status, strobes = bank.values, bank.status, bank.strobes
        configuration = status.configuration
        m.d.comb += [
            status.magic.value.eq(MAGIC),
            status.contract_version.value.eq(CONTRACT_VERSION),
            status.contract_hash.value.eq(CONTRACT_HASH),
            status.gateware_version.value.eq(GATEWARE_VERSION),
            status.role.value.eq(self.role),
            status.board.value.eq(sizes.board),
            status.serial.value.eq(self.serial),
            configuration.toeplitz_input_log2.eq(sizes.toeplitz_input_log2),
            configuration.toeplitz_output_log2.eq(sizes.toeplitz_output_log2),
            configuration.block_memory_log2.eq(sizes.block_memory_log2),
            configuration.horizon_log2.eq(sizes.horizon_log2 if self.role is Role.SENDER else 0),
            configuration.channels.eq(sizes.channels if self.role is Role.RECEIVER else 0),
            configuration.choices_log2.eq(sizes.choices_log2 if self.role is Role.RECEIVER else 0),
        ]

        self.key_mode = Signal()
        former_mode = Signal()
        m.d.comb += self.key_mode.eq(values.mode.value == Mode.KEY)
        m.d.sync += [
            former_mode.eq(self.key_mode),
            self.wipe.eq(strobes.wipe | (former_mode != self.key_mode)),
        ]
        # 0 from a change of the mode until the wipe that follows.
        self._settled = Signal()
        m.d.comb += self._settled.eq((former_mode == self.key_mode) & ~self.wipe)

        self._toeplitz_working, self._toeplitz_wiped = Signal(), Signal(init=1)
        if sizes.hashes:
            self._hashes(m)
        else:
            m.d.comb += status.toeplitz_status.wiped.eq(1)
            m.d.comb += self._toeplitz_wiped.eq(1)

        record = SENDER_ENTRY if self.role is Role.SENDER else RECEIVER_ENTRY
        m.submodules.block_memory = self.memory = memory = BlockMemory(
            record, 1 << sizes.block_memory_log2
        )
        m.submodules.block_control = self.control = control = BlockControl(self.role)
        m.d.comb += [
            memory.on_host.eq(values.block_on_host.value),
            memory.rewind.eq(control.rewind),
            memory.wipe.eq(control.wipe_memory),
            control.memory_busy.eq(memory.busy),
            control.command.eq(bank.commands.block_command.value),
            control.strobe.eq(strobes.block_command),
            control.key_mode.eq(self.key_mode),
            control.wipe.eq(self.wipe),
            status.block_state.value.eq(control.state),
            status.block_count.value.eq(memory.count),
        ]
        self._connect(m, memory.spill, self.block_out)
        self._connect(m, self.block_in, memory.fill)

    def _hashes(self, m: Module) -> None:
        """The Toeplitz engine behind its registers and streams."""
        sizes, bank = self.configuration, self.bank
        values, status, strobes = bank.values, bank.status, bank.strobes
        m.submodules.toeplitz = toeplitz = Toeplitz(
            input_bits=1 << sizes.toeplitz_input_log2, output_bits=1 << sizes.toeplitz_output_log2
        )
        command = bank.commands.toeplitz_command.value
        strobe = strobes.toeplitz_command
        m.d.comb += [
            toeplitz.n.eq(values.toeplitz_n.value),
            toeplitz.m.eq(values.toeplitz_m.value),
            toeplitz.family.eq(values.toeplitz_family.value),
            toeplitz.start.eq(strobe & (command == ToeplitzCommand.START)),
            toeplitz.wipe.eq(self.wipe | (strobe & (command == ToeplitzCommand.WIPE))),
            toeplitz.clear.eq(strobe & (command == ToeplitzCommand.CLEAR_ERROR)),
            status.toeplitz_status.busy.eq(toeplitz.busy),
            status.toeplitz_status.wiped.eq(toeplitz.wiped),
            status.toeplitz_status.error.eq(toeplitz.error),
        ]
        # The records of these streams carry no mark on the last word: words are counted.
        for inside, outside in (
            (toeplitz.key, self.toeplitz_key),
            (toeplitz.seed, self.toeplitz_seed),
        ):
            m.d.comb += [
                inside.payload.word.eq(outside.payload),
                inside.valid.eq(outside.valid),
                outside.ready.eq(inside.ready),
            ]
        m.d.comb += [
            self.toeplitz_out.payload.eq(toeplitz.o.payload.word),
            self.toeplitz_out.valid.eq(toeplitz.o.valid),
            toeplitz.o.ready.eq(self.toeplitz_out.ready),
            toeplitz.continued.eq(values.toeplitz_tile.continued),
            toeplitz.unfinished.eq(values.toeplitz_tile.unfinished),
            toeplitz.patience.eq(values.toeplitz_patience.value),
        ]
        m.d.comb += [
            self._toeplitz_working.eq(toeplitz.working),
            self._toeplitz_wiped.eq(toeplitz.wiped),
        ]

    def _finish(self, m: Module, refused: Signal, busy: Signal) -> None:
        """Status register: `busy` and `refused` are what the station adds to the common part."""
        status = self.bank.status.status
        ports = [
            getattr(self, name)
            for name, described in streams(self.role).items()
            if described.direction is Direction.TO_BOARD
        ]
        # Both late, by as much: what is ready is known late, and what is being cleared lies far
        # apart.
        came_on, came, clearing = Signal(len(ports) + 1), Signal(), Signal(init=1)
        m.d.sync += [
            came_on.eq(Cat(self.cable_dirty, (port.valid & port.ready for port in ports))),
            came.eq(came_on.any()),
        ]
        wiping, wiped = Signal(init=1), Signal()
        m.d.sync += clearing.eq(
            self.wipe
            | self.control.wipe_memory
            | self.memory.busy
            | ~self._toeplitz_wiped
            | self.cable_wiping
            | busy
        )
        with m.If(wiping & ~clearing & (self.control.state == BlockState.IDLE)):
            m.d.sync += [wiping.eq(0), wiped.eq(1)]
        with m.If(came):
            m.d.sync += wiped.eq(0)
        refusal = Signal()
        with m.If(self.wipe):
            m.d.sync += [wiping.eq(1), wiped.eq(0), refusal.eq(0)]
        with m.Elif(refused | self.control.refused):
            m.d.sync += refusal.eq(1)
        m.d.comb += [
            self.busy.eq(
                self.wipe
                | wiping
                | busy
                | self.memory.busy
                | self._toeplitz_working
                | self.control.wipe_memory
                | self.control.restart
                | self.control.rewind
                # A strobe still on its way to the block it commands.
                | self.bank.strobes.as_value().any()
            ),
            status.busy.eq(self.busy),
            status.wiped.eq(wiped),
            status.refused.eq(refusal),
        ]

    def _ledger(self, m: Module, block: str, counts: object) -> None:
        """Show a block's ledger in its registers."""
        status = self.bank.status
        for name in counts.live.shape().members:
            m.d.comb += [
                status[f"{block}_{name}"].value.eq(counts.live[name]),
                status[f"{block}_{name}_at_frame"].value.eq(counts.at_frame[name]),
            ]

    @staticmethod
    def _connect(m: Module, source: object, sink: object, when: object = 1) -> None:
        """Join two streams of the same fields; nothing passes unless `when`."""
        m.d.comb += [
            _flat(sink.payload).eq(_flat(source.payload)),
            sink.valid.eq(source.valid & when),
            source.ready.eq(sink.ready & when),
        ]

    @staticmethod
    def _fork(m: Module, source: object, *branches: tuple[object, object]) -> None:
        """Give each record of a stream to every sink of `branches` whose condition holds.

        A sink is offered a record until it takes it, whatever the others do.
        """
        taken = [Signal(name=f"fork_taken_{i}") for i in range(len(branches))]
        done = [
            ~Value.cast(when) | sink.ready | one
            for (sink, when), one in zip(branches, taken, strict=True)
        ]
        m.d.comb += source.ready.eq(Cat(done).all())
        for (sink, when), one in zip(branches, taken, strict=True):
            m.d.comb += [
                _flat(sink.payload).eq(_flat(source.payload)),
                sink.valid.eq(source.valid & when & ~one),
            ]
            m.d.sync += one.eq(source.valid & ~source.ready & (one | (sink.ready & when)))


def _flat(payload: object) -> object:
    return payload.as_value() if isinstance(payload, data.View) else payload


class Receiver(_Station):
    """The receiver's station: tags to sifted bits.

    Tag path, one record a clock: tag FIFO, slotter with tracker, histogram and gaps (taps),
    blanking, choices, gate; then the stream ``gated`` in instrument mode, or squash, announcer and
    block memory in key mode. After the block has closed, block memory is read twice: for the bases,
    and against the replies (resolver, tally). In instrument mode the tags leave the FIFO as T2
    records as well, on the stream ``raw``, where the host asks for it; in key mode that endpoint is
    closed. Beside it, samples of the detectors' currents are held against their limits.

    Parameters
    ----------
    configuration
        Sizes it is built with.

    Members
    -------
    bus
        Register bus.
    busy
        1 while the station works without waiting for a stream.
    serial
        Serial number, 64 bits, as the register says it.
    wipe, cable_wiping, cable_dirty
        Wiping of the buffers on the way to the cable: 1 for the clock in which they are to
        begin; 1 while they wipe; 1 while they hold something that came from the host.
    tags, raw, losses, coins, basis_choices, currents, gated, histogram, announcements, bases,
    replies, sifted, block_out, block_in, toeplitz_key, toeplitz_seed, toeplitz_out
        Streams of the contract, whole records as payload; ``tags`` is closed where the station
        has inputs of its own.
    event_0, event_1, ...
        These inputs, where they come stamped: `event_layout`.
    taps_0, taps_1, ..., sources
        Where the station has a time-to-digital converter: sampled taps of each input's lines (see
        `tdc.Decoder`), and a bit an input that switches it to the oscillator.
    """

    role = Role.RECEIVER

    def elaborate(self, platform: object) -> Module:
        m = Module()
        self._common(m)
        bank, control, memory = self.bank, self.control, self.memory
        values = bank.values
        restart_tags, restart_block = Signal(), Signal()
        # A flip-flop, for the thousands that it resets.
        m.d.sync += restart_tags.eq(bank.strobes.tag_path_reset | self.wipe)
        m.d.comb += restart_block.eq(control.restart | self.wipe)
        on_tags, on_block = ResetInserter(restart_tags), ResetInserter(restart_block)
        # The announcer is reset by a flip-flop of its own; its block opens once it has been.
        restart_announcer, opened = Signal(), Signal()
        m.d.sync += [
            restart_announcer.eq(bank.strobes.tag_path_reset | restart_block),
            opened.eq(control.open & ~restart_block),
        ]

        raw = Signal()  # a tag's channel is the key bit: never in key mode
        m.d.comb += raw.eq(values.tag_input.raw & ~self.key_mode)
        restart_raw = Signal(init=1)
        m.d.sync += restart_raw.eq(bank.strobes.tag_path_reset | self.wipe | ~raw)
        on_raw = ResetInserter(restart_raw)
        m.submodules.tag_fifo = tag_fifo = TagFifo(1 << self.configuration.tag_fifo_log2)
        m.submodules.t2_encoder = t2_encoder = on_raw(T2Encoder())
        m.submodules.t2_serialiser = t2_serialiser = on_raw(T2Serialiser())
        channels = self.configuration.channels
        m.submodules.slotter = slotter = on_tags(TrackedSlotter())
        m.submodules.histogram = histogram = Histogram(channels=channels)
        m.submodules.gaps = gaps = Gaps(channels)
        m.submodules.blanking = blanking = on_tags(Blanking(channels))
        m.submodules.choices = choices = on_tags(Choices(1 << self.configuration.choices_log2))
        m.submodules.gate = gate = on_tags(Gate(channels))
        m.submodules.squash = squash = on_tags(Squash())
        m.submodules.outcomes = outcomes = Outcomes()
        m.submodules.announcer = announcer = ResetInserter(restart_announcer)(Announcer())
        m.submodules.currents = currents = on_tags(Currents())
        m.submodules.resolver = resolver = on_block(Resolver())
        m.submodules.tally = tally = on_block(ReceiverTally())

        m.d.comb += [
            slotter.period.eq(values.slotter_period.value),
            slotter.reciprocal.eq(values.slotter_reciprocal.value),
            slotter.origin.eq(values.slotter_origin.value),
            slotter.control.eq(values.tracker_control),
            slotter.minimum.eq(values.tracker_minimum.value),
            slotter.gate.eq(values.tracker_gate.value),
            slotter.holdover.eq(values.tracker_holdover.value),
            slotter.channels.eq(values.tracker_channels.value),
            bank.status.tracker_status.locked.eq(slotter.locked),
            bank.status.tracker_status.holding.eq(slotter.holding),
            bank.status.tracker_period.value.eq(slotter.period_now),
            bank.status.tracker_slot.value.eq(slotter.slot_now),
            bank.status.tracker_error.as_value().eq(slotter.error),
            choices.open.eq(control.open | ~self.key_mode),
            choices.active.eq(values.receiver_kind.value == ReceiverKind.ACTIVE),
            choices.first_choice.eq(values.choices_first_slot.value),
            choices.wipe.eq(control.wipe_memory),
            bank.status.choices_next_slot.value.eq(choices.next_slot),
            bank.status.current_alarms.value.eq(currents.alarms),
            *(blanking.slots[c].eq(values[f"blanking_slots_{c}"].value) for c in range(CHANNELS)),
            *(
                currents.limits[c].as_value().eq(values[f"current_limits_{c}"].as_value())
                for c in range(CHANNELS)
            ),
            squash.discard_cross.eq(values.squash_discard_cross.value),
            announcer.open.eq(opened & control.open),
            announcer.first_slot.eq(values.block_first_slot.value),
            announcer.last_slot.eq(values.block_last_slot.value),
            announcer.full.eq(memory.full),
            resolver.exhausted.eq(memory.done),
        ]
        m.d.comb += [
            slotter.targets[channel].eq(values[f"tracker_target_{channel}"].value)
            for channel in range(CHANNELS)
        ]
        windows = [
            values[f"gate_{channel}_{window}"].as_value()
            for channel in range(CHANNELS)
            for window in range(GATE_WINDOWS)
        ]
        for one in (gate, gaps):
            m.d.comb += one.windows.as_value().eq(Cat(*windows))

        m.d.comb += [
            tag_fifo.real_time.eq(values.tag_input.real_time),
            tag_fifo.flush.eq(restart_tags),
            bank.status.tag_fifo_held.value.eq(tag_fifo.level),
            self.losses.payload.eq(tag_fifo.losses.payload.as_value()),
            self.losses.valid.eq(tag_fifo.losses.valid & raw),
            tag_fifo.losses.ready.eq(self.losses.ready | ~raw),
        ]
        if self.configuration.inputs:
            self._front_end(m, tag_fifo, measuring=raw | control.open)
        else:
            self._connect(m, self.tags, tag_fifo.i)
        # What leaves the FIFO comes late in the clock, out of its memory.
        m.submodules.fifo_stage = fifo_stage = on_tags(Stage(layout(TAG)))
        m.submodules.after_fifo = after_fifo = on_tags(Skid(layout(TAG)))
        self._connect(m, tag_fifo.o, fifo_stage.i)
        self._connect(m, fifo_stage.o, after_fifo.i)
        self._fork(m, after_fifo.o, (slotter.i, 1), (t2_encoder.i, raw))
        m.submodules.after_t2 = after_t2 = on_raw(Skid(t2_pair()))
        self._connect(m, t2_encoder.o, after_t2.i)
        self._connect(m, after_t2.o, t2_serialiser.i)
        self._connect(m, t2_serialiser.o, self.raw, raw)
        # Skids keep the ready signals of the path apart.
        m.submodules.after_slotter = after_slotter = on_tags(Skid(layout(SLOT_TAG)))
        m.submodules.after_histogram = after_histogram = on_tags(Skid(layout(SLOT_TAG)))
        m.submodules.after_blanking = after_blanking = on_tags(Skid(layout(SLOT_TAG)))
        m.submodules.after_choices = after_choices = on_tags(Skid(layout(CHOSEN_TAG)))
        m.submodules.after_gate = after_gate = on_tags(Skid(layout(GATED_TAG)))
        m.submodules.after_squash = after_squash = on_tags(Skid(layout(DETECTION)))
        self._connect(m, slotter.o, after_slotter.i)
        self._connect(m, after_slotter.o, histogram.i)
        m.d.comb += [
            gaps.tag.eq(histogram.o.payload),
            gaps.valid.eq(histogram.o.valid & histogram.o.ready),
        ]
        self._connect(m, histogram.o, after_histogram.i)
        self._connect(m, after_histogram.o, blanking.i)
        self._connect(m, blanking.o, after_blanking.i)
        self._connect(m, self.basis_choices, choices.words)
        self._connect(m, after_blanking.o, choices.i)
        self._connect(m, choices.o, after_choices.i)
        self._connect(m, after_choices.o, gate.i)
        self._connect(m, gate.o, after_gate.i)
        # A tag's channel is the key bit: in key mode the tags end in the squash.
        tags, shows = after_gate.o, Signal()
        m.d.comb += [
            self.gated.payload.eq(_flat(tags.payload)),
            # Nor do those that are on their way as key mode ends.
            shows.eq(~self.key_mode & self._settled & ~restart_tags),
            self.gated.valid.eq(tags.valid & shows),
            squash.i.payload.eq(tags.payload),
            squash.i.valid.eq(tags.valid & self.key_mode),
            tags.ready.eq(Mux(self.key_mode, squash.i.ready, self.gated.ready & shows)),
            outcomes.group.eq(squash.group),
        ]
        self._connect(m, self.coins, squash.coins)
        self._connect(m, squash.o, after_squash.i)
        self._connect(m, after_squash.o, announcer.i)
        m.submodules.after_announcer = after_announcer = ResetInserter(restart_announcer)(
            Skid(layout(ANNOUNCEMENT))
        )
        self._connect(m, announcer.o, after_announcer.i)
        self._connect(m, after_announcer.o, self.announcements, ~restart_announcer)
        self._connect(m, announcer.entry, memory.i)
        self._connect(m, self.currents, currents.i)
        refused = self._histograms(
            m,
            restart_tags,
            {
                HistogramCommand.PHASES: histogram,
                HistogramCommand.GAPS: gaps.reading,
                HistogramCommand.OUTCOMES: outcomes.reading,
            },
        )

        # First read pass: only the bases leave. Second pass: entries meet the replies.
        in_bases = Signal()
        m.d.comb += [
            in_bases.eq(control.state == BlockState.BASES),
            self.bases.payload.eq(memory.o.payload.basis),
            self.bases.valid.eq(memory.o.valid & in_bases),
            resolver.entry.payload.eq(memory.o.payload),
            resolver.entry.valid.eq(memory.o.valid & control.resolve),
            memory.o.ready.eq(
                (self.bases.ready & in_bases) | (resolver.entry.ready & control.resolve)
            ),
            control.pass_done.eq(memory.done & ~resolver.o.valid),
        ]
        self._connect(m, self.replies, resolver.reply, control.resolve)
        self._connect(m, resolver.o, tally.i)
        self._connect(m, tally.o, self.sifted)

        for name, block in (
            ("tag_fifo", tag_fifo),
            ("t2_encoder", t2_encoder),
            ("slotter", slotter),
            ("blanking", blanking),
            ("choices", choices),
            ("gate", gate),
            ("squash", squash),
            ("announcer", announcer),
            ("currents", currents),
            ("resolver", resolver),
            ("receiver_tally", tally),
        ):
            self._ledger(m, name, block.counts)
        self._ledger(m, "tracker", slotter.tracker_counts)
        # The histograms lie far apart, so they are a clock late, and so is what makes them busy.
        counting = Signal(init=1)
        m.d.sync += counting.eq(
            histogram.busy
            | gaps.reading.busy
            | outcomes.reading.busy
            | restart_tags
            | bank.strobes.histogram_command
            | (self.histogram.valid & self.histogram.ready)
        )
        busy = counting | choices.busy | slotter.busy | tag_fifo.busy | restart_tags
        self._finish(m, refused, busy)
        return m

    def _front_end(self, m: Module, tag_fifo: TagFifo, measuring: Value) -> None:
        """Conditioning and merge of the station's own inputs, into the tag FIFO."""
        values, status, strobes = self.bank.values, self.bank.status, self.bank.strobes
        inputs = self.configuration.inputs
        cleared = self.bank.commands.rate_alarm_clear.value
        m.submodules.front_end = front_end = FrontEnd(inputs)
        m.d.comb += [
            # Nothing is taken before the tag FIFO is empty and can count what it misses.
            front_end.flush.eq(tag_fifo.busy),
            front_end.key_mode.eq(self.key_mode),
            front_end.clear.eq(Mux(strobes.rate_alarm_clear, cleared, 0)),
            front_end.frame.eq(strobes.frame_marker),
            tag_fifo.refused.eq(front_end.refused),
            tag_fifo.until.eq(front_end.until),
            status.inputs.value.eq(inputs),
            status.merge_held.value.eq(front_end.held),
            status.rate_alarm.value.eq(front_end.alarm),
        ]
        self._connect(m, front_end.o, tag_fifo.i)
        if self.configuration.tdc_lines:
            self._tdc(m, front_end, measuring)
        else:
            m.d.comb += [
                getattr(front_end, f"i_{n}").eq(getattr(self, f"event_{n}")) for n in range(inputs)
            ]
        for n in range(inputs):
            m.d.comb += [
                front_end.settings[n].eq(values[f"condition_{n}"]),
                front_end.limits[n].eq(values[f"rate_limit_{n}"].value),
                status[f"rate_{n}"].value.eq(front_end.rates[n]),
                status[f"rate_windows_{n}"].value.eq(front_end.windows[n]),
            ]
        for block in ("condition", "merge"):
            self._ledger(m, block, getattr(front_end, block))

    def _tdc(self, m: Module, front_end: FrontEnd, measuring: Value) -> None:
        """The time-to-digital converter behind its registers, in front of the conditioning.

        While `measuring`, no input is taken from its pin in turn: what it would miss is in no
        record of a loss.
        It runs on through restarts of the tag path and wipes: its times count from reset, and its
        tables hold nothing secret. Its counters are latched with the command for a frame marker,
        not with the marker, which begins behind it.
        """
        bank, sizes = self.bank, self.configuration
        values, status = bank.values, bank.status
        taps = 2 * sizes.tdc_cells
        codes = min(
            2 * sizes.tdc_lines * sizes.clock_ps / sizes.tdc_cell_ps, sizes.tdc_lines * taps
        )
        m.submodules.tdc = tdc = Tdc(
            sizes.inputs, sizes.tdc_lines, taps, codes, sizes.clock_ps, both_edges=sizes.tdc_falling
        )
        control, command = values.tdc_control, bank.commands.tdc_command
        strobe = bank.strobes.tdc_command
        m.d.comb += [
            tdc.rising.eq(control.rising),
            tdc.falling.eq(control.falling),
            tdc.oscillator.eq(control.oscillator & ~measuring),
            tdc.photons.eq(control.photons),
            tdc.hits_log2.eq(control.hits_log2),
            tdc.start.eq(strobe & ~command.abort),
            tdc.abort.eq(strobe & command.abort),
            tdc.start_input.eq(command.input),
            tdc.start_falling.eq(command.falling),
            tdc.start_photons.eq(command.photons),
            tdc.frame.eq(bank.strobes.frame_marker),
            self.sources.eq(tdc.source),
            status.tdc_status.rising_calibrated.eq(tdc.calibrated[: sizes.inputs]),
            status.tdc_status.falling_calibrated.eq(tdc.calibrated[sizes.inputs :]),
            status.tdc_status.ready.eq(tdc.ready),
            status.tdc_status.busy.eq(tdc.busy),
            status.tdc_status.result.eq(tdc.result),
            status.tdc_status.input.eq(tdc.done_input),
            status.tdc_status.falling.eq(tdc.done_falling),
            status.tdc_change.moved.eq(tdc.moved),
            status.tdc_change.uneven.eq(tdc.uneven),
        ]
        for n in range(sizes.inputs):
            event, edge = getattr(front_end, f"i_{n}"), tdc.o[n]
            m.d.comb += [
                getattr(tdc, f"taps_{n}").eq(getattr(self, f"taps_{n}")),
                event.valid.eq(edge.valid),
                event.time.eq(edge.time),
                event.falling.eq(edge.falling),
                event.calibrated.eq(edge.calibrated),
                event.watermark.eq(edge.watermark),
            ]
        self._ledger(m, "tdc", tdc.counts)

    def _histograms(self, m: Module, wipe: Signal, readings: dict[int, object]) -> Signal:
        """Join the histograms to their command and stream; returns 1 where one was refused.

        One is sent at a time: a command meanwhile, or for none of them, is refused.
        """
        bank, values = self.bank, self.bank.values
        refused, dumping = Signal(), Signal()  # `dumping` a clock late
        command = bank.commands.histogram_command.value
        strobe = bank.strobes.histogram_command
        known = Signal()
        m.d.comb += [
            known.eq(Cat(command == code for code in readings).any()),
            refused.eq(
                (strobe & (dumping | ~known)) | Cat(one.refused for one in readings.values()).any()
            ),
        ]
        m.d.sync += dumping.eq(
            (strobe & known) | Cat(one.dumping for one in readings.values()).any()
        )
        for code, one in readings.items():
            shift = values.histogram_shift if code == HistogramCommand.PHASES else values.gap_shift
            m.d.comb += [
                one.shift.eq(shift.value),
                one.key_mode.eq(self.key_mode),
                one.wipe.eq(wipe),
                one.dump.eq(strobe & ~dumping & (command == code)),
                one.bins.ready.eq(self.histogram.ready),
            ]
            with m.If(one.bins.valid):
                m.d.comb += [
                    self.histogram.payload.eq(one.bins.payload),
                    self.histogram.valid.eq(1),
                ]
        return refused


class Sender(_Station):
    """The sender's station: states and announcements to sifted bits.

    Live, the source takes a state a slot from the host or from the on-board generator, drives the
    modulators with it and gives it to state memory; each announced slot is looked up there and its
    state moves to block memory. What has left the ring is asked of the control PC, or made again
    by the generator. After the block has closed, the bases meet block memory in the sifter.

    Parameters
    ----------
    configuration
        Sizes it is built with.

    Members
    -------
    bus
        Register bus.
    busy
        1 while the station works without waiting for a stream.
    serial
        Serial number, 64 bits, as the register says it.
    wipe, cable_wiping, cable_dirty
        Wiping of the buffers on the way to the cable: 1 for the clock in which they are to
        begin; 1 while they wipe; 1 while they hold something that came from the host.
    modulators
        Samples of the modulator outputs in this clock, those of output 0 in the low bits.
    fine_delays
        Delay of each output in steps of its pin, 7 bits each.
    states, generator_key, announcements, missed, recalled, bases, replies, sifted, block_out,
    block_in, toeplitz_key, toeplitz_seed, toeplitz_out
        Streams of the contract, whole records as payload.
    """

    role = Role.SENDER

    def _outputs(self) -> dict[str, wiring.Member]:
        sizes = self.configuration
        return {
            "modulators": Out(sizes.gear * sizes.modulators),
            "fine_delays": Out(7 * sizes.modulators),
        }

    def elaborate(self, platform: object) -> Module:
        m = Module()
        self._common(m)
        bank, control, memory = self.bank, self.control, self.memory
        values, status, sizes = bank.values, bank.status, self.configuration
        # Each goes to a great many places, so it comes from a flip-flop. A block opens for the
        # source once that has taken in first word and frame, after its restart.
        restart_block, opened, settling = Signal(), Signal(), Signal(2)
        m.d.sync += [
            restart_block.eq(control.restart | self.wipe),
            settling.eq(Mux(control.open, Cat(1, settling[0]), 0)),
            opened.eq(control.open & settling[1]),
        ]
        on_block = ResetInserter(restart_block)

        m.submodules.source = source = on_block(Source(sizes.gear, sizes.modulators))
        m.submodules.generator = generator = Generator()
        m.submodules.state_memory = states = StateMemory(
            1 << sizes.horizon_log2, 1 << sizes.order_log2
        )
        m.submodules.sifter = sifter = on_block(Sifter())
        m.submodules.tally = tally = on_block(SenderTally())

        # Settings of the source hold for a whole block.
        settings = Signal(values.source.shape())
        frame = Signal(values.source_frame.shape())
        with m.If(~control.open):
            m.d.sync += [settings.eq(values.source), frame.eq(values.source_frame)]
        on_memory = ResetInserter(restart_block | control.wipe_memory)
        m.submodules.entry_skid = entry = on_memory(Skid(layout(SENDER_ENTRY)))
        first_slot, last_slot = values.states_first_slot.value, values.block_last_slot.value
        index_bits = STATES_PER_WORD.bit_length() - 1
        m.d.comb += [
            source.open.eq(opened),
            source.paced.eq(settings.paced),
            source.clocks.eq(settings.clocks),
            source.first_word.eq(first_slot[index_bits:]),
            source.last_word.eq(last_slot[index_bits:]),
            source.words_log2.eq(frame.words_log2),
            source.sync_words.eq(frame.sync_words),
            generator.rekey.eq(control.state == BlockState.IDLE),
            generator.start.eq(control.restart),
            generator.discard.eq(control.wipe_memory),
            generator.live.eq(values.source.generator),
            generator.first_word.eq(first_slot[index_bits:]),
            generator.last_word.eq(last_slot[index_bits:]),
            generator.z.eq(values.generator_bias.z),
            generator.signal.eq(values.generator_bias.signal),
            generator.nonce.eq(values.generator_nonce.value),
            generator.wipe.eq(self.wipe),
            states.open.eq(opened),
            states.recall.eq(settings.recall | settings.generator),
            states.stopped.eq(source.ended | source.starved),
            states.words_log2.eq(frame.words_log2),
            states.sync_words.eq(frame.sync_words),
            states.first_state.eq(first_slot),
            states.first_slot.eq(values.block_first_slot.value),
            states.full.eq(memory.full),
            states.wipe.eq(control.wipe_memory),
            status.states_next_slot.value.eq(states.next_slot),
            status.source_status.running.eq(source.running),
            status.source_status.ended.eq(source.ended),
            status.source_status.starved.eq(source.starved),
            status.source_status.keyed.eq(generator.keyed),
            status.source_status.repeated.eq(generator.repeated),
            status.source_configuration.gear.eq(sizes.gear),
            status.source_configuration.modulators.eq(sizes.modulators),
            status.source_configuration.generator.eq(1),
            # What the host says of the generator's states does not count.
            status.states_randomness.value.eq(
                Mux(values.source.generator, Randomness.GENERATOR, values.source.label)
            ),
            self.modulators.eq(source.samples.as_value()),
            sifter.exhausted.eq(memory.done & ~entry.o.valid),
            control.pass_done.eq(memory.done & ~entry.o.valid),
        ]
        for index in range(sizes.modulators):
            setting = values[f"modulator_{index}"]
            m.d.comb += [
                source.settings[index].as_value().eq(setting.as_value()),
                self.fine_delays.word_select(index, 7).eq(setting.fine),
            ]

        # Skids keep the ready signals of look-up and generator apart.
        m.submodules.missed_skid = missed = on_memory(Skid(layout(MISSED_SLOT)))
        m.submodules.recalled_skid = recalled = on_memory(Skid(layout(RECALLED)))
        by_generator = settings.generator
        m.d.comb += [
            source.words.payload.as_value().eq(
                Mux(by_generator, generator.words.payload.as_value(), self.states.payload)
            ),
            source.words.valid.eq(Mux(by_generator, generator.words.valid, self.states.valid)),
            generator.words.ready.eq(source.words.ready & by_generator),
            self.states.ready.eq(source.words.ready & ~by_generator),
            generator.missed.payload.eq(missed.o.payload),
            generator.missed.valid.eq(missed.o.valid & by_generator),
            self.missed.payload.eq(missed.o.payload.as_value()),
            self.missed.valid.eq(missed.o.valid & ~by_generator),
            missed.o.ready.eq(Mux(by_generator, generator.missed.ready, self.missed.ready)),
            recalled.i.payload.as_value().eq(
                Mux(by_generator, generator.recalled.payload.as_value(), self.recalled.payload)
            ),
            recalled.i.valid.eq(
                Mux(by_generator, generator.recalled.valid, self.recalled.valid) & opened
            ),
            generator.recalled.ready.eq(recalled.i.ready & by_generator & opened),
            self.recalled.ready.eq(recalled.i.ready & ~by_generator & opened),
        ]
        self._connect(m, states.missed, missed.i)
        self._connect(m, recalled.o, states.recalled)
        self._connect(m, self.generator_key, generator.key)
        self._connect(m, source.fed, states.states)
        self._connect(m, self.announcements, states.lookup)
        self._connect(m, states.entry, memory.i)
        self._connect(m, memory.o, entry.i, control.basis)
        self._connect(m, entry.o, sifter.entry, control.basis)
        self._connect(m, self.bases, sifter.basis, control.basis)
        self._connect(m, sifter.reply, self.replies)
        self._connect(m, sifter.sifted, tally.i)
        self._connect(m, tally.o, self.sifted)
        for name, block in (
            ("source", source),
            ("state_memory", states),
            ("sifter", sifter),
            ("sender_tally", tally),
        ):
            self._ledger(m, name, block.counts)
        # A block that is not open leaves the generator's words where they are.
        generator_works = Signal()
        m.d.comb += generator_works.eq(generator.busy | (generator.working & control.open))
        self._finish(m, Signal(), states.busy | states.working | source.running | generator_works)
        return m
