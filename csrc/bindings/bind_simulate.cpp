// Replays and courses in simulated time. Times cross as nanoseconds, except in the roofline, which
// has seconds.
#include <pybind11/stl.h>

#include <memory>
#include <tuple>
#include <utility>
#include <vector>

#include "base/error.h"
#include "bindings/bindings.h"
#include "simulate/block_cache_memory.h"
#include "simulate/counting_memory.h"
#include "simulate/course.h"
#include "simulate/neighbours.h"
#include "simulate/replay.h"
#include "simulate/vmm_memory.h"

namespace py = pybind11;

namespace vmm {
namespace {

py::object list_of(const std::vector<Nanoseconds>& times) {
  py::list out;
  for (Nanoseconds time : times) out.append(time.count());
  return out;
}

py::dict figures(const Replay& replay) {
  const ReplayFigures& f = replay.figures();
  const KvCounts counts = replay.memory().counts();
  using namespace py::literals;
  return py::dict("completed"_a = f.completed, "rejected"_a = f.rejected, "preempted"_a = f.preempted,
                  "iterations"_a = f.iterations, "prompt_tokens"_a = f.prompt_tokens,
                  "output_tokens"_a = f.output_tokens, "computed_tokens"_a = f.computed_tokens,
                  "looked_up_tokens"_a = f.looked_up_tokens, "found_tokens"_a = f.found_tokens,
                  "most_running"_a = f.most_running, "over_at_ns"_a = f.over_at.count(),
                  "longest_stall_ns"_a = f.longest_stall.count(), "stalled_ns"_a = counts.stalled.count(),
                  "pages_mapped"_a = counts.pages_mapped, "pages_first_used"_a = counts.pages_first_used,
                  "pages_late"_a = counts.pages_late, "live_seconds"_a = f.live_seconds,
                  "held_seconds"_a = f.held_seconds, "mapped_seconds"_a = f.mapped_seconds,
                  "reclaimable_seconds"_a = f.reclaimable_seconds, "running_seconds"_a = f.running_seconds,
                  "bytes_opened"_a = f.bytes_opened, "to_first_token_ns"_a = list_of(f.to_first_token),
                  "to_last_token_ns"_a = list_of(f.to_last_token));
}

py::list samples(const Replay& replay) {
  py::list out;
  for (const ReplaySample& s : replay.figures().samples)
    out.append(py::make_tuple(s.at.count(), s.usage.live.count, s.usage.held.count, s.usage.mapped.count,
                              s.usage.reclaimable.count, s.running, s.waiting, s.stalled.count()));
  return out;
}

py::dict totals(const Course& course) {
  const CourseTotals t = course.totals();
  using namespace py::literals;
  return py::dict(
      "iterations"_a = t.iterations, "steps"_a = t.steps, "opens"_a = t.opens, "forks"_a = t.forks,
      "attached"_a = t.attached, "refused"_a = t.refused, "preempted"_a = t.preempted, "rests"_a = t.rests,
      "tenants"_a = t.tenants, "within"_a = t.within, "failures"_a = t.failures,
      "pages_mapped"_a = t.pages_mapped, "stalled_ns"_a = t.stalled.count(), "digest"_a = t.digest,
      "parked"_a = t.parked, "woken"_a = t.woken, "restored"_a = t.restored, "lost"_a = t.lost,
      "tier_failures"_a = t.tier_failures, "pages_out"_a = t.pages_out, "pages_back"_a = t.pages_back);
}

void bind_course(py::module_& m) {
  py::class_<Course>(m, "Course")
      .def(py::init([](std::uint64_t seed, bool plain, bool check, bool tiers) {
             CourseOptions options = plain ? CourseOptions{.seed = seed} : drawn_options(seed);
             options.check = check;
             if (!tiers) options.tiers.reset();
             return std::make_unique<Course>(std::move(options));
           }),
           py::arg("seed"), py::kw_only(), py::arg("plain") = false, py::arg("check") = true,
           py::arg("tiers") = true)
      .def_property_readonly("has_tiers", [](const Course& course) { return course.has_tiers(); })
      .def(
          "run",
          [](Course& course, std::uint64_t iterations) {
            for (std::uint64_t i = 0; i < iterations; ++i) course.iterate();
          },
          py::arg("iterations"), NoGil())
      .def("rest", &Course::rest, NoGil())
      .def("totals", &totals);
}

py::list engines(const Neighbours& neighbours) {
  using namespace py::literals;
  py::list out;
  for (const NeighbourFigures& f : neighbours.figures())
    out.append(py::dict("name"_a = f.name, "guaranteed_bytes"_a = f.guaranteed.count, "steps"_a = f.steps,
                        "refused"_a = f.refused, "violations"_a = f.violations, "preempted"_a = f.preempted,
                        "completed"_a = f.completed, "useful_tokens"_a = f.useful_tokens,
                        "to_guarantee_ns"_a = list_of(f.to_guarantee)));
  return out;
}

void bind_neighbours(py::module_& m) {
  py::class_<Neighbours>(m, "Neighbours")
      .def(py::init([](std::uint64_t seed, bool isolated, bool check) {
             return std::make_unique<Neighbours>(NeighboursOptions{seed, isolated, check});
           }),
           py::arg("seed"), py::kw_only(), py::arg("isolated") = true, py::arg("check") = false)
      .def(
          "run",
          [](Neighbours& neighbours, std::uint64_t iterations) {
            for (std::uint64_t i = 0; i < iterations; ++i) neighbours.iterate();
          },
          py::arg("iterations"), NoGil())
      .def_property_readonly("now_ns", [](const Neighbours& neighbours) { return neighbours.now().count(); })
      .def_property_readonly("pages_zeroed", &Neighbours::pages_zeroed)
      .def("figures", [](const Neighbours& neighbours) { return engines(neighbours); });
}

void bind_memories(py::module_& m) {
  py::class_<KvMemory, std::shared_ptr<KvMemory>>(m, "KvMemory")
      .def_property_readonly("capacity_bytes",
                             [](const KvMemory& memory) { return memory.capacity().count; });
  py::class_<CountingMemory, KvMemory, std::shared_ptr<CountingMemory>>(m, "CountingMemory")
      .def(py::init([](std::uint64_t capacity, std::uint32_t places, std::uint64_t record_bytes,
                       std::uint64_t tokens_per_unit, std::uint64_t unit_bytes, std::int64_t map_unit,
                       std::int64_t create_unit) {
             return std::make_shared<CountingMemory>(CountingOptions{{capacity},
                                                                     places,
                                                                     {record_bytes},
                                                                     {tokens_per_unit},
                                                                     {unit_bytes},
                                                                     Nanoseconds{map_unit},
                                                                     Nanoseconds{create_unit}});
           }),
           py::kw_only(), py::arg("capacity"), py::arg("places"), py::arg("record_bytes"),
           py::arg("tokens_per_unit"), py::arg("unit_bytes"), py::arg("map_unit_ns") = 0,
           py::arg("create_unit_ns") = 0);
  py::class_<BlockCacheMemory, KvMemory, std::shared_ptr<BlockCacheMemory>>(m, "BlockCacheMemory")
      .def(py::init([](std::uint64_t capacity, std::uint32_t places, std::uint64_t record_bytes,
                       std::uint32_t block_tokens) {
             return std::make_shared<BlockCacheMemory>(
                 BlockCacheOptions{{capacity}, places, {record_bytes}, block_tokens});
           }),
           py::kw_only(), py::arg("capacity"), py::arg("places"), py::arg("record_bytes"),
           py::arg("block_tokens"));
  using Times = std::tuple<std::int64_t, std::int64_t, std::int64_t, std::int64_t, std::int64_t, std::int64_t,
                           std::int64_t>;
  py::class_<VmmMemory, KvMemory, std::shared_ptr<VmmMemory>>(m, "VmmMemory")
      .def(py::init([](std::uint64_t budget, std::uint32_t places, std::uint64_t max_tokens,
                       std::uint64_t page_bytes, const std::vector<std::uint64_t>& records_bytes,
                       const Times& times, std::int64_t wake_latency, std::uint64_t first_tokens,
                       std::uint64_t warm, std::uint32_t cached, double copied_bytes_per_s,
                       std::int64_t idle_ns) {
             VmmMemoryOptions options;
             options.world.budget = {budget};
             options.world.wake_latency = Nanoseconds{wake_latency};
             const auto [reserve, create, map, set_access, unmap, release, event] = times;
             options.world.driver.times = {Nanoseconds{reserve},    Nanoseconds{create}, Nanoseconds{map},
                                           Nanoseconds{set_access}, Nanoseconds{unmap},  Nanoseconds{release},
                                           Nanoseconds{event}};
             options.places = places;
             options.max_tokens = {max_tokens};
             options.page_bytes = {page_bytes};
             options.first_tokens = {first_tokens};
             options.warm = {warm};
             options.cached = cached;
             options.world.idle_time = Nanoseconds{idle_ns};
             options.world.driver.copied_bytes_per_second = copied_bytes_per_s;
             for (std::uint64_t bytes : records_bytes) options.records.push_back({bytes});
             return std::make_shared<VmmMemory>(options);
           }),
           py::kw_only(), py::arg("budget"), py::arg("places"), py::arg("max_tokens"), py::arg("page_bytes"),
           py::arg("records_bytes"), py::arg("call_times_ns"), py::arg("wake_ns"),
           py::arg("first_tokens") = 0, py::arg("warm") = 0, py::arg("cached") = 0,
           py::arg("copied_bytes_per_s") = 0.0, py::arg("idle_ns") = PagerOptions{}.idle_time.count())
      .def("prefixes", [](const VmmMemory& memory) {
        const PrefixStats stats = memory.prefixes();
        using namespace py::literals;
        return py::dict("adopted"_a = stats.adopted, "aliased"_a = stats.aliased, "copied"_a = stats.copied,
                        "cached_slots"_a = stats.cached_slots);
      });
}

}  // namespace

void bind_simulate(py::module_& m) {
  bind_memories(m);
  bind_course(m);
  bind_neighbours(m);
  using Requests = std::vector<std::tuple<std::int64_t, std::uint32_t, std::uint32_t>>;
  using Prompts = std::vector<std::tuple<std::uint32_t, std::vector<std::int32_t>>>;
  using Line = std::tuple<double, double, double, double, double, double, double>;
  py::class_<Replay>(m, "Replay")
      .def(py::init([](const Requests& requests, const Line& line, std::shared_ptr<KvMemory> memory,
                       std::uint32_t batch_tokens, std::uint32_t max_tokens, double watermark,
                       std::int64_t sample_every, const Prompts& prompts) {
             std::vector<Request> out;
             for (const auto& [arrival, prompt, output] : requests)
               out.push_back({Nanoseconds{arrival}, prompt, output});
             if (!prompts.empty() && prompts.size() != out.size())
               throw InvalidArgument("prompts: expected one for each request");
             for (std::size_t i = 0; i < prompts.size(); ++i)
               std::tie(out[i].block_tokens, out[i].blocks) = prompts[i];
             const auto [weights, kv, flops, attention, bandwidth, rate, launch] = line;
             return std::make_unique<Replay>(
                 std::move(out), Roofline{weights, kv, flops, attention, bandwidth, rate, launch},
                 ReplayOptions{batch_tokens, max_tokens, watermark, Nanoseconds{sample_every}},
                 std::move(memory));
           }),
           py::arg("requests"), py::arg("roofline"), py::arg("memory"), py::kw_only(),
           py::arg("batch_tokens"), py::arg("max_tokens"), py::arg("watermark"), py::arg("sample_every_ns"),
           py::arg("prompts") = Prompts{})
      .def("run", &Replay::run, py::arg("iterations"), NoGil())
      .def_property_readonly("over", &Replay::over)
      .def("figures", &figures)
      .def("samples", &samples);
}

}  // namespace vmm
