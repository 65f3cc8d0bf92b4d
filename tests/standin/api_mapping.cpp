// Reservations and mappings.
#include <algorithm>

#include "api.h"
#include "call.h"
#include "physical.h"

using namespace standin;

namespace {

constexpr Size low = Size{64} << 10;

bool power_of_two(Size n) { return n != 0 && (n & (n - 1)) == 0; }

/// Where the pages of an access descriptor's location are; nothing for a location there is not.
std::optional<int> accessor(const Call& call, const CUmemLocation& location) {
  if (location.type == CU_MEM_LOCATION_TYPE_DEVICE && call.is_device(location.id)) return location.id;
  if (location.type == CU_MEM_LOCATION_TYPE_HOST || location.type == CU_MEM_LOCATION_TYPE_HOST_NUMA)
    return Memory::host;
  return std::nullopt;
}

CUresult check_descriptor(const Call& call, const CUmemAccessDesc& access) {
  if (!accessor(call, access.location))
    return access.location.type == CU_MEM_LOCATION_TYPE_DEVICE ? CUDA_ERROR_INVALID_DEVICE
                                                               : CUDA_ERROR_INVALID_VALUE;
  switch (access.flags) {
    case CU_MEM_ACCESS_FLAGS_PROT_NONE:
    case CU_MEM_ACCESS_FLAGS_PROT_READ:
    case CU_MEM_ACCESS_FLAGS_PROT_READWRITE:
      return CUDA_SUCCESS;
    default:
      return CUDA_ERROR_INVALID_VALUE;
  }
}

/// A device must be able to reach where the memory lies, in units of its own.
CUresult check_reach(const Call& call, int device, const Mapping& mapping) {
  const Settings& settings = call.s.settings;
  const Physical& physical = *mapping.handle->physical;
  if (device == Memory::host || physical.device == Memory::host) {
    // Access of the host is only for memory that is in the host.
    return device == physical.device || device != Memory::host ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
  }
  if (device != physical.device && !settings.reaches(device, physical.device))
    return CUDA_ERROR_INVALID_DEVICE;
  const Size granularity = settings.granularity_of(device);
  if (mapping.start % granularity != 0 || mapping.size % granularity != 0) return CUDA_ERROR_INVALID_VALUE;
  return settings.rdma == 2 && physical.properties.allocFlags.gpuDirectRDMACapable != 0 ? CUDA_ERROR_UNKNOWN
                                                                                        : CUDA_SUCCESS;
}

/// The processor plays the GPU: it may do what any location may.
bool protect(const Mapping& mapping) {
  int all = 0;
  for (const auto& [device, flags] : mapping.access) all |= flags;
  return Memory::protect(mapping.start, mapping.size, (all & CU_MEM_ACCESS_FLAGS_PROT_READ) != 0,
                         all == CU_MEM_ACCESS_FLAGS_PROT_READWRITE);
}

}  // namespace

STANDIN_API cuMemAddressReserve(CUdeviceptr* address, std::size_t size, std::size_t alignment,
                                CUdeviceptr hint, unsigned long long flags) {
  return enter("cuMemAddressReserve", unsafe, [&](Call& call) -> CUresult {
    const Settings& settings = call.s.settings;
    if (address == nullptr || size == 0 || size % host_page != 0 || hint % host_page != 0 || flags != 0)
      return CUDA_ERROR_INVALID_VALUE;
    if (alignment != 0 && !power_of_two(alignment)) return CUDA_ERROR_INVALID_VALUE;
    const bool badly = alignment == 0 && settings.low_alignment && settings.granularity > low;
    const Size multiple = std::max<Size>(alignment, settings.granularity);
    const Address start = Memory::reserve(size, multiple, badly ? low : 0, hint);
    if (start == 0) return CUDA_ERROR_OUT_OF_MEMORY;
    call.s.ledger.reservations[start] = {start, size, call.from};
    *address = start;
    return CUDA_SUCCESS;
  });
}

STANDIN_API cuMemAddressFree(CUdeviceptr address, std::size_t size) {
  return enter("cuMemAddressFree", unsafe, [&](Call& call) -> CUresult {
    Ledger& ledger = call.s.ledger;
    const auto found = ledger.reservations.find(address);
    if (found == ledger.reservations.end() || found->second.size != size) return CUDA_ERROR_INVALID_VALUE;
    if (ledger.anything_mapped(address, size)) return CUDA_ERROR_INVALID_VALUE;
    Memory::unreserve(address, size);
    ledger.reservations.erase(found);
    return CUDA_SUCCESS;
  });
}

STANDIN_API cuMemMap(CUdeviceptr address, std::size_t size, std::size_t offset,
                     CUmemGenericAllocationHandle value, unsigned long long flags) {
  return enter("cuMemMap", unsafe, [&](Call& call) -> CUresult {
    Ledger& ledger = call.s.ledger;
    const Size granularity = call.s.settings.granularity;
    if (flags != 0 || offset != 0 || size == 0 || size % granularity != 0 || address % granularity != 0)
      return CUDA_ERROR_INVALID_VALUE;
    std::shared_ptr<Handle> handle;
    if (const CUresult refused = call.find(value, handle)) return refused;
    if (size != handle->physical->size || ledger.reservation_of(address, size) == nullptr ||
        ledger.anything_mapped(address, size))
      return CUDA_ERROR_INVALID_VALUE;
    const Physical& physical = *handle->physical;
    const bool shared = physical.shared_file >= 0;
    if (!call.s.memory.map(address, size, shared ? 0 : physical.offset, physical.shared_file))
      return CUDA_ERROR_OUT_OF_MEMORY;
    ++handle->mappings;
    ++handle->physical->mappings;
    ledger.mappings[address] = {address, size, handle, {}, call.from};
    return CUDA_SUCCESS;
  });
}

STANDIN_API cuMemUnmap(CUdeviceptr address, std::size_t size) {
  return enter("cuMemUnmap", unsafe, [&](Call& call) -> CUresult {
    Ledger& ledger = call.s.ledger;
    const auto mappings = ledger.whole_mappings(address, size);
    if (mappings.empty() || ledger.reservation_of(address, size) == nullptr) return CUDA_ERROR_INVALID_VALUE;
    check_addresses(call, "unmaps", address, size);
    if (!Memory::clear(address, size)) return CUDA_ERROR_OUT_OF_MEMORY;
    for (const Mapping* mapping : mappings) {
      const std::shared_ptr<Handle> handle = mapping->handle;
      --handle->mappings;
      --handle->physical->mappings;
      ledger.mappings.erase(mapping->start);
      drop_if_unused(call, handle);
    }
    return CUDA_SUCCESS;
  });
}

STANDIN_API cuMemSetAccess(CUdeviceptr address, std::size_t size, const CUmemAccessDesc* access,
                           std::size_t count) {
  return enter("cuMemSetAccess", unsafe, [&](Call& call) -> CUresult {
    Ledger& ledger = call.s.ledger;
    if (access == nullptr || count == 0) return CUDA_ERROR_INVALID_VALUE;
    const auto mappings = ledger.whole_mappings(address, size);
    if (mappings.empty() || ledger.reservation_of(address, size) == nullptr) return CUDA_ERROR_INVALID_VALUE;
    bool takes_away = false;
    for (std::size_t at = 0; at < count; ++at) {
      if (const CUresult refused = check_descriptor(call, access[at])) return refused;
      takes_away = takes_away || access[at].flags != CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
      for (const Mapping* mapping : mappings)
        if (const CUresult refused = check_reach(call, *accessor(call, access[at].location), *mapping))
          return refused;
    }
    if (takes_away) check_addresses(call, "takes access away from", address, size);
    for (Mapping* mapping : mappings) {
      for (std::size_t at = 0; at < count; ++at)
        mapping->access[*accessor(call, access[at].location)] = access[at].flags;
      if (!protect(*mapping)) return CUDA_ERROR_OUT_OF_MEMORY;
    }
    return CUDA_SUCCESS;
  });
}

STANDIN_API cuMemGetAccess(unsigned long long* flags, const CUmemLocation* location, CUdeviceptr address) {
  return enter("cuMemGetAccess", plain, [&](Call& call) -> CUresult {
    if (flags == nullptr || location == nullptr) return CUDA_ERROR_INVALID_VALUE;
    const auto device = accessor(call, *location);
    if (!device)
      return location->type == CU_MEM_LOCATION_TYPE_DEVICE ? CUDA_ERROR_INVALID_DEVICE
                                                           : CUDA_ERROR_INVALID_VALUE;
    const Mapping* mapping = find_containing(call.s.ledger.mappings, address);
    if (mapping == nullptr) return CUDA_ERROR_INVALID_VALUE;
    const auto found = mapping->access.find(*device);
    *flags = found == mapping->access.end() ? 0U : static_cast<unsigned>(found->second);
    return CUDA_SUCCESS;
  });
}
