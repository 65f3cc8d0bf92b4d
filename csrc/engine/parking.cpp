// What the owners of parked units ask for. What the pager does about it is in parking_moves.cpp, and what
// that calls.
#include "engine/parking.h"

#include <algorithm>
#include <new>
#include <utility>

#include "base/error.h"
#include "base/undo.h"
#include "engine/pager.h"
#include "engine/parking_needs.h"
#include "policy/eviction/eviction_policies.h"

namespace vmm {
namespace {

constexpr Bytes bytes_in_flight = 32_MiB;     // a few milliseconds' worth: what is urgent waits behind them
constexpr std::uint64_t least_in_flight = 8;  // pages

}  // namespace

std::shared_ptr<Parking> Parking::make(std::shared_ptr<Pager> pager, std::unique_ptr<Tiers> tiers,
                                       const std::string& policy) {
  return share(std::make_shared<Parking>(std::move(pager), std::move(tiers), policy));
}

Parking::Parking(std::shared_ptr<Pager> pager, std::unique_ptr<Tiers> tiers, const std::string& policy)
    : pager_(std::move(pager)),
      tiers_(std::move(tiers)),
      policy_(make_eviction_policy(policy, pager_->pool().budget().limit())) {}

Pool& Parking::pool() const noexcept { return pager_->pool(); }

void Parking::close() noexcept {
  if (shut(std::chrono::seconds(5))) return;
  // A tier hangs. What it copies is left to the process.
  undo_or_leak([&] {
    const std::lock_guard lock(mutex_);
    auto left = std::make_unique<std::vector<std::shared_ptr<void>>>();
    for (const auto& [id, one] : units_)
      if (one.moving != 0) left->push_back(one.owner);
    static_cast<void>(left.release());
  });
}

bool Parking::shut(Nanoseconds patience) {
  {
    const std::lock_guard lock(mutex_);
    shut_ = true;
  }
  return tiers_->close(patience);
}

void Parking::notify() {
  try {
    pager_->notify(*this);
  } catch (const std::bad_alloc&) {  // whoever waits notifies it again
  }
}

void Parking::serve(Bytes page_bytes) {
  tiers_->serve(page_bytes, [self = self_] {
    if (const std::shared_ptr<Growing> growing = self.lock()) static_cast<Parking&>(*growing).notify();
  });
  const std::lock_guard lock(mutex_);
  rates_.resize(tiers_->count());
  page_bytes_ = page_bytes;
  most_in_flight_ =
      static_cast<std::uint32_t>(std::max<std::uint64_t>(least_in_flight, bytes_in_flight / page_bytes));
}

UnitId Parking::add(std::shared_ptr<void> owner) {
  const std::lock_guard lock(mutex_);
  const UnitId id{++last_unit_};
  units_.emplace(id, Unit{.owner = std::move(owner)});
  return id;
}

std::uint32_t Parking::label_of(const std::string& category) {
  if (category.empty()) return 0;
  return labels_.emplace(category, static_cast<std::uint32_t>(labels_.size() + 1)).first->second;
}

void Parking::park(UnitId id, std::vector<ParkedPage> pages, Fence until, const ParkHint& hint) {
  {
    const std::lock_guard lock(mutex_);
    Unit& one = unit(id);
    carry_copies(one, std::move(pages));
    enter_policy(id, one, hint);
    one.until = std::move(until);
    one.spare = one.stuck = one.urgent = one.no_memory = false;
    one.next = 0;
    put_back(one);
    one.phase = Phase::idle;
    any_parked_ = true;
  }
  notify();
}

void Parking::enter_policy(UnitId id, const Unit& one, const ParkHint& hint) {
  policy_->access(id, {.at = pool().clock().now(),
                       .size = page_bytes_ * one.pages.size(),
                       .priority = hint.priority,
                       .label = label_of(hint.category),
                       .whole_sequence = true,
                       .new_blocks = static_cast<std::uint32_t>(hint.new_tokens),
                       .guess = hint.idle});
}

/// What has been cleaned is needed by nobody; the rest is kept.
void Parking::put_back(Unit& one) {
  set_aside(one, [](const Page& page) { return page.copied && !page.moving; });
}

bool Parking::mapped(const Pool::Needs& needs, const Page& page) {
  return needs.resident(*page.at.reservation, {page.at.page, {1}}).count == 1;
}

/// Whether the unit's bytes are there.
bool Parking::resident(const Pool::Needs& needs, const Page& page) {
  return !page.foreign && needs.used(*page.at.reservation, {page.at.page, {1}}).count == 1;
}

bool Parking::away(const Unit& one) {
  const Pool::Needs needs(pool());
  return !std::ranges::all_of(one.pages, [&](const Page& page) { return resident(needs, page); });
}

bool Parking::there(UnitId id) {
  const std::lock_guard lock(mutex_);
  const Unit& one = unit(id);
  if (one.phase == Phase::running) return true;
  return one.phase != Phase::loading && !away(one);
}

Presence Parking::want(UnitId id, Nanoseconds by, bool urgent) {
  bool news = true;
  {
    const std::lock_guard lock(mutex_);
    Unit& one = unit(id);
    if (urgent && std::exchange(one.no_memory, false)) return Presence::no_memory;
    if (urgent && one.phase == Phase::idle && one.failure)
      std::rethrow_exception(std::exchange(one.failure, nullptr));
    // Who was wanted before keeps its turn, also when others have taken its pages since.
    const Nanoseconds turn = one.phase == Phase::idle ? by : std::min(one.by, by);
    const bool taken = one.phase == Phase::there && !one.urgent && away(one);  // by others, since it came
    const bool anew = one.phase == Phase::idle || taken || (one.phase == Phase::there && one.urgent < urgent);
    if (anew) {
      one.phase = Phase::wanted;
      leave_policy(id);
    }
    // A scheduler asks anew in each iteration for all that wait. The pager need not hear of it each time.
    news = anew || urgent || turn != one.by;
    one.by = turn;
    one.urgent |= urgent;
    if (anew && urgent && one.moving == 0) begin_load(one);
    if (one.phase == Phase::there && one.moving == 0) return Presence::there;
    if (shut_ && urgent) throw Closed("this pool is closed");  // nothing will come any more
  }
  if (news) notify();
  return Presence::coming;
}

/// The unit is no victim while it is wanted, or runs, but it will come back.
void Parking::leave_policy(UnitId id) {
  if (policy_->holds(id)) policy_->evicted(id);
}

void Parking::unwant(UnitId id) {
  const std::lock_guard lock(mutex_);
  Unit& one = unit(id);
  one.urgent = one.no_memory = false;
  if (one.phase != Phase::loading) one.failure = nullptr;
  if (one.phase == Phase::wanted) one.phase = Phase::idle;
  if (one.phase != Phase::there) return;  // what is being loaded is finished first
  one.phase = Phase::idle;
  put_back(one);
}

std::optional<Tokens> Parking::take(UnitId id, Tokens length) {
  const std::lock_guard lock(mutex_);
  Unit& one = unit(id);
  one.phase = Phase::running;
  one.spare = one.urgent = one.no_memory = false;
  leave_policy(id);
  const Tokens good = one.lost ? std::min(*one.lost, length) : length;
  for (Page& page : one.pages) {
    page.away = page.mapped = false;
    if (page.at.complete > good) forget_copy(page);
  }
  return std::exchange(one.lost, std::nullopt);
}

void Parking::cut(UnitId id, Tokens to) {
  const std::lock_guard lock(mutex_);
  for (Page& page : unit(id).pages)
    if (page.at.complete > to) forget_copy(page);
}

bool Parking::forget(UnitId id) {
  std::shared_ptr<void> owner;  // ends without the lock
  const std::lock_guard lock(mutex_);
  const auto found = units_.find(id);
  if (found == units_.end()) return true;
  Unit& one = found->second;
  policy_->forget(id);
  one.phase = Phase::forgotten;
  if (one.moving != 0 || one.mapping) return false;
  owner = erase(id);
  return true;
}

/// Whoever has its place next may look for its tokens there. Not in what was mapped to be read and was not,
/// and not in what was lost.
void Parking::unmap_foreign(const Unit& one) {
  unmap(one, [&](const Page& page) {
    return page.away || page.foreign || (one.lost && page.at.first >= *one.lost);
  });
}

/// Nothing is known of the unit from now on. Returns its owner, whose end takes locks.
std::shared_ptr<void> Parking::erase(UnitId id) {
  const auto found = units_.find(id);
  Unit& one = found->second;
  unmap_foreign(one);
  if (one.spare) set_need(one, every, Need::none);
  for (Page& page : one.pages) forget_copy(page);
  std::erase(cleaning_, id);
  if (cleaning_.empty()) give_back_places();
  std::shared_ptr<void> owner = std::move(one.owner);
  units_.erase(found);
  any_parked_ = !units_.empty();
  return owner;
}

void Parking::waited(Nanoseconds time) {
  const std::lock_guard lock(mutex_);
  figures_.waited += time;
}

ParkingFigures Parking::figures() {
  const std::lock_guard lock(mutex_);
  ParkingFigures out = figures_;
  out.page_bytes = page_bytes_;
  for (const auto& [id, one] : units_) {
    if (cleanable(one) && !one.stuck) out.dirty += one.dirty;
    out.parked += one.phase != Phase::running && one.phase != Phase::forgotten && !one.spare;
  }
  return out;
}

}  // namespace vmm
