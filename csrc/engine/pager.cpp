#include "engine/pager.h"

#include <algorithm>
#include <new>
#include <utility>

#include "base/error.h"

namespace vmm {
namespace {

using namespace std::chrono_literals;
// How long the pager waits before it looks again.
constexpr Nanoseconds retired_recheck = 200us;  // whether events have completed, which tell nobody
constexpr Nanoseconds refused_recheck_max = 1s;
constexpr Nanoseconds owed_recheck = 5ms;      // the same, where nobody waits for their memory
constexpr Nanoseconds yielded_recheck = 10ms;  // whether others have taken what was given up for them

// Pieces of work, of about a millisecond, that one owner is given before others get their turn.
constexpr unsigned most_turns = 16;

constexpr std::uint64_t reserve_fraction = 64;  // the reserve is at most so small a part of the budget

}  // namespace

Pager::Pager(std::shared_ptr<Pool> pool, PagerOptions options)
    : pool_(std::move(pool)),
      options_(options),
      batch_(options.batch_bytes.count),
      refused_recheck_(retired_recheck) {
  pool_->signals().on_change([this] { wake(); });
}

Pager::~Pager() {
  if (!pool_->fork_guard().in_child()) pool_->signals().on_change([] {});
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
  try {
    due_.push_back(growing.self_);
  } catch (...) {
    growing.due_ = false;
    throw;
  }
  wake_();
}

void Pager::age(Growing& growing) {
  if (options_.idle_time.count() == 0) return;
  std::lock_guard lock(inbox_mutex_);
  ageing_.push_back(growing.self_);
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
  try {
    // What was asked for first is finished first. But it may never be finished, while others wait who have
    // what it lacks: a step that needs more memory than there is takes what is mapped here, and lets go of
    // it, again and again, until tiers have made room.
    if (growing->turns_ % most_turns == most_turns - 1)
      due_.push_back(growing);
    else
      due_.push_front(growing);
  } catch (const std::bad_alloc&) {
    growing->due_ = false;
    failed_.push_back(growing);  // the caller has reserved room
  }
}

bool Pager::anything_due() {
  std::lock_guard lock(inbox_mutex_);
  return !due_.empty();
}

/// The pager tries again what failed when somebody wakes it, and not at once: that would be a spin.
void Pager::retry_failed() {
  if (!rested_) return;
  for (std::size_t left = failed_.size(); left != 0; --left) {
    const auto growing = failed_.front().lock();
    failed_.erase(failed_.begin());
    if (growing) put_back(growing);
  }
}

void Pager::retry_later(Nanoseconds now) {
  if (later_.empty() || now < later_at_) return;
  failed_.reserve(failed_.size() + later_.size());  // for put_back()
  for (; !later_.empty(); later_.pop_back())
    if (const auto growing = later_.back().lock()) put_back(growing);
}

void Pager::map_one_batch() {
  // This comes first, so that nothing is lost later for lack of memory.
  failed_.reserve(failed_.size() + 1);
  starved_.reserve(starved_.size() + 1);
  later_.reserve(later_.size() + 1);
  auto growing = take_due();
  if (!growing) return;
  // This comes before the work, so that an owner who needs more meanwhile puts it in the inbox again.
  growing->due_ = false;
  const std::uint64_t before = pool_->reclaiming().given_up();
  const Nanoseconds start = pool_->clock().now();
  const Ahead ahead = growing->map_ahead({batch_.bytes()}, options_.lookahead);
  batch_.took(pool_->clock().now() - start, ahead == Ahead::more);
  growing->turns_ = ahead == Ahead::more ? growing->turns_ + 1 : 0;
  if (ahead == Ahead::more) put_back(growing);
  if (ahead == Ahead::failed) failed_.push_back(growing);
  if (ahead == Ahead::later) {
    if (later_.empty()) later_at_ = pool_->clock().now() + retired_recheck;
    later_.push_back(growing);
  }
  if (ahead != Ahead::starved || std::exchange(growing->starved_, true)) return;
  if (starved_.empty()) given_up_ = before;
  starved_.push_back(growing);
}

/// Gives others what they lack, and the budget what is owed, of pages that are needed less than announced.
/// Announced pages stay, whatever the others need memory for: else two owners who announce would take the
/// same memory from each other for ever.
void Pager::give_up(Nanoseconds now) {
  const Bytes owed = pool_->reclaiming().owed(), lacking = pool_->signals().take_pressure();
  if (owed.count == 0 && lacking.count == 0) return;
  pool_->mapping().take_created();  // others need memory now, so there is no reserve to fill
  reserve_ = false;
  const Bytes given = owed.count == 0 ? owed : pool_->trim(owed);
  if (given >= lacking || pool_->trim(lacking - given, false, Need::announced).count == 0) return;
  if (starved_.empty()) return;
  // Those who starve here get it only when nobody else has taken it by then.
  given_up_ = pool_->reclaiming().given_up();
  ask_at_ = now + yielded_recheck;
}

/// Whoever starved tries again when the pool has given something up since, unless it was for others.
void Pager::ask_again(Nanoseconds now) {
  if (starved_.empty()) return;
  const std::uint64_t number = pool_->reclaiming().given_up();
  if (std::exchange(given_up_, number) == number && (!ask_at_ || now < *ask_at_)) return;
  ask_at_.reset();
  for (; !starved_.empty(); starved_.pop_back()) {
    const auto growing = starved_.back().lock();
    if (!growing) continue;
    failed_.reserve(failed_.size() + 1);
    growing->starved_ = false;
    put_back(growing);
  }
}

/// Creates pages ahead of need when there is nothing else to do: as much as lately had to be created at once,
/// and only after something had to be created. On a host it creates nothing, because
/// memory that lies free there is taken from everybody else. Returns whether there may be more to create.
bool Pager::create_ahead() {
  if (!pool_->driver().capabilities().gpu) return false;
  if (!starved_.empty()) return false;  // whoever starves would give the reserve back, and find too little
  if (const Created created = pool_->mapping().take_created(); created.size.count != 0) {
    creations_.created(created.size);
    page_bytes_ = created.page_bytes;
    reserve_ = true;
  }
  if (!std::exchange(reserve_, false)) return false;
  Bytes wanted = std::min(creations_.reserve(), pool_->budget().limit() / reserve_fraction);
  wanted = page_bytes_ * (wanted / page_bytes_);
  guarded([&] { reserve_ = pool_->mapping().warm(wanted, page_bytes_, options_.batch_bytes).count != 0; });
  return reserve_;
}

/// Runs one kind of work, and returns false when it failed. Work that keeps failing must not stop other
/// kinds.
template <class Work>
bool Pager::guarded(Work work) noexcept {
  try {
    work();
    return true;
  } catch (const OutOfPages& error) {  // whoever needs the page will meet the error
    pool_->log().write(LogLevel::debug, error.what());
    return true;
  } catch (const Closed&) {
    return true;
  } catch (const std::exception& error) {
    pool_->log().write(LogLevel::warning, error.what());
    return false;
  }
}

bool Pager::may_idle() {
  if (pool_->signals().may_idle()) return true;
  std::lock_guard lock(inbox_mutex_);
  return !ageing_.empty();
}

void Pager::age_all() {
  std::list<std::weak_ptr<Growing>> all;
  {
    std::lock_guard lock(inbox_mutex_);
    all.swap(ageing_);
  }
  std::erase_if(all, [&](const std::weak_ptr<Growing>& entry) {
    const auto growing = entry.lock();
    bool more = true;
    guarded([&] { more = growing && growing->age(); });
    return !more;
  });
  std::lock_guard lock(inbox_mutex_);
  ageing_.splice(ageing_.end(), all);
}

/// Returns when to look again. While nothing can idle nobody is woken.
std::optional<Nanoseconds> Pager::look_for_idle(Nanoseconds now) {
  if (options_.idle_time.count() == 0 || !may_idle()) return {};
  if (idle_at_ && now >= *idle_at_) {
    idle_at_.reset();
    age_all();
    guarded([&] { pool_->reclaiming().age(); });
    aged_ = true;
  }
  if (aged_) guarded([&] { aged_ = false, aged_ = pool_->reclaiming().give_back_aged({batch_.bytes()}); });
  if (aged_) return now;
  if (!may_idle()) return {};
  if (!idle_at_) idle_at_ = now + options_.idle_time;
  return idle_at_;
}

Pager::Next Pager::poll(Nanoseconds now) noexcept {
  Next next;
  const auto look_at = [&](std::optional<Nanoseconds> time) {
    if (time) next.at = std::min(next.at.value_or(*time), *time);
  };
  bool waiting = false;
  const bool again = now >= refused_at_;
  const bool drained = guarded([&] { waiting = pool_->reclaiming().drain_retired(again); });
  // The driver may go on refusing for a long time, so the pauses grow.
  if (!pool_->reclaiming().refused() && drained) {
    refused_recheck_ = retired_recheck;
  } else {
    if (again) refused_recheck_ = std::min(refused_recheck_ * 2, refused_recheck_max);
    if (again) refused_at_ = now + refused_recheck_;
    look_at(refused_at_);
  }
  if (waiting) look_at(now + retired_recheck);
  guarded([&] { give_up(now); });
  if (!next.at && pool_->reclaiming().owed().count != 0) look_at(now + owed_recheck);
  guarded([&] { ask_again(now); });
  guarded([&] { retry_failed(); });
  guarded([&] { retry_later(now); });
  guarded([&] { map_one_batch(); });
  if (!later_.empty()) look_at(later_at_);
  if (!starved_.empty()) {
    look_at(pool_->reclaiming().await_given_up());
    look_at(ask_at_);
    next.now = pool_->reclaiming().given_up() != given_up_;
  }
  next.now |= anything_due();
  if (!next.now) next.now = create_ahead();
  look_at(look_for_idle(now));
  rested_ = !next.now;
  return next;
}

}  // namespace vmm
