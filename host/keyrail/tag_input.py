# SPDX-License-Identifier: Apache-2.0
"""Settings of the time tagger's inputs, raw tags and losses of a receiver."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from keyrail.board import Board, BoardError
from keyrail.contract import DELAY_MAXIMUM_PS, RATE_WINDOW_LOG2_PS, Mode, Role, registers
from keyrail.errors import SettingError
from keyrail.layouts import Structured
from keyrail.ptu import PtuWriter

_FIELDS = {field.name: field.bits for field in registers(Role.RECEIVER)["condition_0"].fields}
RATE_WINDOW_S = (1 << RATE_WINDOW_LOG2_PS) * 1e-12
"""Time over which the events of an input are counted, s."""


@dataclass(frozen=True)
class Input:
    """Conditioning of one input, before the merge.

    Attributes
    ----------
    enable
        False: its events are dropped.
    delay_ps
        Added to its times, ps: -10^6 to 10^6. A larger one can be added to the times afterwards.
    dead_time_ps
        Least time between events, ps; in instrument mode only.
    paralysable
        True: an event in the dead time begins it anew.
    divider
        One event in so many passes; in instrument mode only.
    rate_limit
        Events a second above which the alarm is raised; 0: no alarm.
    """

    enable: bool = True
    delay_ps: int = 0
    dead_time_ps: int = 0
    paralysable: bool = False
    divider: int = 1
    rate_limit: float = 0.0

    def fields(self) -> dict[str, int]:
        """Fields of the input's register.

        Raises
        ------
        SettingError
            If a value is out of its range.
        """
        if not -DELAY_MAXIMUM_PS <= self.delay_ps <= DELAY_MAXIMUM_PS:
            allowed = f"-{DELAY_MAXIMUM_PS} to {DELAY_MAXIMUM_PS} ps"
            raise SettingError("delay_ps", self.delay_ps, allowed)
        for name, value, least in (
            ("dead_time", self.dead_time_ps, 0),
            ("divider", self.divider, 1),
        ):
            most = (1 << _FIELDS[name]) - 1
            if not least <= value <= most:
                raise SettingError(name, value, f"{least} to {most}")
        return {
            "enable": int(self.enable),
            "delay": self.delay_ps & ((1 << _FIELDS["delay"]) - 1),
            "paralysable": int(self.paralysable),
            "dead_time": self.dead_time_ps,
            "divider": self.divider,
        }

    def limit(self) -> int:
        """Value of the input's limit register: events in a window."""
        events = self.rate_limit * RATE_WINDOW_S
        if not 0 <= events < 1 << 32:
            raise SettingError("rate_limit", self.rate_limit, f"0 to {2**32 / RATE_WINDOW_S:.3g}/s")
        return max(1, round(events)) if self.rate_limit > 0 else 0


def _has_inputs(board: Board) -> int:
    inputs = board.read("inputs")
    if inputs == 0:
        raise BoardError(
            f"{board.name}: this board has no inputs of its own, tags come to it stamped and in "
            "order; delay and filter them before they are sent"
        )
    return inputs


def set_inputs(board: Board, settings: Mapping[int, Input]) -> None:
    """Set the inputs of a receiver and restart its tag path; inputs not given are off.

    Parameters
    ----------
    board
        A receiver's board, idle.
    settings
        By input.

    Raises
    ------
    BoardError
        If the board has no such input, or a filter is asked for in key mode.
    SettingError
        If a value is out of its range.
    """
    inputs = _has_inputs(board)
    absent = [number for number in settings if not 0 <= number < inputs]
    if absent:
        raise BoardError(f"{board.name}: input {absent[0]}: it has inputs 0 to {inputs - 1}")
    filters = [n for n, one in settings.items() if one.dead_time_ps or one.divider > 1]
    if filters and board.read("mode") == Mode.KEY:
        raise BoardError(
            f"{board.name}: input {filters[0]}: dead time and divider are off in key mode"
        )
    chosen = {number: settings.get(number, Input(enable=False)) for number in range(inputs)}
    written = {number: (one.fields(), one.limit()) for number, one in chosen.items()}
    for number, (fields, limit) in written.items():
        board.write(f"condition_{number}", **fields)
        board.write(f"rate_limit_{number}", limit)
    board.write("tag_path_reset", 1)
    board.run()


def read_rates(board: Board) -> tuple[list[float], list[int]]:
    """Events a second of each input, and the inputs whose alarm is raised.

    They are those of the last 69 ms; in key mode, where a channel's clicks are key bits, of as
    many times 69 ms as it takes for 10^4 events of the input. NaN where there is no rate yet.

    Raises
    ------
    BoardError
        If the board has no inputs.
    """
    inputs = _has_inputs(board)
    rates = []
    for number in range(inputs):
        windows = board.read(f"rate_windows_{number}")
        events = board.read(f"rate_{number}")
        rates.append(events / (windows * RATE_WINDOW_S) if windows else math.nan)
    alarm = board.read("rate_alarm")
    return rates, [number for number in range(inputs) if alarm >> number & 1]


def set_raw(board: Board, raw: bool) -> None:
    """Let a receiver's tags out as T2 records too, or no more, and restart its tag path.

    Parameters
    ----------
    board
        A receiver's board, idle.
    raw
        True: tags go out on ``raw``, losses on ``losses``; both must be read.

    Raises
    ------
    BoardError
        If it is asked for in key mode, where a tag's channel is the key bit.
    """
    if raw and board.read("mode") == Mode.KEY:
        raise BoardError(f"{board.name}: raw tags stay inside in key mode")
    board.write("tag_input", **(board.read_fields("tag_input") | {"raw": int(raw)}))
    board.write("tag_path_reset", 1)
    board.run()


def take_raw(board: Board, file: PtuWriter) -> Structured:
    """Move what has come on ``raw`` into a ``.ptu`` file; returns the ``loss`` records that came.

    To be called again and again while a measurement lasts; `keyrail.ptu.write_losses` writes the
    losses of all calls.
    """
    file.write(board.receive_bytes(board.streams["raw"]))
    return board.receive("losses")
