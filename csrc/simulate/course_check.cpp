// What must hold after every iteration, and when everything has come to rest.
#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "simulate/course.h"

namespace vmm {
namespace {

void require(bool holds, const char* what) {
  if (!holds) throw InvariantViolation(what);
}

void require_equal(Bytes found, Bytes expected, const char* what) {
  if (found != expected)
    throw InvariantViolation(std::string(what) + ": " + std::to_string(found.count) + ", expected " +
                             std::to_string(expected.count));
}

}  // namespace

void Course::append(const SlotPart& part, std::uint32_t slot, std::uint64_t from, std::uint64_t to,
                    std::vector<MemoryRange>& out) {
  if (from >= to) return;
  const std::uint64_t first = part.first_extent + slot * part.extents;
  for (std::uint64_t i = first; i < first + part.extents; ++i)
    out.push_back({part.lease->base() + part.lease->shape().extent_bytes * i + part.record_bytes * from,
                   part.record_bytes * (to - from)});
}

void Course::append_reachable(const Sequence& sequence, std::uint64_t before, std::uint64_t to,
                              std::vector<MemoryRange>& out) const {
  for (const SlotPart& part : parts_of(sequence)) {
    const std::uint64_t window = part.window.count == 0 ? ~std::uint64_t{0} : part.window.count;
    append(part, sequence.slot, before + 1 > window ? before + 1 - window : 0, to, out);
  }
}

bool Course::comes_into_a_page(const Sequence& sequence, std::uint64_t from, std::uint64_t to) const {
  return std::ranges::any_of(parts_of(sequence), [&](const SlotPart& part) {
    return part.pages_for({reach(to)}) > part.pages_for({reach(from)});
  });
}

Bytes Course::kept_for(const Sequence& sequence, std::uint64_t length) const {
  Bytes sum;
  for (const SlotPart& part : parts_of(sequence)) {
    const Pages pages = part.pages_for({reach(length)}) - part.behind_window({sequence.computed});
    sum += part.page_bytes() * (pages.count * part.extents);
  }
  return sum;
}

/// By those that are awake. What sequences share counts once.
Bytes Course::kept_by(std::size_t cache) const {
  Bytes sum;
  std::vector<std::pair<std::uint64_t, Bytes>> shared;  // contents
  for (const Sequence& sequence : running_) {
    if (sequence.cache != cache || sequence.parked) continue;
    sum += kept_for(sequence, sequence.length);
    auto extent = sequence.shared.begin();
    for (const SlotPart& part : parts_of(sequence))
      for (std::uint64_t i = 0; i < part.extents && extent != sequence.shared.end(); ++i, ++extent)
        for (std::uint64_t page = part.behind_window({sequence.computed}).count; page < extent->size();
             ++page)
          if ((*extent)[page] != 0) shared.emplace_back((*extent)[page], part.page_bytes());
  }
  std::ranges::sort(shared);
  for (std::size_t i = 1; i < shared.size(); ++i)
    if (shared[i] == shared[i - 1]) sum -= shared[i].second;
  return sum;
}

Bytes Course::kept() const {
  Bytes sum;
  for (std::size_t cache = 0; cache < caches_.size(); ++cache) sum += kept_by(cache);
  return sum;
}

/// What the cache of the step would keep after it, beside what it keeps now.
Bytes Course::grown_by_step() const {
  Bytes sum;
  for (std::size_t i = 0; i < batch_.size(); ++i) {
    const Sequence& sequence = running_[batch_[i]];
    sum += kept_for(sequence, static_cast<std::uint64_t>(lengths_[i]));
    sum -= sequence.parked ? parked_bytes(sequence) : kept_for(sequence, sequence.length);
  }
  return sum;
}

void Course::check() {
  world_.check();
  if (tiers_ != nullptr) tiers_->check();
  forget_what_has_ended();
  world_.driver().check();
  const Pool& pool = *world_.pool();
  pool.check();
  const PoolStats stats = pool.stats();
  require_equal(world_.driver().created(), stats.created, "bytes that the driver created");
  require(stats.created <= ceiling_, "the budget is exceeded");
  ceiling_ = std::max(stats.budget, std::min(ceiling_, stats.created));
  require(stats.kept >= kept(), "less is kept than what sequences that are awake need");
  require(stats.kept <= kept_at_most(), "more is kept than sequences need");
  require_equal(stats.mapped, stats.kept + stats.reclaimable, "bytes mapped: those kept and reclaimable");
  require(stats.mapped + stats.free <= stats.created, "more is mapped and free than was created");
  if (stats.retirements_waiting == 0)
    require_equal(stats.mapped + stats.free, stats.created, "bytes mapped and free");
  for (std::size_t cache = 0; cache < caches_.size(); ++cache) check_cache(cache);
  check_sequences();
  check_tenants();
}

void Course::check_cache(std::size_t cache) {
  check_parked(cache);
  std::uint32_t open = 0;
  Bytes live;
  for (const Sequence& sequence : running_) {
    if (sequence.cache != cache) continue;
    ++open;
    for (const SlotPart& part : parts_of(sequence)) live += part.live({sequence.length});
  }
  const KvCache& kv = *caches_[cache].kv;
  require(kv.open_slots() == open, "open slots");
  require_equal(kv.live(), live, "live bytes");
  require(kv.held() >= kept_by(cache), "less is held than kept");
}

void Course::check_sequences() {
  std::vector<MemoryRange> needed;
  for (const Sequence& sequence : running_) {
    require(cache_of(sequence).length(sequence.slot).count == sequence.length, "a length");
    require(cache_of(sequence).previous_length(sequence.slot).count == sequence.previous,
            "a previous length");
    if (sequence.parked) continue;
    check_shared(sequence);
    // The next step may be on top of a sequence that was cut back by one step.
    append_reachable(sequence, std::min(sequence.previous, sequence.length), reach(sequence.length), needed);
  }
  for (const Stream& stream : streams_) needed.insert(needed.end(), stream.uses.begin(), stream.uses.end());
  world_.driver().require_accessible(needed);
}

/// A step may be refused only if the sequences need too much, because everything that they do not need could
/// have been taken. This is checked only where nothing else
/// can explain the refusal.
void Course::check_refusal(const OutOfPages& error) const {
  require(error.figures().asked.count != 0, "refused, though nothing was asked for");
  check_guarantee(error);
  if (!sure_) return;
  const Bytes needed = kept_at_most() + grown_by_step();
  const Owner& owner = owner_of(stepped_);
  if (needed <= world_.pool()->budget().limit() && may_keep(owner, kept_at_most(owner.id) + grown_by_step()))
    throw InvariantViolation("refused, though all that is needed are " + std::to_string(needed.count) +
                             " bytes: " + error.what());
}

/// No other stream may be using what this stream is about to write.
void Course::check_writes(std::size_t number) {
  for (std::size_t i = 0; i < streams_.size(); ++i)
    require(i == number || !overlap(streams_[i].uses, writes_),
            "an open epoch of another stream uses what is about to be written");
  world_.driver().require_unused(writes_, streams_[number].handle);
  if (!world_.pool()->reclaiming().refused()) world_.driver().require_sole(writes_);
}

void Course::rest_unguarded() {
  ++totals_.rests;
  world_.driver().faults().stop();
  if (tiers_ != nullptr) tiers_->stop();
  while (!running_.empty()) (void)close(running_.size() - 1);
  for (std::size_t i = 0; i < streams_.size(); ++i) end(i);
  for (const Stream& stream : streams_) world_.sleep_until(world_.driver().over_at(stream.handle));
  require(world_.settle(), "the pager never comes to rest");
  if (tiers_ != nullptr) rest_tiers();
  check();
  const PoolStats stats = world_.pool()->stats();
  require(stats.created <= stats.budget, "a budget that was lowered is never met");
  require(stats.retirements_waiting == 0, "what was retired was never unmapped");
  require_equal(stats.kept, {}, "bytes kept, though nobody is there");
  world_.pool()->trim({~std::uint64_t{0}}, true);
  require_equal(world_.driver().created(), {}, "bytes that cannot be given back");
  check();
  if (tiers_ != nullptr) tiers_->go_on();
  world_.driver().faults().go_on();
}

}  // namespace vmm
