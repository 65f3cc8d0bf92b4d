#include "memory/contents.h"

#include <algorithm>

#include "base/error.h"

namespace vmm {

void Contents::reserve(std::uint64_t more) {
  const std::uint64_t first = entries_.size();
  const std::uint64_t size = std::max(first, first - free_.size() + reserved_ + more);
  // The free list has room for all entries, so that drop() never allocates.
  if (free_.capacity() < size) free_.reserve(2 * size);
  entries_.resize(size);
  for (std::uint64_t i = size; i-- > first;) free_.push_back({static_cast<std::uint32_t>(i)});
  reserved_ += more;
}

ContentId Contents::add(PhysicalPageId page) {
  if (reserved_ == 0) throw InvariantViolation("a content was added without room for it");
  --reserved_;
  const ContentId id = free_.back();
  free_.pop_back();
  entries_[id.value] = {page, 1, 0};
  return id;
}

void Contents::drop(ContentId content) {
  Content& entry = entries_.at(content.value);
  if (entry.references == 0) throw InvariantViolation("a content was dropped twice");
  if (--entry.references == 0) free_.push_back(content);
}

}  // namespace vmm
