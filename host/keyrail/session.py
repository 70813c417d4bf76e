# SPDX-License-Identifier: Apache-2.0
"""From sifted bits to a secret key: the two stations' parts, which speak only through the link.

The order is that of the protocol: reconciliation, verification, errors per intensity class,
length, seed, hash, acceptance. Each part is a generator that yields while it waits, so that one
process can run both; neither sees the other's bits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from keyrail import messages
from keyrail.contract import Intensity
from keyrail.distil import reconcile, verify
from keyrail.distil.estimate import (
    DecoyCounts,
    DecoySource,
    KeyLengthEstimate,
    binary_entropy,
    estimate_key_length,
)
from keyrail.distil.toeplitz import seed_bits
from keyrail.link import LinkEnd, receive
from keyrail.messages import BitString, Message, ProtocolError
from keyrail.randomness import Label, RandomSource

Bits = npt.NDArray[np.uint8]
Sources = Callable[[str], RandomSource]
Hash = Callable[[Bits, Bits, int], Bits]
Closing = Callable[["BlockResult", Bits], Generator[None, None, bool]]
"""The closing exchange: given the result so far and this station's key, it yields while it waits,
and returns whether both stations accept; only then may the key be released."""

HOPELESS_QBER = 0.11
"""Above this error rate in the test basis no key of BB84 is left: reconciling is not begun."""


@dataclass(frozen=True)
class DistilSettings:
    """What both stations have agreed on beforehand.

    Parameters
    ----------
    source
        Intensities and the probabilities of sending them.
    eps_sec, eps_cor
        Secrecy and correctness of the key.
    """

    source: DecoySource = field(default_factory=DecoySource)
    eps_sec: float = 1e-10
    eps_cor: float = 1e-15


@dataclass
class BlockResult:
    """What a block gave on one side. The key itself is in no text form.

    Attributes
    ----------
    accepted
        Both stations accept; only then is there a key.
    reason
        Why there is none, else empty.
    secret
        The key, uint8 bits; None if there is none.
    sifted_bits
        Key-basis bits.
    qber_z, qber_x
        Error rates; None where they are not known to this station.
    leak
        Charged bits by message class, in both directions.
    estimate
        Length and everything it rests on; None if it was not reached.
    verified
        Verification ended well.
    authenticated
        The link is authenticated, information-theoretically, phase by phase.
    randomness
        Label of the source of each use.
    seconds
        Time by stage.
    """

    accepted: bool = False
    reason: str = ""
    secret: Bits | None = field(default=None, repr=False)
    sifted_bits: int = 0
    qber_z: float | None = None
    qber_x: float | None = None
    leak: dict[str, int] = field(default_factory=dict)
    estimate: KeyLengthEstimate | None = None
    verified: bool = False
    authenticated: bool = False
    randomness: dict[str, Label] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def secret_bits(self) -> int:
        """Length of the key, 0 if there is none."""
        return 0 if self.secret is None else len(self.secret)

    @property
    def leak_bits(self) -> int:
        """All charged bits."""
        return sum(self.leak.values())

    @property
    def efficiency(self) -> float | None:
        """Reconciliation's leak over the Shannon limit; None if it is not known."""
        spent = sum(self.leak.get(n, 0) for n in ("Syndrome", "FrameResult", "OpenedFrame"))
        if not self.qber_z or not self.sifted_bits:
            return None
        return float(spent / (self.sifted_bits * binary_entropy(self.qber_z)))


class _Ledger(LinkEnd):
    """A link's end that adds up what is charged, in both directions."""

    def __init__(self, link: LinkEnd, leak: dict[str, int]) -> None:
        self._link, self._leak = link, leak
        self.name = link.name

    def _charge(self, message: Message) -> None:
        if message.charged_bits:
            name = type(message).__name__
            self._leak[name] = self._leak.get(name, 0) + message.charged_bits

    def send(self, message: Message) -> None:
        self._charge(message)
        self._link.send(message)

    def receive(self) -> Message:
        message = self._link.receive()
        self._charge(message)
        return message

    @property
    def pending(self) -> int:
        return self._link.pending


class _Distiller:
    def __init__(
        self,
        link: LinkEnd,
        key: Bits,
        settings: DistilSettings,
        sources: Sources,
        hash_block: Hash,
        closing: Closing | None,
    ) -> None:
        self.result = BlockResult(sifted_bits=len(key), authenticated=link.authenticated)
        self.link = _Ledger(link, self.result.leak)
        self.key = key
        self.settings = settings
        self._sources, self._hash = sources, hash_block
        self._closing = closing or self._plain_closing
        self._began = time.perf_counter()

    def _source(self, purpose: str) -> RandomSource:
        source = self._sources(purpose)
        self.result.randomness[purpose] = source.label
        return source

    def _lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.result.seconds[stage] = now - self._began
        self._began = now

    def _give_up(self, reason: str) -> None:
        self.key[:] = 0
        self.result.reason = reason

    def _estimate(
        self,
        key_sizes: tuple[int, int],
        key_errors: tuple[int, int],
        test_sizes: tuple[int, int],
        test_errors: tuple[int, int],
    ) -> KeyLengthEstimate:
        counts = DecoyCounts(key_sizes, key_errors, test_sizes, test_errors)
        self.result.qber_z, self.result.qber_x = counts.qber_z, counts.qber_x
        return estimate_key_length(
            counts,
            self.settings.source,
            self.result.leak_bits,
            eps_sec=self.settings.eps_sec,
            eps_cor=self.settings.eps_cor,
        )

    def _plain_closing(self, result: BlockResult, secret: Bits) -> Generator[None, None, bool]:
        """Both say that they accept, without authentication: for stations in one process."""
        self.link.send(messages.Accept(True))
        other = yield from receive(self.link, messages.Accept)
        return other.accepted

    def _finish(self, secret: Bits) -> Generator[None, None, None]:
        self.key[:] = 0
        try:
            accepted = yield from self._closing(self.result, secret)
        except BaseException:
            secret[:] = 0
            raise
        if accepted:
            self.result.secret, self.result.accepted = secret, True
        else:
            secret[:] = 0
            self._give_up("the stations did not both accept the block")

    def _no_length(self, estimate: KeyLengthEstimate) -> str:
        return f"no key can be estimated: {estimate.reason}"


def _by_class(classes: Bits, weights: Bits | None = None) -> tuple[int, int]:
    """Counts of signal and decoy; with `weights`, of those elements that are 1."""
    chosen = classes if weights is None else classes[weights == 1]
    signal = int((chosen == Intensity.SIGNAL).sum())
    return signal, len(chosen) - signal


class SenderDistiller(_Distiller):
    """The sender's part.

    Parameters
    ----------
    link
        Its end of the link.
    key
        Its key-basis bits; overwritten in the end.
    key_classes, test_classes
        Intensity class of each key bit, and of each test detection.
    settings
        Agreed beforehand.
    sources
        Gives the source of randomness for a purpose.
    hash_block
        Hashes (key, seed, output bits); on the board where it fits.
    closing
        The closing exchange; a plain one, not authenticated, if not given.
    """

    def __init__(
        self,
        link: LinkEnd,
        key: Bits,
        key_classes: Bits,
        test_classes: Bits,
        settings: DistilSettings,
        sources: Sources,
        hash_block: Hash,
        closing: Closing | None = None,
    ) -> None:
        super().__init__(link, key, settings, sources, hash_block, closing)
        self.key_classes, self.test_classes = key_classes, test_classes

    def run(self, progress: Callable[[float], None] | None = None) -> Generator[None, None, None]:
        """Go through the steps; yields while it waits. The outcome is in ``result``."""
        link, result = self.link, self.result
        test = yield from receive(link, messages.TestResult)
        if test.tests != len(self.test_classes) or test.errors > test.tests:
            raise ProtocolError(f"{test.errors} errors in {test.tests} tests")
        result.qber_x = test.errors / test.tests if test.tests else None
        if hopeless := _hopeless(len(self.key), test):
            self._give_up(hopeless)
            return
        qber = reconcile.planned_qber(test.tests, test.errors)
        source = self._source("reconciliation")
        yield from reconcile.reconcile_sender(link, self.key, qber, source)
        self._lap("reconcile")

        key = verify.draw_key(self._source("verification"))
        tag = verify.tag(self.key, key)
        link.send(messages.VerifyTag(key.to_bytes(16, "little"), tag.to_bytes(16, "little")))
        if not (yield from receive(link, messages.VerifyResult)).agreed:
            self._give_up("verification failed: the reconciled keys differ")
            return
        result.verified = True
        self._lap("verify")

        pack = BitString.pack
        link.send(messages.Intensities(pack(self.key_classes), pack(self.test_classes)))
        counts = yield from receive(link, messages.ErrorCounts)
        key_sizes, test_sizes = _by_class(self.key_classes), _by_class(self.test_classes)
        if counts.key_sizes != key_sizes or sum(counts.test_errors) != test.errors:
            raise ProtocolError("the receiver's counts contradict what both stations know")
        try:
            estimate = self._estimate(key_sizes, counts.key_errors, test_sizes, counts.test_errors)
        except ValueError as error:
            raise ProtocolError(f"the receiver's counts are impossible: {error}") from None
        result.estimate = estimate
        length = yield from receive(link, messages.Length)
        if length.secret_bits != estimate.secret_bits:
            raise ProtocolError(
                f"lengths differ: {length.secret_bits} there, {estimate.secret_bits} here"
            )
        if not estimate.secret_bits:
            self._give_up(self._no_length(estimate))
            return
        self._lap("estimate")

        # Only now: a seed that is known before the length is fixed would be no seed.
        needed = seed_bits(len(self.key), estimate.secret_bits)
        drawn = np.frombuffer(self._source("seed").bytes(-(-needed // 8)), np.uint8)
        seed = np.unpackbits(drawn, count=needed, bitorder="little")
        link.send(messages.Seed(pack(seed)))
        secret = self._hash(self.key, seed, estimate.secret_bits)
        self._lap("hash")
        yield from self._finish(secret)
        self._lap("close")


class ReceiverDistiller(_Distiller):
    """The receiver's part.

    Parameters
    ----------
    link
        Its end of the link.
    key
        Its key-basis bits; overwritten in the end.
    test_errors
        1 for each test detection whose opened bit differs.
    settings, sources, hash_block, closing
        As for the sender.
    """

    def __init__(
        self,
        link: LinkEnd,
        key: Bits,
        test_errors: Bits,
        settings: DistilSettings,
        sources: Sources,
        hash_block: Hash,
        closing: Closing | None = None,
    ) -> None:
        super().__init__(link, key, settings, sources, hash_block, closing)
        self.test_errors = test_errors

    def run(self, progress: Callable[[float], None] | None = None) -> Generator[None, None, None]:
        """Go through the steps; yields while it waits. The outcome is in ``result``."""
        link, result = self.link, self.result
        test = messages.TestResult(len(self.test_errors), int(self.test_errors.sum()))
        link.send(test)
        result.qber_x = test.errors / test.tests if test.tests else None
        if hopeless := _hopeless(len(self.key), test):
            self._give_up(hopeless)
            return
        qber = reconcile.planned_qber(test.tests, test.errors)
        report = progress or (lambda share: None)
        corrected = yield from reconcile.reconcile_receiver(link, self.key, qber, report)
        errors = corrected ^ self.key
        self.key[:] = corrected
        corrected[:] = 0
        self._lap("reconcile")

        tag = yield from receive(link, messages.VerifyTag)
        key = int.from_bytes(tag.key, "little")
        bound = verify.collision_bound(len(self.key))
        agreed = (
            key < verify.PRIME
            and bound <= self.settings.eps_cor
            and verify.tag(self.key, key) == int.from_bytes(tag.tag, "little")
        )
        link.send(messages.VerifyResult(agreed))
        if not agreed:
            self._give_up("verification failed: the reconciled keys differ")
            return
        result.verified = True
        self._lap("verify")

        classes = yield from receive(link, messages.Intensities)
        key_classes, test_classes = classes.key.unpack(), classes.test.unpack()
        if len(key_classes) != len(self.key) or len(test_classes) != test.tests:
            raise ProtocolError(f"{len(key_classes)} classes for {len(self.key)} key bits")
        key_sizes, test_sizes = _by_class(key_classes), _by_class(test_classes)
        key_errors = _by_class(key_classes, errors)
        test_errors = _by_class(test_classes, self.test_errors)
        link.send(messages.ErrorCounts(key_sizes, key_errors, test_errors))
        estimate = self._estimate(key_sizes, key_errors, test_sizes, test_errors)
        result.estimate = estimate
        link.send(messages.Length(estimate.secret_bits))
        if not estimate.secret_bits:
            self._give_up(self._no_length(estimate))
            return
        self._lap("estimate")

        message = yield from receive(link, messages.Seed)
        seed = message.seed.unpack()
        if len(seed) != seed_bits(len(self.key), estimate.secret_bits):
            raise ProtocolError(f"seed of {len(seed)} bits")
        secret = self._hash(self.key, seed, estimate.secret_bits)
        self._lap("hash")
        yield from self._finish(secret)
        self._lap("close")


def _hopeless(key_bits: int, test: messages.TestResult) -> str:
    """Why reconciling need not begin; empty if it may."""
    if key_bits == 0 or test.tests == 0:
        return f"too few detections: {key_bits} key bits, {test.tests} test detections"
    rate = test.errors / test.tests
    if rate > HOPELESS_QBER:
        return f"QBER in X is {rate:.1%}, above {HOPELESS_QBER:.0%}: no key is left"
    return ""


def run_pair(
    sender: SenderDistiller,
    receiver: ReceiverDistiller,
    progress: Callable[[float], None] | None = None,
) -> tuple[BlockResult, BlockResult]:
    """Run both parts in one process, in turn, until both have ended.

    A station that finds the other out of order gives the block up on both sides.

    Returns
    -------
    tuple of BlockResult
        The sender's and the receiver's.

    Raises
    ------
    ProtocolError
        If both wait for each other.
    """
    parts: list[tuple[_Distiller, Generator[Any, None, None]]] = [
        (sender, sender.run()),
        (receiver, receiver.run(progress)),
    ]
    running = list(parts)
    idle = 0
    while running:
        distiller, part = running.pop(0)
        pending = distiller.link.pending
        try:
            next(part)
        except StopIteration:
            idle = 0
            continue
        except ProtocolError as error:
            for each, _ in parts:
                each._give_up(f"protocol error: {error}")
                each.result.accepted, each.result.secret = False, None
            break
        running.append((distiller, part))
        moved = distiller.link.pending != pending or any(d.link.pending for d, _ in running)
        idle = 0 if moved else idle + 1
        if idle > 2 * len(running):
            raise ProtocolError("both stations wait for each other")
    return sender.result, receiver.result
