// How much each tenant may still have.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "base/error.h"
#include "memory/tables.h"

namespace vmm {

/// A tenant is *charged* for what it keeps, and for what nobody may take yet because work that is not over
/// uses it. The budget covers, for every tenant, the larger of its guarantee and its charge. So a tenant
/// below its guarantee never finds the memory kept by others, and a tenant above it has borrowed what no
/// other is guaranteed. Everything here requires the pool's lock.
class Quotas {
 public:
  explicit Quotas(const Tables& tables) : tables_(tables) {}

  /// Whether there are tenants. Without any, there is nothing to ask here.
  bool any() const noexcept { return tables_.tenants().any(); }
  Bytes charged(const Tenant& tenant) const;
  /// How much more the tenant may be charged now; negative while it, or the budget, has too much.
  std::int64_t room(const Tenant& tenant) const { return room(tenant, now()); }
  /// The same once what ends by itself has ended; where `stream` is given, when its next epoch has begun.
  std::int64_t room_soon(const Tenant& tenant, std::optional<StreamHandle> stream = {}) const;
  /// How much more the tenant may map that it needs so much. What it does not keep is charged to nobody, but
  /// what it could never keep would only take memory from others.
  std::int64_t room_for(const Tenant& tenant, Need need) const;
  /// How much the tenant would be charged for keeping these pages, besides what it is now; where they are not
  /// to be kept, how much of them is to be mapped, in at most so many pages.
  Bytes price(const Reservation& reservation, std::span<const PageRange> ranges, Need need,
              Pages at_most) const;
  /// What the budget has to cover for all tenants; with `soon`, once what ends by itself has ended.
  Bytes promised(bool soon = false) const { return promised(nullptr, {soon, {}}); }
  /// The budget under which all that is promised now has been admitted, if a tenant is admitted more now. A
  /// budget that was lowered does not cover what was admitted before.
  Bytes admitted_under() const;

  TenantFigures figures(const Tenant& tenant) const;

 private:
  /// At which time to look.
  struct Moment {
    bool soon;
    std::optional<StreamHandle> stream;
  };
  static Moment now() { return {false, {}}; }

  Bytes charged(const Tenant& tenant, const Moment& when) const;
  Bytes promised(const Tenant* but, const Moment& when) const;
  std::int64_t room(const Tenant& tenant, const Moment& when) const;

  const Tables& tables_;
};

}  // namespace vmm
