// What is in the memory of a course's sequences, and what must be.
#include <algorithm>

#include "simulate/course.h"

namespace vmm {
namespace {

/// The finaliser of SplitMix64: every bit of the result depends on every bit of the number.
std::uint64_t mixed(std::uint64_t number) {
  number = (number ^ number >> 30) * 0xBF58'476D'1CE4'E5B9;
  number = (number ^ number >> 27) * 0x94D0'49BB'1331'11EB;
  return number ^ number >> 31;
}

}  // namespace

/// Visits the memory of each of these tokens in each extent, and the number that it must hold.
template <class Visit>
void Course::for_each_record(const Sequence& sequence, const SlotPart& part, std::uint64_t from,
                             std::uint64_t to, Visit visit) const {
  const auto number = static_cast<std::uint64_t>(&part - parts_of(sequence).data());
  for (std::uint64_t at = from; at < to; ++at) {
    const auto token = static_cast<std::uint64_t>(sequence.text.token(at));
    for (std::uint64_t extent = 0; extent < part.extents; ++extent) {
      const Address start =
          part.lease->base() + part.lease->shape().extent_bytes * (part.first(sequence.slot) + extent);
      visit(MemoryRange{start + part.record_bytes * at, part.record_bytes},
            mixed(mixed(token) + number * 64 + extent));
    }
  }
}

void Course::write_contents(const Sequence& sequence, std::uint64_t from, std::uint64_t to) {
  for (const SlotPart& part : parts_of(sequence))
    for_each_record(sequence, part, from, to, [&](const MemoryRange& range, std::uint64_t number) {
      world_.driver().write(range, number);
    });
}

/// Everything that the next step of the sequence, which is awake, may read is what was written.
void Course::check_contents(const Sequence& sequence) {
  const std::uint64_t before = std::min(sequence.previous, sequence.length);
  for (const SlotPart& part : parts_of(sequence)) {
    const std::uint64_t window = part.window.count == 0 ? ~std::uint64_t{0} : part.window.count;
    for_each_record(sequence, part, before + 1 > window ? before + 1 - window : 0, sequence.length,
                    [&](const MemoryRange& range, std::uint64_t number) {
                      world_.driver().require_contents(range, number);
                    });
  }
}

}  // namespace vmm
