// SPDX-License-Identifier: Apache-2.0
// PicoQuant T2 records to times and channels; keyrail.t2 describes records and results.

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace {

constexpr int TIME_BITS = 25;
constexpr std::uint32_t TIME = (1u << TIME_BITS) - 1, SPECIAL = 1u << 31;
// The codes in their order: clicks, then markers and what cannot be, then overflows.
constexpr std::uint32_t NO_OVERFLOW = SPECIAL | 63u << TIME_BITS;  // this one counts no wraps
constexpr std::size_t BLOCK = 4096, GROUP = 16;

}  // namespace

extern "C" {

// Decode `count` records. `state`: time of the last wrap and time reached, ps; `found`: clicks and
// markers. Every output has room for `count`. Returns `count`; or the place of a record that cannot
// be, or -1 where times would leave 63 bits: then the outputs and the state mean nothing.
std::int64_t keyrail_t2_decode(const std::uint32_t *words, std::int64_t count, std::int64_t *state,
                               std::int64_t *times, std::uint8_t *channels, std::uint8_t *markers,
                               std::int64_t *marker_times, std::int64_t *found) {
    std::int64_t base = state[0], until = state[1];
    std::size_t clicks = 0, marked = 0;
    const std::size_t size = static_cast<std::size_t>(count);
    for (std::size_t begin = 0; begin < size; begin += BLOCK) {
        const std::size_t end = std::min(begin + BLOCK, size);
        const std::int64_t from = base;
        for (std::size_t i = begin; i < end;) {
            if (i + GROUP <= end) {
                std::uint32_t any = 0;
                for (std::size_t k = 0; k < GROUP; k++)
                    any |= words[i + k];
                if (!(any & SPECIAL)) {
                    std::uint32_t latest = 0;
                    for (std::size_t k = 0; k < GROUP; k++) {
                        const std::uint32_t time = words[i + k] & TIME;
                        times[clicks + k] = base + static_cast<std::int64_t>(time);
                        channels[clicks + k] = static_cast<std::uint8_t>(words[i + k] >> TIME_BITS);
                        latest = std::max(latest, time);
                    }
                    until = std::max(until, base + static_cast<std::int64_t>(latest));
                    clicks += GROUP, i += GROUP;
                    continue;
                }
            }
            // Clicks and overflows in turn without a branch: no telling which comes next.
            for (const std::size_t stop = std::min(i + GROUP, end); i < stop; i++) {
                const std::uint32_t word = words[i], time = word & TIME;
                if (word - SPECIAL <= NO_OVERFLOW - SPECIAL) {
                    const std::uint32_t code = word >> TIME_BITS & 63;
                    if (code < 1 || code > 15)
                        return static_cast<std::int64_t>(i);
                    const std::int64_t at = base + static_cast<std::int64_t>(time);
                    markers[marked] = static_cast<std::uint8_t>(code);
                    marker_times[marked++] = at;
                    until = std::max(until, at);
                    continue;
                }
                const std::uint32_t wrap = 0u - (word >> 31);
                base = static_cast<std::int64_t>(
                    static_cast<std::uint64_t>(base) +
                    (static_cast<std::uint64_t>(time & wrap) << TIME_BITS));
                const std::int64_t at = base + static_cast<std::int64_t>(time & ~wrap);
                until = std::max(until, at);
                times[clicks] = at;
                channels[clicks] = static_cast<std::uint8_t>(word >> TIME_BITS);
                clicks += !wrap;
            }
        }
        // A block's wraps fit 37 bits, and their sum 62: it may have wrapped, but not twice.
        const std::uint64_t wrapped = static_cast<std::uint64_t>(base) -
                                      static_cast<std::uint64_t>(from);
        const std::uint64_t room = static_cast<std::uint64_t>(INT64_MAX) -
                                   static_cast<std::uint64_t>(from);
        if (wrapped + TIME > room)
            return -1;
    }
    state[0] = base, state[1] = until;
    found[0] = static_cast<std::int64_t>(clicks), found[1] = static_cast<std::int64_t>(marked);
    return count;
}
}
