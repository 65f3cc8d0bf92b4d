#include "driver/cuda_properties.h"

#include <algorithm>
#include <functional>

#include "base/error.h"
#include "base/undo.h"

namespace vmm {
namespace cuda {
namespace {

std::string described(const Calls& cuda, int ordinal, Device device) {
  return "cuda:" + std::to_string(ordinal) + " (" + name(cuda, device) + ")";
}

int attribute(const Calls& cuda, int which, Device device) {
  int value = 0;
  cuda("cuDeviceGetAttribute", cuda.api().cuDeviceGetAttribute, &value, which, device);
  return value;
}

Bytes granularity_of(const Calls& cuda, AllocationProperties properties, Location location) {
  std::size_t granularity = 0;
  properties.location = location;
  cuda("cuMemGetAllocationGranularity", cuda.api().cuMemGetAllocationGranularity, &granularity, &properties,
       granularity_minimum);
  return {granularity};
}

void check_peers(const Calls& cuda, const std::vector<int>& peers) {
  int count = 0;
  cuda("cuDeviceGetCount", cuda.api().cuDeviceGetCount, &count);
  for (const int peer : peers) {
    const std::string name = "cuda:" + std::to_string(peer);
    if (peer < 0 || peer >= count)
      throw InvalidArgument("peers: there is no " + name + "; this machine has " + std::to_string(count) +
                            " CUDA device(s)");
    if (peer == cuda.ordinal())
      throw InvalidArgument("peers: " + name + " is the pool's own device; expected others");
    if (std::ranges::count(peers, peer) > 1) throw InvalidArgument("peers: " + name + " is named twice");
    Device device = 0;
    cuda("cuDeviceGet", cuda.api().cuDeviceGet, &device, peer);
    int reaches = 0;
    cuda("cuDeviceCanAccessPeer", cuda.api().cuDeviceCanAccessPeer, &reaches, device, cuda.device());
    if (reaches == 0 || attribute(cuda, attribute_vmm, device) == 0)
      throw InvalidArgument("peers: " + described(cuda, peer, device) + " cannot access the memory of " +
                            described(cuda, cuda.ordinal(), cuda.device()));
  }
}

void require(const Calls& cuda, bool asked, int which, const char* argument, const char* what) {
  if (!asked || attribute(cuda, which, cuda.device()) != 0) return;
  throw InvalidArgument(std::string(argument) + " is True; " +
                        described(cuda, cuda.ordinal(), cuda.device()) + " does not support " + what);
}

/// Calls `undo` at the end of its scope, where nothing may throw.
class Undone {
 public:
  explicit Undone(std::function<void()> undo) : undo_(std::move(undo)) {}
  ~Undone() { undo_or_leak(undo_); }
  Undone(const Undone&) = delete;
  Undone& operator=(const Undone&) = delete;

 private:
  std::function<void()> undo_;
};

std::string wanted(const CudaOptions& options) {
  std::string out;
  for (const int peer : options.peers)
    out += (out.empty() ? "peers=cuda:" : ", cuda:") + std::to_string(peer);
  if (options.rdma) out += std::string(out.empty() ? "" : "; ") + "rdma=True";
  if (options.shareable) out += std::string(out.empty() ? "" : "; ") + "shareable=True";
  return out;
}

void use_one_page(const Calls& cuda, const PageProperties& properties) {
  const Api& api = cuda.api();
  const std::size_t size = properties.granularity().count;
  DevicePointer base = 0;
  AllocationHandle page = 0;
  cuda("cuMemAddressReserve", api.cuMemAddressReserve, &base, size, size, 0u, 0u);
  const Undone reserved([&] { cuda("cuMemAddressFree", api.cuMemAddressFree, base, size); });
  cuda("cuMemCreate", api.cuMemCreate, &page, size, &properties.allocation(), 0u);
  const Undone created([&] { cuda("cuMemRelease", api.cuMemRelease, page); });
  cuda("cuMemMap", api.cuMemMap, base, size, 0u, page, 0u);
  const Undone mapped([&] { cuda("cuMemUnmap", api.cuMemUnmap, base, size); });
  const std::vector<AccessDescriptor> access = properties.access(access_read_write);
  cuda("cuMemSetAccess", api.cuMemSetAccess, base, size, access.data(), access.size());
}

}  // namespace

PageProperties::PageProperties(const Calls& cuda, const CudaOptions& options) {
  check_peers(cuda, options.peers);
  require(cuda, options.rdma, attribute_rdma, "rdma", "GPUDirect RDMA with virtual memory management");
  require(cuda, options.shareable, attribute_posix_fd, "shareable", "exporting memory as file descriptors");
  allocation_.type = allocation_pinned;
  allocation_.requested_handle_types = options.shareable ? handle_posix_fd : 0;
  allocation_.location = {location_device, cuda.ordinal()};
  allocation_.flags.gpu_direct_rdma = options.rdma ? 1 : 0;
  locations_.push_back(allocation_.location);
  for (const int peer : options.peers) locations_.push_back({location_device, peer});
  for (const Location& location : locations_)
    granularity_ = std::max(granularity_, granularity_of(cuda, allocation_, location));
}

std::vector<AccessDescriptor> PageProperties::access(int flags) const {
  std::vector<AccessDescriptor> out;
  for (const Location& location : locations_) out.push_back({location, flags});
  return out;
}

void try_one_page(const Calls& cuda, const PageProperties& properties, const CudaOptions& options) {
  try {
    use_one_page(cuda, properties);
  } catch (const DriverOutOfMemory&) {
    throw;
  } catch (const DriverError& error) {
    throw DriverError(wanted(options) + ": cuda:" + std::to_string(options.device) +
                      " is said to support it, but a page could not be made so: " + error.what());
  }
}

int compute_capability(const Calls& cuda) {
  return 10 * attribute(cuda, attribute_major, cuda.device()) +
         attribute(cuda, attribute_minor, cuda.device());
}

}  // namespace cuda
}  // namespace vmm
