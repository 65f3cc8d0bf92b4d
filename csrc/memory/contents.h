// Contents: the bytes with an identity. A virtual page points to a content, the content to where it lives.
#pragma once

#include <cstdint>
#include <vector>

#include "base/types.h"

namespace vmm {

struct Content {
  ByteKind kind;
  PhysicalPageId page;
  std::uint32_t references = 0;  // virtual pages that point here; 0: the entry is free
};

/// Not thread-safe: the pool's lock guards it.
class Contents {
 public:
  /// Room for `more` contents, so that adding them cannot fail: each is added, or given up.
  void reserve(std::uint64_t more);
  void give_up(std::uint64_t count) noexcept { reserved_ -= count; }
  /// A content with one reference, in room that was reserved.
  ContentId add(ByteKind kind, PhysicalPageId page);
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
