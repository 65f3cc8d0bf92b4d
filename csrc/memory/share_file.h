// The file through which processes share a device's memory: who is in it, under locks that die with them.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "base/closed_in_child.h"
#include "base/log.h"
#include "memory/file_calls.h"
#include "memory/share_table.h"

namespace vmm {

/// Read and written by plain calls, never mapped: a file that somebody cuts short must be an error, not a
/// SIGBUS. Byte 0 is locked by whoever reads or changes the table; the byte 1 + place for life by the process
/// in that place. The locks belong to the open file (OFD), so the kernel drops them however a process ends.
/// Not thread-safe.
class ShareFile {
 public:
  enum class Access : std::uint8_t { join, look };

  /// Opens the file, and with Access::join makes it where it is not there. Throws DriverError, or
  /// InvalidArgument for a file that is another user's or no file.
  ShareFile(std::string path, Access access, FileCalls& calls);

  /// While this lives, nobody else changes the table.
  class Locked {
   public:
    /// Throws DriverError where somebody else has it for longer than five seconds (a stopped process, say).
    explicit Locked(ShareFile& file);
    ~Locked();
    Locked(const Locked&) = delete;
    Locked& operator=(const Locked&) = delete;

   private:
    ShareFile& file_;
  };

  // Under Locked:
  /// Throws InvalidArgument for what is no table of this version, or damaged.
  ShareTable read();
  /// The table, with its checksum. Either all of it stands afterwards or, when this throws, what stood
  /// before.
  void write(ShareTable& table);
  /// Makes the file an empty table if it is new, or if it is none and nobody is in it, which is logged.
  /// Throws what read() does.
  ShareTable read_or_replace(Log& log);
  /// Whether the file is no longer where others look for it.
  bool is_gone();
  /// Takes the place for life, if nobody has it.
  bool occupy(std::uint32_t place);
  /// Whether a process other than this file's owner has the place.
  bool is_occupied(std::uint32_t place);
  /// Removes from the table who is dead. `mine` is known to live. True if there was one.
  bool bury_dead(ShareTable& table, std::optional<std::uint32_t> mine);

  /// Wakes everybody who watches the file. Where that fails they look by themselves soon enough.
  void ring() noexcept { calls_.touch(file_.get()); }
  /// Removes the file: the last to leave does.
  void remove();
  void close() noexcept { file_.close(); }

  const std::string& path() const noexcept { return path_; }
  int descriptor() const noexcept { return file_.get(); }

 private:
  void require_mine();
  bool lock(int kind, off_t first, off_t count);
  bool anyone_inside();
  void read_exactly(void* to, std::size_t size, off_t at);
  void write_exactly(const void* from, std::size_t size, off_t at);
  [[noreturn]] void fail(const char* call) const;

  const std::string path_;
  const Access access_;
  FileCalls& calls_;
  ClosedInChild file_;
  std::uint64_t valid_ = 0;  // the copy that read() found
};

}  // namespace vmm
