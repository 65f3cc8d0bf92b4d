// Contents: the bytes with an identity. A virtual page points to a content, the content to where it lives.
#pragma once

#include <cstdint>
#include <vector>

#include "base/types.h"

namespace vmm {

struct Content {
  TenantId tenant;
  PhysicalPageId page;
  std::uint32_t references = 0;  // virtual pages that point here; 0: the entry is free
};

/// Not thread-safe: the pool's lock guards it.
class Contents {
 public:
  /// Room for `more` contents, so that adding them cannot fail.
  void reserve(std::uint64_t more);
  /// A content with one reference.
  ContentId add(TenantId tenant, PhysicalPageId page);
  /// Takes one reference away; with the last the entry is free.
  void drop(ContentId content);
  const Content& operator[](ContentId content) const { return entries_.at(content.value); }
  std::uint64_t live() const noexcept { return entries_.size() - free_.size(); }

 private:
  std::vector<Content> entries_;
  std::vector<ContentId> free_;
};

}  // namespace vmm
