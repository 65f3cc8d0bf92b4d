#include "memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace standin {
namespace {

constexpr Size stretch = Size{1} << 40;  // of one device; sparse
constexpr Size chunk = Size{2} << 20;

void* at(Address address) { return reinterpret_cast<void*>(address); }  // NOLINT: that is what addresses are

}  // namespace

int Memory::file() const {
  if (fd_ >= 0) return fd_;
  fd_ = memfd_create("vmm-standin", MFD_CLOEXEC);
  if (fd_ < 0 || ftruncate(fd_, static_cast<off_t>(stretch * (devices + 1))) != 0) {
    std::perror("standin: memfd");
    std::abort();
  }
  return fd_;
}

std::optional<Size> Memory::take(int device, Size size) {
  auto [found, first] = free_.try_emplace(device);
  if (first) found->second[stretch * static_cast<Size>(device)] = stretch;
  auto& free = found->second;
  const auto hole = std::find_if(free.begin(), free.end(), [&](const auto& it) { return it.second >= size; });
  if (hole == free.end()) return std::nullopt;
  const auto [offset, left] = *hole;
  free.erase(hole);
  if (left > size) free[offset + size] = left - size;
  return offset;
}

void Memory::give(int device, Size offset, Size size) {
  constexpr int punch = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
  fallocate(file(), punch, static_cast<off_t>(offset), static_cast<off_t>(size));
  auto& free = free_[device];
  auto next = free.lower_bound(offset);
  if (next != free.end() && offset + size == next->first) {
    size += next->second;
    next = free.erase(next);
  }
  if (next != free.begin()) {
    const auto before = std::prev(next);
    if (before->first + before->second == offset) {
      before->second += size;
      return;
    }
  }
  free[offset] = size;
}

bool Memory::fill(Size offset, Size size, bool poison, int other) const {
  const int to = other >= 0 ? other : file();
  static const auto* bytes = new std::vector<char>(chunk, '\xFF');
  if (!poison) return fallocate(to, 0, static_cast<off_t>(offset), static_cast<off_t>(size)) == 0;
  for (Size done = 0; done < size;) {
    const ssize_t written =
        pwrite(to, bytes->data(), std::min(chunk, size - done), static_cast<off_t>(offset + done));
    if (written < 0 && errno != EINTR) return false;
    if (written > 0) done += static_cast<Size>(written);
  }
  return true;
}

Address Memory::reserve(Size size, Size alignment, Size shift, Address hint) {
  constexpr int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  Size whole = 0;
  if (__builtin_add_overflow(size, 2 * alignment, &whole)) return 0;
  if (hint != 0 && hint % alignment == 0) {  // taken where it is free
    void* got = mmap(at(hint), size, PROT_NONE, flags | MAP_FIXED_NOREPLACE, -1, 0);
    if (got == at(hint)) {
      madvise(got, size, MADV_DONTFORK);
      return hint;
    }
    if (got != MAP_FAILED) munmap(got, size);
  }
  void* got = mmap(nullptr, whole, PROT_NONE, flags, -1, 0);
  if (got == MAP_FAILED) return 0;
  const auto begin = reinterpret_cast<Address>(got);
  const Address start = (begin + alignment - 1) / alignment * alignment + shift;
  if (start > begin) munmap(got, start - begin);
  if (begin + whole > start + size) munmap(at(start + size), begin + whole - start - size);
  madvise(at(start), size, MADV_DONTFORK);  // a child would write into our pages
  return start;
}

void Memory::unreserve(Address start, Size size) { munmap(at(start), size); }

bool Memory::clear(Address start, Size size) {
  madvise(at(start), size, MADV_DONTNEED);  // first: replacing present pages is far slower
  constexpr int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
  if (mmap(at(start), size, PROT_NONE, flags, -1, 0) == MAP_FAILED) return false;
  madvise(at(start), size, MADV_DONTFORK);
  return true;
}

bool Memory::map(Address start, Size size, Size offset, int other) const {
  const int from = other >= 0 ? other : file();
  void* got = mmap(at(start), size, PROT_NONE, MAP_SHARED | MAP_FIXED, from, static_cast<off_t>(offset));
  if (got == MAP_FAILED) return false;
  madvise(at(start), size, MADV_DONTFORK);
  return true;
}

bool Memory::protect(Address start, Size size, bool readable, bool writable) {
  const int access = (readable ? PROT_READ : 0) | (writable ? PROT_WRITE : 0);
  return mprotect(at(start), size, access) == 0;
}

}  // namespace standin
