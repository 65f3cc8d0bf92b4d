// What is asked of libcuda for a page: where it lies, what it can be used for, and which devices may touch
// it.
#pragma once

#include <string>
#include <vector>

#include "base/types.h"
#include "driver/cuda_calls.h"

namespace vmm {

struct CudaOptions {
  int device = 0;
  /// The CPU can touch the pages, which only the tests' stand-in makes true.
  bool host_accessible = false;
  std::vector<int> peers{};  // other devices that may read and write the pages
  bool rdma = false;         // network cards may, too (GPUDirect RDMA)
  bool shareable = false;    // pages can be exported to other processes

  /// Whether anything is asked for that hardware or system may lack.
  bool special() const noexcept { return !peers.empty() || rdma || shareable; }
};

namespace cuda {

class PageProperties {
 public:
  /// Throws InvalidArgument, which names the argument and the device, for what the devices cannot do.
  PageProperties(const Calls& cuda, const CudaOptions& options);

  const AllocationProperties& allocation() const noexcept { return allocation_; }
  /// For cuMemSetAccess: the device's own descriptor, and one for each peer.
  std::vector<AccessDescriptor> access(int flags) const;
  /// The smallest pages that the device and all its peers can map.
  Bytes granularity() const noexcept { return granularity_; }

 private:
  AllocationProperties allocation_{};
  std::vector<Location> locations_;
  Bytes granularity_;
};

/// Creates, maps and opens one page, once, and undoes it: an attribute may promise what the system does not
/// keep (on WSL2 that of RDMA does). Throws DriverError with what was asked for and CUDA's words.
void try_one_page(const Calls& cuda, const PageProperties& properties, const CudaOptions& options);

/// Ten times the major and the minor number, like 90.
int compute_capability(const Calls& cuda);

}  // namespace cuda
}  // namespace vmm
