// A driver around another that refuses calls whose arguments break a rule of the contract, which Linux would
// silently accept and CUDA answer with a number.
#pragma once

#include "driver/driver_decorator.h"
#include "driver/ledger.h"

namespace vmm {

/// It throws InvalidArgument, which names the argument, before it calls the driver within. When a call of
/// that driver fails, the ledger is as it was before the call, so a driver that fails on command may stand
/// inside of this one or around it. Safe from any thread.
class CheckedDriver final : public DriverDecorator {
 public:
  explicit CheckedDriver(std::shared_ptr<Driver> inner);

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
  std::byte* allocate_host(Bytes size) override;
  void release_host(std::byte* memory) override;
  void copy_out(std::byte* to, Address from, Bytes size, StreamHandle stream) override;
  void copy_in(Address to, const std::byte* from, Bytes size, StreamHandle stream) override;

  Ledger ledger_;
};

}  // namespace vmm
