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

  /// Whether a prefix with so many whole pages is to be copied, where `free` pages could be had without
  /// taking anything from anybody. A copy saves time and costs memory, so it must leave most of what is free.
  bool copy(Pages whole, Pages free) const {
    if (!alias_.known || !copy_.known) return false;
    return copy_.each < alias_.each && whole.count * 4 <= free.count;
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
