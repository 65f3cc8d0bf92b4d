// Which slots of a tier's store are free, and what is in the others.
#pragma once

#include <cstdint>
#include <vector>

#include "base/types.h"

namespace vmm {

/// The name of one use of a slot: whoever takes the slot next gets another generation, so an old name cannot
/// reach what is new.
struct TierSlot {
  std::uint32_t index = 0;
  std::uint32_t generation = 0;

  constexpr auto operator<=>(const TierSlot&) const = default;
  /// What its checksum begins with (checked_copy.h).
  constexpr std::uint64_t seed() const { return std::uint64_t{index} << 32 | generation; }
};

enum class TransferKind : std::uint8_t { write, read };

/// How a transfer ended.
enum class Outcome : std::uint8_t {
  done,       // of a read: the bytes are those that were written
  failed,     // a system call, or memory for it
  corrupt,    // what came back is not what was written
  timed_out,  // it waited for a worker for too long, and has touched nothing
  closed,     // the store was closed before it began, and it has touched nothing
  device,     // the device could not copy: what is in the slot is as good as before
  read_only,  // the store had failed too often to write, and it has touched nothing
};

/// Every slot is free, taken or quarantined. Who takes a slot writes it once, and reads it as often as he
/// wants. A slot whose write failed is in quarantine, and so is one whose read failed, from when it is given
/// back. One that is given back in the middle of a transfer is free when the last transfer ends. Sixteen
/// bytes for each slot. Not thread-safe.
class SlotTable {
 public:
  explicit SlotTable(std::uint32_t slots);

  std::uint32_t size() const { return static_cast<std::uint32_t>(slots_.size()); }
  std::uint32_t free() const { return free_; }
  std::uint32_t quarantined() const { return quarantined_; }

  /// So many free slots, or none where there are fewer: side by side and in order if such a run is found
  /// among the first few hundred, else any.
  std::vector<TierSlot> take(std::uint32_t count);
  /// These throw InvalidArgument for a slot that is not the caller's, and begin() for one that was written
  /// before it is written, or was not before it is read.
  void give_back(TierSlot slot);
  void begin(TierSlot slot, TransferKind kind);
  /// As if it had never begun.
  void cancel(TierSlot slot, TransferKind kind) noexcept;
  /// `checksum`: of what was written.
  void end(TierSlot slot, TransferKind kind, Outcome outcome, std::uint32_t checksum) noexcept;
  std::uint32_t checksum(TierSlot slot) const { return slots_[slot.index].checksum; }

 private:
  enum class State : std::uint8_t { free, empty, writing, full, bad };
  struct Slot {
    std::uint32_t generation = 0;
    std::uint32_t checksum = 0;
    std::uint32_t transfers = 0;
    State state = State::free;
    bool doomed = false;   // given back in the middle of a transfer
    bool suspect = false;  // a read failed
  };

  Slot& mine(TierSlot slot);
  void release(std::uint32_t index) noexcept;
  void quarantine(Slot& slot) noexcept;
  TierSlot occupy(std::uint32_t index);
  std::uint32_t next(std::uint32_t from, bool free) const;
  std::uint32_t run_of(std::uint32_t count, std::uint32_t from) const;

  std::vector<Slot> slots_;
  std::vector<std::uint64_t> free_bits_;
  std::uint32_t free_ = 0;
  std::uint32_t quarantined_ = 0;
  std::uint32_t cursor_ = 0;  // behind what was taken last
};

}  // namespace vmm
