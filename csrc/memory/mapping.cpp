#include "memory/mapping.h"

#include <algorithm>
#include <string>
#include <utility>

#include "base/error.h"
#include "memory/waiting.h"

namespace vmm {

/// Memory that a call has created which then fails for want of more. It goes back to the full device, where
/// others need it.
class Mapping::CreatedInVain {
 public:
  CreatedInVain(Mapping& mapping, Lock& lock) : mapping_(mapping), lock_(lock) {}
  ~CreatedInVain() {
    if (size_.count == 0) return;
    const Unlocked outside(lock_);
    try {
      mapping_.reclaiming_.release_free(size_);
    } catch (const std::exception& error) {  // What the driver refuses stays here, free.
      mapping_.ground_.log.write(LogLevel::warning, "release: ", error.what());
    }
  }
  CreatedInVain(const CreatedInVain&) = delete;
  CreatedInVain& operator=(const CreatedInVain&) = delete;

  void add(Bytes size) { size_ += size; }
  void stay() noexcept { size_ = {}; }

 private:
  Mapping& mapping_;
  Lock& lock_;
  Bytes size_;
};

MapResult Mapping::map(Reservation& reservation, std::span<const PageRange> ranges,
                       const MapOptions& options) {
  ground_.require_parent();
  MapResult result;
  Wait wait(ground_, "memory that is coming arrives, and others have mapped or unmapped what is wanted here");
  Lock lock(ground_.mutex);
  RaisedNeeds raised(ground_, reservation, options.need);
  CreatedInVain in_vain(*this, lock);
  bool refused = false;  // The device has refused to create more.
  for (;;) {
    Attempt tried;
    try {
      attempt(lock, ranges, options, reservation, raised, tried);
    } catch (const MappingLimit&) {
      const Unlocked outside(lock);
      if (!reclaiming_.relieve_mappings(options.need, wait)) throw;
      continue;
    } catch (const DriverOutOfMemory& error) {
      note_refusal(reservation.tenant, tried, error);
      in_vain.add(tried.created);
      refused = true;
      continue;  // The next attempt finds a budget that is as short.
    }
    if (tried.over_quota) {
      reclaiming_.await_room(lock, reservation.tenant, *tried.over_quota, options.need, wait);
      continue;
    }
    if (tried.shortage) {
      make_room(lock, reservation.tenant, tried, options.need, !refused, wait);
      continue;
    }
    result.mapped += tried.mapped;
    if (!tried.blocked || !options.wait) break;
    result.waited = true;
    await_others(lock, reservation, ranges, wait);
  }
  raised.stay();
  in_vain.stay();
  return result;
}

/// The caller holds the lock, which this lets go of while it calls the driver.
void Mapping::attempt(Lock& lock, std::span<const PageRange> ranges, const MapOptions& options,
                      Reservation& reservation, RaisedNeeds& raised, Attempt& tried) {
  // 1. Decide, and claim all that is missing or nothing.
  ground_.require_open();
  reservation.check(ranges);
  tried.over_quota = over_quota(reservation, ranges, options);
  if (tried.over_quota) return;
  Claims claims(ground_, tables_, reservation);
  tried.blocked = options.source.reservation == nullptr ? claim(ranges, options, raised, claims)
                                                        : claim_aliases(ranges, options, raised, claims);
  tried.asked = claims.size();
  tried.to_create = claims.to_create();
  raised.reserve(claims.pages().size());
  if (!claims.pay(options.need)) {
    tried.shortage = shortage(claims, options.need);  // What would help this call is claimed, so not free.
    claims.put_back();
    tried.shortage->freed = tables_.physical().freed();
  }
  if (claims.empty()) return;
  // 2. Drive, without the lock.
  {
    const Unlocked outside(lock);
    drive(claims, options, tried);
  }
  // 3. Commit.
  raised.add(claims.pages());
  tried.mapped = Pages{claims.pages().size()};
  claims.commit(options.need);
  if (const Bytes created = claims.created(); created.count != 0) {
    created_.page_bytes = reservation.shape.page_bytes;
    created_.size += created;
    ground_.counters.pages_created.add(created / created_.page_bytes);
  }
  if (options.need == Need::none) ground_.signals.note_idle();
}

/// What the tenant would be charged, where that is more than it may be. Pages that share the memory of
/// others, which somebody keeps, cost nothing.
std::optional<Bytes> Mapping::over_quota(const Reservation& reservation, std::span<const PageRange> ranges,
                                         const MapOptions& options) {
  const Quotas& quotas = reclaiming_.quotas();
  if (!quotas.any() || options.source.reservation != nullptr) return {};
  const Bytes price = quotas.price(reservation, ranges, options.need, options.at_most);
  if (price.count == 0) return {};
  const Tenant& tenant = reservation.tenant;
  const std::int64_t room =
      options.need == Need::kept ? quotas.room(tenant) : quotas.room_for(tenant, options.need);
  if (room < static_cast<std::int64_t>(price.count)) return price;
  if (options.need == Need::kept) tables_.note_admission(quotas.admitted_under());
  return {};
}

/// Claims what is Unmapped, and raises the need for what is Resident already, so that making room for the
/// rest does not take that. Returns whether others are in the way.
bool Mapping::claim(std::span<const PageRange> ranges, const MapOptions& options, RaisedNeeds& raised,
                    Claims& claims) {
  Reservation& reservation = claims.reservation();
  bool blocked = false;
  for (PageIndex page : each_page(ranges)) {
    const VirtualPage& entry = reservation.table[page];
    if (entry.state == VirtualState::retiring && options.wait) tables_.rescue(reservation, page);
    if (entry.state == VirtualState::unmapped) {
      if (claims.pages().size() == options.at_most.count) break;
      blocked |= !claims.add(page);
    } else if (entry.state != VirtualState::resident) {
      blocked = true;
    } else if (entry.need < options.need) {
      raised.raise(page);
    }
  }
  return blocked;
}

/// The same for pages that get the memory of others.
bool Mapping::claim_aliases(std::span<const PageRange> ranges, const MapOptions& options, RaisedNeeds& raised,
                            Claims& claims) {
  const SourcePages& source = options.source;
  const Reservation& reservation = claims.reservation();
  Reservation& from = *tables_.reservations().at(source.reservation->id.value);
  from.check(source.ranges);
  if (from.shape.kind != reservation.shape.kind || from.shape.page_bytes != reservation.shape.page_bytes)
    throw InvalidArgument("source: expected pages of the same kind and size");
  if (&from.tenant != &reservation.tenant) throw InvalidArgument("source: expected pages of the same tenant");
  std::vector<PageIndex> sources;
  for (PageIndex page : each_page(source.ranges)) sources.push_back(page);
  bool blocked = false;
  std::size_t i = 0;
  for (PageIndex page : each_page(ranges)) {
    if (i == sources.size()) throw InvalidArgument("source: expected as many pages as are to be mapped");
    const Alias origin{&from, sources[i++]};
    const VirtualPage& entry = reservation.table[page];
    const VirtualPage& original = from.table[origin.page];
    if (!original.kept()) throw InvalidArgument("source: expected pages that are kept");
    if (entry.state == VirtualState::unmapped)
      claims.add_alias(page, origin);
    else if (entry.state != VirtualState::resident)
      blocked = true,
      (void)tables_.retired().fence_of(reservation, page, true);  // throws where it never ends
    else if (entry.content != original.content)
      throw InvalidArgument("ranges: expected pages that are not mapped");
    else if (entry.need < options.need)
      raised.raise(page);
  }
  return blocked;
}

Shortage Mapping::shortage(const Claims& claims, Need need) const {
  const Bytes lacking = std::max(saturating_sub(claims.to_create(), tables_.allowance().left()),
                                 claims.reservation().shape.page_bytes);
  Shortage shortage{claims.to_create(), lacking, {}, {}, 0};
  if (need == Need::none) return shortage;  // Nothing may be reclaimed for this.
  shortage.nobodys = tables_.physical().some_free(lacking, false);
  shortage.strays = tables_.physical().some_free(lacking, true);
  return shortage;
}

void Mapping::drive(Claims& claims, const MapOptions& options, Attempt& tried) {
  try {
    ground_.driver->together([&] {
      claims.map();
      zero_claims(claims, options);
    });
  } catch (...) {
    claims.unmap();
    tried.created = claims.created();
    ground_.counters.driver_failures.add();
    throw;
  }
}

void Mapping::zero_claims(const Claims& claims, const MapOptions& options) {
  const Reservation& reservation = claims.reservation();
  const Bytes page_bytes = reservation.shape.page_bytes;
  std::vector<MemoryRange> ranges;
  auto append = [&](Address start, Bytes size) {
    if (!ranges.empty() && ranges.back().start + ranges.back().size == start)
      ranges.back().size += size;
    else
      ranges.push_back({start, size});
  };
  auto skip = options.overwritten.begin();
  for (const Claim& claim : claims.pages()) {
    if (!claim.zero) continue;
    Bytes at = page_bytes * claim.page.value;
    const Bytes end = at + page_bytes;
    while (skip != options.overwritten.end() && skip->offset + skip->size <= at) ++skip;
    for (auto next = skip; at < end; ++next) {
      const bool none = next == options.overwritten.end() || next->offset >= end;
      const Bytes stop = none ? end : std::max(at, next->offset);
      if (stop > at) append(reservation.addresses.base() + at, stop - at);
      if (none) break;
      at = next->offset + next->size;
    }
    ground_.counters.pages_zeroed.add();
  }
  if (!ranges.empty()) ground_.driver->zero(ranges, {});
}

/// Remembers that the device would not create so much. Throws OutOfPages where it refused something else,
/// because no room that could be made would help.
void Mapping::note_refusal(const Tenant& tenant, const Attempt& tried, const DriverOutOfMemory& error) {
  if (tried.created == tried.to_create) {
    MemoryFigures figures = reclaiming_.figures(tried.asked, tenant);
    figures.refused = error.what();
    throw OutOfPages(figures, "");
  }
  tables_.allowance().refused_by_device(error.what());
  ground_.log.write(LogLevel::info, "the device has less than the budget allows: ", error.what());
}

void Mapping::make_room(Lock& lock, const Tenant& tenant, const Attempt& tried, Need need,
                        bool ask_device_again, Wait& wait) {
  if (need == Need::none)
    throw OutOfPages(reclaiming_.figures(tried.asked, tenant), "nothing may be reclaimed for this");
  const Unlocked outside(lock);
  try {
    reclaiming_.make_room(tried.asked, tenant, *tried.shortage, need, wait);
  } catch (const OutOfPages& error) {
    // The device may have now what it refused somebody a while ago: whoever must have it asks again.
    if (!ask_device_again || need != Need::kept || error.figures().refused.empty()) throw;
    reclaiming_.forget_device_limit();
  }
}

void Mapping::await_others(Lock& lock, const Reservation& reservation, std::span<const PageRange> ranges,
                           Wait& wait) {
  {
    const Unlocked outside(lock);
    reclaiming_.drain_retired(true);  // The driver may now unmap what it has refused before.
  }
  for (;; reclaiming_.pause(lock, wait)) {
    bool blocked = tables_.physical().releasing() != 0;
    for (PageIndex page : each_page(ranges)) {
      const VirtualState state = reservation.table[page].state;
      blocked |= state == VirtualState::mapping || state == VirtualState::retiring;
      if (state == VirtualState::retiring) tables_.retired().require_not_refused(reservation, page);
      if (blocked) break;
    }
    if (!blocked) return;
  }
}

}  // namespace vmm
