#include "ledger.h"

#include <unistd.h>

#include <algorithm>

namespace standin {
namespace {

constexpr Size host_span = Size{1} << 62;  // host addresses, away from the memfd's offsets

void add(std::vector<Span>& spans, Span span) {
  if (!spans.empty() && spans.back().start + spans.back().size == span.start)
    spans.back().size += span.size;
  else
    spans.push_back(span);
}

bool allows(const Mapping& mapping, int device, bool write) {
  const auto found = mapping.access.find(device);
  const int wanted = write ? CU_MEM_ACCESS_FLAGS_PROT_READWRITE : CU_MEM_ACCESS_FLAGS_PROT_READ;
  return found != mapping.access.end() && (found->second & wanted) == wanted;
}

template <class Thing>
bool overlaps(const ByStart<Thing>& things, Address start, Size size) {
  auto next = things.lower_bound(start);
  if (next != things.end() && next->second.start - start < size) return true;
  if (next == things.begin()) return false;
  const Thing& before = std::prev(next)->second;
  return start - before.start < before.size;
}

}  // namespace

Physical::~Physical() {
  if (shared_file >= 0) close(shared_file);
}

Reservation* Ledger::reservation_of(Address start, Size size) {
  Reservation* found = find_containing(reservations, start);
  if (found == nullptr || size > found->size - (start - found->start)) return nullptr;
  return found;
}

bool Ledger::anything_mapped(Address start, Size size) const { return overlaps(mappings, start, size); }

std::vector<Mapping*> Ledger::whole_mappings(Address start, Size size) {
  std::vector<Mapping*> out;
  Size covered = 0;
  for (auto next = mappings.find(start); covered < size; ++next) {
    if (next == mappings.end() || next->first != start + covered || next->second.size > size - covered)
      return {};
    out.push_back(&next->second);
    covered += next->second.size;
  }
  return out;
}

Located Ledger::locate(Address start, Size size, int device, bool write) {
  const Located refused{CUDA_ERROR_INVALID_VALUE, Place::pageable, {}};
  if (size == 0) return {};
  if (start == 0 || start + size < start) return refused;
  Located out;
  if (overlaps(reservations, start, size)) {
    out.place = Place::device;
    for (Address at = start; at < start + size;) {
      Mapping* mapping = find_containing(mappings, at);
      if (mapping == nullptr || !allows(*mapping, device, write)) return refused;
      const Size inside = at - mapping->start;
      const Size count = std::min(mapping->size - inside, start + size - at);
      add(out.spans, {mapping->handle->physical->offset + inside, count});
      at += count;
    }
    return out;
  }
  if (overlaps(allocations, start, size)) {
    const Allocation* found = find_containing(allocations, start);
    if (found == nullptr || size > found->size - (start - found->start)) return refused;
    out.place = Place::device;
    out.spans.push_back({found->offset + (start - found->start), size});
    return out;
  }
  if (overlaps(pinned, start, size)) {
    const Pinned* found = find_containing(pinned, start);
    if (found == nullptr || size > found->size - (start - found->start)) return refused;
    out.place = Place::pinned;
  }
  out.spans.push_back({host_span + start, size});
  return out;
}

}  // namespace standin
