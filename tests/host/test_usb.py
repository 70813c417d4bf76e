# SPDX-License-Identifier: Apache-2.0
"""The transport over USB against a libusb that fails in every way it knows."""

from dataclasses import replace

import numpy as np
import pytest
import usb1
from click.testing import CliRunner

import keyrail.usb
from fake_usb import Context, receiver_context
from keyrail import tag_path
from keyrail.board import BoardError
from keyrail.cli import cli
from keyrail.contract import (
    CONTRACT_HASH,
    CONTRACT_VERSION,
    PERIOD_FRACTION_BITS,
    STREAMS,
    TOEPLITZ_WORD,
    USB_ENDPOINTS,
    Direction,
    Role,
    ToeplitzCommand,
    endpoints,
    streams,
)
from keyrail.distil.toeplitz import Geometry, seed_bits, toeplitz_hash
from keyrail.errors import ContractMismatch, KeyrailError, SettingError
from keyrail.layouts import zeros
from keyrail.usb import (
    NoBoard,
    NoPermission,
    Unplugged,
    UsbError,
    UsbSettings,
    devices,
    open_board,
)

SETTINGS = UsbSettings(
    in_bytes=512, in_depth=3, out_bytes=512, out_depth=2, quiet_s=1e-3, rest_s=20, thread=False
)
PERIOD = 10_000 << PERIOD_FRACTION_BITS
GATED = endpoints(Role.RECEIVER)["gated"]
ERRORS = sorted(usb1.STATUS_TO_EXCEPTION_DICT.values(), key=lambda error: error.__name__)
STATUSES = {
    "error": usb1.TRANSFER_ERROR,
    "timed out": usb1.TRANSFER_TIMED_OUT,
    "cancelled": usb1.TRANSFER_CANCELLED,
    "halted": usb1.TRANSFER_STALL,
    "more than": usb1.TRANSFER_OVERFLOW,
}


def opened(context, name="usb:", settings=SETTINGS):
    return open_board(name, settings, usb1, context)


def tags(board, count, seed=1):
    """Send tags that all come out as gated ones."""
    tag_path.set_slots(board, PERIOD, 0)
    tag_path.open_gates(board, range(4), PERIOD)
    rng = np.random.default_rng(seed)
    times = np.cumsum(rng.integers(1, 100_000, count))
    board.send("tags", tag_path.tag_records(times, rng.integers(0, 4, count)))


def test_endpoints():
    for role in Role:
        numbers = endpoints(role)
        assert len(set(numbers.values())) == len(numbers) == len(streams(role))
        for name, address in numbers.items():
            to_host = streams(role)[name].direction is Direction.TO_HOST
            assert bool(address & 0x80) == to_host
            assert 1 <= address & 15 <= USB_ENDPOINTS
    assert all(stream.record.bits % 8 == 0 for stream in STREAMS)


def test_same_bytes_as_the_twin():
    """Short transfers, transfers that cut records, several in flight: the same records come."""
    context = receiver_context()
    context.short["gated"] = 37
    with opened(context) as board, keyrail.open("sim-model:bob") as twin:
        identity = board.identify()
        assert identity["contract_hash"] == CONTRACT_HASH
        for one in (board, twin):
            tags(one, 3_000)
            one.run()
        assert board.pending("tags") == 0
        assert len(twin_records := twin.receive("gated")) > 1_000
        got = [board.receive("gated")]
        while len(got[-1]):
            board.run()
            got.append(board.receive("gated"))
        assert np.array_equal(np.concatenate(got), twin_records)
        assert board.ledger("gate") == twin.ledger("gate")


def test_thread():
    """The same with events handled in a thread of their own."""
    settings = UsbSettings(in_bytes=512, out_bytes=512, quiet_s=0.05, rest_s=20)
    context = receiver_context()
    with opened(context, settings=settings) as board, keyrail.open("sim-model:bob") as twin:
        for one in (board, twin):
            tags(one, 500)
            one.run()
        assert np.array_equal(board.receive("gated"), twin.receive("gated"))
        assert len(board.receive("gated")) == 0


def test_hash_on_board():
    context = receiver_context()
    geometry = Geometry(1_000, 300)
    rng = np.random.default_rng(3)
    key = rng.integers(0, 2, 1_000).astype(np.uint8)
    with opened(context) as board:
        from keyrail.board_hash import hash_on_board

        seed = rng.integers(0, 2, seed_bits(1_000, 300, "modified")).astype(np.uint8)
        assert np.array_equal(hash_on_board(board, key, seed, 300), toeplitz_hash(key, seed, 300))
        assert geometry.rows
        board.write("toeplitz_command", ToeplitzCommand.WIPE)
        assert len(zeros(TOEPLITZ_WORD, 1))


def test_stuck_stream_stays_pending():
    """What the board does not take stays queued, and `run` ends all the same."""
    context = receiver_context()
    with opened(context) as board:
        context.devices[0].limit["coins"] = 0
        coins = zeros(board.streams["coins"].record, 5_000)
        board.send("coins", coins)
        board.run()
        assert board.pending("coins") == 5_000


@pytest.mark.parametrize("text", STATUSES)
def test_transfer_status(text):
    """A transfer fails: what came is kept, whole records, then the stream ends with its error."""
    context = receiver_context()
    with opened(context) as board:
        context.statuses[GATED] = (1, STATUSES[text], 21)
        tags(board, 2_000)
        board.run()
        record = board.streams["gated"].record
        before = board.receive("gated")
        assert len(before) == (512 + 21) // record.bytes
        for _ in range(2):
            with pytest.raises(UsbError, match="stream gated ends here"):
                board.receive("gated")
        # Other streams go on.
        assert len(board.receive("histogram")) == 0
        assert board.read("role") == Role.RECEIVER


def test_out_fails():
    context = receiver_context()
    with opened(context) as board:
        address = endpoints(Role.RECEIVER)["coins"]
        context.statuses[address] = (0, usb1.TRANSFER_STALL, 0)
        coins = zeros(board.streams["coins"].record, 5_000)
        board.send("coins", coins)
        board.run()
        with pytest.raises(UsbError, match="coins ends here: the board has halted it"):
            board.send("coins", coins)
        context.statuses[address] = (0, usb1.TRANSFER_COMPLETED, 3)
    context = receiver_context()
    with opened(context) as board:
        context.statuses[address] = (0, usb1.TRANSFER_COMPLETED, 3)
        board.send("coins", coins)
        board.run()
        with pytest.raises(UsbError, match="took 3 of 512 bytes"):
            board.send("coins", coins)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
@pytest.mark.parametrize("call", ["open", "claim", "alternate", "read", "submit"])
def test_errors_while_opening(call, error):
    """Every error of libusb, in each step of opening: one line that says what to do."""
    context = receiver_context()
    if call == "open":
        context.errors["open"].extend([None, error()])  # the listing opens it first
    elif call == "read":
        context.errors["read"].extend([None, error()])
    else:
        context.errors["submit" if call == "claim-" else call].append(error())
    if call == "submit":
        context.errors.clear()
        context.errors["submit", GATED].append(error())
    with pytest.raises(KeyrailError) as caught:
        opened(context)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("usb:")
    if error is usb1.USBErrorAccess:
        assert isinstance(caught.value, NoPermission)
        assert "keyrail install-udev" in message
        assert 'ATTR{idVendor}=="1209"' in message
    elif error is usb1.USBErrorNoDevice:
        assert isinstance(caught.value, Unplugged)
    else:
        assert isinstance(caught.value, UsbError)
        assert error.__name__ in message
    assert all(device.closed for device in context.devices)
    # Nothing is left behind: it opens as soon as the cause is gone.
    with opened(context) as board:
        assert board.read("role") == Role.RECEIVER


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_errors_of_registers(error):
    context = receiver_context()
    with opened(context) as board:
        context.errors["read"].append(error())
        with pytest.raises(UsbError):
            board.read("role")
        context.errors["write"].append(error())
        with pytest.raises(UsbError):
            board.write("mode", 1)
        assert board.read("mode") == 0
        context.short["read"] = 3
        with pytest.raises(UsbError, match="3 bytes instead of 4"):
            board.read("role")
        assert board.read("role") == Role.RECEIVER


def ends(board, name, error, kept):
    """A stream has ended with an error of libusb, after `kept` records that had come."""
    if kept:
        assert len(board.receive(name)) == kept
    with pytest.raises(UsbError) as caught:
        board.receive(name)
    message = str(caught.value)
    assert message.startswith("usb:")
    assert "\n" not in message
    if error is usb1.USBErrorNoDevice:
        assert isinstance(caught.value, Unplugged)
    elif error is usb1.USBErrorAccess:
        assert isinstance(caught.value, NoPermission)
    else:
        assert error.__name__ in message


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_errors_while_running(error):
    """Every error of libusb where a transfer is queued again, sent, or events are handled."""
    unplugged = error is usb1.USBErrorNoDevice

    def rest(board):
        if unplugged:
            with pytest.raises(Unplugged):
                board.run()
        else:
            board.run()

    context = receiver_context()
    with opened(context) as board:
        # Of three transfers queued ahead, the first cannot be queued again: what they brought
        # stays, without a gap, and nothing more comes.
        context.errors["submit", GATED].append(error())
        context.statuses.clear()
        tags(board, 2_000)
        rest(board)
        ends(board, "gated", error, 3 * 512 // board.streams["gated"].record.bytes)
        if unplugged:
            ends(board, "histogram", error, 0)
        else:
            assert len(board.receive("histogram")) == 0
    context = receiver_context()
    with opened(context) as board:
        context.errors["submit", endpoints(Role.RECEIVER)["coins"]].append(error())
        coins = zeros(board.streams["coins"].record, 100)
        board.send("coins", coins)
        with pytest.raises(UsbError):
            board.send("coins", coins)
        rest(board)
    context = receiver_context()
    with opened(context) as board:
        tags(board, 50)
        board.run()
        context.errors["events"].append(error())
        rest(board)
        kept = 50 - 1  # the last one waits in the tag path for the one after it
        assert 0 < len(before := board.receive("gated")) <= kept + 1
        if error is usb1.USBErrorInterrupted:
            tags(board, 50, seed=3)
            board.run()
            assert len(board.receive("gated"))
        else:
            ends(board, "gated", error, 0)
        assert len(before)


def test_what_had_come_of_each_transfer_is_kept():
    """The plug is pulled with transfers under way on two streams: whole records of both stay."""
    context = receiver_context()
    device = context.devices[0]
    with opened(context) as board:
        gated, histogram = (board.streams[name].record.bytes for name in ("gated", "histogram"))
        device.outgoing["gated"] += bytes(2 * gated + 5)
        device.outgoing["histogram"] += bytes(100 * histogram + 1)
        device.present = False
        with pytest.raises(Unplugged):
            board.run()
        assert len(board.receive("gated")) == 2
        assert len(board.receive("histogram")) == 100
        for name in ("gated", "histogram"):
            with pytest.raises(Unplugged):
                board.receive(name)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_errors_while_resuming(error):
    """A board that is back but cannot be opened yet is tried again; the reason is told."""
    context = receiver_context()
    device = context.devices[0]
    with opened(context) as board:
        device.present = False
        with pytest.raises(Unplugged):
            board.run()
        device.power_up()
        device.present = True
        context.errors["open"].append(error())
        with pytest.raises(NoBoard, match="not plugged in again") as caught:
            board.resume(wait_s=0)
        if error is usb1.USBErrorAccess:
            assert "keyrail install-udev" in str(caught.value)
        elif error is not usb1.USBErrorNoDevice:
            assert error.__name__ in str(caught.value)
        context.errors["open"].append(error())
        assert board.resume(wait_s=5) == {}
        assert board.segment == 1
        tags(board, 100)
        board.run()
        assert len(board.receive("gated"))


def test_a_board_that_comes_back_with_another_contract():
    context = receiver_context()
    device = context.devices[0]
    with opened(context) as board:
        device.present = False
        with pytest.raises(Unplugged):
            board.run()
        device.power_up()
        device.words, device.present = {2: 1}, True
        with pytest.raises(ContractMismatch, match="keyrail build BOARD receiver"):
            board.resume(wait_s=0)
        assert device.closed
        device.words = {}
        board.resume(wait_s=0)
        assert board.read("role") == Role.RECEIVER


def test_watch_tells_what_comes_and_goes(monkeypatch):
    context = Context((Role.RECEIVER, 1, 0xABC), (Role.SENDER, 2, 0xDEF))
    monkeypatch.setattr(keyrail.usb, "load_libusb", lambda: usb1)
    seen = keyrail.usb.watch(SETTINGS, period_s=0.001, context=context)
    came, went = next(seen)
    assert [one.name for one in came] == ["usb:0000000000000abc", "usb:0000000000000def"]
    assert went == []
    context.devices[0].present = False
    came, went = next(seen)
    assert (came, [one.serial for one in went]) == ([], [f"{0xABC:016x}"])
    context.devices[0].present = True
    came, went = next(seen)
    assert ([one.role for one in came], went) == ([Role.RECEIVER], [])


def test_light_at_inputs_of_its_own_keeps_no_receiver_from_rest():
    """Time records come for ever; a board that is fed by the host is at work as long as they do."""
    context = receiver_context()
    (device,) = context.devices
    settings = replace(SETTINGS, quiet_s=0.02, rest_s=0.2)
    record = bytes(device.model.streams["gated"].record.bytes)
    step = device.step

    def lit():
        device.outgoing["gated"] += record
        return step()

    device.step = lit
    with opened(context, settings=settings) as board, pytest.raises(BoardError, match="at work"):
        board.run()
    device.words[device.model.registers["inputs"].offset] = 6
    with opened(context, settings=settings) as board:
        board.run()
        assert len(board.receive("gated")) > 1


def test_unplugged_in_mid_run():
    """What came is kept, every stream ends with an error, and plugging in resumes."""
    context = receiver_context()
    device = context.devices[0]
    with opened(context) as board:
        tags(board, 1_000)
        board.run()
        tags(board, 1_000, seed=2)
        board._pump(0)
        device.present = False
        with pytest.raises(Unplugged):
            board.run()
        kept = board.receive("gated")
        assert len(kept) > 100
        with pytest.raises(Unplugged, match="unplugged"):
            board.receive("gated")
        with pytest.raises(Unplugged):
            board.receive("histogram")
        with pytest.raises(Unplugged):
            board.read("role")
        with pytest.raises(Unplugged):
            board.send("coins", zeros(board.streams["coins"].record, 1))
        with pytest.raises(NoBoard, match="not plugged in again"):
            board.resume(wait_s=0)
        device.power_up()
        device.present = True
        assert board.resume(wait_s=1) == {}
        assert board.segment == 1
        tags(board, 100)
        board.run()
        assert len(board.receive("gated"))


def test_resume_returns_what_was_not_taken():
    context = receiver_context()
    device = context.devices[0]
    with opened(context) as board:
        tags(board, 1_000)
        board.run()
        device.present = False
        with pytest.raises(Unplugged):
            board.run()
        device.power_up()
        device.present = True
        left = board.resume(wait_s=1)
        assert set(left) == {"gated"}
        assert left["gated"].size % board.streams["gated"].record.bytes == 0


def test_another_board_comes_back():
    context = Context((Role.RECEIVER, 1, 0xABC), (Role.SENDER, 2, 0xDEF))
    with opened(context, "usb:bob") as board:
        context.devices[0].present = False
        with pytest.raises(Unplugged):
            board.run()
        with pytest.raises(NoBoard):
            board.resume(wait_s=0)
        context.devices[0].role = Role.SENDER
        context.devices[0].power_up()
        context.devices[0].present = True
        with pytest.raises(UsbError, match="came back as a sender"):
            board.resume(wait_s=0)


def test_choice():
    context = Context((Role.RECEIVER, 1, 0xABC), (Role.SENDER, 2, 0))
    for name, role in (
        ("usb:abc", Role.RECEIVER),
        ("usb:0000000000000ABC", Role.RECEIVER),
        ("usb:3-1.2", Role.SENDER),
        ("usb:alice", Role.SENDER),
        ("usb:receiver", Role.RECEIVER),
    ):
        with opened(context, name) as board:
            assert board.role is role
    with pytest.raises(NoBoard, match=r"usb:0000000000000abc, usb:3-1\.2"):
        opened(context)
    with pytest.raises(NoBoard, match="no such board"):
        opened(context, "usb:123")
    with pytest.raises(NoBoard, match="is it powered"):
        opened(Context())
    context.devices[1].vendor = 0x1234
    with opened(context) as board:
        assert board.role is Role.RECEIVER


def test_wrong_contract():
    context = receiver_context()
    context.devices[0].words = {2: 0x1234_5678, 3: 0x9ABC_DEF0}
    with pytest.raises(ContractMismatch) as caught:
        opened(context)
    message = str(caught.value)
    assert "9abcdef012345678" in message
    assert f"{CONTRACT_HASH:016x}" in message
    assert f"{CONTRACT_VERSION} (" in message
    assert "keyrail build BOARD receiver" in message
    (found,) = devices(SETTINGS, usb1, context)
    assert found.problem == message.replace("usb:", "usb:3-1.1", 1)


def test_no_keyrail_board():
    context = receiver_context()
    context.devices[0].words = {0: 0}
    with pytest.raises(UsbError, match="no Keyrail board"):
        opened(context)


def test_settings():
    for wrong in (
        {"in_bytes": 100},
        {"out_bytes": 0},
        {"in_depth": 0},
        {"out_depth": 1000},
        {"control_ms": 0},
        {"quiet_s": 0},
        {"identifiers": ((0, 1),)},
    ):
        with pytest.raises(SettingError):
            UsbSettings(**wrong)
    with opened(receiver_context()) as board:
        board.set_flush_time(250)
        assert board._handle.flush_us == 250
        for wrong_time in (1, 1 << 16):
            with pytest.raises(SettingError):
                board.set_flush_time(wrong_time)
    with pytest.raises(BoardError, match="closed"):
        board.read("role")


def test_command_line(monkeypatch, tmp_path):
    context = Context((Role.RECEIVER, 1, 0xABC))
    monkeypatch.setattr(keyrail.usb, "devices", lambda *_: devices(SETTINGS, usb1, context))
    run = CliRunner().invoke
    shown = run(cli, ["devices"])
    assert shown.exit_code == 0
    assert "usb:0000000000000abc" in shown.output
    assert "receiver" in shown.output
    context.devices.clear()
    assert "No board" in run(cli, ["devices"]).output
    dry = run(cli, ["install-udev", "--dry-run"])
    assert 'ATTR{idVendor}=="1209"' in dry.output
    assert not list(tmp_path.iterdir())
    written = run(cli, ["install-udev", "--folder", str(tmp_path)])
    assert written.exit_code == 0
    assert (tmp_path / keyrail.usb.UDEV_FILE).read_text() == keyrail.usb.udev_rule()
    missing = run(cli, ["install-udev", "--folder", str(tmp_path / "no")])
    assert isinstance(missing.exception, KeyrailError)
    assert "sudo keyrail install-udev" in str(missing.exception)


def test_real_libusb():
    """libusb from the system or from a wheel loads, and lists nothing where nothing is."""
    module = keyrail.usb.load_libusb()
    assert module.getVersion().major == 1
