// Virtual memory on NVIDIA GPUs, by the driver's virtual-memory calls.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <vector>

#include "base/fork.h"
#include "driver/cuda_calls.h"
#include "driver/cuda_properties.h"
#include "driver/driver.h"

namespace vmm {

/// A page is a cuMemCreate handle, a stream a CUstream, an event a CUevent. Streams may be anybody's; the
/// default stream is the legacy one, but for copy() and zero(), which then wait on a stream of their own so
/// that nobody's work is held up.
class CudaDriver final : public Driver, private Exports {
 public:
  /// Throws InvalidArgument for devices that are not there or cannot do what is asked of them, DriverError
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
  StreamHandle create_stream() override;
  void destroy_stream(StreamHandle stream) override;
  EventHandle record(StreamHandle stream) override;
  bool capturing(StreamHandle stream) override;
  bool query(EventHandle event) override;
  void wait(EventHandle event) override;
  void destroy_event(EventHandle event) override;
  void bind_thread() override;
  void together(const std::function<void()>& work) override;
  /// Of the device's memory, now.
  Bytes free_bytes() const;
  /// For tests: recorded and not yet destroyed.
  std::size_t events_in_use() const;

 private:
  /// What every call needs: that this is not a forked child, and the context.
  class Scope {
   public:
    explicit Scope(const CudaDriver& driver);

   private:
    cuda::Calls::Scope scope_;
  };

  ExportedPage export_page(Address address) override;
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
  mutable std::mutex mutex_;  // guards what follows; export_page alone calls libcuda while it holds this
  std::map<Address, PageMapping> exportable_;  // what is mapped, where pages can be exported
  std::set<std::uint64_t> streams_;            // those we made
  std::set<std::uint64_t> events_;             // in use
  std::set<std::uint64_t> foreign_events_;     // of these: made for a stream of another context
  std::vector<std::uint64_t> spare_events_;
  std::vector<std::uint64_t> stuck_events_;  // could not be destroyed
  std::map<std::uint64_t, Bytes> stuck_;     // mapped, by a map that failed and could not be undone
};

}  // namespace vmm
