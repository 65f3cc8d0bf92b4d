// One virtual page: what it is doing, what it holds, and how much it is needed.
#pragma once

#include <cstdint>

#include "base/need.h"
#include "base/types.h"

namespace vmm {

/// Unmapped → Mapping → Resident → Retiring → Unmapped. Mapping falls back to Unmapped when a driver call
/// fails, or to Retiring when even the undoing fails. Retiring → Resident when its owner wants it after all.
enum class VirtualState : std::uint8_t { unmapped, mapping, resident, retiring };

struct VirtualPage {
  ContentId content;
  VirtualState state : 5 = VirtualState::unmapped;
  bool used : 1 = false;    // somebody has kept it since it became Resident; else its bytes are nobody's
  bool shared : 1 = false;  // other virtual pages have the same content
  bool counted : 1 = true;  // it stands for its content where memory is counted: see Sharing
  Need need = Need::none;
  std::uint16_t last_use = 0;  // of one that is not kept: see LastUses

  bool kept() const { return need == Need::kept; }
};

}  // namespace vmm
