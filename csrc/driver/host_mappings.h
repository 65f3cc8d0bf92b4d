// The memory mappings that this process may have: counted, like bytes under a budget, and with a reserve.
#pragma once

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <mutex>

namespace vmm::host {

inline constexpr const char* mapping_advice =
    ": raise vm.max_map_count (sysctl -w vm.max_map_count=...) or use larger pages";

/// vm.max_map_count, or VMM_MAX_MAPPINGS where that is lower; 0: not known, and nothing is refused.
std::uint64_t max_process_mappings();
/// Lines of /proc/self/maps: exact, but it takes about 0.2 µs for each.
std::uint64_t count_process_mappings();

/// What all host drivers of the process use together, and an estimate of everybody else's: the difference to
/// the last exact count. A sixteenth of the limit is left to them, and to undoing. Safe from any thread.
class MappingCount {
 public:
  static MappingCount& of_process();

  /// Ours are so many more, or fewer.
  void add(std::int64_t more) noexcept { ours_ += more; }
  /// Throws MappingLimit unless `more` may be made beside those that were added.
  void require(std::int64_t more);
  /// Counts everybody's.
  void count();
  std::uint64_t limit() const noexcept { return static_cast<std::uint64_t>(limit_); }
  /// Everybody's, as far as is known.
  std::uint64_t used() const noexcept { return static_cast<std::uint64_t>(ours_ + others_); }
  /// That may still be made; an estimate.
  std::uint64_t left() const noexcept;

 private:
  MappingCount();
  bool fits(std::int64_t more) const noexcept {
    return limit_ == 0 || ours_ + more + others_ + kept_back_ <= limit_;
  }

  const std::int64_t limit_;
  const std::int64_t kept_back_;
  std::atomic<std::int64_t> ours_{0};
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

  std::mutex mutex_;
  void* start_ = nullptr;
};

}  // namespace vmm::host
