#include "memory/shared_budget.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "memory/share_transaction.h"

namespace vmm {
namespace {

using namespace std::chrono_literals;
constexpr Nanoseconds want_lasts = 1s;    // unless it is repeated
constexpr Nanoseconds ask_again = 400ms;  // whoever was refused is told to, or his want would end
constexpr std::uint64_t chunks = 1024;    // in a whole share: grants are raised by one at least
constexpr Bytes least_chunk = 64_KiB;
constexpr std::uint64_t much_unused = 8;  // this part of a whole share, and the grant is lowered at once

}  // namespace

SharedBudget::SharedBudget(std::string path, const ShareTerms& terms, std::shared_ptr<const Clock> clock,
                           std::unique_ptr<FileCalls> calls)
    : clock_(std::move(clock)), calls_(std::move(calls)), terms_(terms) {
  std::lock_guard lock(mutex_);
  ShareSeat seat = join_share(std::move(path), terms_, *calls_, log_);
  file_ = std::move(seat.file);
  place_ = seat.place;
  ticket_ = seat.record.ticket;
  total_ = seat.total;
  adopt(seat.record, seat.answer);
}

SharedBudget::~SharedBudget() {
  if (fork_guard_.in_child()) return;
  std::lock_guard lock(mutex_);
  leave();
}

Budget::ListenerId SharedBudget::listen(Listener listener) {
  std::lock_guard lock(mutex_);
  return listeners_.add(std::move(listener));
}

void SharedBudget::stop_listening(ListenerId id) {
  std::lock_guard lock(mutex_);
  listeners_.remove(id);
}

bool SharedBudget::take(Bytes size, ListenerId taker, bool press) {
  std::lock_guard lock(mutex_);
  if ((taken_ > usable_ || size > usable_ - taken_) && !raise(size, press)) {
    refused_ = true;
    refused_at_ = clock_->now();
    // Other pools of this process are as near as other processes.
    if (press && size <= terms_.maximum) listeners_.tell(saturating_sub(taken_ + size, limit_), taker);
    return false;
  }
  taken_ += size;
  return true;
}

/// Raises the grant so that `size` more can be taken; else, with `press`, that is wanted from now on.
bool SharedBudget::raise(Bytes size, bool press) {
  const Bytes needed = taken_ + size;
  bool raised = false;
  const bool done = transact([&](ShareTurn& turn) {
    const auto may = [&] {
      const ShareAnswer& answer = turn.answer();
      return needed <= (answer.asked.count == 0 ? answer.reach : answer.reach - answer.asked);
    };
    bool changed = false;
    if (!may()) changed = turn.bury_dead();
    raised = may();
    ShareRecord& mine = turn.mine();
    if (raised) {
      mine.grant = std::max(mine.grant, std::min(turn.answer().reach, round_up(needed, chunk())).count);
      if (mine.wanted <= mine.grant) mine.wanted = 0;
      return true;
    }
    if (!press || needed > terms_.maximum) return changed;
    // The smallest of what is wanted: it is the first that can be had, and whoever wants more asks again.
    if (mine.wanted <= mine.grant || needed.count < mine.wanted) {
      mine.wanted = needed.count;
      changed = true;
    }
    wanted_at_ = clock_->now();
    return changed;
  });
  if (done && raised) return true;
  limit_ = std::min(limit_, Bytes{needed.count - 1});  // whatever it was, it is not that
  return false;
}

void SharedBudget::give_back(Bytes size) noexcept {
  std::lock_guard lock(mutex_);
  taken_ -= size;
  // The grant is lowered by poll(): many pages go back one by one, under the lock of their pool.
  const Bytes unused = saturating_sub(grant_, std::max(taken_, terms_.minimum));
  if (usable_ < grant_ || (users_ == 0 && taken_.count == 0)) {
    wake_();
  } else if (unused >= std::max(total_ / much_unused, chunk()) && !std::exchange(letting_go_, true)) {
    wake_();
  }
  if (taken_ < limit_ && std::exchange(refused_, false)) listeners_.tell({});
}

Bytes SharedBudget::limit() const {
  std::lock_guard lock(mutex_);
  return limit_;
}

Bytes SharedBudget::maximum() const {
  std::lock_guard lock(mutex_);
  return terms_.maximum;
}

Bytes SharedBudget::taken() const {
  std::lock_guard lock(mutex_);
  return taken_;
}

ShareTerms SharedBudget::terms() const {
  std::lock_guard lock(mutex_);
  return terms_;
}

ShareStanding SharedBudget::standing() const {
  std::lock_guard lock(mutex_);
  return {grant_, wanted_, saturating_sub(taken_, usable_)};
}

void SharedBudget::set_limit(Bytes limit) {
  std::lock_guard lock(mutex_);
  if (left_) return;
  if (limit >= largest_share) throw InvalidArgument("budget: expected less than 2^56 bytes");
  promises_.require_kept(limit);
  if (limit < terms_.minimum)
    throw InvalidArgument("budget is " + std::to_string(limit.count) +
                          " bytes; expected at least the minimum of this share, " +
                          std::to_string(terms_.minimum.count));
  transact_or_throw([&](ShareTurn& turn) {
    ShareRecord& mine = turn.mine();
    mine.maximum = limit.count;
    mine.grant = std::min(mine.grant, std::max(limit, taken_).count);
    mine.wanted = std::min(mine.wanted, limit.count);
    return true;
  });
  terms_.maximum = limit;
  limit_ = std::min(limit_, limit);
  tell_pressure();
  tell_of_room(false);
}

void SharedBudget::promise(Bytes more) {
  std::lock_guard lock(mutex_);
  promises_.add(more, terms_.maximum);
}

void SharedBudget::end_promise(Bytes size) noexcept {
  std::lock_guard lock(mutex_);
  promises_.end(size);
}

void SharedBudget::set_waker(std::function<void()> wake) {
  std::lock_guard lock(mutex_);
  wake_ = std::move(wake);
}

void SharedBudget::poll() noexcept {
  std::lock_guard lock(mutex_);
  if (left_) return;
  letting_go_ = false;
  if (users_ == 0 && taken_.count == 0) return leave();
  if (!transact([&](ShareTurn& turn) {
        const bool buried = turn.bury_dead();
        return settle(turn) || buried;
      }))
    return;
  tell_pressure();
  tell_of_room(true);
  try {
    if (file_->is_gone() && !std::exchange(gone_, true))
      log_.write(LogLevel::error, path().c_str(),
                 " was deleted while processes share by it: those that start now do not see them");
  } catch (const Error& error) {
    failed(error.what());
  }
}

/// What this process owes the table. True when it has changed.
bool SharedBudget::settle(ShareTurn& turn) const {
  ShareRecord& mine = turn.mine();
  const ShareRecord before = mine;
  // Who joined when there was too little gets his minimum by itself.
  if (mine.grant < mine.minimum) {
    mine.grant = std::max(mine.grant, std::min(turn.answer().reach.count, mine.minimum));
  }
  if (mine.wanted <= mine.grant || clock_->now() - wanted_at_ > want_lasts) mine.wanted = 0;
  if (mine.grant < mine.minimum && mine.wanted == 0) mine.wanted = mine.minimum;
  const Bytes asked = turn.answer().asked;
  const Bytes unused = asked.count != 0 ? taken_ : round_up(taken_, chunk());
  const std::uint64_t kept = std::max(unused.count, std::min(mine.minimum, mine.grant));
  if (asked.count != 0)
    mine.grant = std::max(kept, mine.grant - asked.count);
  else
    mine.grant = std::min(mine.grant, kept);
  return mine.grant != before.grant || mine.wanted != before.wanted;
}

void SharedBudget::adopt(const ShareRecord& mine, const ShareAnswer& answer) {
  grant_ = {mine.grant};
  wanted_ = {mine.wanted};
  usable_ = grant_ - std::min(answer.asked, grant_);
  limit_ = std::min(answer.asked.count != 0 ? usable_ : answer.reach, Bytes{mine.maximum});
  usable_ = std::min(usable_, Bytes{mine.maximum});
  if (taken_ > usable_) pressed_.notify_all();
}

Bytes SharedBudget::chunk() const { return std::max(Bytes{total_ / chunks}, least_chunk); }

/// One change of the table. Nothing has changed when this throws.
void SharedBudget::transact_or_throw(const std::function<bool(ShareTurn&)>& change) {
  ShareTurn turn(*file_, place_, ticket_);
  if (change(turn)) turn.commit();
  total_ = turn.total();
  adopt(turn.mine(), turn.answer());
}

/// The same; false when it failed, which is logged once.
bool SharedBudget::transact(const std::function<bool(ShareTurn&)>& change) noexcept {
  if (left_) return false;
  try {
    transact_or_throw(change);
    failing_ = false;
    return true;
  } catch (const std::exception& error) {
    failed(error.what());
    return false;
  }
}

void SharedBudget::failed(const char* why) noexcept {
  if (!std::exchange(failing_, true)) log_.write(LogLevel::error, why);
}

/// Listeners add up what they are told.
void SharedBudget::tell_pressure() {
  const Bytes pressure = saturating_sub(taken_, usable_);
  if (pressure > told_) listeners_.tell(pressure - told_);
  told_ = pressure;
}

/// `again`: also those whose want would end if they did not repeat it.
void SharedBudget::tell_of_room(bool again) {
  const bool room = taken_ < limit_ && wanted_ <= limit_;
  const bool repeat = again && clock_->now() - refused_at_ >= ask_again;
  if (refused_ && (room || repeat)) {
    refused_ = false;
    listeners_.tell({});
  }
}

Bytes SharedBudget::await_pressure(Nanoseconds at_most, const std::function<bool()>& stop) {
  std::unique_lock lock(mutex_);
  pressed_.wait_for(lock, at_most, [&] { return taken_ > usable_ || left_ || stop(); });
  return saturating_sub(taken_, usable_);
}

void SharedBudget::recheck() {
  std::lock_guard lock(mutex_);
  pressed_.notify_all();
}

bool SharedBudget::attach() {
  std::lock_guard lock(mutex_);
  if (left_) return false;
  ++users_;
  return true;
}

void SharedBudget::detach() noexcept {
  std::lock_guard lock(mutex_);
  if (--users_ == 0 && taken_.count == 0) leave();
}

bool SharedBudget::has_left() const {
  std::lock_guard lock(mutex_);
  return left_;
}

void SharedBudget::leave() noexcept {
  if (std::exchange(left_, true)) return;
  grant_ = wanted_ = usable_ = limit_ = {};
  leave_share(*file_, place_, ticket_, log_);
  pressed_.notify_all();
  wake_();
}

}  // namespace vmm
