// Virtual memory on plain Linux: one memfd holds the physical pages, mmap puts them where they are wanted.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "driver/address_ranges.h"
#include "driver/driver.h"
#include "driver/host_mappings.h"
#include "driver/host_streams.h"
#include "driver/mapped_pages.h"

namespace vmm {

/// A page's place is its offset in the memfd.
class HostDriver final : public Driver, private Gaps {
 public:
  /// `name` shows in /proc/self/maps as /memfd:NAME.
  explicit HostDriver(const char* name);
  ~HostDriver() override;
  HostDriver(const HostDriver&) = delete;
  HostDriver& operator=(const HostDriver&) = delete;

  const Capabilities& capabilities() const noexcept override { return capabilities_; }
  Address reserve(Bytes size, Bytes alignment) override;
  void free_reservation(Address base, Bytes size) override;
  Gaps* gaps() noexcept override { return this; }
  PageHandle create(Bytes page_bytes, Place place) override;
  void release(PageHandle page) override;
  void map(std::span<const PageMapping> pages) override;
  void set_access(std::span<const PageMapping> pages) override;
  void unmap(std::span<const PageMapping> pages, std::size_t& done) override;
  void copy(Address to, Address from, Bytes size, StreamHandle stream) override;
  void zero(std::span<const MemoryRange> ranges, StreamHandle stream) override;
  StreamHandle create_stream() override { return streams_.create(); }
  void destroy_stream(StreamHandle stream) override { streams_.destroy(stream); }
  EventHandle record(StreamHandle stream) override { return streams_.record(stream); }
  bool capturing(StreamHandle) override { return false; }
  bool query(EventHandle event) override { return streams_.query(event); }
  void wait(EventHandle event) override { streams_.wait(event); }
  void destroy_event(EventHandle event) override { streams_.destroy(event); }
  void bind_thread() override {}
  std::uint64_t mappings_left() const noexcept override { return host::MappingCount::of_process().left(); }

  int memfd() const noexcept { return memfd_; }
  /// What the memfd's pages take, by the kernel's account.
  std::uint64_t committed_bytes() const;

 private:
  struct GapPiece {
    Address start;
    Bytes size;
    Gap gap;
  };
  void set_gap(Address start, Bytes size, Gap gap) override;
  std::vector<GapPiece> gaps_in(Address start, Bytes size);
  void note_gap(Address start, Bytes size, Gap gap);
  int restore_gap(Address start, Bytes size);
  std::int64_t add_mappings(std::span<const PageMapping> pages);
  void remove_mappings(std::span<const PageMapping> pages);
  void refuse_in_use(std::span<const PageMapping> pages) const;

  Capabilities capabilities_;
  int memfd_;
  std::mutex mutex_;  // guards what follows; system calls are made without it
  std::map<PageHandle, Bytes> page_sizes_;
  MappedPages mapped_;
  AddressRanges zero_gaps_;
  HostStreams streams_;
};

}  // namespace vmm
