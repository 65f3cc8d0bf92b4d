// Sharing memory by file descriptor: such memory is a file of its own, whose name says what it is, and the
// descriptor is one of that file. So any process can import it, and it lives while anybody has it.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>

#include "api.h"
#include "call.h"
#include "physical.h"

namespace standin {

int shareable_file(int device, Size size) {
  char name[64];
  std::snprintf(name, sizeof name, "vmm-standin-of-%d", device);
  const int file = memfd_create(name, MFD_CLOEXEC);
  if (file < 0 || ftruncate(file, static_cast<off_t>(size)) == 0) return file;
  close(file);
  return -1;
}

}  // namespace standin

using namespace standin;

namespace {

/// The device of a file that shareable_file made, in this process or another.
std::optional<int> device_of(int file) {
  char path[64], target[128];
  std::snprintf(path, sizeof path, "/proc/self/fd/%d", file);
  const ssize_t length = readlink(path, target, sizeof target - 1);
  if (length < 0) return std::nullopt;
  target[length] = '\0';
  int device = 0;
  if (std::sscanf(target, "/memfd:vmm-standin-of-%d", &device) != 1) return std::nullopt;
  return device;
}

/// Another process's memory, seen here for the first time.
std::shared_ptr<Physical> foreign(State& s, int file, int device, Size size) {
  auto physical = std::make_shared<Physical>();
  physical->shared_file = fcntl(file, F_DUPFD_CLOEXEC, 0);
  const auto offset = s.memory.take(device, size);
  if (physical->shared_file < 0 || !offset) return nullptr;
  physical->id = s.ledger.next_physical++;
  physical->device = device;
  physical->offset = *offset;
  physical->size = size;
  physical->properties.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  physical->properties.location = {CU_MEM_LOCATION_TYPE_DEVICE, device};
  physical->imported = true;
  return physical;
}

std::uint64_t inode_of(int file, Size* size = nullptr) {
  struct stat what{};
  if (fstat(file, &what) != 0) return 0;
  if (size != nullptr) *size = static_cast<Size>(what.st_size);
  return what.st_ino;
}

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
    const int fd = fcntl(physical->shared_file, F_DUPFD_CLOEXEC, 0);
    if (fd < 0) return CUDA_ERROR_OPERATING_SYSTEM;
    call.s.ledger.shared[inode_of(fd)] = physical;
    *static_cast<int*>(shareable) = fd;
    return CUDA_SUCCESS;
  });
}

STANDIN_API cuMemImportFromShareableHandle(CUmemGenericAllocationHandle* value, void* shareable, int type) {
  return enter("cuMemImportFromShareableHandle", plain, [&](Call& call) -> CUresult {
    Ledger& ledger = call.s.ledger;
    if (value == nullptr || type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR) return CUDA_ERROR_INVALID_VALUE;
    const int fd = static_cast<int>(reinterpret_cast<std::intptr_t>(shareable));
    const auto device = device_of(fd);
    Size size = 0;
    const std::uint64_t inode = inode_of(fd, &size);
    if (!device || !call.is_device(*device) || inode == 0) return CUDA_ERROR_INVALID_VALUE;
    std::shared_ptr<Physical> physical = ledger.shared[inode].lock();
    if (physical == nullptr) physical = foreign(call.s, fd, *device, size);
    if (physical == nullptr) return CUDA_ERROR_OUT_OF_MEMORY;
    ledger.shared[inode] = physical;
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
