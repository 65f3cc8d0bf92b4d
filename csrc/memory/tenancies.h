// Makes tenants of a pool, and ends them.
#pragma once

#include "memory/ground.h"
#include "memory/reclaiming.h"
#include "memory/tables.h"

namespace vmm {

/// Safe from any thread; called without the pool's lock.
class Tenancies {
 public:
  Tenancies(Ground& ground, Tables& tables, Reclaiming& reclaiming)
      : ground_(ground), tables_(tables), reclaiming_(reclaiming) {}

  /// Throws InvalidArgument for a name that another tenant has, for a limit below what is guaranteed, and
  /// where the guarantees of all are more than the budget; OutOfPages where others keep too much for the
  /// guarantee to hold, and no work that ends by itself would change that; and Closed.
  TenantId add(const TenantTerms& terms);
  /// Its guarantee ends now. What its reservations hold stays its own until they end.
  void end(TenantId id) noexcept;
  TenantFigures figures(TenantId id) const;

 private:
  Ground& ground_;
  Tables& tables_;
  Reclaiming& reclaiming_;
};

}  // namespace vmm
