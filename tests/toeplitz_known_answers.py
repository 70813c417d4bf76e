# SPDX-License-Identifier: Apache-2.0
"""Known answers of the Toeplitz hash: ``python tests/toeplitz_known_answers.py`` writes them anew.

Key and seed are the first bits of SHAKE-256 of "keyrail key N M FAMILY" and "keyrail seed N M
FAMILY", bit 0 of each byte first. The answer is SHA-256 of the output, packed alike, and its first
bytes. They are those of the reference implementation, randextract.
"""

import hashlib
import json
import warnings
from pathlib import Path

import numpy as np

from keyrail.distil.toeplitz import seed_bits

FILE = Path(__file__).parent / "data" / "toeplitz_known_answers.json"
SIZES = (
    (1, 1),
    (64, 64),
    (65, 1),
    (300, 70),
    (1_000, 999),
    (4_097, 1_500),
    (65_537, 12_345),
    (1_000_000, 300_000),
    (1 << 20, 1 << 18),
)


def _bits(text: str, count: int):
    drawn = hashlib.shake_256(text.encode()).digest(-(-count // 8))
    return np.unpackbits(np.frombuffer(drawn, np.uint8), bitorder="little")[:count].copy()


def draw(n, m, family):
    """Key and seed of a known answer."""
    return (
        _bits(f"keyrail key {n} {m} {family}", n),
        _bits(f"keyrail seed {n} {m} {family}", seed_bits(n, m, family)),
    )


def answer(output):
    """What is kept of an output."""
    packed = np.packbits(output, bitorder="little").tobytes()
    return {"sha256": hashlib.sha256(packed).hexdigest(), "first": packed[:16].hex()}


def reference(key, seed, m, family):
    """The reference's answer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from galois import GF2
        from randextract import ModifiedToeplitzHashing, ToeplitzHashing

        kind = {"modified": ModifiedToeplitzHashing, "plain": ToeplitzHashing}[family]
        extractor = kind(input_length=len(key), output_length=m)
        assert extractor.seed_length == len(seed)
        drawn = GF2(seed) if len(seed) else None
        return np.asarray(extractor.extract(GF2(key), drawn)).astype(np.uint8)


def known():
    """The answers: n, m, family, sha256, first."""
    return json.loads(FILE.read_text())["answers"]


if __name__ == "__main__":
    answers = [
        {"n": n, "m": m, "family": family} | answer(reference(*draw(n, m, family), m, family))
        for n, m in SIZES
        for family in ("modified", "plain")
    ]
    about = " ".join(__doc__.split("\n\n")[1].split())
    FILE.write_text(json.dumps({"about": about, "answers": answers}, indent=1) + "\n")
