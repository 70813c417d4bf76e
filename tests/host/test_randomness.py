# SPDX-License-Identifier: Apache-2.0
"""Random sources: repeatable where they should be, independent, labelled."""

import hashlib

import numpy as np
import pytest

from keyrail.errors import KeyrailError
from keyrail.randomness import (
    LABELS,
    OsRandom,
    RandomSource,
    TestRandom,
    named_label,
    security,
    uses_text,
)


def bits(data: bytes) -> np.ndarray:
    return np.unpackbits(np.frombuffer(data, dtype=np.uint8))


def test_sources_meet_the_protocol() -> None:
    for source, label in ((OsRandom(), "os"), (TestRandom(1, "states"), "test")):
        assert isinstance(source, RandomSource)
        assert source.label == label
        assert label in LABELS
        assert source.bytes(0) == b""
        assert [len(source.bytes(n)) for n in (1, 7, 8, 9, 1000)] == [1, 7, 8, 9, 1000]


def test_test_stream_is_the_documented_one() -> None:
    """Philox4x64-10 of the digest, little-endian words: every demo with a seed rests on it."""
    digest = hashlib.sha256(b"keyrail test stream 1" + (5).to_bytes(32, "little") + b"coins")
    key = np.frombuffer(digest.digest()[:16], dtype="<u8")
    words = np.random.Philox(key=key).random_raw(100)
    assert TestRandom(5, "coins").bytes(800) == words.astype("<u8").tobytes()
    assert TestRandom(1, "a").bytes(16).hex() == "cebaa27b29e1a2421f83b62ed386afbe"


def test_stream_does_not_depend_on_how_it_is_cut() -> None:
    whole = TestRandom(-3, "states").bytes(10_000)
    source, pieces = TestRandom(-3, "states"), []
    rng = np.random.default_rng(0)
    while (done := sum(map(len, pieces))) < len(whole):
        pieces.append(source.bytes(min(int(rng.integers(0, 40)), len(whole) - done)))
    assert b"".join(pieces) == whole


def test_streams_of_other_seeds_or_purposes_are_independent() -> None:
    streams = [
        bits(TestRandom(seed, purpose).bytes(125_000))
        for seed, purpose in ((1, "states"), (1, "coins"), (2, "states"), (-1, "states"))
    ]
    for i, one in enumerate(streams):
        assert abs(one.mean() - 0.5) < 5 * 0.5 / 1000  # 10^6 bits, five sigma
        for other in streams[i + 1 :]:
            assert abs((one ^ other).mean() - 0.5) < 5 * 0.5 / 1000


def test_os_random_is_not_repeatable() -> None:
    assert OsRandom().bytes(32) != OsRandom().bytes(32)


def test_nonsense_is_refused() -> None:
    for source in (OsRandom(), TestRandom(1, "x")):
        with pytest.raises(ValueError, match="at least 0"):
            source.bytes(-1)
    with pytest.raises(ValueError, match="purpose"):
        TestRandom(1, "")
    with pytest.raises(ValueError, match="seed"):
        TestRandom(1 << 255, "x")


def test_repr_shows_no_bytes() -> None:
    source = TestRandom(1, "x")
    before = repr(source)
    source.bytes(5)
    assert repr(source) == before == "TestRandom(seed=1, purpose='x')"


@pytest.mark.parametrize(
    ("labels", "promised"),
    [
        (["hardware", "hardware"], "information-theoretic"),
        (["hardware", "generator"], "computational"),
        (["os", "hardware"], "computational"),
        (["generator", "test"], "not secret"),
        ([], "not secret"),
    ],
)
def test_only_hardware_throughout_is_information_theoretic(labels, promised):
    assert security(labels) == promised


def test_each_use_is_shown_with_what_its_source_promises():
    text = uses_text({"states": "generator", "coins": "hardware", "seed": "os"})
    assert text == (
        "states: generator (on the board, computational), coins: hardware (information-theoretic), "
        "seed: os (computational)"
    )
    assert named_label("GENERATOR") == "generator"
    for wrong in (lambda: uses_text({"states": "dice"}), lambda: security(["dice"])):
        with pytest.raises(KeyrailError, match="'dice': allowed is hardware, os, generator, test"):
            wrong()
