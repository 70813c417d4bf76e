# SPDX-License-Identifier: Apache-2.0
"""Toeplitz hashing on the host against the reference implementation."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyrail.distil.toeplitz import Geometry, seed_bits, toeplitz_hash


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


def draw(rng, n, m, family):
    key = rng.integers(0, 2, n).astype(np.uint8)
    return key, rng.integers(0, 2, seed_bits(n, m, family)).astype(np.uint8)


@settings(deadline=None, max_examples=60)
@given(st.data(), st.sampled_from(["modified", "plain"]), st.integers(0, 2**32 - 1))
def test_any_size_equals_the_reference(data, family, seed):
    n = data.draw(st.integers(1, 700))
    m = data.draw(st.integers(1, n))
    key, drawn = draw(np.random.default_rng(seed), n, m, family)
    assert np.array_equal(toeplitz_hash(key, drawn, m, family), reference(key, drawn, m, family))


@pytest.mark.parametrize("family", ["modified", "plain"])
@pytest.mark.parametrize(
    ("n", "m"), [(1, 1), (64, 64), (128, 64), (129, 65), (4096, 1), (65_537, 12_345)]
)
def test_edges_equal_the_reference(n, m, family):
    key, seed = draw(np.random.default_rng(n * m), n, m, family)
    assert np.array_equal(toeplitz_hash(key, seed, m, family), reference(key, seed, m, family))


def test_all_ones_are_exact():
    """The largest sums: every product is 1, and parities alternate with the length."""
    for n in (1 << 16, (1 << 20) + 1):
        ones = np.ones(seed_bits(n, 1000, "plain"), np.uint8)
        expected = np.full(1000, n & 1, np.uint8)
        assert np.array_equal(toeplitz_hash(np.ones(n), ones, 1000, "plain"), expected)


@pytest.mark.parametrize("family", ["modified", "plain"])
def test_packed_words_are_the_matrix(family):
    """The blocks that the engine takes from packed words, multiplied out, give the hash."""
    rng = np.random.default_rng(4)
    for n, m in ((300, 70), (256, 64), (65, 65), (200, 129), (1, 1)):
        key, seed = draw(rng, n, m, family)
        geometry = Geometry(n, m, family)
        key_words, seed_words = geometry.pack_key(key), geometry.pack_seed(seed)
        assert (len(key_words), len(seed_words)) == (geometry.key_words, geometry.seed_words)
        key_bits = np.unpackbits(key_words.view(np.uint8), bitorder="little").reshape(-1, 64)
        seed_bits_ = np.unpackbits(seed_words.view(np.uint8), bitorder="little").reshape(-1, 64)
        out = np.zeros((geometry.rows, 64), np.uint8)
        difference = np.arange(64)[:, None] - np.arange(64)[None, :] + 63
        for row in range(geometry.rows):
            if family == "modified":
                out[row] = key_bits[geometry.columns + row]
            for column in range(geometry.columns):
                upper = row - column + geometry.columns
                window = np.concatenate([seed_bits_[upper - 1], seed_bits_[upper]])
                out[row] ^= (window[difference] @ key_bits[column] & 1).astype(np.uint8)
        packed = np.packbits(out.reshape(-1), bitorder="little").view("<u8")
        got = geometry.unpack_output(packed)
        assert np.array_equal(got, toeplitz_hash(key, seed, m, family))


def test_wrong_sizes_are_refused():
    key = np.zeros(10, np.uint8)
    with pytest.raises(ValueError, match="11 output bits from 10 input bits"):
        toeplitz_hash(key, np.zeros(9), 11)
    with pytest.raises(ValueError, match=r"seed: shape \(8,\), needed are 9 bits"):
        toeplitz_hash(key, np.zeros(8), 3)
    with pytest.raises(ValueError, match=r"seed: shape \(9,\), needed are 12 bits"):
        toeplitz_hash(key, np.zeros(9), 3, "plain")
    with pytest.raises(ValueError, match="other than 0 and 1"):
        toeplitz_hash(key + 2, np.zeros(9), 3)
    with pytest.raises(ValueError, match="'modified' and 'plain'"):
        toeplitz_hash(key, np.zeros(9), 3, "circulant")
    with pytest.raises(ValueError, match="allowed are up to"):
        Geometry(1 << 28, 5)
    with pytest.raises(ValueError, match="output words"):
        Geometry(100, 65).unpack_output(np.zeros(1, np.uint64))
