// The system calls behind a share's file.
#pragma once

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

namespace vmm {

/// As the calls of the same names: -1 and errno when they fail.
class FileCalls {
 public:
  virtual ~FileCalls() = default;

  int open(const char* path, int flags, mode_t mode) {
    return refused("open") ? -1 : ::open(path, flags | O_CLOEXEC, mode);
  }
  int status(int fd, struct stat& out) { return refused("fstat") ? -1 : ::fstat(fd, &out); }
  /// So that no write can lack room later.
  int allocate(int fd, off_t size) { return refused("fallocate") ? -1 : ::fallocate(fd, 0, 0, size); }
  ssize_t read(int fd, void* to, size_t size, off_t at) {
    return refused("pread") ? -1 : ::pread(fd, to, size, at);
  }
  ssize_t write(int fd, const void* from, size_t size, off_t at) {
    return refused("pwrite") ? -1 : ::pwrite(fd, from, size, at);
  }
  /// `command`: F_OFD_SETLK or F_OFD_GETLK.
  int lock(int fd, int command, struct flock& range) {
    return refused("fcntl") ? -1 : ::fcntl(fd, command, &range);
  }
  int touch(int fd) { return refused("futimens") ? -1 : ::futimens(fd, nullptr); }
  int unlink(const char* path) { return refused("unlink") ? -1 : ::unlink(path); }
  int event() { return refused("eventfd") ? -1 : ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK); }
  int watch() { return refused("inotify_init1") ? -1 : ::inotify_init1(IN_CLOEXEC | IN_NONBLOCK); }
  int wait(pollfd* files, nfds_t count, int milliseconds) { return ::poll(files, count, milliseconds); }
  int watch_attributes(int watch, const char* path) {
    return refused("inotify_add_watch") ? -1 : ::inotify_add_watch(watch, path, IN_ATTRIB);
  }

 protected:
  /// An errno for a call that is to fail, else 0. (Tests end the process here, too.)
  virtual int fails(const char*) { return 0; }

 private:
  bool refused(const char* call) {
    const int error = fails(call);
    if (error != 0) errno = error;
    return error != 0;
  }
};

}  // namespace vmm
