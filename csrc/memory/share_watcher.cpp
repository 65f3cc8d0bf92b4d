#include "memory/share_watcher.h"

#include <array>
#include <cstring>
#include <string>

#include "base/error.h"
#include "base/thread.h"

namespace vmm {
namespace {

constexpr int look_ms = 500;
constexpr int look_without_bell_ms = 100;

/// Until there is nothing more to read: one look answers all calls.
void empty(int fd) {
  alignas(inotify_event) std::array<char, 4096> ignored;
  while (::read(fd, ignored.data(), ignored.size()) > 0) {
  }
}

}  // namespace

ShareWatcher::ShareWatcher(SharedBudget& budget, FileCalls& calls) : budget_(budget), calls_(calls) {
  kicked_ = calls_.event();
  if (kicked_ < 0) throw DriverError(std::string("share: eventfd failed: ") + std::strerror(errno));
  open_bell();
  budget_.set_waker([this] { kick(); });
  try {
    thread_ = std::make_unique<std::thread>(start_thread("vmm-share", [this] { run(); }));
  } catch (const std::exception& error) {
    budget_.set_waker([] {});
    ::close(kicked_);
    ::close(bell_);
    throw DriverError(std::string("share: no thread: ") + error.what());
  }
}

ShareWatcher::~ShareWatcher() {
  if (fork_guard_.in_child()) {
    (void)thread_.release();  // it is not there
  } else {
    budget_.set_waker([] {});
    stop_ = true;
    kick();
    thread_->join();
  }
  ::close(kicked_);
  if (bell_ >= 0) ::close(bell_);
}

/// By the open file, not by its name: that may be another file's by now.
void ShareWatcher::open_bell() noexcept {
  bell_ = calls_.watch();
  const std::string file = "/proc/self/fd/" + std::to_string(budget_.descriptor());
  if (bell_ >= 0 && calls_.watch_attributes(bell_, file.c_str()) >= 0) return;
  budget_.log().write(LogLevel::warning,
                      "share: no inotify, so this process looks ten times a second: ", std::strerror(errno));
  if (bell_ >= 0) ::close(bell_);
  bell_ = -1;
}

void ShareWatcher::kick() noexcept {
  const std::uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = ::write(kicked_, &one, sizeof one);  // full: it is kicked already
}

void ShareWatcher::run() {
  std::array<pollfd, 2> files{{{kicked_, POLLIN, 0}, {bell_, POLLIN, 0}}};
  const int at_most = bell_ >= 0 ? look_ms : look_without_bell_ms;
  while (!stop_ && !budget_.has_left()) {
    budget_.poll();
    calls_.wait(files.data(), bell_ >= 0 ? 2 : 1, at_most);
    empty(kicked_);
    if (bell_ >= 0) empty(bell_);
  }
}

}  // namespace vmm
