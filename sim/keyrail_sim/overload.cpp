// SPDX-License-Identifier: Apache-2.0
// Offers a record to the tag FIFO in every clock, more than its sink takes, and follows every click
// into the T2 stream or into a loss whose record counts it. Prints the account as JSON.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>

#include "Voverload.h"
#include "verilated.h"

namespace {

constexpr uint64_t kClockPs = 10000, kTimeRecordLog2 = 29;
constexpr uint64_t kClick = 0, kTime = 1;

struct Tag {
  uint64_t time, channel, kind;
};

// Record of clock k: a click at a time within it, or a time record at each 2^29 ps. SplitMix64:
// stands for the light, nothing secret.
Tag tag_of(uint64_t seed, uint64_t k) {
  uint64_t clock = k * kClockPs;
  if (k == 0 || clock >> kTimeRecordLog2 != (clock - kClockPs) >> kTimeRecordLog2)
    return {clock, 0, kTime};
  uint64_t z = (seed + k) * 0x9e3779b97f4a7c15ull;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  z ^= z >> 31;
  return {clock + (z >> 8) % kClockPs, z & 7, kClick};
}

// Time records among the clocks 0 to k.
uint64_t time_records(uint64_t k) { return ((k * kClockPs) >> kTimeRecordLog2) + 1; }

struct Loss {
  uint64_t begin, end, missed;
};

template <typename Wide>
uint64_t field(const Wide& value, unsigned at, unsigned bits) {
  uint64_t result = 0;
  for (unsigned i = 0; i < bits; i++)
    result |= static_cast<uint64_t>(value[(at + i) / 32] >> ((at + i) % 32) & 1) << i;
  return result;
}

[[noreturn]] void fail(const char* what, uint64_t where) {
  std::fprintf(stderr, "%s at %llu\n", what, static_cast<unsigned long long>(where));
  std::exit(1);
}

struct Account {
  uint64_t seed;
  uint64_t next = 0;     // clock whose record is expected next
  uint64_t reached = 0;  // wraps of T2 so far, ps
  uint64_t stored = 0, missed = 0, losses = 0, told = 0;
  uint64_t begin = 0;
  bool losing = false;
  std::deque<Loss> open;  // seen in the stream, not yet in the ledger, or the other way round
  std::deque<Loss> ledger;

  void skip_time_records() {
    while (tag_of(seed, next).kind == kTime) next++;
  }

  void record(uint32_t word) {
    uint64_t low = word & 0x1ffffff, channel = word >> 25 & 63;
    if (word >> 31 && channel == 63) {
      if (low < 1 || low > 127) fail("an overflow count out of range", low);
      reached += low << 25;
      return;
    }
    uint64_t time = reached + low, k = time / kClockPs;
    skip_time_records();
    if (!(word >> 31)) {
      Tag tag = tag_of(seed, k);
      if (losing) fail("a click inside a loss", k);
      if (k != next) fail("a click is missing that no loss covers, before", k);
      if (tag.time != time || tag.channel != channel) fail("a click that did not go in", k);
      stored++;
      next = k + 1;
    } else if (channel == 1) {
      if (losing || k != next || tag_of(seed, k).time != time) fail("a loss begins wrongly", k);
      losing = true;
      begin = k;
    } else if (channel == 2) {
      if (!losing || k < begin || tag_of(seed, k).time != time) fail("a loss ends wrongly", k);
      losing = false;
      uint64_t clicks = k - begin + 1 - (time_records(k) - time_records(begin - 1));
      open.push_back({tag_of(seed, begin).time, time, clicks});
      missed += clicks;
      next = k + 1;
    } else {
      fail("an unknown marker", k);
    }
    compare();
  }

  void loss(Loss one) {
    losses++;
    told += one.missed;
    ledger.push_back(one);
    compare();
  }

  void compare() {
    for (; !open.empty() && !ledger.empty(); open.pop_front(), ledger.pop_front()) {
      Loss seen = open.front(), said = ledger.front();
      if (seen.begin != said.begin || seen.end != said.end || seen.missed != said.missed)
        fail("a record of the ledger is wrong", said.begin / kClockPs);
    }
  }
};

}  // namespace

// Arguments: clocks, seed, takes of the sink in a hundred clocks.
int main(int argc, char** argv) {
  if (argc != 4) return 2;
  uint64_t clocks = std::strtoull(argv[1], nullptr, 10);
  Account account{std::strtoull(argv[2], nullptr, 10)};
  unsigned share = std::atoi(argv[3]), sum = 0;
  auto context = std::make_unique<VerilatedContext>();
  auto top = std::make_unique<Voverload>(context.get());
  top->rst = 1;
  for (int i = 0; i < 4; i++) {
    top->clk = 0, top->eval(), top->clk = 1, top->eval();
  }
  top->rst = 0;
  top->losses___05Fready = 1;
  uint64_t offered = 0;
  for (uint64_t k = 0, quiet = 0; k < clocks || quiet < 10000; k++) {
    bool valid = k < clocks;
    Tag tag = valid ? tag_of(account.seed, k) : Tag{0, 0, 0};
    top->i___05Fvalid = valid;
    top->i___05Fpayload = tag.time | tag.channel << 48 | tag.kind << 54;
    offered += valid && tag.kind == kClick;
    sum += share;
    bool ready = sum >= 100;
    if (ready) sum -= 100;
    top->o___05Fready = ready;
    top->clk = 0;
    top->eval();
    if (valid && !top->i___05Fready) fail("the input waited", k);
    bool leaves = ready && top->o___05Fvalid;
    if (leaves) account.record(top->o___05Fpayload);
    quiet = leaves || valid ? 0 : quiet + 1;
    if (top->losses___05Fvalid) {
      auto& loss = top->losses___05Fpayload;
      account.loss({field(loss, 0, 48), field(loss, 48, 48), field(loss, 96, 48)});
    }
    top->clk = 1;
    top->eval();
  }
  while (account.next < clocks && tag_of(account.seed, account.next).kind == kTime) account.next++;
  if (account.next != clocks) fail("records are missing after", account.next);
  if (account.losing || !account.open.empty() || !account.ledger.empty()) fail("a loss is open", 0);
  auto& counts = top->counts___05Flive;
  auto print = [](const char* name, uint64_t value, const char* end) {
    std::printf("\"%s\": %llu%s", name, static_cast<unsigned long long>(value), end);
  };
  std::printf("{");
  print("clocks", clocks, ", ");
  print("offered", offered, ", ");
  print("stored", account.stored, ", ");
  print("missed", account.missed, ", ");
  print("losses", account.losses, ", ");
  print("missed_in_ledger", account.told, ", ");
  print("time_records", clocks ? time_records(clocks - 1) : 0, ", ");
  const char* names[] = {"in", "out", "missed", "refused", "losses", "markers_missed"};
  std::printf("\"counters\": {");
  for (int i = 0; i < 6; i++) print(names[i], field(counts, 48 * i, 48), i < 5 ? ", " : "}}\n");
  top->final();
  return 0;
}
