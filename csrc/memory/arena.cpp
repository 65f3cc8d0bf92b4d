#include "memory/arena.h"

namespace vmm {
namespace {

ReservedRange reserve_largest(Driver& driver, Bytes wanted, Bytes least, Bytes alignment) {
  for (Bytes size = wanted; size > least; size = round_up(size / 2, alignment)) {
    try {
      return ReservedRange(driver, size, alignment);
    } catch (const DriverOutOfMemory&) {  // try less
    }
  }
  return ReservedRange(driver, least, alignment);
}

}  // namespace

Arena::Arena(Driver& driver, Bytes wanted, Bytes least, Bytes alignment)
    : range_(reserve_largest(driver, wanted, least, alignment)) {
  free_[range_.base().value] = range_.size();
}

std::optional<Address> Arena::allocate(Bytes size, Bytes alignment) {
  for (auto it = free_.begin(); it != free_.end(); ++it) {
    const Address start{it->first};
    const Bytes length = it->second;
    const Address base{round_up(Bytes{start.value}, alignment).count};
    const Bytes before = base - start;
    if (before >= length || length - before < size) continue;
    const Bytes after = length - before - size;
    if (after.count != 0) free_[(base + size).value] = after;
    if (before.count != 0)
      it->second = before;
    else
      free_.erase(it);
    return base;
  }
  return std::nullopt;
}

void Arena::free(Address base, Bytes size) {
  auto [it, inserted] = free_.emplace(base.value, size);
  if (!inserted) throw InvariantViolation("arena: a range was freed twice");
  if (auto next = std::next(it); next != free_.end() && it->first + it->second.count == next->first) {
    it->second += next->second;
    free_.erase(next);
  }
  if (it != free_.begin()) {
    auto before = std::prev(it);
    if (before->first + before->second.count == it->first) {
      before->second += it->second;
      free_.erase(it);
    }
  }
}

}  // namespace vmm
