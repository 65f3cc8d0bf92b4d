#include "tier/device_link.h"

#include <algorithm>
#include <chrono>
#include <exception>
#include <thread>
#include <utility>

#include "base/clock.h"
#include "base/error.h"
#include "base/undo.h"
#include "tier/slot_medium.h"

namespace vmm {
namespace {

constexpr Nanoseconds longest_pause = std::chrono::milliseconds(10);

class PinnedSlabs final : public SlabMemory {
 public:
  explicit PinnedSlabs(std::shared_ptr<Driver> device) : device_(std::move(device)) {}
  std::byte* allocate(Bytes size) override { return device_->host_copies()->allocate_host(size); }
  void release(std::byte* slab, Bytes) noexcept override {
    undo_or_leak([&] { device_->host_copies()->release_host(slab); });
  }

 private:
  const std::shared_ptr<Driver> device_;
};

}  // namespace

DeviceLink::~DeviceLink() {
  for (const StreamHandle stream : spare_) undo_or_leak([&] { device_->destroy_stream(stream); });
}

StreamHandle DeviceLink::take() {
  {
    const std::lock_guard lock(mutex_);
    if (!spare_.empty()) {
      const StreamHandle stream = spare_.back();
      spare_.pop_back();
      return stream;
    }
    spare_.reserve(spare_.capacity() + 1);  // for when it is given back
  }
  return device_->create_stream();
}

/// Waits for what is on the stream, however often that fails: its memory is about to be used for something
/// else. For whoever waits for the transfers that is a device that hangs.
void DeviceLink::end(StreamHandle stream) {
  for (Nanoseconds pause = std::chrono::microseconds(100);; pause = std::min(2 * pause, longest_pause)) {
    try {
      device_->host_copies()->finish(stream);
      const std::lock_guard lock(mutex_);
      spare_.push_back(stream);
      return;
    } catch (const DeviceLost&) {
      throw;
    } catch (const std::exception&) {
    }
    std::this_thread::sleep_for(pause);
  }
}

void DeviceLink::run(const std::function<void(HostCopies&, StreamHandle)>& begin) try {
  const StreamHandle stream = take();
  try {
    begin(*device_->host_copies(), stream);
  } catch (...) {
    end(stream);
    throw;
  }
  end(stream);
} catch (const std::exception& error) {
  throw DeviceFailed(error.what());
}

std::shared_ptr<SlabMemory> pinned_slabs(std::shared_ptr<Driver> device) {
  return std::make_shared<PinnedSlabs>(std::move(device));
}

}  // namespace vmm
