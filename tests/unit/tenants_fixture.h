// A pool of sixteen pages with tenants.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "fixtures.h"

namespace vmm {

constexpr Bytes page = 64_KiB;

struct Owned : TestPool {
  Owned() : TestPool(page * 16) {}

  TenantId tenant(const char* name, std::uint64_t guaranteed, std::uint64_t limit = 16, int priority = 0) {
    return pool->tenancies().add({name, page * guaranteed, page * limit, priority});
  }
  std::shared_ptr<Lease> lease(TenantId owner, std::uint64_t pages = 16, bool zeroed = false) {
    return pool->reserve(
        {.page_bytes = page, .extent_bytes = page * pages, .zeroed = zeroed, .tenant = owner});
  }
  /// In pages.
  std::uint64_t charged(TenantId id) const { return pool->tenancies().figures(id).charged / page; }
  std::uint64_t room(TenantId id) const { return pool->tenancies().figures(id).room / page; }
};

inline void give_up(Lease& lease, std::uint32_t first, std::uint64_t count, const Fence& until = {}) {
  const PageRange range{{first}, {count}};
  lease.pool().unkeep(lease.reservation(), std::span(&range, 1), until);
}

}  // namespace vmm
