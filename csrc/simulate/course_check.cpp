// What must hold after every iteration, and when everything has come to rest.
#include <algorithm>
#include <set>
#include <string>
#include <tuple>

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

void Course::append_reachable(std::uint32_t slot, std::uint64_t before, std::uint64_t to,
                              std::vector<MemoryRange>& out) const {
  for (const SlotPart& part : parts_) {
    const std::uint64_t window = part.window.count == 0 ? ~std::uint64_t{0} : part.window.count;
    append(part, slot, before + 1 > window ? before + 1 - window : 0, to, out);
  }
}

bool Course::comes_into_a_page(std::uint64_t from, std::uint64_t to) const {
  return std::ranges::any_of(parts_, [&](const SlotPart& part) {
    return part.pages_for({reach(to)}) > part.pages_for({reach(from)});
  });
}

Bytes Course::kept_for(const Sequence& sequence, std::uint64_t length) const {
  Bytes sum;
  for (const SlotPart& part : parts_) {
    const Pages pages = part.pages_for({reach(length)}) - part.behind_window({sequence.computed});
    sum += part.page_bytes() * (pages.count * part.extents);
  }
  return sum;
}

/// What sequences share counts once.
Bytes Course::kept() const {
  Bytes sum;
  std::set<std::tuple<std::size_t, std::uint64_t, std::uint64_t>> seen;  // part, page and content
  for (const Sequence& sequence : running_) {
    sum += kept_for(sequence, sequence.length);
    for (std::size_t p = 0; p < sequence.shared.size(); ++p) {
      const SlotPart& part = parts_[p];
      const std::vector<std::uint64_t>& pages = sequence.shared[p];
      for (std::uint64_t page = part.behind_window({sequence.computed}).count; page < pages.size(); ++page)
        if (pages[page] != 0 && !seen.insert({p, page, pages[page]}).second)
          sum -= part.page_bytes() * part.extents;
    }
  }
  return sum;
}

Bytes Course::live() const {
  Bytes sum;
  for (const Sequence& sequence : running_)
    for (const SlotPart& part : parts_) sum += part.live({sequence.length});
  return sum;
}

void Course::check() {
  world_.check();
  world_.driver().check();
  const Pool& pool = *world_.pool();
  pool.check();
  const PoolStats stats = pool.stats();
  require_equal(world_.driver().created(), stats.created, "bytes that the driver created");
  require(stats.created <= ceiling_, "the budget is exceeded");
  ceiling_ = std::max(stats.budget, std::min(ceiling_, stats.created));
  require_equal(stats.kept, kept(), "bytes kept");
  require_equal(stats.mapped, stats.kept + stats.reclaimable, "bytes mapped: those kept and reclaimable");
  require(stats.mapped + stats.free <= stats.created, "more is mapped and free than was created");
  if (stats.retirements_waiting == 0)
    require_equal(stats.mapped + stats.free, stats.created, "bytes mapped and free");
  check_sequences();
}

void Course::check_sequences() {
  require(cache_->open_slots() == running_.size(), "open slots");
  require_equal(cache_->live(), live(), "live bytes");
  require(cache_->held() >= kept(), "less is held than kept");
  std::vector<MemoryRange> needed;
  for (const Sequence& sequence : running_) {
    require(cache_->length(sequence.slot).count == sequence.length, "a length");
    check_shared(sequence);
    require(cache_->previous_length(sequence.slot).count == sequence.previous, "a previous length");
    // The next step may be on top of a sequence that was cut back by one step.
    append_reachable(sequence.slot, std::min(sequence.previous, sequence.length), reach(sequence.length),
                     needed);
  }
  for (const Stream& stream : streams_) needed.insert(needed.end(), stream.uses.begin(), stream.uses.end());
  world_.driver().require_accessible(needed);
}

/// A step may be refused only if the sequences need too much, because everything that they do not need could
/// have been taken. This is checked only where nothing else
/// can explain the refusal.
void Course::check_refusal(const OutOfPages& error) const {
  require(error.figures().asked.count != 0, "refused, though nothing was asked for");
  if (!sure_) return;
  Bytes needed = kept();
  for (std::size_t i = 0; i < batch_.size(); ++i) {
    const Sequence& sequence = running_[batch_[i]];
    needed +=
        kept_for(sequence, static_cast<std::uint64_t>(lengths_[i])) - kept_for(sequence, sequence.length);
  }
  if (needed <= world_.pool()->budget().limit())
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
  while (!running_.empty()) close(running_.size() - 1);
  for (std::size_t i = 0; i < streams_.size(); ++i) end(i);
  for (const Stream& stream : streams_) world_.sleep_until(world_.driver().over_at(stream.handle));
  require(world_.settle(), "the pager never comes to rest");
  check();
  const PoolStats stats = world_.pool()->stats();
  require(stats.created <= stats.budget, "a budget that was lowered is never met");
  require(stats.retirements_waiting == 0, "what was retired was never unmapped");
  world_.pool()->trim({~std::uint64_t{0}}, true);
  require_equal(world_.driver().created(), {}, "bytes that cannot be given back");
  check();
  world_.driver().faults().go_on();
}

}  // namespace vmm
