#include "simulate/sim_tiers.h"

#include <utility>

#include "base/error.h"

namespace vmm {
namespace {

/// No number of a text: those are hashes, of which one in 2^16 is so large.
constexpr std::uint64_t first_garbage = 0xFFFF'0000'0000'0000;

}  // namespace

SimTiers::SimTiers(World& world, SimTiersOptions options)
    : world_(world),
      options_(std::move(options)),
      writes_(options_.writes),
      reads_(options_.reads),
      copies_(options_.copies) {}

/// The pager catches what is thrown in its thread, so a violation is kept for check().
void SimTiers::note(const std::string& violation) {
  if (violation_.empty()) violation_ = violation;
}

/// The same for who breaks a rule of the table of slots.
template <class Action>
auto SimTiers::noting(Action action) {
  try {
    return action();
  } catch (const InvalidArgument& error) {
    note(error.what());
    throw;
  }
}

void SimTiers::check() const {
  if (!violation_.empty()) throw InvariantViolation("tiers: " + violation_);
}

void SimTiers::serve(Bytes page_bytes, const std::function<void()>& on_end) {
  if (page_bytes == page_bytes_) return;
  if (page_bytes_.count != 0) throw InvalidArgument("page_bytes: the tiers have pages of another size");
  page_bytes_ = page_bytes;
  on_end_ = on_end;
  for (const SimTierOptions& each : options_.tiers) {
    Tier tier{SlotTable(each.slots), std::vector<SimPage>(each.slots), {}, {}};
    tier.writes = {world_.driver().create_stream(), each.written_bytes_per_second};
    tier.reads = {world_.driver().create_stream(), each.read_bytes_per_second};
    tiers_.push_back(std::move(tier));
  }
}

std::vector<TierPlace> SimTiers::take(std::uint32_t count) {
  std::vector<TierPlace> out;
  for (std::uint32_t i = 0; i < tiers_.size() && out.empty(); ++i)
    for (const TierSlot& slot : tiers_[i].table.take(std::min(count, tiers_[i].table.free())))
      out.push_back({i, slot});
  return out;
}

void SimTiers::give_back(const TierPlace& place) {
  noting([&] { tiers_.at(place.tier).table.give_back(place.slot); });
}

std::uint64_t SimTiers::free_places() const {
  std::uint64_t sum = 0;
  for (const Tier& tier : tiers_) sum += tier.table.free();
  return sum;
}

Outcome SimTiers::fate(TransferKind kind) {
  if (kind == TransferKind::write) return writes_.fails() ? Outcome::failed : Outcome::done;
  if (reads_.fails()) return Outcome::failed;
  return copies_.fails() ? Outcome::corrupt : Outcome::done;
}

bool SimTiers::submit(TransferKind kind, const TierPlace& place, std::byte* memory, std::uint64_t tag) {
  if (closed_) throw Closed("the tiers are closed");
  Tier& tier = tiers_.at(place.tier);
  if (tier.writes.moving.size() + tier.reads.moving.size() >= options_.tiers[place.tier].pending)
    return false;
  noting([&] { tier.table.begin(place.slot, kind); });
  const bool writes = kind == TransferKind::write;
  Lane& lane = writes ? tier.writes : tier.reads;
  SimDriver& driver = world_.driver();
  Moving moving{kind, place.slot, address_of(memory), tag, fate(kind), {}, {}};
  const MemoryRange page{moving.address, page_bytes_};
  try {
    driver.require_unused(std::span(&page, 1), lane.stream);
    moving.seen = driver.look_at(moving.address);
  } catch (const InvariantViolation& error) {
    note(error.what());
  }
  const double seconds = static_cast<double>(page_bytes_.count) / lane.bytes_per_second;
  driver.run(lane.stream,
             Nanoseconds{static_cast<Nanoseconds::rep>(1e9 * seconds)} + (writes ? writes_ : reads_).delay(),
             {page});
  moving.over_at = driver.over_at(lane.stream);
  lane.moving.push_back(std::move(moving));
  world_.at(lane.moving.back().over_at, on_end_);
  return true;
}

/// Nobody may have written to the page, or replaced it, until the transfer has been collected.
void SimTiers::require_untouched(const Moving& moving) {
  try {
    const SimDriver::Seen now = world_.driver().look_at(moving.address);
    if (now.page != moving.seen.page) note("another page lay where one was being copied");
    if (now.contents.changes() != moving.seen.contents.changes())
      note("a page was written while it was being copied");
  } catch (const InvariantViolation& error) {
    note(error.what());
  }
}

void SimTiers::finish(Tier& tier, const Moving& moving) {
  require_untouched(moving);
  SimPage& slot = tier.contents[moving.slot.index];
  if (moving.kind == TransferKind::write) {
    if (moving.outcome == Outcome::done) slot.take(moving.seen.contents);
    tier.written += page_bytes_;
  } else if (moving.outcome == Outcome::done) {
    world_.driver().fill(moving.address, slot);
    tier.read += page_bytes_;
  } else {
    SimPage garbage;
    garbage.write({}, page_bytes_, first_garbage + ++garbage_);
    world_.driver().fill(moving.address, garbage);
    unread_.insert(moving.address);
  }
  tier.table.end(moving.slot, moving.kind, moving.outcome, 0);
}

std::size_t SimTiers::poll(std::span<Ended> out) {
  const Nanoseconds now = world_.driver().clock().now();
  std::size_t count = 0;
  for (Tier& tier : tiers_)
    for (Lane* lane : {&tier.writes, &tier.reads})
      while (count < out.size() && !lane->moving.empty() && lane->moving.front().over_at <= now) {
        const Moving moving = std::move(lane->moving.front());
        lane->moving.pop_front();
        finish(tier, moving);
        out[count++] = {moving.tag, moving.outcome};
      }
  if (count != 0) world_.driver().learn_what_is_over();
  return count;
}

TierFigures SimTiers::figures(std::uint32_t number) const {
  const Tier& tier = tiers_.at(number);
  TierFigures out;
  out.slots = tier.table.size();
  out.free = tier.table.free();
  out.quarantined = tier.table.quarantined();
  out.pending = tier.writes.moving.size() + tier.reads.moving.size();
  out.written = tier.written;
  out.read = tier.read;
  return out;
}

bool SimTiers::close(Nanoseconds) {
  if (std::exchange(closed_, true)) return true;
  for (Tier& tier : tiers_)
    for (Lane* lane : {&tier.writes, &tier.reads}) world_.driver().destroy_stream(lane->stream);
  return true;
}

/// A slot that is given back in the middle of a transfer is somebody's until that ends.
std::uint64_t SimTiers::used() const {
  std::uint64_t sum = 0;
  for (const Tier& tier : tiers_) sum += tier.table.size() - tier.table.free() - tier.table.quarantined();
  return sum;
}

std::uint64_t SimTiers::pending() const {
  std::uint64_t sum = 0;
  for (const Tier& tier : tiers_) sum += tier.writes.moving.size() + tier.reads.moving.size();
  return sum;
}

void SimTiers::stop() {
  writes_.stop();
  reads_.stop();
  copies_.stop();
}

void SimTiers::go_on() {
  writes_.go_on();
  reads_.go_on();
  copies_.go_on();
}

void SimTiers::mend() {
  if (used() != 0) throw InvariantViolation("tiers: slots are still somebody's");
  for (std::uint32_t i = 0; i < tiers_.size(); ++i) tiers_[i].table = SlotTable(options_.tiers[i].slots);
}

}  // namespace vmm
