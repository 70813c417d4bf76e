# SPDX-License-Identifier: Apache-2.0
"""Figure of the classical link: loss, restarts, the attack on live bases, fuzz counts."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from keyrail.contract import Role
from keyrail_sim import link_fuzz, live_bases
from keyrail_sim.two_stations import KEY_PLAN, SHORT_PLAN, TwoStations

FUZZED, FUZZ_RUNS = 100_000, 10


def loss(share: float, seed: int = 1, blocks: int = 2) -> dict[str, Any]:
    """Blocks of both stations while a share of all frames, in both directions, is lost."""
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        link = TwoStations(Path(folder), KEY_PLAN, blocks=blocks, seed=seed)
        for wire in link.wires.values():
            wire.change = lambda frame: [] if rng.random() < share else [frame]
        link.run(TwoStations.finished)
        sender, receiver = (link.runners[role] for role in Role)
        keys = link.keys()
        result = {
            "frames_lost_share": share,
            "blocks": blocks,
            "slots_a_block": KEY_PLAN.block_slots,
            "live_frames_lost": sum(report.frames_lost for report in sender.reports),
            "live_frames": blocks * -(-KEY_PLAN.block_slots // KEY_PLAN.chunk_slots),
            "detections": [report.detections for report in sender.reports],
            "messages_repeated": sender.exchange.counts["repeated"]
            + receiver.exchange.counts["repeated"],
            "keys": len(keys[Role.SENDER]),
            "secret_bits": [report.secret_bits for report in sender.reports],
            "keys_equal": keys[Role.SENDER] == keys[Role.RECEIVER],
            "frames_sent": [r.exchange.counts["sent"] for r in (sender, receiver)],
        }
        link.close()
    return result


def restarts(role: Role, count: int = 10, seed: int = 1) -> dict[str, Any]:
    """Restart a station at random moments; count what was lost and how long the link was down."""
    rng = np.random.default_rng(seed)
    down: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        link = TwoStations(Path(folder), SHORT_PLAN, pads=2_000, seed=seed)
        link.run(lambda link: link.total("blocks") >= 2)
        discarded = 0
        for _ in range(count):
            for _ in range(int(rng.integers(1, 80))):
                link.step()
            link.start(role)
            began = link.now
            link.run(lambda link: link.runners[role].totals["blocks sifted"] > 0)
            down.append(link.now - began)
        other = link.runners[Role.SENDER if role is Role.RECEIVER else Role.RECEIVER]
        discarded = sum("session" in r.reason or "anew" in r.reason for r in other.reports)
        in_step = len({str(r.pool.counters) for r in link.runners.values()}) == 1
        link.close()
    return {
        "restarted": role.name.lower(),
        "restarts": count,
        "resumed_without_help": len(down),
        "blocks_discarded_at_the_other": discarded,
        "seconds_to_the_next_sifted_block": {
            "median": round(float(np.median(down)), 2),
            "longest": round(max(down), 2),
        },
        "pools_in_step": in_step,
    }


def figure() -> dict[str, Any]:
    """Run the experiments."""
    return {
        "time_is": "of the stations' own clock, which goes on by 20 ms a step",
        "loss": [loss(share) for share in (0.0, 0.01, 0.1)],
        "restart": [restarts(role) for role in Role],
        "bases_announced_live": dataclasses.asdict(live_bases.attack(True, 1_000, 1)),
        "bases_after_the_close": dataclasses.asdict(live_bases.attack(False, 1_000, 1)),
        "fuzz": {
            "outside": link_fuzz.outside(FUZZED, 1),
            "inside": link_fuzz.inside(FUZZ_RUNS, 1),
        },
    }
