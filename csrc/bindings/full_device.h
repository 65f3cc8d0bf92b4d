// A second try, where a device was fuller than the budget.
#pragma once

#include <pybind11/pybind11.h>

#include "base/error.h"
#include "bindings/bindings.h"
#include "memory/pool.h"

namespace vmm {

/// Calls work() without the GIL. Where it was the device that refused, what Python's libraries cache of its
/// memory is given back, and work() is called once more: OutOfPages has no effect.
template <class Work>
auto with_full_device(Pool& pool, Work work) {
  try {
    const ReleaseGil released;
    return work();
  } catch (const OutOfPages& error) {
    if (error.figures().refused.empty()) throw;
  }
  pybind11::module_::import("vmm.torch_cache").attr("give_back")();
  const ReleaseGil released;
  pool.forget_device_limit();
  return work();
}

}  // namespace vmm
