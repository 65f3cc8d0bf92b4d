// Which mapped pages give up their memory when somebody needs it.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <utility>
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
  Pages extent;            // so many pages grow and shrink together from one start
  std::span<const std::uint64_t> uses;  // of each extent: when it was last used; 0, or none at all: unknown
  std::array<const PageBits*, reclaimable_needs.size()> reclaimable;  // the pages of each need
  const PageBits* aged;                                               // nobody has needed these for a while
  std::function<bool(PageIndex)> over;  // whether no work uses the page any more
  std::size_t owner = 0;                // its place among the snapshot's owners
};

/// A tenant, as a policy sees it.
struct Owner {
  int priority;
  Bytes borrowed;  // what it holds beyond its guarantee
};

/// What a victim policy decides by. Whoever takes it holds the lock that keeps it true.
struct Snapshot {
  std::vector<Holding> holdings;
  std::array<Bytes, reclaimable_needs.size()> reclaimable;  // of all holdings together, by need
  std::vector<Owner> owners{};                              // one or none: no owner goes before another
};

struct Victim {
  std::size_t holding;           // its place in the snapshot
  std::vector<PageIndex> pages;  // ascending, because one driver call unmaps neighbours
};

/// Takes from idle reservations first, the longest idle first; then what is needed least. Of a reservation it
/// takes the highest addresses first, because sequences grow from the low ones, and of leased ones together
/// the page that is nearest to the end of its reservation: the parts of one cache have their slots at the
/// same fractions of their lengths, so a slot gives up the same tokens in all parts. If it lost pages of one
/// part only, what the others still have of those tokens would help nobody. Extents of which it is known when
/// they were used go after all others, the one that was used longest ago first, and from its end: what they
/// hold may be the beginning of a sequence to come. The policy never names a page that work may still use.
/// Pure.
class VictimPolicy {
 public:
  /// Pages worth at least `wanted`, or all there are, that are needed less than `whose`. Idle reservations
  /// give whole windows, so that their runs can be recycled.
  std::vector<Victim> choose(const Snapshot& snapshot, Bytes wanted, Need whose) const {
    std::vector<Victim> out;
    Bytes lacking = wanted;
    add_idle(snapshot, lacking, out);
    for (Need need : reclaimable_needs)
      if (need < whose) add_leased(snapshot, need, lacking, out);
    return out;
  }

  /// The part of that which idle reservations give.
  static std::vector<Victim> idle(const Snapshot& snapshot, Bytes wanted) {
    std::vector<Victim> out;
    add_idle(snapshot, wanted, out);
    return out;
  }
  /// The part which leased ones give of what is needed so much.
  static std::vector<Victim> leased(const Snapshot& snapshot, Need need, Bytes wanted) {
    std::vector<Victim> out;
    add_leased(snapshot, need, wanted, out);
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
    const std::vector<std::size_t> idle = idle_in_order(snapshot);
    return idle.empty() ? std::nullopt : std::optional(idle.front());
  }

 private:
  /// The reservations that are not leased, the longest idle first.
  static std::vector<std::size_t> idle_in_order(const Snapshot& snapshot) {
    std::vector<std::size_t> out;
    for (std::size_t i = 0; i < snapshot.holdings.size(); ++i)
      if (!snapshot.holdings[i].leased) out.push_back(i);
    std::ranges::sort(out, {}, [&](std::size_t i) { return snapshot.holdings[i].idle_since; });
    return out;
  }

  static void add_idle(const Snapshot& snapshot, Bytes& lacking, std::vector<Victim>& out) {
    const auto none = static_cast<std::size_t>(Need::none);
    if (lacking.count == 0 || snapshot.reclaimable[none].count == 0) return;
    for (std::size_t i : idle_in_order(snapshot)) {
      if (lacking.count == 0) break;
      take(snapshot, i, *snapshot.holdings[i].reclaimable[none], true, lacking, out);
    }
  }

  /// The next page to take of a leased reservation, or of one extent of it.
  struct Candidate {
    std::size_t holding;
    PageIndex page;
    std::uint64_t floor = 0;  // the first page of the extent
    std::uint64_t use = 0;    // when it was last used
    std::uint64_t length;     // pages of the extent, or of the reservation
  };

  static void add_candidates(const Holding& holding, std::size_t i, const PageBits& pages,
                             std::vector<Candidate>& out) {
    auto page = last_over(holding, pages, holding.size.count);
    if (page && holding.uses.empty()) out.push_back({i, *page, 0, 0, holding.size.count});
    if (holding.uses.empty()) return;
    while (page) {
      const std::uint64_t extent = page->value / holding.extent.count, floor = extent * holding.extent.count;
      const std::uint64_t use = holding.uses[extent];
      if (use == 0)  // their order is that of the whole reservation
        out.push_back({i, *page, floor, 0, holding.size.count});
      else
        out.push_back({i, *page, floor, use, holding.extent.count});
      page = last_over(holding, pages, floor);
    }
  }

  /// Whether `a` goes after `b`.
  static bool goes_later(const Candidate& a, const Candidate& b) {
    if (a.use != b.use) return a.use > b.use;
    const auto position = [](const Candidate& each) {
      return each.page.value + 1 - (each.use == 0 ? 0 : each.floor);
    };
    const std::uint64_t a_scaled = position(a) * b.length, b_scaled = position(b) * a.length;
    return std::pair(a_scaled, b.holding) < std::pair(b_scaled, a.holding);
  }

  static void add_leased(const Snapshot& snapshot, Need need, Bytes& lacking, std::vector<Victim>& out) {
    const auto which = static_cast<std::size_t>(need);
    if (lacking.count == 0 || snapshot.reclaimable[which].count == 0) return;
    const auto pages_of = [&](std::size_t i) -> const PageBits& {
      return *snapshot.holdings[i].reclaimable[which];
    };
    std::vector<Candidate> heap;
    for (std::size_t i = 0; i < snapshot.holdings.size(); ++i)
      if (snapshot.holdings[i].leased) add_candidates(snapshot.holdings[i], i, pages_of(i), heap);
    std::ranges::make_heap(heap, goes_later);
    std::map<std::size_t, std::vector<PageIndex>> taken;
    while (lacking.count != 0 && !heap.empty()) {
      std::ranges::pop_heap(heap, goes_later);
      Candidate& next = heap.back();
      const Holding& holding = snapshot.holdings[next.holding];
      taken[next.holding].push_back(next.page);
      lacking = saturating_sub(lacking, holding.page_bytes);
      const auto page = last_over(holding, pages_of(next.holding), next.page.value);
      if (page && page->value >= next.floor) {
        next.page = *page;
        std::ranges::push_heap(heap, goes_later);
      } else {
        heap.pop_back();
      }
    }
    for (auto& [holding, pages] : taken) {
      std::ranges::sort(pages);
      out.push_back({holding, std::move(pages)});
    }
  }

  /// The last of these pages before `end` that no work uses any more.
  static std::optional<PageIndex> last_over(const Holding& holding, const PageBits& from, std::uint64_t end) {
    auto page = from.last_before(end);
    while (page && !holding.over(*page)) page = from.last_before(page->value);
    return page;
  }

  static void take(const Snapshot& snapshot, std::size_t i, const PageBits& from, bool whole_windows,
                   Bytes& lacking, std::vector<Victim>& out) {
    const Holding& holding = snapshot.holdings[i];
    const auto window_of = [&](PageIndex page) { return page.value / holding.pages_per_window.count; };
    Victim victim{i, {}};
    for (auto page = last_over(holding, from, holding.size.count); page;
         page = last_over(holding, from, page->value)) {
      const bool begun =
          whole_windows && !victim.pages.empty() && window_of(victim.pages.back()) == window_of(*page);
      if (lacking.count == 0 && !begun) break;
      victim.pages.push_back(*page);
      lacking = saturating_sub(lacking, holding.page_bytes);
    }
    std::ranges::reverse(victim.pages);
    if (!victim.pages.empty()) out.push_back(std::move(victim));
  }
};

}  // namespace vmm
