#include "driver/cuda_driver.h"

#include <utility>
#include <vector>

#include "base/error.h"
#include "driver/stretches.h"

namespace vmm {
namespace {

Capabilities capabilities_of(const cuda::Calls& cuda, Bytes granularity, const CudaOptions& options) {
  return {.name = "cuda",
          .granularity = granularity,
          .default_page_bytes = granularity,  // 2 MiB on every GPU so far
          .gpu = true,
          .host_accessible = options.host_accessible,
          .default_stream = {1},  // CU_STREAM_LEGACY
          .foreign_streams = true,
          .device_events = cuda.api().cuCtxRecordEvent != nullptr,
          .compute_capability = compute_capability(cuda),
          .device = cuda.ordinal()};
}

}  // namespace

cuda::Calls::Scope CudaDriver::enter() const {
  fork_guard_.require_parent(this_driver);
  return cuda::Calls::Scope(cuda_);
}

CudaDriver::CudaDriver(const CudaOptions& options)
    : cuda_(options.device),
      properties_(cuda_, options),
      capabilities_(capabilities_of(cuda_, properties_.granularity(), options)),
      shareable_(options.shareable) {
  const cuda::Calls::Scope scope = enter();
  if (options.special()) cuda::try_one_page(cuda_, properties_, options);
  int least = 0, greatest = 0;
  cuda_("cuCtxGetStreamPriorityRange", cuda_.api().cuCtxGetStreamPriorityRange, &least, &greatest);
  // A caller waits for what this stream zeroes, so it goes before the kernels that are queued.
  cuda_("cuStreamCreateWithPriority", cuda_.api().cuStreamCreateWithPriority, &own_stream_,
        cuda::stream_non_blocking, greatest);
}

Bytes CudaDriver::free_bytes() const {
  const cuda::Calls::Scope scope = enter();
  return {cuda::free_bytes(cuda_)};
}

Address CudaDriver::reserve(Bytes size, Bytes alignment) {
  const cuda::Calls::Scope scope = enter();
  cuda::DevicePointer base = 0;
  cuda_("cuMemAddressReserve", cuda_.api().cuMemAddressReserve, &base, size.count, alignment.count, 0u, 0u);
  return {base};
}

void CudaDriver::free_reservation(Address base, Bytes size) {
  const cuda::Calls::Scope scope = enter();
  unmap_stuck(base, size);
  cuda_("cuMemAddressFree", cuda_.api().cuMemAddressFree, base.value, size.count);
}

PageHandle CudaDriver::create(Bytes page_bytes, Place) {
  const cuda::Calls::Scope scope = enter();
  cuda::AllocationHandle handle = 0;
  cuda_("cuMemCreate", cuda_.api().cuMemCreate, &handle, page_bytes.count, &properties_.allocation(), 0u);
  return {handle};
}

void CudaDriver::release(PageHandle page) {
  const cuda::Calls::Scope scope = enter();
  cuda_("cuMemRelease", cuda_.api().cuMemRelease, page.value);
}

void CudaDriver::undo_map(std::span<const PageMapping> mapped) noexcept {
  for (const PageMapping& entry : mapped) {
    if (cuda_.api().cuMemUnmap(entry.address.value, entry.page_bytes.count) == cuda::success) continue;
    std::lock_guard lock(mutex_);
    stuck_[entry.address.value] = entry.page_bytes;
  }
}

/// Unmaps what an earlier map() left behind in the range.
void CudaDriver::unmap_stuck(Address start, Bytes size) {
  std::vector<std::pair<std::uint64_t, Bytes>> found;
  {
    std::lock_guard lock(mutex_);
    for (const auto& [address, bytes] : stuck_)
      if (address < start.value + size.count && start.value < address + bytes.count)
        found.emplace_back(address, bytes);
  }
  for (const auto& [address, bytes] : found) {
    cuda_("cuMemUnmap", cuda_.api().cuMemUnmap, address, bytes.count);
    std::lock_guard lock(mutex_);
    stuck_.erase(address);
  }
}

void CudaDriver::map(std::span<const PageMapping> pages) {
  const cuda::Calls::Scope scope = enter();
  for_each_stretch(pages, false, [this](const Stretch& s) { unmap_stuck(s.address, s.size); });
  std::size_t mapped = 0;
  try {
    note_exportable(pages);
    for (const PageMapping& entry : pages) {
      cuda_("cuMemMap", cuda_.api().cuMemMap, entry.address.value, entry.page_bytes.count, 0u,
            entry.page.value, 0u);
      ++mapped;
    }
  } catch (...) {
    undo_map(pages.first(mapped));
    forget_exportable(pages);
    throw;
  }
}

void CudaDriver::set_access(std::span<const PageMapping> pages) {
  const cuda::Calls::Scope scope = enter();
  const auto access = properties_.access(cuda::access_read_write);
  std::size_t opened = 0;
  try {
    for_each_stretch(pages, false, [&](const Stretch& stretch) {
      cuda_("cuMemSetAccess", cuda_.api().cuMemSetAccess, stretch.address.value, stretch.size.count,
            access.data(), access.size());
      opened += stretch.entries;
    });
  } catch (...) {
    const auto none = properties_.access(cuda::access_none);
    for_each_stretch(pages.first(opened), false, [&](const Stretch& stretch) {
      cuda_.api().cuMemSetAccess(stretch.address.value, stretch.size.count, none.data(), none.size());
    });
    throw;
  }
}

void CudaDriver::unmap(std::span<const PageMapping> pages, std::size_t& done) {
  done = 0;
  const cuda::Calls::Scope scope = enter();
  for_each_stretch(pages, false, [&](const Stretch& stretch) {
    cuda_("cuMemUnmap", cuda_.api().cuMemUnmap, stretch.address.value, stretch.size.count);
    forget_exportable(pages.subspan(done, stretch.entries));
    done += stretch.entries;
  });
}

void CudaDriver::note_exportable(std::span<const PageMapping> pages) {
  if (!shareable_) return;
  std::lock_guard lock(mutex_);
  for (const PageMapping& page : pages) exportable_[page.address] = page;
}

void CudaDriver::forget_exportable(std::span<const PageMapping> pages) noexcept {
  if (!shareable_) return;
  std::lock_guard lock(mutex_);
  for (const PageMapping& page : pages) exportable_.erase(page.address);
}

ExportedPage CudaDriver::export_page(Address address) {
  const cuda::Calls::Scope scope = enter();
  // This holds the lock during the call. unmap() takes the lock before it returns, and nobody may release the
  // page before that.
  std::lock_guard lock(mutex_);
  const auto next = exportable_.upper_bound(address);
  if (next == exportable_.begin() || address >= std::prev(next)->first + std::prev(next)->second.page_bytes)
    throw InvalidArgument("address: nothing is mapped there");
  const PageMapping& found = std::prev(next)->second;
  int file = -1;
  cuda_("cuMemExportToShareableHandle", cuda_.api().cuMemExportToShareableHandle, &file, found.page.value,
        cuda::handle_posix_fd, 0u);
  return {file, address - found.address, found.page_bytes};
}

}  // namespace vmm
