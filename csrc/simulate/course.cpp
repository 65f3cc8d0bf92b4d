#include "simulate/course.h"

#include <algorithm>
#include <string>
#include <utility>

#include "base/error.h"
#include "simulate/course_tries.h"

namespace vmm {
namespace {

using namespace std::chrono_literals;

constexpr std::uint64_t iterations_between_rests = 300;

}  // namespace

Course::Course(CourseOptions options)
    : options_(std::move(options)),
      random_(options_.seed),
      world_(world_options(options_)),
      owners_(1 + options_.tenants.size()),
      ceiling_(options_.budget),
      promised_ceiling_(options_.budget) {
  if (options_.tiers) {
    auto tiers = std::make_unique<SimTiers>(world_, options_.tiers->sim);
    tiers_ = tiers.get();
    parking_ = Parking::make(world_.pager(), std::move(tiers), options_.tiers->policy);
  }
  for (std::size_t owner : options_.owners) caches_.push_back({owner});
  for (std::size_t owner = 0; owner < owners_.size(); ++owner) begin_tenant(owner);
  for (std::uint32_t i = 0; i < options_.streams; ++i)
    streams_.push_back({world_.driver().create_stream(), false, {}});
  world_.driver().faults().go_on();
}

Course::~Course() {
  world_.driver().faults().stop();
  for (Cache& cache : caches_) cache.kv.reset();
  caches_.clear();
  parking_.reset();
}

CourseTotals Course::totals() const {
  CourseTotals out = totals_;
  const Counters& counters = world_.pool()->counters();
  out.pages_mapped = counters.pages_mapped_ahead.get() + counters.pages_mapped_waiting.get();
  if (tiers_ != nullptr) {
    const ParkingFigures figures = parking_->figures();
    out.pages_out = figures.cleaned;
    out.pages_back = figures.loaded;
    out.tier_failures = tiers_->failures();
  }
  out.stalled += Nanoseconds{static_cast<Nanoseconds::rep>(counters.stall_ns.get())};
  return out;
}

template <class Action>
void Course::guarded(Action action) {
  try {
    action();
  } catch (const std::exception& error) {
    throw InvariantViolation("seed " + std::to_string(options_.seed) + ", iteration " +
                             std::to_string(totals_.iterations) + ": " + error.what());
  }
}

void Course::iterate() {
  guarded([this] {
    const std::size_t stream = pick(streams_.size());
    arrive();
    step(stream, pick(caches_.size()));
    change_a_sequence();
    if (tiers_ != nullptr) change_what_is_parked();
    if (!options_.plain) change_the_world();
    pass_time(stream);
    if (options_.check) check();
    if (options_.check && options_.contents && !running_.empty()) {
      const Sequence& one = running_[totals_.iterations % running_.size()];
      if (!one.parked) check_contents(one);
    }
    if (!options_.plain && totals_.iterations % iterations_between_rests == iterations_between_rests - 1)
      rest_unguarded();
  });
  ++totals_.iterations;
  totals_.failures = failures();
  auto mix = [this](std::uint64_t value) { totals_.digest = (totals_.digest ^ value) * 0x100'0000'01b3; };
  mix(static_cast<std::uint64_t>(world_.now().count()));
  for (const Sequence& sequence : running_) mix(sequence.length);
}

void Course::rest() {
  guarded([this] { rest_unguarded(); });
}

void Course::arrive() {
  const std::size_t cache = pick(caches_.size());
  if (free_slots(cache) == 0 || !chance(options_.arrivals_per_million)) return;
  std::uint64_t prompt =
      1 + pick(sometimes(2) ? max_tokens() : std::max<std::uint64_t>(1, max_tokens() * 3 / 8));
  if (!preempted_.empty()) {
    prompt = preempted_.back();
    preempted_.pop_back();
  }
  const std::uint64_t announced = sometimes(2) ? pick(prompt + 1) : prompt;
  if (options_.prefixes && !sometimes(4)) return open_with_text(cache, prompt, announced);
  const std::size_t stream = pick(streams_.size());
  // If its first step is on another stream after all, that step has to wait for whoever was in the slot
  // before.
  const StreamHandle said = streams_[sometimes(8) ? pick(streams_.size()) : stream].handle;
  std::uint32_t slot = 0;
  if (!tried_to_open([&] { slot = caches_[cache].kv->open({prompt}, {announced}, said); })) return;
  running_.push_back({cache, slot, stream, prompt});
  forget_unread(cache, slot);
  if (options_.contents) running_.back().text.go_on_alone(0, ++sources_);
  ++totals_.opens;
}

void Course::preempt(std::size_t i) {
  ++totals_.preempted;
  if (preempted_.size() < options_.slots)
    preempted_.push_back(std::max<std::uint64_t>(1, running_[i].length));
  close(i);
}

/// False where the driver has failed too often.
bool Course::close(std::size_t i) {
  const Sequence sequence = running_[i];
  if (!tried([&] { cache_of(sequence).close(sequence.slot, streams_[sequence.stream].handle); }))
    return false;
  if (sequence.parked) left_.push_back({sequence.cache, parked_bytes(sequence)});
  remember(sequence);
  running_.erase(running_.begin() + static_cast<std::ptrdiff_t>(i));
  return true;
}

void Course::end(std::size_t stream) {
  finish_epoch(stream);
  if (tried([&] { caches_.front().kv->end(streams_[stream].handle); })) streams_[stream].open = false;
}

void Course::change_a_sequence() {
  if (running_.empty()) return;
  const std::size_t i = pick(running_.size());
  Sequence& sequence = running_[i];
  const std::uint64_t what = pick(40);
  if (what == 0) return void(close(i));
  if (options_.plain) return;
  if (what < 4) {
    const bool back = pick(8) == 0;
    const std::uint64_t least =
        cache_of(sequence).slots().has_windows() ? std::min(sequence.previous, sequence.length) : 0;
    std::uint64_t to = sequence.length - std::min(sequence.length, pick(back ? max_tokens() : 8));
    to = pick(8) == 0 ? 0 : std::max(to, least);
    truncate(i, to);
  } else if (what < 8) {
    const std::uint64_t to = std::min(sequence.length + pick(64), max_tokens());
    if (!sequence.parked) tried([&] { cache_of(sequence).announce_tokens(sequence.slot, {to}); });
  } else if (what == 8) {
    preempt(i);
  } else if (what == 9) {
    // Another stream may take the sequence over once everything on its own stream is over.
    const Stream& own = streams_[sequence.stream];
    if (!own.open && world_.driver().over_at(own.handle) <= world_.now())
      sequence.stream = pick(streams_.size());
  } else if (what < 13) {
    fork(i);
  }
}

void Course::change_the_world() {
  switch (pick(60)) {
    case 0: {
      const Bytes limit = std::max(guaranteed(), options_.budget / 100 * (20 + pick(80)));
      promised_ceiling_ = std::max(limit, std::min(promised_ceiling_, promised()));
      ceiling_ = std::max(limit, std::min(ceiling_, world_.pool()->stats().created));
      return world_.budget().set_limit(limit);
    }
    case 1:
    case 2:
      ceiling_ = std::max(ceiling_, options_.budget);
      promised_ceiling_ = std::max(promised_ceiling_, options_.budget);
      return world_.budget().set_limit(options_.budget);
    case 3:
    case 4:
      return end(pick(streams_.size()));
    case 5: {
      const bool wait = pick(2) == 0;
      const Bytes wanted = options_.budget / 100 * (1 + pick(100));
      tried([&] { world_.pool()->trim(wanted, wait); });
      return;
    }
    case 6:
      if (owners_.size() > 1) end_tenant(1 + pick(owners_.size() - 1));
      return;
    default:
      return;
  }
}

/// Passes time, and the pager gets its turn in it. Sometimes no time passes, and sometimes so much that all
/// work is over.
void Course::pass_time(std::size_t stream) {
  const Nanoseconds over = world_.driver().over_at(streams_[stream].handle);
  if (options_.plain) return world_.sleep_until(over - 1ms);
  const Nanoseconds now = world_.now();
  const Nanoseconds a_moment{static_cast<Nanoseconds::rep>(pick(3'000'000))};
  switch (over - now > 100ms ? 3 : pick(5)) {
    case 0:
      return;
    case 1:
      return world_.sleep_until(now + a_moment);
    case 2:
      return world_.sleep_until(over - 1ms);
    case 3:
      return world_.sleep_until(over);
    default:
      return world_.sleep_until(over + a_moment * 10);
  }
}

}  // namespace vmm
