# SPDX-License-Identifier: Apache-2.0
"""Settings in TOML files, checked; errors name the file, the key and the allowed values."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from keyrail.board import BACKENDS, STATIONS, is_simulated
from keyrail.contract import DELAY_MAXIMUM_PS, MODULATORS, STATES_PER_WORD, Role, registers
from keyrail.errors import KeyrailError
from keyrail.exchange import Timing
from keyrail.operation import Plan
from keyrail.pin_operation import DetectorPins, SourcePins
from keyrail.tag_path import OUTCOMES


class FileError(KeyrailError):
    """A settings file is wrong."""

    def __init__(self, path: Path, key: str, wrong: str, allowed: str = "") -> None:
        where = f"{path}: {key}: " if key else f"{path}: "
        super().__init__(where + wrong + (f"; allowed is {allowed}" if allowed else ""))


class Table:
    """One table of a settings file, whose keys are taken one by one.

    Parameters
    ----------
    path
        File, for errors.
    name
        Name of the table; empty for the file itself.
    values
        What it holds.
    """

    def __init__(self, path: Path, name: str, values: dict[str, Any]) -> None:
        self._path, self._name, self._values = path, name, dict(values)
        self._known: list[str] = []

    def _key(self, key: str) -> str:
        return f"{self._name}.{key}" if self._name else key

    def error(self, key: str, wrong: str, allowed: str = "") -> FileError:
        """The error to raise about a key."""
        return FileError(self._path, self._key(key), wrong, allowed)

    def _take(self, key: str, default: Any, allowed: str) -> Any:
        self._known.append(key)
        if key not in self._values:
            if default is ...:
                raise self.error(key, "missing", allowed)
            return default
        return self._values.pop(key)

    def number(self, key: str, low: float, high: float, default: Any = ...) -> float:
        """A number in a range."""
        allowed = f"{low:g} to {high:g}"
        value = self._take(key, default, allowed)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(key, f"{value!r} is no number", allowed)
        if not low <= value <= high:
            raise self.error(key, f"{value}", allowed)
        return float(value)

    def whole(self, key: str, low: int, high: int, default: Any = ...) -> int:
        """A whole number in a range."""
        allowed = f"{low} to {high}, whole"
        value = self._take(key, default, allowed)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.error(key, f"{value!r}", allowed)
        return value

    def has(self, key: str) -> bool:
        """Whether an optional key is there."""
        self._known.append(key)
        return key in self._values

    def text(self, key: str, allowed: str, fits: Callable[[str], bool], default: Any = ...) -> str:
        """A string that fits."""
        value = self._take(key, default, allowed)
        if not isinstance(value, str) or not fits(value):
            raise self.error(key, f"{value!r}", allowed)
        return value

    def address(self, key: str) -> str | None:
        """An address of the link or the fibre; None if it is not there."""
        return self.text(key, ADDRESS, is_address) if self.has(key) else None

    def flag(self, key: str, default: bool) -> bool:
        """true or false."""
        value = self._take(key, default, "true or false")
        if not isinstance(value, bool):
            raise self.error(key, f"{value!r}", "true or false")
        return value

    def file(self, key: str) -> Path:
        """A path; relative ones start at the settings file."""
        value = self.text(key, "a path", bool)
        return self._path.parent / value

    def table(self, key: str) -> Table:
        """A table within; empty if it is not there."""
        value = self._take(key, {}, "a table")
        if not isinstance(value, dict):
            raise self.error(key, f"{value!r} is no table", f"[{self._key(key)}]")
        return Table(self._path, self._key(key), value)

    def tables(self, key: str, most: int) -> list[Table]:
        """Tables of one name, [[such]], none if they are not there."""
        allowed = f"[[{self._key(key)}]], {most} times at most"
        values = self._take(key, [], allowed)
        if (
            not isinstance(values, list)
            or len(values) > most
            or not all(isinstance(value, dict) for value in values)
        ):
            raise self.error(key, "no such list of tables", allowed)
        names = [f"{self._key(key)}[{index}]" for index in range(len(values))]
        return [Table(self._path, *one) for one in zip(names, values, strict=True)]

    def wholes(self, key: str, low: int, high: int, most: int) -> tuple[int, ...]:
        """Whole numbers in a range, none if they are not there."""
        allowed = f"{most} numbers at most of {low} to {high}, whole"
        values = self._take(key, [], allowed)
        if (
            not isinstance(values, list)
            or len(values) > most
            or not all(type(value) is int and low <= value <= high for value in values)
        ):
            raise self.error(key, f"{values!r}", allowed)
        return tuple(values)

    def finish(self) -> None:
        """Refuse keys that nobody asked for."""
        for key in self._values:
            raise self.error(key, "unknown key", ", ".join(dict.fromkeys(self._known)))


def read(path: str | Path) -> Table:
    """Read a settings file; FileError if that fails."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            return Table(path, "", tomllib.load(file))
    except OSError as error:
        raise FileError(path, "", error.strerror or "cannot be read") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise FileError(path, "", f"no TOML: {error}") from None


def is_address(address: str) -> bool:
    """Whether it is ``tcp://HOST:PORT`` or ``ipc://PATH``."""
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError:
        return False
    if parts.scheme == "ipc":
        return bool(parts.netloc or parts.path)
    return parts.scheme == "tcp" and bool(parts.hostname) and port is not None


def is_local(address: str) -> bool:
    """Whether only this machine reaches it."""
    parts = urlsplit(address)
    return parts.scheme == "ipc" or parts.hostname in ("127.0.0.1", "::1", "localhost")


ADDRESS = "tcp://HOST:PORT or ipc://PATH"


@dataclass(frozen=True)
class StationSettings:
    """Settings of ``keyrail station``.

    Attributes
    ----------
    role, board
        Which station, and its board.
    listen, connect
        Where to wait for the other station, or where it waits; one of them is None.
    pool, keystore
        Files of one-time key and of keys.
    fibre
        Address of the fibre between simulated boards; None with a real board.
    pins
        A real board's modulators or detectors; None with a simulated one.
    randomness, seed, device
        ``os``, ``device`` or ``test``; the seed of the last, and the path of a generator device.
    states_from
        Sender: ``host``, or ``generator`` where the board makes the states (computational).
    plan, timing
        Settings of blocks, shared with the other station, and of the exchange.
    planned_loss_db
        Loss from the sender's exit to the detectors that the plan is shown for.
    """

    role: Role
    board: str
    listen: str | None
    connect: str | None
    pool: Path
    keystore: Path
    fibre: str | None
    pins: SourcePins | DetectorPins | None
    randomness: str
    seed: int
    device: Path | None
    states_from: str
    plan: Plan
    timing: Timing
    planned_loss_db: float


def station_settings(path: str | Path) -> StationSettings:
    """Read the settings of a station.

    Raises
    ------
    FileError
        Names the file, the key and what is allowed.
    """
    top = read(path)
    roles = {"sender": Role.SENDER, "receiver": Role.RECEIVER}
    role = roles[top.text("role", "sender or receiver", roles.__contains__)]
    boards = [f"{kind}:{n}" for n, r in STATIONS.items() if r is role for kind in BACKENDS]
    board = top.text(
        "board",
        f"{' or '.join(boards)}, or usb: and what names it",
        lambda name: name in boards or name.startswith("usb:"),
    )
    simulated = is_simulated(board)
    pool, keystore = top.file("pool"), top.file("keystore")

    link = top.table("link")
    listen = link.address("listen")
    connect = link.address("connect")
    if (listen is None) == (connect is None):
        raise link.error("listen", "one of listen and connect is needed", ADDRESS)
    standard = Timing()
    timing = Timing(
        link.number("heartbeat_s", 0.01, 10, standard.heartbeat_s),
        link.number("repeat_s", 0.01, 10, standard.repeat_s),
        link.number("silence_s", 0.1, 600, standard.silence_s),
        link.number("give_up_s", 0.1, 600, standard.give_up_s),
    )
    if timing.silence_s < 4 * timing.heartbeat_s:
        raise link.error("silence_s", f"{timing.silence_s:g}", "at least 4 heartbeat_s")
    link.finish()

    fibre_table = top.table("fibre")
    fibre = fibre_table.address("connect")
    fibre_table.finish()
    if fibre is not None and not simulated:
        raise top.error(
            "fibre", f"holds secrets of simulated boards; {board!r} is none", "no such table"
        )
    if fibre is None and simulated:
        raise top.error("fibre.connect", "missing for a simulated board", ADDRESS)

    pins: SourcePins | DetectorPins | None = None
    if not simulated:
        pins = _source_pins(top) if role is Role.SENDER else _detector_pins(top)

    random = top.table("randomness")
    kinds = ("os", "device", "test") if simulated else ("os", "device")
    randomness = random.text("source", " or ".join(kinds), kinds.__contains__, "os")
    seed = random.whole("seed", 0, (1 << 63) - 1, 0)
    device = random.file("device") if randomness == "device" else None
    # A real board's training slots are fed: the generator would make states of its own there.
    generates = simulated and role is Role.SENDER
    makers = ("host", "generator") if generates else ("host",)
    states_from = random.text("states", " or ".join(makers), makers.__contains__, "host")
    random.finish()

    block = top.table("block")
    usual = Plan()
    signal = block.number("signal", 1e-6, 10, usual.intensities[0])
    plan = Plan(
        block_slots=block.whole("slots", 1 << 14, 10**9, usual.block_slots),
        training_slots=block.whole("training_slots", 1 << 14, 1 << 24, usual.training_slots),
        training_every=block.whole("training_every", 1 << 14, 10**12, usual.training_every),
        chunk_slots=16 * block.whole("frame_slots_16", 64, 1 << 12, usual.chunk_slots // 16),
        intensities=(signal, block.number("decoy", 1e-6, signal - 1e-6, usual.intensities[1])),
        p_z=block.number("p_z", 0.01, 0.99, usual.p_z),
        p_signal=block.number("p_signal", 0.01, 0.99, usual.p_signal),
        eps_sec=block.number("eps_sec", 1e-30, 0.1, usual.eps_sec),
        eps_cor=block.number("eps_cor", 1e-30, 0.1, usual.eps_cor),
        authentication_share=block.number(
            "authentication_share", 0.001, 0.5, usual.authentication_share
        ),
    )
    loss = block.number("planned_loss_db", 0, 100, 8.0)
    block.finish()
    top.finish()
    return StationSettings(
        role, board, listen, connect, pool, keystore, fibre, pins, randomness, seed, device,
        states_from, plan, timing, loss,
    )  # fmt: skip


_OUTPUT = {field.name: field.bits for field in registers(Role.SENDER)["modulator_0"].fields}
SLOT_CLOCKS = 1 << next(
    f.bits for f in registers(Role.SENDER)["source"].fields if f.name == "clocks"
)
PERIODS_PS = (800, 1_000_000)
"""Periods that a receiver finds."""


def _source_pins(top: Table) -> SourcePins:
    """[source]: how a real sender's board drives its modulators."""
    source = top.table("source")
    usual = SourcePins()
    period_ps = source.whole("period_ps", *PERIODS_PS, usual.period_ps)

    def slots(key: str, low: float, high: float, default: float) -> int:
        seconds = source.number(key, low, high, default)
        return round(seconds * 1e12 / period_ps / STATES_PER_WORD) * STATES_PER_WORD

    outputs = []
    for output in source.tables("output", MODULATORS):
        fields = {name: output.whole(name, 0, (1 << bits) - 1, 0) for name, bits in _OUTPUT.items()}
        output.finish()
        outputs.append(fields)
    pins = SourcePins(
        clocks=source.whole("clocks", 1, SLOT_CLOCKS, usual.clocks),
        period_ps=period_ps,
        outputs=tuple(outputs),
        frame_words_log2=source.whole("frame_words_log2", 0, 44, usual.frame_words_log2),
        gap_slots=slots("gap_s", 0.01, 60, 5.0),
        ahead_slots=slots("ahead_s", 0.01, 1, 0.2),
    )
    source.finish()
    return pins


def _detector_pins(top: Table) -> DetectorPins:
    """[detectors]: how a real receiver's board takes its detectors."""
    table = top.table("detectors")
    pins = DetectorPins(
        table.whole("period_ps", *PERIODS_PS, DetectorPins().period_ps),
        table.wholes("delays_ps", -DELAY_MAXIMUM_PS, DELAY_MAXIMUM_PS, len(OUTCOMES)),
    )
    table.finish()
    return pins


@dataclass(frozen=True)
class FibreSettings:
    """Settings of ``keyrail fibre``.

    Attributes
    ----------
    listen
        Where both stations' simulated boards find it.
    seed
        Seed of nature; None takes one from the operating system.
    link
        Settings of `keyrail_sim.photonics.LinkSettings` by name.
    """

    listen: str
    seed: int | None
    link: dict[str, Any]


def fibre_settings(path: str | Path) -> FibreSettings:
    """Read the settings of a fibre; FileError names the file, the key and what is allowed."""
    top = read(path)
    listen = top.text("listen", ADDRESS, is_address)
    remote = top.flag("remote", False)
    if not is_local(listen) and not remote:
        raise top.error(
            "listen",
            f"{listen!r} lets other machines at the states, which are secret; "
            "remote = true says that you want it",
            "ipc://PATH or tcp://127.0.0.1:PORT",
        )
    seed = top.whole("seed", 0, (1 << 63) - 1) if top.has("seed") else None
    table = top.table("link")
    link: dict[str, Any] = {}
    usual = {
        "distance_km": (0, 1000), "attenuation_db_per_km": (0, 10), "receiver_loss_db": (0, 100),
        "misalignment": (0, 0.5), "efficiency": (0, 1), "dark_counts_per_slot": (0, 0.5),
        "jitter_ps": (0, 100_000), "afterpulse_probability": (0, 0.9), "receiver_p_z": (0, 1),
        "eve_share": (0, 1), "clock_offset_ppm": (-1000, 1000),
        "clock_drift_ppm_per_s": (-100, 100),
    }  # fmt: skip
    for key, (low, high) in usual.items():
        if table.has(key):
            link[key] = table.number(key, low, high)
    signal = table.number("signal", 1e-6, 10, 0.6)
    link["intensities"] = (signal, table.number("decoy", 1e-6, 10, 0.2))
    table.finish()
    top.finish()
    return FibreSettings(listen, seed, link)
