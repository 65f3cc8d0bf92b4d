// A second try, for when the device has less memory than the budget allows.
#pragma once

#include <pybind11/pybind11.h>

#include "base/error.h"
#include "bindings/bindings.h"
#include "memory/pool.h"

namespace vmm {

/// Calls work() without the GIL. If the device refused, has others in this process give up what they do not
/// need of its memory, and calls work() once more. It may, because a call that throws OutOfPages has had no
/// effect.
template <class Work>
auto with_full_device(Pool& pool, Work work) {
  Bytes asked;
  try {
    const ReleaseGil released;
    return work();
  } catch (const OutOfPages& error) {
    if (error.figures().refused.empty()) throw;
    asked = error.figures().asked;
  }
  const Capabilities& capabilities = pool.driver().capabilities();
  pybind11::module_::import("vmm.device_memory")
      .attr("make_room")(capabilities.gpu ? capabilities.device : -1, asked.count);
  const ReleaseGil released;
  pool.reclaiming().forget_device_limit();
  return work();
}

}  // namespace vmm
