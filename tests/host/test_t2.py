# SPDX-License-Identifier: Apache-2.0
"""Both decoders of T2 records against the format's definition, record by record."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyrail import compiled, t2

METHODS = ("compiled", "numpy")
WRAP = 1 << 25


@pytest.fixture(scope="module", params=METHODS)
def method(request):
    """Both ways to decode; the suite needs a C++ compiler anyhow, so none may be missing."""
    assert t2.implementation() == ("compiled", "")
    return request.param


def defined(words, epoch=0):
    """What records mean, in Python: clicks, markers, and the time reached."""
    clicks, markers, base, until = [], [], epoch, epoch
    for word in map(int, words):
        time, code = word & WRAP - 1, word >> 25 & 63
        if word >> 31 == 0:
            clicks.append((base + time, code))
        elif code == 63:
            base, time = base + time * WRAP, 0
        else:
            markers.append((base + time, code))
        until = max(until, base + time)
    return clicks, markers, until


def joined(events):
    """Clicks, markers and the time reached of parts of a stream, as `defined` gives them."""
    return (
        [pair for e in events for pair in zip(e.times.tolist(), e.channels.tolist(), strict=True)],
        [
            pair
            for e in events
            for pair in zip(e.marker_times.tolist(), e.markers.tolist(), strict=True)
        ],
        events[-1].until,
    )


def drawn(rng, count, overflows=0.1, markers=0.01):
    """Records of every kind, times in no order."""
    words = rng.integers(0, 1 << 31, count, dtype=np.uint32)
    dice = rng.random(count)
    wrap = dice < overflows
    words[wrap] = 1 << 31 | 63 << 25 | rng.integers(1, 128, int(wrap.sum()), dtype=np.uint32)
    mark = dice > 1 - markers
    words[mark] = (
        1 << 31
        | rng.integers(1, 16, int(mark.sum()), dtype=np.uint32) << 25
        | rng.integers(0, WRAP, int(mark.sum()), dtype=np.uint32)
    )
    return words


@settings(deadline=None, max_examples=40)
@given(st.data(), st.integers(0, 2**32 - 1))
def test_any_stream_in_any_pieces(method, data, seed):
    """Overflows in runs and none for long, pieces that cut records, time order or not."""
    rng = np.random.default_rng(seed)
    shares = st.sampled_from([0, 0.001, 0.1, 0.5, 1])
    overflows = data.draw(shares)
    count = data.draw(st.sampled_from([0, 1, 15, 16, 17, 100, 5_000, 20_000]))
    words = drawn(rng, count, overflows, data.draw(shares) * (1 - overflows))
    epoch = data.draw(st.sampled_from([0, 1, -5, 1 << 62]))
    raw = words.tobytes()
    cuts = np.sort(rng.integers(0, len(raw) + 1, data.draw(st.integers(0, 8)))).tolist()
    decoder = t2.Decoder(epoch, method)
    parts = []
    for begin, end in zip([0, *cuts], [*cuts, len(raw)], strict=True):
        parts.append(decoder.feed(raw[begin:end]))
        assert decoder.rest == end % 4
    assert joined(parts) == defined(words, epoch)


def test_types_of_what_comes_and_goes(method):
    words = drawn(np.random.default_rng(1), 1_000)
    wanted = defined(words)
    raw = words.view(np.uint8)
    shifted = np.frombuffer(b"xyz" + words.tobytes(), np.uint8)[3:]  # not where words begin
    spread = np.repeat(words, 2)[::2]
    for data in (words, raw, raw.tobytes(), bytearray(raw), memoryview(raw), shifted, spread):
        events = t2.decode(data, method=method)
        assert joined([events]) == wanted
    assert events.times.dtype == events.marker_times.dtype == np.int64
    assert events.channels.dtype == events.markers.dtype == np.uint8


def test_what_comes_later_changes_nothing_of_before(method):
    """Events own their memory, and so does a record of which some bytes have come."""
    words = drawn(np.random.default_rng(2), 400)
    decoder = t2.Decoder(method=method)
    buffer = bytearray(words.tobytes()[:999])
    first = decoder.feed(buffer)
    buffer[:] = bytes(len(buffer))
    rest = decoder.feed(words.tobytes()[999:])
    assert joined([first, rest]) == defined(words)


def test_nonsense_is_named_by_its_place_and_undoes_its_piece(method):
    words = drawn(np.random.default_rng(3), 17_000)
    raw, wanted = words.tobytes(), defined(words)
    for word in (63 << 25 | 1 << 31, 1 << 31, 16 << 25 | 1 << 31, 62 << 25 | 1 << 31 | 5):
        for place in (101, 116, 117, 16_483, 16_484, 16_999):
            wrong = words.copy()
            wrong[place] = word
            wrong[place + 1 :] = 0xFE00_0000
            decoder = t2.Decoder(method=method)
            before = decoder.feed(raw[:402])
            with pytest.raises(t2.T2Error, match=f"T2 record {place - 100}: {word:#010x} is no"):
                decoder.feed(wrong.tobytes()[402:])
            after = decoder.feed(raw[402:])
            assert after.until == wanted[2]
            assert len(before.times) + len(after.times) == len(wanted[0])
    assert joined([before, after]) == wanted


def test_times_beyond_63_bits_are_refused(method):
    """To the last wrap that fits; sums that would overflow on the way as well."""
    words = np.array([127 | 63 << 25 | 1 << 31, WRAP - 1], np.uint32)
    last = (1 << 63) - 128 * WRAP
    assert t2.decode(words, last, method).times.tolist() == [(1 << 63) - 1]
    with pytest.raises(t2.T2Error, match="new epoch"):
        t2.decode(words, last + 1, method)
    largest = np.full(20_000, 0xFFFF_FFFF, np.uint32)
    with pytest.raises(t2.T2Error, match="new epoch"):
        t2.decode(largest, method=method)
    for epoch in (1 << 63, -(1 << 63) - 1):
        with pytest.raises(t2.T2Error, match="63 bits"):
            t2.Decoder(epoch, method)


def test_a_record_that_is_cut_is_said(method):
    with pytest.raises(t2.T2Error, match="3 bytes are left"):
        t2.decode(b"1234567", method=method)


def test_methods():
    with pytest.raises(ValueError, match="'compiled' and 'numpy'"):
        t2.Decoder(method="fast")


def test_without_a_compiler_numpy_serves(monkeypatch, tmp_path):
    compiled._loaded.cache_clear()
    monkeypatch.setenv("KEYRAIL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    try:
        assert t2.implementation() == ("numpy", "no C++ compiler: install the system package g++")
        words = drawn(np.random.default_rng(4), 100)
        assert joined([t2.decode(words)]) == defined(words)
        with pytest.raises(compiled.NotCompiled, match="no C"):
            t2.Decoder(method="compiled")
    finally:
        compiled._loaded.cache_clear()
