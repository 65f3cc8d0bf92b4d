// Whose the caches of a course are, and what each tenant has been promised.
#include <algorithm>
#include <string>

#include "base/error.h"
#include "simulate/course.h"

namespace vmm {
namespace {

void require(bool holds, const std::string& who, const char* what) {
  if (!holds) throw InvariantViolation(who + ": " + what);
}

/// The part of `range` that lies within `within`.
MemoryRange clipped(const MemoryRange& range, const MemoryRange& within) {
  const Address start = std::max(range.start, within.start);
  const Address end = std::min(range.start + range.size, within.start + within.size);
  return {start, end > start ? end - start : Bytes{}};
}

}  // namespace

void Course::open_cache(Cache& cache) {
  for (const CoursePart& part : options_.parts) {
    std::shared_ptr<Lease> lease;
    lease = world_.pool()->reserve({.page_bytes = part.page_bytes,
                                    .extent_bytes = extent_bytes(options_, part),
                                    .extents = part.extents * options_.slots,
                                    .tenant = owners_[cache.owner].id});
    cache.parts.push_back({std::move(lease), 0, part.extents, part.record_bytes, part.window});
  }
  KvCacheOptions options = options_.cache;
  options.parking = parking_;
  cache.kv = std::make_unique<KvCache>(world_.pager(), cache.parts, options_.slots, options);
}

/// Adds the tenant, unless others keep what it is to be guaranteed. Its caches are nobody's then.
void Course::begin_tenant(std::size_t number) {
  Owner& owner = owners_[number];
  if (number != 0) {
    const TenantTerms& terms = options_.tenants[number - 1];
    try {
      owner = {terms, world_.pool()->tenancies().add(terms)};
      ++totals_.tenants;
    } catch (const OutOfPages&) {
      ++totals_.refused;
      require(world_.pool()->reclaiming().refused() ||
                  promised() + moving() + terms.guaranteed > world_.pool()->budget().limit(),
              terms.name, "refused, though the budget covers its guarantee");
    } catch (const InvalidArgument&) {
      ++totals_.refused;
      if (guaranteed() + terms.guaranteed <= world_.pool()->budget().limit()) throw;
    }
  }
  for (Cache& cache : caches_)
    if (cache.owner == number) open_cache(cache);
}

/// Ends the tenant with its caches, and begins it anew.
void Course::end_tenant(std::size_t number) {
  for (std::size_t i = 0; i < streams_.size(); ++i) end(i);
  if (std::ranges::any_of(streams_, &Stream::open)) return;
  for (std::size_t i = running_.size(); i-- > 0;)
    if (caches_[running_[i].cache].owner == number && !close(i)) return;
  for (Cache& cache : caches_) {
    if (cache.owner != number) continue;
    for (Left& left : left_)
      if (left.cache == static_cast<std::size_t>(&cache - caches_.data())) left.cache.reset();
    cache.kv.reset();
    cache.parts.clear();
  }
  Owner& owner = owners_[number];
  if (owner.id != Tenants::nobody) world_.pool()->tenancies().end(owner.id);
  owner = {};
  begin_tenant(number);
}

Bytes Course::kept(TenantId tenant) const {
  Bytes sum;
  for (std::size_t cache = 0; cache < caches_.size(); ++cache)
    if (owner_of(cache).id == tenant) sum += kept_by(cache);
  return sum;
}

Bytes Course::guaranteed() const {
  Bytes sum;
  for (const Owner& owner : owners_) sum += owner.terms.guaranteed;
  return sum;
}

/// What the budget has to cover for all tenants but one.
Bytes Course::promised(const Owner* but) const {
  Bytes sum;
  for (std::size_t i = 0; i < owners_.size(); ++i)
    if (&owners_[i] != but && (i == 0 || owners_[i].id != Tenants::nobody))
      sum += std::max(owners_[i].terms.guaranteed, figures(owners_[i]).charged);
  return sum;
}

/// Whether the owner may keep so much, once what nobody keeps may be had.
bool Course::may_keep(const Owner& owner, Bytes size) const {
  if (size > owner.terms.limit) return false;
  Bytes sum = std::max(owner.terms.guaranteed, size);
  for (std::size_t i = 0; i < owners_.size(); ++i)
    if (owners_[i].id != owner.id && (i == 0 || owners_[i].id != Tenants::nobody))
      sum += std::max(owners_[i].terms.guaranteed, kept_at_most(owners_[i].id));
  return sum <= world_.pool()->budget().limit();
}

/// What sequences of the owner keep, and what work that is not over may touch of its caches.
std::vector<MemoryRange> Course::memory_in_use(const Owner& owner) {
  std::vector<MemoryRange> used = world_.driver().used(), out;
  for (const Stream& stream : streams_) used.insert(used.end(), stream.uses.begin(), stream.uses.end());
  for (const Sequence& sequence : running_) {
    if (owner_of(sequence.cache).id != owner.id || sequence.parked) continue;
    for (const SlotPart& part : parts_of(sequence)) {
      std::vector<PageRange> pages;
      part.append_pages(sequence.slot, part.behind_window({sequence.computed}),
                        part.pages_for({reach(sequence.length)}), pages);
      for (const PageRange& each : pages)
        used.push_back({part.lease->base() + part.page_bytes() * each.first.value,
                        part.page_bytes() * each.count.count});
    }
  }
  for (const Cache& cache : caches_) {
    if (owners_[cache.owner].id != owner.id) continue;
    for (const SlotPart& part : cache.parts)
      for (const MemoryRange& range : used)
        if (const MemoryRange own = clipped(range, {part.lease->base(), part.lease->size()});
            own.size.count != 0)
          out.push_back(own);
  }
  return out;
}

/// Each byte that a tenant keeps, or that work of it may still touch, is charged to it once; no tenant is
/// charged more than its limit, nor all together more than the budget covers.
void Course::check_tenants() {
  if (owners_.size() == 1) return;
  Bytes sum;
  for (std::size_t i = 0; i < owners_.size(); ++i) {
    const Owner& owner = owners_[i];
    if (i != 0 && owner.id == Tenants::nobody) continue;
    const std::string who = i == 0 ? "nobody" : owner.terms.name;
    const TenantFigures found = figures(owner);
    require(found.kept >= kept(owner.id) && found.kept <= kept_at_most(owner.id), who,
            "it does not keep what it should");
    require(found.charged >= found.kept && found.charged <= found.held, who,
            "its charge is not between what it keeps and what it holds");
    require(found.charged >= world_.driver().bytes_under(memory_in_use(owner)), who,
            "it is not charged for all that it keeps or uses");
    if (!world_.pool()->reclaiming().refused())
      require(found.charged <= owner.terms.limit, who, "it is charged more than its limit");
    sum += std::max(owner.terms.guaranteed, found.charged);
  }
  // When the last tenant is gone, what is mapped may be kept again although the budget was lowered.
  const Reclaiming& reclaiming = world_.pool()->reclaiming();
  if (!reclaiming.charges_for_mapped()) promised_ceiling_ = std::max(promised_ceiling_, sum);
  if (!reclaiming.refused())
    require(sum <= promised_ceiling_, "all tenants", "the budget does not cover what is promised");
  promised_ceiling_ = std::max(world_.pool()->budget().limit(), std::min(promised_ceiling_, sum));
}

/// A tenant gets what it is guaranteed, whatever others do: only its own work may be in the way.
void Course::check_guarantee(const OutOfPages& error) const {
  const Owner& owner = owner_of(stepped_);
  if (!undisturbed_ || owner.id == Tenants::nobody) return;
  const Bytes needed = figures(owner).charged + kept_at_most(owner.id) - kept(owner.id) + grown_by_step();
  if (needed <= owner.terms.guaranteed && promised() <= world_.pool()->budget().limit())
    throw InvariantViolation(owner.terms.name + " was refused " + std::to_string(needed.count) +
                             " bytes, of a guarantee of " + std::to_string(owner.terms.guaranteed.count) +
                             ": " + error.what());
}

}  // namespace vmm
