// Who of several processes may have how much of one device's memory, and who is asked to give some back.
//
// A grant is a promise that only its owner lowers, so this decides nothing by itself: it says of a table of
// promises how far each may be raised now (`reach`), and how much each is asked for (`asked`). Both follow
// from the table alone, so a want that is withdrawn, satisfied, or whose process is dead asks nobody any
// more.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/types.h"

namespace vmm {

struct ShareMember {
  Bytes minimum;
  Bytes maximum;  // its own budget
  std::int32_t priority = 0;
  Bytes grant;
  Bytes wanted;  // a grant; nothing is wanted unless it is more than the grant
};

struct ShareAnswer {
  Bytes asked;  // so much of its grant it is asked to give back
  Bytes reach;  // so high it may raise its grant now
};

/// What all share: the largest budget. Minima that once fitted stay promised when whoever had that budget has
/// left, so it is never less than their sum.
Bytes share_total(std::span<const ShareMember> members);

/// A pure function. Wants are served in this order: up to one's minimum; then the higher priority; then the
/// smaller grant. What is free goes to them first. What a want lacks then is asked of the lowest priority
/// first, there of whoever has most, and of nobody below his minimum. A higher priority is asked only for
/// what lacks to a minimum. An equal priority is asked only for as much as leaves it no less than the want
/// would reach: so two that want the same memory never take it from each other in turn. A want that
/// all this cannot satisfy asks nobody, and nothing is set aside for it.
std::vector<ShareAnswer> share_answers(Bytes total, std::span<const ShareMember> members);

}  // namespace vmm
