#include "tier/unnamed_file.h"

#include <array>
#include <atomic>
#include <cstring>

#include "base/error.h"
#include "tier/slot_sizes.h"

namespace vmm {
namespace {

struct WayToOpen {
  bool named;
  bool direct;
};

std::string words_of(int error) { return std::strerror(error); }

bool is_of_directory(int error) {
  for (const int each : {ENOENT, ENOTDIR, EACCES, EPERM, EROFS, ELOOP, ENAMETOOLONG})
    if (error == each) return true;
  return false;
}

/// A name that nobody else has: of this process, and counted.
std::string own_name(const std::string& directory) {
  static std::atomic<unsigned> made{0};
  return directory + "/.vmm-slots-" + std::to_string(getpid()) + "-" + std::to_string(made++);
}

/// -1 and errno where it cannot be opened.
int open_one(const std::string& directory, WayToOpen way, SlotCalls& calls) {
  const int flags = O_RDWR | O_CLOEXEC | O_EXCL | (way.direct ? O_DIRECT : 0);
  if (!way.named) return calls.open(directory.c_str(), flags | O_TMPFILE, 0600);
  const std::string name = own_name(directory);
  const int fd = calls.open(name.c_str(), flags | O_CREAT, 0600);
  const int error = errno;
  if (fd >= 0 && calls.unlink(name.c_str()) != 0) {
    const int unlink_error = errno;
    ::close(fd);
    errno = unlink_error;
    return -1;
  }
  errno = error;
  return fd;
}

UnnamedFile open_any(const std::string& directory, bool direct, SlotCalls& calls) {
  constexpr std::array ways{WayToOpen{false, true}, WayToOpen{true, true}, WayToOpen{false, false},
                            WayToOpen{true, false}};
  int error = 0;
  for (const WayToOpen way : ways) {
    if (way.direct && !direct) continue;
    const int fd = open_one(directory, way, calls);
    if (fd >= 0) return {ClosedInChild(fd), way.direct};
    error = errno;
    if (is_of_directory(error)) break;  // no other way will find or write it
  }
  if (is_of_directory(error))
    throw InvalidArgument("directory: no file can be made in '" + directory + "': " + words_of(error));
  throw DriverError("open of a file in '" + directory + "': " + words_of(error));
}

[[noreturn]] void refuse_size(const std::string& directory, Bytes size, int fd, int error, SlotCalls& calls) {
  struct statvfs room{};
  std::string free;
  if (calls.room(fd, room) == 0)
    free = "; " + std::to_string(std::uint64_t{room.f_bavail} * room.f_frsize) + " bytes are free";
  throw InvalidArgument("capacity: '" + directory + "' has no room for a file of " +
                        std::to_string(size.count) + " bytes: " + words_of(error) + free);
}

bool is_of_size(int error) { return error == ENOSPC || error == EFBIG || error == EDQUOT; }

void set_size(const std::string& directory, Bytes size, int fd, SlotCalls& calls, Log& log) {
  const auto length = static_cast<off_t>(size.count);
  int result = 0;
  for (int attempt = 0; attempt < 100; ++attempt) {
    result = calls.allocate(fd, length);
    if (result == 0 || errno != EINTR) break;
  }
  if (result == 0) return;
  const int error = errno;
  if (is_of_size(error)) refuse_size(directory, size, fd, error, calls);
  if (error != EOPNOTSUPP && error != ENOSYS) throw DriverError("fallocate: " + words_of(error));
  log.write(LogLevel::warning, "room for a tier cannot be set aside, and a write may find none later, in ",
            directory.c_str());
  if (calls.truncate(fd, length) == 0) return;
  if (is_of_size(errno)) refuse_size(directory, size, fd, errno, calls);
  throw DriverError("ftruncate: " + words_of(errno));
}

/// 0, or the errno of a read and a write of the file's beginning.
int try_calls(int fd, SlotCalls& calls) {
  alignas(slot_alignment.count) static thread_local std::array<std::byte, slot_alignment.count> bytes;
  const iovec part{bytes.data(), bytes.size()};
  if (calls.readv(fd, &part, 1, 0) < 0 || calls.writev(fd, &part, 1, 0) < 0) return errno;
  return 0;
}

}  // namespace

UnnamedFile make_unnamed_file(const std::string& directory, Bytes size, bool direct, SlotCalls& calls,
                              Log& log) {
  UnnamedFile out = open_any(directory, direct, calls);
  const int fd = out.file.get();
  set_size(directory, size, fd, calls, log);
  int error = try_calls(fd, calls);
  if (error == EINVAL && out.direct) {
    if (calls.set_flags(fd, 0) != 0) throw DriverError("fcntl: " + words_of(errno));
    out.direct = false;
    error = try_calls(fd, calls);
  }
  if (error != 0)
    throw DriverError("the first read and write of a file in '" + directory + "': " + words_of(error));
  if (direct && !out.direct)
    log.write(LogLevel::warning, "a tier's file goes through the page cache: no O_DIRECT in ",
              directory.c_str());
  return out;
}

}  // namespace vmm
