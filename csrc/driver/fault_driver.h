// A driver around another that fails on command and holds events back: for tests only.
#pragma once

#include <atomic>
#include <map>
#include <mutex>
#include <string>

#include "driver/driver_decorator.h"

namespace vmm {

enum class Fault : std::uint8_t { error, out_of_memory, mapping_limit };

/// Every call of the contract that can fail for real counts one; the n-th from `fail_at` throws *before*
/// it reaches the driver within, or, for `unmap`, after the first half of its entries.
class FaultDriver final : public DriverDecorator, private Gaps {
 public:
  using DriverDecorator::DriverDecorator;

  /// Fails calls n, n + 1, … n + times - 1 from now on (n = 1 is the next call). times = 0: none.
  void fail_at(std::int64_t n, std::int64_t times, Fault fault);
  /// Calls since the last fail_at, failed ones included.
  std::int64_t calls() const noexcept { return calls_.load(); }
  /// "unmap #12" of the last call that was failed, or "".
  std::string last_failed() const;
  /// While held, events recorded from now on do not complete.
  void hold_events(bool hold);
  /// Events recorded from now on complete no sooner than at the n-th query after the first.
  void delay_events(std::uint64_t queries);

  Gaps* gaps() noexcept override { return DriverDecorator::gaps() == nullptr ? nullptr : this; }
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
  bool due();
  void maybe_fail(const char* call);
  [[noreturn]] void fail(const char* call);

  std::atomic<std::int64_t> calls_{0};
  mutable std::mutex mutex_;
  std::int64_t first_ = 0;
  std::int64_t times_ = 0;
  Fault fault_ = Fault::error;
  std::string last_failed_;
  std::uint64_t delay_ = 0;
  std::map<std::uint64_t, std::uint64_t> delayed_;  // event → queries to go
};

}  // namespace vmm
