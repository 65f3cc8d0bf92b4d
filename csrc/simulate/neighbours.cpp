#include "simulate/neighbours.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "base/error.h"

namespace vmm {
namespace {

using namespace std::chrono_literals;

constexpr Bytes page = 2_MiB;
constexpr Bytes token_record = 128_KiB;  // of a token: Llama-3.1-8B's
constexpr Bytes budget = 8_GiB;
constexpr std::uint32_t max_tokens = 2048;
constexpr std::uint32_t slot_count = 160;        // more than there is memory for
constexpr std::uint64_t rest_after_refusal = 8;  // iterations
// The greedy one admits whatever fits but for so small a part of the budget, in which its sequences grow.
constexpr std::uint64_t margin_fraction = 100;

// An iteration's kernels take so long, and so much longer for each token that they compute.
constexpr Nanoseconds launch = 8ms, per_token = 40us;

struct Role {
  const char* name;
  Bytes guaranteed;
  int priority;
};
constexpr std::array<Role, Neighbours::count> roles{
    {{"steady", 3_GiB, 1}, {"bursty", 2_GiB, 1}, {"greedy", {}, 0}}};
constexpr std::size_t steady = 0, bursty = 1;

// Of the steady load one request comes in so many iterations; of the bursty one so many at once, in so many.
constexpr std::uint64_t steady_gap = 9, burst = 14, burst_gap = 400;

Bytes bytes_of(std::uint64_t tokens) { return round_up(token_record * tokens, page); }

WorldOptions world_options(const NeighboursOptions& options) {
  WorldOptions out;
  out.budget = budget;
  out.driver.capacity = budget;
  out.driver.faults.seed = options.seed;
  out.arena_bytes = 1_GiB + round_up(token_record * max_tokens, page) * (slot_count * Neighbours::count);
  return out;
}

}  // namespace

Neighbours::Neighbours(const NeighboursOptions& options)
    : options_(options), random_(options.seed), world_(world_options(options)) {
  for (std::size_t i = 0; i < count; ++i) open_engine(i);
  world_.pool()->mapping().warm(budget, page, budget);
}

Neighbours::~Neighbours() {
  for (Engine& engine : engines_) {
    engine.cache.reset();
    engine.lease.reset();
  }
}

void Neighbours::open_engine(std::size_t number) {
  const Role& role = roles[number];
  Engine& engine = engines_[number];
  engine.figures.name = role.name;
  engine.figures.guaranteed = role.guaranteed;
  Pool& pool = *world_.pool();
  if (options_.isolated)
    engine.tenant =
        pool.tenancies().add({.name = role.name, .guaranteed = role.guaranteed, .priority = role.priority});
  engine.lease = pool.reserve({.page_bytes = page,
                               .extent_bytes = bytes_of(max_tokens),
                               .extents = slot_count,
                               .tenant = engine.tenant});
  engine.cache =
      std::make_unique<KvCache>(world_.pager(), std::vector<SlotPart>{{engine.lease, 0, 1, token_record}},
                                slot_count, KvCacheOptions{.max_tokens = {max_tokens}});
  engine.stream = world_.driver().create_stream();
}

void Neighbours::iterate() {
  for (std::size_t i = 0; i < count; ++i) {
    arrive(i);
    if (i == bursty) admit(engines_[i], false);
    step(engines_[i]);
    if (i != bursty) admit(engines_[i], true);
    if (options_.check) check();
  }
  Nanoseconds over = world_.now() + launch;
  for (const Engine& engine : engines_) over = std::max(over, world_.driver().over_at(engine.stream));
  world_.sleep_until(over);
  for (Engine& engine : engines_) finish(engine);
  ++iterations_;
}

Neighbours::Sequence Neighbours::draw() {
  const auto prompt = static_cast<std::uint32_t>(100 + pick(900));
  return {prompt, prompt + 20 + static_cast<std::uint32_t>(pick(200))};
}

void Neighbours::arrive(std::size_t number) {
  Engine& engine = engines_[number];
  if (number == steady) {
    if (pick(steady_gap) == 0) engine.waiting.push_back(draw());
  } else if (number == bursty) {
    if (iterations_ % burst_gap == 0)
      for (std::uint64_t i = 0; i < burst; ++i) engine.waiting.push_back(draw());
  } else {
    while (engine.waiting.size() < 4) engine.waiting.push_back(draw());
  }
}

/// Opens those who wait. Where they are announced, the pager maps their prompts while the kernels run.
void Neighbours::admit(Engine& engine, bool announced) {
  if (engine.rests != 0) {
    --engine.rests;
    return;
  }
  const bool greedy = engine.figures.guaranteed.count == 0;
  std::int64_t left = world_.pool()->reclaiming().obtainable(engine.stream, engine.tenant);
  left -= static_cast<std::int64_t>((budget / margin_fraction).count);
  while (!engine.waiting.empty() && engine.running.size() < slot_count) {
    Sequence next = engine.waiting.front();
    left -= static_cast<std::int64_t>(bytes_of(next.prompt).count);
    if (greedy && left < 0) return;
    engine.waiting.pop_front();
    next.slot = static_cast<std::int32_t>(
        engine.cache->open({next.prompt}, {announced ? next.prompt : 0}, engine.stream));
    engine.running.push_back(next);
  }
}

void Neighbours::step(Engine& engine) {
  if (engine.running.empty()) return engine.cache->end(engine.stream);
  // What it would keep after this step, by a model that knows only lengths.
  Bytes after;
  bool wants_pages = false;
  for (const Sequence& each : engine.running) {
    const std::uint64_t to = std::max(each.length + 1, each.prompt);
    after += bytes_of(to);
    wants_pages |= bytes_of(to) > bytes_of(each.length);
  }
  const bool promised = after <= engine.figures.guaranteed;
  ++engine.figures.steps;
  if (!std::exchange(engine.asks, true)) engine.asked = world_.now();
  std::vector<std::size_t> batch(engine.running.size());
  std::iota(batch.begin(), batch.end(), std::size_t{0});
  std::vector<std::uint32_t> fitting;
  if (try_step(engine, batch, fitting)) {
    engine.asks = false;
    if (promised && wants_pages) engine.figures.to_guarantee.push_back(world_.now() - engine.asked);
    return;
  }
  ++engine.figures.refused;
  refused(engine, promised, fitting);
}

/// Those that fit go on. Who has borrowed too much preempts the sequence that came last; who asks for what it
/// is guaranteed insists.
void Neighbours::refused(Engine& engine, bool promised, const std::vector<std::uint32_t>& fitting) {
  std::vector<std::size_t> batch;
  for (std::size_t i = 0; i < engine.running.size(); ++i)
    if (std::ranges::find(fitting, static_cast<std::uint32_t>(engine.running[i].slot)) != fitting.end())
      batch.push_back(i);
  std::vector<std::uint32_t> again;
  if (!batch.empty()) try_step(engine, batch, again);
  engine.rests = rest_after_refusal;
  if (promised) {
    ++engine.figures.violations;
    return;
  }
  engine.asks = false;
  preempt_last(engine);
}

bool Neighbours::try_step(Engine& engine, const std::vector<std::size_t>& batch,
                          std::vector<std::uint32_t>& fitting) {
  std::vector<std::int32_t> places, lengths;
  std::uint64_t computed = 0;
  for (std::size_t i : batch) {
    const Sequence& each = engine.running[i];
    places.push_back(each.slot);
    lengths.push_back(static_cast<std::int32_t>(std::max(each.length + 1, each.prompt)));
  }
  try {
    engine.cache->step(places, lengths, engine.stream);
  } catch (const OutOfPages& error) {
    fitting = error.fitting();
    return false;
  }
  std::vector<MemoryRange> uses;
  for (std::size_t i = 0; i < batch.size(); ++i) {
    Sequence& each = engine.running[batch[i]];
    const auto to = static_cast<std::uint32_t>(lengths[i]);
    computed += to - std::exchange(each.length, to);
    uses.push_back({engine.lease->base() + bytes_of(max_tokens) * static_cast<std::uint64_t>(each.slot),
                    token_record * to});
  }
  world_.driver().require_accessible(uses);
  world_.driver().run(engine.stream, launch + per_token * static_cast<Nanoseconds::rep>(computed), uses);
  return true;
}

void Neighbours::preempt_last(Engine& engine) {
  Sequence last = engine.running.back();
  engine.running.pop_back();
  engine.cache->close(static_cast<std::uint32_t>(last.slot), engine.stream);
  ++engine.figures.preempted;
  last.prompt = std::max(last.prompt, last.length);  // it is computed again, with what it has generated
  last.length = 0;
  last.slot = -1;
  engine.waiting.push_front(last);
}

void Neighbours::finish(Engine& engine) {
  std::erase_if(engine.running, [&](const Sequence& each) {
    if (each.length < each.target) return false;
    engine.cache->close(static_cast<std::uint32_t>(each.slot), engine.stream);
    ++engine.figures.completed;
    engine.figures.useful_tokens += each.target;
    return true;
  });
}

/// The promise itself, by a model that knows only lengths; and the tables.
void Neighbours::check() const {
  world_.check();
  world_.pool()->check();
  if (!options_.isolated) return;
  Bytes promised;
  for (const Engine& engine : engines_) {
    Bytes kept;
    for (const Sequence& each : engine.running) kept += bytes_of(each.length);
    if (world_.pool()->tenancies().figures(engine.tenant).kept != kept)
      throw InvariantViolation(engine.figures.name + " does not keep what it should");
    promised += std::max(engine.figures.guaranteed, kept);
  }
  if (promised > budget) throw InvariantViolation("the budget does not cover what is promised");
}

std::vector<NeighbourFigures> Neighbours::figures() const {
  std::vector<NeighbourFigures> out;
  for (const Engine& engine : engines_) out.push_back(engine.figures);
  return out;
}

}  // namespace vmm
