// What libcuda is asked for when a page is created: where it is to lie, what it can be used for, and which
// devices may touch it.
#pragma once

#include <string>
#include <vector>

#include "base/types.h"
#include "driver/cuda_calls.h"

namespace vmm {

struct CudaOptions {
  int device = 0;
  /// The CPU can touch the pages, too. That is so only with the tests' stand-in for libcuda.
  bool host_accessible = false;
  std::vector<int> peers{};  // other devices that may read and write the pages
  bool rdma = false;         // network cards may do so, too (GPUDirect RDMA)
  bool shareable = false;    // pages can be exported to other processes

  /// Whether anything is asked for that the hardware or the system may not have.
  bool special() const noexcept { return !peers.empty() || rdma || shareable; }
};

namespace cuda {

class PageProperties {
 public:
  /// Throws InvalidArgument for what a device cannot do; it names the argument and the device.
  PageProperties(const Calls& cuda, const CudaOptions& options);

  const AllocationProperties& allocation() const noexcept { return allocation_; }
  /// What cuMemSetAccess needs: a descriptor for the device itself and one for each peer.
  std::vector<AccessDescriptor> access(int flags) const;
  /// The smallest pages that the device and all its peers can map.
  Bytes granularity() const noexcept { return granularity_; }

 private:
  AllocationProperties allocation_{};
  std::vector<Location> locations_;
  Bytes granularity_;
};

/// Creates one page, maps it, makes it accessible, and undoes all that: an attribute of the device may
/// promise what the system does not keep, as that of RDMA does on WSL2. Throws DriverError, which says what
/// was asked for and has CUDA's words.
void try_one_page(const Calls& cuda, const PageProperties& properties, const CudaOptions& options);

/// The device's compute capability as one number: 90 for 9.0.
int compute_capability(const Calls& cuda);

}  // namespace cuda
}  // namespace vmm
