// A driver around another that refuses calls whose arguments break a rule of the contract, which Linux would
// silently accept and CUDA answer with a number.
#pragma once

#include <mutex>

#include "driver/driver_decorator.h"
#include "driver/ledger.h"

namespace vmm {

/// Every refusal is an InvalidArgument that names the argument, and reaches the driver within not at all.
/// What the driver within fails to do has not happened in the ledger either: so a driver that fails on
/// command may stand inside or outside of this one.
class CheckedDriver final : public DriverDecorator, private Gaps {
 public:
  explicit CheckedDriver(std::shared_ptr<Driver> inner);

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

 private:
  void set_gap(Address start, Bytes size, Gap gap) override;

  std::mutex mutex_;  // guards the ledger; the driver within is called without it
  Ledger ledger_;
};

}  // namespace vmm
