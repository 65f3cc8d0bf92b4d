#include "driver/host_driver.h"

#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "driver/host_calls.h"
#include "driver/stretches.h"

namespace vmm {

using host::fail;
using host::pointer;

namespace {
// A gap that reads as zeros is a mapping, and it cuts the one around it in two.
constexpr std::int64_t mappings_of_a_gap = 2;
}  // namespace

HostDriver::HostDriver(const char* name)
    : capabilities_{.name = "host",
                    .granularity = Bytes{static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE))},
                    .default_page_bytes = 64_KiB,
                    .merges_neighbours = true,
                    .fresh_pages_are_zero = true,
                    .host_accessible = true,
                    .max_mappings = host::MappingCount::of_process().most().count},
      memfd_(host::open_memfd(name)) {}

HostDriver::~HostDriver() { close(memfd_); }

std::uint64_t HostDriver::committed_bytes() const {
  struct stat info{};
  if (fstat(memfd_, &info) != 0)
    throw DriverError(std::string("fstat of the memfd: ") + std::strerror(errno));
  return static_cast<std::uint64_t>(info.st_blocks) * 512;  // POSIX: st_blocks is in units of 512 bytes
}

Address HostDriver::reserve(Bytes size, Bytes alignment) {
  const Bytes padded = size + alignment;
  if (padded < size) throw InvalidArgument("size: too large for the address space");
  constexpr int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  void* raw = mmap(nullptr, padded.count, PROT_NONE, flags, -1, 0);
  if (raw == MAP_FAILED) fail("reserve", {}, size, errno);
  const Address start{reinterpret_cast<std::uintptr_t>(raw)};
  const Address base{round_up(Bytes{start.value}, alignment).count};
  const Bytes before = base - start;
  const Bytes after = padded - before - size;
  if (before.count != 0) munmap(raw, before.count);
  if (after.count != 0) munmap(pointer(base + size), after.count);
  if (madvise(pointer(base), size.count, MADV_DONTFORK) != 0) {
    const int error = errno;
    munmap(pointer(base), size.count);
    fail("reserve", base, size, error);
  }
  return base;
}

void HostDriver::free_reservation(Address base, Bytes size) {
  const std::vector<GapPiece> gaps = gaps_in(base, size);
  {
    // This comes before the call: once the addresses are free, the system may give them to another thread.
    std::lock_guard lock(mutex_);
    note_gap(base, size, Gap::faults);
  }
  const int error = host::MappingReserve::of_process().spend(
      [&] { return munmap(pointer(base), size.count) != 0 ? errno : 0; });
  if (error == 0) return;
  {
    std::lock_guard lock(mutex_);
    for (const GapPiece& piece : gaps) note_gap(piece.start, piece.size, piece.gap);
  }
  fail("free_reservation", base, size, error);
}

std::vector<HostDriver::GapPiece> HostDriver::gaps_in(Address start, Bytes size) {
  std::vector<GapPiece> pieces;
  std::lock_guard lock(mutex_);
  zero_gaps_.for_each_piece(start, size, [&](Address at, Bytes bytes, bool zeros) {
    pieces.push_back({at, bytes, zeros ? Gap::zeros : Gap::faults});
  });
  return pieces;
}

void HostDriver::set_gap(Address start, Bytes size, Gap gap) {
  const int access = gap == Gap::zeros ? PROT_READ : PROT_NONE;
  for (const GapPiece& piece : gaps_in(start, size)) {
    if (piece.gap == gap) continue;
    if (gap == Gap::zeros) host::MappingCount::of_process().require(mappings_of_a_gap);
    if (mprotect(pointer(piece.start), piece.size.count, access) != 0)
      fail("set_gap", piece.start, piece.size, errno);
    if (gap == Gap::faults) host::unpopulate(piece.start, piece.size);
    std::lock_guard lock(mutex_);
    note_gap(piece.start, piece.size, gap);
  }
}

/// The caller holds the lock.
void HostDriver::note_gap(Address start, Bytes size, Gap gap) {
  const auto before = static_cast<std::int64_t>(zero_gaps_.size());
  if (gap == Gap::zeros)
    zero_gaps_.add(start, size);
  else
    zero_gaps_.remove(start, size);
  host::MappingCount::of_process().add(mappings_of_a_gap *
                                       (static_cast<std::int64_t>(zero_gaps_.size()) - before));
}

/// Puts the gap back where pages were mapped.
int HostDriver::restore_gap(Address start, Bytes size) {
  for (const GapPiece& piece : gaps_in(start, size))
    if (const int error = host::map_gap(piece.start, piece.size, piece.gap)) return error;
  return 0;
}

PageHandle HostDriver::create(Bytes page_bytes, Place place) {
  if (place.offset_bytes >= host::memfd_size.count ||
      page_bytes.count > host::memfd_size.count - place.offset_bytes)
    throw InvalidArgument("place: beyond the end of the memfd");
  const PageHandle page{place.offset_bytes};
  std::unique_lock lock(mutex_);
  page_sizes_[page] = page_bytes;
  lock.unlock();
  if (const int error = host::commit_zeros(memfd_, place, page_bytes)) {
    host::punch(memfd_, page, page_bytes);
    lock.lock();
    page_sizes_.erase(page);
    lock.unlock();
    fail("create", {place.offset_bytes}, page_bytes, error);
  }
  return page;
}

void HostDriver::release(PageHandle page) {
  std::unique_lock lock(mutex_);
  auto taken = page_sizes_.extract(page);
  lock.unlock();
  const Bytes size = taken.mapped();
  if (const int error = host::punch(memfd_, page, size)) {
    lock.lock();
    page_sizes_.insert(std::move(taken));
    lock.unlock();
    fail("release", {page.value}, size, error);
  }
}

/// Returns how many more mappings the process will have. The caller says to MappingCount when they are made.
std::int64_t HostDriver::add_mappings(std::span<const PageMapping> pages) {
  host::MappingCount& count = host::MappingCount::of_process();
  std::lock_guard lock(mutex_);
  const std::int64_t more = mapped_.add(pages);
  count.add(more);
  count.plan(more);
  return more;
}

void HostDriver::remove_mappings(std::span<const PageMapping> pages) {
  std::lock_guard lock(mutex_);
  host::MappingCount::of_process().add(mapped_.remove(pages));
}

void HostDriver::map(std::span<const PageMapping> pages) {
  struct Planned {
    std::int64_t more;
    ~Planned() { host::MappingCount::of_process().plan(-more); }
  };
  const Planned planned{add_mappings(pages)};
  std::size_t mapped = 0;
  try {
    host::MappingCount::of_process().require(0);  // the new ones are added already
    for_each_stretch(pages, true, [&](const Stretch& stretch) {
      // Nobody has access yet, so a child that is forked before MADV_DONTFORK cannot write into our memory.
      if (mmap(pointer(stretch.address), stretch.size.count, PROT_NONE, MAP_SHARED | MAP_FIXED, memfd_,
               static_cast<off_t>(stretch.offset_bytes)) == MAP_FAILED)
        fail("map", stretch.address, stretch.size, errno);
      mapped += stretch.entries;
      if (madvise(pointer(stretch.address), stretch.size.count, MADV_DONTFORK) != 0)
        fail("map", stretch.address, stretch.size, errno);
    });
  } catch (...) {
    for_each_stretch(pages.first(mapped), false,
                     [this](const Stretch& stretch) { restore_gap(stretch.address, stretch.size); });
    remove_mappings(pages);
    throw;
  }
}

void HostDriver::set_access(std::span<const PageMapping> pages) {
  std::size_t opened = 0;
  try {
    for_each_stretch(pages, false, [&](const Stretch& stretch) {
      if (mprotect(pointer(stretch.address), stretch.size.count, PROT_READ | PROT_WRITE) != 0)
        fail("set_access", stretch.address, stretch.size, errno);
      opened += stretch.entries;
      if (const int error = host::populate(stretch.address, stretch.size))
        fail("populate", stretch.address, stretch.size, error);
    });
  } catch (...) {
    for_each_stretch(pages.first(opened), false, [](const Stretch& stretch) {
      mprotect(pointer(stretch.address), stretch.size.count, PROT_NONE);
    });
    throw;
  }
}

void HostDriver::unmap(std::span<const PageMapping> pages, std::size_t& done) {
  done = 0;
  refuse_in_use(pages);
  for_each_stretch(pages, false, [&](const Stretch& stretch) {
    // This empties the page tables in small steps first. Replacing a populated gigabyte at once blocks every
    // other mmap of the process for tens of milliseconds.
    host::unpopulate(stretch.address, stretch.size);
    if (const int error = restore_gap(stretch.address, stretch.size))
      fail("unmap", stretch.address, stretch.size, error);
    remove_mappings(pages.subspan(done, stretch.entries));
    done += stretch.entries;
  });
}

void HostDriver::copy(Address to, Address from, Bytes size, StreamHandle stream) {
  streams_.run(stream, {{to, size}, {from, size}},
               [=] { std::memmove(pointer(to), pointer(from), size.count); });
}

void HostDriver::zero(std::span<const MemoryRange> ranges, StreamHandle stream) {
  for (const MemoryRange& range : ranges)
    streams_.run(stream, {range, {}}, [=] { std::memset(pointer(range.start), 0, range.size.count); });
}

/// On other drivers only the caller can keep this rule. Here we can see it broken, and it would kill the
/// process.
void HostDriver::refuse_in_use(std::span<const PageMapping> pages) const {
  for_each_stretch(pages, false, [&](const Stretch& stretch) {
    if (streams_.in_use({stretch.address, stretch.size}))
      throw InvalidArgument("unmap: work in flight on a stream still touches these pages");
  });
}

}  // namespace vmm
