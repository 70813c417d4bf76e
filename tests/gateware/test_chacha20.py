# SPDX-License-Identifier: Apache-2.0
"""ChaCha20: the standard's vectors, and the gateware against its twin."""

import cocotb
import numpy as np
import pytest
from cocotb.triggers import FallingEdge, ReadOnly
from cocotb.utils import get_sim_time

import bench
from bench import Sink, Source, generator, settle, until
from keyrail_sim.models.chacha20 import blocks

TAG_BITS = 8
LATENCY, IN_FLIGHT, CLOCKS = 82, 8, 80

# RFC 8439, section 2.3.2.
KEY = bytes(range(32))
NONCE_232 = bytes.fromhex("000000090000004a00000000")
BLOCK_232 = bytes.fromhex(
    "10f1e7e4d13b5915500fdd1fa32071c4c7d1f4c733c068030422aa9ac3d46c4e"
    "d2826446079faa0914c2d705d98b02a2b5129cd1de164eb9cbd083e8a2503c4e"
)
# RFC 8439, section 2.4.2.
NONCE_242 = bytes.fromhex("000000000000004a00000000")
PLAIN_242 = (
    b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, "
    b"sunscreen would be it."
)
CIPHER_242 = bytes.fromhex(
    "6e2e359a2568f98041ba0728dd0d6981e97e7aec1d4360c20a27afccfd9fae0b"
    "f91b65c5524733ab8f593dabcd62b3571639d624e65152ab8f530c359f0861d8"
    "07ca0dbf500d6a6156a38e088a22b65e52bc514d16ccf806818ce91ab7793736"
    "5af90bbf74a35be6b40b8eedf2785e42874d"
)


def number(data):
    return int.from_bytes(data, "little")


def request(counter, nonce, tag=0):
    return counter | number(nonce) << 32 | tag << 128


def collect(sink):
    """Blocks and tags of what came out; parts must come in order."""
    found = []
    for index in range(0, len(sink.received), 8):
        parts = sink.received[index : index + 8]
        assert [part >> 64 & 7 for part in parts] == list(range(8))
        tags = {part >> 67 for part in parts}
        assert len(tags) == 1
        found.append((b"".join((p & (1 << 64) - 1).to_bytes(8, "little") for p in parts), *tags))
    return found


def twin(key, requests):
    counters = [r & 0xFFFF_FFFF for r in requests]
    nonces = [[r >> (32 + 32 * i) & 0xFFFF_FFFF for i in range(3)] for r in requests]
    out = blocks(np.frombuffer(key, "<u4"), counters, nonces)
    return [(row.astype("<u4").tobytes(), r >> 128) for row, r in zip(out, requests, strict=True)]


def check_vectors(block_of):
    """The two examples of the standard, with a function from requests to blocks."""
    assert block_of([request(1, NONCE_232)])[0][0] == BLOCK_232
    stream = b"".join(b for b, _ in block_of([request(1, NONCE_242), request(2, NONCE_242)]))
    assert bytes(a ^ b for a, b in zip(PLAIN_242, stream, strict=False)) == CIPHER_242


def test_twin_gives_the_vectors_of_the_standard():
    check_vectors(lambda requests: twin(KEY, requests))


@cocotb.test()
async def bench_vectors_of_the_standard(dut):
    dut.key.value = number(KEY)
    await bench.start(dut)
    sink, source = Sink(dut, "o"), Source(dut, "request")
    requests = [request(1, NONCE_232), request(1, NONCE_242), request(2, NONCE_242)]
    await source.send(requests)
    await until(dut, lambda: len(sink.received) == 8 * len(requests))
    found = collect(sink)
    order = iter((found[:1], found[1:]))
    check_vectors(lambda _: next(order))
    await settle(dut, sink)
    assert dut.idle.value == 1


@cocotb.test()
@cocotb.parametrize(shares=[(1.0, 1.0), (0.05, 1.0), (1.0, 0.4), (0.2, 0.6)])
async def bench_random_blocks(dut, shares):
    rng = generator("chacha20", shares)
    key = rng.bytes(32)
    dut.key.value = number(key)
    await bench.start(dut)
    sink, source = Sink(dut, "o", shares[1]), Source(dut, "request", shares[0])
    requests = [number(rng.bytes(16 + TAG_BITS // 8)) for _ in range(30)]
    requests[3] |= 0xFFFF_FFFF
    await source.send(requests)
    await until(dut, lambda: len(sink.received) == 8 * len(requests))
    assert collect(sink) == twin(key, requests)
    await settle(dut, sink)
    assert len(sink.received) == 8 * len(requests)


@cocotb.test()
async def bench_latency_and_rate(dut):
    dut.key.value = number(KEY)
    await bench.start(dut)
    sink, source = Sink(dut, "o"), Source(dut, "request")
    await source.send([request(0, NONCE_232)])
    began = get_sim_time("step")
    await until(dut, lambda: dut.o__valid.value == 1)
    assert (get_sim_time("step") - began) / bench.CLOCK_STEPS == LATENCY - 1
    await settle(dut, sink)
    began = get_sim_time("step")
    rounds = 4
    await source.send([request(i, NONCE_232) for i in range(IN_FLIGHT * rounds + 1)])
    # The first of the next round is taken as the first of this one leaves the ring.
    taken = (get_sim_time("step") - began) / bench.CLOCK_STEPS
    assert taken == CLOCKS * rounds + 1


@cocotb.test()
async def bench_reset_forgets_what_was_in_flight(dut):
    dut.key.value = number(KEY)
    await bench.start(dut)
    sink, source = Sink(dut, "o", 0.5), Source(dut, "request")
    await source.send([request(i, NONCE_232) for i in range(6)])
    await until(dut, lambda: len(sink.received) > 3)
    await bench.reset(dut)
    sink.received.clear()
    await ReadOnly()
    assert dut.idle.value == 1
    for name in ("result", "word_0_4", "word_7_15"):
        assert int(getattr(dut, name).value) == 0
    await FallingEdge(dut.clk)
    await source.send([request(1, NONCE_232)])
    await until(dut, lambda: len(sink.received) == 8)
    assert collect(sink)[0][0] == BLOCK_232


@pytest.mark.parametrize("simulator", bench.simulators())
def test_chacha20(simulator):
    from keyrail_gateware import chacha20

    assert chacha20.LATENCY == LATENCY
    bench.run(chacha20.ChaCha20(TAG_BITS), simulator, "test_chacha20")
