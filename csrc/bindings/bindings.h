// The parts of vmm._core. Sizes cross as plain integers of bytes, pages or tokens.
#pragma once

#include <pybind11/pybind11.h>
#include <unistd.h>

#include <memory>
#include <optional>
#include <utility>

#include "base/lock.h"

namespace vmm {

/// Gives the interpreter to others for the time of a call. Unlike pybind11's own guard it survives the end
/// of the interpreter: Python before 3.14 ends a daemon thread that asks for the GIL then, by an unwinding
/// that a destructor which may not throw turns into std::terminate.
class ReleaseGil {
 public:
  // The thread that holds the GIL of an ending interpreter is the one that ends it, and would not get the GIL
  // back.
  ReleaseGil() : state_(interpreter_is_ending() ? nullptr : PyEval_SaveThread()) {}
  ~ReleaseGil() noexcept(false) {
    if (state_ == nullptr) return;
    locks::before_gil();
    while (interpreter_is_ending()) pause();  // the process is about to exit: nobody waits for this thread
    PyEval_RestoreThread(state_);
  }
  ReleaseGil(const ReleaseGil&) = delete;
  ReleaseGil& operator=(const ReleaseGil&) = delete;

 private:
  static bool interpreter_is_ending() {
#if PY_VERSION_HEX >= 0x030D0000
    return Py_IsFinalizing() != 0;
#else
    return _Py_IsFinalizing() != 0;
#endif
  }

  PyThreadState* state_;
};

/// For every call that can block, even if only for a lock that another thread holds while it is in the
/// driver.
using NoGil = pybind11::call_guard<ReleaseGil>;

/// The same for a property.
template <class Getter>
pybind11::cpp_function no_gil(Getter getter) {
  return pybind11::cpp_function(std::move(getter), NoGil());
}

/// Releases the GIL if this thread holds it. Destructors need this: they run in any thread, and even after
/// the interpreter has ended.
class ReleaseGilIfHeld {
 public:
  ReleaseGilIfHeld() {
    if (Py_IsInitialized() != 0 && PyGILState_Check() != 0) released_.emplace();
  }

 private:
  std::optional<ReleaseGil> released_;
};

/// Deletes something whose destructor calls the driver, or waits for a thread that does.
struct DeleteWithoutGil {
  template <class T>
  void operator()(T* thing) const {
    const ReleaseGilIfHeld released;
    delete thing;
  }
};

template <class T>
std::shared_ptr<T> ends_without_gil(std::shared_ptr<T> thing) {
  T* raw = thing.get();
  return {raw, [owner = std::move(thing)](auto*) mutable {
            const ReleaseGilIfHeld released;
            owner.reset();
          }};
}

struct PoolHandle;
/// Of the pool's tiers (bind_tiers.cpp); none where it has none.
std::optional<pybind11::dict> tier_stats(const PoolHandle& pool);

void bind_errors();
void bind_driver(pybind11::module_& m);
void bind_sim_driver(pybind11::module_& m);
void bind_budgets(pybind11::module_& m);  // before the pools, which take one
void bind_pool(pybind11::module_& m);
void bind_tenants(pybind11::module_& m);  // after the pools
void bind_growth(pybind11::module_& m);
void bind_kv_cache(pybind11::module_& m);
void bind_rows(pybind11::module_& m);
void bind_blocks(pybind11::module_& m);
void bind_simulate(pybind11::module_& m);
void bind_policies(pybind11::module_& m);
void bind_tiers(pybind11::module_& m);

}  // namespace vmm
