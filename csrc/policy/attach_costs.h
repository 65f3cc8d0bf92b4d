// Whether a prefix is cheaper to map a second time, or to copy.
#pragma once

#include <cstdint>

#include "base/clock.h"
#include "base/types.h"

namespace vmm {

/// What mapping a page a second time costs on this machine, and what copying one, by what both have cost
/// lately. Published figures for a GPU: mapping 10 GiB in pages of 2 MiB takes 364 ms, copying them 15. Pure.
class AttachCosts {
 public:
  void aliased(Pages pages, Nanoseconds took) { alias_.add(pages, took); }
  void copied(Pages pages, Nanoseconds took) { copy_.add(pages, took); }
  bool knows_copy() const { return copy_.known; }

  /// A copy saves time and costs memory. So it must leave most of the pages that are `free`, which can be had
  /// without taking anything from anybody.
  static bool may_copy(Pages whole, Pages free) { return whole.count * 4 <= free.count; }
  /// Whether a prefix with so many whole pages is to be copied.
  bool copy(Pages whole, Pages free) const {
    return alias_.known && copy_.known && copy_.each < alias_.each && may_copy(whole, free);
  }

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
};

}  // namespace vmm
