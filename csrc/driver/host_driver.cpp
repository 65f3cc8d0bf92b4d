#include "driver/host_driver.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <string>

#include "base/error.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22  // Linux 5.14; older headers lack it
#endif
#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U  // Linux 6.3
#endif

namespace vmm {
namespace {

constexpr Bytes file_size = 64_TiB;  // sparse: only places that hold a page cost memory
// Bigger populate calls keep the process's mapping lock for milliseconds, and everybody waits for it.
constexpr Bytes populate_chunk = 2_MiB;
// Close to the limit an ENOMEM is taken to mean the limit: other threads map and unmap meanwhile.
constexpr std::uint64_t limit_slack = 64;

std::uint64_t read_max_mappings() {
  std::uint64_t limit = 0;
  std::ifstream("/proc/sys/vm/max_map_count") >> limit;
  return limit;
}

[[noreturn]] void fail(const char* call, Address address, Bytes size, int error, std::uint64_t max_mappings) {
  const std::string where = std::string(call) + "(address " + std::to_string(address.value) + ", " +
                            std::to_string(size.count) + " bytes): " + std::strerror(error);
  if (error == ENOMEM && max_mappings != 0) {
    const std::uint64_t count = count_process_mappings();
    if (count + limit_slack >= max_mappings)
      throw MappingLimit(where + "; this process has " + std::to_string(count) +
                         " memory mappings and vm.max_map_count is " + std::to_string(max_mappings) +
                         ": raise it (sysctl -w vm.max_map_count=...) or use larger pages");
  }
  if (error == ENOMEM || error == EFAULT || error == ENOSPC) throw DriverOutOfMemory(where);
  throw DriverError(where);
}

/// Entries that the system can treat as one: [address, address + size), `entries` of them.
struct Stretch {
  Address address;
  std::uint64_t offset_bytes;
  Bytes size;
  std::size_t entries;
};

/// Calls visit(stretch) for each stretch of neighbouring entries, in order.
template <class Visit>
void for_each_stretch(std::span<const PageMapping> pages, bool offsets_matter, Visit visit) {
  for (std::size_t i = 0; i < pages.size();) {
    Stretch stretch{pages[i].address, pages[i].page.value, pages[i].page_bytes, 1};
    for (++i; i < pages.size() && pages[i].address == stretch.address + stretch.size; ++i) {
      if (offsets_matter && pages[i].page.value != stretch.offset_bytes + stretch.size.count) break;
      stretch.size += pages[i].page_bytes;
      ++stretch.entries;
    }
    visit(stretch);
  }
}

template <class Visit>
void for_each_chunk(Address address, Bytes size, Visit visit) {
  for (Bytes at; at < size; at += populate_chunk) visit(address + at, std::min(populate_chunk, size - at));
}

void* pointer(Address address) { return reinterpret_cast<void*>(address.value); }

/// What an address range is when no page is mapped there: untouchable, and absent from forked children.
/// Its flags are everywhere the same, so that neighbouring gaps merge into one mapping.
int map_gap(Address address, Bytes size) {
  constexpr int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
  if (mmap(pointer(address), size.count, PROT_NONE, flags, -1, 0) == MAP_FAILED) return errno;
  return madvise(pointer(address), size.count, MADV_DONTFORK) != 0 ? errno : 0;
}

void touch_every_page(Address address, Bytes size) {
  static const auto step = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  const auto* bytes = static_cast<const volatile unsigned char*>(pointer(address));
  for (std::size_t at = 0; at < size.count; at += step) (void)bytes[at];
}

/// Fills the page tables. For reading, although it will be written: the memory is there already, so one fault
/// maps its neighbours too, writable as the mapping is; a third of the time of MADV_POPULATE_WRITE.
int populate(Address address, Bytes size) {
  while (madvise(pointer(address), size.count, MADV_POPULATE_READ) != 0) {
    if (errno == EINVAL) {  // kernel before 5.14
      touch_every_page(address, size);
      return 0;
    }
    if (errno != EINTR && errno != EAGAIN) return errno;
  }
  return 0;
}

/// Commits memory by writing zeros: half the time of faulting it in, and out of memory is an error, not a
/// signal.
int commit_zeros(int fd, Place place, Bytes size) {
  static char zeros[populate_chunk.count];  // no constructor: a forked child or an exiting process may come by
  for (Bytes at; at < size;) {
    const ssize_t written = pwrite(fd, zeros, std::min(populate_chunk, size - at).count,
                                   static_cast<off_t>(place.offset_bytes + at.count));
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

int open_memfd(const char* name) {
  rlimit limit{};
  if (getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY &&
      limit.rlim_cur < file_size.count)
    throw DriverError("the file size limit (ulimit -f) must be unlimited: the host driver's memfd is sparse");
  int fd = memfd_create(name, MFD_CLOEXEC | MFD_NOEXEC_SEAL);
  if (fd < 0 && errno == EINVAL) fd = memfd_create(name, MFD_CLOEXEC);
  if (fd < 0) throw DriverError(std::string("memfd_create: ") + std::strerror(errno));
  if (ftruncate(fd, static_cast<off_t>(file_size.count)) != 0) {
    const int error = errno;
    close(fd);
    throw DriverError(std::string("ftruncate of the memfd: ") + std::strerror(error));
  }
  return fd;
}

}  // namespace

std::uint64_t count_process_mappings() {
  std::ifstream maps("/proc/self/maps");
  return static_cast<std::uint64_t>(
      std::count(std::istreambuf_iterator<char>(maps), std::istreambuf_iterator<char>(), '\n'));
}

HostDriver::HostDriver(const char* name)
    : capabilities_{.name = "host",
                    .granularity = Bytes{static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE))},
                    .default_page_bytes = 64_KiB,
                    .merges_neighbours = true,
                    .fresh_pages_are_zero = true,
                    .host_accessible = true,
                    .max_mappings = read_max_mappings()},
      memfd_(open_memfd(name)),
      ledger_(capabilities_.granularity) {}

HostDriver::~HostDriver() { close(memfd_); }

std::uint64_t HostDriver::committed_bytes() const {
  struct stat info{};
  if (fstat(memfd_, &info) != 0)
    throw DriverError(std::string("fstat of the memfd: ") + std::strerror(errno));
  return static_cast<std::uint64_t>(info.st_blocks) * 512;  // POSIX: st_blocks is in units of 512 bytes
}

Address HostDriver::reserve(Bytes size, Bytes alignment) {
  {
    std::lock_guard lock(mutex_);
    ledger_.check_size("size", size);
    ledger_.check_size("alignment", alignment);
    if (!is_power_of_two(alignment.count)) throw InvalidArgument("alignment: expected a power of two");
  }
  const Bytes padded = size + alignment;
  if (padded < size) throw InvalidArgument("size: too large for the address space");
  constexpr int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  void* raw = mmap(nullptr, padded.count, PROT_NONE, flags, -1, 0);
  if (raw == MAP_FAILED) fail("reserve", {}, size, errno, capabilities_.max_mappings);
  const Address start{reinterpret_cast<std::uintptr_t>(raw)};
  const Address base{round_up(Bytes{start.value}, alignment).count};
  const Bytes before = base - start;
  const Bytes after = padded - before - size;
  if (before.count != 0) munmap(raw, before.count);
  if (after.count != 0) munmap(pointer(base + size), after.count);
  if (madvise(pointer(base), size.count, MADV_DONTFORK) != 0) {
    const int error = errno;
    munmap(pointer(base), size.count);
    fail("reserve", base, size, error, capabilities_.max_mappings);
  }
  std::lock_guard lock(mutex_);
  ledger_.add_reservation(base, size);
  return base;
}

void HostDriver::free_reservation(Address base, Bytes size) {
  std::lock_guard lock(mutex_);
  ledger_.check_free(base, size);
  if (munmap(pointer(base), size.count) != 0)
    fail("free_reservation", base, size, errno, capabilities_.max_mappings);
  ledger_.remove_reservation(base);
}

PageHandle HostDriver::create(Bytes page_bytes, Place place) {
  if (place.offset_bytes >= file_size.count || page_bytes.count > file_size.count - place.offset_bytes)
    throw InvalidArgument("place: beyond the end of the memfd");
  const PageHandle page{place.offset_bytes};
  {
    std::lock_guard lock(mutex_);
    ledger_.add_page(place, page_bytes);
  }
  if (const int error = commit_zeros(memfd_, place, page_bytes)) {
    punch(memfd_, page, page_bytes);
    {
      std::lock_guard lock(mutex_);
      ledger_.remove_page(page);
    }
    fail("create", {place.offset_bytes}, page_bytes, error, 0);
  }
  return page;
}

void HostDriver::release(PageHandle page) {
  Bytes size;
  {
    std::lock_guard lock(mutex_);
    size = ledger_.check_release(page);
    ledger_.remove_page(page);
  }
  if (const int error = punch(memfd_, page, size)) {
    {
      std::lock_guard lock(mutex_);
      ledger_.add_page({page.value}, size);
    }
    fail("release", {page.value}, size, error, 0);
  }
}

void HostDriver::map(std::span<const PageMapping> pages) {
  {
    std::lock_guard lock(mutex_);
    ledger_.add_mappings(pages);
  }
  std::size_t mapped = 0;
  try {
    for_each_stretch(pages, true, [&](const Stretch& stretch) {
      // No access yet, so that a child forked before MADV_DONTFORK takes effect cannot write our memory.
      if (mmap(pointer(stretch.address), stretch.size.count, PROT_NONE, MAP_SHARED | MAP_FIXED, memfd_,
               static_cast<off_t>(stretch.offset_bytes)) == MAP_FAILED)
        fail("map", stretch.address, stretch.size, errno, capabilities_.max_mappings);
      mapped += stretch.entries;
      if (madvise(pointer(stretch.address), stretch.size.count, MADV_DONTFORK) != 0)
        fail("map", stretch.address, stretch.size, errno, capabilities_.max_mappings);
    });
  } catch (...) {
    for_each_stretch(pages.first(mapped), false,
                     [](const Stretch& stretch) { map_gap(stretch.address, stretch.size); });
    std::lock_guard lock(mutex_);
    ledger_.remove_mappings(pages);
    throw;
  }
}

void HostDriver::set_access(std::span<const PageMapping> pages) {
  {
    std::lock_guard lock(mutex_);
    ledger_.check_mapped(pages);
  }
  std::size_t opened = 0;
  try {
    for_each_stretch(pages, false, [&](const Stretch& stretch) {
      if (mprotect(pointer(stretch.address), stretch.size.count, PROT_READ | PROT_WRITE) != 0)
        fail("set_access", stretch.address, stretch.size, errno, capabilities_.max_mappings);
      opened += stretch.entries;
      for_each_chunk(stretch.address, stretch.size, [&](Address address, Bytes size) {
        if (const int error = populate(address, size))
          fail("populate", address, size, error, capabilities_.max_mappings);
      });
    });
  } catch (...) {
    for_each_stretch(pages.first(opened), false, [](const Stretch& stretch) {
      mprotect(pointer(stretch.address), stretch.size.count, PROT_NONE);
    });
    throw;
  }
  std::lock_guard lock(mutex_);
  ledger_.set_accessible(pages, true);
}

void HostDriver::unmap(std::span<const PageMapping> pages, std::size_t& done) {
  done = 0;
  {
    std::lock_guard lock(mutex_);
    ledger_.check_mapped(pages);
  }
  for_each_stretch(pages, false, [&](const Stretch& stretch) {
    // Emptied in small steps first: replacing a populated gigabyte at once blocks every other mmap of the
    // process for tens of milliseconds.
    for_each_chunk(stretch.address, stretch.size,
                   [](Address address, Bytes size) { madvise(pointer(address), size.count, MADV_DONTNEED); });
    if (const int error = map_gap(stretch.address, stretch.size))
      fail("unmap", stretch.address, stretch.size, error, capabilities_.max_mappings);
    std::lock_guard lock(mutex_);
    ledger_.remove_mappings(pages.subspan(done, stretch.entries));
    done += stretch.entries;
  });
}

void HostDriver::copy(Address to, Address from, Bytes size, StreamHandle stream) {
  require_stream(stream);
  {
    std::lock_guard lock(mutex_);
    ledger_.check_accessible("to", to, size);
    ledger_.check_accessible("from", from, size);
  }
  std::memmove(pointer(to), pointer(from), size.count);
}

void HostDriver::zero(Address address, Bytes size, StreamHandle stream) {
  require_stream(stream);
  {
    std::lock_guard lock(mutex_);
    ledger_.check_accessible("address", address, size);
  }
  std::memset(pointer(address), 0, size.count);
}

void HostDriver::require_stream(StreamHandle stream) {
  std::lock_guard lock(mutex_);
  if (!streams_.contains(stream.value)) throw InvalidArgument("stream: not a stream of this driver");
}

StreamHandle HostDriver::create_stream() {
  std::lock_guard lock(mutex_);
  streams_.insert(next_stream_);
  return {next_stream_++};
}

void HostDriver::destroy_stream(StreamHandle stream) {
  std::lock_guard lock(mutex_);
  if (stream.value == 0 || streams_.erase(stream.value) == 0)
    throw InvalidArgument("stream: not a stream that can be destroyed");
}

EventHandle HostDriver::record(StreamHandle stream) {
  require_stream(stream);
  std::lock_guard lock(mutex_);
  events_.insert(next_event_);
  return {next_event_++};
}

bool HostDriver::query(EventHandle event) {
  std::lock_guard lock(mutex_);
  if (!events_.contains(event.value)) throw InvalidArgument("event: not an event of this driver");
  return true;
}

void HostDriver::wait(EventHandle event) { query(event); }

void HostDriver::destroy_event(EventHandle event) {
  std::lock_guard lock(mutex_);
  if (events_.erase(event.value) == 0) throw InvalidArgument("event: not an event of this driver");
}

}  // namespace vmm
