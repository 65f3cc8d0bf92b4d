// How much a mapped page is needed.
#pragma once

#include <array>
#include <cstdint>

namespace vmm {

/// Whoever maps pages may take the memory of those that are needed less.
enum class Need : std::uint8_t {
  none,       // surplus, or a look-ahead
  guess,      // ready for who may come; or tokens of one that has gone, which are to be copied first
  announced,  // will be used soon
  kept,       // in use: never reclaimed
};

/// The needs whose pages may be taken, the least first.
inline constexpr std::array reclaimable_needs{Need::none, Need::guess, Need::announced};

}  // namespace vmm
