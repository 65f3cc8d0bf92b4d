#include "memory/tenants.h"

#include <algorithm>
#include <utility>

#include "base/error.h"

namespace vmm {

Tenants::Tenants() { add({}); }

void Tenants::require_addable(const TenantTerms& terms) const {
  if (all_.size() > most)
    throw InvalidArgument("pool: it has " + std::to_string(most) + " tenants, which is the most");
  for (const auto& [id, tenant] : all_)
    if (tenant->open && tenant->terms.name == terms.name)
      throw InvalidArgument("name is '" + terms.name +
                            "'; expected one that no other tenant of the pool has");
}

Tenant& Tenants::add(const TenantTerms& terms) {
  auto made = std::make_unique<Tenant>(Tenant{.id = {next_}, .terms = terms});
  Tenant& tenant = *(all_[next_] = std::move(made));
  ++next_;
  return tenant;
}

Bytes Tenants::close(TenantId id) noexcept {
  Tenant& tenant = *all_.at(id.value);
  tenant.open = false;
  const Bytes guaranteed = std::exchange(tenant.terms.guaranteed, {});
  forget_if_unused(tenant);
  return guaranteed;
}

Tenant& Tenants::for_reservation(TenantId id) {
  const auto found = all_.find(id.value);
  if (found == all_.end() || !found->second->open) throw Closed("this tenant is closed");
  return *found->second;
}

void Tenants::count_reservation(Tenant& tenant, bool in) noexcept {
  in ? ++tenant.reservations : --tenant.reservations;
  forget_if_unused(tenant);
}

void Tenants::forget_if_unused(const Tenant& tenant) noexcept {
  if (!tenant.open && tenant.reservations == 0) all_.erase(tenant.id.value);
}

}  // namespace vmm
