#include "engine/growth.h"

#include <string>

#include "base/error.h"

namespace vmm {

Tokens Growth::truncate(Tokens to) {
  if (to > frontier_)
    throw InvalidArgument("to is " + std::to_string(to.count) +
                          " tokens, more than there are: " + std::to_string(frontier_.count));
  slots_->truncate(0, to, pool().epochs().fence());
  frontier_ = to;
  return limit();
}

void admit(std::span<const std::shared_ptr<Growth>> growths, Tokens to) {
  if (growths.empty()) return;
  Bytes missing, not_kept;
  for (const auto& growth : growths) {
    growth->check_length("to", to);
    missing += growth->missing(to);
    not_kept += growth->not_kept(to);
  }
  // Pages that are mapped but not kept count as obtainable. These growths need them themselves, so they are
  // part of what must be obtainable.
  if (missing.count != 0)
    growths.front()->pool().reclaiming().require_obtainable(not_kept, growths.front()->tenant().id);
  for (const auto& growth : growths) growth->announce(to);
}

}  // namespace vmm
