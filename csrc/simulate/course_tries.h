// Calls that may fail in a course, and how an engine would go on.
#pragma once

#include <algorithm>

#include "base/error.h"
#include "simulate/course.h"

namespace vmm {

/// The same as tried(), but there may be no slot while tiers copy pages of those that nobody is in.
template <class Action>
bool Course::tried_to_open(Action action) {
  try {
    return tried(action);
  } catch (const InvalidArgument&) {
    if (tiers_ == nullptr || tiers_->pending() == 0) throw;
    ++totals_.refused;
    return false;
  }
}

/// Does what an engine would do when a driver call failed: the same again. False when that does not help.
template <class Action>
bool Course::tried(Action action) {
  for (int i = 0; i < 20; ++i) {
    const std::uint64_t before = failures();
    try {
      action();
      return true;
    } catch (const DriverError&) {
      if (failures() == before && tiers_ == nullptr) throw;  // a load may have failed before
    }
  }
  return false;
}

/// The same as tried(), for a call that may find memory short, or open epochs of other streams in its way, or
/// that a parked sequence has lost tokens.
template <class Action>
bool Course::tried_beside_others(std::size_t cache, Action action) {
  const auto open = std::ranges::count_if(streams_, &Stream::open);
  try {
    return tried(action);
  } catch (const OutOfPages&) {
    ++totals_.refused;
    return false;
  } catch (const SequenceLost& error) {
    lose(cache, error);
    return false;
  } catch (const InvalidArgument&) {
    throw;
  } catch (const InvariantViolation&) {
    throw;
  } catch (const Error&) {
    if (open == 0 && std::ranges::all_of(streams_, [&](const Stream& each) {
          return world_.driver().over_at(each.handle) <= world_.now();
        }))
      throw;
    return false;
  }
}

}  // namespace vmm
