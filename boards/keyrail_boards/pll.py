# SPDX-License-Identifier: CERN-OHL-W-2.0
"""Settings of the ECP5's PLL (EHXPLLL), computed within the limits of the data sheet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from keyrail.errors import KeyrailError

__all__ = [
    "DIVIDERS",
    "INPUT_MHZ",
    "OUTPUT_MHZ",
    "PHASE_DETECTOR_MHZ",
    "VCO_MHZ",
    "NoPll",
    "PllOutput",
    "PllSettings",
    "phase_settings",
    "pll",
    "settings",
]

# ECP5 and ECP5-5G Family Data Sheet (Lattice FPGA-DS-02012), "sysCLOCK PLL Timing".
INPUT_MHZ = (8, 400)
OUTPUT_MHZ = (Fraction(25, 8), 400)
VCO_MHZ = (400, 800)
PHASE_DETECTOR_MHZ = (10, 400)
DIVIDERS = (1, 128)
"""Of the input, the feedback and each output (Lattice FPGA-TN-02200)."""
OUTPUTS = ("CLKOP", "CLKOS", "CLKOS2", "CLKOS3")


class NoPll(KeyrailError):
    """No settings of the PLL give these frequencies."""


@dataclass(frozen=True)
class PllOutput:
    """One output of a PLL.

    Parameters
    ----------
    index
        Which of the frequencies asked for it is; none where it serves the feedback alone.
    wanted_mhz
        That frequency.
    divider
        Of the VCO's frequency.
    mhz
        Frequency that comes of it.
    """

    index: int | None
    wanted_mhz: Fraction | None
    divider: int
    mhz: Fraction

    @property
    def error_ppm(self) -> Fraction:
        """Deviation from what was asked for, parts in a million."""
        if self.wanted_mhz is None:
            return Fraction(0)
        return (self.mhz / self.wanted_mhz - 1) * 1_000_000


@dataclass(frozen=True)
class PllSettings:
    """Dividers of a PLL that takes its feedback from the first output.

    VCO = input / `input_divider` x `feedback_divider` x divider of output 0; an output is the VCO
    divided by its divider.

    Parameters
    ----------
    input_mhz
        Frequency of the reference.
    input_divider, feedback_divider
        As above.
    outputs
        CLKOP, CLKOS, ..., the feedback's first.
    """

    input_mhz: Fraction
    input_divider: int
    feedback_divider: int
    outputs: tuple[PllOutput, ...]

    @property
    def phase_detector_mhz(self) -> Fraction:
        """Frequency at which the phases are compared."""
        return self.input_mhz / self.input_divider

    @property
    def vco_mhz(self) -> Fraction:
        """Frequency of the oscillator."""
        return self.phase_detector_mhz * self.feedback_divider * self.outputs[0].divider

    @property
    def error_ppm(self) -> Fraction:
        """Largest deviation of an output, without sign."""
        return max(abs(output.error_ppm) for output in self.outputs)

    def by_index(self) -> dict[int, PllOutput]:
        """Outputs that were asked for, by their place there."""
        return {o.index: o for o in self.outputs if o.index is not None}

    def check(self) -> None:
        """Raise `NoPll` unless every limit of the data sheet is kept."""
        limits: list[tuple[str, Fraction, tuple[Fraction | int, Fraction | int]]] = [
            ("input", self.input_mhz, INPUT_MHZ),
            ("phase detector", self.phase_detector_mhz, PHASE_DETECTOR_MHZ),
            ("oscillator", self.vco_mhz, VCO_MHZ),
        ]
        limits += [
            (name, output.mhz, OUTPUT_MHZ)
            for name, output in zip(OUTPUTS, self.outputs, strict=False)
        ]
        for what, value, (low, high) in limits:
            if not low <= value <= high:
                raise NoPll(
                    f"PLL: {what} at {float(value):g} MHz, allowed are {float(low):g} to {high} MHz"
                )
        dividers = (self.input_divider, self.feedback_divider, *(o.divider for o in self.outputs))
        if any(not DIVIDERS[0] <= divider <= DIVIDERS[1] for divider in dividers):
            raise NoPll(f"PLL: dividers {dividers}, allowed are 1 to 128")
        if not 1 <= len(self.outputs) <= len(OUTPUTS):
            raise NoPll(f"PLL: {len(self.outputs)} outputs, allowed are 1 to {len(OUTPUTS)}")


def _candidates(reference: Fraction, wanted: Sequence[Fraction]) -> Iterator[PllSettings]:
    """All settings within the limits that divide the VCO nearest to what is wanted."""
    for input_divider in range(DIVIDERS[0], DIVIDERS[1] + 1):
        compared = reference / input_divider
        if not PHASE_DETECTOR_MHZ[0] <= compared <= PHASE_DETECTOR_MHZ[1]:
            continue
        for multiple in range(-(-VCO_MHZ[0] // compared), VCO_MHZ[1] // compared + 1):
            vco = compared * multiple
            dividers = [max(1, round(vco / f)) for f in wanted]
            outputs = [
                PllOutput(index, f, divider, vco / divider)
                for index, (f, divider) in enumerate(zip(wanted, dividers, strict=True))
            ]
            if any(not OUTPUT_MHZ[0] <= output.mhz <= OUTPUT_MHZ[1] for output in outputs):
                continue
            if any(output.divider > DIVIDERS[1] for output in outputs):
                continue
            # The feedback comes from an output whose divider divides the multiple.
            for index, output in enumerate(outputs):
                feedback, rest = divmod(multiple, output.divider)
                if rest == 0 and feedback <= DIVIDERS[1]:
                    others = outputs[:index] + outputs[index + 1 :]
                    yield PllSettings(reference, input_divider, feedback, (output, *others))
                    break
            else:
                if len(wanted) == len(OUTPUTS):
                    continue
                for divider in range(DIVIDERS[0], DIVIDERS[1] + 1):
                    feedback, rest = divmod(multiple, divider)
                    mhz = vco / divider
                    if rest or feedback > DIVIDERS[1]:
                        continue
                    if OUTPUT_MHZ[0] <= mhz <= OUTPUT_MHZ[1]:
                        own = PllOutput(None, None, divider, mhz)
                        yield PllSettings(reference, input_divider, feedback, (own, *outputs))
                        break


def settings(
    input_mhz: Fraction | int, wanted_mhz: Sequence[Fraction | int], tolerance_ppm: int = 0
) -> PllSettings:
    """Settings with the least error; of those, the highest frequency of comparison, then of VCO.

    A high frequency of comparison makes for less jitter.

    Parameters
    ----------
    input_mhz
        Reference, MHz.
    wanted_mhz
        Outputs, MHz, one to four.
    tolerance_ppm
        Largest error allowed.

    Raises
    ------
    NoPll
        If the limits of the data sheet leave none.
    """
    reference, wanted = Fraction(input_mhz), [Fraction(f) for f in wanted_mhz]
    asked = ", ".join(f"{float(f):g}" for f in wanted)
    if not INPUT_MHZ[0] <= reference <= INPUT_MHZ[1] or not 1 <= len(wanted) <= len(OUTPUTS):
        raise NoPll(f"PLL: {asked} MHz of {float(reference):g} MHz: input 8 to 400, 1 to 4 outputs")
    best = min(
        _candidates(reference, wanted),
        key=lambda s: (s.error_ppm, -s.phase_detector_mhz, len(s.outputs), -s.vco_mhz),
        default=None,
    )
    if best is None:
        raise NoPll(f"PLL: no settings give {asked} MHz of {float(reference):g} MHz")
    if best.error_ppm > tolerance_ppm:
        raise NoPll(
            f"PLL: {asked} MHz of {float(reference):g} MHz only to {float(best.error_ppm):.1f} "
            f"parts in a million, allowed are {tolerance_ppm}"
        )
    best.check()
    return best


def phase_settings(divider: int, late: Fraction) -> tuple[int, int]:
    """``CPHASE`` and ``FPHASE`` of an output: whole periods of the VCO, and eighths.

    Parameters
    ----------
    divider
        Of the VCO's frequency.
    late
        Share of the output's period by which it is late, 0 and more, below 1.

    Raises
    ------
    NoPll
        If it is no whole number of eighths.

    Notes
    -----
    ``CPHASE`` is the divider less one where outputs are to rise together (FPGA-TN-02200, "Dynamic
    Phase Adjustment").
    """
    eighths = late * divider * 8
    if eighths.denominator != 1 or not 0 <= late < 1:
        raise NoPll(f"PLL: a phase of {late} of {divider} periods of the oscillator")
    whole, rest = divmod(int(eighths), 8)
    return divider - 1 + whole, rest


def pll(
    chosen: PllSettings,
    reference: Any,
    clocks: Sequence[Any],
    locked: Any,
    late: Sequence[Fraction] = (),
) -> Any:
    """The PLL as an Amaranth instance.

    Parameters
    ----------
    chosen
        Its settings.
    reference
        Input clock, a signal.
    clocks
        A signal for each output of `chosen`, in that order.
    locked
        Signal: 1 once the outputs are what they should be.
    late
        Share of its period by which each output is late; without, all rise together.

    Notes
    -----
    The loop filter is the one that the open tools' own calculator gives.
    """
    from amaranth.hdl import Const, Instance

    parameters: dict[str, Any] = {
        "p_CLKI_DIV": chosen.input_divider,
        "p_CLKFB_DIV": chosen.feedback_divider,
        "p_FEEDBK_PATH": "CLKOP",
        "p_PLLRST_ENA": "DISABLED",
        "p_INTFB_WAKE": "DISABLED",
        "p_STDBY_ENABLE": "DISABLED",
        "p_DPHASE_SOURCE": "DISABLED",
        "a_ICP_CURRENT": "12",
        "a_LPF_RESISTOR": "8",
        "a_MFG_ENABLE_FILTEROPAMP": "1",
        "a_MFG_GMCREF_SEL": "2",
        "a_FREQUENCY_PIN_CLKI": f"{float(chosen.input_mhz):g}",
    }
    ports: dict[str, Any] = {}
    shares = late or [Fraction(0)] * len(chosen.outputs)
    for letter, name, output, clock, share in zip(
        "ABCD", OUTPUTS, chosen.outputs, clocks, shares, strict=False
    ):
        whole, eighths = phase_settings(output.divider, share)
        parameters |= {
            f"p_OUTDIVIDER_MUX{letter}": f"DIV{letter}",
            f"p_{name}_ENABLE": "ENABLED",
            f"p_{name}_DIV": output.divider,
            f"p_{name}_CPHASE": whole,
            f"p_{name}_FPHASE": eighths,
            f"a_FREQUENCY_PIN_{name}": f"{float(output.mhz):g}",
        }
        ports[f"o_{name}"] = clock
    zero = dict.fromkeys(
        ("RST", "STDBY", "PHASESEL0", "PHASESEL1", "PHASEDIR", "PHASESTEP", "PHASELOADREG"), 0
    )
    zero |= {"PLLWAKESYNC": 0, "ENCLKOP": 0}
    return Instance(
        "EHXPLLL",
        **parameters,
        **{f"i_{port}": Const(value, 1) for port, value in zero.items()},
        i_CLKI=reference,
        i_CLKFB=clocks[0],
        o_LOCK=locked,
        **ports,
    )
