# SPDX-License-Identifier: Apache-2.0
"""Recorded tags of real detectors through the receiver's tag path: ``keyrail replay``."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from keyrail import acquire, board, recordings, tag_path
from keyrail.contract import (
    CHANNELS,
    GATED_TAG,
    PERIOD_FRACTION_BITS,
    Mode,
    TagKind,
)
from keyrail.errors import SettingError
from keyrail.layouts import Structured, pack

BACKENDS = {"rtl": "sim:bob", "model": "sim-model:bob"}
"""Boards by the name of the back end."""
NO_PULSES_PERIOD = 10_000 << PERIOD_FRACTION_BITS
"""Slot period where a recording has no pulses, ps in 20.44 fixed point."""
SLOT_OFFSETS = 8
"""Tags are counted by slot number modulo this: a sync divided by 8 shows as one full offset."""
CHUNK = 1 << 16
"""Records sent to the board at once."""


@dataclass
class Replay:
    """What a recording looks like behind the receiver's tag path.

    Attributes
    ----------
    recording
        What was read.
    acquisition
        Period and phase recovered from it; None if it shows no pulse period.
    note
        Why there is no period, or what to mind of it; else empty.
    period_ps
        Slot period used, ps: that of the pulses, or 10 ns where there are none.
    backend
        ``rtl`` or ``model``.
    tags_in, tags_out
        Clicks sent to the board, and accepted by a gate window.
    dropped
        Clicks dropped, by ``block: reason``; with `tags_out` they account for every click.
    gates
        By channel: first phase accepted and first phase past the window, ps.
    decoded
        All tags as the slotter decodes them, gates open.
    visibility_decoded
        By channel: |mean of exp(2 pi i phase / P)| of `decoded`; with tracking, of the slots
        that the loop corrects.
    tracking, tracking_counts
        State of the loop in the end, and its counters; None and empty where it is off.
    slot_offsets
        By channel: accepted tags by slot number modulo 8, shape (8,).
    histogram
        Clicks by channel and phase bin, before the gate, shape (channels, bins).
    bin_ps
        Width of a bin, ps.
    stream_sha256
        SHA-256 of each stream's bytes, by stream: equal on RTL and model.
    gated
        The accepted tags.
    """

    recording: recordings.Recording
    acquisition: acquire.Acquisition | None
    note: str
    period_ps: float
    backend: str
    tags_in: int
    tags_out: int
    dropped: dict[str, int]
    gates: dict[int, tuple[int, int]]
    slot_offsets: dict[int, list[int]]
    histogram: npt.NDArray[np.int64]
    bin_ps: int
    stream_sha256: dict[str, str]
    gated: Structured = field(repr=False)
    decoded: Structured = field(repr=False)
    visibility_decoded: dict[int, float] = field(default_factory=dict)
    tracking: tag_path.TrackingState | None = None
    tracking_counts: dict[str, int] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Result for JSON; ``visibility`` is by channel, ``dropped`` is the sum of reasons."""
        found = self.acquisition
        visibility = found.visibility_by_channel if found else {}
        return {
            "file": Path(self.recording.path).name,
            "format": self.recording.format,
            "backend": self.backend,
            "events": self.recording.events,
            "dummies": self.recording.dummies,
            "void": self.recording.void,
            "multi_clicks": self.recording.multi_clicks,
            "tags_in": self.tags_in,
            "tags_out": self.tags_out,
            "dropped": sum(self.dropped.values()),
            "dropped_by_reason": self.dropped,
            "out_of_order": self.recording.out_of_order,
            "period_ps": found.period_ps if found else None,
            "period_ps_uncertainty": found.period_ps_uncertainty if found else None,
            "period_may_be_divided": found.divided if found else None,
            "period_note": self.note,
            "visibility": {str(c): v for c, v in visibility.items()},
            "visibility_decoded": {str(c): v for c, v in self.visibility_decoded.items()},
            "tracking": self._tracking(),
            "gates": {
                str(channel): {"start_ps": start, "stop_ps": stop}
                for channel, (start, stop) in self.gates.items()
            },
            "tags_per_slot_offset": {str(c): v for c, v in self.slot_offsets.items()},
            "stream_sha256": self.stream_sha256,
        }

    def _tracking(self) -> dict[str, Any] | None:
        state = self.tracking
        if state is None:
            return None
        period = state.period / (1 << PERIOD_FRACTION_BITS)
        return {"locked": state.locked, "period_ps": period, **self.tracking_counts}

    def summary(self) -> list[tuple[str, str]]:
        """Rows of the last table."""
        found = self.acquisition
        rows = [
            ("Format", f"{self.recording.format}, {self.recording.events:,} events"),
            ("Out of order in the file", f"{self.recording.out_of_order:,}, sorted"),
            ("Tags in", f"{self.tags_in:,}"),
            ("Tags out", f"{self.tags_out:,}"),
            *((f"Dropped by {reason}", f"{count:,}") for reason, count in self.dropped.items()),
        ]
        if found:
            uncertainty = f"{found.period_ps_uncertainty:.1g}"
            rows.append(("Pulse period", f"{found.period_ps:.8f} +- {uncertainty} ps"))
        if self.tracking:
            counts = self.tracking_counts
            state = "locked" if self.tracking.locked else "not locked"
            note = (
                f"{state}, {counts['corrections']:,} corrections in {counts['windows']:,} windows"
            )
            rows.append(("Tracking", note))
        if self.note:
            rows.append(("Note on the period", self.note))
        for channel, (start, stop) in self.gates.items():
            if found:
                visibility = f"{found.visibility_by_channel[channel]:.4f} with one period"
                if self.tracking:
                    visibility += f", {self.visibility_decoded[channel]:.4f} tracked"
                rows.append((f"Channel {channel}: visibility", visibility))
            rows += [
                (f"Channel {channel}: gate", f"{start} to {stop} ps"),
                (
                    f"Channel {channel}: by slot mod {SLOT_OFFSETS}",
                    " ".join(f"{count:,}" for count in self.slot_offsets[channel]),
                ),
            ]
        rows.append(("Tag path", self.backend))
        return rows


def replay(
    path: str | Path,
    backend: str = "rtl",
    channels: Sequence[int] | None = None,
    frequency_hint: float | None = None,
    file_format: str | None = None,
    tracking: bool = True,
    progress: Callable[[str, float], None] = lambda stage, share: None,
) -> Replay:
    """Send a recording through the tag path of a simulated receiver.

    The first pass fills the phase histogram with every gate open; the gates are chosen from it,
    and the second pass applies them.

    Parameters
    ----------
    path
        Recording (`recordings.read`).
    backend
        ``rtl`` for the gateware, ``model`` for its twin.
    channels
        Channels to use; all by default.
    frequency_hint
        Pulse frequency, Hz, if it is known; found without it otherwise.
    file_format
        Format of the file where its name does not tell.
    tracking
        Follow the source's clock, where the recording has pulses; else one period for all of it.
    progress
        Called with the stage and its share done, 0 to 1.

    Returns
    -------
    Replay
        Result.

    Raises
    ------
    KeyrailError
        If the file cannot be read, or a setting is out of range.
    """
    if backend not in BACKENDS:
        raise SettingError("backend", backend, " or ".join(BACKENDS))
    progress("reading", 0)
    recording = recordings.read(path, file_format)
    times, numbers = recording.times, recording.channels
    present = sorted({int(c) for c in np.unique(numbers)})
    if channels is not None:
        for channel in channels:
            if channel not in present:
                raise SettingError(
                    "channels", channel, f"a channel of the file: {', '.join(map(str, present))}"
                )
        chosen = np.isin(numbers, channels)
        times, numbers = times[chosen], numbers[chosen]
        present = sorted(channels)
    beyond = [channel for channel in present if channel >= CHANNELS]
    if beyond:
        raise SettingError(
            "channel",
            beyond[0],
            f"0 to {CHANNELS - 1}, the channels of a receiver; choose with --channels",
        )
    progress("finding the pulse period", 0)
    found: acquire.Acquisition | None = None
    try:
        found = acquire.acquire(times, numbers, frequency_hint=frequency_hint)
        period, origin, note = found.period_fixed, found.origin_ps, found.note
    except acquire.NoPeriodError as error:
        # The tag path is of use for continuous sources too: slots of 10 ns, gates open.
        period, origin, note = NO_PULSES_PERIOD, int(times[0]), str(error)

    progress("opening the board", 0)
    digests = {name: hashlib.sha256() for name in ("decoded", "gated", "histogram")}
    with board.open(BACKENDS[backend]) as receiver:
        receiver.write("mode", Mode.INSTRUMENT)
        tag_path.set_slots(receiver, period, origin)
        if found and tracking:
            tag_path.set_tracking(receiver, _tracking(found, times))
        tag_path.open_gates(receiver, present, period)
        _send(receiver, times, numbers, "first pass: histogram", progress)
        decoded = receiver.receive("gated")
        digests["decoded"].update(pack(GATED_TAG, decoded).tobytes())
        histogram = tag_path.read_histogram(receiver)
        assert histogram is not None, "instrument mode lets every histogram out"
        digests["histogram"].update(histogram.tobytes())
        bin_ps = 1 << receiver.read("histogram_shift")
        period_ps = period / (1 << PERIOD_FRACTION_BITS)
        whole = (0, int(np.ceil(period_ps)))
        gates = {
            channel: acquire.window(histogram[channel], bin_ps, period_ps) if found else whole
            for channel in present
        }

        tag_path.set_slots(receiver, period, origin)
        tag_path.set_gates(receiver, gates)
        _send(receiver, times, numbers, "second pass: gates", progress)
        if len(times):
            tag_path.send_frame(receiver, int(times[-1]) + 1)
            receiver.run()
        dropped = tag_path.check_ledgers(receiver, tag_path.INSTRUMENT_CHAIN)
        tag_path.check_ledgers(receiver, tag_path.INSTRUMENT_CHAIN, at_frame=True)
        gated = receiver.receive("gated")
        digests["gated"].update(pack(GATED_TAG, gated).tobytes())
        state = tag_path.tracking_state(receiver) if found and tracking else None
        counts = receiver.ledger("tracker") if state else {}
        tags_in = receiver.ledger("slotter")["in"]
        tags_out = receiver.ledger("gate")["out"]

    clicks = gated[gated["kind"] == TagKind.CLICK]
    if len(clicks) != tags_out or tags_in != len(times):
        raise board.BoardError(
            f"{len(times)} tags went in and {len(clicks)} came out, "
            f"but the board counted {tags_in} and {tags_out}"
        )
    offsets = {
        channel: np.bincount(
            (clicks["slot"][clicks["channel"] == channel] % SLOT_OFFSETS).astype(np.int64),
            minlength=SLOT_OFFSETS,
        ).tolist()
        for channel in present
    }
    return Replay(
        recording,
        found,
        note,
        period_ps,
        backend,
        tags_in,
        tags_out,
        dropped,
        gates,
        offsets,
        histogram,
        bin_ps,
        {name: digest.hexdigest() for name, digest in digests.items()},
        gated,
        decoded,
        {channel: _visibility(decoded, channel, period_ps) for channel in present},
        state,
        counts,
    )


def _tracking(found: acquire.Acquisition, times: npt.NDArray[np.int64]) -> tag_path.Tracking:
    """A loop for all channels, fast enough for the wander of a free-running laser's clock."""
    slots = max(1.0, int(times[-1] - times[0]) / found.period_ps)
    minimum = 16
    return tag_path.Tracking(
        {channel: round(phase) for channel, phase in found.phase_by_channel.items()},
        tag_path.Tracking.window_for(found.period_fixed, len(times) / slots, minimum),
        gate_ps=int(found.period_ps / 4),
        holdover_slots=int(1e12 / found.period_ps),
        phase_shift=1,
        period_shift=4,
        minimum=minimum,
    )


def _visibility(tags: Structured, channel: int, period_ps: float) -> float:
    chosen = (tags["kind"] == TagKind.CLICK) & (tags["channel"] == channel)
    if not chosen.any():
        return 0.0
    return float(abs(np.exp(2j * np.pi / period_ps * tags["phase"][chosen]).mean()))


def _send(
    receiver: board.Board,
    times: npt.NDArray[np.int64],
    numbers: npt.NDArray[np.integer[Any]],
    stage: str,
    progress: Callable[[str, float], None],
) -> None:
    records = tag_path.tag_records(times, numbers)
    for start in range(0, len(records), CHUNK):
        progress(stage, start / len(records))
        receiver.send("tags", records[start : start + CHUNK])
        receiver.run()
