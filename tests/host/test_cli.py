# SPDX-License-Identifier: Apache-2.0
"""The command line: exit codes, and errors of one line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from keyrail.recordings import write_qutag
from keyrail_sim.photonics import synthetic_recording

KEYRAIL = Path(sys.executable).parent / "keyrail"


def keyrail(*arguments, **environment):
    return subprocess.run(
        [str(KEYRAIL), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize("command", [[], ["demo"], ["replay"]])
def test_help(command):
    done = keyrail(*command, "--help")
    assert done.returncode == 0
    assert "Usage" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["demo", "--distance", "-3"], "--distance = -3.0: allowed is 0 to 500 km"),
        (["demo", "--distance", "near"], "'near' is not a valid float"),
        (["demo", "--slots", "1000000000"], "--slots = 1000000000: allowed is"),
        (["demo", "--eve", "2"], "--eve = 2.0: allowed is 0 to 1"),
        (["demo", "--backend", "fpga"], "--backend = fpga: allowed is rtl or model"),
        (["demo", "--json", "/no/such/folder/x.json"], "does not exist"),
        (["replay", "/no/such/file.qutag"], "No such file"),
        (["replay", "x.qutag", "--channels", "a,b"], "numbers joined by commas"),
        (["replay", "x.qutag", "--frequency-hint", "3"], "1e6 to 1.25e9 Hz"),
        (["fly"], "No such command"),
        (["replay"], "Missing argument"),
    ],
)
def test_wrong_use_is_one_line_and_code_2(arguments, text):
    done = keyrail(*arguments)
    assert done.returncode == 2
    assert text in done.stderr
    assert done.stderr.startswith("keyrail: error:")
    assert len(done.stderr.strip().splitlines()) == 1


def test_bad_recordings_are_one_line_and_code_2(tmp_path):
    path = tmp_path / "cut.qutag"
    write_qutag(path, *synthetic_recording(1, duration_s=0.01))
    path.write_bytes(path.read_bytes()[:-1])
    done = keyrail("replay", path, "--backend", "model")
    assert done.returncode == 2
    assert "the file is truncated" in done.stderr
    assert "byte" in done.stderr
    assert "Traceback" not in done.stderr


def test_missing_tool_names_its_package(tmp_path):
    environment = {"PATH": str(KEYRAIL.parent), "KEYRAIL_CACHE": str(tmp_path)}
    done = keyrail("demo", "--slots", "10000", **environment)
    assert done.returncode == 2
    assert "is missing: install the system package" in done.stderr
    assert "Traceback" not in done.stderr


def test_demo_and_replay_write_json_and_report(tmp_path):
    json_file, report = tmp_path / "demo.json", tmp_path / "demo.html"
    done = keyrail(
        "demo", "--backend", "model", "--slots", 20_000, "--seed", 1,
        "--json", json_file, "--report", report,
    )  # fmt: skip
    assert done.returncode == 3
    assert "keyrail: no key:" in done.stderr
    data = json.loads(json_file.read_text())
    assert data["keys_equal"] is False
    assert data["secret_bits"] == 0
    assert "Keyrail demo" in report.read_text()

    recording = tmp_path / "a.qutag"
    write_qutag(recording, *synthetic_recording(1))
    done = keyrail("replay", recording, "--backend", "model", "--json", "-")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["period_ps"] == pytest.approx(12_495.6029, abs=1e-3)
