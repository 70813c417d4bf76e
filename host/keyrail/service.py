# SPDX-License-Identifier: Apache-2.0
"""Processes that run until they are stopped: ``keyrail station`` and ``keyrail fibre``."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from keyrail import board
from keyrail.authentication import PAD_BITS, Pool
from keyrail.contract import Mode, Role
from keyrail.distil.estimate import binary_entropy, estimate_key_length, expected_counts
from keyrail.errors import KeyrailError, MissingExtra
from keyrail.exchange import Exchange, Pump
from keyrail.fibre import FibreReceiver, FibreSender, FibreServer
from keyrail.keystore import Keystore
from keyrail.light import Detector
from keyrail.operation import (
    PADS_PER_BLOCK,
    ReceiverOperation,
    ReceiverRunner,
    Runner,
    SenderOperation,
    SenderRunner,
)
from keyrail.pin_operation import (
    DetectorPins,
    PinReceiverRunner,
    PinSenderRunner,
    SourcePins,
)
from keyrail.randomness import (
    DeviceRandom,
    Label,
    OsRandom,
    RandomSource,
    TestRandom,
    named_label,
    security,
    uses_text,
)
from keyrail.settings import FibreSettings, StationSettings
from keyrail.simulated_generator import simulated_generator
from keyrail.transport import ZmqTransport
from keyrail.tuning import BLANKING_SLOTS

Say = Callable[[str], None]
_LABELS: dict[str, Label] = {"os": "os", "device": "hardware", "test": "test"}


@contextmanager
def until_stopped() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set, as long as the context lasts."""
    stopping = threading.Event()

    def stop(number: int, frame: Any) -> None:
        stopping.set()

    former = {each: signal.signal(each, stop) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopping
    finally:
        for each, handler in former.items():
            signal.signal(each, handler)


def plan_line(settings: StationSettings) -> str:
    """What a block is expected to give, and what of it authentication spends."""
    plan = settings.plan
    counts = expected_counts(
        plan.block_slots, plan.source, distance_km=0, receiver_loss_db=settings.planned_loss_db,
        sender_p_z=plan.p_z, dead_slots=BLANKING_SLOTS,
    )  # fmt: skip
    # 1.5 times the Shannon limit is what reconciliation takes at present.
    leak = 1.5 * binary_entropy(counts.qber_z) * sum(counts.n_z) + 127
    secret = estimate_key_length(
        counts, plan.source, leak, eps_sec=plan.eps_sec, eps_cor=plan.eps_cor
    ).secret_bits
    spent = sum(PADS_PER_BLOCK.values()) * PAD_BITS
    line = (
        f"plan at {settings.planned_loss_db:g} dB: {secret:,} bits (estimate) a block of "
        f"{plan.block_slots:,} slots; authentication spends {spent} bits"
    )
    if not secret:
        return f"{line}; WARNING: no key is expected, the pools will run dry"
    share = spent / secret
    line += f", {share:.1%} of it"
    if share > plan.authentication_share:
        line += (
            f"; WARNING: more than authentication_share = {plan.authentication_share:g}: "
            "the pools will run dry, make the blocks longer"
        )
    return line


def run_station(settings: StationSettings, say: Say, blocks: int | None = None) -> dict[str, Any]:
    """Run a station until SIGINT or SIGTERM, or until so many blocks have ended.

    Parameters
    ----------
    settings
        Of the station.
    say
        Takes one line for the operator.
    blocks
        Blocks to make; None for no end.

    Returns
    -------
    dict
        Counts for JSON; no secret is in it.

    Raises
    ------
    KeyrailError
        If the station cannot begin, or must stop.
    """
    say(plan_line(settings))
    with ExitStack() as stack:
        stopping = stack.enter_context(until_stopped())
        keystore = Keystore(settings.keystore)
        stack.callback(keystore.close)
        pool = Pool(settings.pool, settings.role, keystore)
        stack.callback(pool.close)
        opened = stack.enter_context(board.open(settings.board))
        if opened.role is not settings.role:
            raise KeyrailError(
                f"{settings.board}: a {opened.role.name.lower()}, and a "
                f"{settings.role.name.lower()} is set"
            )
        transport = ZmqTransport(listen=settings.listen, connect=settings.connect)
        stack.callback(transport.close)
        exchange = Exchange(
            settings.role, transport, pool.live_key, pool.link_id, settings.plan.shared(),
            lambda: pool.counters, OsRandom(), settings.timing,
        )  # fmt: skip

        def sources(purpose: str) -> RandomSource:
            return random_source(settings, opened.randomness_may_be_test, purpose)

        common = (opened, exchange, pool, keystore, sources, settings.plan, say, True)
        runner = _runner(settings, stack, common, blocks)
        pump = Pump(exchange)
        pump.start()
        stack.callback(pump.stop)
        say(f"{settings.role.name.lower()} on {settings.board}; {runner.budget()}")
        say(f"randomness: {randomness_text(settings, runner)}")
        _loop(runner, pump, stopping, say)
        say(f"stopped; {runner.budget()}")
        return _summary(runner)


def random_source(settings: StationSettings, may_be_test: bool, purpose: str) -> RandomSource:
    """Source of randomness for a purpose, as set; seeded only where the board may be tested."""
    if settings.randomness == "test" and may_be_test:
        return TestRandom(settings.seed, f"{settings.role.name.lower()} {purpose}")
    return OsRandom() if settings.device is None else DeviceRandom(str(settings.device))


def _runner(
    settings: StationSettings, stack: ExitStack, common: tuple[Any, ...], blocks: int | None
) -> SenderOperation | ReceiverOperation:
    """The station in operation, on a board with pins or on a simulated one."""
    opened: board.Board = common[0]
    if isinstance(settings.pins, SourcePins):
        return PinSenderRunner(*common, pins=settings.pins, blocks=blocks)
    if isinstance(settings.pins, DetectorPins):
        opened.write("mode", Mode.INSTRUMENT)
        # Before each training again; here a board that cannot is refused at once.
        settings.pins.calibrate(opened)
        settings.pins.apply(opened)
        return PinReceiverRunner(*common, pins=settings.pins, blocks=blocks)
    if settings.fibre is None:
        raise KeyrailError(f"{settings.board}: a simulated board has its light through a fibre")
    if settings.role is Role.RECEIVER:
        detects = FibreReceiver(settings.fibre, settings.board)
        stack.callback(detects.close)
        return ReceiverRunner(*common, light=detects, blocks=blocks)
    emits = FibreSender(settings.fibre, settings.board)
    stack.callback(emits.close)
    return SenderRunner(
        *common,
        light=emits,
        horizon_slots=1 << opened.read_fields("configuration")["horizon_log2"],
        blocks=blocks,
        generates=simulated_generator if settings.states_from == "generator" else None,
    )


def randomness_text(settings: StationSettings, runner: Runner) -> str:
    """Where the station's randomness is from, and what a key of it may be called."""
    source = _LABELS[settings.randomness]
    labels = {"every use": source, "authentication": named_label(runner.pool.label)}
    if settings.states_from == "generator":
        labels = {"states": "generator", "every other use": source, **labels}
        del labels["every use"]
    return f"{uses_text(labels)}; keys are {security(labels.values())}"


def _loop(
    runner: SenderOperation | ReceiverOperation, pump: Pump, stopping: threading.Event, say: Say
) -> None:
    try:
        while not stopping.is_set() and not runner.finished:
            if not runner.step():
                time.sleep(0.005)
            if pump.error is not None:
                raise pump.error
        if runner.finished:
            # What the other station still has to hear again.
            end = time.monotonic() + 1
            while time.monotonic() < end and not stopping.is_set():
                time.sleep(0.05)
    finally:
        runner.close("the station was stopped")


def _summary(runner: Runner) -> dict[str, Any]:
    return {
        "role": runner.role.name.lower(),
        **{name.replace(" ", "_"): count for name, count in sorted(runner.totals.items())},
        "randomness": runner.randomness(),
        "security": security(runner.randomness().values()),
        "keys_released": runner.keystore.released(),
        "pads_left": {role.name.lower(): runner.pool.left(role) for role in Role},
        "pads_spent": runner.authenticator.spent,
        "eps_authentication": runner.authenticator.epsilon,
        "frames": dict(sorted(runner.exchange.counts.items())),
        "blocks_last": [
            {
                "block": report.block,
                "slots": report.slots,
                "detections": report.detections,
                "frames_lost": report.frames_lost,
                "secret_bits": report.secret_bits,
                "security": report.security,
                "reason": report.reason,
            }
            for report in list(runner.reports)[-20:]
        ],
    }


def fibre_world(settings: FibreSettings) -> Callable[[int], Detector]:
    """Makes the light of each epoch, each with a seed of its own.

    Raises
    ------
    MissingExtra
        If the simulator is not installed.
    """
    try:
        from keyrail_sim.photonics import LinkSettings, Photonics
    except ModuleNotFoundError as error:
        raise MissingExtra(error.name or "keyrail_sim", "sim") from None
    try:
        link = LinkSettings(**settings.link)
    except (TypeError, ValueError) as error:
        raise KeyrailError(f"fibre: link: {error}") from None
    seed = settings.seed
    if seed is None:
        seed = int.from_bytes(OsRandom().bytes(8), "little")
    return lambda epoch: Photonics(link, seed * (1 << 32) + epoch)


def run_fibre(settings: FibreSettings, say: Say) -> None:
    """Carry simulated photons until SIGINT or SIGTERM."""
    server = FibreServer(settings.listen, fibre_world(settings))
    say(f"fibre at {settings.listen}, for simulated boards; what it carries is secret")
    try:
        with until_stopped() as stopping:
            while not stopping.is_set():
                server.step()
    finally:
        server.close()
    say("stopped")


def summary_text(summary: dict[str, Any]) -> str:
    """Counts of a run as JSON text."""
    return json.dumps(summary, indent=2)
