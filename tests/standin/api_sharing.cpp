// Sharing memory by file descriptor. The descriptor holds the memory's number, good in this process only.
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>

#include "api.h"
#include "call.h"

using namespace standin;

namespace {

struct Ticket {
  char magic[16];
  std::int64_t process;
  std::uint64_t physical;
};
constexpr char magic[16] = "vmm-standin-mem";

}  // namespace

STANDIN_API cuMemExportToShareableHandle(void* shareable, CUmemGenericAllocationHandle value, int type,
                                         unsigned long long flags) {
  return enter("cuMemExportToShareableHandle", plain, [&](Call& call) -> CUresult {
    if (shareable == nullptr || flags != 0) return CUDA_ERROR_INVALID_VALUE;
    std::shared_ptr<Handle> handle;
    if (const CUresult refused = call.find(value, handle)) return refused;
    const std::shared_ptr<Physical>& physical = handle->physical;
    if (type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR ||
        (physical->properties.requestedHandleTypes & type) == 0)
      return CUDA_ERROR_INVALID_VALUE;
    Ticket ticket{{}, getpid(), physical->id};
    std::memcpy(ticket.magic, magic, sizeof magic);
    const int fd = memfd_create("vmm-standin-share", MFD_CLOEXEC);
    if (fd < 0) return CUDA_ERROR_OUT_OF_MEMORY;
    if (pwrite(fd, &ticket, sizeof ticket, 0) != sizeof ticket) {
      close(fd);
      return CUDA_ERROR_OUT_OF_MEMORY;
    }
    call.s.ledger.exported[physical->id] = physical;
    *static_cast<int*>(shareable) = fd;
    return CUDA_SUCCESS;
  });
}

STANDIN_API cuMemImportFromShareableHandle(CUmemGenericAllocationHandle* value, void* shareable, int type) {
  return enter("cuMemImportFromShareableHandle", plain, [&](Call& call) -> CUresult {
    Ledger& ledger = call.s.ledger;
    if (value == nullptr || type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) return CUDA_ERROR_INVALID_VALUE;
    Ticket ticket{};
    const int fd = static_cast<int>(reinterpret_cast<std::intptr_t>(shareable));
    if (pread(fd, &ticket, sizeof ticket, 0) != sizeof ticket ||
        std::memcmp(ticket.magic, magic, sizeof magic) != 0)
      return CUDA_ERROR_INVALID_VALUE;
    if (ticket.process != getpid()) return CUDA_ERROR_NOT_SUPPORTED;
    const auto found = ledger.exported.find(ticket.physical);
    const std::shared_ptr<Physical> physical =
        found == ledger.exported.end() ? nullptr : found->second.lock();
    if (physical == nullptr || physical->references + physical->mappings == 0)
      return CUDA_ERROR_INVALID_VALUE;
    auto handle = std::make_shared<Handle>();
    handle->value = ledger.handle_names.take(call.s.settings.reuse_handles);
    handle->physical = physical;
    handle->references = 1;
    handle->from = call.from;
    ++physical->references;
    *value = handle->value;
    ledger.handles[handle->value] = std::move(handle);
    return CUDA_SUCCESS;
  });
}
