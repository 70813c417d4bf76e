# SPDX-License-Identifier: Apache-2.0
"""Stations follow the source's clock: drift, dark intervals, and a lock that is lost."""

import numpy as np
import pytest

import keyrail
from keyrail import tag_path
from keyrail.contract import Mode, Role, TagKind
from keyrail.messages import ProtocolError
from keyrail.randomness import TestRandom
from keyrail.source import random_states
from keyrail.training import training_states
from keyrail.tuning import HOLDOVER_PS, tune
from keyrail_sim.photonics import LinkSettings, Photonics
from keyrail_sim.two_stations import KEY_PLAN, SHORT_PLAN, TwoStations

TRAINING = 1 << 18
CHUNK = 1 << 16
SECOND = 100_000_000
"""Slots of a second."""


class Receiver:
    """A tuned receiver's twin in instrument mode, under light that goes on after the training."""

    def __init__(self, distance_km=10.0, seed=0, **link):
        self.settings = LinkSettings(distance_km=distance_km, dark_counts_per_slot=1e-7, **link)
        self.light = Photonics(self.settings, seed)
        self.board = keyrail.open("sim-model:bob")
        self.states = TestRandom(seed, "states").bytes
        pattern = training_states(TRAINING)
        clicks = self.light.detect(pattern, 0)
        self.tuning = tune(self.board, clicks.times, clicks.channels, pattern, 0)
        self.slot = TRAINING
        self.tuning.apply(self.board)

    def shine(self, slots, present=True, delay_ps=0):
        """Slots of the clicks in this light: as decoded by the board, and as they are."""
        times = []
        for begin in range(self.slot, self.slot + slots, CHUNK):
            states = random_states(self.states, CHUNK, 0.7, 0.3)
            clicks = self.light.detect(states if present else np.zeros_like(states), begin)
            late = clicks.times + delay_ps
            records = tag_path.tag_records(late, clicks.channels)
            self.board.send("tags", records)
            self.board.run()
            times.append(clicks.times)
        self.slot += slots
        tags = self.board.receive("gated")
        decoded = tags["slot"][tags["kind"] == TagKind.CLICK].astype(np.int64)
        return decoded, self._true_slots(np.concatenate(times))

    def jump(self, slots):
        """Nothing at all for so long."""
        self.slot += slots

    def _true_slots(self, times):
        slots = times // self.settings.period_ps
        for _ in range(4):
            lag = np.rint(self.settings.lag(slots)).astype(np.int64)
            slots = (times - lag) // self.settings.period_ps
        return slots

    def wrong(self, decoded, true):
        """Share of the decoded slots that are no slot of a click."""
        assert len(decoded) > 500
        return 1 - np.isin(decoded, true).mean()


def test_slots_stay_right_where_the_clocks_drift_apart():
    """2.5 slots in 10 ms: a hundred times what one period for all would bear."""
    link = {"clock_drift_ppm_per_s": 100.0, "wander_ps": 500.0, "wander_period_s": 0.01}
    receiver = Receiver(**link)
    decoded, true = receiver.shine(24 * CHUNK)
    assert receiver.wrong(decoded, true) < 0.005  # dark counts and tails near a slot's border
    assert np.isin(true[len(true) // 2 :], decoded).mean() > 0.7  # the others are blanked
    assert tag_path.tracking_state(receiver.board).locked
    receiver.tuning.check_lock(receiver.board)

    untracked = Receiver(**link)
    tag_path.set_tracking(untracked.board, None)
    tag_path.set_slots(untracked.board, untracked.tuning.period, untracked.tuning.origin_ps)
    decoded, true = untracked.shine(24 * CHUNK)
    assert np.isin(true[len(true) // 2 :], decoded).mean() < 0.2  # they have left the gate


def test_hold_over_bridges_the_dark():
    receiver = Receiver(clock_drift_ppm_per_s=0.1)
    receiver.shine(12 * CHUNK)
    assert tag_path.tracking_state(receiver.board).locked
    receiver.jump(SECOND // 50)
    receiver.shine(2 * CHUNK, present=False)  # dark counts only: no window may be followed
    decoded, true = receiver.shine(8 * CHUNK)
    assert receiver.wrong(decoded, true) < 0.005
    assert tag_path.tracking_state(receiver.board).locked
    receiver.tuning.check_lock(receiver.board)


@pytest.mark.parametrize("how", ["dark", "astray"])
def test_a_lost_lock_is_counted_and_found_again(how):
    receiver = Receiver()
    receiver.shine(12 * CHUNK)
    receiver.tuning.check_lock(receiver.board)
    delay = 0
    if how == "dark":
        receiver.jump(2 * HOLDOVER_PS // receiver.settings.period_ps)
    else:
        delay = receiver.settings.period_ps // 2  # another path of the light
    receiver.shine(12 * CHUNK, delay_ps=delay)
    counts = receiver.board.ledger("tracker")
    assert counts["lock_losses"] == 1
    assert tag_path.tracking_state(receiver.board).locked  # by itself
    with pytest.raises(ProtocolError, match="lost the source"):
        receiver.tuning.check_lock(receiver.board)


def test_a_path_in_key_mode_goes_on_from_block_to_block():
    receiver = Receiver()
    board, tuning = receiver.board, receiver.tuning
    board.write("mode", Mode.KEY)  # wipes, and restarts the path
    tuning.apply(board)
    receiver.shine(8 * CHUNK)
    before = board.ledger("tracker")["corrections"]
    tuning.apply(board)
    assert board.ledger("tracker")["corrections"] == before > 0
    receiver.jump(2 * HOLDOVER_PS // receiver.settings.period_ps)
    receiver.shine(2 * CHUNK)
    with pytest.raises(ProtocolError, match="lost the source"):
        tuning.apply(board)
    # Trained again, it begins anew.
    pattern = training_states(TRAINING)
    clicks = receiver.light.detect(pattern, receiver.slot)
    again = tune(board, clicks.times, clicks.channels, pattern, receiver.slot)
    board.write("mode", Mode.KEY)
    again.apply(board)
    assert board.ledger("tracker")["windows"] == 0


def test_two_stations_keep_their_slots_over_blocks_while_the_clocks_drift(tmp_path):
    """4 ns in the two blocks, of slots of 10 ns: the gate would miss the pulses."""
    light = LinkSettings(clock_drift_ppm_per_s=20.0)
    link = TwoStations(tmp_path, KEY_PLAN, blocks=2, light=light)
    link.run(TwoStations.finished)
    for runner in link.runners.values():
        assert runner.totals["keys"] == 2
        assert runner.reports[1].result.qber_z < 0.01
    link.close()


class Displaced:
    """Light that comes half a slot late from some slot on."""

    def __init__(self, inner, from_slot):
        self.inner, self.from_slot = inner, from_slot

    def detect(self, states, first_slot):
        clicks = self.inner.detect(states, first_slot)
        late = (first_slot >= self.from_slot) * 5_000
        return clicks.times + late, clicks.channels


def test_a_block_in_which_the_lock_was_lost_is_discarded_and_the_next_is_right(tmp_path):
    link = TwoStations(tmp_path, SHORT_PLAN)
    world = link.fibre._world
    first = []

    def once(epoch):
        if not first:
            first.append(epoch)
            return Displaced(world(epoch), SHORT_PLAN.training_slots + SHORT_PLAN.block_slots // 2)
        return world(epoch)

    link.fibre._world = once
    link.run(lambda link: link.runners[Role.RECEIVER].totals["blocks"] >= 2)
    one, two = list(link.runners[Role.RECEIVER].reports)[:2]
    assert "lost the source" in one.reason
    assert "lost the source" not in two.reason
    assert two.result.qber_z is None or two.result.qber_z < 0.01
    assert link.runners[Role.RECEIVER].totals["blocks sifted"] >= 1
    link.close()
