// The way between the pages of a device, which the CPU does not reach, and the host's memory.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "base/lock.h"
#include "driver/driver.h"
#include "driver/slab_memory.h"

namespace vmm {

/// Copies run on streams of its own, one for each thread that copies at the same time, so that they are not
/// behind anybody's kernels. Safe from any thread. Whoever calls it waits, asleep.
class DeviceLink {
 public:
  /// The driver has host_copies().
  explicit DeviceLink(std::shared_ptr<Driver> device) : device_(std::move(device)) {}
  ~DeviceLink();
  DeviceLink(const DeviceLink&) = delete;
  DeviceLink& operator=(const DeviceLink&) = delete;

  /// See Driver::bind_thread.
  void bind_thread() { device_->bind_thread(); }
  /// What `begin(copies, stream)` has begun on the stream is over when this returns, also where it throws.
  /// Throws DeviceFailed.
  void run(const std::function<void(HostCopies&, StreamHandle)>& begin);

 private:
  StreamHandle take();
  void end(StreamHandle stream);

  const std::shared_ptr<Driver> device_;
  Mutex mutex_{LockRank::device_link};
  std::vector<StreamHandle> spare_;
};

/// Host memory to and from which the device copies. RLIMIT_MEMLOCK does not bound what CUDA locks.
std::shared_ptr<SlabMemory> pinned_slabs(std::shared_ptr<Driver> device);

}  // namespace vmm
