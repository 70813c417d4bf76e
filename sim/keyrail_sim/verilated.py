# SPDX-License-Identifier: Apache-2.0
"""Simulated boards that run the real gateware: a station Verilated into a shared library."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.metadata
import importlib.util
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import numpy.typing as npt

from keyrail.board import Board, BoardError
from keyrail.cache import cache_directory
from keyrail.contract import CONTRACT_HASH, Direction, Role, Stream, streams
from keyrail.errors import MissingExtra
from keyrail_sim import verilate

FLAGS = ("-O3", "--x-assign", "fast", "--x-initial", "0", "--noassert", "-Wno-fatal")
"""Verilator's flags; part of the cache's key."""
COMPILER_FLAGS = "-fPIC -std=c++17"
CLOCK_PS = 10_000
"""Length of a clock of the tag path, ps."""
FOREVER = (1 << 64) - 1
RUN_LIMIT = 2_000_000_000
"""Clocks after which a board that does not come to rest is given up."""


@dataclass(frozen=True)
class Design:
    """A station to simulate.

    Parameters
    ----------
    role
        Role of the station.
    name
        Of its library; that of the role by default.
    sizes
        Fields of the gateware's `Configuration` that are not the default.
    levels
        Ports that the bench drives clock by clock, and their bits (`VerilatedBoard.drive`).
    oscillator_ps
        Half a period of the free-running oscillator on the chip. The levels are samples of the
        station's inputs, bit 0 the youngest of a clock; an input that the station switches to the
        oscillator shows that. 0: there is none.
    """

    role: Role
    name: str = ""
    sizes: tuple[tuple[str, Any], ...] = ()
    levels: tuple[tuple[str, int], ...] = ()
    oscillator_ps: int = 0

    @property
    def top(self) -> str:
        """Name of its library."""
        return self.name or self.role.name.lower()


DESIGNS = tuple(Design(role) for role in Role)
"""Stations as `keyrail.open` simulates them."""


def _template() -> str:
    return (Path(__file__).parent / "station.cpp.j2").read_text()


@lru_cache
def _key(design: Design) -> str:
    """Hash of all that the library is made from."""
    spec = importlib.util.find_spec("keyrail_gateware")
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtra("keyrail_gateware", "sim")
    digest = hashlib.sha256()
    for path in sorted(Path(spec.submodule_search_locations[0]).glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    versions = [importlib.metadata.version(p) for p in ("amaranth", "verilator")]
    described = (design, CONTRACT_HASH, versions, FLAGS, COMPILER_FLAGS, _template())
    digest.update(repr(verilate.OPTIMISATION).encode())
    digest.update(repr(described).encode())
    return digest.hexdigest()[:24]


def library_path(design: Design) -> Path:
    """Where the station's shared library is, or will be once it is built."""
    return cache_directory() / f"{design.top}-{_key(design)}.so"


def is_built(role: Role) -> bool:
    """True if the shared library of a role's station is in the cache."""
    return library_path(Design(role)).exists()


def build(design: Design) -> Path:
    """Build the station's shared library, or find it in the cache.

    Parameters
    ----------
    design
        Station to build.

    Returns
    -------
    Path
        The shared library.

    Raises
    ------
    MissingExtra, MissingTool
        If a package or a system tool is missing.
    KeyrailError
        If the build fails; the log's place is named.
    """
    path = library_path(design)
    if path.exists():
        return path
    try:
        from keyrail_gateware.register_bank import ACCESS_CLOCKS
        from keyrail_gateware.station import Configuration, Receiver, Sender
    except ModuleNotFoundError as error:
        raise MissingExtra(error.name or "amaranth", "sim") from None

    described = streams(design.role).values()
    station = Sender if design.role is Role.SENDER else Receiver
    component = station(Configuration(**dict(design.sizes)))
    loop = jinja2.Template(_template()).render(
        top=design.top,
        access_clocks=ACCESS_CLOCKS,
        inputs=[_port(s) for s in described if s.direction is Direction.TO_BOARD],
        outputs=[_port(s) for s in described if s.direction is Direction.TO_HOST],
        levels=[
            {"port": port, "bits": bits, "bytes": (bits + 7) // 8} for port, bits in design.levels
        ],
        oscillator_ps=design.oscillator_ps,
        clock_ps=CLOCK_PS,
    )
    verilate.build(component, design.top, loop, path, FLAGS, COMPILER_FLAGS)
    return path


def build_all() -> None:
    """Build both stations at the same time, those that the cache lacks."""
    with ThreadPoolExecutor(len(DESIGNS)) as pool:
        list(pool.map(build, DESIGNS))


def _port(stream: Stream) -> dict[str, Any]:
    # The tag path never waits for a coin: a pause would be a dry source, and count as one.
    return {"port": stream.name, "bytes": stream.record.bytes, "pauses": stream.name != "coins"}


@lru_cache
def _load(design: Design) -> ctypes.CDLL:
    library = ctypes.CDLL(str(build(design)))
    handle, word, long = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint64
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "create": (handle, []),
        "destroy": (None, [handle]),
        "reset": (None, [handle]),
        "pauses": (None, [handle, long, word, word]),
        "real_time": (None, [handle, word, long]),
        "write": (None, [handle, word, word]),
        "read": (word, [handle, word]),
        "send": (None, [handle, word, ctypes.c_void_p, long]),
        "pending": (long, [handle, word]),
        "drop": (long, [handle, word]),
        "available": (long, [handle, word]),
        "receive": (None, [handle, word, ctypes.c_void_p]),
        "drive": (None, [handle, ctypes.c_void_p, long]),
        "run": (ctypes.c_int, [handle, long, long]),
        "cycles": (long, [handle]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, f"keyrail_{name}")
        function.restype, function.argtypes = result, arguments
    return library


class VerilatedBoard(Board):
    """A station's real gateware under Verilator.

    Streams join at the endpoint side of the USB core. Input waits where the gateware makes it
    wait; time passes only while the board is run or its registers are accessed.

    Parameters
    ----------
    design
        Station.
    name
        Where it was opened.
    """

    randomness_may_be_test = True

    def __init__(self, design: Design, name: str) -> None:
        super().__init__(design.role, name)
        self.design = design
        self._library = _load(design)
        self._open: int | None = self._library.keyrail_create()
        inputs = [s.name for s in self.streams.values() if s.direction is Direction.TO_BOARD]
        outputs = [s.name for s in self.streams.values() if s.direction is Direction.TO_HOST]
        self._index = {name: i for names in (inputs, outputs) for i, name in enumerate(names)}
        self.run()

    @property
    def cycles(self) -> int:
        """Clocks since the board was opened."""
        return int(self._library.keyrail_cycles(self._handle))

    def pauses(self, seed: int, offer: float = 1.0, take: float = 1.0) -> None:
        """Make every stream but the coins pause at random.

        Parameters
        ----------
        seed
            Seed of the pauses.
        offer, take
            Share of clocks in which a waiting record is newly offered to the board, and in which
            an output is taken, above 0 up to 1.
        """
        for key, share in (("offer", offer), ("take", take)):
            if not 0 < share <= 1:
                raise BoardError(f"{self.name}: {key} = {share}: allowed is above 0 up to 1")
        full = 0xFFFF_FFFF
        self._library.keyrail_pauses(self._handle, seed, int(offer * full), int(take * full))

    def real_time(self, clock_ps: int = CLOCK_PS) -> None:
        """Offer each tag at its own time, whether the board is ready for it or not.

        What the tag FIFO has no room for is lost, marked and counted. The first tag is offered at
        once, and sets the time; several tags within one clock come in the clocks that follow, as
        from the merge.

        Parameters
        ----------
        clock_ps
            Length of a clock, ps; 0 ends real time.
        """
        if not 0 <= clock_ps < 1 << 40:
            raise BoardError(f"{self.name}: clock of {clock_ps} ps: allowed is 0 to 2^40")
        fields = self.read_fields("tag_input") | {"real_time": int(clock_ps > 0)}
        self.write("tag_input", **fields)
        self._library.keyrail_real_time(self._handle, self._index["tags"], clock_ps)

    def drive(self, levels: npt.NDArray[np.uint8]) -> None:
        """Queue levels of the design's ports, one row a clock; the last one stays.

        Parameters
        ----------
        levels
            Shape (clocks, bytes): the ports' bytes one after the other, little-endian each, a
            whole number of bytes a port. They pass while the board runs, and stand still while
            registers are accessed.
        """
        size = sum((bits + 7) // 8 for _, bits in self.design.levels)
        if levels.ndim != 2 or levels.shape[1] != size or not size:
            raise BoardError(f"{self.name}: levels of {levels.shape}: allowed is (clocks, {size})")
        rows = np.ascontiguousarray(levels, np.uint8)
        self._library.keyrail_drive(self._handle, rows.ctypes.data, rows.size)

    def step(self, clocks: int) -> None:
        """Let so many clocks pass, whatever moves."""
        self._library.keyrail_run(self._handle, clocks, FOREVER)

    def reset(self) -> None:
        """Reset the board in whatever it is doing; queues are emptied."""
        self._library.keyrail_reset(self._handle)
        self.run()

    def read_word(self, offset: int) -> int:
        return int(self._library.keyrail_read(self._handle, offset))

    def write_word(self, offset: int, value: int) -> None:
        self._library.keyrail_write(self._handle, offset, value)

    def send_bytes(self, stream: Stream, data: npt.NDArray[np.uint8]) -> None:
        data = np.ascontiguousarray(data)
        self._library.keyrail_send(
            self._handle, self._index[stream.name], data.ctypes.data, data.size
        )

    def receive_bytes(self, stream: Stream) -> npt.NDArray[np.uint8]:
        index = self._index[stream.name]
        data = np.empty(self._library.keyrail_available(self._handle, index), np.uint8)
        self._library.keyrail_receive(self._handle, index, data.ctypes.data)
        return data

    def pending(self, name: str) -> int:
        stream = self.stream(name, Direction.TO_BOARD)
        pending = self._library.keyrail_pending(self._handle, self._index[name])
        return int(pending) // stream.record.bytes

    def drop(self, name: str) -> int:
        """Empty the queue of a stream to the board; returns the records thrown away."""
        stream = self.stream(name, Direction.TO_BOARD)
        dropped = self._library.keyrail_drop(self._handle, self._index[name])
        return int(dropped) // stream.record.bytes

    def run(self) -> None:
        if not self._library.keyrail_run(self._handle, RUN_LIMIT, 256):
            raise BoardError(f"{self.name}: still busy after {RUN_LIMIT} clocks")

    def run_for(self, clocks: int) -> None:
        """Let a number of clocks pass, whatever the board does: for what goes by time."""
        self._library.keyrail_run(self._handle, clocks, clocks + 1)

    def close(self) -> None:
        if self._open is not None:
            self._library.keyrail_destroy(self._open)
            self._open = None

    @property
    def _handle(self) -> int:
        if self._open is None:
            raise BoardError(f"{self.name}: the board is closed")
        return self._open


def open_station(role: Role, name: str) -> VerilatedBoard:
    """Open the Verilated station of `role`, building it first where the cache has none."""
    return VerilatedBoard(Design(role), name)
