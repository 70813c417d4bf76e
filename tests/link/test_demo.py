# SPDX-License-Identifier: Apache-2.0
"""The whole link: photons to keys, through the real gateware and through its twin."""

import dataclasses

import numpy as np
import pytest

from keyrail.demo import DemoSettings, run
from keyrail.errors import SettingError
from keyrail.report import demo_report

pytestmark = pytest.mark.xdist_group("stations")

SETTINGS = DemoSettings(seed=1, backend="model")


@pytest.fixture(scope="module")
def twin():
    return run(SETTINGS)


def test_keys_are_equal_and_the_gateware_gives_the_same(twin):
    assert twin.accepted, twin.reason
    assert twin.keys_equal
    assert twin.hash_on == "board"
    real = run(dataclasses.replace(SETTINGS, backend="rtl"))
    assert real.keys_equal
    assert np.array_equal(real.result.secret, twin.result.secret)
    one, other = real.as_dict(), twin.as_dict()
    for varies in ("seconds", "backend", "simulated_cycles"):
        one.pop(varies), other.pop(varies)
    assert one == other
    assert min(real.cycles.values()) > 10_000


def test_result_holds_what_it_must_and_no_secret(twin):
    data = twin.as_dict()
    for name in ("slots", "detections", "sifted_bits", "leak_bits", "secret_bits"):
        assert data[name] > 0
    assert 0 < data["qber_z"] < 0.03
    assert 0 < data["qber_x"] < 0.03
    assert data["keys_equal"] is True
    assert data["link_authenticated"] is False
    assert set(data["randomness"].values()) == {"test"}
    assert data["clicks"] == data["detections"] + sum(data["dropped"].values())
    page = demo_report(twin)
    assert page.count("<svg") == 3
    assert "estimate" in page
    assert "NOT authenticated" in page
    secret = "".join(map(str, twin.result.secret))
    assert secret[:64] not in repr(twin) + str(data) + page


def test_states_of_the_on_board_generator_are_called_computational():
    """Every report says so, by the board's own word."""
    result = run(DemoSettings(slots=2_000_000, backend="model", states="generator"))
    assert result.keys_equal == result.accepted
    assert result.detections > 10_000
    assert result.result.qber_x < 0.03
    assert result.randomness["states"] == "generator"
    assert result.randomness["generator key"] == "os"
    assert result.as_dict()["security"] == "computational"
    rows = dict(result.summary())
    assert "states: generator (on the board, computational)" in rows["Randomness"]
    assert rows["Security by randomness"] == "computational"
    page = demo_report(result)
    assert "states: generator (on the board, computational)" in page
    assert "<td>computational</td>" in page


def test_an_eavesdropper_costs_key(twin):
    some = run(dataclasses.replace(SETTINGS, eve=0.1))
    assert (some.result.secret_bits if some.result else 0) < twin.result.secret_bits
    half = run(dataclasses.replace(SETTINGS, eve=0.5))
    assert half.result.qber_x > 0.12
    assert not half.accepted
    assert half.result.secret is None
    assert "QBER" in half.reason


def test_too_far_gives_no_key_and_says_why():
    for distance, slots in ((150.0, 1_000_000), (450.0, 100_000)):
        result = run(DemoSettings(distance_km=distance, slots=slots, seed=1, backend="model"))
        assert not result.accepted
        assert result.reason
        assert result.as_dict()["secret_bits"] == 0
        assert "No key because" in dict(result.summary())
        demo_report(result)


def test_a_block_beyond_the_board_is_hashed_whole_on_the_host(monkeypatch):
    sizes = {"toeplitz_input_log2": 12, "block_memory_log2": 12}
    from keyrail_sim import model_board

    monkeypatch.setattr(model_board, "Sizes", lambda: _sizes(**sizes))
    result = run(SETTINGS)
    assert result.keys_equal
    assert result.hash_on == "host"
    assert result.block_on_host


def _sizes(**changed):
    from types import SimpleNamespace

    whole = {
        "toeplitz_input_log2": 18,
        "toeplitz_output_log2": 17,
        "block_memory_log2": 18,
        "horizon_log2": 17,
        "choices_log2": 17,
    }
    return SimpleNamespace(**(whole | changed))


def test_runs_without_a_seed_differ():
    settings = dataclasses.replace(SETTINGS, seed=None, slots=20_000)
    result = run(settings)
    labels = result.randomness
    assert labels["states"] == labels["coins"] == "os"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("distance_km", -1),
        ("slots", 10**9),
        ("slots", 5),
        ("eve", 1.5),
        ("seed", -3),
        ("backend", "x"),
        ("states", "dice"),
    ],
)
def test_settings_out_of_range_say_what_is_allowed(name, value):
    with pytest.raises(SettingError, match="allowed is"):
        DemoSettings(**{name: value})
