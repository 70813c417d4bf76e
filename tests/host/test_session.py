# SPDX-License-Identifier: Apache-2.0
"""Distillation: two stations that speak only through the link."""

import numpy as np
import pytest

from keyrail import messages
from keyrail.distil import verify
from keyrail.distil.estimate import binary_entropy
from keyrail.distil.toeplitz import toeplitz_hash
from keyrail.link import memory_pair
from keyrail.messages import BitString, ProtocolError, decode, encode
from keyrail.randomness import TestRandom
from keyrail.session import DistilSettings, ReceiverDistiller, SenderDistiller, run_pair

ORDER = [
    "TestResult",
    "ReconcileStart",
    "Syndrome",
    "FrameResult",
    "VerifyTag",
    "VerifyResult",
    "Intensities",
    "ErrorCounts",
    "Length",
    "Seed",
    "Accept",
]


def bits(rng, count, share=0.5):
    return (rng.random(count) < share).astype(np.uint8)


def distil(qber, key_bits=120_000, tests=25_000, corrupt=None):
    rng = np.random.default_rng(1)
    key = bits(rng, key_bits)
    other = key ^ bits(rng, key_bits, qber)
    # Clicks come mostly from the signal: 0.6 x 30 % against 0.2 x 70 %.
    key_classes, test_classes = bits(rng, key_bits, 0.44), bits(rng, tests, 0.44)
    sender_end, receiver_end = memory_pair(record=True)
    calls = []

    def hash_block(k, s, m):
        calls.append((len(k), len(s), m))
        return toeplitz_hash(k, s, m)

    sender = SenderDistiller(
        sender_end, key.copy(), key_classes, test_classes, DistilSettings(),
        lambda purpose: TestRandom(3, purpose), hash_block,
    )  # fmt: skip
    receiver = ReceiverDistiller(
        receiver_end, other, bits(rng, tests, qber), DistilSettings(),
        lambda purpose: TestRandom(4, purpose), hash_block,
    )  # fmt: skip
    if corrupt:
        corrupt(sender, receiver)
    results = run_pair(sender, receiver)
    return *results, sender_end.transcript, calls


@pytest.mark.parametrize("qber", [0.006, 0.012])
def test_both_sides_end_with_the_same_key(qber):
    at_sender, at_receiver, transcript, calls = distil(qber)
    assert at_sender.accepted, at_sender.reason
    assert at_receiver.accepted
    assert np.array_equal(at_sender.secret, at_receiver.secret)
    assert at_sender.secret_bits == at_sender.estimate.secret_bits > 0
    assert 0.4 < at_sender.secret.mean() < 0.6
    assert calls[0] == calls[1]
    # The leak is what an outsider counts from the transcript, on both sides.
    assert at_sender.leak == at_receiver.leak == transcript.charged_bits()
    assert at_sender.estimate.leak_bits == at_sender.leak_bits
    assert at_sender.leak_bits > at_sender.sifted_bits * binary_entropy(at_sender.qber_z)
    assert 1 < at_sender.efficiency < 2
    # The order of the protocol: each class comes first after all classes before it.
    names = [type(decode(data)).__name__ for _, data in transcript.messages]
    firsts = [names.index(name) for name in ORDER]
    assert firsts == sorted(firsts)
    assert not at_sender.authenticated


def test_the_transcript_does_not_hold_the_key():
    at_sender, _, transcript, _ = distil(0.006)
    crossed = b"".join(data for _, data in transcript.messages)
    secret = np.packbits(at_sender.secret, bitorder="little").tobytes()
    assert all(secret[i : i + 8] not in crossed for i in range(0, 200, 8))
    assert "secret=" not in repr(at_sender)


def test_too_many_errors_give_no_key():
    for qber in (0.09, 0.13):
        at_sender, at_receiver, transcript, calls = distil(qber, 20_000, 6_000)
        for result in (at_sender, at_receiver):
            assert not result.accepted
            assert result.secret is None
            assert result.reason
        names = {type(decode(data)).__name__ for _, data in transcript.messages}
        assert "Seed" not in names
        assert calls == []


def test_no_detections_give_no_key():
    at_sender, at_receiver, _, _ = distil(0.01, 0, 0)
    assert "too few detections" in at_sender.reason
    assert not at_receiver.accepted


def test_keys_that_differ_fail_verification(monkeypatch):
    from keyrail.distil import reconcile

    whole = reconcile.reconcile_receiver

    def flawed(*arguments):
        corrected = yield from whole(*arguments)
        corrected[7] ^= 1
        return corrected

    monkeypatch.setattr(reconcile, "reconcile_receiver", flawed)
    at_sender, at_receiver, _, calls = distil(0.006, 30_000, 6_000)
    for result in (at_sender, at_receiver):
        assert "verification failed" in result.reason
        assert not result.verified
        assert result.secret is None
    assert calls == []


def test_frames_that_do_not_decode_are_charged_in_full(monkeypatch):
    from keyrail.distil import reconcile

    monkeypatch.setattr(reconcile, "_decode", lambda *arguments: None)
    at_sender, _, transcript, _ = distil(0.006, 30_000, 6_000)
    assert at_sender.leak["OpenedFrame"] == 30_000
    assert at_sender.leak == transcript.charged_bits()
    assert not at_sender.accepted
    assert "no key can be estimated" in at_sender.reason


def test_a_station_that_lies_about_counts_is_found_out():
    def lie(sender, receiver):
        send = receiver.link._link.send

        def altered(message):
            if isinstance(message, messages.Length):
                message = messages.Length(message.secret_bits + 1)
            send(message)

        receiver.link._link.send = altered

    at_sender, at_receiver, _, _ = distil(0.006, corrupt=lie)
    assert "lengths differ" in at_sender.reason
    assert at_sender.secret is None
    assert at_receiver.secret is None


def test_malformed_messages_are_protocol_errors():
    for data in (b"", b"\x00", encode(messages.Accept(True))[:-1], b"\xff" * 100):
        with pytest.raises(ProtocolError, match="malformed"):
            decode(data)
    with pytest.raises(ProtocolError, match="malformed"):
        decode(encode(messages.Close(1, b"short")))
    with pytest.raises(ProtocolError, match="bytes for 9 bits"):
        BitString(9, b"1").unpack()
    sender, receiver = memory_pair()
    with pytest.raises(ProtocolError, match="no message"):
        receiver.receive()
    sender.send(messages.Accept(True))
    with pytest.raises(ProtocolError, match="Accept came where Seed was due"):
        receiver.expect(messages.Seed)


def test_the_verification_hash_tells_strings_apart():
    rng = np.random.default_rng(2)
    key = verify.draw_key(TestRandom(1, "key"))
    text = bits(rng, 5_000)
    tag = verify.tag(text, key)
    assert tag == verify.tag(text.copy(), key)
    for place in (0, 119, 120, 4_999):
        other = text.copy()
        other[place] ^= 1
        assert verify.tag(other, key) != tag
    assert verify.tag(np.zeros(8, np.uint8), key) != verify.tag(np.zeros(9, np.uint8), key)
    assert verify.collision_bound(10**8) < 1e-15
