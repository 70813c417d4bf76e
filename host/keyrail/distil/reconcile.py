# SPDX-License-Identifier: Apache-2.0
"""Error reconciliation by LDPC syndromes, one way from sender to receiver.

The receiver corrects its bits to the sender's. Every bit that crosses is charged, the receiver's
answers included. A frame that does not decode gets further syndrome bits, and is opened in the
end; it stays in the count, charged in full.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import scipy.sparse
from ldpc import BpDecoder

from keyrail import messages
from keyrail.distil.codes import parity_check
from keyrail.distil.estimate import binary_entropy
from keyrail.link import LinkEnd, receive
from keyrail.messages import BitString, ProtocolError
from keyrail.randomness import RandomSource

Bits = npt.NDArray[np.uint8]

FRAME_BITS = 32_768
"""Longest frame."""
START_EFFICIENCY = 1.2
"""Syndrome bits at first, over the Shannon limit at the test basis' error rate: few on purpose, as
the key basis often has fewer errors, and further bits can follow."""
EXTENSION_SHARE = 0.1
"""Further syndrome bits for a frame that did not decode, as a share of the first ones."""
EXTENSIONS = 4
"""Times that further syndrome bits are sent before a frame is opened."""
LOWEST_QBER, HIGHEST_QBER = 0.004, 0.11
"""Error rates that the first syndrome is sized for."""
ITERATIONS = 80
"""Rounds of belief propagation."""


def frame_bounds(bits: int) -> npt.NDArray[np.int64]:
    """Cuts of the key into equal frames of at most `FRAME_BITS`, shape (frames + 1,)."""
    frames = max(1, -(-bits // FRAME_BITS))
    return np.linspace(0, bits, frames + 1).round().astype(np.int64)


def planned_qber(tests: int, errors: int) -> float:
    """Error rate to plan for: that of the test basis.

    Parameters
    ----------
    tests, errors
        Test detections, and errors among them; both public.
    """
    rate = (errors + 1) / (tests + 2)
    return float(np.clip(rate, LOWEST_QBER, HIGHEST_QBER))


def _checks(length: int, qber: float) -> tuple[int, int]:
    """Syndrome bits of a frame at first, and with each extension."""
    first = int(np.ceil(START_EFFICIENCY * binary_entropy(qber) * length)) + 8
    first = min(max(first, 16), length - 1)
    return first, max(16, int(np.ceil(EXTENSION_SHARE * first)))


def _matrix(length: int, qber: float, extension: int) -> scipy.sparse.csr_matrix:
    first, further = _checks(length, qber)
    return parity_check(length, further if extension else first, extension)


def _order(bits: int, seed: bytes) -> npt.NDArray[np.int64]:
    """Public permutation, so that errors spread evenly over the frames."""
    words = np.frombuffer(seed, "<u4").tolist()
    return np.random.Generator(np.random.PCG64(words)).permutation(bits)


def reconcile_sender(
    link: LinkEnd, key: Bits, qber: float, randomness: RandomSource
) -> Generator[None, None, None]:
    """The sender's part: syndromes out, answers in.

    Parameters
    ----------
    link
        The sender's end.
    key
        Its key bits, which stay as they are.
    qber
        Error rate to plan for, the same on both sides.
    randomness
        Source of the permutation's seed, which is public.

    Yields
    ------
    None
        Whenever it waits for the other station.
    """
    seed = randomness.bytes(32)
    bounds = frame_bounds(len(key))
    link.send(messages.ReconcileStart(len(key), len(bounds) - 1, seed))
    permuted = key[_order(len(key), seed)]
    for frame, (begin, end) in enumerate(pairwise(bounds)):
        part = permuted[begin:end]
        if _too_short(len(part)):
            link.send(messages.OpenedFrame(frame, BitString.pack(part)))
            continue
        for extension in range(EXTENSIONS + 1):
            matrix = _matrix(len(part), qber, extension)
            syndrome = (matrix @ part.astype(np.int64) & 1).astype(np.uint8)
            link.send(messages.Syndrome(frame, BitString.pack(syndrome)))
            result = yield from receive(link, messages.FrameResult)
            if result.frame != frame:
                raise ProtocolError(f"result of frame {result.frame} where {frame} was due")
            if result.decoded:
                break
        else:
            link.send(messages.OpenedFrame(frame, BitString.pack(part)))


def _too_short(length: int) -> bool:
    """Frames too short for a code are opened at once."""
    return length < 256


def reconcile_receiver(
    link: LinkEnd,
    key: Bits,
    qber: float,
    progress: Callable[[float], None] = lambda share: None,
) -> Generator[None, None, Bits]:
    """The receiver's part: syndromes in, answers out.

    Parameters
    ----------
    link
        The receiver's end.
    key
        Its key bits.
    qber
        Error rate to plan for, the same on both sides.
    progress
        Called with the share of frames done.

    Yields
    ------
    None
        Whenever it waits for the other station.

    Returns
    -------
    numpy.ndarray
        Key bits corrected to the sender's. Whether they are equal, verification tells.

    Raises
    ------
    ProtocolError
        If sizes differ from what both stations know.
    """
    start = yield from receive(link, messages.ReconcileStart)
    bounds = frame_bounds(len(key))
    if (start.bits, start.frames) != (len(key), len(bounds) - 1):
        raise ProtocolError(f"{start.bits} bits in {start.frames} frames; here are {len(key)} bits")
    order = _order(len(key), start.permutation_seed)
    permuted = key[order]
    for frame, (begin, end) in enumerate(pairwise(bounds)):
        progress(frame / (len(bounds) - 1))
        part = permuted[begin:end]
        matrices: list[scipy.sparse.csr_matrix] = []
        differences: list[Bits] = []
        decoded = False
        for extension in range(0 if _too_short(len(part)) else EXTENSIONS + 1):
            message = yield from receive(link, messages.Syndrome)
            matrix = _matrix(len(part), qber, extension)
            syndrome = message.part.unpack()
            if message.frame != frame or len(syndrome) != matrix.shape[0]:
                raise ProtocolError(f"syndrome of {len(syndrome)} bits for frame {message.frame}")
            own = (matrix @ part.astype(np.int64) & 1).astype(np.uint8)
            matrices.append(matrix)
            differences.append(syndrome ^ own)
            errors = _decode(matrices, differences, qber)
            decoded = errors is not None
            link.send(messages.FrameResult(frame, decoded))
            if errors is not None:
                permuted[begin:end] = part ^ errors
                break
        if not decoded:
            opened = yield from receive(link, messages.OpenedFrame)
            bits = opened.opened.unpack()
            if opened.frame != frame or len(bits) != len(part):
                raise ProtocolError(f"frame {opened.frame} opened with {len(bits)} bits")
            permuted[begin:end] = bits
    corrected = np.empty_like(key)
    corrected[order] = permuted
    return corrected


def _decode(
    matrices: list[scipy.sparse.csr_matrix], differences: list[Bits], qber: float
) -> Bits | None:
    """Errors of a frame from the difference of syndromes; None if they were not found."""
    matrix = scipy.sparse.vstack(matrices, format="csr") if len(matrices) > 1 else matrices[0]
    difference = np.concatenate(differences)
    decoder = BpDecoder(
        matrix, error_rate=qber, max_iter=ITERATIONS, bp_method="product_sum", schedule="parallel"
    )
    errors: Bits = np.asarray(decoder.decode(difference), np.uint8)
    if ((matrix @ errors.astype(np.int64) & 1) != difference).any():
        return None
    return errors
