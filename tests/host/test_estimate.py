# SPDX-License-Identifier: Apache-2.0
"""Length of a key: the formulas against an independent evaluation, limits, degenerate counts."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyrail.distil.estimate import (
    LABEL,
    DecoyCounts,
    DecoySource,
    KeyLengthEstimate,
    binary_entropy,
    estimate_key_length,
    expected_counts,
)

SOURCE = DecoySource((0.6, 0.2), (0.3, 0.7))
COUNTS = DecoyCounts(n_z=(68000, 54000), m_z=(700, 560), n_x=(12500, 9900), m_x=(130, 105))


def at_qber(qber: float, slots: int = 10_000_000) -> DecoyCounts:
    clean = expected_counts(slots, SOURCE, dark_counts_per_slot=0, cross_clicks="discard")
    return DecoyCounts(
        n_z=clean.n_z,
        m_z=(round(clean.n_z[0] * qber), round(clean.n_z[1] * qber)),
        n_x=clean.n_x,
        m_x=(round(clean.n_x[0] * qber), round(clean.n_x[1] * qber)),
    )


def shannon(counts: DecoyCounts, efficiency: float = 1.16) -> float:
    return efficiency * sum(counts.n_z) * binary_entropy(counts.qber_z)


def test_matches_the_equations_written_out() -> None:
    """(A16) to (A25) with numbers, written down again without the code's helpers."""
    eps = 1e-10
    mu = np.array([0.6, 0.2])
    p = np.array([0.3, 0.7])
    n_z, m_z = np.array(COUNTS.n_z), np.array(COUNTS.m_z)
    n_x, m_x = np.array(COUNTS.n_x), np.array(COUNTS.m_x)
    tau0 = float(np.sum(p * np.exp(-mu)))
    tau1 = float(np.sum(p * mu * np.exp(-mu)))
    weight = np.exp(mu) / p

    def d(n: float) -> float:
        return math.sqrt(n / 2 * math.log(19 / eps))

    def single(n: np.ndarray, m: np.ndarray) -> float:
        vacuum = 2 * (tau0 * weight[1] * (m[1] + d(m.sum())) + d(n.sum()))
        low, high = weight[1] * (n[1] - d(n.sum())), weight[0] * (n[0] + d(n.sum()))
        return float(
            tau1
            * 0.6
            / (0.2 * 0.4)
            * (low - 0.04 / 0.36 * high - (0.36 - 0.04) / 0.36 * vacuum / tau0)
        )

    s_z1, s_x1 = single(n_z, m_z), single(n_x, m_x)
    s_z0 = max(
        0.0,
        tau0
        / 0.4
        * float(
            0.6 * weight[1] * (n_z[1] - d(n_z.sum())) - 0.2 * weight[0] * (n_z[0] + d(n_z.sum()))
        ),
    )
    v = tau1 / 0.4 * (weight[0] * (m_x[0] + d(m_x.sum())) - weight[1] * (m_x[1] - d(m_x.sum())))
    b = float(v) / s_x1
    k = (s_z1 + s_x1) / (s_z1 * s_x1)
    gamma = math.sqrt(k * (1 - b) * b / math.log(2) * math.log2(k / ((1 - b) * b) * 21**2 / eps**2))
    phi = b + gamma
    length = s_z0 + s_z1 * (1 - binary_entropy(phi)) - 13_000
    length -= 6 * math.log2(19 / eps) + math.log2(2 / 1e-15)

    result = estimate_key_length(COUNTS, SOURCE, 13_000)
    assert result.phase_error_upper == pytest.approx(phi, rel=1e-12)
    assert result.s_z1_lower == pytest.approx(s_z1, rel=1e-12)
    assert result.length == pytest.approx(length, rel=1e-12)
    assert result.secret_bits == math.floor(length) > 0
    assert result.reason == ""
    assert result.label == LABEL


def test_bounds_hold_for_a_source_of_known_photon_numbers() -> None:
    """Photons drawn one by one: the truth lies inside every bound, and not far inside."""
    rng = np.random.default_rng(7)
    slots = 4_000_000
    decoy = rng.random(slots) < 0.7
    photons = rng.poisson(np.where(decoy, 0.2, 0.6))
    basis_x = rng.random(slots) < 0.5
    transmission, dark, flip = 0.1, 1e-4, 0.01
    seen = rng.random(slots) < 1 - (1 - dark) * (1 - transmission) ** photons
    error = np.where(photons == 0, rng.random(slots) < 0.5, rng.random(slots) < flip) & seen

    def pair(mask: np.ndarray) -> tuple[int, int]:
        return int(np.sum(mask & ~decoy)), int(np.sum(mask & decoy))

    counts = DecoyCounts(
        n_z=pair(seen & ~basis_x),
        m_z=pair(error & ~basis_x),
        n_x=pair(seen & basis_x),
        m_x=pair(error & basis_x),
    )
    result = estimate_key_length(counts, SOURCE, 0)
    true_single = np.sum(seen & ~basis_x & (photons == 1))
    true_vacuum = np.sum(seen & ~basis_x & (photons == 0))
    true_errors = np.sum(error & basis_x & (photons == 1))
    true_phase = np.sum(error & basis_x & (photons == 1)) / np.sum(seen & basis_x & (photons == 1))
    assert result.s_z0_lower <= true_vacuum <= result.s_z0_upper
    assert 0.7 * true_single < result.s_z1_lower <= true_single
    assert true_errors <= result.v_x1_upper
    assert true_phase < result.phase_error_upper < 0.2


def test_planned_link_gives_the_known_length() -> None:
    counts = expected_counts(10_000_000, SOURCE, cross_clicks="discard")
    result = estimate_key_length(counts, SOURCE, shannon(counts))
    assert 0.75 * 1.2e5 < result.sifted_bits < 1.25 * 1.2e5
    assert 0.75 * 2.5e4 < result.secret_bits < 1.25 * 2.5e4


def test_random_bits_for_cross_clicks_cost_key() -> None:
    assign = expected_counts(10_000_000, SOURCE, cross_clicks="assign")
    discard = expected_counts(10_000_000, SOURCE, cross_clicks="discard")
    assert assign.qber_x > discard.qber_x
    lengths = [
        estimate_key_length(counts, SOURCE, shannon(counts)).secret_bits
        for counts in (assign, discard)
    ]
    assert 0 < lengths[0] < lengths[1]


def test_blanked_slots_cost_detections() -> None:
    free = expected_counts(1_000_000, SOURCE)
    blanked = expected_counts(1_000_000, SOURCE, dead_slots=5)
    assert 0.8 * sum(free.n_z) < sum(blanked.n_z) < 0.95 * sum(free.n_z)


def test_distance_shortens_until_nothing_is_left() -> None:
    results = []
    for distance in (0, 10, 25, 50, 100, 200):
        counts = expected_counts(10_000_000, SOURCE, distance_km=distance, cross_clicks="discard")
        results.append(estimate_key_length(counts, SOURCE, shannon(counts)))
    lengths = [result.secret_bits for result in results]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] > 0
    assert lengths[-1] == 0
    assert results[-1].reason


@pytest.mark.parametrize(
    ("slots", "reason"),
    [(10**7, "phase error bound 0.5 or more"), (10**10, "leak exceeds single-photon entropy")],
)
def test_no_key_at_twelve_percent(slots: int, reason: str) -> None:
    counts = at_qber(0.12, slots)
    result = estimate_key_length(counts, SOURCE, shannon(counts))
    assert result.secret_bits == 0
    assert result.reason == reason


def test_more_errors_never_lengthen() -> None:
    last = math.inf
    for qber in np.arange(0, 0.12, 0.004):
        counts = at_qber(float(qber))
        length = estimate_key_length(counts, SOURCE, 10_000).secret_bits
        assert length <= last
        last = length
    assert last == 0


@settings(derandomize=True, deadline=None)
@given(extra=st.integers(0, 12_000), leak=st.floats(0, 1e5), more=st.floats(0, 1e5))
def test_errors_of_one_class_and_leak_never_lengthen(extra: int, leak: float, more: float) -> None:
    base = estimate_key_length(COUNTS, SOURCE, leak)
    assert estimate_key_length(COUNTS, SOURCE, leak + more).secret_bits <= base.secret_bits
    z = dataclasses.replace(COUNTS, m_z=(COUNTS.m_z[0], COUNTS.m_z[1] + extra))
    x = dataclasses.replace(COUNTS, m_x=(COUNTS.m_x[0] + extra, COUNTS.m_x[1]))
    assert estimate_key_length(z, SOURCE, leak).secret_bits <= base.secret_bits
    assert estimate_key_length(x, SOURCE, leak).secret_bits <= base.secret_bits


def test_smaller_epsilons_never_lengthen() -> None:
    lengths = [
        estimate_key_length(COUNTS, SOURCE, 13_000, eps_sec=eps, eps_cor=eps).secret_bits
        for eps in (1e-6, 1e-10, 1e-15, 1e-20)
    ]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] > lengths[-1]


def test_no_errors_at_all_still_cost_an_allowance() -> None:
    clean = dataclasses.replace(COUNTS, m_z=(0, 0), m_x=(0, 0))
    result = estimate_key_length(clean, SOURCE, 0)
    assert result.phase_error_upper > result.gamma > 0
    one = estimate_key_length(dataclasses.replace(clean, m_x=(1, 0)), SOURCE, 0)
    assert one.secret_bits <= result.secret_bits


@pytest.mark.parametrize(
    ("counts", "reason"),
    [
        (DecoyCounts((0, 0), (0, 0), (0, 0), (0, 0)), "no detections in Z"),
        (DecoyCounts((10**5, 10**5), (0, 0), (0, 0), (0, 0)), "no detections in X"),
        (DecoyCounts((40, 40), (0, 0), (40, 40), (0, 0)), "too few detections in Z"),
        (DecoyCounts(COUNTS.n_z, COUNTS.m_z, (100, 100), (1, 1)), "too few detections in X"),
        (DecoyCounts(COUNTS.n_z, COUNTS.m_z, COUNTS.n_x, (4000, 105)), "phase error bound 0.5"),
        (DecoyCounts(COUNTS.n_z, COUNTS.m_z, COUNTS.n_x, (0, 2000)), "contradict"),
        (DecoyCounts((0, 10**6), (0, 0), COUNTS.n_x, COUNTS.m_x), "contradict"),
    ],
)
def test_reasons(counts: DecoyCounts, reason: str) -> None:
    result = estimate_key_length(counts, SOURCE, 0)
    assert result.secret_bits == 0
    assert reason in result.reason


def test_reason_when_only_the_finite_costs_are_too_high() -> None:
    free = estimate_key_length(COUNTS, SOURCE, 0)
    result = estimate_key_length(COUNTS, SOURCE, free.length + 200)
    assert result.secret_bits == 0
    assert "block too small" in result.reason


def test_budget_adds_up() -> None:
    result = estimate_key_length(COUNTS, SOURCE, 13_000)
    budget = result.budget()
    assert budget[0] == ("sifted", 122_000.0)
    assert math.fsum(bits for _, bits in budget) == pytest.approx(result.length, rel=1e-12)
    assert all(bits <= 0 for _, bits in budget[1:])


def everything_finite(result: KeyLengthEstimate) -> bool:
    values = dataclasses.asdict(result)
    return all(math.isfinite(value) for value in values.values() if isinstance(value, float))


@st.composite
def any_counts(draw: st.DrawFn) -> DecoyCounts:
    n = [draw(st.integers(0, 10 ** draw(st.integers(0, 15)))) for _ in range(4)]
    m = [draw(st.integers(0, value)) for value in n]
    return DecoyCounts((n[0], n[1]), (m[0], m[1]), (n[2], n[3]), (m[2], m[3]))


@settings(derandomize=True, deadline=None)
@given(
    counts=any_counts(),
    decoy=st.floats(1e-6, 5),
    above=st.floats(2e-6, 4),
    p_signal=st.floats(1e-6, 1 - 1e-6),
    leak=st.floats(0, 1e15),
    eps_sec=st.floats(0, 1, exclude_min=True, exclude_max=True),
    eps_cor=st.floats(0, 1, exclude_min=True, exclude_max=True),
)
def test_any_counts_give_a_length_or_a_reason(
    counts: DecoyCounts,
    decoy: float,
    above: float,
    p_signal: float,
    leak: float,
    eps_sec: float,
    eps_cor: float,
) -> None:
    source = DecoySource((decoy + above, decoy), (p_signal, 1 - p_signal))
    result = estimate_key_length(counts, source, leak, eps_sec=eps_sec, eps_cor=eps_cor)
    assert everything_finite(result)
    assert (result.secret_bits == 0) == bool(result.reason)
    assert 0 <= result.secret_bits <= sum(counts.n_z)
    assert 0 <= result.phase_error_upper <= 0.5


def test_numpy_counts_do_not_overflow() -> None:
    n = (np.uint32(4_000_000_000), np.uint32(4_000_000_000))
    zero = (np.uint32(0), np.uint32(0))
    assert estimate_key_length(DecoyCounts(n, zero, n, zero), SOURCE, 0).sifted_bits == 8 * 10**9


@pytest.mark.parametrize(
    ("n_z", "m_z", "name"),
    [((-1, 0), (0, 0), "n_z"), ((1, 1), (2, 0), "m_z"), ((1.5, 1), (0, 0), "n_z")],
)
def test_nonsense_counts_are_refused(n_z: object, m_z: object, name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: "):
        DecoyCounts(n_z, m_z, (0, 0), (0, 0))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("intensities", "probabilities", "name"),
    [
        ((0.2, 0.6), (0.3, 0.7), "intensities"),
        ((0.2, 0.2), (0.3, 0.7), "intensities"),
        ((0.6, 0.0), (0.3, 0.7), "intensities"),
        ((math.nan, 0.2), (0.3, 0.7), "intensities"),
        ((0.6, 0.2), (0.3, 0.6), "probabilities"),
        ((0.6, 0.2), (1.0, 0.0), "probabilities"),
    ],
)
def test_nonsense_sources_are_refused(
    intensities: tuple[float, float], probabilities: tuple[float, float], name: str
) -> None:
    with pytest.raises(ValueError, match=f"^{name}: "):
        DecoySource(intensities, probabilities)


@pytest.mark.parametrize(
    ("leak", "eps_sec", "eps_cor"),
    [(-1, 1e-10, 1e-15), (math.nan, 1e-10, 1e-15), (0, 0, 1e-15), (0, 1e-10, 1)],
)
def test_nonsense_settings_are_refused(leak: float, eps_sec: float, eps_cor: float) -> None:
    with pytest.raises(ValueError, match="allowed is"):
        estimate_key_length(COUNTS, SOURCE, leak, eps_sec=eps_sec, eps_cor=eps_cor)


@pytest.mark.parametrize("setting", [{"efficiency": 1.1}, {"distance_km": -1}, {"dead_slots": -1}])
def test_nonsense_links_are_refused(setting: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(setting))):
        expected_counts(1000, SOURCE, **setting)  # type: ignore[arg-type]
