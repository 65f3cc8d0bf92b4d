#include "tier/staged_medium.h"

#include <array>
#include <utility>
#include <vector>

#include "base/lock.h"
#include "tier/device_link.h"
#include "tier/slab.h"
#include "tier/slot_sizes.h"

namespace vmm {
namespace {

class StagedMedium final : public SlotMedium {
 public:
  StagedMedium(std::shared_ptr<SlotMedium> inner, const std::shared_ptr<Driver>& device, Bytes slot,
               std::size_t merged, unsigned workers)
      : inner_(std::move(inner)),
        link_(device),
        slot_(slot),
        memory_(pinned_slabs(device), slot * merged * workers) {
    for (unsigned i = 0; i < workers; ++i) spare_.push_back(memory_.start() + (slot * merged * i).count);
  }

  void bind_thread() override { link_.bind_thread(); }

  void write(std::span<SlotCopy> copies) override {
    const Staging staging(*this);
    link_.run([&](HostCopies& device, StreamHandle stream) {
      for (std::size_t i = 0; i < copies.size(); ++i)
        device.copy_out(staging.start + i * slot_.count, address_of(copies[i].memory), slot_, stream);
    });
    within(copies, staging, &SlotMedium::write);
  }

  void read(std::span<SlotCopy> copies) override {
    const Staging staging(*this);
    within(copies, staging, &SlotMedium::read);
    link_.run([&](HostCopies& device, StreamHandle stream) {
      for (std::size_t i = 0; i < copies.size(); ++i)
        device.copy_in(address_of(copies[i].memory), staging.start + i * slot_.count, slot_, stream);
    });
  }

  bool checks() const override { return inner_->checks(); }

 private:
  /// A worker's part of the memory, as long as it lives.
  struct Staging {
    explicit Staging(StagedMedium& of) : owner(of) {
      const std::lock_guard lock(owner.mutex_);
      start = owner.spare_.back();
      owner.spare_.pop_back();
    }
    ~Staging() {
      const std::lock_guard lock(owner.mutex_);
      owner.spare_.push_back(start);
    }
    Staging(const Staging&) = delete;
    Staging& operator=(const Staging&) = delete;

    StagedMedium& owner;
    std::byte* start;
  };

  /// What the inner medium does with the copies, whose memory is in `staging`.
  void within(std::span<SlotCopy> copies, const Staging& staging,
              void (SlotMedium::*work)(std::span<SlotCopy>)) {
    std::array<SlotCopy, most_merged> staged;
    for (std::size_t i = 0; i < copies.size(); ++i) {
      staged.at(i) = copies[i];
      staged[i].memory = staging.start + i * slot_.count;
    }
    ((*inner_).*work)(std::span(staged).first(copies.size()));
    for (std::size_t i = 0; i < copies.size(); ++i) copies[i].checksum = staged[i].checksum;
  }

  const std::shared_ptr<SlotMedium> inner_;
  DeviceLink link_;
  const Bytes slot_;
  const Slab memory_;
  Mutex mutex_{LockRank::device_link};
  std::vector<std::byte*> spare_;
};

}  // namespace

std::shared_ptr<SlotMedium> staged_medium(std::shared_ptr<SlotMedium> inner,
                                          const std::shared_ptr<Driver>& device, Bytes slot,
                                          std::size_t merged, unsigned workers) {
  return std::make_shared<StagedMedium>(std::move(inner), device, slot, merged, workers);
}

}  // namespace vmm
