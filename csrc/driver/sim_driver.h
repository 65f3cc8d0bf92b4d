// Virtual memory without memory: calls take simulated time by a table, and work on streams ends when the
// clock says so.
#pragma once

#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "driver/driver.h"
#include "driver/sim_clock.h"
#include "driver/sim_faults.h"

namespace vmm {

/// What one call takes; map, set_access and unmap for each page. The defaults are those published for 2 MiB
/// on an A100, one thread (kvcached's bench_vmm); release and event: DESIGN §4, and assumed.
struct CallTimes {
  Nanoseconds reserve{19'000};
  Nanoseconds create{193'000};  // of 2 MiB; in proportion for larger pages, which the driver has to clear
  Nanoseconds map{1'500};
  Nanoseconds set_access{36'000};
  Nanoseconds unmap{26'000};
  Nanoseconds release{23'000};
  Nanoseconds event{1'000};
};

struct SimOptions {
  Bytes capacity{};  // of physical pages; 0: no limit
  Bytes granularity = 2_MiB;
  CallTimes times{};
  SimFaultOptions faults{};
};

/// Whether any of these shares a byte with any of those.
bool overlap(std::span<const MemoryRange> a, std::span<const MemoryRange> b);

/// The caller's time is the clock's: each call advances it.
class SimDriver final : public Driver {
 public:
  /// Throws InvalidArgument unless the granularity is a power of two and no time is below 0.
  SimDriver(std::shared_ptr<SimClock> clock, const SimOptions& options);

  const Capabilities& capabilities() const noexcept override { return capabilities_; }
  Address reserve(Bytes size, Bytes alignment) override;
  void free_reservation(Address, Bytes) override {}
  PageHandle create(Bytes page_bytes, Place place) override;
  void release(PageHandle page) override;
  void map(std::span<const PageMapping> pages) override;
  void set_access(std::span<const PageMapping> pages) override;
  void unmap(std::span<const PageMapping> pages, std::size_t& done) override;
  void copy(Address to, Address from, Bytes size, StreamHandle stream) override;
  void zero(std::span<const MemoryRange> ranges, StreamHandle stream) override;
  StreamHandle create_stream() override;
  void destroy_stream(StreamHandle stream) override;
  EventHandle record(StreamHandle stream) override;
  bool capturing(StreamHandle) override { return false; }
  bool query(EventHandle event) override;
  void wait(EventHandle event) override;
  void destroy_event(EventHandle event) override;
  void bind_thread() override {}

  /// What was found where work is about to write and read.
  struct Touched {
    Nanoseconds waited{};         // for pages that another actor was still mapping, by its own time
    std::uint64_t first_use = 0;  // mappings that nobody had touched since they were made
    std::uint64_t late = 0;       // … that were not complete at `called`
  };
  /// Throws InvariantViolation unless all of it is mapped and accessible.
  Touched touch(std::span<const MemoryRange> ranges, Nanoseconds called);
  /// Work of so long on the stream: the kernels of an iteration. Unmapping what it uses before it is over is
  /// refused: a fence is missing.
  void run(StreamHandle stream, Nanoseconds takes, std::vector<MemoryRange> uses);
  /// When everything on the stream is over.
  Nanoseconds over_at(StreamHandle stream) const;
  Bytes created() const;
  /// Throws InvariantViolation unless all of it is mapped and accessible. Takes no time.
  void require_accessible(std::span<const MemoryRange> ranges) const;
  /// Throws InvariantViolation if work under way on another stream than `writer` uses any of it.
  void require_unused(std::span<const MemoryRange> ranges, StreamHandle writer) const;
  /// Throws InvariantViolation if anybody ever tried to unmap what work was using, whoever swallowed the
  /// refusal; or if a page is mapped at two addresses now, which the contract allows and the engine does not.
  void check() const;
  SimFaults& faults() noexcept { return faults_; }
  SimClock& clock() noexcept { return *clock_; }

 private:
  struct Work {
    Nanoseconds over_at;
    std::vector<MemoryRange> uses;
  };
  struct Stream {
    Nanoseconds over_at{0};
    std::vector<Work> under_way;
  };
  struct Mapped {
    PageHandle page;
    Bytes size;
    Nanoseconds ready_at{0};
    bool accessible = false;
    bool touched = false;
  };

  const Stream& find(StreamHandle stream) const;
  Stream& find(StreamHandle stream);
  Nanoseconds find(EventHandle event) const;
  void queue(StreamHandle stream, Nanoseconds takes, std::vector<MemoryRange> uses);
  template <class Map, class Visit>
  static void for_each_mapped(Map& mapped, const MemoryRange& range, Visit visit);
  void refuse_in_use(std::span<const PageMapping> pages);
  void wait_until(Nanoseconds then);
  /// Actors are apart in time, but what one has learnt of work that is over all know.
  Nanoseconds known_until() const { return std::max(clock_->now(), asked_at_); }
  void take(Nanoseconds time) { clock_->advance(time + faults_.delay()); }
  void maybe_fail(const char* call);

  std::shared_ptr<SimClock> clock_;
  const SimOptions options_;
  const Capabilities capabilities_;
  mutable std::mutex mutex_;  // guards what follows
  SimFaults faults_;
  std::map<PageHandle, Bytes> page_sizes_;
  Bytes created_;
  std::uintptr_t next_address_ = std::uintptr_t{1} << 40;
  std::uint64_t next_handle_ = 1;
  std::map<std::uint64_t, Stream> streams_;
  std::map<std::uint64_t, Nanoseconds> events_;  // when they complete
  std::map<std::uintptr_t, Mapped> mapped_;      // by address
  Nanoseconds asked_at_{0};  // the latest time at which anybody asked whether work was over
  bool unmapped_in_use_ = false;
};

}  // namespace vmm
