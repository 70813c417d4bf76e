# SPDX-License-Identifier: Apache-2.0
"""Packets a microframe through the USB core on the bus model, and how long data wait for one."""

from __future__ import annotations

from typing import Any

import numpy as np

from keyrail.contract import (
    USB_FLUSH_US,
    USB_PACKET_HIGH,
    Direction,
    Role,
    VendorRequest,
    endpoints,
    streams,
)
from keyrail_sim.usb_bus import CLOCK, UsbBus

ROLE = Role.RECEIVER
NAMES = ("tags", "coins", "gated", "announcements")
"""Streams of the device that is measured: two in each direction, records of 1 to 12 bytes."""
MOST = 13
"""Packets of 512 bytes that fit a microframe at most (USB 2.0, table 5-10)."""
WARM, COUNTED = 4, 40
_FULL = 0xFFFF
_STEP = 0x9E37_79B9_7F4A_7C15


class _Device:
    """The traffic generator on the bus, its streams by name."""

    def __init__(self, bus: UsbBus, role: Role = ROLE, names: tuple[str, ...] = NAMES) -> None:
        self.bus = bus
        described = {n: s for n, s in streams(role).items() if not names or n in names}
        self.place = {name: 16 * i for i, name in enumerate(described)}
        self.bytes = {name: s.record.bytes for name, s in described.items()}
        self.address = {name: endpoints(role)[name] for name in described}
        self.to_host = [n for n, s in described.items() if s.direction is Direction.TO_HOST]
        self.to_board = [n for n in described if n not in self.to_host]
        bus.plug()
        bus.enumerate()

    def write(self, offset: int, *words: int) -> None:
        data = b"".join(word.to_bytes(4, "little") for word in words)
        self.bus.control_out(0x40, VendorRequest.REGISTERS, 0, offset, data)

    def read(self, offset: int, count: int) -> list[int]:
        data = self.bus.control_in(0xC0, VendorRequest.REGISTERS, 0, offset, 4 * count)
        return [int.from_bytes(data[i : i + 4], "little") for i in range(0, len(data), 4)]

    def renew(self) -> None:
        """Empty buffers, numbers from 0, nothing queued."""
        self.bus.configure()
        self.write(0xF000, 1)
        for place in self.place.values():
            self.write(place + 1, _FULL)
        self.bus.idle(6_000)
        for address in self.address.values():
            self.bus.open_endpoint(address)
        self.bus.completed()

    def content(self, name: str, first: int, count: int) -> bytes:
        size = self.bytes[name]
        return b"".join(
            (k * _STEP % (1 << 8 * size)).to_bytes(size, "little")
            for k in range(first, first + count)
        )


def _stream(
    device: _Device, active: list[str], shares: dict[str, int], damage: float
) -> dict[str, Any]:
    """Run the named streams for a while; packets and bytes a microframe of each."""
    bus = device.bus
    device.renew()
    sent = dict.fromkeys(active, 0)
    came = {name: bytearray() for name in active}
    owner: dict[int, str] = {}

    def queue(name: str) -> None:
        if name in device.to_host:
            owner[bus.submit(device.address[name], 16_384)] = name
        else:
            count = 16_384 // device.bytes[name]
            data = device.content(name, sent[name], count)
            sent[name] += count
            owner[bus.submit(device.address[name], data)] = name

    for name in active:
        device.write(device.place[name], (1 << 32) - 1, shares.get(name, _FULL))
        for _ in range(4):
            queue(name)
    before = {}
    bus.damage(7, damage, damage, damage)
    for frame in range(WARM + COUNTED):
        if frame == WARM:
            before = {name: bus.counts(device.address[name]) for name in active}
        bus.run(1)
        for done in bus.completed():
            name = owner.pop(done.identifier)
            came[name] += done.data
            queue(name)
    after = {name: bus.counts(device.address[name]) for name in active}
    bus.damage(0)
    for name in active:
        if name in device.to_host:
            whole = len(came[name]) // device.bytes[name]
            wanted = device.content(name, 0, whole)
            if bytes(came[name][: len(wanted)]) != wanted:
                raise RuntimeError(f"{name}: what came is not what was sent")
        elif device.read(device.place[name] + 3, 1) != [0]:
            raise RuntimeError(f"{name}: what arrived is not what was sent")
    rows = {
        name: {
            "packets_per_microframe": round(
                (after[name].packets - before[name].packets) / COUNTED, 2
            ),
            "bytes_per_microframe": round((after[name].bytes - before[name].bytes) / COUNTED),
            "naks": after[name].naks - before[name].naks,
            "repeated": after[name].repeats - before[name].repeats,
        }
        for name in active
    }
    total = sum(after[n].bytes - before[n].bytes for n in active) / COUNTED
    return {
        "streams": rows,
        "packets_per_microframe": round(
            sum(row["packets_per_microframe"] for row in rows.values()), 2
        ),
        "share_of_13_x_512": round(total / (MOST * USB_PACKET_HIGH), 3),
    }


def _latency(device: _Device, flush_us: int, tries: int) -> dict[str, Any]:
    """Time from the last of three records to the end of their packet on the bus."""
    bus, name = device.bus, device.to_host[0]
    device.renew()
    bus.control_out(0x40, VendorRequest.FLUSH, flush_us, 0)
    rng = np.random.default_rng(1)
    waits = []
    bus.submit(device.address[name], 512)
    for i in range(tries):
        bus.idle(int(rng.integers(0, 2 * flush_us * 60)))
        device.write(device.place[name], 3 * (i + 1))
        began = bus.now
        while not bus.run(1, stop=True):
            if bus.now - began > CLOCK // 100:
                raise RuntimeError("the packet does not leave")
        (done,) = bus.completed()
        if len(done.data) != 3 * device.bytes[name]:
            raise RuntimeError("the packet is not whole")
        waits.append((bus.counts(device.address[name]).last_packet - began) / CLOCK * 1e6)
        bus.submit(device.address[name], 512)
    return {
        "flush_us": flush_us,
        "packets": tries,
        "shortest_us": round(min(waits)),
        "mean_us": round(float(np.mean(waits))),
        "longest_us": round(max(waits)),
    }


def _station(role: Role) -> list[dict[str, Any]]:
    """Every stream of a station at once: all of them full, then starved ones among them."""
    results = []
    with UsbBus("traffic", role) as bus:
        device = _Device(bus, role, ())
        everything = [*device.to_host, *device.to_board]
        # One record in some 2,000 clocks: partly filled packets and NAK from half of the streams.
        slow = dict.fromkeys(everything[::2], 32)
        for case, shares, damage in (
            ("all streams", {}, 0.0),
            ("all streams, every other one slow", slow, 0.0),
            ("all streams, 1 % of packets damaged", {}, 0.01),
        ):
            row = {"case": case, "endpoints": len(everything)}
            results.append({**row, **_stream(device, everything, shares, damage)})
    return results


def figure() -> dict[str, Any]:
    """Streams alone and together, over the host's delays, starvation, damage; latency."""
    results: list[dict[str, Any]] = []

    def measure(case: str, active: list[str], **settings: Any) -> None:
        timing = {"turnaround": 8, "gap": 11, **settings.pop("timing", {})}
        damage = settings.pop("damage", 0.0)
        bus.timing(**timing)
        row = {
            "case": case,
            "host_turnaround_bits": 8 * timing["turnaround"],
            "host_gap_bits": 8 * timing["gap"],
        }
        if damage:
            row["damaged_share"] = damage
        results.append({**row, **_stream(device, active, settings.get("shares", {}), damage)})
        bus.timing()

    with UsbBus("traffic", ROLE, NAMES) as bus:
        device = _Device(bus)
        everything = [*device.to_host, *device.to_board]
        for name in everything:
            measure(f"{name} alone", [name])
        measure("streams to the host", device.to_host)
        measure("all streams", everything)
        for turnaround, gap in ((4, 11), (16, 11), (24, 11), (24, 24), (24, 48)):
            measure("all streams", everything, timing={"turnaround": turnaround, "gap": gap})
        starved = {"announcements": 2_000, "coins": 600}
        measure("all streams, two of them slow (random NAK)", everything, shares=starved)
        for damage in (0.01, 0.05):
            measure("all streams, damaged packets", everything, damage=damage)
        latency = [_latency(device, flush_us, 15) for flush_us in (USB_FLUSH_US, 1_000, 250)]
        slowest = bus.slowest
    stations = {role.name.lower(): _station(role) for role in Role}
    return {
        "device": f"USB core with the streams {', '.join(NAMES)}, ULPI at 60 MHz, station at "
        "100 MHz; records are compared at both ends",
        "host": "bus model, round robin over streams, one SOF a microframe, bit stuffing counted; "
        "PHY delays 2 clocks out and 4 in (ULPI 1.1); turn-around and gap as each row says "
        "(USB 2.0, 7.1.18.2: at most 192 and at least 88 bit times)",
        "microframes": COUNTED,
        "device_turnaround_bits": 8 * slowest,
        "results": results,
        "latency": latency,
        "stations": stations,
    }
