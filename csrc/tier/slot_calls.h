// The system calls behind a file of slots.
#pragma once

#include <fcntl.h>
#include <sys/statvfs.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>

namespace vmm {

/// As the calls of the same names: -1 and errno when they fail. Safe from any thread.
class SlotCalls {
 public:
  virtual ~SlotCalls() = default;

  virtual int open(const char* path, int flags, mode_t mode) { return ::open(path, flags, mode); }
  virtual int unlink(const char* path) { return ::unlink(path); }
  virtual int allocate(int fd, off_t size) { return ::fallocate(fd, 0, 0, size); }
  virtual int truncate(int fd, off_t size) { return ::ftruncate(fd, size); }
  virtual int room(int fd, struct statvfs& out) { return ::fstatvfs(fd, &out); }
  /// The file's flags (F_SETFL).
  virtual int set_flags(int fd, int flags) { return ::fcntl(fd, F_SETFL, flags); }
  virtual ssize_t readv(int fd, const iovec* parts, int count, off_t at) {
    return ::preadv(fd, parts, count, at);
  }
  virtual ssize_t writev(int fd, const iovec* parts, int count, off_t at) {
    return ::pwritev(fd, parts, count, at);
  }
};

}  // namespace vmm
