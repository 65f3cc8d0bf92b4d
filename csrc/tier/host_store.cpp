#include "tier/host_store.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "tier/device_link.h"
#include "tier/slab.h"
#include "tier/slot_checksums.h"

namespace vmm {
namespace {

constexpr Bytes device_call = 16_MiB;  // at a time: some 0.3 ms of the link, beside which a wait is short

/// The slots' places.
class Slabs {
 public:
  Slabs(const HostStoreOptions& options, std::uint64_t slots, const std::shared_ptr<SlabMemory>& memory)
      : slot_(options.slot), slots_per_slab_(std::max<std::uint64_t>(1, options.slab / options.slot)) {
    slabs_.reserve((slots + slots_per_slab_ - 1) / slots_per_slab_);
    for (std::uint64_t done = 0; done < slots; done += slots_per_slab_)
      slabs_.emplace_back(memory, slot_ * std::min(slots_per_slab_, slots - done));
  }
  std::byte* place(std::uint32_t slot) const {
    return slabs_[slot / slots_per_slab_].start() + slot % slots_per_slab_ * slot_.count;
  }

 private:
  const Bytes slot_;
  const std::uint64_t slots_per_slab_;
  std::vector<Slab> slabs_;
};

/// The CPU copies, and makes checksums as it does.
class HostSlabs final : public SlotMedium {
 public:
  HostSlabs(Slabs slabs, Bytes slot) : slabs_(std::move(slabs)), slot_(slot) {}

  void write(std::span<SlotCopy> copies) override {
    answer_with_checksums(copies, slot_, [this](const SlotCopy& copy) {
      return CheckedCopy{slabs_.place(copy.slot), copy.memory, copy.seed, 0};
    });
  }
  void read(std::span<SlotCopy> copies) override {
    answer_with_checksums(copies, slot_, [this](const SlotCopy& copy) {
      return CheckedCopy{copy.memory, slabs_.place(copy.slot), copy.seed, 0};
    });
  }

 private:
  const Slabs slabs_;
  const Bytes slot_;
};

/// The device copies. The CPU does not see the bytes, so there are no checksums unless it looks at them for
/// no other purpose.
class DeviceSlabs final : public SlotMedium {
 public:
  DeviceSlabs(Slabs slabs, Bytes slot, std::shared_ptr<Driver> device, bool verifies)
      : slabs_(std::move(slabs)), slot_(slot), link_(std::move(device)), verifies_(verifies) {}

  void bind_thread() override { link_.bind_thread(); }
  bool checks() const override { return verifies_; }
  void write(std::span<SlotCopy> copies) override {
    link_.run([&](HostCopies& device, StreamHandle stream) {
      for (const SlotCopy& each : copies)
        device.copy_out(slabs_.place(each.slot), address_of(each.memory), slot_, stream);
    });
    look_at(copies);
  }
  void read(std::span<SlotCopy> copies) override {
    look_at(copies);
    link_.run([&](HostCopies& device, StreamHandle stream) {
      for (const SlotCopy& each : copies)
        device.copy_in(address_of(each.memory), slabs_.place(each.slot), slot_, stream);
    });
  }

 private:
  void look_at(std::span<SlotCopy> copies) const {
    if (!verifies_) return;
    answer_with_checksums(copies, slot_, [this](const SlotCopy& copy) {
      return CheckedCopy{nullptr, slabs_.place(copy.slot), copy.seed, 0};
    });
  }

  const Slabs slabs_;
  const Bytes slot_;
  DeviceLink link_;
  const bool verifies_;
};

}  // namespace

void check_host_capacity(Bytes capacity, const SlabMemory& memory, const MemoryFiles& files) {
  const MemoryLimits limits = memory_limits(files, memory.locks());
  const auto least = limits.least();
  if (least && capacity > *least)
    throw InvalidArgument("capacity: " + std::to_string(capacity.count) +
                          " bytes of host memory are more than there are: " + limits.described());
}

std::unique_ptr<TierStore> make_host_store(const HostStoreOptions& options,
                                           const std::shared_ptr<SlabMemory>& memory,
                                           std::shared_ptr<Clock> clock, std::shared_ptr<Log> log) {
  TierStoreOptions store;
  store.slot = options.slot;
  store.slots = slots_within(options.capacity, options.slot);
  check_host_capacity(options.slot * store.slots, *memory, options.files);
  store.threads = options.device ? options.device_threads : options.threads;
  store.merged = merged_slots(options.slot);
  store.thread_name = "vmm-host-tier";
  store.on_end = options.on_end;
  Slabs slabs(options, store.slots, memory);
  std::shared_ptr<SlotMedium> medium;
  if (options.device) {
    store.merged = std::clamp<std::size_t>(device_call / options.slot, 1, most_merged);
    medium =
        std::make_shared<DeviceSlabs>(std::move(slabs), options.slot, options.device, options.verify_device);
  } else {
    medium = std::make_shared<HostSlabs>(std::move(slabs), options.slot);
  }
  return std::make_unique<TierStore>(store, std::move(medium), std::move(clock), std::move(log));
}

}  // namespace vmm
