// The memory mappings that this process may have: counted, like bytes under a budget, and with a reserve.
#pragma once

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <optional>
#include <string>

#include "base/lock.h"

namespace vmm::host {

/// How many mappings the process may have: vm.max_map_count, or VMM_MAX_MAPPINGS where that is lower.
struct MostMappings {
  std::uint64_t count = 0;      // 0: not known, and nothing is refused
  std::uint64_t of_system = 0;  // 0: not known

  bool by_variable() const noexcept { return count != of_system; }
  /// What a message says that ends there.
  std::string advice() const;
};

/// Throws InvalidArgument where VMM_MAX_MAPPINGS is no number from 1 on.
MostMappings most_mappings();
/// Lines of /proc/self/maps: exact, but it takes about 0.2 µs for each. Nothing where it cannot be read.
std::optional<std::uint64_t> count_process_mappings();

/// What all host drivers of the process use together, and an estimate of everybody else's: the difference to
/// the last exact count. A sixteenth of the limit is left to them, and to undoing. Safe from any thread.
class MappingCount {
 public:
  static MappingCount& of_process();

  /// Ours are so many more, or fewer.
  void add(std::int64_t more) noexcept { ours_ += more; }
  /// So many of those added are not made yet, or (if negative) are made now.
  void plan(std::int64_t more) noexcept { planned_ += more; }
  /// Throws MappingLimit unless `more` may be made beside those that were added.
  void require(std::int64_t more);
  /// Counts everybody's; where that cannot be done, the last count stands.
  void count();
  const MostMappings& most() const noexcept { return most_; }
  /// Everybody's, as far as is known.
  std::uint64_t used() const noexcept { return static_cast<std::uint64_t>(ours_ + others_); }
  /// That may still be made; an estimate.
  std::uint64_t left() const noexcept;

 private:
  MappingCount();
  bool fits(std::int64_t more) const noexcept {
    return limit_ == 0 || ours_ + more + others_ + kept_back_ <= limit_;
  }

  const MostMappings most_;
  const std::int64_t limit_;
  const std::int64_t kept_back_;
  std::atomic<std::int64_t> ours_{0};
  std::atomic<std::int64_t> planned_{0};
  std::atomic<std::int64_t> others_{0};
  std::atomic<std::int64_t> counted_at_;  // what ours were then
};

/// Some mappings of no use, which are given up for a moment where undoing something needs one and the process
/// has none left: others may have used up what is counted.
class MappingReserve {
 public:
  static MappingReserve& of_process();

  /// `undo()`, which answers 0 or an errno; on ENOMEM again without the reserve.
  template <class Undo>
  int spend(Undo undo) {
    if (const int error = undo(); error != ENOMEM) return error;
    std::lock_guard lock(mutex_);
    give_up();
    const int error = undo();
    fill();
    return error;
  }

 private:
  MappingReserve() { fill(); }
  void fill() noexcept;
  void give_up() noexcept;

  Mutex mutex_{LockRank::mapping_reserve};
  void* start_ = nullptr;
};

}  // namespace vmm::host
