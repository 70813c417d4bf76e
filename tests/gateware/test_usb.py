# SPDX-License-Identifier: Apache-2.0
"""The USB device at its ULPI pins: enumeration, control transfers, errors, resets, bulk streams."""

import numpy as np
import pytest

from keyrail.contract import (
    CONTRACT_HASH,
    GATEWARE_VERSION,
    USB_FLUSH_US,
    USB_PRODUCT,
    USB_VENDOR,
    Role,
    VendorRequest,
    endpoints,
    streams,
)
from keyrail_sim.usb_bus import (
    MICROFRAME,
    Pid,
    Stalled,
    TransferStatus,
    UsbBus,
    data_packet,
    token,
)

pytestmark = pytest.mark.xdist_group("usb")

ROLE = Role.RECEIVER
NAMES = ("tags", "coins", "gated", "announcements")
PLACE = {name: i for i, name in enumerate(n for n in streams(ROLE) if n in NAMES)}
ADDRESS = {name: endpoints(ROLE)[name] for name in NAMES}
BYTES = {name: streams(ROLE)[name].record.bytes for name in NAMES}
STEP = 0x9E37_79B9_7F4A_7C15
ACK, NAK, STALL = b"\xd2", b"\x5a", b"\x1e"
WIPE, STATUS = 0xF000, 0xF001


@pytest.fixture(scope="module")
def plugged():
    with UsbBus("traffic", ROLE, NAMES) as bus:
        bus.plug()
        yield bus


@pytest.fixture
def raw(plugged):
    """The device before the host has reset it, or whatever another bench left."""
    yield plugged
    plugged.damage(0)
    plugged.device_address = 0  # the next bench enumerates it again


def enumerated(plugged):
    """The device enumerated at high speed, its buffers empty and its settings as after reset."""
    plugged.damage(0)
    if not (plugged.high_speed and plugged.device_address):
        plugged.enumerate()
    plugged.configure()
    write(plugged, WIPE, 1)
    for place in PLACE.values():
        write(plugged, 16 * place + 1, 0xFFFF)
    plugged.control_out(0x40, VendorRequest.FLUSH, USB_FLUSH_US, 0)
    plugged.idle(6_000)
    plugged.completed()
    for address in ADDRESS.values():
        plugged.open_endpoint(address)
    return plugged


@pytest.fixture
def bus(plugged):
    """A device that other benches have used too."""
    return enumerated(plugged)


@pytest.fixture
def fresh_bus():
    """A device of its own: when packets are sent, and so which are lost, depends on this bench."""
    with UsbBus("traffic", ROLE, NAMES) as plugged:
        plugged.plug()
        yield enumerated(plugged)


def write(bus, offset, *words):
    data = b"".join(word.to_bytes(4, "little") for word in words)
    bus.control_out(0x40, VendorRequest.REGISTERS, 0, offset, data)


def read(bus, offset, count=1):
    data = bus.control_in(0xC0, VendorRequest.REGISTERS, 0, offset, 4 * count)
    words = [int.from_bytes(data[i : i + 4], "little") for i in range(0, len(data), 4)]
    return words[0] if count == 1 else words


def source(bus, name, records, share=0xFFFF):
    write(bus, 16 * PLACE[name], records, share)


def expected(name, first, count):
    """Bytes of records `first` on, as the traffic generator makes them."""
    size = BYTES[name]
    return b"".join(
        (k * STEP % (1 << 8 * size)).to_bytes(size, "little") for k in range(first, first + count)
    )


def passed(bus, name):
    return read(bus, 16 * PLACE[name] + 2, 2)


def take(bus, name, length, size=4096, frames=400):
    """Take `length` bytes of a stream in transfers of `size`."""
    data = b""
    while len(data) < length:
        bus.submit(ADDRESS[name], size)
        assert bus.run(frames, stop=True), "nothing came"
        (done,) = bus.completed()
        assert done.status is TransferStatus.DONE
        data += done.data
    return data


def test_high_speed_and_descriptors(bus):
    """Chirp, address, and every descriptor of chapter 9, in any length that is asked for."""
    assert bus.high_speed
    device = bus.control_in(0x80, 6, 0x0100, 0, 18)
    assert len(device) == device[0] == 18
    assert device[1] == 1
    assert int.from_bytes(device[2:4], "little") >= 0x0201
    assert device[7] == 64
    assert int.from_bytes(device[8:10], "little") == USB_VENDOR
    assert int.from_bytes(device[10:12], "little") == USB_PRODUCT
    assert bus.control_in(0x80, 6, 0x0100, 0, 8) == device[:8]
    configuration = bus.control_in(0x80, 6, 0x0200, 0, 9)
    total = int.from_bytes(configuration[2:4], "little")
    whole = bus.control_in(0x80, 6, 0x0200, 0, 1024)
    assert len(whole) == total
    assert whole[:9] == configuration
    found, at = {}, 0
    while at < len(whole):
        size, kind = whole[at], whole[at + 1]
        if kind == 5:
            found[whole[at + 2]] = int.from_bytes(whole[at + 4 : at + 6], "little")
            assert whole[at + 3] == 2  # bulk
        at += size
    assert at == len(whole)
    assert found == dict.fromkeys(ADDRESS.values(), 512)
    other = bus.control_in(0x80, 6, 0x0700, 0, 1024)
    assert other[1] == 7
    assert other[-3:-1] == (64).to_bytes(2, "little")
    qualifier = bus.control_in(0x80, 6, 0x0600, 0, 10)
    assert qualifier[:2] == b"\x0a\x06"
    texts = [
        bus.control_in(0x80, 6, 0x0300 | i, 0x0409, 255)[2:].decode("utf-16-le")
        for i in range(1, 6)
    ]
    assert texts[0] == "Keyrail"
    assert "receiver" in texts[1]
    assert texts[2] == "0123456789abcdef"
    assert f"{CONTRACT_HASH:016x} gateware {GATEWARE_VERSION}" in texts[3]
    # USB 2.0, 7.1.18.2: a device answers within 192 bit times, 24 clocks of 8 bits.
    assert 1 <= bus.slowest <= 24


def test_windows_needs_no_driver(bus):
    """The BOS descriptor leads to an MS OS 2.0 descriptor set that names WinUSB."""
    bos = bus.control_in(0x80, 6, 0x0F00, 0, 255)
    assert len(bos) == int.from_bytes(bos[2:4], "little")
    at = bos.index(bytes.fromhex("df60ddd88945c74c9cd2659d9e648a9f"))
    length, code = int.from_bytes(bos[at + 20 : at + 22], "little"), bos[at + 22]
    assert code == VendorRequest.WINDOWS
    found = bus.control_in(0xC0, code, 0, 7, length)
    assert len(found) == length == int.from_bytes(found[8:10], "little")
    kinds, at = [], 0
    while at < length:
        size, kind = (int.from_bytes(found[at + i : at + i + 2], "little") for i in (0, 2))
        kinds.append(kind)
        at += size
    assert at == length
    assert kinds == [0, 3, 4]
    assert b"WINUSB\0\0" in found
    assert "DeviceInterfaceGUIDs\0".encode("utf-16-le") in found


def test_requests_of_chapter_nine(bus):
    halted = ADDRESS["gated"]
    assert bus.control_in(0x80, 0, 0, 0, 2) == b"\0\0"
    assert bus.control_in(0x81, 0, 0, 0, 2) == b"\0\0"
    assert bus.control_in(0x80, 8, 0, 0, 1) == b"\x01"
    assert bus.control_in(0x81, 10, 0, 0, 1) == b"\0"
    bus.control_out(0x01, 11, 0, 0)
    bus.control_out(0x02, 3, 0, halted)
    assert bus.control_in(0x82, 0, 0, halted, 2) == b"\x01\0"
    assert bus.transaction_in(halted & 15) == STALL
    bus.control_out(0x02, 1, 0, halted)
    assert bus.control_in(0x82, 0, 0, halted, 2) == b"\0\0"
    assert bus.transaction_in(halted & 15) == NAK
    out = ADDRESS["tags"]
    bus.control_out(0x02, 3, 0, out)
    assert bus.transaction_out(Pid.OUT, out, b"", 0) == STALL
    bus.control_out(0x02, 1, 0, out)
    bus.control_out(0x00, 9, 0, 0)
    assert bus.control_in(0x80, 8, 0, 0, 1) == b"\0"
    with pytest.raises(Stalled):
        bus.control_in(0x82, 0, 0, halted, 2)


@pytest.mark.parametrize("which", [0, 1])
def test_wrong_requests_are_refused(bus, which):
    """Requests that make no sense: a stall, and the next request works."""
    reads = [
        (0x80, 6, 0x0900, 0, 64),  # no such descriptor
        (0x80, 6, 0x0306, 0x409, 64),  # no such string
        (0x80, 6, 0x0201, 0, 64),
        (0x80, 0x55, 0, 0, 4),
        (0x82, 0, 0, 0x8E, 2),  # no such endpoint
        (0x81, 0, 0, 3, 2),  # no such interface
        (0x80, 12, 0, 0, 2),  # SYNCH_FRAME
        (0xC0, VendorRequest.REGISTERS, 0, 0, 6),
        (0xC0, VendorRequest.REGISTERS, 0, 0, 68),
        (0xC0, VendorRequest.WINDOWS, 0, 4, 10),
        (0xA1, VendorRequest.REGISTERS, 0, 0, 4),  # class, not vendor
        (0xC0, 99, 0, 0, 4),
    ]
    writes = [
        (0x00, 9, 2, 0, b""),  # no such configuration
        (0x00, 5, 128, 0, b""),  # no such address
        (0x01, 11, 1, 0, b""),  # no such setting
        (0x02, 3, 0, 0x8E, b""),
        (0x00, 3, 1, 0, b""),  # remote wake-up
        (0x40, VendorRequest.REGISTERS, 0, 0, b"123"),
        (0x40, VendorRequest.REGISTERS, 0, 0, b""),
        (0x40, VendorRequest.FLUSH, 1, 0, b""),
        (0x00, 7, 0x100, 0, b"12345678"),  # SET_DESCRIPTOR
    ]
    if which:
        for request in reads:
            with pytest.raises(Stalled):
                bus.control_in(*request)
            assert bus.control_in(0x80, 8, 0, 0, 1) == b"\x01"
    else:
        for request in writes:
            with pytest.raises(Stalled):
                bus.control_out(*request)
            assert bus.control_in(0x80, 8, 0, 0, 1) == b"\x01"


def test_registers(bus):
    """One to sixteen words a request; a write has taken effect when its request ends."""
    place = 16 * PLACE["gated"]
    assert read(bus, place, 4) == [0, 0xFFFF, 0, 0]
    write(bus, place + 1, 0x1234)
    assert read(bus, place, 2) == [0, 0x1234]
    write(bus, place, 0, 0xFFFF)
    assert read(bus, place, 16)[:2] == [0, 0xFFFF]
    write(bus, 0xE000, *range(16))
    assert read(bus, 0xE000, 16) == [0] * 16
    assert bus.control_in(0xC0, VendorRequest.FLUSH, 0, 0, 2) == USB_FLUSH_US.to_bytes(2, "little")
    bus.control_out(0x40, VendorRequest.FLUSH, 300, 0)
    assert bus.control_in(0xC0, VendorRequest.FLUSH, 0, 0, 2) == (300).to_bytes(2, "little")


def header(kind, request, value, index, length):
    return bytes((kind, request)) + b"".join(
        x.to_bytes(2, "little") for x in (value, index, length)
    )


def test_aborted_control_transfers(bus):
    """A SETUP ends whatever was under way, at every point of it (8.5.3.1)."""
    device = header(0x80, 6, 0x0100, 0, 18)
    configuration = header(0x80, 6, 0x0200, 0, 255)
    place = 16 * PLACE["gated"] + 1
    value = header(0x40, VendorRequest.REGISTERS, 0, place, 4)

    def works():
        assert bus.control_in(0x80, 8, 0, 0, 1) == b"\x01"
        assert read(bus, place) == 0xFFFF

    bus.setup(device)  # no data stage at all
    works()
    bus.setup(configuration)
    bus.transaction_in(0)  # the first of several packets
    works()
    bus.setup(configuration)
    bus.transaction_in(0, ack=False)
    works()
    bus.setup(device)
    bus.transaction_in(0)  # no status stage
    works()
    bus.setup(header(0x00, 9, 0, 0, 0))  # SET_CONFIGURATION without its status stage
    works()
    bus.setup(value)
    assert bus.transaction_out(Pid.OUT, 0, b"\1\0\0\0", 1) == ACK  # written, but not ended
    works()
    for _ in range(3):
        bus.setup(device)
    works()
    # A data stage shorter or longer than announced changes nothing.
    bus.setup(value)
    assert bus.transaction_out(Pid.OUT, 0, b"\1\0\0", 1) == ACK
    assert bus.transaction_in(0) == STALL
    works()
    bus.setup(value)
    assert bus.transaction_out(Pid.OUT, 0, b"\1\0\0\0\0", 1) == ACK
    assert bus.transaction_in(0) == STALL
    works()
    bus.setup(value)
    assert bus.transaction_in(0) == STALL
    works()


def test_malformed_packets(bus):
    """Damaged packets get no answer, and do nothing."""
    address = bus.device_address
    good = token(Pid.SETUP, address, 0)
    setup = data_packet(Pid.DATA0, header(0x80, 8, 0, 0, 1))
    silent = [
        [good[:2]],
        [bytes((good[0] ^ 0x10, *good[1:]))],  # identifier and its complement disagree
        [bytes((*good[:2], good[2] ^ 0x80)), setup],  # checksum of the token
        [good, setup[:-1] + bytes((setup[-1] ^ 1,))],  # checksum of the data
        [good, data_packet(Pid.DATA0, b"1234567")],  # a SETUP has eight bytes
        [good, data_packet(Pid.DATA0, b"123456789")],
        [good, data_packet(Pid.DATA1, setup[1:-2])],  # and is DATA0
        [good, setup[:1]],
        [token(Pid.SETUP, address ^ 1, 0), setup],  # for another device
        [token(Pid.IN, address ^ 1, 0)],
        [token(Pid.IN, address, 9)],  # no such endpoint
        [setup],  # data without a token... of whatever came last
        [b"\xff"],
        [bytes(range(60))],
    ]
    for packets in silent:
        for packet in packets:
            bus.send(packet)
        assert bus.receive() is None, packets
        assert bus.control_in(0x80, 8, 0, 0, 1) == b"\x01"


def test_lost_packets_of_control_transfers(bus):
    """Packets and handshakes that get lost are repeated, and count once."""
    bus.setup(header(0x80, 6, 0x0200, 0, 255))
    first = bus.transaction_in(0, ack=False)
    assert bus.transaction_in(0, ack=False) == first
    assert bus.transaction_in(0) == first
    second = bus.transaction_in(0)
    assert second[0] != first[0]
    # Status stage: the device's ACK gets lost, the host repeats itself.
    assert bus.transaction_out(Pid.OUT, 0, b"", 1) == ACK
    assert bus.transaction_out(Pid.OUT, 0, b"", 1) == ACK
    # Data to the device: its ACK gets lost.
    place = 16 * PLACE["gated"] + 1
    bus.setup(header(0x40, VendorRequest.REGISTERS, 0, place, 4))
    for _ in range(2):
        assert bus.transaction_out(Pid.OUT, 0, b"\x34\x12\0\0", 1) == ACK
    answers = [bus.transaction_in(0, ack=False) for _ in range(50)]
    assert set(answers) <= {NAK, data_packet(Pid.DATA1, b"")}
    assert answers[-1] == data_packet(Pid.DATA1, b"")
    assert bus.transaction_in(0) == data_packet(Pid.DATA1, b"")
    assert read(bus, place) == 0x1234


def test_ack_for_another_device(bus):
    """An ACK that answers another device's packet on the same hub is not ours."""
    source(bus, "gated", 10)
    bus.idle(2 * USB_FLUSH_US * 60)
    endpoint = ADDRESS["gated"] & 15
    packet = bus.transaction_in(endpoint, ack=False)
    assert packet[1:-2] == expected("gated", 0, 10)
    # The host found it damaged and asks another device at once; that one's data is not heard here.
    bus.send(token(Pid.IN, 99, 1))
    bus.idle(20)
    bus.send(ACK)
    assert bus.transaction_in(endpoint) == packet
    assert bus.transaction_in(endpoint) == NAK


def test_data_toggles(bus):
    """Repeated packets count once in both directions (8.6)."""
    tags, gated = ADDRESS["tags"], ADDRESS["gated"] & 15
    data = expected("tags", 0, 4)
    assert bus.transaction_out(Pid.OUT, tags, data, 0) == ACK
    assert bus.transaction_out(Pid.OUT, tags, data, 0) == ACK  # as if the ACK was lost
    assert bus.transaction_out(Pid.OUT, tags, expected("tags", 4, 2), 1) == ACK
    assert bus.transaction_out(Pid.OUT, tags, b"", 0) == ACK
    assert bus.transaction_out(Pid.OUT, tags, expected("tags", 6, 1), 1) == ACK
    bus.idle(500)
    assert passed(bus, "tags") == [7, 0]
    source(bus, "gated", 5)
    bus.idle(2 * USB_FLUSH_US * 60)
    packets = [bus.transaction_in(gated, ack=False) for _ in range(3)]
    assert packets[0][0] == 0xC3
    assert len(set(packets)) == 1
    assert bus.transaction_in(gated) == packets[0]
    source(bus, "gated", 6)
    bus.idle(2 * USB_FLUSH_US * 60)
    packet = bus.transaction_in(gated)
    assert packet[0] == 0x4B
    assert packet[1:-2] == expected("gated", 5, 1)
    # A new configuration begins with DATA0, and without what was left over.
    source(bus, "gated", 9)
    bus.idle(2 * USB_FLUSH_US * 60)
    bus.configure()
    source(bus, "gated", 10)
    bus.idle(2 * USB_FLUSH_US * 60)
    packet = bus.transaction_in(gated)
    assert packet[0] == 0xC3
    assert packet[1:-2] == expected("gated", 9, 1)


def test_packets_too_long(bus):
    """A packet beyond the largest size is no packet: no answer, nothing taken."""
    tags = ADDRESS["tags"]
    assert bus.transaction_out(Pid.OUT, tags, bytes(520), 0) is None
    assert bus.transaction_out(Pid.OUT, tags, expected("tags", 0, 1), 0) == ACK
    bus.idle(500)
    assert passed(bus, "tags") == [1, 0]


def test_full_buffer_answers_nak_and_ping(bus):
    """A station that does not take: NAK, PING answers NAK, and nothing is lost (8.5.1)."""
    tags = ADDRESS["tags"]
    write(bus, 16 * PLACE["tags"] + 1, 0)  # the sink takes next to nothing
    packet = 512 // BYTES["tags"] * BYTES["tags"]
    sent = toggle = 0
    for _ in range(20):
        data = expected("tags", sent, packet // BYTES["tags"])
        answer = bus.transaction_out(Pid.OUT, tags, data, toggle)
        if answer == NAK:
            break
        assert answer == ACK
        sent, toggle = sent + packet // BYTES["tags"], toggle ^ 1
    else:
        raise AssertionError("the buffer has no end")
    bus.send(token(Pid.PING, bus.device_address, tags))
    assert bus.receive() == NAK
    write(bus, 16 * PLACE["tags"] + 1, 0xFFFF)
    bus.idle(6_000)
    bus.send(token(Pid.PING, bus.device_address, tags))
    assert bus.receive() == ACK
    assert bus.transaction_out(Pid.OUT, tags, data, toggle) == ACK
    bus.idle(3_000)
    assert passed(bus, "tags") == [sent + packet // BYTES["tags"], 0]


def test_flush_time(bus):
    """A partly filled packet leaves within its time, whole records; a full last one is ended."""
    endpoint = ADDRESS["gated"] & 15
    assert USB_FLUSH_US < 1_000  # a millisecond at most, unless the host sets it otherwise
    for time_us in (USB_FLUSH_US, 300):
        bus.control_out(0x40, VendorRequest.FLUSH, time_us, 0)
        for _ in range(3):
            before = passed(bus, "gated")[0]
            write(bus, 16 * PLACE["gated"], before + 3)
            began = bus.now
            while (packet := bus.transaction_in(endpoint)) == NAK:
                assert bus.now - began < time_us * 60 + 1_000  # 17 us: the polling itself
            assert packet[1:-2] == expected("gated", before, 3)
            assert bus.now - began >= 0.3 * time_us * 60
    # So many records that the last packet is full: an empty one follows.
    before = passed(bus, "gated")[0]
    records = 512 // BYTES["gated"] if 512 % BYTES["gated"] == 0 else 512
    assert records * BYTES["gated"] % 512 == 0
    write(bus, 16 * PLACE["gated"], before + records)
    data, ends = b"", 0
    for _ in range(4_000):
        packet = bus.transaction_in(endpoint)
        if packet != NAK:
            data += packet[1:-2]
            if len(packet) < 515:
                ends += 1
                break
    assert ends == 1
    assert data == expected("gated", before, records)


def test_wipe(bus):
    """After a wipe nothing of what was buffered leaves or arrives, and the streams go on."""
    gated, tags = ADDRESS["gated"] & 15, ADDRESS["tags"]
    write(bus, 16 * PLACE["tags"] + 1, 0)
    assert bus.transaction_out(Pid.OUT, tags, expected("tags", 5, 40), 0) == ACK
    source(bus, "gated", 200)
    bus.idle(2 * USB_FLUSH_US * 60)
    # One packet is under way, and its fate unknown to the device.
    assert len(bus.transaction_in(gated, ack=False)) > 3
    assert read(bus, STATUS) >> 1 == 1
    write(bus, WIPE, 1)
    for _ in range(200):
        if read(bus, STATUS) == 0:
            break
    assert read(bus, STATUS) == 0
    write(bus, 16 * PLACE["tags"] + 1, 0xFFFF)
    # An empty packet takes the place of the one in doubt, with its toggle.
    assert bus.transaction_in(gated) == data_packet(Pid.DATA0, b"")
    assert bus.transaction_in(gated) == NAK
    source(bus, "gated", 3)
    bus.idle(2 * USB_FLUSH_US * 60)
    packet = bus.transaction_in(gated)
    assert packet[0] == 0x4B
    assert packet[1:-2] == expected("gated", 0, 3)
    assert bus.transaction_out(Pid.OUT, tags, expected("tags", 0, 2), 1) == ACK
    bus.idle(1_000)
    assert passed(bus, "tags") == [2, 0]
    assert read(bus, STATUS) >> 1 == 1


def test_reset_in_mid_transfer(bus):
    """A bus reset while data flow: default state, and a clean start."""
    source(bus, "gated", 100_000)
    bus.submit(ADDRESS["gated"], 1 << 20)
    bus.submit(ADDRESS["tags"], expected("tags", 0, 1_000))
    bus.run(2)
    bus.send(token(Pid.IN, bus.device_address, ADDRESS["gated"] & 15))
    bus.idle(60)  # in the middle of its packet
    bus.reset()
    assert bus.high_speed
    # It answers at address 0 only, and is not configured.
    bus.send(token(Pid.IN, 5, 0))
    assert bus.receive() is None
    assert bus.control_in(0x80, 8, 0, 0, 1) == b"\0"
    bus.setup(header(0x80, 6, 0x0200, 0, 255))
    bus.transaction_in(0)
    bus.enumerate(9)
    write(bus, WIPE, 1)
    bus.idle(6_000)
    source(bus, "gated", 100)
    bus.idle(2 * USB_FLUSH_US * 60)
    packet = bus.transaction_in(ADDRESS["gated"] & 15)
    assert packet[0] == 0xC3
    assert packet[1:-2] == expected("gated", 0, 100)[:512]


def test_reset_in_mid_packet_from_the_host(bus):
    """A packet to the board that a reset cuts off leaves nothing behind."""
    tags = ADDRESS["tags"]
    bus.send(token(Pid.OUT, bus.device_address, tags))
    bus.send(data_packet(Pid.DATA0, expected("tags", 3, 9))[:-40])
    bus.reset()
    bus.enumerate(7)
    write(bus, WIPE, 1)
    bus.idle(6_000)
    assert bus.transaction_out(Pid.OUT, tags, expected("tags", 0, 2), 0) == ACK
    bus.idle(1_000)
    assert passed(bus, "tags") == [2, 0]


def test_suspend_and_resume(bus):
    """3 ms of silence suspend the device; it resumes as it was (7.1.7.6, 7.1.7.7)."""
    source(bus, "gated", 5)
    bus.idle(2 * USB_FLUSH_US * 60)
    first = bus.transaction_in(ADDRESS["gated"] & 15, ack=False)
    bus.line(0)
    bus.idle(182_000)  # it turns back to full speed terminations
    bus.line(1)
    bus.idle(30_000)
    assert not bus.high_speed
    bus.line(2)
    bus.idle(10_000)
    bus.line(0)
    bus.idle(3_000)
    assert bus.high_speed
    assert bus.control_in(0x80, 8, 0, 0, 1) == b"\x01"
    # What had been sent and not acknowledged is sent again, and the stream goes on behind it.
    assert bus.transaction_in(ADDRESS["gated"] & 15) == first
    source(bus, "gated", 8)
    bus.idle(2 * USB_FLUSH_US * 60)
    packet = bus.transaction_in(ADDRESS["gated"] & 15)
    assert packet[0] != first[0]
    assert packet[1:-2] == expected("gated", 5, 3)


def test_full_speed_host(raw):
    """A host that knows no high speed: 64-byte packets, and the same records."""
    raw.enumerate(high_speed=False)
    write(raw, WIPE, 1)
    raw.idle(6_000)
    assert not raw.high_speed
    whole = raw.control_in(0x80, 6, 0x0200, 0, 1024)
    assert whole[-3:-1] == (64).to_bytes(2, "little")
    for address in ADDRESS.values():
        raw.open_endpoint(address)
    write(raw, 16 * PLACE["gated"], 40)
    raw.submit(ADDRESS["tags"], expected("tags", 0, 60))
    raw.run(2)
    assert [done.status for done in raw.completed()] == [TransferStatus.DONE]
    assert passed(raw, "tags") == [60, 0]
    assert take(raw, "gated", 40 * BYTES["gated"]) == expected("gated", 0, 40)


@pytest.mark.parametrize("seed", range(2))
def test_streams_with_loss(fresh_bus, seed):
    """Random NAK, damage both ways and lost ACKs: every record once, in order."""
    bus = fresh_bus
    rng = np.random.default_rng(seed)
    counts = {"gated": 900, "announcements": 2_500, "tags": 900, "coins": 3_000}
    for name, count in counts.items():
        write(bus, 16 * PLACE[name], count, int(rng.integers(2_000, 20_000)))
    bus.damage(seed + 1, to_device=0.02, to_host=0.1, acks=0.2)
    asked, data = {}, {"gated": b"", "announcements": b""}
    for name in ("tags", "coins"):
        bus.submit(ADDRESS[name], expected(name, 0, counts[name]))
    for _ in range(400):
        for name in data:
            if name not in asked.values() and len(data[name]) < counts[name] * BYTES[name]:
                asked[bus.submit(ADDRESS[name], int(rng.integers(1, 9)) * 512)] = name
        bus.run(1)
        for done in bus.completed():
            assert done.status is TransferStatus.DONE
            name = asked.pop(done.identifier, None)
            if name is not None:
                data[name] += done.data
        sent = all(bus.counts(ADDRESS[n]).bytes == counts[n] * BYTES[n] for n in ("tags", "coins"))
        if sent and all(len(data[n]) == counts[n] * BYTES[n] for n in data):
            break
    for name, came in data.items():
        assert came == expected(name, 0, counts[name])
    # Ten packets of one stream may all be acknowledged; those of both are not.
    assert sum(bus.counts(ADDRESS[name]).repeats for name in data) > 0
    bus.damage(0)
    bus.idle(60_000)
    for name in ("tags", "coins"):
        assert passed(bus, name) == [counts[name], 0]
    assert sum(bus.counts(address).errors for address in ADDRESS.values()) > 0


def test_microframe_is_filled(bus):
    """Full buffers: at least 11 of 13 packets a microframe (USB 2.0, table 5-10)."""
    source(bus, "announcements", 1 << 31)
    source(bus, "gated", 1 << 31)
    for name in ("announcements", "gated"):
        for _ in range(4):
            bus.submit(ADDRESS[name], 1 << 16)
    bus.run(2)
    before = sum(bus.counts(ADDRESS[n]).packets for n in ("announcements", "gated"))
    bus.run(8)
    packets = sum(bus.counts(ADDRESS[n]).packets for n in ("announcements", "gated")) - before
    assert packets >= 11 * 8
    assert MICROFRAME == 7_500
