// What a destructor can do when giving something back fails.
#pragma once

#include "base/error.h"

namespace vmm {

/// Calls `undo`, and once more if it throws; then what it would have given back is lost until the process
/// ends.
template <class Undo>
void undo_or_leak(Undo undo) noexcept {
  for (int attempt = 0; attempt < 2; ++attempt) {
    try {
      undo();
      return;
    } catch (...) {  // no memory to say why, perhaps
    }
  }
}

}  // namespace vmm
