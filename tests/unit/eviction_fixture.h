// Eviction policies by their names, and short ways to use units.
#pragma once

#include <initializer_list>
#include <memory>
#include <string_view>
#include <vector>

#include "policy/eviction/eviction_policies.h"

namespace vmm {

using namespace std::chrono_literals;

constexpr UnitId unit(std::uint64_t number) { return UnitId{number}; }

/// Uses these units, of one byte each, one after the other.
inline void use(EvictionPolicy& policy, std::initializer_list<std::uint64_t> units, Nanoseconds at = {}) {
  for (std::uint64_t each : units) policy.access(unit(each), {.at = at});
}

/// The next `count` victims, which leave.
inline std::vector<std::uint64_t> evict(EvictionPolicy& policy, std::size_t count, Nanoseconds now = {}) {
  std::vector<std::uint64_t> out;
  while (out.size() < count) {
    const auto victim = policy.victim(now);
    if (!victim) break;
    policy.evicted(*victim);
    out.push_back(static_cast<std::uint64_t>(*victim));
  }
  return out;
}

using Numbers = std::vector<std::uint64_t>;

}  // namespace vmm
