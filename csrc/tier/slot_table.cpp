#include "tier/slot_table.h"

#include <algorithm>
#include <bit>
#include <string>

#include "base/error.h"

namespace vmm {
namespace {

// A store in pieces has millions of gaps, and nobody waits until all of them have been measured.
constexpr int gaps_measured = 256;

[[noreturn]] void refuse_slot(TierSlot slot, const char* why) {
  throw InvalidArgument("slot: " + std::to_string(slot.index) + " of generation " +
                        std::to_string(slot.generation) + " " + why);
}

}  // namespace

SlotTable::SlotTable(std::uint32_t slots) : slots_(slots), free_bits_((slots + 63ULL) / 64), free_(slots) {
  for (std::uint32_t i = 0; i < slots; ++i) free_bits_[i / 64] |= std::uint64_t{1} << i % 64;
}

std::vector<TierSlot> SlotTable::take(std::uint32_t count) {
  std::vector<TierSlot> out;
  if (count > free_) return out;
  out.reserve(count);
  std::uint32_t at = run_of(count, cursor_);
  if (at == size()) at = run_of(count, 0);
  if (at == size()) at = cursor_;
  for (; out.size() < count; ++at) {
    at = next(at, true);
    if (at == size()) at = next(0, true);
    out.push_back(occupy(at));
  }
  cursor_ = at < size() ? at : 0;
  return out;
}

void SlotTable::give_back(TierSlot name) {
  Slot& slot = mine(name);
  if (slot.transfers > 0)
    slot.doomed = true;
  else
    release(name.index);
}

void SlotTable::begin(TierSlot name, TransferKind kind) {
  Slot& slot = mine(name);
  if (kind == TransferKind::write && slot.state != State::empty)
    refuse_slot(name, "was written before: a slot is written once each time it is taken");
  if (kind == TransferKind::read && slot.state != State::full)
    refuse_slot(name, "cannot be read: no write of it has ended well");
  ++slot.transfers;
  if (kind == TransferKind::write) slot.state = State::writing;
}

void SlotTable::cancel(TierSlot name, TransferKind kind) noexcept {
  Slot& slot = slots_[name.index];
  if (kind == TransferKind::write) slot.state = State::empty;
  if (--slot.transfers == 0 && slot.doomed) release(name.index);
}

void SlotTable::end(TierSlot name, TransferKind kind, Outcome outcome, std::uint32_t checksum) noexcept {
  if (outcome == Outcome::device) return cancel(name, kind);
  Slot& slot = slots_[name.index];
  if (kind == TransferKind::read) {
    if (outcome != Outcome::done) slot.suspect = true;
  } else if (outcome == Outcome::done) {
    slot.state = State::full;
    slot.checksum = checksum;
  } else {
    quarantine(slot);
  }
  if (--slot.transfers == 0 && slot.doomed) release(name.index);
}

SlotTable::Slot& SlotTable::mine(TierSlot name) {
  if (name.index >= size()) refuse_slot(name, "is not in this store");
  Slot& slot = slots_[name.index];
  if (slot.generation != name.generation || slot.state == State::free || slot.doomed)
    refuse_slot(name, "was given back");
  return slot;
}

void SlotTable::release(std::uint32_t index) noexcept {
  Slot& slot = slots_[index];
  if (slot.suspect && slot.state != State::bad) quarantine(slot);
  slot.doomed = false;
  if (slot.state == State::bad) {
    ++slot.generation;  // the old name is nobody's any more
    return;
  }
  slot.state = State::free;
  free_bits_[index / 64] |= std::uint64_t{1} << index % 64;
  ++free_;
}

void SlotTable::quarantine(Slot& slot) noexcept {
  slot.state = State::bad;
  ++quarantined_;
}

TierSlot SlotTable::occupy(std::uint32_t index) {
  Slot& slot = slots_[index];
  slot.state = State::empty;
  free_bits_[index / 64] &= ~(std::uint64_t{1} << index % 64);
  --free_;
  return {index, ++slot.generation};
}

/// The first slot at or after `from` that is free, or the first that is not; size() if there is none.
std::uint32_t SlotTable::next(std::uint32_t from, bool free) const {
  for (std::size_t word = from / 64; word < free_bits_.size(); ++word) {
    std::uint64_t bits = free ? free_bits_[word] : ~free_bits_[word];
    if (word == from / 64) bits &= ~std::uint64_t{0} << from % 64;
    if (bits != 0)
      return std::min(
          static_cast<std::uint32_t>(word * 64) + static_cast<std::uint32_t>(std::countr_zero(bits)), size());
  }
  return size();
}

/// Where so many free slots lie side by side, or size().
std::uint32_t SlotTable::run_of(std::uint32_t count, std::uint32_t from) const {
  std::uint32_t first = next(from, true);
  for (int gaps = 0; first < size() && gaps < gaps_measured; ++gaps) {
    const std::uint32_t last = next(first, false);
    if (last - first >= count) return first;
    first = next(last, true);
  }
  return size();
}

}  // namespace vmm
