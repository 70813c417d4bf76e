# SPDX-License-Identifier: Apache-2.0
"""Registers and counters of both stations, described once."""

from __future__ import annotations

from enum import IntEnum

from .description import Access, ContractError, Counter, Field, Register, Role
from .records import (
    CHANNELS,
    CHOICES_PER_WORD,
    PERIOD_FRACTION_BITS,
    RECIPROCAL_FRACTION_BITS,
    SLOT_BITS,
    TIME_BITS,
    Randomness,
)

MAGIC = 0x4B52_4C31
"""Value of register 0: "KRL1"."""
COUNTER_BITS = 48
"""Width of every counter of a ledger."""
GATE_WINDOWS = 2
"""Gate windows a channel."""
HISTOGRAM_BINS = 1024
"""Bins of one channel's phase histogram."""
RATE_WINDOW_LOG2_PS = 36
"""The events of an input are counted over 2^36 ps (68.7 ms) of its time."""
MODULATORS = 8
"""Pattern outputs a sender can be built with."""
KEY_MODE_HISTOGRAM_MINIMUM = 10_000
"""Clicks a histogram must hold before key mode lets it out."""
TDC_INPUTS = CHANNELS + 2
"""Inputs a time-to-digital converter may have: detectors, then sync and pulse per second."""
TDC_HITS_LOG2_MAXIMUM = 22
"""A calibration counts up to 2^this edges."""
GAP_BINS = 64
"""Bins of a histogram of gaps between clicks, in slots."""


class Mode(IntEnum):
    """Mode of a board; switching wipes and discards the open block."""

    INSTRUMENT = 0
    KEY = 1


class BoardCode(IntEnum):
    """Boards that gateware is built for."""

    SIMULATED = 0
    ECPIX5_85F = 1
    ECPIX5_45F = 2
    ULX3S_85F = 3
    ULX3S_12F = 4
    ORANGECRAB_85F = 5
    ORANGECRAB_25F = 6
    CYNTHION = 7


class ReceiverKind(IntEnum):
    """How the receiver chooses its basis."""

    PASSIVE = 0
    """A beam splitter chooses."""
    ACTIVE = 1
    """A random choice for each slot drives a modulator; a slot without one is not used."""


class HistogramCommand(IntEnum):
    """Which histogram to send and clear; in key mode refused below 10^4 clicks."""

    PHASES = 1
    """Clicks by channel and phase: 8 x 1024 bins."""
    GAPS = 2
    """Clicks by channel, inside a gate window or not, and slots since the channel's last click:
    8 x 2 x 64 bins, those outside a window first."""
    OUTCOMES = 3
    """Slots by what clicked in them (one outcome, double click, cross click; the fourth is empty)
    and slots since the last such slot: 4 x 64 bins."""


class BlockCommand(IntEnum):
    """Commands to the block of key under way."""

    OPEN = 1
    """Start a block over the slots of block_first_slot to block_last_slot."""
    CLOSE = 2
    """The live phase is over; the list of detections is fixed."""
    BASES = 3
    """Receiver: send the bases. Sender: answer bases. Only in a closed block."""
    RESOLVE = 4
    """Receiver: take the replies. Only after the bases have been sent."""
    DISCARD = 5
    """Give the block up and wipe what it held."""


class BlockState(IntEnum):
    """State of the block of key under way."""

    IDLE = 0
    OPEN = 1
    CLOSED = 2
    BASES = 3
    """Bases are on their way; nothing before this state says anything about a basis."""
    ANSWERED = 4
    """Receiver: every basis has been sent."""
    RESOLVE = 5
    DONE = 6
    WIPING = 7


class TdcResult(IntEnum):
    """How the last calibration of an input of the time-to-digital converter ended."""

    NONE = 0
    """There was none since reset."""
    DONE = 1
    """The new table is in use."""
    UNEVEN = 2
    """Photons did not fall evenly; the table stays as it was."""
    TOO_FEW = 3
    """Edges did not come in time."""
    ABORTED = 4
    REFUSED = 5
    """No such input or edge, or photons for an input that the oscillator has not calibrated."""


class ToeplitzFamily(IntEnum):
    """Family of Toeplitz functions."""

    PLAIN = 0
    MODIFIED = 1
    """Identity-augmented; the default."""


class ToeplitzCommand(IntEnum):
    """Commands to the Toeplitz engine."""

    START = 1
    """Take in one key and one seed of the sizes set, then hash."""
    WIPE = 2
    CLEAR_ERROR = 3


class ToeplitzError(IntEnum):
    """Bits of the Toeplitz engine's sticky error; any of them stops and wipes the engine."""

    SIZE = 0
    """n or m out of range."""
    BUSY = 1
    """Start while no further block could be begun."""
    KEY_SHORT = 2
    """The key ended before its last word."""
    KEY_LONG = 3
    """The key went on after its last word."""
    SEED_SHORT = 4
    """The seed ended before its last word."""
    SEED_LONG = 5
    """The seed went on after its last word."""
    KEY_MISSING = 6
    """A word of the key did not come in time."""
    SEED_MISSING = 7
    """A word of the seed did not come in time."""
    SEED_REUSED = 8
    """The seed is that of the hash before. Those of fewer than four words are not compared."""
    TILE_ORDER = 9
    """A tile that does not follow from the one before."""


_SENDER, _RECEIVER = (Role.SENDER,), (Role.RECEIVER,)
_BOTH = (Role.SENDER, Role.RECEIVER)

LEDGERS: dict[str, tuple[tuple[Role, ...], tuple[Counter, ...]]] = {
    "tdc": (
        _RECEIVER,
        (
            Counter("in", "Edges seen on all inputs."),
            Counter("out", "Edges stamped."),
            Counter("other_edge", "Edges not stamped: of the kind that is switched off."),
            Counter("not_pin", "Edges not stamped: the oscillator's, or before the tables stood."),
            Counter("short", "Levels too short for an edge to be made of them; not in `in`."),
        ),
    ),
    "condition": (
        _RECEIVER,
        (
            Counter("in", "Events of all inputs that entered."),
            Counter("out", "Events that left towards the merge."),
            Counter("disabled", "Events dropped because their input is off."),
            Counter("dead", "Events dropped in the dead time; instrument mode only."),
            Counter("divided", "Events dropped by the divider; instrument mode only."),
        ),
    ),
    "merge": (
        _RECEIVER,
        (
            Counter("in", "Events taken into a queue."),
            Counter("out", "Events that left in time order."),
            Counter("refused", "Events for which their queue had no room."),
        ),
    ),
    "tag_fifo": (
        _RECEIVER,
        (
            Counter("in", "Clicks that entered."),
            Counter("out", "Clicks that left."),
            Counter("missed", "Clicks dropped because the FIFO was full."),
            Counter("refused", "Clicks that the merge in front had no room for; not in `in`."),
            Counter("losses", "Losses that ended; each has a record in the loss ledger."),
            Counter("markers_missed", "Time and frame markers dropped because of no room at all."),
        ),
    ),
    "t2_encoder": (
        _RECEIVER,
        (
            Counter("in", "Clicks that entered."),
            Counter("out", "Clicks that left as T2 records."),
            Counter("out_of_order", "Clicks dropped because they were earlier than the last."),
        ),
    ),
    "slotter": (
        _RECEIVER,
        (
            Counter("in", "Clicks that entered."),
            Counter("out", "Clicks that left with a slot."),
            Counter("before_origin", "Clicks dropped because they came before slot 0."),
            Counter("out_of_order", "Clicks dropped because they were earlier than the last."),
            Counter("bad_channel", "Clicks dropped because the channel does not exist."),
            Counter("inexact", "Clicks dropped because period and reciprocal disagree."),
        ),
    ),
    "tracker": (
        _RECEIVER,
        (
            Counter("windows", "Windows that ended."),
            Counter("corrections", "Windows that gave a new origin and period."),
            Counter("dark", "Windows held over: too few clicks."),
            Counter("incoherent", "Windows held over: no pulse stands out of the clicks."),
            Counter("astray", "Windows held over: locked, but the pulse lies elsewhere."),
            Counter("lock_losses", "Times that the lock was lost."),
        ),
    ),
    "blanking": (
        _RECEIVER,
        (
            Counter("in", "Clicks that entered."),
            Counter("out", "Clicks that left."),
            Counter("blanked", "Clicks dropped in a blanked slot."),
            Counter("losses", "Loss markers, each of which opened a blank.", event=True),
        ),
    ),
    "choices": (
        _RECEIVER,
        (
            Counter("in", "Clicks that entered."),
            Counter("out", "Clicks that left: in slots with a known basis choice."),
            Counter("dry", "Clicks dropped because no basis choice was there for the slot."),
            Counter("expired", "Clicks dropped because the slot's basis choice was past."),
        ),
    ),
    "gate": (
        _RECEIVER,
        (
            Counter("in", "Clicks that entered."),
            Counter("out", "Clicks inside a gate window."),
            Counter("gated_out", "Clicks dropped outside every gate window."),
        ),
    ),
    "squash": (
        _RECEIVER,
        (
            Counter("in", "Clicks that entered."),
            Counter("out", "Detections that left, one a slot at most."),
            Counter("merged", "Clicks merged into an earlier one of their slot."),
            Counter("discarded", "Slots given up: cross clicks under the rule that discards them."),
            Counter("coin_dry", "Slots given up because no coin was there."),
            Counter("double_clicks", "Slots with both bits of one basis.", event=True),
            Counter("cross_clicks", "Slots with clicks in both bases.", event=True),
        ),
    ),
    "announcer": (
        _RECEIVER,
        (
            Counter("in", "Detections that entered."),
            Counter("out", "Detections announced and kept in block memory."),
            Counter("outside_block", "Detections dropped outside the open block."),
            Counter("memory_full", "Detections dropped because block memory was full."),
        ),
    ),
    "currents": (
        _RECEIVER,
        (
            Counter("in", "Samples that came."),
            Counter("out", "Samples within the limits of their channel."),
            Counter("low", "Samples below the lower limit: an alarm."),
            Counter("high", "Samples above the upper limit: an alarm."),
            Counter("bad_channel", "Samples of a channel that does not exist."),
        ),
    ),
    "source": (
        _SENDER,
        (
            Counter("in", "Words of sixteen states taken."),
            Counter("out", "Words whose states went to the modulators and to state memory."),
            Counter("sync", "Words replaced by the published sync pattern."),
            Counter("surplus", "Words dropped because the source had ended or stopped."),
        ),
    ),
    "state_memory": (
        _SENDER,
        (
            Counter("in", "Slots announced."),
            Counter("out", "Slots answered with the state sent."),
            Counter("expired", "Slots past the horizon; they count as not present."),
            Counter("ahead", "Slots not yet fed; they count as not present."),
            Counter("absent", "Slots that were not emitted, and sync slots."),
            Counter("memory_full", "Slots dropped because block memory was full."),
        ),
    ),
    "sifter": (
        _SENDER,
        (
            Counter("in", "Bases that came."),
            Counter("out", "Detections kept."),
            Counter("mismatch", "Detections dropped because the bases differ."),
            Counter("absent", "Detections dropped because the state was not known."),
            Counter("surplus", "Bases answered with drop because the block had no more entries."),
        ),
    ),
    "resolver": (
        _RECEIVER,
        (
            Counter("in", "Replies that came."),
            Counter("out", "Detections kept."),
            Counter("dropped", "Detections the sender dropped."),
            Counter("contradicted", "Replies that contradict the basis; they fail the block."),
            Counter("surplus", "Replies dropped because the block had no more entries."),
        ),
    ),
    "sender_tally": (
        _SENDER,
        (
            Counter("z_signal", "Kept detections in Z of the signal intensity."),
            Counter("z_decoy", "Kept detections in Z of the decoy intensity."),
            Counter("x_signal", "Kept detections in X of the signal intensity."),
            Counter("x_decoy", "Kept detections in X of the decoy intensity."),
            Counter("x_zero", "Kept detections in X where 0 was sent."),
            Counter("x_one", "Kept detections in X where 1 was sent."),
        ),
    ),
    "receiver_tally": (
        _RECEIVER,
        (
            Counter("z", "Kept detections in Z."),
            Counter("x_zero", "Kept detections in X where 0 was sent."),
            Counter("x_one", "Kept detections in X where 1 was sent."),
            Counter("x_zero_error", "Kept detections in X where 0 was sent and 1 detected."),
            Counter("x_one_error", "Kept detections in X where 1 was sent and 0 detected."),
        ),
    ),
}
"""Counters by block: the stations that have the block, and its counters."""


def _value(bits: int, meaning: str, unit: str = "", codes: type[IntEnum] | None = None) -> Field:
    return Field("value", bits, meaning, unit, codes)


def _build() -> tuple[Register, ...]:
    registers: list[Register] = []
    offset = 0

    def add(
        name: str,
        fields: tuple[Field, ...],
        access: Access,
        meaning: str,
        roles: tuple[Role, ...] = _BOTH,
        reset: int = 0,
    ) -> None:
        nonlocal offset
        register = Register(name, offset, fields, access, meaning, roles, reset)
        registers.append(register)
        offset += register.words

    def start(at: int) -> None:
        nonlocal offset
        if offset > at:
            raise ContractError(f"registers run past {at:#x}")
        offset = at

    read, write, command = Access.READ, Access.READ_WRITE, Access.COMMAND

    def one(bits: int, meaning: str) -> tuple[Field, ...]:
        return (_value(bits, meaning),)

    # Identity comes first, so that a host can always ask what it talks to.
    add("magic", one(32, "0x4B524C31."), read, "Answers a known value.", reset=MAGIC)
    add("contract_version", one(32, "Version number."), read, "Version of the contract.")
    add("contract_hash", one(64, "First 64 bits of SHA-256."), read, "Hash of the contract.")
    add("gateware_version", one(32, "Version number."), read, "Version of the gateware.")
    add("role", (_value(2, "1 sender, 2 receiver.", codes=Role),), read, "Role of the station.")
    add(
        "configuration",
        (
            Field("toeplitz_input_log2", 8, "Largest Toeplitz input is 2^this bits."),
            Field("toeplitz_output_log2", 8, "Largest Toeplitz output is 2^this bits."),
            Field("block_memory_log2", 8, "Block memory on the board holds 2^this detections."),
            Field("horizon_log2", 8, "Sender: the state memory holds 2^this slots; else 0."),
            Field("channels", 8, "Receiver: detector channels it is built for; else 0."),
            Field("choices_log2", 8, "Receiver: basis choices of 2^this slots are kept; else 0."),
        ),
        read,
        "What the gateware was built with.",
    )
    add("board", (_value(16, "Code.", codes=BoardCode),), read, "Board it was built for.")
    add("serial", one(64, "Number; 0 where the board has none."), read, "Serial number.")
    start(0x10)
    add("mode", (_value(1, "Mode.", codes=Mode),), write, "Mode; switching wipes the board.")
    add("wipe", one(1, "Any value."), command, "Overwrite every memory that held a secret.")
    add(
        "status",
        (
            Field("busy", 1, "1 while any block of the board still works."),
            Field("wiped", 1, "1 when the last wipe is complete and nothing secret came since."),
            Field("refused", 1, "1 when a command was refused since the last wipe or reset."),
        ),
        read,
        "State of the board.",
    )
    start(0x20)
    add(
        "block_command",
        (_value(3, "Command.", codes=BlockCommand),),
        command,
        "Command to the block; one that its state does not allow is refused.",
    )
    add("block_state", (_value(3, "State.", codes=BlockState),), read, "State of the block.")
    add("block_first_slot", one(SLOT_BITS, "Slot number."), write, "First slot of the block.")
    add("block_last_slot", one(SLOT_BITS, "Slot number."), write, "Last slot of the block.")
    add("block_on_host", one(1, "1: yes."), write, "Block memory lies in the control PC.")
    add("block_count", one(32, "Detections."), read, "Detections in the block so far.")
    start(0x30)
    add("toeplitz_n", one(32, "Bits."), write, "Input bits of the next hash.")
    add("toeplitz_m", one(32, "Bits."), write, "Output bits of the next hash.")
    add(
        "toeplitz_family",
        (_value(1, "Family.", codes=ToeplitzFamily),),
        write,
        "Family of the next hash.",
        reset=ToeplitzFamily.MODIFIED,
    )
    add(
        "toeplitz_tile",
        (
            Field("continued", 1, "1: goes on with the sums of the tile before."),
            Field("unfinished", 1, "1: other tiles of the row follow; no output yet."),
        ),
        write,
        "Tile of a larger hash; 0 for a whole one.",
    )
    add(
        "toeplitz_patience",
        one(32, "Clocks; 0: for ever."),
        write,
        "How long the engine waits for a word of key or seed.",
    )
    add(
        "toeplitz_command",
        (_value(2, "Command.", codes=ToeplitzCommand),),
        command,
        "Command to the Toeplitz engine.",
    )
    add(
        "toeplitz_status",
        (
            Field("busy", 1, "1 from start to the wipe that ends a hash."),
            Field("wiped", 1, "1 while key, seed and sums are overwritten."),
            Field("error", 16, "Sticky errors, the bits of `ToeplitzError`."),
        ),
        read,
        "State of the Toeplitz engine.",
    )

    start(0x40)
    add(
        "tag_path_reset",
        one(1, "Any value."),
        command,
        "Restart the tag path from slotter to announcer, clear its counters, the histograms, the "
        "basis choices and the alarms of currents.",
        _RECEIVER,
    )
    add(
        "slotter_period",
        (_value(20 + PERIOD_FRACTION_BITS, "20.44 fixed point.", "ps"),),
        write,
        "Slot period; set while the tag path is empty.",
        _RECEIVER,
        10_000 << PERIOD_FRACTION_BITS,
    )
    add(
        "slotter_reciprocal",
        (_value(48, "Fixed point, 57 fraction bits.", "1/ps"),),
        write,
        "floor(2^57 / P), P the slot period in ps.",
        _RECEIVER,
        (1 << RECIPROCAL_FRACTION_BITS) // 10_000,
    )
    add(
        "slotter_origin",
        (_value(TIME_BITS, "Time.", "ps"),),
        write,
        "Time at which slot 0 begins.",
        _RECEIVER,
    )
    add(
        "squash_discard_cross",
        one(1, "1: discard."),
        write,
        "Rule for cross clicks: 0 assigns basis and bit by coins, 1 discards the slot.",
        _RECEIVER,
    )
    add(
        "histogram_shift",
        one(4, "Bits."),
        write,
        "A histogram bin is 2^this ps wide.",
        _RECEIVER,
        4,
    )
    add(
        "histogram_command",
        (_value(2, "Histogram.", codes=HistogramCommand),),
        command,
        "Send a histogram and clear it; refused in key mode below 10^4 clicks.",
        _RECEIVER,
    )
    add(
        "gap_shift",
        one(4, "Bits."),
        write,
        "A bin of the histograms of gaps is 2^this slots wide.",
        _RECEIVER,
    )
    start(0x60)
    for channel in range(CHANNELS):
        for window in range(GATE_WINDOWS):
            add(
                f"gate_{channel}_{window}",
                (
                    Field("start", 20, "First phase accepted.", "ps"),
                    Field("stop", 20, "First phase past the window; below start it wraps.", "ps"),
                    Field("enable", 1, "1: the window is open where the basis choice is 0."),
                    Field("basis", 1, "Basis of a click in it then."),
                    Field("bit", 1, "Bit of a click in it then."),
                    Field("enable_1", 1, "1: the window is open where the basis choice is 1."),
                    Field("basis_1", 1, "Basis of a click in it then."),
                    Field("bit_1", 1, "Bit of a click in it then."),
                ),
                write,
                f"Gate window {window} of channel {channel}.",
                _RECEIVER,
            )
    for channel in range(CHANNELS):
        add(
            f"blanking_slots_{channel}",
            one(16, "Slots."),
            write,
            f"Slots that stay blanked after each raw click of channel {channel}: at least its dead "
            "time; 0 blanks nothing.",
            _RECEIVER,
        )
    start(0x90)
    add(
        "states_first_slot",
        one(SLOT_BITS, "Slot number, a multiple of 16."),
        write,
        "Slot of the first state fed after the block is opened.",
        _SENDER,
    )
    add("states_next_slot", one(SLOT_BITS, "Slot."), read, "Slot of the next state fed.", _SENDER)
    add(
        "source",
        (
            Field("paced", 1, "1: a slot lasts `clocks`, and drives the modulators."),
            Field(
                "generator", 1, "1: states come from the on-board generator, else from the host."
            ),
            Field("label", 2, "What the host says of the states it feeds.", codes=Randomness),
            Field("clocks", 8, "Clocks of a slot less one.", "clocks"),
            Field("recall", 1, "1: the control PC is asked for slots that have left the ring."),
        ),
        write,
        "Source of the states; taken over when a block is opened.",
        _SENDER,
    )
    add(
        "source_frame",
        (
            Field("words_log2", 6, "A frame is 16 x 2^this slots and begins at their multiples."),
            Field("sync_words", 7, "Words of sync slots a frame begins with; 0: none, 64 at most."),
        ),
        write,
        "Published sync slots; taken over when a block is opened.",
        _SENDER,
    )
    add(
        "source_status",
        (
            Field("running", 1, "1 while slots are emitted."),
            Field("ended", 1, "1 from the end of the block's last slot."),
            Field("starved", 1, "1: no state came in time; nothing is emitted from there on."),
            Field("keyed", 1, "1 while the generator holds a key."),
            Field("repeated", 1, "1: the generator refused slots that its key has been used for."),
        ),
        read,
        "State of the source; `starved` and `repeated` until the next block.",
        _SENDER,
    )
    add(
        "source_configuration",
        (
            Field("gear", 3, "Samples a clock of each modulator output."),
            Field("modulators", 4, "Modulator outputs."),
            Field("generator", 1, "1 where there is an on-board generator (computational)."),
        ),
        read,
        "What the source was built with.",
        _SENDER,
    )
    add(
        "states_randomness",
        (_value(2, "Label.", codes=Randomness),),
        read,
        "Where the states come from: the host's word, or the generator (computational).",
        _SENDER,
    )
    add(
        "generator_bias",
        (
            Field("z", 17, "Probability of basis Z, 0 to 65536.", "2^-16"),
            Field("signal", 17, "Probability of the signal intensity, 0 to 65536.", "2^-16"),
        ),
        write,
        "Probabilities of the generator's states; taken over when a block is opened.",
        _SENDER,
    )
    add(
        "generator_nonce",
        one(64, "Second and third word of the nonce; public."),
        write,
        "Nonce of the generator; taken over when a block is opened.",
        _SENDER,
    )
    for index in range(MODULATORS):
        add(
            f"modulator_{index}",
            (
                Field("codes", 8, "Bit c: high in slots of state c (basis, bit, intensity)."),
                Field("frame", 1, "1: high in the first slot of each frame too."),
                Field("start", 6, "First sample of the slot that is high.", "samples"),
                Field("stop", 7, "First sample of the slot past it.", "samples"),
                Field("delay", 4, "Delay of the whole pattern.", "samples"),
                Field("fine", 7, "Delay in the pins.", "steps of the pins"),
                Field("invert", 1, "1: high and low are exchanged."),
            ),
            write,
            f"Pattern of modulator output {index}; low in slots that are not emitted.",
            _SENDER,
        )

    start(0xC0)
    add(
        "tdc_control",
        (
            Field("rising", TDC_INPUTS, "A bit an input: stamp rising edges."),
            Field(
                "falling",
                TDC_INPUTS,
                "A bit an input: stamp falling edges, where the board is built for them.",
            ),
            Field(
                "oscillator",
                1,
                "1: calibrate all inputs in turn while no raw tags are asked for and no block is "
                "open; none measures meanwhile.",
            ),
            Field("photons", 1, "1: refine all inputs in turn, from what they measure."),
            Field("hits_log2", 5, "Edges of a calibration, as the power of two; 22 at most."),
        ),
        write,
        "Edges and calibration of the time-to-digital converter.",
        _RECEIVER,
        (1 << TDC_INPUTS) - 1 | 20 << (2 * TDC_INPUTS + 2),
    )
    add(
        "tdc_command",
        (
            Field("input", 4, "Input."),
            Field("falling", 1, "1: the table of falling edges."),
            Field("photons", 1, "0: from the oscillator, 1: from photons, after a test."),
            Field("abort", 1, "1: only give up what is under way."),
        ),
        command,
        "Calibrate one input, once the calibration under way has ended.",
        _RECEIVER,
    )
    add(
        "tdc_status",
        (
            Field("rising_calibrated", TDC_INPUTS, "A bit an input: 0 before the first one."),
            Field("falling_calibrated", TDC_INPUTS, "A bit an input: 0 before the first one."),
            Field("ready", 1, "1 once the tables stand after reset; 0 where there is no TDC."),
            Field("busy", 1, "1 while a calibration is under way or asked for."),
            Field("result", 3, "How the last one ended.", codes=TdcResult),
            Field("input", 4, "Input of the last one."),
            Field("falling", 1, "1: it was the table of falling edges."),
        ),
        read,
        "State of the time-to-digital converter.",
        _RECEIVER,
    )
    add(
        "tdc_change",
        (
            Field("moved", 14, "Largest change of a delay.", "ps"),
            Field("uneven", 16, "Sum of the changes of the bins' widths.", "ps"),
        ),
        read,
        "What the last calibration that ended with a table found against the one before.",
        _RECEIVER,
    )
    add(
        "tracker_control",
        (
            Field("enable", 1, "1: the loop follows the source."),
            Field("window_log2", 5, "A window has 2^this slots; 12 to 24.", "slots"),
            Field("phase_shift", 5, "Gain of the phase is 2^-this."),
            Field("period_shift", 6, "A window's gain of the period is 2^-this."),
            Field("limit_log2", 5, "The period stays within 2^-this of its start; 10 at least."),
            Field("threshold", 4, "Coherence that a window must show, in sixteenths."),
            Field("lock_windows", 4, "Windows in a row that give the lock, or take it."),
        ),
        write,
        "Tracking loop; sampled from the first record after a reset of the tag path on.",
        _RECEIVER,
    )
    add("tracker_minimum", one(16, "Clicks."), write, "Fewest clicks of a window.", _RECEIVER)
    add(
        "tracker_gate",
        (_value(20, "Half width.", "ps"),),
        write,
        "While locked, clicks within this of their target are measured.",
        _RECEIVER,
    )
    add(
        "tracker_holdover",
        one(SLOT_BITS, "Slots."),
        write,
        "The lock ends this long after the last window that was followed.",
        _RECEIVER,
        (1 << SLOT_BITS) - 1,
    )
    add(
        "tracker_channels",
        one(CHANNELS, "Bit n: channel n."),
        write,
        "Channels whose clicks count.",
        _RECEIVER,
    )
    for channel in range(CHANNELS):
        add(
            f"tracker_target_{channel}",
            (_value(20, "Phase.", "ps"),),
            write,
            f"Phase at which pulses of channel {channel} are to lie.",
            _RECEIVER,
        )
    add(
        "tracker_status",
        (
            Field("locked", 1, "1 while the loop is locked."),
            Field("holding", 1, "1 while it holds over, or has not begun."),
        ),
        read,
        "State of the loop.",
        _RECEIVER,
    )
    add(
        "tracker_period",
        (_value(20 + PERIOD_FRACTION_BITS, "20.44 fixed point.", "ps"),),
        read,
        "Slot period in force; 0 before the first window.",
        _RECEIVER,
    )
    add("tracker_slot", one(SLOT_BITS, "Slot."), read, "Slot of the last correction.", _RECEIVER)
    add(
        "tracker_error",
        (
            Field("magnitude", 36, "20.16 fixed point.", "ps"),
            Field("early", 1, "1 where the pulses came before their target."),
        ),
        read,
        "Mean phase error of the last window that was followed.",
        _RECEIVER,
    )

    add(
        "receiver_kind",
        (_value(1, "Kind.", codes=ReceiverKind),),
        write,
        "Whether basis choices enter the gate table.",
        _RECEIVER,
        ReceiverKind.ACTIVE,
    )
    add(
        "choices_first_slot",
        one(SLOT_BITS, f"Slot number, a multiple of {CHOICES_PER_WORD}."),
        write,
        "Slot of the first basis choice fed after the block is opened, or in instrument mode "
        "after the tag path's restart.",
        _RECEIVER,
    )
    add(
        "choices_next_slot",
        one(SLOT_BITS, "Slot."),
        read,
        "Slot of the next basis choice fed.",
        _RECEIVER,
    )
    for channel in range(CHANNELS):
        add(
            f"current_limits_{channel}",
            (
                Field("low", 16, "Least sample without alarm."),
                Field("high", 16, "Largest sample without alarm."),
            ),
            write,
            f"Limits of the current samples of channel {channel}.",
            _RECEIVER,
            0xFFFF_0000,
        )
    add(
        "current_alarms",
        one(CHANNELS, "A bit a channel."),
        read,
        "Channels whose current has left its limits since the tag path's restart.",
        _RECEIVER,
    )

    start(0x100)
    for block, (roles, counters) in LEDGERS.items():
        for counter in counters:
            live = one(COUNTER_BITS, "Count.")
            add(f"{block}_{counter.name}", live, read, counter.meaning, roles)
            add(
                f"{block}_{counter.name}_at_frame",
                live,
                read,
                f"{block}_{counter.name} when the last frame marker passed.",
                roles,
            )

    start(0x400)
    add(
        "tag_input",
        (
            Field("real_time", 1, "1: the input never waits; what has no room is lost, counted."),
            Field("raw", 1, "1: tags go out on `raw` too, losses on `losses`; not in key mode."),
        ),
        write,
        "Tag FIFO and raw tags; set while the tag path is empty.",
        _RECEIVER,
    )
    add(
        "inputs",
        one(8, "Inputs."),
        read,
        "Inputs with conditioning; 0: tags come ready.",
        _RECEIVER,
    )
    add("merge_held", one(16, "Events."), read, "Events held by the merge.", _RECEIVER)
    add(
        "rate_alarm",
        one(TDC_INPUTS, "A bit an input."),
        read,
        "Inputs over their limit.",
        _RECEIVER,
    )
    add("rate_alarm_clear", one(TDC_INPUTS, "A bit an input."), command, "Clear alarms.", _RECEIVER)
    for index in range(TDC_INPUTS):
        add(
            f"condition_{index}",
            (
                Field("enable", 1, "1: its events pass."),
                Field("delay", 21, "Added to its times, two's complement.", "ps"),
                Field("paralysable", 1, "1: an event in the dead time begins it anew."),
                Field("dead_time", 28, "Least time between events; instrument mode only.", "ps"),
                Field("divider", 13, "One event in so many passes; instrument mode only."),
            ),
            write,
            f"Conditioning of input {index}; set while the tag path is empty.",
            _RECEIVER,
            1,
        )
        add(
            f"rate_{index}",
            one(32, f"Events in rate_windows_{index} windows of 2^36 ps."),
            read,
            f"Rate of input {index}, all events; in key mode of 10^4 events at least.",
            _RECEIVER,
        )
        add(
            f"rate_windows_{index}",
            one(24, "Windows of 2^36 ps."),
            read,
            f"Windows that rate_{index} is of; 0 before there is one.",
            _RECEIVER,
        )
        add(
            f"rate_limit_{index}",
            one(32, "Events in 2^36 ps."),
            write,
            "More raise the alarm; 0: none. In key mode no fewer than 10^4 do.",
            _RECEIVER,
        )
    add("tag_fifo_held", one(16, "Records."), read, "Records in the tag FIFO.", _RECEIVER)
    add(
        "frame_marker",
        one(1, "Any value."),
        command,
        "The next time record of the merge is a frame marker. Where there are no inputs, frame "
        "markers come among the tags.",
        _RECEIVER,
    )
    return tuple(registers)


REGISTERS: tuple[Register, ...] = _build()
"""Every register of both stations, by rising offset."""


def registers(role: Role) -> dict[str, Register]:
    """Registers of a station by name."""
    return {register.name: register for register in REGISTERS if role in register.roles}
