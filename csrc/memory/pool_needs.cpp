// What needs pages of a pool, changed for many of them under one lock.
#include "base/error.h"
#include "memory/pool.h"

namespace vmm {

Pool::Needs::Needs(Pool& pool)
    : signals_(pool.ground_.signals),
      tables_(pool.tables_),
      reclaiming_(pool.reclaiming_),
      lock_((pool.ground_.require_parent(), pool.ground_.mutex)) {}

Pool::Needs::~Needs() {
  if (less_) signals_.given_up(true);
  if (nobody_s_) signals_.note_idle();
}

namespace {

/// Pages of the range up to the first that is not so.
template <class Is>
Pages first_pages(const Reservation& reservation, const PageRange& range, Is is) {
  const std::span ranges(&range, 1);
  reservation.check(ranges);
  Pages count;
  for (PageIndex page : each_page(ranges)) {
    if (!is(reservation.table[page])) break;
    count += Pages{1};
  }
  return count;
}

}  // namespace

Pages Pool::Needs::resident(const Reservation& reservation, const PageRange& range) const {
  return first_pages(reservation, range,
                     [](const VirtualPage& page) { return page.state == VirtualState::resident; });
}

Pages Pool::Needs::used(const Reservation& reservation, const PageRange& range) const {
  return first_pages(reservation, range, [](const VirtualPage& page) { return page.used; });
}

/// Whether the tenant has room for what `price()` is. What work has used and is over counts until somebody
/// has looked, so a refusal is looked at again.
template <class Price>
bool Pool::Needs::may_pay(const Tenant& tenant, Price price) const {
  const Quotas& quotas = reclaiming_.quotas();
  const auto may = [&] {
    const Bytes sum = price(quotas);
    return sum.count == 0 || quotas.room(tenant) >= static_cast<std::int64_t>(sum.count);
  };
  return !quotas.any() || may() || (tables_.last_uses().refresh(), may());
}

bool Pool::Needs::may_keep(const Reservation& reservation, std::span<const PageRange> ranges) const {
  return may_pay(reservation.tenant,
                 [&](const Quotas& quotas) { return quotas.price(reservation, ranges, Need::kept, {}); });
}

bool Pool::Needs::may_keep(const Ranges& all) const {
  return all.empty() || may_pay(all.front().first->tenant, [&](const Quotas& quotas) {
           Bytes sum;
           for (const auto& [reservation, ranges] : all)
             sum += quotas.price(*reservation, ranges, Need::kept, {});
           return sum;
         });
}

OutOfPages Pool::Needs::out_of_pages(const Reservation& reservation,
                                     std::span<const PageRange> ranges) const {
  return out_of_pages(reclaiming_.quotas().price(reservation, ranges, Need::kept, {}), reservation.tenant);
}

OutOfPages Pool::Needs::out_of_pages(Bytes asked, const Tenant& tenant) const {
  return {reclaiming_.figures(asked, tenant), ""};
}

PageHandle Pool::Needs::physical(Address address) const {
  const std::optional<PhysicalPageId> page = tables_.page_at(address);
  if (!page) throw InvalidArgument("address: nothing of this pool is mapped there");
  return tables_.physical()[*page].handle.get();
}

void Pool::Needs::set(Reservation& reservation, std::span<const PageRange> ranges, Need need) {
  reservation.check(ranges);
  const Quotas& quotas = reclaiming_.quotas();
  if (need == Need::kept && quotas.any()) tables_.note_admission(quotas.admitted_under());
  for (PageIndex page : each_page(ranges)) {
    const VirtualPage& entry = reservation.table[page];
    if (entry.state != VirtualState::resident || entry.kept()) continue;
    less_ |= need < entry.need;
    reservation.table.set_need(page, need);
  }
  nobody_s_ |= need == Need::none;
}

}  // namespace vmm
