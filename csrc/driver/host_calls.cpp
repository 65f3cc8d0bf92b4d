#include "driver/host_calls.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>

#include "base/error.h"
#include "driver/host_mappings.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22  // Linux 5.14; older headers lack it
#endif
#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U  // Linux 6.3
#endif

namespace vmm::host {
namespace {

// We fill and empty page tables in steps. A bigger step keeps the process's mapping lock for milliseconds,
// and everybody who maps waits for it.
constexpr Bytes step = 2_MiB;
constexpr Bytes least_page = 4_KiB;
// This close to the limit we take an ENOMEM to mean the limit, because other threads map and unmap meanwhile.
constexpr std::uint64_t limit_slack = 64;

/// Calls work(address, size) -> errno on each step, until one fails.
template <class Work>
int in_steps(Address address, Bytes size, Work work) {
  for (Bytes at; at < size; at += step)
    if (const int error = work(address + at, std::min(step, size - at))) return error;
  return 0;
}

void touch_every_page(Address address, Bytes size) {
  const auto* bytes = static_cast<const volatile unsigned char*>(pointer(address));
  for (std::size_t at = 0; at < size.count; at += least_page.count) (void)bytes[at];
}

int populate_step(Address address, Bytes size) {
  // The caller will write, but the memory is there already. So a fault for reading maps the neighbours, too,
  // and makes them writable as the mapping is. That takes a third of the time of MADV_POPULATE_WRITE.
  while (madvise(pointer(address), size.count, MADV_POPULATE_READ) != 0) {
    if (errno == EINVAL) {  // kernel before 5.14
      touch_every_page(address, size);
      return 0;
    }
    if (errno != EINTR && errno != EAGAIN) return errno;
  }
  return 0;
}

}  // namespace

int open_memfd(const char* name) {
  rlimit limit{};
  if (getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY &&
      limit.rlim_cur < memfd_size.count)
    throw DriverError("the file size limit (ulimit -f) must be unlimited: the host driver's memfd is sparse");
  int fd = memfd_create(name, MFD_CLOEXEC | MFD_NOEXEC_SEAL);
  if (fd < 0 && errno == EINVAL) fd = memfd_create(name, MFD_CLOEXEC);
  if (fd < 0) throw DriverError(std::string("memfd_create: ") + std::strerror(errno));
  if (ftruncate(fd, static_cast<off_t>(memfd_size.count)) != 0) {
    const int error = errno;
    close(fd);
    throw DriverError(std::string("ftruncate of the memfd: ") + std::strerror(error));
  }
  return fd;
}

int commit_zeros(int fd, Place place, Bytes size) {
  // Writing takes half the time of faulting in, and a lack of memory is an error instead of a signal.
  static char zeros[step.count];  // has no constructor, because forked children and exiting processes use it
  for (Bytes at; at < size;) {
    const ssize_t written =
        pwrite(fd, zeros, std::min(step, size - at).count, static_cast<off_t>(place.offset_bytes + at.count));
    if (written == 0) return ENOSPC;
    if (written < 0 && errno != EINTR) return errno;
    if (written > 0) at += Bytes{static_cast<std::uint64_t>(written)};
  }
  return 0;
}

int punch(int fd, PageHandle page, Bytes size) {
  constexpr int mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
  const auto offset = static_cast<off_t>(page.value);
  while (fallocate(fd, mode, offset, static_cast<off_t>(size.count)) != 0)
    if (errno != EINTR) return errno;
  return 0;
}

int map_gap(Address address, Bytes size, Gap gap) {
  // The flags are those of every other gap, so that neighbouring gaps merge into one mapping.
  constexpr int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
  const int access = gap == Gap::zeros ? PROT_READ : PROT_NONE;
  return MappingReserve::of_process().spend([&] {
    if (mmap(pointer(address), size.count, access, flags, -1, 0) == MAP_FAILED) return errno;
    return madvise(pointer(address), size.count, MADV_DONTFORK) != 0 ? errno : 0;
  });
}

int populate(Address address, Bytes size) { return in_steps(address, size, populate_step); }

void unpopulate(Address address, Bytes size) {
  in_steps(address, size, [](Address at, Bytes count) {
    madvise(pointer(at), count.count, MADV_DONTNEED);
    return 0;
  });
}

void fail(const char* call, Address address, Bytes size, int error) {
  const std::string where = std::string(call) + "(address " + std::to_string(address.value) + ", " +
                            std::to_string(size.count) + " bytes): " + std::strerror(error);
  if (error == ENOMEM) {
    MappingCount& mappings = MappingCount::of_process();
    mappings.count();
    // The system refused by its own limit; it knows nothing of VMM_MAX_MAPPINGS.
    const MostMappings limit{mappings.most().of_system, mappings.most().of_system};
    if (limit.count != 0 && mappings.used() + limit_slack >= limit.count)
      throw MappingLimit(where + "; this process has " + std::to_string(mappings.used()) +
                         " memory mappings of " + std::to_string(limit.count) + limit.advice());
  }
  if (error == ENOMEM || error == EFAULT || error == ENOSPC) throw DriverOutOfMemory(where);
  throw DriverError(where);
}

}  // namespace vmm::host
