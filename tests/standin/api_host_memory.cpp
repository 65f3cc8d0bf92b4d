// Host memory that the GPU can reach.
#include <sys/mman.h>

#include <algorithm>

#include "api.h"
#include "call.h"

using namespace standin;

namespace {

constexpr unsigned host_memory_flags = 0x0F;  // portable, device map, write combined; io memory or read only

CUresult allocate(Call& call, void** address, Size size) {
  if (address == nullptr || size == 0) return CUDA_ERROR_INVALID_VALUE;
  const Size whole = (size + host_page - 1) / host_page * host_page;
  void* got = mmap(nullptr, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (got == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
  madvise(got, whole, MADV_DONTFORK);
  const auto start = reinterpret_cast<Address>(got);
  call.s.ledger.pinned[start] = {start, size, false, call.from};
  *address = got;
  return CUDA_SUCCESS;
}

/// The block that begins there, of the kind asked for.
Pinned* find(Call& call, void* address, bool registered) {
  const auto found = call.s.ledger.pinned.find(reinterpret_cast<Address>(address));
  if (found == call.s.ledger.pinned.end() || found->second.registered != registered) return nullptr;
  return &found->second;
}

}  // namespace

STANDIN_API cuMemHostAlloc(void** address, std::size_t size, unsigned flags) {
  return enter("cuMemHostAlloc", needs_context | unsafe, [&](Call& call) -> CUresult {
    return (flags & ~host_memory_flags) != 0 ? CUDA_ERROR_INVALID_VALUE : allocate(call, address, size);
  });
}

STANDIN_API cuMemAllocHost_v2(void** address, std::size_t size) {
  return enter("cuMemAllocHost", needs_context | unsafe,
               [&](Call& call) -> CUresult { return allocate(call, address, size); });
}

STANDIN_API cuMemFreeHost(void* address) {
  return enter("cuMemFreeHost", needs_context | unsafe, [&](Call& call) -> CUresult {
    if (address == nullptr) return CUDA_SUCCESS;
    const Pinned* block = find(call, address, false);
    if (block == nullptr) return call.undefined("no such host allocation; freed already?");
    check_addresses(call, "frees host memory", block->start, block->size);
    munmap(address, (block->size + host_page - 1) / host_page * host_page);
    call.s.ledger.pinned.erase(block->start);
    return CUDA_SUCCESS;
  });
}

STANDIN_API cuMemHostRegister_v2(void* address, std::size_t size, unsigned flags) {
  return enter("cuMemHostRegister", needs_context | unsafe, [&](Call& call) -> CUresult {
    if (address == nullptr || size == 0 || (flags & ~host_memory_flags) != 0) return CUDA_ERROR_INVALID_VALUE;
    const auto start = reinterpret_cast<Address>(address);
    const auto overlaps = [&](const auto& entry) {
      return start < entry.second.start + entry.second.size && entry.second.start < start + size;
    };
    if (std::ranges::any_of(call.s.ledger.pinned, overlaps)) return CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED;
    call.s.ledger.pinned[start] = {start, size, true, call.from};
    return CUDA_SUCCESS;
  });
}

STANDIN_API cuMemHostUnregister(void* address) {
  return enter("cuMemHostUnregister", needs_context | unsafe, [&](Call& call) -> CUresult {
    const Pinned* block = find(call, address, true);
    if (block == nullptr) return CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED;
    check_addresses(call, "unregisters host memory", block->start, block->size);
    call.s.ledger.pinned.erase(block->start);
    return CUDA_SUCCESS;
  });
}

STANDIN_API cuMemHostGetDevicePointer_v2(CUdeviceptr* device, void* address, unsigned flags) {
  return enter("cuMemHostGetDevicePointer", needs_context, [&](Call& call) -> CUresult {
    const auto start = reinterpret_cast<Address>(address);
    if (device == nullptr || flags != 0 || find_containing(call.s.ledger.pinned, start) == nullptr)
      return CUDA_ERROR_INVALID_VALUE;
    *device = start;
    return CUDA_SUCCESS;
  });
}
