#include "memory/pool.h"

#include <algorithm>
#include <string>
#include <utility>

#include "base/error.h"
#include "base/undo.h"

namespace vmm {
namespace {

constexpr std::uint64_t runs_of_a_full_budget = 16'384;
constexpr Bytes least_run = 1_MiB;
constexpr Bytes least_arena = 1_GiB;

Bytes default_run_bytes(Bytes budget) {
  Bytes run = least_run;
  while (run < budget / runs_of_a_full_budget) run = run * 2;
  return run;
}

Bytes default_arena_bytes(Bytes budget) {
  return budget > 16_TiB / 256 ? 16_TiB : std::max(2_TiB, budget * 256);
}

Bytes checked_run_bytes(Bytes run, Bytes budget) {
  if (run.count == 0) return default_run_bytes(budget);
  if (!is_power_of_two(run.count))
    throw InvalidArgument("run_bytes: expected a power of two, or 0 for the default");
  return run;
}

}  // namespace

std::shared_ptr<Pool> Pool::make(std::unique_ptr<Driver> driver, std::shared_ptr<Budget> budget,
                                 std::shared_ptr<Clock> clock, PoolOptions options) {
  if (options.arena_bytes.count == 0) options.arena_bytes = default_arena_bytes(budget->limit());
  return {new Pool(std::move(driver), std::move(budget), std::move(clock), options), [](Pool* pool) {
            if (!pool->fork_guard_.in_child()) delete pool;
          }};
}

Pool::Pool(std::unique_ptr<Driver> driver, std::shared_ptr<Budget> budget, std::shared_ptr<Clock> clock,
           const PoolOptions& options)
    : driver_(std::move(driver)),
      budget_(std::move(budget)),
      clock_(std::move(clock)),
      epochs_(*driver_),
      streams_(*driver_, epochs_),
      run_bytes_(checked_run_bytes(options.run_bytes, budget_->limit())),
      arena_(*driver_, round_up(options.arena_bytes, driver_->capabilities().granularity),
             std::min(options.arena_bytes, least_arena), driver_->capabilities().granularity),
      last_uses_(epochs_),
      physical_(run_bytes_, driver_->capabilities().merges_neighbours) {
  on_pressure([] {});
  if (arena_.size() < options.arena_bytes)
    log_.write(LogLevel::info, "address space is limited: the arena has only " +
                                   std::to_string(arena_.size().count) + " bytes");
}

Pool::~Pool() {
  budget_->stop_listening(listener_);
  if (taken_.count == 0) return;  // nor are streams looked at, which may be gone
  try {
    epochs_.poll();
    drain_retired(true);
    while (free_an_idle_range()) {
    }
  } catch (const std::exception&) {  // what stays mapped is lost to this process, and nothing more
  }
  give_back(taken_);
}

void Pool::on_pressure(std::function<void()> wake) {
  // The budget's lock makes the exchange safe against a listener that is being called.
  if (listener_ != 0) budget_->stop_listening(listener_);
  {
    std::lock_guard lock(wake_mutex_);
    wake_ = wake;
  }
  listener_ = budget_->listen([this, wake = std::move(wake)](Bytes wanted) {
    pressure_bytes_.fetch_add(wanted.count);
    if (wanted.count == 0) room_.fetch_add(1);
    wake();
  });
}

void Pool::wake_pager() {
  std::lock_guard lock(wake_mutex_);
  wake_();
}

void Pool::wake_pager_if_over_budget() {
  if (budget_->taken() > budget_->limit()) wake_pager();
}

/// Under the lock. Not `at_once`: work may still be using it.
void Pool::note_given_up(bool at_once) {
  given_up_ += at_once;
  if (awaited_.exchange(false)) wake_pager();
}

std::uint64_t Pool::given_up() {
  std::lock_guard lock(mutex_);
  last_uses_.refresh();
  given_up_ += device_limit_.ends(clock_->now());
  return given_up_ + last_uses_.ended() + room_;
}

std::optional<Nanoseconds> Pool::await_given_up() {
  std::lock_guard lock(mutex_);
  awaited_ = true;
  if (last_uses_.refresh() && waiting().count != 0) return clock_->now() + recheck;
  return device_limit_.until(clock_->now());
}

void Pool::epoch_closed() {
  if (!awaited_) return;
  std::lock_guard lock(mutex_);
  if (waiting().count != 0) note_given_up(false);
}

/// Of what is reclaimable, that which work may still be using.
Bytes Pool::waiting() const {
  Bytes sum;
  last_uses_.for_each_not_over([&](std::uint16_t number) { sum += mapped_.last_used(number); });
  return sum;
}

void Pool::require_open() const {
  if (closed_) throw Closed("this pool is closed");
}

bool Pool::closed() const {
  fork_guard_.require_parent("this pool");
  std::lock_guard lock(mutex_);
  return closed_;
}

void Pool::give_back(Bytes size) noexcept {
  taken_ -= size;
  budget_->give_back(size);
}

void Pool::check_ranges(const Reservation& reservation, std::span<const PageRange> ranges) {
  const std::uint64_t pages = reservation.table.size().count;
  for (const PageRange& range : ranges)
    if (range.count.count > pages || range.first.value > pages - range.count.count)
      throw InvalidArgument("ranges: pages " + std::to_string(range.first.value) + " + " +
                            std::to_string(range.count.count) + " are not all in this reservation of " +
                            std::to_string(pages));
}

void Pool::unkeep(Reservation& reservation, std::span<const PageRange> ranges, const Fence& until) {
  fork_guard_.require_parent("this pool");
  {
    std::lock_guard lock(mutex_);
    check_ranges(reservation, ranges);
    const std::uint16_t last_use = last_uses_.number(until);
    bool any = false, at_once = false;
    for_each_page(ranges, [&](PageIndex page) {
      if (reservation.table[page].need == Need::none) return true;
      reservation.table.unkeep(page, last_use);
      any = true;
      at_once |= last_uses_.over(reservation.table[page].last_use);
      return true;
    });
    if (any) note_given_up(at_once);
  }
  note_idle();
  wake_pager_if_over_budget();
}

void Pool::call_off(Reservation& reservation, std::span<const PageRange> ranges) {
  fork_guard_.require_parent("this pool");
  std::lock_guard lock(mutex_);
  check_ranges(reservation, ranges);
  for_each_page(ranges, [&](PageIndex page) {
    reservation.table.set_need(page, Need::none);
    return true;
  });
  note_given_up(true);
  note_idle();
}

Pool::Needs::Needs(Pool& pool)
    : pool_(pool), lock_((pool.fork_guard_.require_parent("this pool"), pool.mutex_)) {}

Pool::Needs::~Needs() {
  if (less_) pool_.note_given_up(true);
  if (nobody_s_) pool_.note_idle();
}

Pages Pool::Needs::resident(const Reservation& reservation, const PageRange& range) const {
  check_ranges(reservation, std::span(&range, 1));
  Pages count;
  while (count < range.count &&
         reservation.table[{range.first.value + static_cast<std::uint32_t>(count.count)}].state ==
             VirtualState::resident)
    count += Pages{1};
  return count;
}

void Pool::Needs::set(Reservation& reservation, std::span<const PageRange> ranges, Need need) {
  check_ranges(reservation, ranges);
  for_each_page(ranges, [&](PageIndex page) {
    const VirtualPage& entry = reservation.table[page];
    if (entry.state != VirtualState::resident || entry.kept()) return true;
    less_ |= need < entry.need;
    reservation.table.set_need(page, need);
    return true;
  });
  nobody_s_ |= need == Need::none;
}

void Pool::zero(Reservation& reservation, Bytes offset, Bytes size, StreamHandle stream) {
  fork_guard_.require_parent("this pool");
  if (offset > reservation.size() || size > reservation.size() - offset)
    throw InvalidArgument("offset, size: beyond the end of the reservation");
  const MemoryRange range{reservation.base + offset, size};
  driver_->zero(std::span(&range, 1), stream);
}

StreamHandle Pool::create_stream() {
  fork_guard_.require_parent("this pool");
  {
    std::lock_guard lock(mutex_);
    require_open();
  }
  return streams_.create();
}

void Pool::end_stream(StreamHandle stream) {
  fork_guard_.require_parent("this pool");
  if (streams_.end(stream)) note_idle();  // or a pool that does nothing else would keep it
}

void Pool::destroy_stream(StreamHandle stream) {
  fork_guard_.require_parent("this pool");
  if (!streams_.destroy(stream) && !closed())
    throw InvalidArgument("stream: not one that this pool has made");
  epoch_closed();
}

void Pool::copy(Address to, Address from, Bytes size, StreamHandle stream) {
  fork_guard_.require_parent("this pool");
  const Streams::Use use(streams_, stream);
  driver_->copy(to, from, size, stream);
  epochs_.mark(stream);
}

void Pool::synchronize(StreamHandle stream) {
  fork_guard_.require_parent("this pool");
  const Streams::Use use(streams_, stream);
  streams_.synchronize(stream);
}

Bytes Pool::missing(const Reservation& reservation, std::span<const PageRange> ranges) const {
  fork_guard_.require_parent("this pool");
  std::lock_guard lock(mutex_);
  check_ranges(reservation, ranges);
  std::uint64_t count = 0;
  for_each_page(ranges, [&](PageIndex page) {
    count += reservation.table[page].state != VirtualState::resident;
    return true;
  });
  return reservation.shape.page_bytes * count;
}

Bytes Pool::mapped(const Reservation& reservation) const {
  fork_guard_.require_parent("this pool");
  std::lock_guard lock(mutex_);
  return reservation.shape.page_bytes * reservation.table.resident().count;
}

void Pool::close(Nanoseconds patience) {
  fork_guard_.require_parent("this pool");
  {
    std::lock_guard lock(mutex_);
    if (patience != Nanoseconds::max()) stop_waiting_at_ = clock_->now() + patience;
    if (std::exchange(closed_, true) && taken_.count == 0 && streams_.empty()) return;
  }
  streams_.end_all();
  tear_down();
  const std::uint64_t left = await_streams();
  if (!may_wait()) log_impatience(left);
}

bool Pool::may_wait() const {
  std::lock_guard lock(mutex_);
  return stop_waiting_at_ == Nanoseconds::max() || clock_->now() < stop_waiting_at_;
}

/// Gives back what a closed pool can give back.
void Pool::tear_down() noexcept {
  try {
    drain_retired(true);
    trim({~std::uint64_t{0}}, true);
  } catch (const std::exception& error) {
    log_.write(LogLevel::warning, error.what());
  }
}

/// Until those that have ended are destroyed, but for what only somebody else can end. How many are left that
/// would have to be waited for longer.
std::uint64_t Pool::await_streams() noexcept {
  for (bool failed = false;;) {
    try {
      epochs_.poll();
    } catch (const std::exception& error) {
      if (std::exchange(failed, true)) {
        log_.write(LogLevel::warning, error.what());
        return 0;
      }
    }
    const std::uint64_t left = streams_.sweep();
    if (left == 0 || !may_wait()) return left;
    std::unique_lock lock(mutex_);
    clock_->wait(lock, changed_, recheck);
  }
}

/// Whether work that is not over may still use memory of leases that have ended.
bool Pool::is_in_use() {
  std::lock_guard lock(mutex_);
  last_uses_.refresh();
  return waiting().count != 0 || std::ranges::any_of(retired_, &Retirement::intact);
}

void Pool::log_impatience(std::uint64_t streams) {
  std::string left = is_in_use() ? "what work under way still uses" : "";
  if (streams != 0)
    left += (left.empty() ? "" : " and ") + std::to_string(streams) + (streams == 1 ? " stream" : " streams");
  if (!left.empty()) log_.write(LogLevel::warning, "closed without " + left + ": it did not end in time");
}

PoolStats Pool::stats() const {
  fork_guard_.require_parent("this pool");
  std::lock_guard lock(mutex_);
  PoolStats out{};
  out.budget = budget_->limit();
  out.created = taken_;
  out.free = physical_.free_bytes();
  out.peak_created = peak_taken_;
  out.mapped = mapped_.all();
  out.kept = mapped_.kept();
  out.reclaimable = mapped_.reclaimable();
  out.runs = physical_.run_count();
  out.retirements_waiting = retired_.size();
  for (const auto& [id, reservation] : reservations_)
    ++(reservation->leased ? out.reservations_leased : out.reservations_idle);
  return out;
}

}  // namespace vmm
