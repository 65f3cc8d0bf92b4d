// Physical memory: allocation handles, and plain allocations.
#include <algorithm>

#include "api.h"
#include "call.h"
#include "physical.h"

namespace standin {

void drop_if_unused(const Call& call, const std::shared_ptr<Handle>& handle) {
  if (handle->references > 0 || handle->mappings > 0) return;
  Ledger& ledger = call.s.ledger;
  ledger.handles.erase(handle->value);
  ledger.handle_names.end(handle->value, call.s.settings.reuse_handles);
  const Physical& physical = *handle->physical;
  if (physical.references > 0 || physical.mappings > 0) return;
  for (const auto& [value, other] : ledger.handles)
    if (other->physical == handle->physical) return;
  check_physical(call, "gives memory back", physical);
  call.s.memory.give(physical.device, physical.offset, physical.size);
  if (!physical.imported) ledger.used[physical.device] -= physical.size;
}

}  // namespace standin

using namespace standin;

namespace {

constexpr int handle_types_known = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR | CU_MEM_HANDLE_TYPE_FABRIC;
constexpr int version_of_host_numa = 12020;
constexpr int version_of_fabric = 12030;
constexpr int version_of_host = 13000;

/// Where memory with these properties lies, or why there is none.
CUresult check(const Call& call, const CUmemAllocationProp* properties, int& device) {
  if (properties == nullptr || properties->type != CU_MEM_ALLOCATION_TYPE_PINNED)
    return CUDA_ERROR_INVALID_VALUE;
  const int version = call.s.settings.version;
  const int types = properties->requestedHandleTypes;
  if ((types & ~handle_types_known) != 0 || properties->win32HandleMetaData != nullptr)
    return CUDA_ERROR_INVALID_VALUE;
  if ((types & CU_MEM_HANDLE_TYPE_FABRIC) != 0)
    return version < version_of_fabric ? CUDA_ERROR_INVALID_VALUE : CUDA_ERROR_NOT_PERMITTED;
  device = Memory::host;
  switch (properties->location.type) {
    case CU_MEM_LOCATION_TYPE_DEVICE:
      device = properties->location.id;
      return call.is_device(device) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
    case CU_MEM_LOCATION_TYPE_HOST:
      return version < version_of_host || types != 0 ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
    case CU_MEM_LOCATION_TYPE_HOST_NUMA:
      return version < version_of_host_numa || properties->location.id != 0 ? CUDA_ERROR_INVALID_VALUE
                                                                            : CUDA_SUCCESS;
    default:
      return CUDA_ERROR_INVALID_VALUE;
  }
}

/// Where the bytes are among the device's; `file` is where they are kept, if not there.
std::optional<Size> take(State& s, int device, Size size, int file = -1) {
  Size& used = s.ledger.used[device];
  const Size taken = used + (device == Memory::host ? 0 : s.settings.others);
  if (size > s.settings.capacity || taken > s.settings.capacity - size) return std::nullopt;
  const auto offset = s.memory.take(device, size);
  if (!offset) return std::nullopt;
  if (!s.memory.fill(file < 0 ? *offset : 0, size, s.settings.fill, file)) {
    s.memory.give(device, *offset, size);
    return std::nullopt;
  }
  used += size;
  return offset;
}

}  // namespace

STANDIN_API cuMemGetAllocationGranularity(std::size_t* granularity, const CUmemAllocationProp* properties,
                                          int option) {
  return enter("cuMemGetAllocationGranularity", plain, [&](Call& call) -> CUresult {
    int device = 0;
    if (granularity == nullptr || option < 0 || option > 1) return CUDA_ERROR_INVALID_VALUE;
    if (const CUresult refused = check(call, properties, device)) return refused;
    *granularity = call.s.settings.granularity_of(device);
    return CUDA_SUCCESS;
  });
}

STANDIN_API cuMemCreate(CUmemGenericAllocationHandle* value, std::size_t size,
                        const CUmemAllocationProp* properties, unsigned long long flags) {
  return enter("cuMemCreate", unsafe, [&](Call& call) -> CUresult {
    State& s = call.s;
    int device = 0;
    if (value == nullptr || flags != 0 || size == 0) return CUDA_ERROR_INVALID_VALUE;
    if (const CUresult refused = check(call, properties, device)) return refused;
    if (size % s.settings.granularity_of(device) != 0) return CUDA_ERROR_INVALID_VALUE;
    if (properties->allocFlags.gpuDirectRDMACapable != 0 && s.settings.rdma == 0)
      return CUDA_ERROR_NOT_SUPPORTED;
    if (properties->requestedHandleTypes != 0 && !s.settings.posix_fd) return CUDA_ERROR_NOT_SUPPORTED;
    auto physical = std::make_shared<Physical>();
    if (properties->requestedHandleTypes != 0 && (physical->shared_file = shareable_file(device, size)) < 0)
      return CUDA_ERROR_OUT_OF_MEMORY;
    const auto offset = take(s, device, size, physical->shared_file);
    if (!offset) return CUDA_ERROR_OUT_OF_MEMORY;
    physical->id = s.ledger.next_physical++;
    physical->device = device;
    physical->offset = *offset;
    physical->size = size;
    physical->properties = *properties;
    physical->references = 1;
    auto handle = std::make_shared<Handle>();
    handle->value = s.ledger.handle_names.take(s.settings.reuse_handles);
    handle->physical = std::move(physical);
    handle->references = 1;
    handle->from = call.from;
    *value = handle->value;
    s.ledger.handles[handle->value] = std::move(handle);
    return CUDA_SUCCESS;
  });
}

STANDIN_API cuMemRelease(CUmemGenericAllocationHandle value) {
  bool again = false;
  const CUresult result = enter("cuMemRelease", unsafe, [&](Call& call) -> CUresult {
    std::shared_ptr<Handle> handle;
    if (const CUresult refused = call.find(value, handle)) return refused;
    again = call.s.settings.reuse_handles;
    --handle->references;
    --handle->physical->references;
    drop_if_unused(call, handle);
    return CUDA_SUCCESS;
  });
  linger(again);
  return result;
}

STANDIN_API cuMemRetainAllocationHandle(CUmemGenericAllocationHandle* value, void* address) {
  return enter("cuMemRetainAllocationHandle", plain, [&](Call& call) -> CUresult {
    if (value == nullptr) return CUDA_ERROR_INVALID_VALUE;
    const Mapping* mapping = find_containing(call.s.ledger.mappings, reinterpret_cast<Address>(address));
    if (mapping == nullptr) return CUDA_ERROR_INVALID_VALUE;
    ++mapping->handle->references;
    ++mapping->handle->physical->references;
    *value = mapping->handle->value;
    return CUDA_SUCCESS;
  });
}

STANDIN_API cuMemGetAllocationPropertiesFromHandle(CUmemAllocationProp* properties,
                                                   CUmemGenericAllocationHandle value) {
  return enter("cuMemGetAllocationPropertiesFromHandle", plain, [&](Call& call) -> CUresult {
    if (properties == nullptr) return CUDA_ERROR_INVALID_VALUE;
    std::shared_ptr<Handle> handle;
    if (const CUresult refused = call.find(value, handle)) return refused;
    *properties = handle->physical->properties;
    return CUDA_SUCCESS;
  });
}

STANDIN_API cuMemGetInfo_v2(std::size_t* free_bytes, std::size_t* total) {
  return enter("cuMemGetInfo", needs_context, [&](Call& call) -> CUresult {
    if (free_bytes == nullptr || total == nullptr) return CUDA_ERROR_INVALID_VALUE;
    const Size used = call.s.ledger.used[call.context->device] + call.s.settings.others;
    *total = call.s.settings.capacity;
    *free_bytes = *total - std::min<Size>(used, *total);
    return CUDA_SUCCESS;
  });
}

STANDIN_API cuMemAlloc_v2(CUdeviceptr* address, std::size_t size) {
  return enter("cuMemAlloc", needs_context | unsafe, [&](Call& call) -> CUresult {
    State& s = call.s;
    if (address == nullptr || size == 0) return CUDA_ERROR_INVALID_VALUE;
    if (size > s.settings.capacity) return CUDA_ERROR_OUT_OF_MEMORY;
    const int device = call.context->device;
    const Size committed = (size + host_page - 1) / host_page * host_page;
    const auto offset = take(s, device, committed);
    if (!offset) return CUDA_ERROR_OUT_OF_MEMORY;
    const Size reserved = committed + host_page;
    const Address start = Memory::reserve(reserved, host_page, 0, 0);
    if (start == 0 || !s.memory.map(start, committed, *offset) ||
        !Memory::protect(start, committed, true, true)) {
      s.memory.give(device, *offset, committed);
      s.ledger.used[device] -= committed;
      return CUDA_ERROR_OUT_OF_MEMORY;
    }
    s.ledger.allocations[start] = {start, size, reserved, committed, *offset, device, call.from};
    *address = start;
    return CUDA_SUCCESS;
  });
}

STANDIN_API cuMemFree_v2(CUdeviceptr address) {
  return enter("cuMemFree", needs_context | unsafe, [&](Call& call) -> CUresult {
    State& s = call.s;
    if (address == 0) return CUDA_SUCCESS;
    s.work.finish_all(call.lock);  // it waits for everything, and programs rely on that
    const auto found = s.ledger.allocations.find(address);
    if (found == s.ledger.allocations.end()) return call.undefined("no such allocation; freed already?");
    const Allocation& gone = found->second;
    Memory::unreserve(gone.start, gone.reserved);
    s.memory.give(gone.device, gone.offset, gone.committed);
    s.ledger.used[gone.device] -= gone.committed;
    s.ledger.allocations.erase(found);
    return CUDA_SUCCESS;
  });
}
