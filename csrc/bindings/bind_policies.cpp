// Eviction policies, by themselves and over traces. Times cross as nanoseconds; units are plain numbers.
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "base/error.h"
#include "bindings/bindings.h"
#include "policy/eviction/eviction_policies.h"
#include "simulate/eviction_replay.h"

namespace py = pybind11;

namespace vmm {
namespace {

std::optional<std::uint64_t> number_of(std::optional<UnitId> unit) {
  if (!unit) return std::nullopt;
  return static_cast<std::uint64_t>(*unit);
}

py::dict figures(const EvictionFigures& f) {
  using namespace py::literals;
  return py::dict("accesses"_a = f.accesses, "hits"_a = f.hits, "wanted_bytes"_a = f.wanted.count,
                  "missing_bytes"_a = f.missing.count, "evictions"_a = f.evictions,
                  "most_ghosts"_a = f.most_ghosts);
}

EvictionStream stream_of_blocks(
    const std::vector<std::tuple<std::int64_t, std::vector<std::uint64_t>, bool, std::uint32_t>>& requests) {
  std::vector<BlockRequest> out;
  for (const auto& [at, blocks, partial, output] : requests)
    out.push_back({Nanoseconds{at}, blocks, partial, output});
  return EvictionStream::of_blocks(out);
}

EvictionStream stream_of_turns(
    const std::vector<std::tuple<std::int64_t, std::uint64_t, std::uint64_t, std::uint64_t, std::uint32_t,
                                 std::uint32_t, std::uint32_t>>& turns) {
  std::vector<Turn> out;
  for (const auto& [at, sequence, wanted, size, label, blocks, output] : turns)
    out.push_back({Nanoseconds{at}, sequence, {wanted}, {size}, label, blocks, output});
  return EvictionStream::of_turns(out);
}

void access(EvictionPolicy& policy, std::uint64_t unit, std::int64_t at, std::uint64_t size,
            std::optional<std::uint64_t> parent, int priority, std::uint32_t label, bool whole_sequence,
            bool partial, std::uint32_t new_blocks, std::uint32_t output_tokens, std::int64_t guess) {
  UnitAccess access{Nanoseconds{at}, {size},  std::nullopt, priority,      label,
                    whole_sequence,  partial, new_blocks,   output_tokens, Nanoseconds{guess}};
  if (parent) access.parent = UnitId{*parent};
  policy.access(UnitId{unit}, access);
}

void bind_policy(py::module_& m) {
  py::class_<EvictionPolicy>(m, "EvictionPolicy")
      .def(py::init([](const std::string& name, std::uint64_t capacity, bool leaf_first) {
             return leaf_first ? make_leaf_first_policy(name, {capacity})
                               : make_eviction_policy(name, {capacity});
           }),
           py::arg("name"), py::arg("capacity"), py::kw_only(), py::arg("leaf_first") = false)
      .def("access", &access, py::arg("unit"), py::kw_only(), py::arg("at_ns") = 0, py::arg("size") = 1,
           py::arg("parent") = py::none(), py::arg("priority") = 0, py::arg("label") = 0,
           py::arg("whole_sequence") = false, py::arg("partial") = false, py::arg("new_blocks") = 0,
           py::arg("output_tokens") = 0, py::arg("guess_ns") = 0)
      .def(
          "victim",
          [](EvictionPolicy& policy, std::int64_t now) { return number_of(policy.victim(Nanoseconds{now})); },
          py::arg("now_ns") = 0)
      .def("evicted", [](EvictionPolicy& policy, std::uint64_t unit) { policy.evicted(UnitId{unit}); })
      .def("forget", [](EvictionPolicy& policy, std::uint64_t unit) { policy.forget(UnitId{unit}); })
      .def("holds",
           [](const EvictionPolicy& policy, std::uint64_t unit) { return policy.holds(UnitId{unit}); })
      .def_property_readonly("ghosts", &EvictionPolicy::ghosts);
}

}  // namespace

void bind_policies(py::module_& m) {
  bind_policy(m);
  std::vector<std::string> names;
  for (std::string_view name : eviction_policy_names()) names.emplace_back(name);
  m.attr("eviction_policies") = py::tuple(py::cast(names));
  py::class_<EvictionStream>(m, "EvictionStream")
      .def_static("of_blocks", &stream_of_blocks, py::arg("requests"))
      .def_static("of_turns", &stream_of_turns, py::arg("turns"))
      .def(
          "replay",
          [](const EvictionStream& stream, const std::string& policy, std::uint64_t capacity,
             bool leaf_first) {
            EvictionFigures found;
            {
              const ReleaseGil released;
              found = stream.replay(policy, {capacity}, leaf_first);
            }
            return figures(found);
          },
          py::arg("policy"), py::arg("capacity"), py::kw_only(), py::arg("leaf_first") = false);
}

}  // namespace vmm
