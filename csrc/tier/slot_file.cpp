#include "tier/slot_file.h"

#include <array>
#include <limits>
#include <system_error>

#include "base/error.h"
#include "tier/slot_checksums.h"
#include "tier/staged_medium.h"
#include "tier/unnamed_file.h"

namespace vmm {
namespace {

constexpr int most_interruptions = 100;

using Parts = std::array<iovec, most_merged>;
using VectoredCall = ssize_t (SlotCalls::*)(int, const iovec*, int, off_t);

class SlotFile final : public SlotMedium {
 public:
  SlotFile(UnnamedFile file, Bytes slot, std::shared_ptr<SlotCalls> calls)
      : file_(std::move(file)), slot_(slot), calls_(std::move(calls)) {}

  void write(std::span<SlotCopy> copies) override {
    add_checksums(copies);
    move(copies, &SlotCalls::writev, "pwritev");
  }

  void read(std::span<SlotCopy> copies) override {
    move(copies, &SlotCalls::readv, "preadv");
    add_checksums(copies);
  }

  std::size_t alignment() const override { return file_.direct ? slot_alignment.count : 1; }

 private:
  void add_checksums(std::span<SlotCopy> copies) const {
    answer_with_checksums(
        copies, slot_, [](const SlotCopy& copy) { return CheckedCopy{nullptr, copy.memory, copy.seed, 0}; });
  }

  /// All bytes, however many calls that takes.
  void move(std::span<const SlotCopy> copies, VectoredCall call, const char* name) {
    const std::uint64_t all = slot_.count * copies.size();
    const std::uint64_t start = slot_.count * copies.front().slot;
    int interruptions = 0;
    for (std::uint64_t done = 0; done < all;) {
      Parts parts;
      const int count = parts_after(copies, done, parts);
      const ssize_t moved =
          ((*calls_).*call)(file_.file.get(), parts.data(), count, static_cast<off_t>(start + done));
      if (moved < 0 && errno == EINTR && ++interruptions < most_interruptions) continue;
      if (moved < 0) throw std::system_error(errno, std::generic_category(), name);
      const std::uint64_t usable = continuable(static_cast<std::uint64_t>(moved), all - done);
      // The end of the file: somebody has made it shorter. Or a write that gets nowhere.
      if (usable == 0)
        throw std::system_error(EIO, std::generic_category(), std::string(name) + " ended early");
      done += usable;
    }
  }

  /// How much of what was moved counts: a direct call must go on at a multiple of the alignment.
  std::uint64_t continuable(std::uint64_t moved, std::uint64_t left) const {
    return moved >= left || !file_.direct ? moved : moved / slot_alignment.count * slot_alignment.count;
  }

  /// The memory of the copies, without the first `done` bytes.
  int parts_after(std::span<const SlotCopy> copies, std::uint64_t done, Parts& parts) const {
    std::size_t count = 0;
    std::uint64_t inside = done % slot_.count;
    for (const SlotCopy& copy : copies.subspan(done / slot_.count)) {
      parts[count++] = {copy.memory + inside, slot_.count - inside};
      inside = 0;
    }
    return static_cast<int>(count);
  }

  const UnnamedFile file_;
  const Bytes slot_;
  const std::shared_ptr<SlotCalls> calls_;
};

}  // namespace

std::unique_ptr<TierStore> make_slot_file(const SlotFileOptions& options, std::shared_ptr<SlotCalls> calls,
                                          std::shared_ptr<Clock> clock, std::shared_ptr<Log> log) {
  TierStoreOptions store;
  store.slot = options.slot;
  store.slots = slots_within(options.capacity, options.slot);
  store.threads = options.threads;
  store.patience = options.patience;
  store.merged = merged_slots(options.slot);
  store.thread_name = "vmm-file-tier";
  store.waking = Waking::preempts;
  store.on_end = options.on_end;
  if (store.slots > static_cast<std::uint64_t>(std::numeric_limits<off_t>::max()) / options.slot.count)
    throw InvalidArgument("capacity: a file cannot be so long");
  UnnamedFile file =
      make_unnamed_file(options.directory, options.slot * store.slots, options.direct, *calls, *log);
  std::shared_ptr<SlotMedium> medium =
      std::make_shared<SlotFile>(std::move(file), options.slot, std::move(calls));
  if (options.device)
    medium = staged_medium(std::move(medium), options.device, options.slot, store.merged, options.threads);
  return std::make_unique<TierStore>(store, std::move(medium), std::move(clock), std::move(log));
}

}  // namespace vmm
