// Who owns what a pool holds.
#pragma once

#include <cstdint>
#include <limits>
#include <map>
#include <memory>
#include <string>

#include "memory/mapped_bytes.h"

namespace vmm {

/// Two tenants never see each other's bytes, and each has its own figures.
struct TenantTerms {
  std::string name{};
  Bytes guaranteed{};                                     // it gets so much, whatever others hold
  Bytes limit{std::numeric_limits<std::int64_t>::max()};  // it is never charged more
  int priority = 0;  // of what tenants have borrowed, that of the lowest priority is taken back first
};

struct Tenant {
  TenantId id;
  TenantTerms terms;
  bool open = true;                // it may get new reservations
  std::uint64_t reservations = 0;  // leased or idle
  MappedBytes mapped{};            // in these
  Bytes held{};                    // physical memory in these: mapped, or on its way in or out
  Bytes in_transit{};  // of that, what will be free or reclaimable when driver calls under way have returned

  /// What it holds beyond its guarantee.
  Bytes borrowed() const { return saturating_sub(held, terms.guaranteed); }
};

/// What belongs to no tenant is the default one's, which has no name, guarantee or limit. Not thread-safe:
/// the pool's lock guards it.
class Tenants {
 public:
  /// The one that owns what no tenant does.
  static constexpr TenantId nobody{0};
  static constexpr std::size_t most = 64;  // each has sums of half a MiB: see MappedBytes

  Tenants();

  /// Throws InvalidArgument where another has the name, or there are too many.
  void require_addable(const TenantTerms& terms) const;
  Tenant& add(const TenantTerms& terms);
  /// It gets no new reservations, and is forgotten when it has none left. Returns its guarantee, which ends.
  Bytes close(TenantId id) noexcept;
  /// The tenant, for a new reservation. Throws Closed where it has ended.
  Tenant& for_reservation(TenantId id);
  void count_reservation(Tenant& tenant, bool in) noexcept;

  /// Whether there is any but the default one.
  bool any() const noexcept { return all_.size() > 1; }
  const Tenant& operator[](TenantId id) const { return *all_.at(id.value); }
  const std::map<std::uint32_t, std::unique_ptr<Tenant>>& all() const noexcept { return all_; }

 private:
  void forget_if_unused(const Tenant& tenant) noexcept;

  std::map<std::uint32_t, std::unique_ptr<Tenant>> all_;
  std::uint32_t next_ = 0;  // never used again: bytes outlive their owner
};

}  // namespace vmm
