// Contents: the bytes with an identity. A virtual page points to a content, the content to where it lives.
#pragma once

#include <cstdint>
#include <vector>

#include "base/types.h"

namespace vmm {

struct Content {
  PhysicalPageId page;
  std::uint32_t references = 0;  // virtual pages that point here; 0: the entry is free
  std::uint32_t unmapping = 0;   // of those, the ones that a driver call unmaps now
};

/// Not thread-safe: the pool's lock guards it.
class Contents {
 public:
  /// Room for `more` contents, so that adding them cannot fail: each is added, or given up.
  void reserve(std::uint64_t more);
  void give_up(std::uint64_t count) noexcept { reserved_ -= count; }
  /// A content with one reference, in room that was reserved.
  ContentId add(PhysicalPageId page);
  void share(ContentId content) { ++entries_.at(content.value).references; }
  void begin_unmapping(ContentId content) { ++entries_.at(content.value).unmapping; }
  void end_unmapping(ContentId content) { --entries_.at(content.value).unmapping; }
  /// Takes one reference away; with the last the entry is free.
  void drop(ContentId content);
  const Content& operator[](ContentId content) const { return entries_.at(content.value); }
  std::uint64_t live() const noexcept { return entries_.size() - free_.size(); }

 private:
  std::vector<Content> entries_;
  std::vector<ContentId> free_;
  std::uint64_t reserved_ = 0;  // of the free
};

}  // namespace vmm
