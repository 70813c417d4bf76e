# SPDX-License-Identifier: Apache-2.0
"""Mutated frames against two stations in operation: ``python -m keyrail_sim.link_fuzz``.

Two kinds. Frames that an outsider makes out of recorded ones (bits flipped, cut, grown, spliced,
headers changed, recorded frames of this and of an earlier session sent again): none may be taken,
none may raise, and the stations go on. And frames whose content is mutated and whose computational
tag is right, as only someone who has broken that tag could make: they may end a block or a session,
never the process, and never in a key that differs or that an altered message went into.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keyrail.authentication import other_role
from keyrail.contract import Role
from keyrail.exchange import ACK, HELLO, KNOCK, LIVE, RELIABLE, WELCOME
from keyrail_sim.two_stations import SHORT_PLAN, TwoStations

Rng = np.random.Generator
INSIDE_STEPS = 400
"""Steps of both stations with contents mutated; what still runs then must come to blocks again."""


KINDS = (
    *("sent again", "bits flipped", "cut", "grown", "spliced with another", "zeroed in part"),
    *("other header", "other number", "random bytes"),
)
"""Ways in which a frame is made out of recorded ones."""


def mutated(rng: Rng, frames: Sequence[bytes]) -> tuple[bytes, str]:
    """One frame made out of recorded ones, and how; it may be one of them, sent again."""
    data = bytearray(frames[int(rng.integers(len(frames)))])
    kind = int(rng.integers(len(KINDS)))
    if kind == 0:
        return bytes(data), KINDS[kind]
    if kind == 1:
        for _ in range(int(rng.integers(1, 6))):
            data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
    elif kind == 2:
        del data[int(rng.integers(len(data))) :]
    elif kind == 3:
        data += rng.bytes(int(rng.integers(1, 64)))
    elif kind == 4:
        other = frames[int(rng.integers(len(frames)))]
        data[int(rng.integers(len(data))) :] = other[int(rng.integers(len(other))) :]
    elif kind == 5:
        begin = int(rng.integers(len(data)))
        end = min(len(data), begin + int(rng.integers(1, 40)))
        data[begin:end] = bytes(end - begin)
    elif kind == 6:
        place, values = ((2, 8), (3, 4), (1, 3))[int(rng.integers(3))]
        data[place] = int(rng.integers(values))
    elif kind == 7:
        data[12:20] = int(rng.integers(1 << 20)).to_bytes(8, "little")
    else:
        return rng.bytes(int(rng.integers(0, 200))), KINDS[kind]
    return bytes(data), KINDS[kind]


def outside(count: int, seed: int) -> dict[str, Any]:
    """Throw `count` mutated frames at two stations while they make blocks.

    Returns
    -------
    dict
        Frames sent; taken though they were never sent so or were sent before; and whether the
        stations made further blocks afterwards.

    Raises
    ------
    AssertionError
        If the stations stall.
    Exception
        Whatever a frame made a station raise.
    """
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        link = TwoStations(Path(folder), SHORT_PLAN, pads=100_000)
        link.run(lambda link: link.total("blocks") >= 2)
        link.start(Role.RECEIVER)  # what was recorded so far is of an earlier session now
        link.run(lambda link: link.total("sessions") >= 3)
        taken = replays = answered = done = 0
        kinds = dict.fromkeys(KINDS, 0)
        while done < count:
            for _ in range(int(rng.integers(1, 12))):
                link.step()
            for role in Role:
                link.runners[role].exchange.poll()
            frames = {
                role: link.wires[role].sent[-400:] + link.wires[role].sent[:60] for role in Role
            }
            genuine = {role: set(link.wires[role].sent) for role in Role}
            for _ in range(min(500, count - done)):
                author = Role.SENDER if rng.random() < 0.5 else Role.RECEIVER
                exchange = link.runners[other_role(author)].exchange
                data, kind = mutated(rng, frames[author])
                kinds[kind] += 1
                again = data in genuine[author]
                before = _rejected(exchange.counts)
                session, heard = exchange.session, exchange.counts["received"]
                link.wires[author].inner.send(data)
                exchange.poll()
                if exchange.counts["received"] == heard:
                    raise AssertionError("a frame was not looked at")
                rejected = _rejected(exchange.counts) - before
                if exchange.session != session:
                    taken += 1
                elif not rejected:
                    # A greeting that is sent again gets an answer, which leads nowhere.
                    if again and data[2] in (HELLO, KNOCK, WELCOME):
                        answered += 1
                    else:
                        taken += 1
                replays += again
                done += 1
        blocks = link.total("blocks")
        link.run(lambda link: link.total("blocks") >= blocks + 2)
        counts = {r.name.lower(): dict(x.exchange.counts) for r, x in link.runners.items()}
        keys = sum(runner.totals["keys"] for runner in link.runners.values())
        link.close()
    return {
        "frames": done,
        "of each kind": kinds,
        "of them recorded ones sent again": replays,
        "greetings sent again and answered": answered,
        "taken": taken,
        "blocks afterwards": 2,
        "keys": keys,
        "counts": counts,
    }


def _rejected(counts: dict[str, int]) -> int:
    return sum(count for name, count in counts.items() if name.startswith("rejected"))


def inside(runs: int, seed: int) -> dict[str, Any]:
    """Mutate contents behind a right computational tag, in `runs` runs of some blocks each."""
    from keyrail.authentication import PoolRestored
    from keyrail.operation import OperationError

    rng = np.random.default_rng(seed)
    altered = stops = out_of_step = blocks = failed = sessions = 0
    for _ in range(runs):
        with tempfile.TemporaryDirectory() as folder:
            link = TwoStations(Path(folder), SHORT_PLAN)
            share = float(rng.choice([0.01, 0.03, 0.1]))
            changed = [0]
            for role in Role:

                def change(
                    frame: bytes, role: Role = role, changed: list[int] = changed,
                    link: TwoStations = link, share: float = share,
                ) -> list[bytes]:  # fmt: skip
                    if frame[2] not in (RELIABLE, LIVE, ACK) or rng.random() > share:
                        return [frame]
                    changed[0] += 1
                    content = bytearray(frame[20:-16])
                    for _ in range(int(rng.integers(1, 4))):
                        if content and rng.random() < 0.8:
                            content[rng.integers(len(content))] = int(rng.integers(256))
                        else:
                            del content[int(rng.integers(len(content) + 1)) :]
                    return [link.reseal(role, frame, bytes(content))]

                link.wires[role].change = change
            try:
                for _ in range(INSIDE_STEPS):
                    link.step()
                for wire in link.wires.values():
                    wire.change = lambda frame: [frame]
                goal = link.total("blocks sifted") + 2
                for _ in range(20_000):
                    if link.total("blocks sifted") >= goal:
                        break
                    link.step()
                else:
                    raise AssertionError("stall: " + " | ".join(link.lines[-6:]))
            except OperationError:
                stops += 1  # three wrong tags in a row: the stop that is meant to be
            except PoolRestored:
                out_of_step += 1  # a tag's index was altered, and is used up by the attempt
            altered += changed[0]
            blocks += link.total("blocks")
            failed += link.total("blocks without a key")
            sessions += link.total("sessions")
            keys = link.keys()
            if keys[Role.SENDER] or keys[Role.RECEIVER]:
                raise AssertionError("a key came of a block that is too short for one")
            link.close()
    return {
        "runs": runs,
        "messages altered": altered,
        "blocks": blocks,
        "blocks discarded or too short": failed,
        "sessions": sessions,
        "stations stopped after three wrong tags": stops,
        "stations stopped by pools out of step": out_of_step,
        "crashes": 0,
        "stalls": 0,
    }


FRAMES, RUNS = 100_000, 40


def figure() -> dict[str, Any]:
    """All that ``make fuzz-link`` writes.

    Raises
    ------
    AssertionError
        If a frame was taken that should not have been, or the stations stalled.
    """
    found = {"outside": outside(FRAMES, 1), "inside": inside(RUNS, 1)}
    if found["outside"]["taken"]:
        raise AssertionError(f"frames taken: {found['outside']}")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: fuzz, and print the counts."""
    parser = argparse.ArgumentParser(prog="python -m keyrail_sim.link_fuzz", description=__doc__)
    parser.add_argument("--frames", type=int, default=FRAMES)
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args(arguments)
    import json

    result = {
        "outside": outside(chosen.frames, chosen.seed),
        "inside": inside(chosen.runs, chosen.seed),
    }
    print(json.dumps(result, indent=2))
    return 1 if result["outside"]["taken"] else 0


if __name__ == "__main__":
    sys.exit(main())
