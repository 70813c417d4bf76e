# SPDX-License-Identifier: Apache-2.0
"""Records of the streams, described once."""

from __future__ import annotations

from enum import IntEnum

from .description import Direction, Field, Record, Role, Stream

TIME_BITS = 48
"""Width of a time in the fabric, ps; it wraps in 281 s."""
SLOT_BITS = 48
"""Width of a slot number."""
PHASE_BITS = 20
"""Width of a phase within a slot, ps; holds periods up to 1000 ns."""
CHANNEL_BITS = 6
"""Width of a channel number."""
CHANNELS = 8
"""Detector channels a receiver has; valid channel numbers are 0 to 7."""
PERIOD_FRACTION_BITS = 44
"""Fraction bits of the slot period, which is ps in 20.44 fixed point."""
PERIOD_MINIMUM_PS = 800
"""Shortest slot period, ps."""
PERIOD_MAXIMUM_PS = 1_000_000
"""Longest slot period, ps."""
RECIPROCAL_FRACTION_BITS = 57
"""The slotter's reciprocal is floor(2^57 / P), P in ps."""
GAP_MAXIMUM_PS = 1 << 47
"""Longest gap between two records of the tag stream, ps."""
DELAY_MAXIMUM_PS = 1_000_000
"""Largest delay of an input, forwards or backwards, ps."""
TAG_LEAD_MAXIMUM_PS = 1 << 23
"""A time tagger stamps no event later than this after the watermark of any input, ps."""
STATES_PER_WORD = 16
"""States in one record of the ``states`` stream."""
TIME_RECORD_LOG2_PS = 29
"""The merge puts a time record at each multiple of 2^29 ps (0.54 ms) into the tag stream."""
T2_TIME_BITS = 25
"""Width of the time in a T2 record; at 1 ps it wraps every 33.6 us."""
T2_OVERFLOW_CHANNEL = 63
"""Channel of the special T2 records that count wraps of the time."""
T2_OVERFLOW_MAXIMUM = 127
"""Most wraps in one T2 record: a common reader takes larger counts for something else."""
CHOICES_PER_WORD = 64
"""Basis choices in one record of the ``basis_choices`` stream."""
SYNC_WORDS = 64
"""Words of sixteen slots in the published sync pattern."""


class Randomness(IntEnum):
    """How good a source of randomness is; only hardware is information-theoretic."""

    TEST = 0
    """A seeded generator: repeatable, never secret."""
    OS = 1
    """The operating system's generator (computational)."""
    GENERATOR = 2
    """A standard cipher on the board (computational)."""
    HARDWARE = 3
    """A random generator device."""


class TagKind(IntEnum):
    """What a record of the tag path says."""

    CLICK = 0
    """A detector clicked."""
    TIME = 1
    """Nothing more comes before this time: darkness told from silence."""
    FRAME = 2
    """A frame marker: each block latches its counters as it passes."""
    LOSS = 3
    """Tags were lost; it opens a blank like a click. The channel field is a `LossMark`."""


class LossMark(IntEnum):
    """What the channel field of a loss record says."""

    AT = 0
    """Tags were lost at this time."""
    BEGIN = 1
    """A loss begins: nothing was lost before this time."""
    END = 2
    """A loss ends: everything after this time is there again."""


class T2Marker(IntEnum):
    """Markers in the T2 stream: channel of a special record, 1 to 15."""

    LOSS_BEGIN = 1
    """A loss begins; how much was lost is in the loss ledger."""
    LOSS_END = 2
    """A loss ends."""
    FRAME = 3
    """A frame marker passed."""


class Basis(IntEnum):
    """Basis of a state or a detection."""

    Z = 0
    """Key basis."""
    X = 1
    """Test basis."""


class Intensity(IntEnum):
    """Intensity class of a state."""

    SIGNAL = 0
    DECOY = 1


_TIME = Field("time", TIME_BITS, "Time of the event, modulo 2^48 ps.", "ps")
_CHANNEL = Field(
    "channel", CHANNEL_BITS, "Detector channel of a click, `LossMark` of a loss; else zero."
)
_KIND = Field("kind", 4, "What the record says.", codes=TagKind)
_SLOT = Field("slot", SLOT_BITS, "Slot number.")
_PHASE = Field("phase", PHASE_BITS, "Time since the slot began, rounded down.", "ps")
_BASIS = Field("basis", 1, "Basis: 0 is Z (key), 1 is X (test).", codes=Basis)
_BIT = Field("bit", 1, "Bit value.")
_INTENSITY = Field("intensity", 1, "Intensity class.", codes=Intensity)
_TEST = Field("test", 1, "1 where the detection is in the test basis X.")

TAG = Record("tag", 64, (_TIME, _CHANNEL, _KIND), "A stamped event, in time order.")
T2 = Record(
    "t2",
    32,
    (
        Field(
            "time",
            T2_TIME_BITS,
            "Time modulo 2^25 ps; in an overflow record the wraps it stands for, 1 to 127.",
            "ps",
        ),
        Field("channel", 6, "Channel; of a special record 63 (overflow) or a `T2Marker`."),
        Field("special", 1, "0: a click. 1: an overflow or a marker."),
    ),
    "A PicoQuant T2 record. The time of a record is the sum of all wraps before it times 2^25 ps, "
    "plus its own; the wraps count from time 0 of the fabric.",
)
LOSS = Record(
    "loss",
    144,
    (
        Field("begin", TIME_BITS, "Nothing was lost before this time.", "ps"),
        Field("end", TIME_BITS, "Nothing was lost after this time.", "ps"),
        Field("missed", 48, "Clicks lost from begin to end, both included."),
    ),
    "One loss of the tag FIFO, in the order of its markers in the stream.",
)
SLOT_TAG = Record(
    "slot_tag", 96, (_SLOT, _CHANNEL, _KIND, _PHASE), "A tag with the slot it fell into."
)
CHOSEN_TAG = Record(
    "chosen_tag",
    96,
    (
        _SLOT,
        _CHANNEL,
        _KIND,
        _PHASE,
        Field("choice", 1, "Basis choice of the slot; 0 in a passive receiver."),
    ),
    "A tag of a slot whose basis choice is known, or a marker.",
)
GATED_TAG = Record(
    "gated_tag",
    96,
    (
        _SLOT,
        _CHANNEL,
        _KIND,
        _BASIS,
        _BIT,
        Field("window", 1, "Which of the channel's two gate windows accepted it."),
        _PHASE,
    ),
    "A click that a gate window accepted, or a marker.",
)
DETECTION = Record(
    "detection", 56, (_SLOT, _KIND, _BASIS, _BIT), "One detection a slot at most, or a marker."
)
COIN = Record(
    "coin",
    8,
    (
        Field("bit", 1, "Fair coin that decides the bit."),
        Field("basis", 1, "Fair coin that decides the basis of a cross click."),
    ),
    "Fair coins for one multiple click; the next multiple click takes the next record.",
)
ANNOUNCEMENT = Record(
    "announcement",
    16,
    (
        Field("difference", 15, "15 bits of the difference to the last slot announced."),
        Field("more", 1, "1 where 15 lower bits follow in the next record."),
    ),
    "Slot of a detection as difference to the one before (to the block's first slot for the "
    "first), the highest 15 bits first; nothing about basis or bit.",
)
STATE = Record(
    "state",
    8,
    (
        _BASIS,
        _BIT,
        _INTENSITY,
        Field("present", 1, "1 where the slot was emitted and may be used."),
    ),
    "The state of one slot, and whether it was sent.",
)
STATE_BITS = 3
"""Bits of a state in `state_word`: basis, bit and intensity."""
STATE_WORD = Record(
    "state_word",
    STATES_PER_WORD * STATE_BITS,
    tuple(
        Field(f"state_{i}", STATE_BITS, f"Basis, bit, intensity of slot 16 k + {i}, as in `state`.")
        for i in range(STATES_PER_WORD)
    ),
    "States of sixteen slots in a row.",
)
MISSED_SLOT = Record("missed_slot", 48, (_SLOT,), "An announced slot that has left the ring.")
RECALLED = Record(
    "recalled",
    8,
    (
        _BASIS,
        _BIT,
        _INTENSITY,
        Field("present", 1, "1 where the slot was emitted and may be used."),
        Field("known", 1, "0 where the state is past this horizon too: it has expired."),
    ),
    "The answer to a missed slot, in the order of the missed slots.",
)
KEY_WORD = Record(
    "key_word", 64, (Field("bits", 64, "64 bits of the key, the first in bit 0."),), "Cipher key."
)
CHOICE_WORD = Record(
    "choice_word",
    CHOICES_PER_WORD,
    (Field("choices", CHOICES_PER_WORD, "Basis choice of slot 64 k + i in bit i."),),
    "Basis choices of 64 slots in a row, for an active receiver.",
)
CURRENT_SAMPLE = Record(
    "current_sample",
    80,
    (_TIME, _CHANNEL, Field("sample", 16, "Sample, in the converter's own unit.")),
    "A sample of a detector's bias current or photocurrent.",
)
RECEIVER_ENTRY = Record(
    "receiver_entry", 8, (_BASIS, _BIT), "What the receiver keeps of a detection until its bases."
)
SENDER_ENTRY = Record(
    "sender_entry",
    8,
    (
        _BASIS,
        _BIT,
        _INTENSITY,
        Field("present", 1, "0 where the state had expired or the slot was not emitted."),
    ),
    "What the sender keeps of an announced slot until the basis phase.",
)
BASIS = Record("basis", 8, (_BASIS,), "Basis of a detection, in the order of announcements.")
REPLY = Record(
    "reply",
    8,
    (
        Field("keep", 1, "1 where both bases agree and the state is known."),
        Field("opened", 1, "1 where the sender opens its bit: kept and in the test basis."),
        Field("bit", 1, "The sender's bit where it is opened, else 0."),
    ),
    "The sender's reply to a basis, one each, in order.",
)
SENDER_SIFTED = Record(
    "sender_sifted", 8, (_BIT, _TEST, _INTENSITY), "A kept detection on the sender's side."
)
RECEIVER_SIFTED = Record(
    "receiver_sifted",
    8,
    (
        _BIT,
        _TEST,
        Field("error", 1, "In the test basis: 1 where the opened bit differs; else 0."),
    ),
    "A kept detection on the receiver's side.",
)
HISTOGRAM_BIN = Record(
    "histogram_bin",
    32,
    (Field("count", 32, "Clicks in the bin, saturating."),),
    "Bins of channel 0 from phase 0 up, then those of channel 1, and so on.",
)
TOEPLITZ_WORD = Record(
    "toeplitz_word",
    64,
    (Field("bits", 64, "64 bits of key, seed or hashed key, the first in bit 0."),),
    "A word of the Toeplitz engine.",
)

RECORDS: tuple[Record, ...] = (
    TAG,
    T2,
    LOSS,
    SLOT_TAG,
    CHOSEN_TAG,
    GATED_TAG,
    DETECTION,
    COIN,
    ANNOUNCEMENT,
    STATE,
    STATE_WORD,
    MISSED_SLOT,
    RECALLED,
    KEY_WORD,
    CHOICE_WORD,
    CURRENT_SAMPLE,
    RECEIVER_ENTRY,
    SENDER_ENTRY,
    BASIS,
    REPLY,
    SENDER_SIFTED,
    RECEIVER_SIFTED,
    HISTOGRAM_BIN,
    TOEPLITZ_WORD,
)
"""Every record, in the order of the manual."""

_S, _R = (Role.SENDER,), (Role.RECEIVER,)
_BOTH = (Role.SENDER, Role.RECEIVER)
_IN, _OUT = Direction.TO_BOARD, Direction.TO_HOST

STREAMS: tuple[Stream, ...] = (
    Stream("tags", _IN, TAG, _R, True, "Stamped events of the detectors, in time order."),
    Stream("raw", _OUT, T2, _R, True, "Raw tags as T2 records; instrument mode only."),
    Stream("losses", _OUT, LOSS, _R, True, "Ledger of losses; instrument mode only."),
    Stream("coins", _IN, COIN, _R, True, "The host's random bits for multiple clicks."),
    Stream(
        "basis_choices", _IN, CHOICE_WORD, _R, True, "Active receiver: its basis choice by slot."
    ),
    Stream("currents", _IN, CURRENT_SAMPLE, _R, True, "Samples of the detectors' currents."),
    Stream("gated", _OUT, GATED_TAG, _R, True, "Accepted tags; instrument mode only."),
    Stream("histogram", _OUT, HISTOGRAM_BIN, _R, True, "Histograms, on command."),
    Stream("states", _IN, STATE_WORD, _S, True, "States of the slots, from the first slot up."),
    Stream("missed", _OUT, MISSED_SLOT, _S, False, "Announced slots that have left the ring."),
    Stream("recalled", _IN, RECALLED, _S, True, "The control PC's answers to missed slots."),
    Stream("generator_key", _IN, KEY_WORD, _S, True, "Key of the on-board generator, 4 words."),
    Stream("announcements", _OUT, ANNOUNCEMENT, _R, False, "Slots of detections, live."),
    Stream("announcements", _IN, ANNOUNCEMENT, _S, False, "Slots the receiver announced."),
    Stream("bases", _OUT, BASIS, _R, False, "Bases of the closed block's detections."),
    Stream("bases", _IN, BASIS, _S, False, "Bases the receiver announced."),
    Stream("replies", _OUT, REPLY, _S, False, "Keep or drop, with the opened test bits."),
    Stream("replies", _IN, REPLY, _R, False, "Replies of the sender."),
    Stream("sifted", _OUT, SENDER_SIFTED, _S, True, "Kept detections, sender's side."),
    Stream("sifted", _OUT, RECEIVER_SIFTED, _R, True, "Kept detections, receiver's side."),
    Stream("block_out", _OUT, SENDER_ENTRY, _S, True, "Block memory to the control PC."),
    Stream("block_in", _IN, SENDER_ENTRY, _S, True, "Block memory from the control PC."),
    Stream("block_out", _OUT, RECEIVER_ENTRY, _R, True, "Block memory to the control PC."),
    Stream("block_in", _IN, RECEIVER_ENTRY, _R, True, "Block memory from the control PC."),
    Stream("toeplitz_key", _IN, TOEPLITZ_WORD, _BOTH, True, "Reconciled key, packed."),
    Stream("toeplitz_seed", _IN, TOEPLITZ_WORD, _BOTH, True, "Seed, packed by diagonals."),
    Stream("toeplitz_out", _OUT, TOEPLITZ_WORD, _BOTH, True, "Hashed key."),
)
"""Every stream of both stations, in the order of the manual."""


def streams(role: Role) -> dict[str, Stream]:
    """Streams of a station by name."""
    return {stream.name: stream for stream in STREAMS if role in stream.roles}


def sync_pattern() -> tuple[int, ...]:
    """Bits of the published sync slots, sixteen a word, the first slot in bit 0.

    The first 1024 bits of the pseudo-random sequence of x^15 + x^14 + 1 from all ones (PRBS15 of
    ITU-T O.150, not inverted). A sync slot carries its bit in basis Z with signal intensity.

    Returns
    -------
    tuple of int
        `SYNC_WORDS` words of 16 bits.
    """
    register, bits = (1 << 15) - 1, []
    for _ in range(SYNC_WORDS * STATES_PER_WORD):
        bit = (register >> 14 ^ register >> 13) & 1
        register = (register << 1 | bit) & 0x7FFF
        bits.append(bit)
    return tuple(
        sum(bits[STATES_PER_WORD * w + i] << i for i in range(STATES_PER_WORD))
        for w in range(SYNC_WORDS)
    )


def reciprocal(period: int) -> int:
    """Reciprocal that the slotter needs beside its period.

    Parameters
    ----------
    period
        Slot period, ps in 20.44 fixed point.

    Returns
    -------
    int
        floor(2^57 / P) with P in ps: at most 48 bits for any period from 800 ps up.

    Raises
    ------
    ValueError
        If the period lies outside 800 ps to 1000 ns.
    """
    one = 1 << PERIOD_FRACTION_BITS
    if not PERIOD_MINIMUM_PS * one <= period <= PERIOD_MAXIMUM_PS * one:
        raise ValueError(
            f"slot period {period / one} ps, allowed are "
            f"{PERIOD_MINIMUM_PS} to {PERIOD_MAXIMUM_PS} ps"
        )
    return (1 << (RECIPROCAL_FRACTION_BITS + PERIOD_FRACTION_BITS)) // period
