// A driver around another that fails on command and holds events back: for tests only.
#pragma once

#include <atomic>
#include <map>
#include <string>

#include "base/lock.h"
#include "driver/driver_decorator.h"

namespace vmm {

enum class Fault : std::uint8_t { error, out_of_memory, mapping_limit };

/// It counts the calls that it declares below. A call that is to fail throws before it reaches the driver
/// within; only `unmap` first unmaps half of its entries. Safe from any thread.
class FaultDriver final : public DriverDecorator {
 public:
  using DriverDecorator::DriverDecorator;

  /// Fails the calls n, n + 1, … n + times - 1, where the next call has the number 1. With times = 0 none
  /// fails.
  void fail_at(std::int64_t n, std::int64_t times, Fault fault);
  /// How many calls there were since the last fail_at, with those that failed.
  std::int64_t calls() const noexcept { return calls_.load(); }
  /// The last call that was made to fail, like "unmap #12"; "" if there was none.
  std::string last_failed() const;
  /// While held, events recorded from now on do not complete.
  void hold_events(bool hold);
  /// An event that is recorded from now on is not complete at its first `queries` queries.
  void delay_events(std::uint64_t queries);

  Address reserve(Bytes size, Bytes alignment) override;
  void free_reservation(Address base, Bytes size) override;
  PageHandle create(Bytes page_bytes, Place place) override;
  void release(PageHandle page) override;
  void map(std::span<const PageMapping> pages) override;
  void set_access(std::span<const PageMapping> pages) override;
  void unmap(std::span<const PageMapping> pages, std::size_t& done) override;
  void copy(Address to, Address from, Bytes size, StreamHandle stream) override;
  void zero(std::span<const MemoryRange> ranges, StreamHandle stream) override;
  EventHandle record(StreamHandle stream) override;
  bool query(EventHandle event) override;

 private:
  void set_gap(Address start, Bytes size, Gap gap) override;
  std::byte* allocate_host(Bytes size) override;
  void release_host(std::byte* memory) override;
  void copy_out(std::byte* to, Address from, Bytes size, StreamHandle stream) override;
  void copy_in(Address to, const std::byte* from, Bytes size, StreamHandle stream) override;
  void finish(StreamHandle stream) override;
  bool due();
  void maybe_fail(const char* call);
  [[noreturn]] void fail(const char* call);

  std::atomic<std::int64_t> calls_{0};
  mutable Mutex mutex_{LockRank::fault_driver};
  std::int64_t first_ = 0;
  std::int64_t times_ = 0;
  Fault fault_ = Fault::error;
  std::string last_failed_;
  std::uint64_t delay_ = 0;
  std::map<std::uint64_t, std::uint64_t> delayed_;  // event → queries to go
};

}  // namespace vmm
