# SPDX-License-Identifier: Apache-2.0
"""Calibrates the time-to-digital converter of a receiver, on command or in the background."""

from __future__ import annotations

import time
from dataclasses import dataclass

from keyrail.board import Board, BoardError
from keyrail.contract import TdcResult
from keyrail.errors import SettingError

__all__ = ["Calibration", "CalibrationError", "calibrate", "run_in_background"]


class CalibrationError(BoardError):
    """A calibration does not end, or ends without a table."""


@dataclass(frozen=True)
class Calibration:
    """How one calibration ended.

    Attributes
    ----------
    input, falling
        Which table it was for.
    result
        How it ended. ``DONE``: the new table is in use. Otherwise the one before stays: ``UNEVEN``,
        the photons did not fall evenly (as light locked to the board's clock does not);
        ``REFUSED``, no such table, or photons before the first calibration.
    moved_ps
        Largest change of a delay against the table before.
    uneven_ps
        Sum of the changes of the bins' widths.
    """

    input: int
    falling: bool
    result: TdcResult
    moved_ps: int
    uneven_ps: int

    def check(self) -> None:
        """Raise `CalibrationError` unless the new table is in use."""
        if self.result != TdcResult.DONE:
            ended = self.result.name.lower()
            raise CalibrationError(f"input {self.input}: the calibration ended with {ended}")


def _converter(board: Board) -> int:
    """Number of inputs.

    Raises
    ------
    BoardError
        If the board has no time-to-digital converter.
    """
    inputs = board.input_count()
    if not inputs:
        raise BoardError(f"{board.name}: no time-to-digital converter: tags come stamped")
    return inputs


def calibrate(
    board: Board,
    inputs: list[int] | None = None,
    photons: bool = False,
    timeout_s: float = 30.0,
) -> list[Calibration]:
    """Calibrate inputs now, one after the other: each kind of edge that an input stamps.

    Calibration in the background stops for that long. From the oscillator, the input that is under
    way stamps nothing of its pin meanwhile (counter ``tdc_not_pin``).

    Parameters
    ----------
    board
        A receiver's board.
    inputs
        Which; all by default.
    photons
        True: refine the tables from what the inputs measure; refused where the photons do not fall
        evenly. False: from the free-running oscillator on the chip.
    timeout_s
        Longest time for all of them, s.

    Returns
    -------
    list of Calibration
        In the order in which they were made.

    Raises
    ------
    BoardError
        If the board has no converter.
    CalibrationError
        If a calibration does not end; it is given up.
    SettingError
        If there is no such input.
    """
    count = _converter(board)
    chosen = range(count) if inputs is None else inputs
    absent = [number for number in chosen if not 0 <= number < count]
    if absent:
        raise SettingError("inputs", absent[0], f"0 to {count - 1}")
    until = time.monotonic() + timeout_s

    def rests(what: str) -> None:
        while board.read_fields("tdc_status")["busy"]:
            if time.monotonic() > until:
                board.write("tdc_command", abort=1)
                raise CalibrationError(f"{board.name}: {what}: the calibration does not end")
            board.run()  # time passes on a simulated board

    control = board.read_fields("tdc_control")
    board.write("tdc_control", **control | {"oscillator": 0, "photons": 0})
    found = []
    try:
        rests("in the background")
        for number in chosen:
            for falling in (0, 1):
                if not control["falling" if falling else "rising"] >> number & 1:
                    continue
                board.write("tdc_command", input=number, falling=falling, photons=int(photons))
                rests(f"input {number}")
                result = TdcResult(board.read_fields("tdc_status")["result"])
                change = board.read_fields("tdc_change")
                found.append(
                    Calibration(
                        number,
                        bool(falling),
                        result,
                        change["moved"],
                        change["uneven"],
                    )
                )
    finally:
        board.write("tdc_control", **control)
    return found


def run_in_background(board: Board, oscillator: bool = True, photons: bool = False) -> None:
    """Calibrate all inputs in turn from here on, again and again, or no more.

    Parameters
    ----------
    board
        A receiver's board.
    oscillator
        True: from the oscillator between measurements, that is while no raw tags are asked for and
        no block of key is open. **The inputs measure nothing meanwhile**: switch it off before
        gated tags or histograms alone are measured.
    photons
        True: from the photons whenever the oscillator does not, each set of them after the test
        that they fall evenly.

    Raises
    ------
    BoardError
        If the board has no converter.
    """
    _converter(board)
    control = board.read_fields("tdc_control")
    chosen = {"oscillator": int(oscillator), "photons": int(photons)}
    board.write("tdc_control", **control | chosen)
