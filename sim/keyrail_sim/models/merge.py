# SPDX-License-Identifier: Apache-2.0
"""Twin of `keyrail_gateware.merge`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from keyrail.contract import TAG, TIME_BITS, TIME_RECORD_LOG2_PS, TagKind
from keyrail.layouts import Structured, zeros

Times = npt.NDArray[np.int64]


def merge(
    events: Sequence[Times],
    channels: Sequence[npt.NDArray[np.uint8]],
    first: int,
    until: Sequence[int],
    time_record_log2: int = TIME_RECORD_LOG2_PS,
) -> Structured:
    """Merge inputs in time order as the gateware does, nothing being refused.

    What comes out depends on the times alone: a record leaves once no earlier one can come, nor
    one of the same time from an input before it.

    Parameters
    ----------
    events, channels
        By input: unwrapped times, ps, rising; and the channel of each event.
    first
        Watermark of the first input at the beginning, ps.
    until
        By input: its last watermark, ps.
    time_record_log2
        Time records lie at the multiples of 2^this ps.

    Returns
    -------
    Structured
        ``tag`` records.
    """
    begin = (first >> time_record_log2) + 1
    beats = np.arange(begin, (max(until) >> time_record_log2) + 2) << time_record_log2
    times = np.concatenate([beats, *events])
    source = np.repeat(np.arange(len(events) + 1), [len(beats), *map(len, events)])
    channel = np.concatenate([np.zeros(len(beats), np.uint8), *channels])
    order = np.lexsort((source, times))
    times, source, channel = times[order], source[order], channel[order]
    # An input that has no event left is waited for until its watermark has passed; of one time,
    # those of the inputs before it come first.
    place = np.arange(len(times))
    kept = np.ones(len(times), np.bool_)
    for number, limit in enumerate(until, 1):
        own = np.flatnonzero(source == number)
        after = place > (own[-1] if len(own) else -1)
        kept &= ~after | (times < limit) | ((times == limit) & (source < number))
    kept = np.logical_and.accumulate(kept)
    tags = zeros(TAG, int(kept.sum()))
    tags["time"] = times[kept] & ((1 << TIME_BITS) - 1)
    tags["channel"] = channel[kept]
    tags["kind"] = np.where(source[kept] == 0, TagKind.TIME, TagKind.CLICK)
    return tags
