# SPDX-License-Identifier: Apache-2.0
"""The main job: two simulated stations, from photons to identical secret keys."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from keyrail import acquire, board, tag_path
from keyrail.contract import PERIOD_FRACTION_BITS, STATES_PER_WORD, Mode, TagKind
from keyrail.errors import KeyrailError, MissingExtra, SettingError
from keyrail.link import memory_pair
from keyrail.messages import ProtocolError
from keyrail.randomness import OsRandom, RandomSource, TestRandom
from keyrail.session import BlockResult, ReceiverDistiller, SenderDistiller, run_pair
from keyrail.source import random_states
from keyrail.station import ReceiverStation, SenderStation, check_tallies

if TYPE_CHECKING:
    from keyrail_sim.photonics import Photonics

BACKENDS = {"rtl": "sim", "model": "sim-model"}
"""Kind of board by the name of the back end."""
MINIMUM_SLOTS, MAXIMUM_SLOTS = 10_000, 100_000_000
TRAINING_SLOTS = 1 << 20
"""Published slots before the block, for period, phase and slot origin."""
CHUNK_SLOTS = 1 << 16
"""Slots emitted between two looks at the announcements: half the sender's horizon of 2^17."""
NOMINAL_PERIOD_PS = 10_000
BLANKING_SLOTS = 5
"""Slots blanked after each raw click: they last longer than the detectors' dead time."""
P_Z, P_SIGNAL = 0.7, 0.3
INTENSITIES = (0.6, 0.2)

Progress = Callable[[str, float, str], None]


@dataclass(frozen=True)
class DemoSettings:
    """Settings of one run.

    Parameters
    ----------
    distance_km
        Length of the fibre, 0 to 500 km.
    slots
        Slots of the block, 10^4 to 10^8.
    seed
        Seed of test randomness; None takes the operating system's for all secrets.
    backend
        ``rtl`` or ``model``.
    eve
        Share of pulses that an eavesdropper intercepts and resends, 0 to 1.
    """

    distance_km: float = 25.0
    slots: int = 10_000_000
    seed: int | None = None
    backend: str = "rtl"
    eve: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.distance_km <= 500:
            raise SettingError("--distance", self.distance_km, "0 to 500 km")
        if not MINIMUM_SLOTS <= self.slots <= MAXIMUM_SLOTS:
            raise SettingError("--slots", self.slots, f"{MINIMUM_SLOTS} to {MAXIMUM_SLOTS}")
        if self.seed is not None and not 0 <= self.seed < 1 << 64:
            raise SettingError("--seed", self.seed, "0 to 2^64 - 1")
        if self.backend not in BACKENDS:
            raise SettingError("--backend", self.backend, " or ".join(BACKENDS))
        if not 0 <= self.eve <= 1:
            raise SettingError("--eve", self.eve, "0 to 1")


@dataclass
class Timeline:
    """Rates over the block, from what the stations know: cut into equal parts of its slots."""

    seconds: npt.NDArray[np.float64]
    detections: npt.NDArray[np.int64]
    test: npt.NDArray[np.int64]
    test_errors: npt.NDArray[np.int64]


@dataclass
class DemoResult:
    """What one run gave.

    Attributes
    ----------
    settings
        As asked for.
    detections
        Slots announced and kept in the block.
    sender, receiver
        Result of the block on either side.
    keys_equal
        True if both stations hold the same key of at least one bit.
    hash_on
        ``board`` or ``host``.
    clicks, dropped
        Clicks of the block, and those dropped by ``block: reason``.
    histogram, bin_ps, gate
        Phase histograms of the block (None if the board held them back), and the gate, ps.
    period_ps, visibility
        What the training found.
    cycles
        Simulated clocks by station; empty with the model.
    seconds
        Time by stage.
    """

    settings: DemoSettings
    detections: int
    sender: BlockResult
    receiver: BlockResult
    keys_equal: bool
    hash_on: str
    clicks: int
    dropped: dict[str, int]
    histogram: npt.NDArray[np.int64] | None
    bin_ps: int
    gate: tuple[int, int]
    period_ps: float
    visibility: float
    timeline: Timeline
    seconds: dict[str, float]
    cycles: dict[str, int] = field(default_factory=dict)
    simulation_seconds: dict[str, float] = field(default_factory=dict)


@dataclass
class _Timer:
    """Adds up the time of each stage, and passes progress on."""

    progress: Progress
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[Callable[..., None]]:
        """Time one stage; the value reports the share done and a note."""
        began = time.perf_counter()
        self.progress(name, 0.0, "")

        def report(share: float, note: str = "") -> None:
            self.progress(name, share, note)

        try:
            yield report
        finally:
            self.seconds[name] = self.seconds.get(name, 0) + time.perf_counter() - began


def _sources(seed: int | None) -> Callable[[str], RandomSource]:
    if seed is None:
        return lambda purpose: OsRandom()
    return lambda purpose: TestRandom(seed, purpose)


@dataclass(frozen=True)
class _Tuning:
    """What the receiver learns from the training slots."""

    period: int
    origin_ps: int
    gate: tuple[int, int]
    visibility: float


def _train(receiver: board.Board, photonics: Photonics) -> _Tuning:
    """Find period, phase, slot origin and gate from the published training slots.

    The tags go through the tag path in instrument mode with every gate open; slot and phase of
    what comes out give the times back.
    """
    pattern = training_states(TRAINING_SLOTS)
    clicks = photonics.detect(pattern, 0)
    receiver.write("mode", Mode.INSTRUMENT)
    nominal = NOMINAL_PERIOD_PS << PERIOD_FRACTION_BITS
    if len(clicks.times) == 0:
        raise TrainingError("no click during the training slots")
    start = int(clicks.times[0]) - NOMINAL_PERIOD_PS
    tag_path.set_slots(receiver, nominal, start)
    receiver.write("blanking_slots", BLANKING_SLOTS)
    tag_path.open_gates(receiver, tag_path.OUTCOMES, nominal)
    receiver.send("tags", tag_path.tag_records(clicks.times, clicks.channels, clicks.until))
    receiver.run()
    gated = receiver.receive("gated")
    gated = gated[gated["kind"] == TagKind.CLICK]
    times = gated["slot"].astype(np.int64) * NOMINAL_PERIOD_PS + gated["phase"].astype(np.int64)
    found = acquire.acquire(times, gated["channel"], frequency_hint=1e12 / NOMINAL_PERIOD_PS)
    period_ps = found.period_fixed / (1 << PERIOD_FRACTION_BITS)
    # Slots of the receiver's own count, each with its pulse in the middle.
    slots = np.floor((times - found.origin_ps) / period_ps).astype(np.int64)
    shift = min(0, int(slots.min(initial=0)))
    first = find_first_slot(slots - shift, pattern) + shift
    origin = start + found.origin_ps + round(first * period_ps)

    # The gate comes from the board's own histogram, with the slots as they will be used.
    tag_path.set_slots(receiver, found.period_fixed, origin)
    tag_path.open_gates(receiver, tag_path.OUTCOMES, found.period_fixed)
    receiver.send("tags", tag_path.tag_records(clicks.times, clicks.channels, clicks.until))
    receiver.run()
    receiver.receive("gated")
    histogram = tag_path.read_histogram(receiver)
    if histogram is None:
        raise board.BoardError(f"{receiver.name}: no histogram in instrument mode")
    bin_ps = 1 << receiver.read("histogram_shift")
    # One window for all channels: unequal gates would tell detectors apart.
    gate = acquire.window(histogram.sum(axis=0), bin_ps, period_ps)
    return _Tuning(found.period_fixed, origin, gate, found.visibility)
