// Sequences that are parked in a cache with memory for eight pages.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <thread>
#include <utility>

#include "check.h"
#include "prefix_fixture.h"
#include "tier_fixture.h"

namespace vmm {

inline constexpr std::uint64_t tokens_a_page = 64;

/// Looks again until it is so, for ten seconds.
inline bool comes(const std::function<bool()>& is) {
  for (int i = 0; i < 100'000; ++i) {
    if (is()) return true;
    std::this_thread::sleep_for(std::chrono::microseconds(100));
  }
  return false;
}

/// Such calls do not return while it `hangs`.
inline void hang(TestCalls& calls, const std::string& name, const std::atomic<bool>& hangs) {
  calls.refuse = [name, &hangs](const std::string& call, int) {
    while (call == name && hangs) std::this_thread::sleep_for(std::chrono::microseconds(100));
    return 0;
  };
}

/// Memory for eight pages, unless it is said otherwise, and a tier for many.
struct Parked : PrefixCache {
  explicit Parked(PrefixOptions options_ = {}) : PrefixCache(completed(std::move(options_))) {}
  static PrefixOptions completed(PrefixOptions made) {
    if (made.budget == 16_MiB) made.budget = 64_KiB * 8;
    if (made.slots == 4) made.slots = 6;
    if (made.host.count + made.file.count == 0) made.host = 8_MiB;
    return made;
  }

  /// A sequence of so many pages, of which nobody has a prefix.
  Sequence make(std::uint64_t pages) {
    const TokenList own = tokens_from(next_ += 10'000, pages * tokens_a_page);
    Sequence made = open({});
    step(made, own);
    return made;
  }
  void park(const Sequence& each, const ParkHint& hint = {}) { cache->park(each.slot, hint, {}); }
  Sequence idle(std::uint64_t pages) {
    Sequence made = make(pages);
    park(made);
    return made;
  }
  void more(Sequence& each) { step(each, tokens_from(5, 1)); }
  /// Somebody needs nearly all memory for a moment: what is parked goes to the tier.
  void push_out(std::uint64_t pages = 7) {
    Sequence made = make(pages);
    close(made);
    end();
  }
  /// Whether it is ready some time after it was prefetched.
  bool is_prefetched(const Sequence& each, Nanoseconds by = {}) {
    const auto slot = static_cast<std::int32_t>(each.slot);
    cache->prefetch(std::span(&slot, 1), clock->now() + by);
    return comes([&] { return cache->ready(each.slot); });
  }
  /// Whether a slot is free some time later.
  bool opens_at_last() {
    return comes([&] {
      try {
        open({});
        return true;
      } catch (const InvalidArgument&) {
        return false;
      }
    });
  }
  /// Whether something is on its way to the first tier, or back.
  bool is_moving() const { return parking->tiers().figures(0).pending != 0; }
  ParkingFigures figures() const { return parking->figures(); }

 private:
  PrefixIndex::Token next_ = 0;
};

/// Memory for 32 pages, and closed sequences whose tokens go to the tier.
struct Restored : Parked {
  explicit Restored(PrefixOptions options_ = {}) : Parked(enlarged(std::move(options_))) {}
  static PrefixOptions enlarged(PrefixOptions made) {
    made.budget = 64_KiB * 32;
    return made;
  }
  bool are_cleaned(std::uint64_t pages) {
    return comes([&] { return figures().cleaned >= pages; });
  }
  /// Leaves a closed sequence with these tokens, of which there are copies.
  void leave_copies(const TokenList& tokens) {
    const std::uint64_t cleaned = figures().cleaned;
    leave(tokens);
    CHECK(are_cleaned(cleaned + tokens.size() / tokens_a_page));
  }
  /// Somebody needs all memory for a moment.
  void fill_memory() {
    Sequence others[] = {open({}), open({})};
    for (PrefixIndex::Token i = 0; i < 2; ++i)
      step(others[i], tokens_from(20'000 + 1'000 * i, 16 * tokens_a_page));
    for (const Sequence& each : others) close(each);
    end();
  }
  bool is_whole(Sequence& each) {
    more(each);
    return intact(each);
  }
};

}  // namespace vmm
