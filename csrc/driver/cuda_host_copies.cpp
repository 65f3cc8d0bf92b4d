// Copies between a GPU's pages and pinned memory of the host.
#include "base/undo.h"
#include "driver/cuda_driver.h"

namespace vmm {

std::byte* CudaDriver::allocate_host(Bytes size) {
  const cuda::Calls::Scope scope = enter();
  void* memory = nullptr;
  cuda_("cuMemHostAlloc", cuda_.api().cuMemHostAlloc, &memory, size.count, cuda::host_portable);
  return static_cast<std::byte*>(memory);
}

void CudaDriver::release_host(std::byte* memory) {
  const cuda::Calls::Scope scope = enter();
  cuda_("cuMemFreeHost", cuda_.api().cuMemFreeHost, memory);
}

void CudaDriver::copy_out(std::byte* to, Address from, Bytes size, StreamHandle stream) {
  const cuda::Calls::Scope scope = enter();
  cuda_("cuMemcpyDtoHAsync", cuda_.api().cuMemcpyDtoHAsync, to, from.value, size.count, to_cuda(stream));
}

void CudaDriver::copy_in(Address to, const std::byte* from, Bytes size, StreamHandle stream) {
  const cuda::Calls::Scope scope = enter();
  cuda_("cuMemcpyHtoDAsync", cuda_.api().cuMemcpyHtoDAsync, to.value, from, size.count, to_cuda(stream));
}

/// By an event for which a thread sleeps: for a stream it spins.
void CudaDriver::finish(StreamHandle stream) {
  const cuda::Calls::Scope scope = enter();
  cuda::Event event = nullptr;
  cuda_("cuEventCreate", cuda_.api().cuEventCreate, &event,
        cuda::event_blocking_sync | cuda::event_no_timing);
  const auto destroy = [&] { cuda_("cuEventDestroy", cuda_.api().cuEventDestroy, event); };
  try {
    cuda_("cuEventRecord", cuda_.api().cuEventRecord, event, to_cuda(stream));
    cuda_("cuEventSynchronize", cuda_.api().cuEventSynchronize, event);
  } catch (...) {
    undo_or_leak(destroy);
    throw;
  }
  undo_or_leak(destroy);
}

}  // namespace vmm
