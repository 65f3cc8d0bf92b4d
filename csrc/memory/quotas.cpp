#include "memory/quotas.h"

#include <algorithm>

namespace vmm {

Bytes Quotas::charged(const Tenant& tenant) const { return charged(tenant, now()); }

Bytes Quotas::charged(const Tenant& tenant, const Moment& when) const {
  const LastUses& last_uses = tables_.last_uses();
  Bytes in_use;
  last_uses.for_each_not_over([&](std::uint16_t number) {
    const Bytes size = tenant.mapped.last_used(number);
    if (size.count == 0) return;
    const bool ends = when.stream ? last_uses.ends(number, *when.stream) : last_uses.ends(number);
    if (!when.soon || !ends) in_use += size;
  });
  const Bytes coming = when.soon ? tables_.coming(tenant) : tables_.on_its_way(tenant);
  return saturating_sub(tenant.held + in_use, tenant.mapped.reclaimable() + coming);
}

/// What the budget has to cover for all tenants but one.
Bytes Quotas::promised(const Tenant* but, const Moment& when) const {
  Bytes sum;
  for (const auto& [id, each] : tables_.tenants().all())
    if (each.get() != but) sum += std::max(each->terms.guaranteed, charged(*each, when));
  return sum;
}

Bytes Quotas::admitted_under() const {
  const Bytes budget = tables_.allowance().maximum(), before = tables_.admitted_under();
  return before <= budget ? budget : std::max(budget, std::min(before, promised()));
}

std::int64_t Quotas::room(const Tenant& tenant, const Moment& when) const {
  const auto as_signed = [](Bytes size) { return static_cast<std::int64_t>(size.count); };
  const std::int64_t left = as_signed(tables_.allowance().maximum()) - as_signed(promised(&tenant, when));
  return std::min(as_signed(tenant.terms.limit), left) - as_signed(charged(tenant, when));
}

std::int64_t Quotas::room_soon(const Tenant& tenant, std::optional<StreamHandle> stream) const {
  return room(tenant, {true, stream});
}

std::int64_t Quotas::room_for(const Tenant& tenant, Need need) const {
  std::int64_t left = room(tenant);
  for (Need each : reclaimable_needs)
    if (each >= need) left -= static_cast<std::int64_t>(tenant.mapped.reclaimable(each).count);
  return left;
}

Bytes Quotas::price(const Reservation& reservation, std::span<const PageRange> ranges, Need need,
                    Pages at_most) const {
  std::uint64_t missing = 0, raised = 0;
  for (PageIndex at : each_page(ranges)) {
    const VirtualState state = reservation.table[at].state;
    if (state == VirtualState::unmapped && missing < at_most.count) ++missing;
    if (need != Need::kept) continue;
    // One that is about to be unmapped may be called back, and is charged already while work uses it.
    if (!tables_.may_come_back(reservation, at)) continue;
    const VirtualPage& page = tables_.counted(reservation, at);
    raised += !page.kept() && tables_.last_uses().over(page.last_use);
  }
  return reservation.shape.page_bytes * (missing + raised);
}

TenantFigures Quotas::figures(const Tenant& tenant) const {
  const std::int64_t left = std::max<std::int64_t>(0, room(tenant));
  return {tenant.terms.name,
          charged(tenant),
          tenant.mapped.kept(),
          tenant.held,
          tenant.terms.guaranteed,
          tenant.terms.limit,
          {static_cast<std::uint64_t>(left)}};
}

}  // namespace vmm
