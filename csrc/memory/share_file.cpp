#include "memory/share_file.h"

#include <chrono>
#include <cstring>
#include <thread>
#include <utility>

#include "base/error.h"

namespace vmm {
namespace {

using namespace std::chrono_literals;
constexpr auto lock_patience = 5s;  // a transaction takes microseconds, but who is in it may not get a CPU
constexpr auto lock_recheck = 50us;

off_t copy_at(std::uint64_t which) {
  return static_cast<off_t>(sizeof(ShareHeader) + which * sizeof(ShareTable));
}

}  // namespace

ShareFile::ShareFile(std::string path, Access access, FileCalls& calls)
    : path_(std::move(path)), access_(access), calls_(calls) {
  const int flags = access == Access::join ? O_RDWR | O_CREAT : O_RDONLY;
  const int fd = calls_.open(path_.c_str(), flags | O_NOFOLLOW | O_NONBLOCK, 0600);
  if (fd < 0) fail("open");
  file_ = ClosedInChild(fd);
  require_mine();
}

void ShareFile::require_mine() {
  struct stat status{};
  if (calls_.status(file_.get(), status) != 0) fail("fstat");
  if (!S_ISREG(status.st_mode)) throw InvalidArgument("share: " + path_ + " is not a plain file");
  if (status.st_uid != geteuid())
    throw InvalidArgument("share: " + path_ + " belongs to user " + std::to_string(status.st_uid) +
                          "; expected one of this process's user, " + std::to_string(geteuid()));
}

void ShareFile::fail(const char* call) const {
  const int error = errno;
  throw DriverError("share: " + std::string(call) + " of " + path_ + " failed: " + std::strerror(error));
}

bool ShareFile::lock(int kind, off_t first, off_t count) {
  struct flock range{};
  range.l_type = static_cast<short>(kind);
  range.l_whence = SEEK_SET;
  range.l_start = first;
  range.l_len = count;
  while (calls_.lock(file_.get(), F_OFD_SETLK, range) != 0) {
    if (errno == EAGAIN || errno == EACCES) return false;
    if (errno != EINTR) fail("fcntl(F_OFD_SETLK)");
  }
  return true;
}

// Tried again and again rather than waited for in the kernel, where there is no end to waiting for a process
// that was stopped in the middle.
ShareFile::Locked::Locked(ShareFile& file) : file_(file) {
  const int kind = file.access_ == Access::join ? F_WRLCK : F_RDLCK;
  if (file.lock(kind, 0, 1)) return;
  const auto until = std::chrono::steady_clock::now() + lock_patience;
  while (!file.lock(kind, 0, 1)) {
    if (std::chrono::steady_clock::now() > until)
      throw DriverError("share: another process has held " + file.path_ + " locked for five seconds");
    std::this_thread::sleep_for(lock_recheck);
  }
}

ShareFile::Locked::~Locked() {
  try {
    if (file_.descriptor() >= 0) file_.lock(F_UNLCK, 0, 1);
  } catch (const std::exception&) {
    file_.close();  // a lock that is held for ever would be worse than leaving
  }
}

void ShareFile::read_exactly(void* to, std::size_t size, off_t at) {
  auto* bytes = static_cast<char*>(to);
  while (size != 0) {
    const ssize_t got = calls_.read(file_.get(), bytes, size, at);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail("pread");
    if (got == 0) throw InvalidArgument("share: " + path_ + " is cut short");
    bytes += got, at += got, size -= static_cast<std::size_t>(got);
  }
}

void ShareFile::write_exactly(const void* from, std::size_t size, off_t at) {
  const auto* bytes = static_cast<const char*>(from);
  while (size != 0) {
    const ssize_t put = calls_.write(file_.get(), bytes, size, at);
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) fail("pwrite");
    bytes += put, at += put, size -= static_cast<std::size_t>(put);
  }
}

ShareTable ShareFile::read() {
  ShareHeader header;
  read_exactly(&header, sizeof header, 0);
  if (header.magic != share_magic) throw InvalidArgument("share: " + path_ + " is not a share of vmm");
  if (header.version != share_version || header.places != share_places)
    throw InvalidArgument("share: " + path_ + " is of version " + std::to_string(header.version) +
                          "; this vmm expects version " + std::to_string(share_version));
  ShareTable table;
  if (header.valid <= 1) read_exactly(&table, sizeof table, copy_at(header.valid));
  if (header.valid > 1 || !is_sound(table)) throw InvalidArgument("share: " + path_ + " is damaged");
  valid_ = header.valid;
  return table;
}

void ShareFile::write(ShareTable& table) {
  while (table.count != 0 && table.places[table.count - 1].used == 0) --table.count;
  table.checksum = checksum_of(table);
  const std::uint64_t other = 1 - valid_;
  write_exactly(&table, written_bytes(table), copy_at(other));
  write_exactly(&other, sizeof other, offsetof(ShareHeader, valid));
  valid_ = other;
}

ShareTable ShareFile::read_or_replace(Log& log) {
  struct stat status{};
  if (calls_.status(file_.get(), status) != 0) fail("fstat");
  if (status.st_size != 0) {
    try {
      return read();
    } catch (const InvalidArgument& error) {
      if (anyone_inside())
        throw InvalidArgument(std::string(error.what()) +
                              ", and processes are in it: end them and delete the file, or use another name");
      log.write(LogLevel::warning, error.what(), "; nobody is in it, so it is replaced");
    }
  }
  if (calls_.allocate(file_.get(), static_cast<off_t>(share_file_bytes)) != 0) fail("fallocate");
  // The magic comes last: whoever dies before leaves what is replaced by the next.
  ShareTable table;
  table.checksum = checksum_of(table);
  const ShareHeader header;
  const ShareHeader none{.magic = 0, .reserved = {}};
  write_exactly(&none, sizeof none, 0);
  write_exactly(&table, sizeof table, copy_at(0));
  write_exactly(&header, sizeof header, 0);
  valid_ = 0;
  return table;
}

bool ShareFile::is_gone() {
  struct stat status{};
  if (calls_.status(file_.get(), status) != 0) fail("fstat");
  return status.st_nlink == 0;
}

bool ShareFile::occupy(std::uint32_t place) { return lock(F_WRLCK, 1 + static_cast<off_t>(place), 1); }

bool ShareFile::is_occupied(std::uint32_t place) {
  struct flock range{};
  range.l_type = F_WRLCK;
  range.l_whence = SEEK_SET;
  range.l_start = 1 + static_cast<off_t>(place);
  range.l_len = 1;
  if (calls_.lock(file_.get(), F_OFD_GETLK, range) != 0) fail("fcntl(F_OFD_GETLK)");
  return range.l_type != F_UNLCK;
}

bool ShareFile::anyone_inside() {
  for (std::uint32_t place = 0; place < share_places; ++place)
    if (is_occupied(place)) return true;
  return false;
}

bool ShareFile::bury_dead(ShareTable& table, std::optional<std::uint32_t> mine) {
  bool any = false;
  for (std::uint32_t place = 0; place < table.count; ++place) {
    if (table.places[place].used == 0 || place == mine || is_occupied(place)) continue;
    table.places[place] = {};
    any = true;
  }
  return any;
}

void ShareFile::remove() {
  if (calls_.unlink(path_.c_str()) != 0) fail("unlink");
}

}  // namespace vmm
