# SPDX-License-Identifier: Apache-2.0
"""Benchmark of the Toeplitz hash on the host, beside scipy's transforms and randextract."""

from __future__ import annotations

import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import scipy.fft

from keyrail.distil.toeplitz import (
    LARGEST_INPUT,
    Bits,
    implementation,
    seed_bits,
    toeplitz_hash,
)

__all__ = ["figure", "table"]

SIZES = (
    *((1 << k, 1 << (k - 2)) for k in (16, 18)),
    (1_000_000, 300_000),
    *((1 << k, 1 << (k - 2)) for k in range(20, LARGEST_INPUT.bit_length())),
)
LIMIT = 300.0
"""Seconds after which a method is given up, and for all larger sizes."""


def _by_randextract(key: Bits, seed: Bits, m: int) -> Bits:
    from galois import GF2
    from randextract import ModifiedToeplitzHashing

    extractor = ModifiedToeplitzHashing(input_length=len(key), output_length=m)
    return np.asarray(extractor.extract(GF2(key), GF2(seed))).astype(np.uint8)


def _transforms_alone(key: Bits, seed: Bits, m: int) -> Bits:
    """The three real transforms that a convolution takes at least, without bits in and out."""
    length = 1 << (len(key) - 2).bit_length()
    spectrum = scipy.fft.rfft(key.astype(np.float64), length)
    spectrum *= scipy.fft.rfft(seed.astype(np.float64), length)
    scipy.fft.irfft(spectrum, length)
    return key[:0]


METHODS: dict[str, Callable[[Bits, Bits, int], Bits]] = {
    "product": lambda key, seed, m: toeplitz_hash(key, seed, m, method="product"),
    "transform": lambda key, seed, m: toeplitz_hash(key, seed, m, method="transform"),
    "scipy_transforms_alone": _transforms_alone,
    "randextract": _by_randextract,
}


def _measure(method: str, n: int, m: int, answer: Connection) -> None:
    """Seconds of the fastest run, memory taken, and a check value of the output."""
    rng = np.random.default_rng(n)
    key = rng.integers(0, 2, n, np.uint8)
    seed = rng.integers(0, 2, seed_bits(n, m), np.uint8)
    hash_ = METHODS[method]
    hash_(key[:100], seed[:99], 30)  # what is imported and compiled once is not timed
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    fastest, began = float("inf"), time.perf_counter()
    for _ in range(5):
        start = time.perf_counter()
        out = hash_(key, seed, m)
        fastest = min(fastest, time.perf_counter() - start)
        if time.perf_counter() - began > 10:
            break
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    check = int(np.packbits(out).astype(np.uint64) @ (np.arange(-(-len(out) // 8)) % 65_521 + 1))
    answer.send((fastest, used / 1024, check))


def figure() -> dict[str, Any]:
    """Seconds and memory of each method at each size, outputs compared."""
    context = multiprocessing.get_context("spawn")
    given_up: set[str] = set()
    results = []
    for n, m in SIZES:
        result: dict[str, Any] = {"n": n, "m": m}
        checks = set()
        for method in METHODS:
            if method in given_up:
                continue
            print(f"{n} to {m} bits by {method} ...", file=sys.stderr, flush=True)
            receiver, sender = context.Pipe(False)
            process = context.Process(target=_measure, args=(method, n, m, sender))
            process.start()
            sender.close()
            measured = None
            if receiver.poll(LIMIT):
                try:
                    measured = receiver.recv()
                except EOFError:  # it died: out of memory, or no such method on this machine
                    measured = None
            process.kill()
            process.join()
            if measured is None:
                given_up.add(method)
                continue
            result[method] = {"seconds": round(measured[0], 5), "mib": round(measured[1], 1)}
            if method != "scipy_transforms_alone":
                checks.add(measured[2])
        if len(checks) > 1:
            raise RuntimeError(f"{n} to {m} bits: the methods do not agree")
        results.append(result)
    return {"arithmetic": implementation()[1], "limit_seconds": LIMIT, "results": results}


def table(described: dict[str, Any]) -> str:
    """The figure as a Markdown page."""
    lines = [
        "# Toeplitz hash on the control PC",
        "",
        f"Written by `{described['command']}` at commit {described['commit']}; "
        f"{described['machine']}, one of them used; "
        + ", ".join(f"{name} {version}" for name, version in described["versions"].items())
        + ".",
        "Modified family; fastest of up to five runs, and memory taken beyond the input.",
        "",
        f"*Product* multiplies with {described['arithmetic']}. *Transforms alone* are the three",
        "real transforms of scipy that a convolution needs at the least, without rounding or bits.",
        f"No entry: more than {described['limit_seconds']:.0f} s or no memory.",
        "",
        "| n | m | Product | Transform | Transforms alone | randextract | Product is faster than "
        "transforms alone | Memory of product | of transform |",
        "|" + " --- |" * 9,
    ]
    for result in described["results"]:
        seconds = [result.get(method, {}).get("seconds") for method in METHODS]
        shown = ["" if one is None else f"{one:.4g} s" for one in seconds]
        ratio = f"{seconds[2] / seconds[0]:.1f} times" if seconds[0] and seconds[2] else ""
        memory = [
            f"{result[method]['mib']:,.0f} MiB" if method in result else ""
            for method in ("product", "transform")
        ]
        cells = [f"{result['n']:,}", f"{result['m']:,}", *shown, ratio, *memory]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])
