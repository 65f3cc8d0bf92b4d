// Linux limits how many memory mappings a process may have. They are counted here, as a budget counts bytes,
// and some are held in reserve.
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
  std::uint64_t count = 0;      // 0 where it is not known; then nothing is refused
  std::uint64_t of_system = 0;  // 0 where it is not known

  bool by_variable() const noexcept { return count != of_system; }
  /// What somebody can do who has too few, as the end of an error message.
  std::string advice() const;
};

/// Throws InvalidArgument where VMM_MAX_MAPPINGS is no number from 1 on.
MostMappings most_mappings();
/// Counts the lines of /proc/self/maps, which is exact but takes about 0.2 µs a line. Empty where the file
/// cannot be read.
std::optional<std::uint64_t> count_process_mappings();

/// The mappings that all host drivers of the process use together, and an estimate of everybody else's, which
/// is what was left at the last exact count. A sixteenth of the limit is kept back for the others, and for
/// undoing what failed. Safe from any thread.
class MappingCount {
 public:
  static MappingCount& of_process();

  /// The host drivers use so many mappings more from now on, or fewer where this is below 0.
  void add(std::int64_t more) noexcept { ours_ += more; }
  /// So many of the mappings that were added are not made yet; where this is below 0, so many are made now.
  void plan(std::int64_t more) noexcept { planned_ += more; }
  /// Throws MappingLimit unless `more` mappings may be made beside those that were added.
  void require(std::int64_t more);
  /// Counts all mappings of the process. Where that cannot be done, the last count stays.
  void count();
  const MostMappings& most() const noexcept { return most_; }
  /// How many mappings the process has, as far as is known.
  std::uint64_t used() const noexcept { return static_cast<std::uint64_t>(ours_ + others_); }
  /// An estimate of how many may still be made.
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
  std::atomic<std::int64_t> counted_at_;  // what ours_ was at the last count
};

/// Some mappings that serve no purpose. Undoing something may need a mapping when the process has none left,
/// because others have used up what was kept back. Then these are given up for a moment. Safe from any
/// thread.
class MappingReserve {
 public:
  static MappingReserve& of_process();

  /// Calls `undo`, which returns 0 or an errno. Where that is ENOMEM, calls it again without the reserve.
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
