# SPDX-License-Identifier: Apache-2.0
"""Toeplitz hashing on the host against the reference implementation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import toeplitz_known_answers as known_answers
from keyrail import compiled
from keyrail.distil import toeplitz_product as product
from keyrail.distil.toeplitz import Geometry, implementation, seed_bits, toeplitz_hash
from toeplitz_known_answers import reference

METHODS = ("product", "transform")


def draw(rng, n, m, family):
    key = rng.integers(0, 2, n).astype(np.uint8)
    return key, rng.integers(0, 2, seed_bits(n, m, family)).astype(np.uint8)


@pytest.fixture(scope="module", params=METHODS)
def method(request):
    """Both ways to hash; the one that this machine lacks is skipped."""
    chosen, why = implementation()
    if request.param == "product" != chosen:
        pytest.skip(f"no compiled product on this machine: {why}")
    return request.param


@pytest.mark.parametrize(
    "answer", known_answers.known(), ids=lambda one: f"{one['n']}-{one['m']}-{one['family']}"
)
def test_known_answers(method, answer):
    n, m, family = answer["n"], answer["m"], answer["family"]
    hashed = toeplitz_hash(*known_answers.draw(n, m, family), m, family, method=method)
    assert answer == {"n": n, "m": m, "family": family} | known_answers.answer(hashed)


@settings(deadline=None, max_examples=60)
@given(st.data(), st.sampled_from(["modified", "plain"]), st.integers(0, 2**32 - 1))
def test_any_size_equals_the_reference(method, data, family, seed):
    n = data.draw(st.integers(1, 700))
    m = data.draw(st.integers(1, n))
    key, drawn = draw(np.random.default_rng(seed), n, m, family)
    hashed = toeplitz_hash(key, drawn, m, family, method=method)
    assert np.array_equal(hashed, reference(key, drawn, m, family))


@pytest.mark.parametrize("family", ["modified", "plain"])
@pytest.mark.parametrize(
    ("n", "m"), [(1, 1), (64, 64), (128, 64), (129, 65), (4096, 1), (65_537, 12_345)]
)
def test_edges_equal_the_reference(method, n, m, family):
    key, seed = draw(np.random.default_rng(n * m), n, m, family)
    hashed = toeplitz_hash(key, seed, m, family, method=method)
    assert np.array_equal(hashed, reference(key, seed, m, family))


def test_all_ones_are_exact(method):
    """The largest sums: every product is 1, and parities alternate with the length."""
    for n in (1 << 16, (1 << 20) + 1):
        ones = np.ones(seed_bits(n, 1000, "plain"), np.uint8)
        expected = np.full(1000, n & 1, np.uint8)
        hashed = toeplitz_hash(np.ones(n), ones, 1000, "plain", method=method)
        assert np.array_equal(hashed, expected)


@pytest.mark.parametrize(("rows", "columns"), [(1, 400), (400, 1), (80, 81), (97, 300)])
def test_squares_of_every_cover_equal_the_transform(rows, columns):
    """Shapes that are covered by squares of many sizes, from words full of ones to random ones."""
    if implementation()[0] != "product":
        pytest.skip(f"no compiled product on this machine: {implementation()[1]}")
    rng = np.random.default_rng(rows)
    for m in (64 * rows - 63, 64 * rows):
        n = 64 * columns
        if m <= n:
            key, seed = draw(rng, n, m, "plain")
            by = [toeplitz_hash(key, seed, m, "plain", method=one) for one in METHODS]
            assert np.array_equal(*by)


def test_the_product_refuses_words_that_do_not_fit():
    words = np.zeros(10, np.uint64)
    for seed, key, rows in ((words, words[:4], 5), (words, words[:0], 10), (words, words, 0)):
        with pytest.raises(ValueError, match="words of seed for"):
            product.toeplitz_product(seed, key, rows)


@pytest.fixture
def unloaded(monkeypatch, tmp_path):
    """An empty cache, and nothing loaded yet; as before at the end."""
    monkeypatch.setenv("KEYRAIL_CACHE", str(tmp_path / "cache"))
    compiled._loaded.cache_clear()
    yield tmp_path
    monkeypatch.undo()
    compiled._loaded.cache_clear()


def test_without_a_compiler_the_transform_serves(unloaded, monkeypatch):
    monkeypatch.setenv("PATH", str(unloaded))
    monkeypatch.delenv("CXX", raising=False)
    assert implementation() == ("transform", "no C++ compiler: install the system package g++")
    key, seed = draw(np.random.default_rng(1), 500, 100, "modified")
    hashed = toeplitz_hash(key, seed, 100)
    assert np.array_equal(hashed, reference(key, seed, 100, "modified"))
    with pytest.raises(product.ProductUnavailable, match="no C"):
        toeplitz_hash(key, seed, 100, method="product")


def test_a_compiler_that_fails_is_quoted(unloaded, monkeypatch):
    compiler = unloaded / "failing"
    compiler.write_text(
        "#!/bin/sh\necho 'x.cpp:1: error: no carry-less multiplication' >&2\nexit 1\n"
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    chosen, why = implementation()
    assert chosen == "transform"
    assert "no carry-less multiplication" in why


def test_a_library_or_folder_that_others_may_write_is_not_used(unloaded):
    chosen, why = implementation()
    if chosen != "product":
        pytest.skip(f"no compiled product on this machine: {why}")
    compiled._loaded.cache_clear()
    (unloaded / "cache").chmod(0o777)
    assert implementation() == ("transform", f"{unloaded / 'cache'}: others may write it")
    (unloaded / "cache").chmod(0o700)
    (library,) = (unloaded / "cache").glob("toeplitz-product-*.so")
    library.chmod(0o722)
    compiled._loaded.cache_clear()
    chosen, why = implementation()
    assert chosen == "transform"
    assert "others may write it" in why


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
    with pytest.raises(ValueError, match="'product' and 'transform'"):
        toeplitz_hash(key, np.zeros(9), 3, method="fft")
    with pytest.raises(ValueError, match=r"key: shape \(\)"):
        toeplitz_hash(b"0101", np.zeros(9), 1)
