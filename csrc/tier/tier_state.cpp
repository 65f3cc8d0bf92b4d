#include "tier/tier_state.h"

#include <algorithm>
#include <cerrno>
#include <limits>
#include <string>
#include <system_error>
#include <utility>

#include "base/error.h"

namespace vmm {

TierState::TierState(const TierStoreOptions& options, std::shared_ptr<SlotMedium> medium,
                     std::shared_ptr<Clock> clock, std::shared_ptr<Log> log)
    : options_(options),
      medium_(std::move(medium)),
      clock_(std::move(clock)),
      log_(std::move(log)),
      slots_(static_cast<std::uint32_t>(options.slots)),
      queue_(options.pending),
      ends_(options.pending),
      workers_(options.threads, Worker(options.merged)) {
  figures_.slots = options.slots;
}

std::vector<TierSlot> TierState::take(std::uint32_t count) {
  const std::lock_guard lock(mutex_);
  if (closed_ || figures_.read_only) return {};
  return slots_.take(count);
}

void TierState::give_back(TierSlot slot) {
  const std::lock_guard lock(mutex_);
  slots_.give_back(slot);
}

void TierState::require_memory(const Transfer& transfer) const {
  if (transfer.memory == nullptr) throw InvalidArgument("memory: there is none");
  if (reinterpret_cast<std::uintptr_t>(transfer.memory) % alignment() != 0)
    throw InvalidArgument("memory: the address of a page must be a multiple of " +
                          std::to_string(alignment()) + " bytes for this store");
}

std::size_t TierState::submit(std::span<const Transfer> transfers) {
  for (const Transfer& transfer : transfers) require_memory(transfer);
  const std::lock_guard lock(mutex_);
  if (closed_) throw Closed("the tier's store was closed");
  expire();
  const std::size_t room = options_.pending - queue_.size() - running_ - ends_.size();
  const auto begun = transfers.first(std::min(transfers.size(), room));
  // 1. All slots, or none: nothing is in the queue yet.
  for (std::size_t i = 0; i < begun.size(); ++i) try {
      slots_.begin(begun[i].slot, begun[i].kind);
    } catch (...) {
      while (i-- > 0) slots_.cancel(begun[i].slot, begun[i].kind);
      throw;
    }
  // 2. The queue, where nothing can fail.
  const Nanoseconds now = clock_->now();
  for (const Transfer& transfer : begun) {
    if (figures_.read_only && transfer.kind == TransferKind::write)
      give_up({transfer, now}, Outcome::read_only);
    else
      queue_.push_back({transfer, now});
  }
  if (begun.size() == 1)
    submitted_.notify_one();
  else
    submitted_.notify_all();
  return begun.size();
}

std::size_t TierState::wait(std::span<Completion> out, Nanoseconds at_most) {
  std::unique_lock lock(mutex_);
  const Nanoseconds begun = clock_->now();
  const Nanoseconds until = at_most < Nanoseconds::max() - begun ? begun + at_most : Nanoseconds::max();
  for (;;) {
    expire();
    std::size_t collected = 0;
    while (collected < out.size() && !ends_.empty()) out[collected++] = ends_.pop_front();
    const Nanoseconds now = clock_->now();
    const bool nothing_comes = queue_.empty() && running_ == 0;
    if (collected > 0 || out.empty() || nothing_comes || now >= until) return collected;
    Nanoseconds next = until;
    if (!queue_.empty()) next = std::min(next, queue_.front().since + options_.patience);
    clock_->wait(lock, ended_, next - now);
  }
}

TierFigures TierState::figures() const {
  const std::lock_guard lock(mutex_);
  TierFigures out = figures_;
  out.free = slots_.free();
  out.quarantined = slots_.quarantined();
  out.pending = queue_.size() + running_ + ends_.size();
  for (const Worker& worker : workers_)
    if (worker.since) out.longest_running = std::max(out.longest_running, clock_->now() - *worker.since);
  return out;
}

void TierState::work(std::size_t index) {
  Worker& worker = workers_[index];
  try {
    medium_->bind_thread();
  } catch (const std::exception& failure) {  // then its transfers fail, and say so
    log_first("a tier's thread could not be used for the device: ", failure.what());
  }
  while (next_batch(worker)) {
    perform(worker);
    finish(worker);
    if (options_.on_end) options_.on_end();
  }
  const std::lock_guard lock(mutex_);
  ++workers_ended_;
  ended_.notify_all();
}

/// Takes from the queue what the medium can do in one call. False when the store is closed.
bool TierState::next_batch(Worker& worker) {
  std::unique_lock lock(mutex_);
  submitted_.wait(lock, [this] { return closed_ || !queue_.empty(); });
  if (closed_) return false;
  worker.count = 0;
  do {
    const Transfer transfer = queue_.pop_front().transfer;
    worker.copies[worker.count] = {transfer.slot.index, transfer.slot.seed(), transfer.memory, 0};
    worker.ends[worker.count++] = {transfer, Outcome::failed, 0};
    if (queue_.empty()) break;
    const Transfer& next = queue_.front().transfer;
    if (next.kind != transfer.kind || next.slot.index != transfer.slot.index + 1) break;
  } while (worker.count < options_.merged);
  running_ += worker.count;
  worker.since = clock_->now();
  ++figures_.calls;
  return true;
}

/// Where a call for several slots fails, each gets a call of its own: one bad place is no reason to lose its
/// neighbours.
void TierState::perform(Worker& worker) noexcept {
  if (attempt(worker, 0, worker.count) || worker.count == 1) return;
  for (std::size_t i = 0; i < worker.count; ++i) attempt(worker, i, 1);
}

bool TierState::attempt(Worker& worker, std::size_t first, std::size_t count) noexcept {
  const std::span copies(worker.copies.data() + first, count);
  const std::span ends(worker.ends.data() + first, count);
  const bool writes = ends[0].transfer.kind == TransferKind::write;
  int error = 0;
  Outcome outcome = Outcome::failed;
  try {
    if (writes)
      medium_->write(copies);
    else
      medium_->read(copies);
    for (Completion& end : ends) end.outcome = Outcome::done;
    return true;
  } catch (const std::system_error& failure) {
    error = failure.code().value();
    log_first(writes ? "a write to a tier failed: " : "a read from a tier failed: ", failure.what());
  } catch (const DeviceFailed& failure) {
    outcome = Outcome::device;
    log_first("the device could not copy from or to a tier: ", failure.what());
  } catch (const std::exception& failure) {
    log_first("a transfer of a tier failed: ", failure.what());
  } catch (...) {
    log_first("a transfer of a tier failed", "");
  }
  for (Completion& end : ends) {
    end.outcome = outcome;
    end.error = error;
  }
  return false;
}

void TierState::finish(Worker& worker) noexcept {
  const std::lock_guard lock(mutex_);
  for (std::size_t i = 0; i < worker.count; ++i) {
    Completion& end = worker.ends[i];
    const TierSlot slot = end.transfer.slot;
    const std::uint32_t checksum = worker.copies[i].checksum;
    if (end.outcome == Outcome::done) end.error = 0;  // of a first attempt, together with its neighbours
    if (end.outcome == Outcome::done && end.transfer.kind == TransferKind::read &&
        checksum != slots_.checksum(slot))
      end.outcome = Outcome::corrupt;
    slots_.end(slot, end.transfer.kind, end.outcome, checksum);
    count(end);
    ends_.push_back(end);
  }
  running_ -= worker.count;
  worker.since.reset();
  ended_.notify_all();
}

void TierState::count(const Completion& end) noexcept {
  if (end.outcome == Outcome::device) return;  // no fault of the store's
  const bool done = end.outcome == Outcome::done;
  if (end.transfer.kind == TransferKind::read) {
    figures_.read += done ? options_.slot : Bytes{};
    figures_.verified += done && medium_->checks();
    figures_.read_failures += end.outcome == Outcome::failed;
    figures_.corrupt += end.outcome == Outcome::corrupt;
    return;
  }
  figures_.written += done ? options_.slot : Bytes{};
  figures_.write_failures += !done;
  failures_in_a_row_ = done ? 0 : failures_in_a_row_ + 1;
  if (failures_in_a_row_ < options_.failures || figures_.read_only) return;
  figures_.read_only = true;
  log_->write(LogLevel::error, "a tier's store failed to write too often, and is only read from now on");
}

/// Ends a transfer that has not begun.
void TierState::give_up(const Job& job, Outcome outcome) noexcept {
  slots_.cancel(job.transfer.slot, job.transfer.kind);
  ends_.push_back({job.transfer, outcome, 0});
  ended_.notify_all();
}

/// The workers may all be at a disk that hangs: who waits for them must hear that in time.
void TierState::expire() noexcept {
  while (!queue_.empty() && clock_->now() - queue_.front().since >= options_.patience) {
    give_up(queue_.pop_front(), Outcome::timed_out);
    ++figures_.timed_out;
  }
}

/// The others are in the figures: a broken disk must not drown what else is in the log.
void TierState::log_first(const char* what, const char* why) noexcept {
  {
    const std::lock_guard lock(mutex_);
    if (has_logged_) return;
    has_logged_ = true;
  }
  log_->write(LogLevel::warning, what, why);
}

bool TierState::close() {
  const std::lock_guard lock(mutex_);
  const bool first = !std::exchange(closed_, true);
  while (!queue_.empty()) give_up(queue_.pop_front(), Outcome::closed);
  submitted_.notify_all();
  return first;
}

bool TierState::await_workers(Nanoseconds patience) {
  std::unique_lock lock(mutex_);
  return ended_.wait_for(lock, patience, [&] { return workers_ended_ == workers_.size(); });
}

std::size_t TierState::running() const {
  const std::lock_guard lock(mutex_);
  return running_;
}

}  // namespace vmm
