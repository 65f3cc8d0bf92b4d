#include "engine/pager.h"

#include <algorithm>

#include "base/error.h"

namespace vmm {
namespace {

using namespace std::chrono_literals;
constexpr Nanoseconds retired_recheck = 200us;  // an event completes without telling anybody
constexpr Nanoseconds refused_recheck_max = 1s;
constexpr Nanoseconds owed_recheck = 5ms;  // the same, where nobody waits for it

}  // namespace

Pager::Pager(std::shared_ptr<Pool> pool, PagerOptions options) : pool_(std::move(pool)), options_(options) {
  pool_->on_pressure([this] { wake(); });
}

Pager::~Pager() {
  if (!pool_->fork_guard().in_child()) pool_->on_pressure([] {});
}

void Pager::set_waker(std::function<void()> wake) {
  std::lock_guard lock(inbox_mutex_);
  wake_ = std::move(wake);
}

void Pager::wake() {
  std::lock_guard lock(inbox_mutex_);
  wake_();
}

void Pager::notify(Growing& growing) {
  if (growing.due_.exchange(true)) return;
  std::lock_guard lock(inbox_mutex_);
  due_.push_back(growing.self_);
  wake_();
}

std::shared_ptr<Growing> Pager::take_due() {
  std::lock_guard lock(inbox_mutex_);
  while (!due_.empty()) {
    auto growing = due_.front().lock();
    due_.pop_front();
    if (growing) return growing;
  }
  return nullptr;
}

void Pager::put_back(const std::shared_ptr<Growing>& growing) {
  if (growing->due_.exchange(true)) return;
  std::lock_guard lock(inbox_mutex_);
  due_.push_front(growing);  // what was asked for first is finished first
}

bool Pager::anything_due() {
  std::lock_guard lock(inbox_mutex_);
  return !due_.empty();
}

void Pager::map_one_batch() {
  auto growing = take_due();
  if (!growing) return;
  // Cleared before the work: a frontier that moves meanwhile puts it in the inbox again.
  growing->due_ = false;
  if (growing->map_ahead(options_.batch_bytes, options_.lookahead)) put_back(growing);
}

/// Runs one kind of work; false when it failed. One that keeps failing must not stop the others.
template <class Work>
bool Pager::guarded(Work work) noexcept {
  try {
    work();
    return true;
  } catch (const OutOfPages& error) {  // not ahead, then: whoever needs the page will hear of it
    pool_->log().write(LogLevel::debug, error.what());
    return true;
  } catch (const Closed&) {
    return true;
  } catch (const std::exception& error) {
    pool_->log().write(LogLevel::warning, error.what());
    return false;
  }
}

Pager::Next Pager::poll(Nanoseconds now) noexcept {
  Next next;
  bool waiting = false;
  const bool drained = guarded([&] { waiting = pool_->drain_retired(); });
  // What the driver refuses, it may refuse for a long time.
  const bool refused = pool_->refused();
  refused_recheck_ = refused ? std::min(refused_recheck_ * 2, refused_recheck_max) : retired_recheck;
  if (waiting)
    next.at = now + retired_recheck;
  else if (refused || !drained)
    next.at = now + refused_recheck_;
  guarded([&] {
    const Bytes wanted = std::max(pool_->take_pressure(), pool_->owed());
    if (wanted.count != 0) pool_->trim(wanted);
  });
  if (!next.at && pool_->owed().count != 0) next.at = now + owed_recheck;
  guarded([&] { map_one_batch(); });
  next.now = anything_due();
  return next;
}

}  // namespace vmm
