#include "base/closed_in_child.h"

#include <pthread.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <utility>

#include "base/error.h"

namespace vmm {
namespace {

constexpr int no_file = -1;
constexpr int unused = -2;

/// Fixed, and without a lock: the handler runs in a child, where another thread may have held one.
struct Descriptors {
  Descriptors() {
    for (auto& each : all) each = unused;
  }
  std::array<std::atomic<int>, 256> all;
};

Descriptors& descriptors() {
  static Descriptors those;
  return those;
}

void close_in_child() {
  for (auto& each : descriptors().all)
    if (const int fd = each.load(); fd >= 0) {
      each = no_file;  // its owner is still there, and must not close what has the number by then
      ::close(fd);
    }
}

}  // namespace

ClosedInChild::ClosedInChild(int fd) {
  auto& all = descriptors().all;
  static const int registered = pthread_atfork(nullptr, nullptr, close_in_child);
  for (int i = 0; registered == 0 && i < static_cast<int>(all.size()); ++i) {
    int expected = unused;
    if (!all[static_cast<std::size_t>(i)].compare_exchange_strong(expected, fd)) continue;
    place_ = i;
    return;
  }
  ::close(fd);
  throw Error("too many files that forked children must not have");
}

ClosedInChild& ClosedInChild::operator=(ClosedInChild&& other) noexcept {
  if (this != &other) {
    close();
    place_ = std::exchange(other.place_, -1);
  }
  return *this;
}

int ClosedInChild::get() const noexcept {
  return place_ < 0 ? -1 : descriptors().all[static_cast<std::size_t>(place_)].load();
}

void ClosedInChild::close() noexcept {
  if (place_ < 0) return;
  const int fd = descriptors().all[static_cast<std::size_t>(std::exchange(place_, -1))].exchange(unused);
  if (fd >= 0) ::close(fd);
}

}  // namespace vmm
