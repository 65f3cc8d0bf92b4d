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

/// Writes do not return while it `hangs`.
inline void hang_writes(TestCalls& calls, const std::atomic<bool>& hangs) {
  calls.refuse = [&hangs](const std::string& call, int) {
    while (call == "pwritev" && hangs) std::this_thread::sleep_for(std::chrono::microseconds(100));
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
  /// Whether something is on its way to the first tier, or back.
  bool is_moving() const { return parking->tiers().figures(0).pending != 0; }
  ParkingFigures figures() const { return parking->figures(); }

 private:
  PrefixIndex::Token next_ = 0;
};

}  // namespace vmm
