#include "engine/growth.h"

namespace vmm {

void admit(std::span<const std::shared_ptr<Growth>> growths, Tokens to) {
  if (growths.empty()) return;
  Bytes missing;
  for (const auto& growth : growths) {
    growth->check_length("to", to);
    missing += growth->missing(to);
  }
  if (missing.count != 0) growths.front()->pool().reclaiming().require_obtainable(missing);
  for (const auto& growth : growths) growth->announce(to);
}

}  // namespace vmm
