# SPDX-License-Identifier: Apache-2.0
"""The main job: two simulated stations, from photons to identical secret keys."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from keyrail import acquire, board, tag_path
from keyrail.contract import PERIOD_FRACTION_BITS, STATES_PER_WORD, Mode, Role
from keyrail.distil.estimate import DecoySource
from keyrail.errors import MissingExtra, SettingError
from keyrail.link import memory_pair
from keyrail.messages import ProtocolError
from keyrail.randomness import OsRandom, RandomSource, TestRandom, security, uses_text
from keyrail.session import (
    BlockResult,
    DistilSettings,
    ReceiverDistiller,
    SenderDistiller,
    run_pair,
)
from keyrail.simulated_generator import simulated_generator
from keyrail.source import quantised, random_states
from keyrail.station import ReceiverStation, SenderStation, check_tallies
from keyrail.training import TrainingError, training_states
from keyrail.tuning import NOMINAL_PERIOD_PS, tune

if TYPE_CHECKING:
    from keyrail_sim.photonics import Photonics

BACKENDS = {"rtl": "sim", "model": "sim-model"}
"""Kind of board by the name of the back end."""
STATES_FROM = ("host", "generator")
MINIMUM_SLOTS, MAXIMUM_SLOTS = 10_000, 100_000_000
TRAINING_SLOTS = 1 << 20
"""Published slots before the block, for period, phase and slot origin."""
CHUNK_SLOTS = 1 << 16
"""Slots emitted between two looks at the announcements: half the sender's horizon of 2^17."""
P_Z, P_SIGNAL = 0.7, 0.3
INTENSITIES = (0.6, 0.2)

Progress = Callable[[str, float, str], None]
_HASHED_ON = {"board": "both boards", "host": "both control PCs (whole)", "": "-"}


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
    states
        ``host``, which draws the states and feeds them, or ``generator``: the board makes them by
        a standard cipher (computational).
    """

    distance_km: float = 25.0
    slots: int = 10_000_000
    seed: int | None = None
    backend: str = "rtl"
    eve: float = 0.0
    states: str = "host"

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
        if self.states not in STATES_FROM:
            raise SettingError("--states", self.states, " or ".join(STATES_FROM))


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
    accepted
        Both stations hold a key.
    reason
        Why there is none, else empty.
    keys_equal
        True if both hold the same key, of one bit at least.
    detections, clicks
        Slots announced and kept in the block; clicks that entered the tag path.
    result
        The sender's result of the block; None if the block was never distilled.
    hash_on
        ``board`` or ``host``; empty if nothing was hashed.
    dropped
        Clicks that made no detection, by ``block: reason``.
    histogram, bin_ps, gate, period_ps, visibility
        Phase histograms of the block (None if the board held them back), and what the training
        found.
    tracking
        The loop at the end of the block: lock, period, and its windows by what became of them.
    timeline
        Rates over the block; None without detections.
    randomness
        Label of the source of each use.
    seconds, cycles
        Time by stage, and simulated clocks by station (none with the model).
    """

    settings: DemoSettings
    accepted: bool = False
    reason: str = ""
    keys_equal: bool = False
    detections: int = 0
    clicks: int = 0
    result: BlockResult | None = None
    qber_z: float | None = None
    hash_on: str = ""
    block_on_host: bool = False
    dropped: dict[str, int] = field(default_factory=dict)
    histogram: npt.NDArray[np.int64] | None = None
    bin_ps: int = 1
    gate: tuple[int, int] = (0, 0)
    period_ps: float = 0.0
    visibility: float = 0.0
    tracking: dict[str, Any] = field(default_factory=dict)
    timeline: Timeline | None = None
    randomness: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    cycles: dict[str, int] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Result for JSON; no secret is in it."""
        result = self.result or BlockResult()
        return {
            "distance_km": self.settings.distance_km,
            "backend": self.settings.backend,
            "eve": self.settings.eve,
            "seed": self.settings.seed,
            "slots": self.settings.slots,
            "clicks": self.clicks,
            "detections": self.detections,
            "sifted_bits": result.sifted_bits,
            "qber_z": result.qber_z,
            "qber_x": result.qber_x,
            "leak_bits": result.leak_bits,
            "leak": result.leak,
            "reconciliation_efficiency": result.efficiency,
            "secret_bits": result.secret_bits,
            "secret_bits_are": "an estimate (Rusca et al. 2018, 1-decoy)",
            "keys_equal": self.keys_equal,
            "accepted": self.accepted,
            "reason": self.reason,
            "verified": result.verified,
            "link_authenticated": result.authenticated,
            "hash_on": self.hash_on,
            "block_memory_on": "host" if self.block_on_host else "board",
            "states_from": self.settings.states,
            "randomness": self.randomness,
            "security": security(self.randomness.values()),
            "dropped": self.dropped,
            "period_ps": self.period_ps,
            "tracking": self.tracking,
            "seconds": {stage: round(spent, 3) for stage, spent in self.seconds.items()},
            "simulated_cycles": self.cycles,
        }

    def summary(self) -> list[tuple[str, str]]:
        """Rows of the last table."""
        result = self.result or BlockResult()

        def rate(value: float | None) -> str:
            return "not known" if value is None else f"{value:.2%}"

        rows = [
            ("Fibre", f"{self.settings.distance_km:g} km"),
            ("Slots", f"{self.settings.slots:,}"),
            ("Detections", f"{self.detections:,} of {self.clicks:,} clicks"),
            ("Sifted bits (Z)", f"{result.sifted_bits:,}"),
            ("QBER in Z", rate(result.qber_z)),
            ("QBER in X", rate(result.qber_x)),
            ("Leak", f"{result.leak_bits:,} bits"),
            ("Secret bits (estimate)", f"{result.secret_bits:,}"),
            ("Keys equal", "yes" if self.keys_equal else "no key"),
            (
                "Hashed on",
                {"board": "both boards", "host": "both control PCs"}.get(self.hash_on, "-"),
            ),
            ("Block memory on", "control PC" if self.block_on_host else "board"),
            ("Randomness", uses_text(self.randomness) or "none was used"),
            ("Security by randomness", security(self.randomness.values())),
            ("Classical link", "authenticated" if result.authenticated else "NOT authenticated"),
        ]
        if self.tracking:
            locked = "locked" if self.tracking["locked"] else "not locked"
            windows = f"{self.tracking['corrections']:,} of {self.tracking['windows']:,} windows"
            rows.append(("Source's clock", f"{locked}, {windows} followed"))
        if self.reason:
            rows.append(("No key because", self.reason))
        rows += [(f"Time: {stage}", f"{spent:.1f} s") for stage, spent in self.seconds.items()]
        for station, cycles in self.cycles.items():
            rows.append((f"Simulated clocks, {station}", f"{cycles:,}"))
        return rows


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


def run(settings: DemoSettings, progress: Progress = lambda stage, share, note: None) -> DemoResult:
    """Run two simulated stations on a simulated fibre, through to keys.

    Parameters
    ----------
    settings
        What to run.
    progress
        Called with stage, share done (0 to 1) and a note.

    Returns
    -------
    DemoResult
        With a key, or with the reason why there is none.

    Raises
    ------
    KeyrailError
        If a board or the simulation fails.
    """
    try:
        from keyrail_sim.photonics import LinkSettings
        from keyrail_sim.photonics import Photonics as Simulator
    except ModuleNotFoundError as error:
        raise MissingExtra(error.name or "keyrail_sim", "sim") from None
    seed = settings.seed
    sources = _sources(seed)
    outcome = DemoResult(settings)
    timer = _Timer(progress, outcome.seconds)
    source = DecoySource(INTENSITIES, (quantised(P_SIGNAL), 1 - quantised(P_SIGNAL)))
    # The world's chance is no secret of a station: it is always drawn from a seed.
    world = seed if seed is not None else int.from_bytes(OsRandom().bytes(8), "little")
    photonics = Simulator(
        LinkSettings(
            distance_km=settings.distance_km,
            intensities=INTENSITIES,
            receiver_p_z=P_Z,
            eve_share=settings.eve,
            period_ps=NOMINAL_PERIOD_PS,
        ),
        world,
    )
    kind = BACKENDS[settings.backend]
    with ExitStack() as stack:
        if settings.backend == "rtl":
            from keyrail_sim import verilated

            missing = [role.name.lower() for role in Role if not verilated.is_built(role)]
            if missing:
                with timer.stage("build the simulated boards (kept for next time)"):
                    verilated.build_all()
        with timer.stage("open the boards"):
            alice_board = stack.enter_context(board.open(f"{kind}:alice"))
            bob_board = stack.enter_context(board.open(f"{kind}:bob"))
        try:
            _block(settings, outcome, timer, alice_board, bob_board, photonics, source, sources)
        except (TrainingError, acquire.NoPeriodError, ProtocolError) as error:
            outcome.reason = str(error)
        for station, opened in (("sender", alice_board), ("receiver", bob_board)):
            if hasattr(opened, "cycles"):
                outcome.cycles[station] = opened.cycles
            opened.write("wipe", 1)
            opened.run()
    return outcome


def _block(
    settings: DemoSettings,
    outcome: DemoResult,
    timer: _Timer,
    alice_board: board.Board,
    bob_board: board.Board,
    photonics: Photonics,
    source: DecoySource,
    sources: Callable[[str], RandomSource],
) -> None:
    with timer.stage("training"):
        pattern = training_states(TRAINING_SLOTS)
        clicks = photonics.detect(pattern, 0)
        tuning = tune(bob_board, clicks.times, clicks.channels, pattern, 0)
    outcome.gate, outcome.visibility = tuning.gate, tuning.visibility
    outcome.period_ps = tuning.period / (1 << PERIOD_FRACTION_BITS)

    alice_end, bob_end = memory_pair()
    coins, states = sources("coins"), sources("states")
    made, states_of = None, None
    if settings.states == "generator":
        drawn = sources("generator key")
        made, states_of = simulated_generator(drawn, P_Z, P_SIGNAL)
        outcome.randomness["generator key"] = drawn.label
    alice = SenderStation(alice_board, alice_end, states.label, made)
    bob = ReceiverStation(bob_board, bob_end, coins)
    alice_board.write("mode", Mode.KEY)
    alice_board.run()
    bob.enter_key_mode()
    tuning.apply(bob_board)

    first, last = TRAINING_SLOTS, TRAINING_SLOTS + settings.slots - 1
    # A block that could outgrow the board's memory lies in the control PC from the start.
    memory = 1 << alice_board.read_fields("configuration")["block_memory_log2"]
    expected = settings.slots * tuning.detections_per_slot
    outcome.block_on_host = on_host = 1.1 * expected > memory
    counts: list[int] = []
    with timer.stage("quantum phase") as report:
        alice.open(1, first, last, on_host)
        # By the board's own word: it knows of its generator, whatever the host says.
        outcome.randomness |= {**alice_board.randomness(), "coins": coins.label}
        bob.open(on_host)
        for begin in range(0, settings.slots, CHUNK_SLOTS):
            slots = min(CHUNK_SLOTS, settings.slots - begin)
            emitted = np.zeros(-(-slots // STATES_PER_WORD) * STATES_PER_WORD, np.uint8)
            if states_of is not None:
                emitted[:slots] = states_of(first + begin, slots)
            else:
                emitted[:slots] = random_states(states.bytes, slots, P_Z, source.probabilities[0])
                alice.emit(emitted)
            clicks = photonics.detect(emitted[:slots], first + begin)
            counts.append(bob.measure(clicks.times, clicks.channels))
            alice.look_up()
            report((begin + slots) / settings.slots, f"{counts[-1]:,} detections")
        # What the detectors still hold of the last slots, and a time record after the block.
        clicks = photonics.flush()
        end = tuning.origin_ps + round((last + 3) * outcome.period_ps)
        bob.measure(clicks.times, clicks.channels, max(end, int(clicks.times.max(initial=0))))
        tag_path.send_frame(bob_board, max(end, int(clicks.times.max(initial=0))) + 1)
        bob_board.run()
        tuning.check_lock(bob_board)
        outcome.tracking = tag_path.tracking_summary(bob_board)
        alice.look_up()
        outcome.dropped = tag_path.check_ledgers(bob_board, tag_path.CHAIN)
        outcome.clicks = bob_board.ledger("slotter")["in"]
        outcome.histogram = tag_path.read_histogram(bob_board)
        outcome.bin_ps = 1 << bob_board.read("histogram_shift")
    with timer.stage("basis phase"):
        bob.announce_close()
        alice.close()
        bob.close()
        outcome.detections = bob_board.read("block_count")
        bob.announce_bases()
        at_alice = alice.answer_bases()
        at_bob = bob.resolve()
        check_tallies(alice_board, bob_board)
    outcome.timeline = _timeline(settings, outcome, bob, at_bob.test_error)
    with timer.stage("distillation") as report:
        agreed = DistilSettings(source)
        sender = SenderDistiller(
            alice_end,
            at_alice.key,
            at_alice.key_intensity,
            at_alice.test_intensity,
            agreed,
            sources,
            alice.hash_block,
        )
        receiver = ReceiverDistiller(
            bob_end, at_bob.key, at_bob.test_error, agreed, sources, bob.hash_block
        )
        ours, theirs = run_pair(sender, receiver, report)
    outcome.result = ours
    outcome.randomness |= ours.randomness | theirs.randomness
    outcome.hash_on = alice.hash_on
    outcome.accepted = ours.accepted and theirs.accepted
    outcome.reason = ours.reason or theirs.reason
    if ours.secret is not None and theirs.secret is not None:
        # Only a demonstration can do this: no station ever sees the other's key.
        outcome.keys_equal = len(ours.secret) > 0 and np.array_equal(ours.secret, theirs.secret)
    for station in (alice, bob):
        station.discard()


def _timeline(
    settings: DemoSettings, outcome: DemoResult, bob: ReceiverStation, test_error: npt.NDArray[Any]
) -> Timeline | None:
    slots = bob.slots() - TRAINING_SLOTS
    if len(slots) == 0:
        return None
    parts = 50
    part = slots * parts // settings.slots
    tested = part[bob.tested]
    return Timeline(
        (np.arange(parts) + 0.5) / parts * settings.slots * outcome.period_ps * 1e-12,
        np.bincount(part, minlength=parts),
        np.bincount(tested, minlength=parts),
        np.bincount(tested[test_error == 1], minlength=parts),
    )
