#include "memory/pool.h"

#include <algorithm>
#include <string>
#include <utility>

#include "base/error.h"

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

Bytes arena_bytes(Bytes asked, Bytes budget) {
  if (asked.count != 0) return asked;
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
                                 std::shared_ptr<Clock> clock, const PoolOptions& options) {
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
      run_bytes_(checked_run_bytes(options.run_bytes, budget_->limit())),
      arena_(
          *driver_,
          round_up(arena_bytes(options.arena_bytes, budget_->limit()), driver_->capabilities().granularity),
          std::min(arena_bytes(options.arena_bytes, budget_->limit()), least_arena),
          driver_->capabilities().granularity),
      physical_(run_bytes_, driver_->capabilities().merges_neighbours) {
  on_pressure([] {});
  if (arena_.size() < arena_bytes(options.arena_bytes, budget_->limit()))
    log_.write(LogLevel::info, "address space is limited: the arena has only " +
                                   std::to_string(arena_.size().count) + " bytes");
}

Pool::~Pool() {
  budget_->stop_listening(listener_);
  if (taken_.count == 0) return;  // nor are streams looked at, which may be gone
  try {
    epochs_.poll();
    while (free_an_idle_range()) {
    }
    drain_retired();
  } catch (const Error&) {  // what stays mapped is lost to this process, and nothing more
  }
  give_back(taken_);
}

void Pool::on_pressure(std::function<void()> wake) {
  // The budget's lock makes the exchange safe against a listener that is being called.
  if (listener_ != 0) budget_->stop_listening(listener_);
  listener_ = budget_->listen([this, wake = std::move(wake)](Bytes wanted) {
    pressure_bytes_.fetch_add(wanted.count);
    wake();
  });
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

void Pool::check_shape(const ReservationShape& shape) const {
  const Bytes granularity = driver_->capabilities().granularity;
  if (!is_power_of_two(shape.page_bytes.count) || shape.page_bytes < granularity)
    throw InvalidArgument("page_bytes is " + std::to_string(shape.page_bytes.count) +
                          "; expected a power of two of at least " + std::to_string(granularity.count) +
                          ", the granularity of the " + driver_->capabilities().name + " driver");
  if (shape.extent_bytes.count == 0 || (shape.extent_bytes % shape.page_bytes).count != 0)
    throw InvalidArgument("extent_bytes is " + std::to_string(shape.extent_bytes.count) +
                          "; expected a positive multiple of page_bytes, " +
                          std::to_string(shape.page_bytes.count));
  if (shape.extents == 0) throw InvalidArgument("extents is 0; expected at least 1");
  if (shape.extents > arena_.size() / shape.extent_bytes)
    throw InvalidArgument("extents × extent_bytes is more than the pool's address space, " +
                          std::to_string(arena_.size().count) + " bytes");
  if (shape.extent_bytes * shape.extents / shape.page_bytes >= PageIndex::none)
    throw InvalidArgument("page_bytes is too small for so large a reservation: more than 2^32 pages");
  if (!shape.tenant.valid()) throw InvalidArgument("tenant: out of range");
}

void Pool::check_ranges(const Reservation& reservation, std::span<const PageRange> ranges) {
  const std::uint64_t pages = reservation.table.size().count;
  for (const PageRange& range : ranges)
    if (range.count.count > pages || range.first.value > pages - range.count.count)
      throw InvalidArgument("ranges: pages " + std::to_string(range.first.value) + " + " +
                            std::to_string(range.count.count) + " are not all in this reservation of " +
                            std::to_string(pages));
}

Reservation* Pool::find_adoptable(const ReservationShape& wanted, std::optional<StreamHandle> stream) {
  Reservation* best = nullptr;
  if (wanted.zeroed) return nullptr;
  for (auto& [id, candidate] : reservations_) {
    const ReservationShape& shape = candidate->shape;
    if (candidate->leased || shape.zeroed || shape.page_bytes != wanted.page_bytes ||
        shape.extent_bytes != wanted.extent_bytes || shape.extents < wanted.extents ||
        shape.tenant != wanted.tenant || !epochs_.complete(candidate->idle_fence, stream))
      continue;
    // The closest fit, then the one with most pages mapped.
    auto rank = [](const Reservation& r) { return std::pair(r.shape.extents, ~r.table.resident().count); };
    if (best == nullptr || rank(*candidate) < rank(*best)) best = candidate.get();
  }
  return best;
}

std::optional<Address> Pool::allocate_addresses(const ReservationShape& shape) {
  std::lock_guard lock(mutex_);
  return arena_.allocate(shape.extent_bytes * shape.extents, shape.page_bytes);
}

Reservation& Pool::make_reservation(const ReservationShape& shape) {
  const Bytes size = shape.extent_bytes * shape.extents;
  std::optional<Address> base;
  while (!(base = allocate_addresses(shape)))
    if (!free_an_idle_range())
      throw OutOfPages(figures(size), "the pool's address space of " + std::to_string(arena_.size().count) +
                                          " bytes is used up");
  try {
    if (driver_->capabilities().zero_gaps)
      driver_->set_gap(*base, size, shape.zeroed ? Gap::zeros : Gap::faults);
  } catch (...) {
    std::lock_guard lock(mutex_);
    arena_.free(*base, size);
    throw;
  }
  std::lock_guard lock(mutex_);
  const ReservationId id{next_reservation_++};
  auto owned = std::make_unique<Reservation>(id, *base, shape, physical_.pages_per_run(shape.page_bytes));
  return *(reservations_[id.value] = std::move(owned));
}

std::shared_ptr<Lease> Pool::reserve(const ReservationShape& shape, std::optional<StreamHandle> stream) {
  fork_guard_.require_parent("this pool");
  epochs_.poll();
  {
    std::lock_guard lock(mutex_);
    require_open();
    check_shape(shape);
    if (Reservation* adopted = find_adoptable(shape, stream)) {
      auto lease = std::make_shared<Lease>(shared_from_this(), *adopted, shape.extents);
      adopted->leased = true;
      adopted->surplus_fence = std::move(adopted->idle_fence);
      counters_.reservations_adopted.add();
      return lease;
    }
  }
  Reservation& made = make_reservation(shape);
  counters_.reservations_made.add();
  return std::make_shared<Lease>(shared_from_this(), made, shape.extents);
}

void Pool::recycle(Reservation& reservation) noexcept {
  if (fork_guard_.in_child()) return;
  bool tear_down = false;
  {
    std::lock_guard lock(mutex_);
    for (std::uint32_t i = 0; i < reservation.table.size().count; ++i)
      if (reservation.table[{i}].kept) reservation.table.keep({i}, false);
    reservation.leased = false;
    reservation.idle_since = ++recyclings_;
    reservation.idle_fence = epochs_.fence();
    erase_if_empty(reservation);
    tear_down = closed_;
  }
  if (!tear_down) return;
  try {
    trim({~std::uint64_t{0}}, true);
  } catch (const Error& error) {
    log_.write(LogLevel::warning, std::string("giving back the memory of a closed pool: ") + error.what());
  }
}

void Pool::erase_if_empty(Reservation& reservation) {
  if (reservation.leased || reservation.table.in_use().count != 0) return;
  arena_.free(reservation.base, reservation.size());
  reservations_.erase(reservation.id.value);
}

void Pool::unkeep(Reservation& reservation, std::span<const PageRange> ranges) {
  fork_guard_.require_parent("this pool");
  std::lock_guard lock(mutex_);
  check_ranges(reservation, ranges);
  for_each_page(ranges, [&](PageIndex page) {
    reservation.table.keep(page, false);
    return true;
  });
  reservation.surplus_fence = epochs_.fence();
}

void Pool::zero(Reservation& reservation, Bytes offset, Bytes size, StreamHandle stream) {
  fork_guard_.require_parent("this pool");
  if (offset > reservation.size() || size > reservation.size() - offset)
    throw InvalidArgument("offset, size: beyond the end of the reservation");
  const MemoryRange range{reservation.base + offset, size};
  driver_->zero(std::span(&range, 1), stream);
}

void Pool::copy(Address to, Address from, Bytes size, StreamHandle stream) {
  fork_guard_.require_parent("this pool");
  driver_->copy(to, from, size, stream);
  epochs_.mark(stream);
}

void Pool::destroy_stream(StreamHandle stream) {
  fork_guard_.require_parent("this pool");
  synchronize(stream);  // here, where it holds nobody up
  epochs_.destroy(stream);
}

void Pool::synchronize(StreamHandle stream) {
  fork_guard_.require_parent("this pool");
  const EventHandle event = driver_->record(stream);
  driver_->wait(event);
  driver_->destroy_event(event);
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

void Pool::close() {
  fork_guard_.require_parent("this pool");
  {
    std::lock_guard lock(mutex_);
    if (closed_) return;
    closed_ = true;
  }
  trim({~std::uint64_t{0}}, true);
}

PoolStats Pool::stats() const {
  fork_guard_.require_parent("this pool");
  std::lock_guard lock(mutex_);
  PoolStats out{};
  out.budget = budget_->limit();
  out.created = taken_;
  out.free = physical_.free_bytes();
  out.peak_created = peak_taken_;
  out.reclaimable = reclaimable();
  out.runs = physical_.run_count();
  out.retirements_waiting = retired_.size();
  for (const auto& [id, reservation] : reservations_) {
    out.mapped += reservation->shape.page_bytes * reservation->table.resident().count;
    out.kept += reservation->shape.page_bytes * reservation->table.kept().count;
    ++(reservation->leased ? out.reservations_leased : out.reservations_idle);
  }
  return out;
}

}  // namespace vmm
