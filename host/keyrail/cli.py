# SPDX-License-Identifier: Apache-2.0
"""The command line ``keyrail``."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from keyrail.errors import KeyrailError

EXIT_KEYS_DIFFER = 1
EXIT_BOARD_FAILED = 1
EXIT_USAGE = 2
EXIT_NO_KEY = 3
EXIT_STOPPED = 4
EXIT_TIMING = 5


def _progress(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
    )


class _Stages:
    """One progress bar a stage."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.name = ""
        self.task: Any = None

    def __call__(self, stage: str, share: float, note: str = "") -> None:
        if stage != self.name:
            self.finish()
            self.name = stage
            self.task = self.progress.add_task(stage, total=1.0, note=note)
        self.progress.update(self.task, completed=min(share, 1.0), note=note)

    def finish(self) -> None:
        """Fill the bar of the last stage."""
        if self.task is not None:
            self.progress.update(self.task, completed=1.0)


def _writable(path: str | None, option: str) -> None:
    if path is not None and path != "-" and not Path(path).resolve().parent.is_dir():
        raise KeyrailError(f"{option} {path}: folder {Path(path).resolve().parent} does not exist")


def _write(path: str | None, option: str, text: str) -> None:
    if path == "-":
        click.echo(text)
    elif path is not None:
        try:
            Path(path).write_text(text)
        except OSError as error:
            raise KeyrailError(f"{option} {path}: {error.strerror}") from None


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="keyrail", message="%(prog)s %(version)s")
def cli() -> None:
    """Quantum key distribution from detector clicks to secret keys."""


@cli.command()
@click.option("--distance", type=float, default=25.0, show_default=True, help="Fibre, km.")
@click.option(
    "--slots", type=int, default=10_000_000, show_default=True, help="Slots of the block, to 10^8."
)
@click.option(
    "--seed",
    type=int,
    default=None,
    help="Repeatable run from test randomness; without it the operating system's is used.",
)
@click.option(
    "--backend",
    type=str,
    default="rtl",
    show_default=True,
    help="rtl: the real gateware under Verilator; model: its numpy twin.",
)
@click.option(
    "--eve", type=float, default=0.0, show_default=True, help="Intercept-resend share, 0 to 1."
)
@click.option(
    "--states",
    type=str,
    default="host",
    show_default=True,
    help="host: drawn by the control PC; generator: made on the board by a cipher (computational).",
)
@click.option("--json", "json_file", type=str, default=None, help="Write the result as JSON (-).")
@click.option("--report", type=str, default=None, help="Write an HTML report with plots.")
def demo(
    distance: float,
    slots: int,
    seed: int | None,
    backend: str,
    eve: float,
    states: str,
    json_file: str | None,
    report: str | None,
) -> None:
    """Two simulated stations on a simulated fibre, through to identical secret keys.

    The key's length is an estimate (Rusca et al. 2018, 1-decoy). Exit codes: 0 identical keys,
    1 the keys differ, 2 wrong use, 3 no key can be had.
    """
    from keyrail import demo as demonstration
    from keyrail import report as reports

    settings = demonstration.DemoSettings(
        distance_km=distance, slots=slots, seed=seed, backend=backend, eve=eve, states=states
    )
    _writable(json_file, "--json")
    _writable(report, "--report")
    console = Console(stderr=json_file == "-")
    with _progress(console) as progress:
        stages = _Stages(progress)
        result = demonstration.run(settings, stages)
        stages.finish()
    table = Table(title="Keyrail demo", title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column()
    for name, value in result.summary():
        table.add_row(name, value)
    console.print(table)
    _write(json_file, "--json", json.dumps(result.as_dict(), indent=2))
    if report is not None:
        _write(report, "--report", reports.demo_report(result))
        console.print(f"Report: {report}")
    if result.accepted and not result.keys_equal:
        click.echo("keyrail: error: the stations' keys differ", err=True)
        sys.exit(EXIT_KEYS_DIFFER)
    if not result.accepted:
        click.echo(f"keyrail: no key: {result.reason}", err=True)
        sys.exit(EXIT_NO_KEY)


@cli.command()
@click.argument("file", type=str)
@click.option("--channels", type=str, default=None, help="Channels to use, such as 1,2,5.")
@click.option("--frequency-hint", type=float, default=None, help="Pulse frequency, Hz.")
@click.option(
    "--format",
    "file_format",
    type=str,
    default=None,
    help="qutag, a0, a1, a1X or a2 (X: halves swapped); by the file's name if not given.",
)
@click.option(
    "--backend",
    type=str,
    default="rtl",
    show_default=True,
    help="rtl: the real gateware under Verilator; model: its numpy twin.",
)
@click.option("--tracking/--no-tracking", default=True, help="Follow the source's clock.")
@click.option("--json", "json_file", type=str, default=None, help="Write the result as JSON (-).")
@click.option("--report", type=str, default=None, help="Write an HTML report with plots.")
def replay(
    file: str,
    channels: str | None,
    frequency_hint: float | None,
    file_format: str | None,
    backend: str,
    tracking: bool,
    json_file: str | None,
    report: str | None,
) -> None:
    """Send recorded tags of real detectors through the receiver's tag path.

    Reads quTAG files and qcrypto's -a0, -a1 and -a2, recovers pulse period and phase, and reports
    what the gateware's slotter, gate and histogram make of them.
    """
    from keyrail import replay as replays
    from keyrail import report as reports
    from keyrail.errors import SettingError

    chosen = None
    if channels is not None:
        try:
            chosen = [int(part) for part in channels.split(",")]
        except ValueError:
            raise SettingError("--channels", channels, "numbers joined by commas: 1,2,5") from None
    if frequency_hint is not None and not 1e6 <= frequency_hint <= 1.25e9:
        raise SettingError("--frequency-hint", frequency_hint, "1e6 to 1.25e9 Hz")
    _writable(json_file, "--json")
    _writable(report, "--report")
    console = Console(stderr=json_file == "-")
    with _progress(console) as progress:
        stages = _Stages(progress)
        result = replays.replay(
            file, backend, chosen, frequency_hint, file_format, tracking, stages
        )
        stages.finish()
    table = Table(title=f"Replay of {Path(file).name}", title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column()
    for name, value in result.summary():
        table.add_row(name, value)
    console.print(table)
    _write(json_file, "--json", json.dumps(result.as_dict(), indent=2))
    if report is not None:
        _write(report, "--report", reports.replay_report(result))
        console.print(f"Report: {report}")


@cli.command()
@click.argument("source", type=str)
@click.argument("target", type=str)
@click.option(
    "--format",
    "file_format",
    type=str,
    default=None,
    help="Of SOURCE: qutag, a0, a1, a1X or a2; by the file's name if not given.",
)
def convert(source: str, target: str, file_format: str | None) -> None:
    """Write a recording of time tags as PicoQuant T2 records, to TARGET.ptu.

    Reads what `keyrail replay` reads. Times are in ps, channels as in the recording (0 to 63).
    """
    import numpy as np

    from keyrail import recordings, t2
    from keyrail.contract import TAG, TIME_BITS
    from keyrail.errors import SettingError
    from keyrail.layouts import zeros
    from keyrail.ptu import PtuWriter

    if Path(target).suffix != ".ptu":
        raise SettingError("TARGET", target, "a name that ends in .ptu")
    _writable(target, "TARGET")
    recording = recordings.read(source, file_format)
    if int(recording.times[0]) < 0 or (np.diff(recording.times) >= 1 << (TIME_BITS - 1)).any():
        raise KeyrailError(f"{source}: a gap of more than 140 s: the time of a tag is not sure")
    tags = zeros(TAG, len(recording.times))
    tags["time"] = recording.times & ((1 << TIME_BITS) - 1)
    tags["channel"] = recording.channels
    with PtuWriter(target, f"from {Path(source).name}") as file:
        file.write(t2.Encoder().encode(tags))
    click.echo(f"{target}: {len(tags):,} tags, {file.records:,} records")


@cli.command("devices")
@click.option("--json", "json_file", type=str, default=None, help="Write the list as JSON (-).")
@click.option("--watch", is_flag=True, help="Go on and say what is plugged in and out.")
def list_devices(json_file: str | None, watch: bool) -> None:
    """List the boards on USB, what they are, and why one cannot be used."""
    from keyrail import usb

    _writable(json_file, "--json")
    if watch:
        for came, went in usb.watch():
            for one in came:
                click.echo(f"+ {one.name} {one.problem or one.board}")
            for one in went:
                click.echo(f"- {one.name}")
        return
    found = usb.devices()
    described = [
        {
            "name": one.name,
            "place": one.place,
            "role": one.role.name.lower() if one.role is not None else None,
            "board": one.board,
            "serial": one.serial,
            "contract": one.contract,
            "problem": one.problem,
        }
        for one in found
    ]
    _write(json_file, "--json", json.dumps(described, indent=2))
    if json_file == "-":
        return
    if not found:
        click.echo("No board is plugged in.")
    for one, entry in zip(found, described, strict=True):
        words = [
            one.name,
            entry["role"] or "",
            one.board,
            one.contract and f"contract {one.contract}",
        ]
        click.echo("  ".join(word for word in words if word))
        if one.problem:
            click.echo(f"  {one.problem}")


@cli.command()
@click.argument("board", type=str, default="usb:")
@click.option("--json", "json_file", type=str, default=None, help="Write the result as JSON (-).")
@click.option("--report", type=str, default=None, help="Write an HTML report.")
def selftest(board: str, json_file: str | None, report: str | None) -> None:
    """Test BOARD with nothing connected: usb: (the default), sim:alice, sim-usb:bob, ...

    Identity, registers, wipe, calibration by the oscillator, known Toeplitz answers, and known
    records through every stream. The board is wiped, its settings and an open block are lost.
    Exit codes: 0 passed, 1 a check failed, 2 wrong use or a board that cannot be opened.
    """
    import keyrail
    from keyrail import selftest as tests

    _writable(json_file, "--json")
    _writable(report, "--report")
    console = Console(stderr=json_file == "-", width=None if sys.stdout.isatty() else 110)
    with keyrail.open(board) as opened:
        result = tests.run(opened, lambda name: click.echo(f"{name} ...", err=True))
    table = Table(title=f"Self-test of {board}", title_justify="left")
    for column in ("Check", "Outcome", "What was seen, what to do"):
        table.add_column(column)
    for one in result.checks:
        table.add_row(one.name, str(one.outcome), f"{one.detail}\n{one.advice}".strip())
    console.print(table)
    console.print("Passed." if result.passed else "FAILED.")
    _write(json_file, "--json", json.dumps(result.as_dict(), indent=2))
    if report is not None:
        from keyrail import report as reports

        _write(report, "--report", reports.selftest_report(result))
        console.print(f"Report: {report}")
    if not result.passed:
        sys.exit(EXIT_BOARD_FAILED)


@cli.command("install-udev")
@click.option(
    "--folder", type=str, default=None, help="Where to write it. [default: /etc/udev/rules.d]"
)
@click.option("--dry-run", is_flag=True, help="Only show the rule.")
def install_udev(folder: str | None, dry_run: bool) -> None:
    """Write the udev rule that lets users open boards (Linux; needs root)."""
    from keyrail import usb

    place = Path(folder) if folder is not None else usb.UDEV_FOLDER
    if dry_run:
        click.echo(f"# {place / usb.UDEV_FILE}")
        click.echo(usb.udev_rule(), nl=False)
        return
    path = usb.install_udev(place)
    click.echo(f"Wrote {path}. Now: udevadm control --reload, and plug the board in again.")


@cli.command()
@click.argument("alice", type=str)
@click.argument("bob", type=str)
@click.option(
    "--pads", type=int, default=4096, show_default=True, help="Tags of each direction, to 2^20."
)
@click.option(
    "--device", type=str, default=None, help="Random generator, such as /dev/hwrng; else the OS's."
)
def provision(alice: str, bob: str, pads: int, device: str | None) -> None:
    """Write the first one-time key of a link: ALICE for the sender, BOB for the receiver.

    Both files have mode 0600; none is overwritten. Carry each to its station by trusted hands,
    once, and keep no copy: a pool that was in use elsewhere is refused.
    """
    from keyrail.authentication import provision as write
    from keyrail.contract import Role
    from keyrail.randomness import LABELS, DeviceRandom, OsRandom

    source = OsRandom() if device is None else DeviceRandom(device)
    write({Role.SENDER: Path(alice), Role.RECEIVER: Path(bob)}, source, pads)
    click.echo(f"{alice}, {bob}: {pads} tags of each direction, from {LABELS[source.label]}")


def _log(text: str) -> None:
    click.echo(f"{time.strftime('%H:%M:%S')} {text}", err=True)


@cli.command()
@click.argument("settings", type=str)
@click.option("--blocks", type=int, default=None, help="Stop after so many blocks.")
@click.option("--json", "json_file", type=str, default=None, help="Write counts as JSON (-).")
def station(settings: str, blocks: int | None, json_file: str | None) -> None:
    """Run the station that SETTINGS (TOML) describes, block after block, until stopped.

    Both stations, and for simulated boards the fibre, may be started in any order, and each may
    be restarted. Ctrl-C or SIGTERM stops cleanly. Exit codes: 0 stopped, 2 wrong use, 4 the station
    had to stop (pool dry or restored, settings that differ, forgeries).
    """
    from keyrail import service
    from keyrail.authentication import PoolError
    from keyrail.errors import SettingError
    from keyrail.operation import OperationError
    from keyrail.settings import station_settings

    if blocks is not None and blocks < 1:
        raise SettingError("--blocks", blocks, "1 and more")
    _writable(json_file, "--json")
    chosen = station_settings(settings)
    try:
        summary = service.run_station(chosen, _log, blocks)
    except (PoolError, OperationError) as error:
        click.echo(f"keyrail: stopped: {error}", err=True)
        sys.exit(EXIT_STOPPED)
    _write(json_file, "--json", service.summary_text(summary))


@cli.command()
@click.argument("settings", type=str)
def fibre(settings: str) -> None:
    """Carry simulated photons between two simulated boards, as SETTINGS (TOML) says.

    It holds secrets (the states are the key): for simulations only, refused for real boards.
    """
    from keyrail import service
    from keyrail.settings import fibre_settings

    service.run_fibre(fibre_settings(settings), _log)


@cli.group()
def verilog() -> None:
    """Gateware as plain Verilog, for other toolchains."""


@verilog.command("toeplitz")
@click.argument("file", type=str)
@click.option("--n", type=int, default=1 << 18, show_default=True, help="Largest input, bits.")
@click.option("--m", type=int, default=None, help="Largest output, bits; half of n if absent.")
@click.option("--width", type=int, default=64, show_default=True, help="Block of the core.")
@click.option("--smallest", type=int, default=8, show_default=True, help="Products not split.")
@click.option("--splits", type=int, default=1, show_default=True, help="Splits over blocks.")
@click.option("--ahead/--no-ahead", default=True, help="Take the next key in meanwhile or not.")
@click.option("--compact", is_flag=True, help="Few logic cells, slow clock; width 64, splits 0.")
def verilog_toeplitz(
    file: str,
    n: int,
    m: int | None,
    width: int,
    smallest: int,
    splits: int,
    ahead: bool,
    compact: bool,
) -> None:
    """Write the Toeplitz engine to FILE (-: standard output).

    Module keyrail_toeplitz has AXI4-Stream ports for key, seed and output, and a small register
    port; see docs/toeplitz.md.
    """
    from keyrail.errors import MissingExtra, SettingError

    if not 0 <= splits <= 4:
        raise SettingError("--splits", splits, "0 to 4")
    try:
        from amaranth.back import verilog as writer

        from keyrail_gateware.toeplitz_axi import ToeplitzAxi
    except ModuleNotFoundError as error:
        raise MissingExtra(error.name or "amaranth", "gateware") from None
    try:
        engine = ToeplitzAxi(
            n,
            m if m is not None else n // 2,
            width=width,
            smallest=smallest,
            splits=splits,
            ahead=ahead,
            compact=compact,
        )
    except ValueError as error:
        raise KeyrailError(f"toeplitz: {error}") from None
    text: str = writer.convert(
        engine, name="keyrail_toeplitz", emit_src=False, strip_internal_attrs=True
    )
    _write(file, "FILE", "// SPDX-License-Identifier: CERN-OHL-W-2.0\n" + text)


class _BuildGroup(click.Group):
    """Takes the name of a board where a command is expected."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command of that name, or that for boards."""
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            return "board", self.commands["board"], args
        return super().resolve_command(ctx, args)


@cli.group(cls=_BuildGroup, subcommand_metavar="BOARD ROLE | toeplitz [ARGS]...")
def build() -> None:
    """Gateware for real parts: a station's bitstream, or an engine by itself.

    keyrail build BOARD ROLE maps, places, routes and packs a station for a board (see
    keyrail build board --help).
    """


@build.command("board")
@click.argument("board", type=str)
@click.argument("role", type=str)
@click.option(
    "--configuration", type=str, default=None, help="Sizes; the board's first if not given."
)
@click.option("--serial", type=str, default="0", show_default=True, help="Serial number, to 2^64.")
@click.option("--seed", type=int, default=None, help="nextpnr's seed; the configuration's else.")
@click.option(
    "--reference", type=str, default=None, help="Clock the station by a reference of so many MHz."
)
@click.option("--pack-only", is_flag=True, help="Only say what area it takes; minutes.")
@click.option(
    "--output", type=str, default="build", show_default=True, help="Folder for the three files."
)
def build_board(
    board: str,
    role: str,
    configuration: str | None,
    serial: str,
    seed: int | None,
    reference: str | None,
    pack_only: bool,
    output: str,
) -> None:
    """Make the bitstream of a station: ROLE is sender or receiver.

    Takes minutes to an hour; what has been built once is found again. Writes
    BOARD-ROLE-CONFIGURATION.bit, .json and .html into a folder. Exit codes: 0 built, 2 wrong use or
    a tool's error, 5 a clock is too slow (no bitstream is written then, only the reports).
    """
    from fractions import Fraction

    from keyrail import report as reports
    from keyrail.errors import SettingError
    from keyrail_boards.bitstream import TimingFailed, check_timing, pack
    from keyrail_boards.board import board_named, role_named
    from keyrail_boards.stations import build_station, described, design
    from keyrail_boards.tdc import LineError

    target, kind = board_named(board), role_named(role)
    fit = target.fit(kind, configuration)
    name = configuration or next(n for (r, n), one in target.fits.items() if one is fit)
    try:
        number = int(serial, 0)
    except ValueError:
        raise SettingError("--serial", serial, "a number, such as 12 or 0x1f") from None
    try:
        mhz = Fraction(reference) if reference is not None else None
    except (ValueError, ZeroDivisionError):
        raise SettingError("--reference", reference, "MHz, such as 10") from None
    console = Console(stderr=True)

    def say(line: str) -> None:
        console.print(line, highlight=False)

    if pack_only:
        made = design(target, kind, name, serial=number, reference_mhz=mhz, progress=say)
        packed = pack(made, progress=say)
        click.echo(
            f"{target.name} {kind.name.lower()} {name}: "
            f"{packed.used['TRELLIS_COMB']:,} of {target.device.lut4:,} LUT4, "
            f"{packed.used['DP16KD']} of {target.device.bram} block RAMs"
        )
        if not packed.fits:
            raise KeyrailError(f"it does not fit {target.device.name}")
        return
    folder = Path(output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise KeyrailError(f"--output {output}: {error.strerror}") from None
    built = build_station(
        target, kind, name, serial=number, seed=seed, reference_mhz=mhz, progress=say
    )
    result = described(target, kind, name, fit, built)
    stem = folder / f"{target.name}-{kind.name.lower()}-{name}"
    stem.with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")
    stem.with_suffix(".html").write_text(reports.build_report(result))
    bitstream = stem.with_suffix(".bit")
    bitstream.unlink(missing_ok=True)
    try:
        check_timing(built)
    except (LineError, TimingFailed) as error:
        click.echo(f"keyrail: error: {error} (reports: {stem}.json, .html)", err=True)
        sys.exit(EXIT_TIMING)
    bitstream.write_bytes(built.file.read_bytes())
    click.echo(f"{bitstream}: {built.lut4:,} LUT4, {built.bram} block RAMs, hash {built.identity}")


@cli.command()
@click.argument("board", type=str)
@click.argument("file", type=str)
@click.option("--dry-run", is_flag=True, help="Only show the command.")
def program(board: str, file: str, dry_run: bool) -> None:
    """Load the bitstream FILE into BOARD by openFPGALoader, or the board's own loader."""
    import shlex

    from keyrail_boards import stations
    from keyrail_boards.board import board_named

    target = board_named(board)
    if dry_run:
        click.echo(shlex.join(stations.command_to_load(target, Path(file))))
        return
    stations.program(target, Path(file))


@build.command()
@click.option("--device", type=str, default="LFE5U-85F-6", show_default=True, help="Part.")
@click.option(
    "--width", type=int, multiple=True, help="Block size of the product core. [default: 64]"
)
@click.option(
    "--smallest", type=int, multiple=True, help="Products that are not split. [default: 8]"
)
@click.option(
    "--splits", type=int, multiple=True, help="Levels split over blocks in memory. [default: 1]"
)
@click.option("--input-bits", type=int, default=1 << 16, show_default=True, help="Largest n.")
@click.option("--output-bits", type=int, default=1 << 15, show_default=True, help="Largest m.")
@click.option("--n", type=int, default=None, help="Input bits of the hash; --input-bits if absent.")
@click.option("--m", type=int, default=None, help="Output bits of the hash; a quarter if absent.")
@click.option("--family", type=str, default="modified", show_default=True, help="Or plain.")
@click.option("--seed", type=int, multiple=True, help="nextpnr's seeds. [default: 1]")
@click.option("--frequency", type=float, default=200.0, show_default=True, help="Target, MHz.")
@click.option(
    "--explore",
    is_flag=True,
    help="Every combination of the widths, smallest products and splits given, "
    "or of 64, 128, 256; 4, 8, 16; 0 to 3. Synthesis alone but for --route.",
)
@click.option("--output-registers", is_flag=True, help="Use those of block RAM (ECP5).")
@click.option("--compact", is_flag=True, help="Few logic cells, slow clock; width 64, splits 0.")
@click.option("--route/--no-route", default=None, help="Place and route too.")
@click.option("--jobs", type=int, default=1, show_default=True, help="Variants at a time.")
@click.option("--json", "json_file", type=str, default=None, help="Write the result as JSON (-).")
def toeplitz(
    device: str,
    width: tuple[int, ...],
    smallest: tuple[int, ...],
    splits: tuple[int, ...],
    input_bits: int,
    output_bits: int,
    n: int | None,
    m: int | None,
    family: str,
    seed: tuple[int, ...],
    frequency: float,
    explore: bool,
    output_registers: bool,
    compact: bool,
    route: bool | None,
    jobs: int,
    json_file: str | None,
) -> None:
    """Synthesise, place and route the Toeplitz engine, and compare variants of it.

    Each step takes seconds to minutes; what has been built once is kept.
    """
    from keyrail.errors import SettingError
    from keyrail_boards import toeplitz as engines
    from keyrail_boards.figure import document
    from keyrail_boards.place_and_route import device_named, require_tools

    part = device_named(device)
    if family not in ("modified", "plain"):
        raise SettingError("--family", family, "modified or plain")
    if not 1.0 <= frequency <= 1000.0:
        raise SettingError("--frequency", frequency, "1 to 1000 MHz")
    if jobs < 1:
        raise SettingError("--jobs", jobs, "1 and more")
    for option, values in (("--width", width), ("--smallest", smallest), ("--splits", splits)):
        if len(values) > 1 and not explore:
            raise SettingError(option, values, "one value, or several with --explore")
    _writable(json_file, "--json")
    require_tools()
    n = n if n is not None else input_bits
    base = engines.Run(
        engines.ToeplitzConfiguration(input_bits, output_bits, compact=compact),
        part.name,
        n,
        m if m is not None else max(1, n // 4),
        "modified" if family == "modified" else "plain",
        seed or (1,),
        frequency,
        output_registers,
    )

    def say(line: str) -> None:
        click.echo(line, err=True)

    if explore:
        runs = engines.variants(base, width, smallest, splits)
        results = engines.explore(runs, say, route=bool(route), jobs=jobs)
    else:
        levels = splits or ((0,) if compact else (1,))
        (run,) = engines.variants(base, width or (64,), smallest or (8,), levels)
        results = list(engines.measure(run, say, route is not False))
    # A pipe has no width: eleven columns are not to be cut for it.
    output = Console(stderr=json_file == "-", width=None if sys.stdout.isatty() else 110)
    title = f"Toeplitz engine on {part.name}, {n} to {base.m} bits, target {frequency:g} MHz"
    output.print(_engine_table(results, title))
    for result in results:
        if "error" in result:
            variant = ", ".join(f"{key} {result[key]}" for key in ("width", "smallest", "splits"))
            click.echo(f"{variant}: {result['error']}", err=True)
    command = "keyrail build toeplitz"
    _write(json_file, "--json", json.dumps(document(command, results), indent=2))


_ENGINE_COLUMNS = {
    "width": "Width",
    "smallest": "Smallest",
    "splits": "Splits",
    "lut4": "LUT4",
    "ff": "FF",
    "bram": "Block RAM",
    "cycles": "Cycles",
    "mbps_at_target": "Mb/s at target",
    "seed": "Seed",
    "fmax_mhz": "Fmax, MHz",
    "input_mbps": "Mb/s in",
    "cable_mbps": "Mb/s, USB",
}


def _engine_table(results: list[dict[str, Any]], title: str) -> Table:
    """Table of the results that are none but an error, one row each."""
    table = Table(title=title, title_justify="left")
    keys = [key for key in _ENGINE_COLUMNS if any(key in result for result in results)]
    if any("fmax_mhz" in result for result in results):
        keys.remove("mbps_at_target")
    for key in keys:
        table.add_column(_ENGINE_COLUMNS[key], justify="right")
    for result in results:
        if "error" not in result:
            values = [result.get(key, "") for key in keys]
            table.add_row(*(f"{v:,}" if isinstance(v, int) else str(v) for v in values))
    return table


def main() -> None:
    """Run the command line; errors are one line each, with exit code 2."""
    try:
        code = cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        click.echo("keyrail: stopped", err=True)
        sys.exit(130)
    except click.ClickException as error:
        click.echo(f"keyrail: error: {error.format_message()}", err=True)
        sys.exit(EXIT_USAGE)
    except KeyrailError as error:
        click.echo(f"keyrail: error: {error}", err=True)
        sys.exit(EXIT_USAGE)
    sys.exit(code or 0)
