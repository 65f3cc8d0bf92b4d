// MQ: a queue for each order of magnitude of uses.
#pragma once

#include <algorithm>
#include <array>
#include <bit>

#include "policy/eviction/unit_queue.h"

namespace vmm {

/// Y. Zhou, J. Philbin and K. Li, "The Multi-Queue replacement algorithm for second level buffer caches",
/// USENIX ATC 2001. A unit that was used n times is in queue ⌊log2 n⌋, and falls by one queue when nobody has
/// used it for a lifetime, counted in accesses. The first of the lowest queue leaves; ghosts keep their
/// count.
class MultiQueue final : public EvictionPolicy {
 public:
  /// The paper's: eight queues, and four times as many ghosts as units fit.
  static constexpr std::size_t queues = 8;
  static constexpr std::uint64_t ghosts_factor = 4;
  /// The paper wants about the commonest distance between two uses of one unit, which depends on the work.
  /// This is what libCacheSim takes for any trace.
  static constexpr std::uint64_t lifetime = 10'000;

  explicit MultiQueue(Bytes capacity) : ghosts_(capacity * ghosts_factor) {}

  void access(UnitId unit, const UnitAccess& access) override {
    Use use{1, accesses_ + lifetime};
    if (const auto taken = take(unit))
      use.uses += taken->note.uses;
    else if (const auto ghost = ghosts_.take(unit))
      use.uses += ghost->note.uses;
    queue_of(use.uses).push_back(unit, access.size, use);
    demote();
  }
  std::optional<UnitId> victim(Nanoseconds) override {
    for (const UnitQueue<Use>& queue : queues_)
      if (!queue.empty()) return queue.front().unit;
    return std::nullopt;
  }
  void evicted(UnitId unit) override {
    if (const auto taken = take(unit)) ghosts_.remember(unit, taken->size, taken->note);
  }
  void forget(UnitId unit) override {
    take(unit);
    ghosts_.take(unit);
  }
  bool holds(UnitId unit) const override {
    return std::ranges::any_of(queues_, [&](const auto& queue) { return queue.contains(unit); });
  }
  std::size_t ghosts() const override { return ghosts_.count(); }

 private:
  struct Use {
    std::uint64_t uses;
    std::uint64_t expires;  // the access after which it falls
  };

  UnitQueue<Use>& queue_of(std::uint64_t uses) {
    return queues_[std::min<std::size_t>(std::bit_width(uses) - 1, queues - 1)];
  }
  std::optional<UnitQueue<Use>::Entry> take(UnitId unit) {
    for (UnitQueue<Use>& queue : queues_)
      if (auto taken = queue.take(unit)) return taken;
    return std::nullopt;
  }
  /// Of each queue the first falls, if it is time.
  void demote() {
    ++accesses_;
    for (std::size_t k = 1; k < queues; ++k) {
      if (queues_[k].empty() || queues_[k].front().note.expires >= accesses_) continue;
      auto first = queues_[k].take(queues_[k].front().unit);
      first->note.expires = accesses_ + lifetime;
      queues_[k - 1].push_back(first->unit, first->size, first->note);
    }
  }

  std::array<UnitQueue<Use>, queues> queues_;
  GhostQueue<Use> ghosts_;
  std::uint64_t accesses_ = 0;
};

}  // namespace vmm
