# SPDX-License-Identifier: Apache-2.0
"""Secret length of a block by the formulas of Rusca et al. for one decoy: an **estimate**.

D. Rusca, A. Boaron, F. Grünenfelder, A. Martin, H. Zbinden, "Finite-key analysis for the 1-decoy
state QKD protocol", Appl. Phys. Lett. 112, 171104 (2018), arXiv:1801.03443, appendix A; it follows
C. C. W. Lim et al., Phys. Rev. A 89, 022307 (2014). Equation numbers (A..) below are theirs. Z is
the key basis, X the test basis, mu1 > mu2 the intensities of signal and decoy.

n± and m± carry the factor exp(k)/p_k, as in Lim et al.; (A18) leaves it out, and without it (A17)
does not follow from (A10). What else differs from the print never gives a longer key:

- The errors of one class bound the vacuum (A16). The decoy is always taken: the tighter one of the
  two at sensible settings, and one that is fixed before the block, so that each failure
  probability is counted once.
- gamma (A21) goes to zero with the error rate, where its approximation has no meaning: fewer than
  one error is counted as one.
- Bounds that contradict one another (more single photons than detections, fewer errors than none)
  give no key.

(A22) is loose when the signal has more errors than the decoy, as random bits for clicks in both
bases make it; nothing is done about that here.

A length from these formulas alone is for comparison with the literature; see the label.
"""

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

__all__ = [
    "LABEL",
    "DecoyCounts",
    "DecoySource",
    "KeyLengthEstimate",
    "binary_entropy",
    "estimate_key_length",
    "expected_counts",
]

LABEL = "estimate (Rusca et al. 2018, 1-decoy)"
"""What every output calls a length from this module."""

Pair = tuple[float, float]
IntPair = tuple[int, int]


@dataclass(frozen=True)
class DecoySource:
    """What the sender emits.

    Parameters
    ----------
    intensities : tuple of float
        Mean photon numbers (mu1, mu2) of signal and decoy; 10^-6 <= mu2, mu2 + 10^-6 <= mu1 <= 10.
    probabilities : tuple of float
        Probabilities of sending them, the same in both bases; each at least 10^-6, sum 1.

    Raises
    ------
    ValueError
        If a value is out of its range; the text names it and the range.
    """

    intensities: Pair = (0.6, 0.2)
    probabilities: Pair = (0.3, 0.7)

    def __post_init__(self) -> None:
        mu1, mu2 = self.intensities
        if not 1e-6 <= mu2 <= mu1 - 1e-6 <= 10:
            raise ValueError(
                f"intensities: {self.intensities}; allowed are 1e-6 <= decoy < signal <= 10"
            )
        p1, p2 = self.probabilities
        if not (p1 >= 1e-6 and p2 >= 1e-6 and abs(p1 + p2 - 1) <= 1e-9):
            raise ValueError(
                f"probabilities: {self.probabilities}; each at least 1e-6, and their sum is 1"
            )

    def photon_number(self, n: int) -> float:
        """Probability tau_n that a pulse holds n photons (A5)."""
        return sum(
            p * math.exp(-mu) * mu**n / math.factorial(n)
            for mu, p in zip(self.intensities, self.probabilities, strict=True)
        )


@dataclass(frozen=True)
class DecoyCounts:
    """Sifted detections and errors of one block, per intensity class (signal, decoy).

    Parameters
    ----------
    n_z, n_x : tuple of int
        Detections in which both sides had basis Z, or X.
    m_z, m_x : tuple of int
        Errors among them. Those in Z are known after verification only.

    Raises
    ------
    ValueError
        If a count is negative, not whole, or if there are more errors than detections.
    """

    n_z: IntPair
    m_z: IntPair
    n_x: IntPair
    m_x: IntPair

    def __post_init__(self) -> None:
        for name in ("n_z", "m_z", "n_x", "m_x"):
            pair: Sequence[int] = getattr(self, name)
            try:
                whole = tuple(operator.index(value) for value in pair)
            except TypeError:
                raise ValueError(f"{name}: {pair}; counts are whole numbers") from None
            if len(whole) != 2 or min(whole) < 0:
                raise ValueError(f"{name}: {pair}; two counts (signal, decoy) of at least 0")
            object.__setattr__(self, name, whole)  # numpy integers would overflow
        for errors, detections in (("m_z", "n_z"), ("m_x", "n_x")):
            m, n = getattr(self, errors), getattr(self, detections)
            if m[0] > n[0] or m[1] > n[1]:
                raise ValueError(f"{errors}: {m}; at most {detections} = {n}")

    @property
    def qber_z(self) -> float:
        """Share of errors in Z; 0 when there are no detections."""
        return sum(self.m_z) / max(1, sum(self.n_z))

    @property
    def qber_x(self) -> float:
        """Share of errors in X; 0 when there are no detections."""
        return sum(self.m_x) / max(1, sum(self.n_x))


@dataclass(frozen=True)
class KeyLengthEstimate:
    """The secret length and everything it was made of. All counts are of the whole block.

    Attributes
    ----------
    secret_bits : int
        Length of the key, bits; 0 when there is none.
    reason : str
        Why there is no key; empty when there is one.
    length : float
        The right-hand side of (A25) before rounding down; negative when there is no key.
    counts, source : DecoyCounts, DecoySource
        The inputs.
    leak_bits, eps_sec, eps_cor : float
        The other inputs.
    tau_0, tau_1 : float
        Probabilities of a pulse with no and with one photon.
    s_z0_lower, s_z0_upper, s_z1_lower : float
        Detections in Z from pulses with no photon (bounds) and with one (lower bound).
    s_x0_upper, s_x1_lower, v_x1_upper : float
        The same in X, and the errors among its single photons (upper bound).
    gamma : float
        Allowance for sampling between X and Z (A21).
    phase_error_upper : float
        Bound on the phase error rate of the single photons in Z, at most 0.5.
    secrecy_cost_bits, correctness_cost_bits : float
        6 log2(19 / eps_sec) and log2(2 / eps_cor).
    label : str
        What every output calls this length.
    """

    secret_bits: int
    reason: str
    length: float
    counts: DecoyCounts
    source: DecoySource
    leak_bits: float
    eps_sec: float
    eps_cor: float
    tau_0: float
    tau_1: float
    s_z0_lower: float
    s_z0_upper: float
    s_z1_lower: float
    s_x0_upper: float
    s_x1_lower: float
    v_x1_upper: float
    gamma: float
    phase_error_upper: float
    secrecy_cost_bits: float
    correctness_cost_bits: float
    label: str = field(default=LABEL)

    @property
    def sifted_bits(self) -> int:
        """Detections in Z."""
        return sum(self.counts.n_z)

    @property
    def phase_error_cost_bits(self) -> float:
        """What hashing takes away for the phase errors: s_Z1 h(phi)."""
        return self.s_z1_lower * binary_entropy(self.phase_error_upper)

    def budget(self) -> tuple[tuple[str, float], ...]:
        """From sifted to secret: names and bits, gains positive and losses negative.

        Returns
        -------
        tuple of (str, float)
            The first entry is the sifted bits; the sum of all entries is `length`.
        """
        unsafe = self.sifted_bits - self.s_z0_lower - self.s_z1_lower
        return (
            ("sifted", float(self.sifted_bits)),
            ("not provably single photons", -unsafe),
            ("phase errors", -self.phase_error_cost_bits),
            ("leak", -self.leak_bits),
            ("secrecy", -self.secrecy_cost_bits),
            ("correctness", -self.correctness_cost_bits),
        )


def binary_entropy(p: float) -> float:
    """Binary entropy h(p), bits; 0 at and outside the ends."""
    if not 0 < p < 1:
        return 0.0
    return -p * math.log2(p) - (1 - p) * math.log2(1 - p)


def estimate_key_length(
    counts: DecoyCounts,
    source: DecoySource,
    leak_bits: float,
    *,
    eps_sec: float = 1e-10,
    eps_cor: float = 1e-15,
) -> KeyLengthEstimate:
    """Secret length of one block, (A25).

    ::

        l = s_Z0 + s_Z1 (1 - h(phi_Z)) - leak - 6 log2(19 / eps_sec) - log2(2 / eps_cor)

    Parameters
    ----------
    counts : DecoyCounts
        Sifted detections and errors. **Z counts are of all bits that go into the hash**: frames
        that were opened stay in, charged in full.
    source : DecoySource
        Intensities and the probabilities of sending them.
    leak_bits : float
        lambda_EC: every key bit's worth disclosed in reconciliation, in both directions, and in
        verification (its tag), and what publishing the errors per class is charged with. The term
        log2(2 / eps_cor) is **not** part of it; it stays as in the paper, on top.
    eps_sec, eps_cor : float
        Secrecy and correctness, between 0 and 1. Each failure probability inside is eps_sec / 19
        (A24). That verification meets eps_cor is for the caller to see to.

    Returns
    -------
    KeyLengthEstimate
        With 0 bits and a reason where there is no key: degenerate counts never raise.

    Raises
    ------
    ValueError
        If an epsilon or the leak is out of range.
    """
    for name, value in (("eps_sec", eps_sec), ("eps_cor", eps_cor)):
        if not 0 < value < 1:
            raise ValueError(f"{name}: {value}; allowed is above 0 and below 1")
    if not (leak_bits >= 0 and math.isfinite(leak_bits)):
        raise ValueError(f"leak_bits: {leak_bits}; allowed is 0 or more")

    mu1, mu2 = source.intensities
    tau_0, tau_1 = source.photon_number(0), source.photon_number(1)
    log_1 = math.log(19) - math.log(eps_sec)  # ln(1 / eps_1)

    def delta(n: float) -> float:
        return math.sqrt(n * log_1 / 2)  # Hoeffding, (A2) and (A4)

    def scaled(pair: IntPair, k: int, sign: int) -> float:
        factor = math.exp(source.intensities[k]) / source.probabilities[k]
        return factor * (pair[k] + sign * delta(sum(pair)))  # (A18) with Lim's factor

    def vacuum_upper(n: IntPair, m: IntPair) -> float:
        return 2 * (tau_0 * scaled(m, 1, +1) + delta(sum(n)))  # (A16)

    def single_lower(n: IntPair, vacuum: float) -> float:
        squares = (mu2 / mu1) ** 2
        inside = scaled(n, 1, -1) - squares * scaled(n, 0, +1) - (1 - squares) * vacuum / tau_0
        return max(0.0, tau_1 * mu1 / (mu2 * (mu1 - mu2)) * inside)  # (A17)

    n_z, n_x = sum(counts.n_z), sum(counts.n_x)
    s_z0_upper = vacuum_upper(counts.n_z, counts.m_z)
    s_z1 = single_lower(counts.n_z, s_z0_upper)
    vacuum = mu1 * scaled(counts.n_z, 1, -1) - mu2 * scaled(counts.n_z, 0, +1)
    s_z0 = max(0.0, tau_0 / (mu1 - mu2) * vacuum)  # (A19)
    s_x0_upper = vacuum_upper(counts.n_x, counts.m_x)
    s_x1 = single_lower(counts.n_x, s_x0_upper)
    errors = scaled(counts.m_x, 0, +1) - scaled(counts.m_x, 1, -1)
    v_x1 = tau_1 / (mu1 - mu2) * errors  # (A22)

    gamma, phi = 0.0, 0.5
    reason = ""
    slack = 1 + 1e-9  # rounding of floats only
    if n_z == 0:
        reason = "no detections in Z"
    elif n_x == 0:
        reason = "no detections in X"
    elif s_z0 > s_z0_upper * slack or s_z0 + s_z1 > n_z * slack or s_x1 > n_x * slack or v_x1 < 0:
        reason = "the counts of the two intensities contradict each other"
    elif s_z1 == 0:
        reason = "too few detections in Z to prove any single photon"
    elif s_x1 == 0:
        reason = "too few detections in X to prove any single photon"
    else:
        rate = max(v_x1, 1.0) / s_x1
        if rate < 0.5:
            gamma = _gamma(eps_sec, rate, s_z1, s_x1)
            phi = min(0.5, rate + gamma)  # (A23)
        if phi >= 0.5:
            reason = "phase error bound 0.5 or more"

    secrecy = 6 * (math.log2(19) - math.log2(eps_sec))
    correctness = 1 - math.log2(eps_cor)
    entropy = s_z0 + s_z1 * (1 - binary_entropy(phi))
    length = entropy - leak_bits - secrecy - correctness
    secret = 0 if reason else max(0, math.floor(length))
    if not reason and secret == 0:
        if leak_bits >= entropy:
            reason = "leak exceeds single-photon entropy"
        else:
            reason = "block too small: the cost of secrecy and correctness takes all of it"
    return KeyLengthEstimate(
        secret_bits=secret,
        reason=reason,
        length=length,
        counts=counts,
        source=source,
        leak_bits=leak_bits,
        eps_sec=eps_sec,
        eps_cor=eps_cor,
        tau_0=tau_0,
        tau_1=tau_1,
        s_z0_lower=s_z0,
        s_z0_upper=s_z0_upper,
        s_z1_lower=s_z1,
        s_x0_upper=s_x0_upper,
        s_x1_lower=s_x1,
        v_x1_upper=max(0.0, v_x1),
        gamma=gamma,
        phase_error_upper=phi,
        secrecy_cost_bits=secrecy,
        correctness_cost_bits=correctness,
    )


def _gamma(a: float, b: float, c: float, d: float) -> float:
    """Allowance for sampling without replacement, (A21) and Lim et al., for 0 < b < 1.

    The 21 is as printed; with every failure probability at eps_sec / 19 it could be 19.
    """
    spread = (c + d) / (c * d) * (1 - b) * b
    logarithm = (
        math.log2((c + d) / (c * d)) - math.log2((1 - b) * b) + 2 * (math.log2(21) - math.log2(a))
    )
    # Many tiny samples could turn the logarithm negative, where the bound says nothing.
    return math.sqrt(spread / math.log(2) * logarithm) if logarithm > 0 else 0.5


def expected_counts(
    slots: int,
    source: DecoySource,
    *,
    distance_km: float = 25.0,
    attenuation_db_per_km: float = 0.2,
    receiver_loss_db: float = 3.0,
    efficiency: float = 0.5,
    dark_counts_per_slot: float = 1e-6,
    misalignment: float = 0.01,
    sender_p_z: float = 0.7,
    receiver_p_z: float = 0.7,
    cross_clicks: Literal["assign", "discard"] = "assign",
    dead_slots: int = 0,
) -> DecoyCounts:
    """Mean counts of a link, for planning.

    Four threshold detectors behind a beam splitter, each clicking with
    p = 1 - (1 - d) exp(-eta mu f), f the share of the light that the state sends to it. Two clicks
    in one basis become a fair coin. Afterpulses are left out.

    Parameters
    ----------
    slots : int
        Slots of the block.
    source : DecoySource
        Intensities and their probabilities.
    distance_km, attenuation_db_per_km, receiver_loss_db : float
        Fibre (km, dB/km) and loss inside the receiver (dB).
    efficiency : float
        Of each detector, 0 to 1.
    dark_counts_per_slot : float
        Probability of a dark count, per detector and slot.
    misalignment : float
        Share of the light that goes to the wrong detector of its own basis.
    sender_p_z, receiver_p_z : float
        Probabilities of basis Z.
    cross_clicks : {"assign", "discard"}
        Clicks in both bases: basis and bit by coins, or the slot is given up.
    dead_slots : int
        Slots blanked after a slot with any click.

    Returns
    -------
    DecoyCounts
        Mean counts, rounded.

    Raises
    ------
    ValueError
        If a value is out of its range.
    """
    shares = {
        "efficiency": efficiency,
        "dark_counts_per_slot": dark_counts_per_slot,
        "misalignment": misalignment,
        "sender_p_z": sender_p_z,
        "receiver_p_z": receiver_p_z,
    }
    sizes = {
        "slots": slots,
        "distance_km": distance_km,
        "attenuation_db_per_km": attenuation_db_per_km,
        "receiver_loss_db": receiver_loss_db,
        "dead_slots": dead_slots,
    }
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise ValueError(f"{name}: {share}; allowed is 0 to 1")
    for name, size in sizes.items():
        if not (size >= 0 and math.isfinite(size)):
            raise ValueError(f"{name}: {size}; allowed is 0 or more")

    loss_db = distance_km * attenuation_db_per_km + receiver_loss_db
    transmission = efficiency * 10 ** (-loss_db / 10)

    def click(mean: float) -> float:
        return 1 - (1 - dark_counts_per_slot) * math.exp(-mean)

    n: dict[str, list[float]] = {"z": [], "x": []}
    m: dict[str, list[float]] = {"z": [], "x": []}
    busy = 0.0
    for mu, p_mu in zip(source.intensities, source.probabilities, strict=True):
        for basis, p_sent in (("z", sender_p_z), ("x", 1 - sender_p_z)):
            p_same = receiver_p_z if basis == "z" else 1 - receiver_p_z
            light = transmission * mu
            right = click(light * p_same * (1 - misalignment))
            wrong = click(light * p_same * misalignment)
            half = click(light * (1 - p_same) / 2)
            other = 1 - (1 - half) ** 2
            same = 1 - (1 - right) * (1 - wrong)
            coin = same * other / 2 if cross_clicks == "assign" else 0.0
            error = wrong * (1 - right) + right * wrong / 2
            n[basis].append(p_mu * p_sent * (same * (1 - other) + coin))
            m[basis].append(p_mu * p_sent * (error * (1 - other) + coin / 2))
            busy += p_mu * p_sent * (1 - (1 - same) * (1 - other))
    live = slots / (1 + busy * dead_slots)

    def rounded(rates: list[float]) -> IntPair:
        return round(live * rates[0]), round(live * rates[1])

    return DecoyCounts(
        n_z=rounded(n["z"]), m_z=rounded(m["z"]), n_x=rounded(n["x"]), m_x=rounded(m["x"])
    )
