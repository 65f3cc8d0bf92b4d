// Virtual memory on plain Linux: one memfd holds the physical pages, mmap puts them where they are wanted.
#pragma once

#include <memory>
#include <mutex>
#include <set>

#include "driver/driver.h"
#include "driver/host_ledger.h"

namespace vmm {

/// A page's place is its offset in the memfd.
/// Streams are in order and done when the call returns: CPU work needs no waiting for.
class HostDriver final : public Driver {
 public:
  /// `name` shows in /proc/self/maps as /memfd:NAME.
  explicit HostDriver(const char* name);
  ~HostDriver() override;
  HostDriver(const HostDriver&) = delete;
  HostDriver& operator=(const HostDriver&) = delete;

  const Capabilities& capabilities() const noexcept override { return capabilities_; }
  Address reserve(Bytes size, Bytes alignment) override;
  void free_reservation(Address base, Bytes size) override;
  PageHandle create(Bytes page_bytes, Place place) override;
  void release(PageHandle page) override;
  void map(std::span<const PageMapping> pages) override;
  void set_access(std::span<const PageMapping> pages) override;
  void unmap(std::span<const PageMapping> pages, std::size_t& done) override;
  void copy(Address to, Address from, Bytes size, StreamHandle stream) override;
  void zero(Address address, Bytes size, StreamHandle stream) override;
  StreamHandle create_stream() override;
  void destroy_stream(StreamHandle stream) override;
  EventHandle record(StreamHandle stream) override;
  bool query(EventHandle event) override;
  void wait(EventHandle event) override;
  void destroy_event(EventHandle event) override;
  void bind_thread() override {}

  int memfd() const noexcept { return memfd_; }
  /// What the memfd's pages take, by the kernel's account.
  std::uint64_t committed_bytes() const;

 private:
  void require_stream(StreamHandle stream);

  Capabilities capabilities_;
  int memfd_;
  std::mutex mutex_;  // guards what follows; system calls are made outside it
  HostLedger ledger_;
  std::set<std::uint64_t> streams_{0};
  std::set<std::uint64_t> events_;
  std::uint64_t next_stream_ = 1;
  std::uint64_t next_event_ = 1;
};

}  // namespace vmm
