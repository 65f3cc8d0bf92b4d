// Whether a prefix is cheaper to map a second time, or to copy.
#pragma once

#include <algorithm>
#include <cstdint>

#include "base/clock.h"
#include "base/types.h"

namespace vmm {

/// What mapping a page a second time costs on this machine, and what copying one, by what both have cost
/// lately. Published figures for a GPU: mapping 10 GiB in pages of 2 MiB takes 364 ms, copying them 15. So a
/// copy pays where its target has pages already; a page that it needs first costs as much as an alias. Pure.
class AttachCosts {
 public:
  void aliased(Pages pages, Nanoseconds took) {
    alias_.add(pages, took);
    if (pages.count != 0) copies_since_ = 0;
  }
  /// Of these pages, so many were mapped first.
  void copied(Pages pages, Pages mapped, Nanoseconds took) {
    const auto mapping = static_cast<std::int64_t>(alias_.each * static_cast<double>(mapped.count));
    copy_.add(pages, std::max(Nanoseconds{0}, took - Nanoseconds{mapping}));
    ++copies_since_;
  }
  bool knows_copy() const { return copy_.known; }

  /// A copy saves time and costs memory. So it must leave most of the pages that are `free`, which can be had
  /// without taking anything from anybody.
  static bool may_copy(Pages whole, Pages free) { return whole.count * 4 <= free.count; }
  /// Whether a prefix with so many whole pages is to be copied, where the target lacks `missing` of them.
  bool copy(Pages whole, Pages missing, Pages free) const {
    if (!alias_.known || !copy_.known || copies_since_ >= copies_in_a_row || !may_copy(whole, free))
      return false;
    const auto pages = static_cast<double>(whole.count), there = pages - static_cast<double>(missing.count);
    return copy_.each * pages < alias_.each * there;
  }

  static constexpr std::uint32_t copies_in_a_row = 32;  // then an alias shows whether it still costs as much

 private:
  struct Average {
    double each = 0;  // nanoseconds for a page
    bool known = false;
    void add(Pages pages, Nanoseconds took) {
      if (pages.count == 0) return;
      const double now = static_cast<double>(took.count()) / static_cast<double>(pages.count);
      each = known ? each + (now - each) / 8 : now;
      known = true;
    }
  };
  Average alias_, copy_;
  std::uint32_t copies_since_ = 0;  // the last alias
};

}  // namespace vmm
