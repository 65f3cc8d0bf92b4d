// What may be had, and what is owed.
#include <algorithm>

#include "base/error.h"
#include "memory/reclaiming.h"

namespace vmm {

MemoryFigures Reclaiming::figures(Bytes asked, const Tenant& tenant) const {
  const Allowance& allowance = tables_.allowance();
  return {asked,
          allowance.left() + tables_.physical().free_bytes(),
          tables_.mapped().reclaimable(),
          allowance.limit(),
          ground_.driver->capabilities().gpu,
          allowance.exceeded(),
          allowance.device_words(),
          quotas_.any() ? std::optional(quotas_.figures(tenant)) : std::nullopt};
}

void Reclaiming::require_obtainable(Bytes asked, Bytes price, TenantId id, Need whose) {
  std::unique_lock lock(ground_.mutex);
  const Tenant& tenant = tables_.tenants()[id];
  for (Wait wait(ground_, "calls under way, and work that uses what was retired, end");; pause(lock, wait)) {
    if (whose == Need::kept && quotas_.any() &&
        quotas_.room_soon(tenant) < static_cast<std::int64_t>(price.count))
      throw OutOfPages(figures(price, tenant), "");
    if (asked.count == 0) return;
    const MemoryFigures have = figures(asked, tenant);
    // A budget that has been lowered must be met first.
    const Bytes needed = asked + have.owed;
    if (have.free + have.reclaimable >= needed) return;
    // Whoever maps ahead must not be held up: it has other work, and is told when memory is given up.
    const Bytes coming = whose == Need::kept ? tables_.coming() : Bytes{};
    if (have.free + have.reclaimable + coming < needed) throw OutOfPages(have, "");
  }
}

void Reclaiming::await_room(std::unique_lock<Mutex>& lock, const Tenant& tenant, Bytes price, Need whose,
                            Wait& wait) {
  const auto asked = static_cast<std::int64_t>(price.count);
  tables_.last_uses().refresh();
  const bool kept = whose == Need::kept;
  if ((kept ? quotas_.room(tenant) : quotas_.room_for(tenant, whose)) >= asked) return;
  if (!kept || quotas_.room_soon(tenant) < asked) throw OutOfPages(figures(price, tenant), "");
  {
    const Unlocked outside(lock);
    ground_.epochs.poll();
  }
  pause(lock, wait);
}

std::int64_t Reclaiming::obtainable(StreamHandle stream, TenantId tenant) const {
  const auto lock = ground_.locked();
  const Allowance& allowance = tables_.allowance();
  const LastUses& last_uses = tables_.last_uses();
  const Bytes taken = allowance.taken_by_all();
  Bytes sum = std::min(allowance.limit(), taken + allowance.device_left()) + tables_.physical().free_bytes() +
              tables_.coming() + tables_.mapped().reclaimable();
  last_uses.for_each_not_over([&](std::uint16_t number) {
    if (!last_uses.ends(number, stream)) sum -= tables_.mapped().last_used(number);
  });
  const std::int64_t left = static_cast<std::int64_t>(sum.count) - static_cast<std::int64_t>(taken.count);
  return quotas_.any() ? std::min(left, quotas_.room_soon(tables_.tenants()[tenant], stream)) : left;
}

bool Reclaiming::charges_for_mapped() const {
  std::lock_guard lock(ground_.mutex);
  return quotas_.any();
}

std::int64_t Reclaiming::cost(const Reservation& reservation, std::span<const PageRange> ranges,
                              std::optional<StreamHandle> stream) const {
  const auto lock = ground_.locked();
  reservation.check(ranges);
  const LastUses& last_uses = tables_.last_uses();
  std::uint64_t count = 0;
  for (PageIndex at : each_page(ranges)) {
    const VirtualPage& page = tables_.counted(reservation, at);
    // What work still uses is not part of what may be had, and comes back for nothing.
    const bool ends = stream ? last_uses.ends(page.last_use, *stream) : last_uses.ends(page.last_use);
    count += !tables_.may_come_back(reservation, at) || (!page.kept() && ends);
  }
  return static_cast<std::int64_t>((reservation.shape.page_bytes * count).count);
}

Bytes Reclaiming::available(const Tenant& tenant, Need whose) const {
  std::lock_guard lock(ground_.mutex);
  Bytes sum = tables_.allowance().left() + tables_.physical().free_bytes();
  for (Need need : reclaimable_needs)
    if (need < whose) sum += tables_.mapped().reclaimable(need);
  if (!quotas_.any()) return sum;
  const std::int64_t room = std::max<std::int64_t>(0, quotas_.room_for(tenant, whose));
  return std::min(sum, Bytes{static_cast<std::uint64_t>(room)});
}

Bytes Reclaiming::coming() const {
  std::lock_guard lock(ground_.mutex);
  return tables_.coming();
}

Bytes Reclaiming::owed() const {
  std::lock_guard lock(ground_.mutex);
  return std::min(tables_.allowance().exceeded(),
                  tables_.physical().free_bytes() + tables_.mapped().reclaimable());
}

std::uint64_t Reclaiming::given_up() {
  std::lock_guard lock(ground_.mutex);
  tables_.last_uses().refresh();
  return ground_.signals.times_given_up() + tables_.last_uses().ended() +
         tables_.allowance().times_device_ended();
}

std::optional<Nanoseconds> Reclaiming::await_given_up() {
  std::lock_guard lock(ground_.mutex);
  ground_.signals.await_given_up();
  if (tables_.last_uses().refresh() && tables_.waiting().count != 0)
    return ground_.clock->now() + Wait::recheck;
  return tables_.allowance().device_until();
}

void Reclaiming::forget_device_limit() {
  std::lock_guard lock(ground_.mutex);
  if (tables_.allowance().device_until())
    ground_.signals.given_up(true);  // Whoever starved because of it may go on.
  tables_.allowance().forget_device();
}

}  // namespace vmm
