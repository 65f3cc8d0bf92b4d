#include "tier/host_store.h"

#include <algorithm>
#include <string>
#include <vector>

#include "base/error.h"
#include "tier/slot_checksums.h"

namespace vmm {
namespace {

class HostSlabs final : public SlotMedium {
 public:
  HostSlabs(const HostStoreOptions& options, std::uint64_t slots, std::shared_ptr<SlabMemory> memory)
      : memory_(std::move(memory)),
        slot_(options.slot),
        slots_per_slab_(std::max<std::uint64_t>(1, options.slab / options.slot)) {
    slabs_.reserve((slots + slots_per_slab_ - 1) / slots_per_slab_);
    for (std::uint64_t done = 0; done < slots; done += slots_per_slab_) {
      const Bytes size = slot_ * std::min(slots_per_slab_, slots - done);
      slabs_.push_back({SlabOwner{memory_.get(), memory_->allocate(size), size}});
    }
  }

  void write(std::span<SlotCopy> copies) override {
    answer_with_checksums(copies, slot_, [this](const SlotCopy& copy) {
      return CheckedCopy{place(copy.slot), copy.memory, copy.seed, 0};
    });
  }

  void read(std::span<SlotCopy> copies) override {
    answer_with_checksums(copies, slot_, [this](const SlotCopy& copy) {
      return CheckedCopy{copy.memory, place(copy.slot), copy.seed, 0};
    });
  }

 private:
  struct SlabOwner {
    SlabOwner(SlabMemory* owner, std::byte* slab, Bytes bytes) : memory(owner), start(slab), size(bytes) {}
    SlabOwner(SlabOwner&& other) noexcept : memory(other.memory), start(other.start), size(other.size) {
      other.start = nullptr;
    }
    SlabOwner& operator=(SlabOwner&&) = delete;
    ~SlabOwner() {
      if (start != nullptr) memory->release(start, size);
    }

    SlabMemory* memory;
    std::byte* start;
    Bytes size;
  };

  std::byte* place(std::uint32_t slot) const {
    return slabs_[slot / slots_per_slab_].start + slot % slots_per_slab_ * slot_.count;
  }

  const std::shared_ptr<SlabMemory> memory_;
  const Bytes slot_;
  const std::uint64_t slots_per_slab_;
  std::vector<SlabOwner> slabs_;
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
  store.threads = options.threads;
  store.merged = merged_slots(options.slot);
  store.thread_name = "vmm-host-tier";
  store.on_end = options.on_end;
  return std::make_unique<TierStore>(store, std::make_shared<HostSlabs>(options, store.slots, memory),
                                     std::move(clock), std::move(log));
}

}  // namespace vmm
