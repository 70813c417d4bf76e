# SPDX-License-Identifier: Apache-2.0
"""Sources of random bytes, each of which says how good it is.

Everything that draws a secret (states, the receiver's basis, coins, seeds, authentication keys)
takes its bytes from an object of this kind, one for each use, and stores the label with the key.
Only ``hardware`` throughout may be called information-theoretic.
"""

import builtins
import hashlib
import os
from collections.abc import Iterable, Mapping
from typing import ClassVar, Literal, Protocol, runtime_checkable

import numpy as np

from keyrail.errors import KeyrailError

__all__ = [
    "LABELS",
    "DeviceRandom",
    "Label",
    "OsRandom",
    "RandomSource",
    "TestRandom",
    "named_label",
    "security",
    "uses_text",
]

Label = Literal["hardware", "os", "generator", "test"]

LABELS: dict[Label, str] = {
    "hardware": "a random generator device (information-theoretic)",
    "os": "the operating system's generator (computational)",
    "generator": "a standard cipher on the board (computational)",
    "test": "a seeded generator: repeatable, never secret",
}
"""Every declared kind of source, and what it promises."""

_SHORT: dict[Label, str] = {
    "hardware": "information-theoretic",
    "os": "computational",
    "generator": "on the board, computational",
    "test": "never secret",
}

_DOMAIN = b"keyrail test stream 1"  # the number changes if the stream ever does


@runtime_checkable
class RandomSource(Protocol):
    """What draws random bytes for one use.

    Attributes
    ----------
    label : str
        One of `LABELS`; stored with every key that used the source.
    """

    @property
    def label(self) -> Label:
        """One of `LABELS`: how good the bytes are."""
        ...

    def bytes(self, n: int, /) -> builtins.bytes:
        """Draw `n` uniform bytes that were never given out before.

        Parameters
        ----------
        n : int
            How many bytes; at least 0.

        Returns
        -------
        bytes
            Exactly `n` bytes. A source that runs dry raises; it never gives fewer.
        """
        ...


class OsRandom:
    """The operating system's generator: fit for secrets, computational security.

    Attributes
    ----------
    label : str
        Always ``"os"``.
    """

    @property
    def label(self) -> Label:
        """Always ``"os"``."""
        return "os"

    def bytes(self, n: int, /) -> builtins.bytes:
        """Draw `n` bytes from the operating system.

        Parameters
        ----------
        n : int
            How many bytes; at least 0.

        Raises
        ------
        ValueError
            If `n` is negative.
        """
        return os.urandom(_count(n))

    def __repr__(self) -> str:
        return "OsRandom()"


class DeviceRandom:
    """A random generator device that gives its bytes as a file, such as ``/dev/hwrng``.

    Its label is ``hardware``: that it is one is the operator's word.

    Parameters
    ----------
    path : str
        The device.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    @property
    def label(self) -> Label:
        """Always ``"hardware"``."""
        return "hardware"

    def bytes(self, n: int, /) -> builtins.bytes:
        """Draw `n` bytes from the device.

        Parameters
        ----------
        n : int
            How many bytes; at least 0.

        Raises
        ------
        ValueError
            If `n` is negative.
        KeyrailError
            If the device cannot be read or runs dry: it never gives fewer.
        """
        parts, missing = [], _count(n)
        try:
            with open(self.path, "rb", buffering=0) as device:
                while missing:
                    part = device.read(missing)
                    if not part:
                        raise KeyrailError(f"{self.path}: {missing} of {n} bytes are missing")
                    parts.append(part)
                    missing -= len(part)
        except OSError as error:
            raise KeyrailError(f"{self.path}: {error.strerror}") from None
        return b"".join(parts)

    def __repr__(self) -> str:
        return f"DeviceRandom({self.path!r})"


class TestRandom:
    """A repeatable stream for tests, simulations and demonstrations. **Never secret.**

    The stream is Philox4x64-10 in counter mode (Salmon et al., SC11 (2011)), keyed by the first
    128 bits of SHA-256 over (seed, purpose), its 64-bit words in little-endian order. Streams of
    different seeds or purposes are independent for every statistical use. How a stream is cut into
    calls does not change it: ``bytes(3) + bytes(5) == bytes(8)`` of a fresh one. Whoever knows the
    seed, which is stored in the clear, knows every byte: real boards refuse this source.

    Parameters
    ----------
    seed : int
        Any integer of at most 255 bits and a sign.
    purpose : str
        What the bytes are for, such as ``"states"`` or ``"amplification seed"``. Two objects with
        the same seed and purpose give the same bytes, so each use needs a purpose of its own.

    Attributes
    ----------
    label : str
        Always ``"test"``.

    Raises
    ------
    ValueError
        If the purpose is empty or the seed out of range.
    """

    __test__: ClassVar[bool] = False  # the name would make pytest collect it

    def __init__(self, seed: int, purpose: str) -> None:
        if not purpose:
            raise ValueError("purpose: empty; every use of randomness has a name, such as 'states'")
        try:
            number = int(seed).to_bytes(32, "little", signed=True)
        except OverflowError:
            raise ValueError(f"seed: {seed} is not between -2^255 and 2^255 - 1") from None
        self.seed = int(seed)
        self.purpose = purpose
        digest = hashlib.sha256(_DOMAIN + number + purpose.encode()).digest()
        self._words = np.random.Philox(key=np.frombuffer(digest[:16], dtype="<u8"))
        self._rest = b""

    @property
    def label(self) -> Label:
        """Always ``"test"``."""
        return "test"

    def bytes(self, n: int, /) -> builtins.bytes:
        """Give the next `n` bytes of the stream.

        Parameters
        ----------
        n : int
            How many bytes; at least 0.

        Raises
        ------
        ValueError
            If `n` is negative.
        """
        wanted = _count(n) - len(self._rest)
        if wanted > 0:
            words: np.ndarray[tuple[int], np.dtype[np.uint64]] = self._words.random_raw(
                -(-wanted // 8)
            )
            fresh = words.astype("<u8", copy=False).tobytes()
            drawn, self._rest = self._rest + fresh[:wanted], fresh[wanted:]
            return drawn
        drawn, self._rest = self._rest[:n], self._rest[n:]
        return drawn

    def __repr__(self) -> str:
        return f"TestRandom(seed={self.seed}, purpose={self.purpose!r})"


def named_label(name: str) -> Label:
    """The label of that name.

    Raises
    ------
    KeyrailError
        If there is none.
    """
    for label in LABELS:
        if label == name.lower():
            return label
    raise KeyrailError(f"randomness {name!r}: allowed is {', '.join(LABELS)}")


def security(labels: Iterable[str]) -> str:
    """What a key may be called whose uses of randomness have these labels.

    Parameters
    ----------
    labels
        Of `LABELS`, one for each use; no label at all vouches for nothing.

    Returns
    -------
    str
        ``information-theoretic`` (only with ``hardware`` throughout), ``computational`` or
        ``not secret``.

    Raises
    ------
    KeyrailError
        If a label is none of `LABELS`.
    """
    found = {named_label(label) for label in labels}
    if not found or "test" in found:
        return "not secret"
    return "information-theoretic" if found == {"hardware"} else "computational"


def uses_text(labels: Mapping[str, str]) -> str:
    """Each use of randomness with its source, and what the source promises, on one line."""
    return ", ".join(
        f"{use}: {label} ({_SHORT[named_label(label)]})" for use, label in labels.items()
    )


def _count(n: int) -> int:
    if n < 0:
        raise ValueError(f"n: {n} bytes asked for; at least 0")
    return n
