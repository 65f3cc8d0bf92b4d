// Handing memory to tensor libraries: the DLPack ABI (dmlc/dlpack v0.8, unversioned capsule).
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "memory/pool.h"

namespace vmm {

struct TensorSpec {
  std::uint64_t offset_bytes = 0;     // of the first element, from the lease's base
  std::vector<std::int64_t> shape;    // elements
  std::vector<std::int64_t> strides;  // elements, none negative
  std::uint8_t type_code = 0;         // DLDataTypeCode: 0 int, 1 uint, 2 float, 4 bfloat, 6 bool, …
  std::uint8_t type_bits = 0;
};

/// A "dltensor" capsule over memory of the lease. Whoever consumes it holds `keep`, which keeps the memory.
/// Throws InvalidArgument when an element would lie outside the lease.
pybind11::capsule export_tensor(const Lease& lease, std::shared_ptr<const void> keep, const TensorSpec& spec);

}  // namespace vmm
