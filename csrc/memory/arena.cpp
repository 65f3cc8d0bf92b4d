#include "memory/arena.h"

#include <iterator>

namespace vmm {
namespace {

OwnedRange<Driver> reserve_largest(Driver& driver, Bytes wanted, Bytes least, Bytes alignment) {
  for (Bytes size = wanted; size > least; size = round_up(size / 2, alignment)) {
    try {
      return {driver, driver.reserve(size, alignment), size};
    } catch (const DriverOutOfMemory&) {  // Less may do.
    }
  }
  return {driver, driver.reserve(least, alignment), least};
}

}  // namespace

Arena::Arena(Driver& driver, Bytes wanted, Bytes least, Bytes alignment)
    : range_(reserve_largest(driver, wanted, least, alignment)) {
  pieces_[range_.base().value] = {range_.size(), true};
}

std::optional<AddressRange> Arena::allocate(Bytes size, Bytes alignment) {
  for (auto it = pieces_.begin(); it != pieces_.end(); ++it) {
    const Address start{it->first};
    const Bytes length = it->second.size;
    const Address base{round_up(Bytes{start.value}, alignment).count};
    const Bytes before = base - start;
    if (!it->second.free || before >= length || length - before < size) continue;
    // This allocates all that it needs first, so that nothing fails from there on.
    const Bytes after = length - before - size;
    std::map<std::uintptr_t, Piece> made;
    made[base.value] = {size, false};
    if (after.count != 0) made[(base + size).value] = {after, true};
    if (before.count != 0)
      it->second.size = before;
    else
      pieces_.erase(it);
    pieces_.merge(made);
    return std::optional<AddressRange>(std::in_place, *this, base, size);
  }
  return std::nullopt;
}

void Arena::free_reservation(Address base, Bytes) noexcept {
  auto it = pieces_.find(base.value);
  it->second.free = true;
  if (auto next = std::next(it); next != pieces_.end() && next->second.free) {
    it->second.size += next->second.size;
    pieces_.erase(next);
  }
  if (it == pieces_.begin()) return;
  if (auto before = std::prev(it); before->second.free) {
    before->second.size += it->second.size;
    pieces_.erase(it);
  }
}

}  // namespace vmm
