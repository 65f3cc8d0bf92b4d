// Which mapped pages give up their memory when somebody needs it.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "base/need.h"
#include "base/page_bits.h"
#include "base/types.h"

namespace vmm {

/// One reservation, as a victim policy sees it.
struct Holding {
  bool leased;
  std::uint64_t idle_since;  // orders those that are not leased: the smallest has been idle longest
  Bytes page_bytes;
  Pages size;
  Pages pages_per_window;  // the pages of a window share one run of memory, which is recycled whole
  std::array<const PageBits*, reclaimable_needs.size()> reclaimable;  // the pages of each need
  const PageBits* aged;                                               // nobody has needed these for a while
  std::function<bool(PageIndex)> over;  // whether no work uses the page any more
};

/// What a victim policy decides by. Whoever takes it holds the lock that keeps it true.
struct Snapshot {
  std::vector<Holding> holdings;
  std::array<Bytes, reclaimable_needs.size()> reclaimable;  // of all holdings together, by need
};

struct Victim {
  std::size_t holding;           // its place in the snapshot
  std::vector<PageIndex> pages;  // ascending, because one driver call unmaps neighbours
};

/// Takes from idle reservations first, the longest idle first; then what is needed least; and of each
/// reservation the highest addresses first, because sequences grow from the low ones. It never names a page
/// that work may still use. Pure.
class VictimPolicy {
 public:
  /// Pages worth at least `wanted`, or all there are, that are needed less than `whose`. Idle reservations
  /// give whole windows, so that their runs can be recycled.
  std::vector<Victim> choose(const Snapshot& snapshot, Bytes wanted, Need whose) const {
    std::vector<Victim> out;
    Bytes lacking = wanted;
    add(snapshot, false, Need::none, lacking, out);
    for (Need need : reclaimable_needs)
      if (need < whose) add(snapshot, true, need, lacking, out);
    return out;
  }

  /// Pages worth at least `at_most`, or all there are, that have aged.
  std::vector<Victim> aged(const Snapshot& snapshot, Bytes at_most) const {
    std::vector<Victim> out;
    for (std::size_t i = 0; i < snapshot.holdings.size(); ++i)
      take(snapshot, i, *snapshot.holdings[i].aged, false, at_most, out);
    return out;
  }

  /// The reservation to end, pages, addresses and all; none where all are leased.
  std::optional<std::size_t> longest_idle(const Snapshot& snapshot) const {
    const std::vector<std::size_t> idle = in_order(snapshot, false);
    return idle.empty() ? std::nullopt : std::optional(idle.front());
  }

 private:
  static std::vector<std::size_t> in_order(const Snapshot& snapshot, bool leased) {
    std::vector<std::size_t> out;
    for (std::size_t i = 0; i < snapshot.holdings.size(); ++i)
      if (snapshot.holdings[i].leased == leased) out.push_back(i);
    std::ranges::sort(out, {}, [&](std::size_t i) { return snapshot.holdings[i].idle_since; });
    return out;
  }

  static void add(const Snapshot& snapshot, bool leased, Need need, Bytes& lacking,
                  std::vector<Victim>& out) {
    const auto which = static_cast<std::size_t>(need);
    if (lacking.count == 0 || snapshot.reclaimable[which].count == 0) return;
    for (std::size_t i : in_order(snapshot, leased)) {
      if (lacking.count == 0) break;
      take(snapshot, i, *snapshot.holdings[i].reclaimable[which], !leased, lacking, out);
    }
  }

  static void take(const Snapshot& snapshot, std::size_t i, const PageBits& from, bool whole_windows,
                   Bytes& lacking, std::vector<Victim>& out) {
    const Holding& holding = snapshot.holdings[i];
    const auto window_of = [&](PageIndex page) { return page.value / holding.pages_per_window.count; };
    Victim victim{i, {}};
    for (auto page = from.last_before(holding.size.count); page; page = from.last_before(page->value)) {
      const bool begun =
          whole_windows && !victim.pages.empty() && window_of(victim.pages.back()) == window_of(*page);
      if (lacking.count == 0 && !begun) break;
      if (!holding.over(*page)) continue;
      victim.pages.push_back(*page);
      lacking = saturating_sub(lacking, holding.page_bytes);
    }
    std::ranges::reverse(victim.pages);
    if (!victim.pages.empty()) out.push_back(std::move(victim));
  }
};

}  // namespace vmm
