// Virtual memory without any memory. Calls take simulated time, which a table gives, and work on a stream
// ends when the clock says so.
#pragma once

#include <algorithm>
#include <map>
#include <memory>
#include <vector>

#include "base/lock.h"
#include "driver/driver.h"
#include "driver/sim_clock.h"
#include "driver/sim_faults.h"
#include "driver/sim_page.h"

namespace vmm {

/// How long each call takes; map, set_access and unmap take so long for each page. The defaults were
/// published for pages of 2 MiB on an A100 and one thread (kvcached's bench_vmm); those of release and event
/// are assumed (DESIGN §4).
struct CallTimes {
  Nanoseconds reserve{19'000};
  Nanoseconds create{193'000};  // larger pages take longer in proportion, because the driver clears them
  Nanoseconds map{1'500};
  Nanoseconds set_access{36'000};
  Nanoseconds unmap{26'000};
  Nanoseconds release{23'000};
  Nanoseconds event{1'000};
};

struct SimOptions {
  Bytes capacity{};  // how much can be created; 0 for no limit
  Bytes granularity = 2_MiB;
  CallTimes times{};
  double copied_bytes_per_second = 0;  // by copy(), on its stream; 0: a copy takes no time
  bool contents = false;               // it knows what is in the pages
  SimFaultOptions faults{};
};

/// Whether any of these shares a byte with any of those.
bool overlap(std::span<const MemoryRange> a, std::span<const MemoryRange> b);

/// Each call advances the clock, which has the time of the caller. Unmapping what work on a stream still uses
/// is refused. Safe from any thread, as far as the clock is.
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

  struct Touched {
    Nanoseconds waited{};         // for pages that another actor, by its own time, was still mapping
    std::uint64_t first_use = 0;  // how many mappings nobody had touched since they were made
    std::uint64_t late = 0;       // how many of those were not complete at the time `called`
  };
  /// Somebody is about to read and write these ranges, and waits for them. Throws InvariantViolation unless
  /// all of them are mapped and accessible.
  Touched touch(std::span<const MemoryRange> ranges, Nanoseconds called);
  /// Puts work on the stream that takes so long, like the kernels of an iteration. To unmap what it uses
  /// before it is over is refused, because then a fence is missing.
  void run(StreamHandle stream, Nanoseconds takes, std::vector<MemoryRange> uses);
  /// The time at which all work on the stream is over.
  Nanoseconds over_at(StreamHandle stream) const;
  Bytes created() const;
  /// Throws InvariantViolation unless all of the ranges are mapped and accessible. Takes no time.
  void require_accessible(std::span<const MemoryRange> ranges) const;
  /// Throws InvariantViolation if work under way on another stream than `writer` uses any of the ranges.
  void require_unused(std::span<const MemoryRange> ranges, StreamHandle writer) const;
  /// Throws InvariantViolation if a page under these ranges, which somebody is about to write, is mapped at
  /// another address, too.
  void require_sole(std::span<const MemoryRange> ranges) const;
  /// The page that is mapped there. Throws InvariantViolation where none is.
  PageHandle page_at(Address address) const;
  /// What work under way uses.
  std::vector<MemoryRange> used() const;
  /// Bytes of the pages that are mapped under these ranges, those mapped several times counted once.
  Bytes bytes_under(std::vector<MemoryRange> ranges) const;
  /// Throws InvariantViolation if anybody has ever tried to unmap what work was using, even where the refusal
  /// was caught.
  void check() const;
  /// Whoever calls this has learnt now which work is over; then all actors know.
  void learn_what_is_over();

  // What is in the pages (sim_contents.cpp), with SimOptions::contents. Work changes it when it is launched:
  // who launches it later sees that. A page keeps what is in it until that is overwritten, or it is released.
  /// Throws InvariantViolation where nothing is mapped.
  void write(const MemoryRange& range, std::uint64_t number);
  /// Throws InvariantViolation where a byte of the range holds anything else.
  void require_contents(const MemoryRange& range, std::uint64_t number) const;
  /// A page that somebody outside copies from, or to.
  struct Seen {
    PageHandle page;
    SimPage contents;
  };
  Seen look_at(Address address) const;
  /// All of the page that is mapped there holds this from now on.
  void fill(Address address, const SimPage& contents);

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

  struct Piece {  // of a range: what lies in one page
    PageHandle page;
    Bytes from, to;
  };
  std::vector<Piece> pieces(const MemoryRange& range) const;
  void copy_contents(Address to, Address from, Bytes size);

  Nanoseconds find(EventHandle event) const;
  void queue(StreamHandle stream, Nanoseconds takes, std::vector<MemoryRange> uses);
  template <class Map, class Visit>
  static void for_each_mapped(Map& mapped, const MemoryRange& range, Visit visit);
  void refuse_in_use(std::span<const PageMapping> pages);
  void wait_until(Nanoseconds then);
  /// Actors are apart in time, but when one of them has learnt that work is over, all of them know.
  Nanoseconds known_until() const { return std::max(clock_->now(), asked_at_); }
  void take(Nanoseconds time) { clock_->advance(time + faults_.delay()); }
  void maybe_fail(const char* call);

  std::shared_ptr<SimClock> clock_;
  const SimOptions options_;
  const Capabilities capabilities_;
  mutable Mutex mutex_{LockRank::sim_driver};  // guards what follows
  SimFaults faults_;
  std::map<PageHandle, Bytes> page_sizes_;
  Bytes created_;
  std::uintptr_t next_address_ = std::uintptr_t{1} << 40;
  std::uint64_t next_handle_ = 1;
  std::map<std::uint64_t, Stream> streams_;
  std::map<std::uint64_t, Nanoseconds> events_;  // when they complete
  std::map<std::uintptr_t, Mapped> mapped_;      // by address
  std::map<PageHandle, SimPage> contents_;
  Nanoseconds asked_at_{0};  // the latest time at which anybody asked whether work was over
  bool unmapped_in_use_ = false;
};

}  // namespace vmm
