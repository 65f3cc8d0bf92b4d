// Draws the options of the engine and of its world from a seed.
#include <algorithm>
#include <string>
#include <utility>

#include "policy/eviction/eviction_policies.h"
#include "simulate/course.h"

namespace vmm {
namespace {

using namespace std::chrono_literals;

class Draw {
 public:
  explicit Draw(std::uint64_t seed) : random_(seed) {}
  std::uint64_t below(std::uint64_t n) { return random_() % n; }
  template <class T>
  T of(std::initializer_list<T> all) {
    return all.begin()[below(all.size())];
  }

 private:
  std::mt19937_64 random_;
};

CoursePart draw_part(Draw& draw, bool windowed) {
  CoursePart part;
  part.page_bytes = draw.of({2_MiB, 2_MiB, 4_MiB});
  // The records of Qwen2.5-7B and Gemma-2-9B straddle pages, and so does one that is larger than a page.
  part.record_bytes = draw.of({128_KiB, 512_KiB, 2_MiB, Bytes{57'344}, Bytes{344'064}, Bytes{5'000'000}});
  part.extents = draw.of<std::uint64_t>({1, 1, 2});
  if (windowed) part.window = {1 + draw.below(64)};
  return part;
}

/// Two or three tenants, each with a cache, and at times with another; at times nobody has one, too.
void draw_tenants(Draw& draw, CourseOptions& out) {
  const std::uint64_t count = 2 + draw.below(2);
  out.owners.clear();
  for (std::size_t owner = draw.below(3) == 0 ? 0 : 1; owner <= count; ++owner) out.owners.push_back(owner);
  if (draw.below(3) == 0) out.owners.push_back(1 + draw.below(count));
  out.slots = 2 + out.slots / 2;
}

/// On what terms, once the budget is known.
void draw_terms(Draw& draw, CourseOptions& out) {
  const std::uint64_t count = *std::ranges::max_element(out.owners);
  for (std::uint64_t i = 0; i < count; ++i) {
    TenantTerms terms{.name = "tenant " + std::to_string(i + 1)};
    if (draw.below(3) != 0) terms.guaranteed = out.budget / 100 * draw.below(90 / count);
    if (draw.below(3) == 0) terms.limit = terms.guaranteed + out.budget / 100 * draw.below(60);
    terms.priority = static_cast<int>(draw.below(3));
    out.tenants.push_back(std::move(terms));
  }
}

/// Much smaller than the device, or many times larger.
std::uint32_t draw_slots(Draw& draw, std::uint64_t device) {
  return static_cast<std::uint32_t>(1 + device * draw.of<std::uint64_t>({1, 4, 16, 160}) / 16);
}

SimFaultOptions draw_faults(Draw& draw, std::uint64_t seed) {
  const bool hangs = draw.below(2) == 0;  // seldom, but for long
  return {seed, draw.of<std::uint32_t>({0, 1'000, 30'000}), hangs ? 500U : 20'000U, hangs ? 3'000ms : 20ms};
}

/// A host's memory, a file, or both. Pages have one size then.
void draw_tiers(Draw& draw, CourseOptions& out) {
  const Bytes page = out.parts.front().page_bytes;
  for (CoursePart& part : out.parts) part.page_bytes = page;
  CourseTiers& made = out.tiers.emplace();
  const std::uint64_t which = draw.below(3);
  if (which != 1) made.sim.tiers.push_back({"host", draw_slots(draw, out.budget / page), 20e9, 20e9});
  if (which != 0) made.sim.tiers.push_back({"file", draw_slots(draw, out.budget / page), 1e9, 3e9});
  made.sim.write_through = draw.below(3) == 0;
  made.policy = std::string(eviction_policy_names()[draw.below(eviction_policy_names().size())]);
  made.parks_per_million = draw.of<std::uint32_t>({30'000, 100'000, 300'000});
  if (draw.below(3) == 0) return;
  made.sim.writes = draw_faults(draw, out.seed + 1);
  made.sim.reads = draw_faults(draw, out.seed + 2);
  made.sim.copies = {out.seed + 3, draw.of<std::uint32_t>({0, 1'000, 10'000}), 0, {}};
}

}  // namespace

Bytes extent_bytes(const CourseOptions& options, const CoursePart& part) {
  return round_up(part.record_bytes * (options.cache.max_tokens + options.cache.tail).count, part.page_bytes);
}

WorldOptions world_options(const CourseOptions& options) {
  WorldOptions out;
  out.budget = options.budget;
  out.longest_wake = options.longest_wake;
  out.driver.faults = {options.seed, options.failures_per_million, options.delays_per_million,
                       options.longest_delay};
  out.driver.contents = options.contents;
  out.arena_bytes = 1_GiB;
  // Where a tenant has ended, its reservations may be idle for a while beside those of the next, or a tier
  // may still copy their pages.
  const std::uint64_t times =
      options.owners.size() * (options.tenants.empty() ? 1 : 4) * (options.tiers ? 2 : 1);
  for (const CoursePart& part : options.parts)
    out.arena_bytes +=
        (extent_bytes(options, part) * (part.extents * options.slots) + part.page_bytes) * times;
  return out;
}

CourseOptions drawn_options(std::uint64_t seed) {
  Draw draw(seed);
  CourseOptions out;
  out.seed = seed;
  out.plain = false;
  out.slots = static_cast<std::uint32_t>(2 + draw.below(11));
  out.streams = draw.of<std::uint32_t>({1, 1, 2});
  out.prefixes = draw.below(4) != 0;
  out.cache.max_tokens = {out.prefixes ? 64 + draw.below(72) : 16 + draw.below(120)};
  out.cache.tail = {draw.of<std::uint64_t>({0, 0, 1, 16})};
  out.cache.tokens_per_step = {draw.of<std::uint64_t>({1, 1, 4})};
  out.cache.first_tokens = {draw.of<std::uint64_t>({0, 0, 8})};
  const bool windowed = draw.below(4) == 0;
  out.parts = {draw_part(draw, windowed && draw.below(2) == 0)};
  if (windowed || draw.below(3) == 0) out.parts.push_back(draw_part(draw, windowed));
  if (draw.below(2) == 0) draw_tenants(draw, out);
  Bytes all;  // the most that the slots could use
  for (const CoursePart& part : out.parts)
    all += round_up(part.record_bytes * (out.cache.max_tokens + out.cache.tail).count, part.page_bytes) *
           (part.extents * out.slots * out.owners.size());
  out.budget = std::max(64_MiB, Bytes{all.count / 100 * (15 + draw.below(100))});
  draw_terms(draw, out);
  out.arrivals_per_million = static_cast<std::uint32_t>(draw.of({20'000, 100'000, 500'000}));
  if (out.prefixes) out.arrivals_per_million = std::max(out.arrivals_per_million, 300'000U);
  out.longest_wake = draw.of<Nanoseconds>({0ms, 1ms, 30ms});
  if (draw.below(3) != 0) {
    out.failures_per_million = draw.of<std::uint32_t>({0, 1'000, 30'000});
    out.delays_per_million = draw.of<std::uint32_t>({0, 10'000, 100'000});
    out.longest_delay = draw.of<Nanoseconds>({100us, 50ms});
  }
  if (draw.below(3) == 0) draw_tiers(draw, out);
  out.contents = out.tiers || draw.below(8) == 0;
  return out;
}

}  // namespace vmm
