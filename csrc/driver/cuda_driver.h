// Virtual memory on NVIDIA GPUs, by the virtual-memory calls of libcuda.
#pragma once

#include <map>
#include <memory>
#include <set>
#include <vector>

#include "base/fork.h"
#include "base/lock.h"
#include "driver/cuda_calls.h"
#include "driver/cuda_properties.h"
#include "driver/driver.h"

namespace vmm {

/// A page is a handle of cuMemCreate, a stream is a CUstream, and an event a CUevent. Streams may be
/// anybody's. The default stream is CUDA's legacy one. Only copy() and zero() on the default stream use a
/// stream of the driver's own instead, and wait for it, so that nobody else's work is held up.
class CudaDriver final : public Driver, private Exports, private HostCopies {
 public:
  /// Throws InvalidArgument for a device that is not there or cannot do what is asked of it, and DriverError
  /// where CUDA cannot be used.
  explicit CudaDriver(const CudaOptions& options);
  ~CudaDriver() override;
  CudaDriver(const CudaDriver&) = delete;
  CudaDriver& operator=(const CudaDriver&) = delete;

  const Capabilities& capabilities() const noexcept override { return capabilities_; }
  Address reserve(Bytes size, Bytes alignment) override;
  void free_reservation(Address base, Bytes size) override;
  PageHandle create(Bytes page_bytes, Place place) override;
  void release(PageHandle page) override;
  void map(std::span<const PageMapping> pages) override;
  void set_access(std::span<const PageMapping> pages) override;
  void unmap(std::span<const PageMapping> pages, std::size_t& done) override;
  void copy(Address to, Address from, Bytes size, StreamHandle stream) override;
  void zero(std::span<const MemoryRange> ranges, StreamHandle stream) override;
  Exports* exports() noexcept override { return shareable_ ? this : nullptr; }
  HostCopies* host_copies() noexcept override { return this; }
  StreamHandle create_stream() override;
  void destroy_stream(StreamHandle stream) override;
  EventHandle record(StreamHandle stream) override;
  bool capturing(StreamHandle stream) override;
  bool query(EventHandle event) override;
  void wait(EventHandle event) override;
  void destroy_event(EventHandle event) override;
  void bind_thread() override;
  void together(const std::function<void()>& work) override;
  /// How much of the device's memory is free now.
  Bytes free_bytes() const;
  /// How many events are recorded and not destroyed yet; for tests.
  std::size_t events_in_use() const;

 private:
  static cuda::Stream to_cuda(StreamHandle stream) { return reinterpret_cast<cuda::Stream>(stream.value); }
  static cuda::Event to_cuda(EventHandle event) { return reinterpret_cast<cuda::Event>(event.value); }
  /// Every call is made within one of these. Throws in a forked child.
  cuda::Calls::Scope enter() const;
  ExportedPage export_page(Address address) override;
  std::byte* allocate_host(Bytes size) override;
  void release_host(std::byte* memory) override;
  void copy_out(std::byte* to, Address from, Bytes size, StreamHandle stream) override;
  void copy_in(Address to, const std::byte* from, Bytes size, StreamHandle stream) override;
  void finish(StreamHandle stream) override;
  void note_exportable(std::span<const PageMapping> pages);
  void forget_exportable(std::span<const PageMapping> pages) noexcept;
  void undo_map(std::span<const PageMapping> mapped) noexcept;
  void unmap_stuck(Address start, Bytes size);
  bool is_over(StreamHandle stream) const noexcept;
  void check_stream(StreamHandle stream) const;
  cuda::Context context_of(StreamHandle stream) const;
  bool is_capturing(StreamHandle stream) const;
  EventHandle take_event();
  EventHandle create_event(bool foreign);
  cuda::Result record(EventHandle event, StreamHandle stream) const;
  void check_event(EventHandle event);
  /// Calls work(stream). On the default stream it is over when this returns, or throws.
  template <class Work>
  void on_stream(StreamHandle stream, Work work);

  static constexpr const char* this_driver = "this CUDA device's driver";

  ForkGuard fork_guard_;
  cuda::Calls cuda_;
  cuda::PageProperties properties_;
  Capabilities capabilities_;
  const bool shareable_;
  cuda::Stream own_stream_ = nullptr;
  mutable Mutex mutex_{
      LockRank::cuda_driver};                  // guards what follows; only export_page calls libcuda under it
  std::map<Address, PageMapping> exportable_;  // what is mapped, where pages can be exported
  std::set<std::uint64_t> streams_;            // those we made
  std::set<std::uint64_t> events_;             // in use
  std::set<std::uint64_t> foreign_events_;     // of these: made for a stream of another context
  std::vector<std::uint64_t> spare_events_;
  std::vector<std::uint64_t> stuck_events_;  // could not be destroyed
  std::map<std::uint64_t, Bytes> stuck_;     // mapped, by a map that failed and could not be undone
};

}  // namespace vmm
