#include "memory/pool.h"

#include <algorithm>
#include <bit>
#include <string>
#include <utility>

#include "base/error.h"

namespace vmm {
namespace {

constexpr std::uint64_t runs_of_a_full_budget = 16'384;
constexpr Bytes least_run = 1_MiB;
constexpr Bytes least_arena = 1_GiB;

Bytes default_arena_bytes(Bytes budget) {
  return budget > 16_TiB / 256 ? 16_TiB : std::max(2_TiB, budget * 256);
}

Bytes checked_run_bytes(Bytes run, Bytes budget) {
  if (run.count == 0)
    return std::max(least_run, Bytes{std::bit_ceil((budget / runs_of_a_full_budget).count)});
  if (!is_power_of_two(run.count))
    throw InvalidArgument("run_bytes: expected a power of two, or 0 for the default");
  return run;
}

}  // namespace

std::shared_ptr<Pool> Pool::make(std::unique_ptr<Driver> driver, std::shared_ptr<Budget> budget,
                                 std::shared_ptr<Clock> clock, PoolOptions options) {
  if (options.arena_bytes.count == 0) options.arena_bytes = default_arena_bytes(budget->maximum());
  return {new Pool(std::move(driver), std::move(budget), std::move(clock), options), [](Pool* pool) {
            if (!pool->fork_guard().in_child()) delete pool;
          }};
}

Pool::Pool(std::unique_ptr<Driver> driver, std::shared_ptr<Budget> budget, std::shared_ptr<Clock> clock,
           const PoolOptions& options)
    : ground_(std::move(driver), std::move(budget), std::move(clock)),
      run_bytes_(checked_run_bytes(options.run_bytes, ground_.budget->maximum())),
      arena_(*ground_.driver, round_up(options.arena_bytes, ground_.driver->capabilities().granularity),
             std::min(options.arena_bytes, least_arena), ground_.driver->capabilities().granularity),
      tables_(ground_.driver->capabilities(), run_bytes_, ground_.epochs,
              Allowance(*ground_.budget, ground_.signals.listener(), *ground_.clock)),
      streams_(ground_, tables_),
      reclaiming_(ground_, tables_, streams_),
      mapping_(ground_, tables_, reclaiming_),
      leases_(ground_, tables_, reclaiming_, arena_),
      tenancies_(ground_, tables_, reclaiming_) {
  if (arena_.size() < options.arena_bytes)
    log().write(LogLevel::info, "address space is limited: the arena has only " +
                                    std::to_string(arena_.size().count) + " bytes");
}

Pool::~Pool() {
  ground_.signals.stop();
  if (tables_.allowance().taken().count == 0) return;  // Streams may be gone by now, so nobody looks at them.
  try {
    epochs().poll();
    reclaiming_.drain_retired(true);
    while (reclaiming_.end_an_idle_reservation()) {
    }
  } catch (const std::exception&) {  // What stays mapped is lost to this process, and nothing more.
  }
  tables_.allowance().give_back(tables_.allowance().taken());
}

std::shared_ptr<Lease> Pool::reserve(const ReservationShape& shape, std::optional<StreamHandle> stream) {
  // The lease comes first: a reservation that nobody can hold would never be given back.
  auto lease = std::make_shared<Lease>(shared_from_this(), shape.extents);
  lease->reservation_ = &leases_.reserve(shape, stream);
  return lease;
}

void Pool::give_up_shared(Reservation& reservation) noexcept {
  try {
    std::lock_guard lock(ground_.mutex);
    const PageRange all{{0}, reservation.table.size()};
    if (reservation.table.shared().count != 0)
      retire_shared(reservation, std::span(&all, 1), ground_.epochs.fence());
  } catch (const std::bad_alloc&) {  // then it is unmapped when it has aged
  }
}

void Pool::end_lease(Reservation& reservation, bool whole) noexcept {
  if (fork_guard().in_child()) return;
  if (whole) give_up_shared(reservation);
  leases_.recycle(reservation);
  if (closed()) tear_down();
}

void Pool::unkeep(Reservation& reservation, std::span<const PageRange> ranges, const Fence& until,
                  Need need) {
  ground_.require_parent();
  {
    std::lock_guard lock(ground_.mutex);
    reservation.check(ranges);
    retire_shared(reservation, ranges, until);
    lower_need(reservation, ranges, until, need);
  }
  ground_.signals.note_idle();
  ground_.signals.wake_if_over_budget();
}

void Pool::set_aside(Reservation& reservation, std::span<const PageRange> ranges, const Fence& until,
                     Need need) {
  ground_.require_parent();
  {
    std::lock_guard lock(ground_.mutex);
    reservation.check(ranges);
    lower_need(reservation, ranges, until, need);
  }
  ground_.signals.note_idle();
  ground_.signals.wake_if_over_budget();
}

void Pool::let_go(Reservation& reservation, std::span<const PageRange> ranges, const Fence& until) {
  const auto lock = ground_.locked();
  reservation.check(ranges);
  retire_shared(reservation, ranges, until);
}

/// The caller holds the lock.
void Pool::lower_need(Reservation& reservation, std::span<const PageRange> ranges, const Fence& until,
                      Need need) {
  LastUses& last_uses = tables_.last_uses();
  std::optional<std::uint16_t> last_use;  // none while nothing is given up: the end of one tells who starves
  bool at_once = false;
  for (PageIndex page : each_page(ranges)) {
    if (reservation.table[page].need <= need) continue;
    if (!last_use) last_use = last_uses.number(until);
    tables_.unkeep(reservation, page, *last_use, need);
    at_once |= last_uses.over(reservation.table[page].last_use);
  }
  if (last_use) ground_.signals.given_up(at_once);
}

/// The caller holds the lock.
void Pool::retire_shared(Reservation& reservation, std::span<const PageRange> ranges, const Fence& until) {
  if (reservation.table.shared().count == 0) return;
  // Nobody reads what was given up before and is over, whatever is still read of the other pages.
  std::vector<PageRange> read, over;
  for (PageIndex page : each_page(ranges)) {
    const VirtualPage& entry = reservation.table[page];
    if (!entry.shared) continue;
    const bool is_over = !entry.kept() && tables_.last_uses().over(entry.last_use);
    (is_over ? over : read).push_back({page, Pages{1}});
  }
  tables_.retire(reservation, read, until);
  tables_.retire(reservation, over, {});
  ground_.signals.wake();  // the pager unmaps them
}

void Pool::call_off(Reservation& reservation, std::span<const PageRange> ranges) {
  const auto lock = ground_.locked();
  reservation.check(ranges);
  for (PageIndex page : each_page(ranges)) reservation.table.set_need(page, Need::none);
  ground_.signals.given_up(true);
  ground_.signals.note_idle();
}

void Pool::retire(Reservation& reservation, std::span<const PageRange> ranges, Fence fence, bool to_system) {
  const auto lock = ground_.locked();
  reservation.check(ranges);
  tables_.retire(reservation, ranges, std::move(fence), to_system);
}

void Pool::zero(Reservation& reservation, Bytes offset, Bytes size, StreamHandle stream) {
  ground_.require_parent();
  const AddressRange& addresses = reservation.addresses;
  if (offset > addresses.size() || size > addresses.size() - offset)
    throw InvalidArgument("offset, size: beyond the end of the reservation");
  const MemoryRange range{addresses.base() + offset, size};
  ground_.driver->zero(std::span(&range, 1), stream);
}

bool Pool::shared(const Reservation& reservation, PageIndex page) const {
  const auto lock = ground_.locked();
  const VirtualPage& entry = reservation.table[page];
  return entry.shared && (entry.state == VirtualState::resident || entry.state == VirtualState::retiring);
}

Bytes Pool::missing(const Reservation& reservation, std::span<const PageRange> ranges) const {
  const auto lock = ground_.locked();
  reservation.check(ranges);
  std::uint64_t count = 0;
  for (PageIndex page : each_page(ranges)) count += reservation.table[page].state != VirtualState::resident;
  return reservation.shape.page_bytes * count;
}

Bytes Pool::mapped(const Reservation& reservation) const {
  const auto lock = ground_.locked();
  return reservation.shape.page_bytes * reservation.table.resident().count;
}

bool Pool::closed() const {
  ground_.require_parent();
  return ground_.closed;
}

void Pool::close(Nanoseconds patience) {
  ground_.require_parent();
  {
    std::lock_guard lock(ground_.mutex);
    if (patience != Nanoseconds::max()) ground_.stop_waiting_at = clock().now() + patience;
    if (ground_.closed.exchange(true) && tables_.allowance().taken().count == 0 && streams_.empty()) return;
  }
  streams_.end_all();
  tear_down();
  const std::uint64_t left = await_streams();
  if (!ground_.may_wait()) log_impatience(left);
}

/// Gives back what a closed pool can give back.
void Pool::tear_down() noexcept {
  try {
    reclaiming_.drain_retired(true);
    trim({~std::uint64_t{0}}, true);
  } catch (const std::exception& error) {
    log().write(LogLevel::warning, error.what());
  }
}

/// Waits until the streams that have ended are destroyed, but for those that only somebody else can end.
/// Returns how many are left that it would have to wait for longer.
std::uint64_t Pool::await_streams() {
  Wait wait(ground_, "the work on streams that have ended is over");
  for (bool failed = false;;) {
    try {
      epochs().poll();
    } catch (const std::exception& error) {
      if (std::exchange(failed, true)) {
        log().write(LogLevel::warning, error.what());
        return 0;
      }
    }
    const std::uint64_t left = streams_.sweep();
    if (left == 0 || !ground_.may_wait()) return left;
    std::unique_lock lock(ground_.mutex);
    wait.moment(lock);
  }
}

void Pool::log_impatience(std::uint64_t streams) {
  const bool in_use = ground_.under_lock([&] {
    tables_.last_uses().refresh();
    return tables_.waiting().count != 0 || tables_.retired().any_intact();
  });
  std::string left = in_use ? "what work under way still uses" : "";
  if (streams != 0)
    left += (left.empty() ? "" : " and ") + std::to_string(streams) + (streams == 1 ? " stream" : " streams");
  if (!left.empty()) log().write(LogLevel::warning, "closed without " + left + ": it did not end in time");
}

PoolStats Pool::stats() const {
  const auto lock = ground_.locked();
  PoolStats out{};
  out.budget = tables_.allowance().limit();
  out.created = tables_.allowance().taken();
  out.peak_created = tables_.allowance().peak();
  out.free = tables_.physical().free_bytes();
  out.saved = tables_.saved();
  out.mapped = tables_.mapped().all();
  out.kept = tables_.mapped().kept();
  out.reclaimable = tables_.mapped().reclaimable();
  out.runs = tables_.physical().run_count();
  out.retirements_waiting = tables_.retired().size();
  for (const auto& [id, reservation] : tables_.reservations())
    ++(reservation->leased ? out.reservations_leased : out.reservations_idle);
  return out;
}

void Pool::check() const {
  const auto lock = ground_.locked();
  tables_.check();
}

}  // namespace vmm
