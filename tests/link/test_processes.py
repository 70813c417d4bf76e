# SPDX-License-Identifier: Apache-2.0
"""``keyrail provision``, ``station`` and ``fibre``: three processes and their settings."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from keyrail import service
from keyrail.authentication import provision
from keyrail.contract import Role
from keyrail.errors import KeyrailError
from keyrail.keystore import Keystore
from keyrail.pin_operation import PinReceiverRunner, PinSenderRunner
from keyrail.randomness import OsRandom
from keyrail.settings import fibre_settings, station_settings
from keyrail_sim import verilated
from keyrail_sim.model_board import open_station
from keyrail_sim.pin_boards import PinReceiverTwin

pytestmark = pytest.mark.xdist_group("stations")
KEYRAIL = Path(sys.executable).parent / "keyrail"

BLOCK = """
[block]
slots = 1000000
training_slots = 65536
signal = 0.4
decoy = 0.1
eps_sec = 1e-3
authentication_share = 0.3
planned_loss_db = 3
"""
STATION = """
role = "{role}"
board = "sim:{name}"
pool = "{name}.pool"
keystore = "{name}.keys"

[link]
{joins} = "tcp://127.0.0.1:{port}"

[fibre]
connect = "ipc://{folder}/fibre.socket"

[randomness]
source = "test"
seed = 3
{states}
"""
FIBRE = """
listen = "ipc://{folder}/fibre.socket"
seed = 5

[link]
distance_km = 0
misalignment = 0
dark_counts_per_slot = 0
signal = 0.4
decoy = 0.1
"""


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.fixture
def folder(tmp_path):
    port = free_port()
    for role, name, joins in (("sender", "alice", "listen"), ("receiver", "bob", "connect")):
        states = 'states = "generator"' if role == "sender" else ""
        text = STATION.format(
            role=role, name=name, joins=joins, port=port, folder=tmp_path, states=states
        )
        (tmp_path / f"{name}.toml").write_text(text + BLOCK)
    (tmp_path / "fibre.toml").write_text(FIBRE.format(folder=tmp_path))
    return tmp_path


def run(*arguments):
    return subprocess.run(
        [str(KEYRAIL), *map(str, arguments)], capture_output=True, text=True, check=False
    )


def start(*arguments):
    return subprocess.Popen(
        [str(KEYRAIL), *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ,
    )  # fmt: skip


def test_three_processes_make_a_key_and_stop_cleanly(folder):
    """The boards run the real gateware: built before, as a build takes longer than a block."""
    verilated.build_all()
    done = run("provision", folder / "alice.pool", folder / "bob.pool", "--pads", 64)
    assert done.returncode == 0, done.stderr
    again = run("provision", folder / "alice.pool", folder / "bob.pool")
    assert again.returncode == 2
    assert "exists already and is not overwritten" in again.stderr
    fibre = start("fibre", folder / "fibre.toml")
    bob = start("station", folder / "bob.toml")
    alice = start("station", folder / "alice.toml", "--blocks", 1, "--json", folder / "alice.json")
    try:
        _, said = alice.communicate(timeout=300)
        assert alice.returncode == 0, said
        bob.send_signal(signal.SIGTERM)
        _, at_bob = bob.communicate(timeout=60)
        assert bob.returncode == 0, at_bob
        fibre.send_signal(signal.SIGINT)
        _, at_fibre = fibre.communicate(timeout=60)
        assert fibre.returncode == 0, at_fibre
    finally:
        for process in (alice, bob, fibre):
            process.kill()
            process.wait()
    assert "secret bits (estimate), not secret" in said
    # Where randomness comes from: in what is said, in the counts, and with each key.
    assert "randomness: states: generator (on the board, computational)" in said
    assert "every other use: test (never secret)" in said
    summary = json.loads((folder / "alice.json").read_text())
    assert summary["keys"] == 1
    assert summary["randomness"]["states"] == "generator"
    assert summary["randomness"]["authentication"] == "os"
    assert summary["security"] == summary["blocks_last"][0]["security"] == "not secret"
    stores = {name: Keystore(folder / f"{name}.keys") for name in ("alice", "bob")}
    released = stores["alice"].released()
    assert list(released) == list(stores["bob"].released())
    for key_id in released:
        ledgers = [stores[name].ledger(key_id) for name in ("alice", "bob")]
        assert ledgers[0]["randomness"] == ledgers[1]["randomness_of_the_other"]
        assert ledgers[1]["randomness"] == ledgers[0]["randomness_of_the_other"]
        assert ledgers[0]["randomness"]["states"] == "generator"
        assert ledgers[1]["randomness"]["coins"] == "test"
        assert [ledger["security"] for ledger in ledgers] == ["not secret"] * 2
        assert (stores["alice"].key(key_id) == stores["bob"].key(key_id)).all()
    for store in stores.values():
        assert store.path.stat().st_mode & 0o777 == 0o600
        store.close()


def test_a_process_that_is_killed_and_started_anew_goes_on_without_help(folder):
    """Kill -9 in mid-block: the other process is told nothing, and the next session makes a key."""
    for name in ("alice", "bob"):
        path = changed(folder, f"{name}.toml", f"sim:{name}", f"sim-model:{name}")
        path.write_text(
            path.read_text().replace("[fibre]", "heartbeat_s = 0.5\nsilence_s = 3\n[fibre]")
        )
    run("provision", folder / "alice.pool", folder / "bob.pool", "--pads", 200)
    processes = [start("fibre", folder / "fibre.toml"), start("station", folder / "alice.toml")]
    try:
        killed = start("station", folder / "bob.toml")
        processes.append(killed)
        for line in killed.stderr:
            if "session" in line and "begins" in line:
                break
        killed.kill()
        again = start("station", folder / "bob.toml", "--blocks", 2, "--json", folder / "bob.json")
        processes.append(again)
        _, said = again.communicate(timeout=240)
        assert again.returncode == 0, said
        alice = processes[1]
        alice.send_signal(signal.SIGTERM)
        _, at_alice = alice.communicate(timeout=60)
        assert alice.returncode == 0, at_alice
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert at_alice.count(" begins; ") == 2, at_alice
    assert json.loads((folder / "bob.json").read_text())["keys"] > 0, said
    stores = [Keystore(folder / f"{name}.keys") for name in ("alice", "bob")]
    assert list(stores[0].released()) == list(stores[1].released())
    for key_id in stores[0].released():
        assert (stores[0].key(key_id) == stores[1].key(key_id)).all()
    for store in stores:
        store.close()


def changed(folder, name, old, new):
    path = folder / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return path


def assert_refused(reader, path, error):
    """Reading the settings fails, and says so by file."""
    with pytest.raises(KeyrailError) as caught:
        reader(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert error in str(caught.value)


@pytest.mark.parametrize(
    ("name", "old", "new", "error"),
    [
        ("alice.toml", 'role = "sender"', 'role = "eve"', "role: 'eve'; allowed is sender or"),
        ("alice.toml", "sim:alice", "sim:bob", "board: 'sim:bob'; allowed is sim:alice or"),
        ("alice.toml", "sim:alice", "alice", "board: 'alice'; allowed is sim:alice or"),
        (
            "alice.toml",
            "slots = 1000000",
            'slots = "many"',
            "slots: 'many'; allowed is 16384 to",
        ),
        ("alice.toml", "slots = 1000000", "slots = 3", "block.slots: 3; allowed is 16384 to"),
        ("alice.toml", "decoy = 0.1", "decoy = 0.5", "block.decoy: 0.5; allowed is 1e-06 to 0.39"),
        ("alice.toml", "decoy", "decoys", "block.decoys: unknown key; allowed is signal"),
        ("alice.toml", "listen = ", "port = ", "link.listen: one of listen and connect is needed"),
        ("alice.toml", "tcp://127.0.0.1", "127.0.0.1", "allowed is tcp://HOST:PORT or ipc://PATH"),
        ("alice.toml", "sim:alice", "usb:1", "fibre: holds secrets of simulated boards"),
        ("alice.toml", "[fibre]", "[[fibre]]", "is no table"),
        ("alice.toml", "role =", "role", "no TOML"),
        ("alice.toml", '"generator"', '"dice"', "randomness.states: 'dice'; allowed is host or"),
        ("bob.toml", "seed = 3", 'states = "generator"', "'generator'; allowed is host"),
        ("fibre.toml", "ipc://", "tcp://192.0.2.1:7/", "lets other machines at the states"),
        ("fibre.toml", "misalignment = 0", "misalignment = 2", "link.misalignment: 2; allowed"),
    ],
)
def test_errors_name_file_key_and_allowed_values(folder, name, old, new, error):
    reader = fibre_settings if name == "fibre.toml" else station_settings
    assert_refused(reader, changed(folder, name, old, new), error)


REAL = {
    "alice": """
[source]
clocks = 2
period_ps = 20000
gap_s = 0.016
ahead_s = 0.1
[[source.output]]
codes = 0b1111_0000
stop = 4
fine = 127
[[source.output]]
frame = 1
stop = 1
""",
    "bob": """
[detectors]
period_ps = 20000
delays_ps = [0, -1500, 1000000]
""",
}


@pytest.fixture
def real(folder):
    """Settings of stations on real boards: no fibre, no seed."""
    for name, more in REAL.items():
        path = folder / f"{name}.toml"
        text = path.read_text().replace(f"sim:{name}", "usb:").replace('"test"', '"os"')
        text = text.replace('states = "generator"', "")
        fibre = text[text.index("[fibre]") : text.index("[randomness]")]
        path.write_text(text.replace(fibre, "") + more)
    return folder


def test_settings_of_real_boards(real):
    source = station_settings(real / "alice.toml").pins
    assert (source.clocks, source.period_ps) == (2, 20_000)
    assert source.gap_slots == 800_000
    assert source.ahead_slots == 5_000_000
    assert [output["stop"] for output in source.outputs] == [4, 1]
    assert source.outputs[0]["codes"] == 0xF0
    detectors = station_settings(real / "bob.toml").pins
    assert (detectors.period_ps, detectors.delays_ps) == (20_000, (0, -1500, 1_000_000))


@pytest.mark.parametrize(
    ("name", "old", "new", "error"),
    [
        ("alice.toml", '"os"', '"test"', "randomness.source: 'test'; allowed is os or device"),
        ("alice.toml", '"os"', '"os"\nstates = "generator"', "'generator'; allowed is host"),
        ("alice.toml", '"os"', '"device"', "randomness.device: missing; allowed is a path"),
        ("alice.toml", "clocks = 2", "clocks = 257", "source.clocks: 257; allowed is 1 to 256"),
        ("alice.toml", "fine = 127", "fine = 128", "source.output[0].fine: 128; allowed is 0 to"),
        ("alice.toml", "frame = 1", "rate = 1", "source.output[1].rate: unknown key"),
        (
            "alice.toml",
            "[[source.output]]\ncodes",
            "[source.output]\ncodes",
            "output: no such list",
        ),
        ("bob.toml", "1000000]", "1000001]", "detectors.delays_ps: [0, -1500, 1000001]; allowed"),
        ("bob.toml", "period_ps = 20000", "period_ps = 700", "detectors.period_ps: 700; allowed"),
        ("bob.toml", "[detectors]", "[source]", "source: unknown key"),
    ],
)
def test_settings_that_no_real_board_has(real, name, old, new, error):
    if "[source.output]" in new:
        path = real / name
        text = path.read_text()
        path.write_text(text[: text.rindex("[[source.output]]")])
    assert_refused(station_settings, changed(real, name, old, new), error)


@pytest.mark.parametrize("name", REAL)
def test_a_station_opens_the_board_on_usb_that_its_settings_name(real, name, monkeypatch):
    """The same library path as for any board; here with a twin where libusb would be."""
    made = {"alice": lambda: open_station(Role.SENDER, "usb:"), "bob": PinReceiverTwin}[name]()
    made.randomness_may_be_test = False
    began, delays = [], []

    def loop(runner, *rest):
        began.append(runner)
        if name == "bob":
            inputs = [made.read_fields(f"condition_{n}") for n in range(made.INPUTS)]
            delays[:] = [one["delay"] if one["enable"] else None for one in inputs]

    monkeypatch.setattr("keyrail.usb.open_board", lambda name: made)
    monkeypatch.setattr(service, "_loop", loop)
    provision({Role.SENDER: real / "alice.pool", Role.RECEIVER: real / "bob.pool"}, OsRandom(), 64)
    summary = service.run_station(station_settings(real / f"{name}.toml"), lambda line: None)
    (runner,) = began
    assert runner.board is made
    assert isinstance(runner, PinSenderRunner if name == "alice" else PinReceiverRunner)
    assert summary["role"] == runner.role.name.lower()
    assert runner.sources("seed").label == "os"
    if name == "bob":
        assert delays[0] == delays[3] == 0
        assert delays[2] == 1_000_000
        assert delays[4:] == [None, None]


def test_a_board_of_the_other_role_is_refused(real, monkeypatch):
    made = open_station(Role.RECEIVER, "usb:")
    monkeypatch.setattr("keyrail.usb.open_board", lambda name: made)
    provision({Role.SENDER: real / "alice.pool", Role.RECEIVER: real / "bob.pool"}, OsRandom(), 64)
    with pytest.raises(KeyrailError, match="usb:: a receiver, and a sender is set"):
        service.run_station(station_settings(real / "alice.toml"), lambda line: None)


def test_a_generator_device_is_a_source_of_randomness(folder):
    path = changed(folder, "alice.toml", 'source = "test"', 'source = "device"\ndevice = "rng"')
    settings = station_settings(path)
    assert settings.device == folder / "rng"
    (folder / "rng").write_bytes(bytes(64))
    source = service.random_source(settings, True, "seed")
    assert source.label == "hardware"
    assert source.bytes(8) == bytes(8)


def test_good_settings(folder):
    settings = station_settings(folder / "bob.toml")
    assert settings.role is Role.RECEIVER
    assert settings.pool == folder / "bob.pool"
    assert settings.plan.block_slots == 1_000_000
    assert settings.timing.silence_s == 10
    assert fibre_settings(folder / "fibre.toml").link["distance_km"] == 0


def test_the_fibre_refuses_a_real_board(folder):
    from keyrail.fibre import FibreSender, FibreServer

    address = f"ipc://{folder}/refusing.socket"
    server = FibreServer(address, lambda epoch: pytest.fail("light for a real board"))
    client = FibreSender(address, "usb:1")
    client.restart(1)
    assert server.step(5000)
    assert client._socket.poll(5000)
    with pytest.raises(KeyrailError, match="for simulated boards"):
        client.ready()
    client.close(), server.close()
