// Which virtual pages share one content, and which of them stands for it wherever memory is counted.
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "base/types.h"

namespace vmm {

struct Reservation;

/// A virtual page.
struct Alias {
  Reservation* reservation;
  PageIndex page;
  bool operator==(const Alias&) const = default;
};

/// A content that several virtual pages hold counts once, as much as the one among them that is needed most
/// and, of several, was used last. So that page is *counted*: it is in the sums and in the sets of its page
/// table, and the others are not. A content that one page holds is unknown here, and costs nothing. Not
/// thread-safe: the pool's lock guards it.
class Sharing {
 public:
  /// `more`, which is not Resident yet, is to hold the same content as `first`.
  void add(ContentId content, const Alias& first, const Alias& more);
  /// The page, which is not Resident, holds the content no more.
  void remove(ContentId content, const Alias& gone);
  /// One of the content's pages has become Resident, or is not any more, or is needed to another degree, or
  /// has been used.
  void recount(ContentId content);

  /// The pages that share the content; none where only one page holds it.
  std::span<const Alias> of(ContentId content) const {
    const auto found = aliases_.find(content.value);
    return found == aliases_.end() ? std::span<const Alias>() : found->second;
  }

 private:
  std::unordered_map<std::uint32_t, std::vector<Alias>> aliases_;  // the first stands for all
};

}  // namespace vmm
