// The parts of vmm._core. Sizes cross as plain integers of bytes, pages or tokens.
#pragma once

#include <pybind11/pybind11.h>

namespace vmm {

/// For every call that can block: others may use the interpreter meanwhile.
using NoGil = pybind11::call_guard<pybind11::gil_scoped_release>;

void bind_errors();
void bind_driver(pybind11::module_& m);
void bind_engine(pybind11::module_& m);

}  // namespace vmm
