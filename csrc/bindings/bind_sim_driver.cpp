// The simulated driver with a clock of its own, for the contract suite and its own tests.
#include <pybind11/stl.h>

#include <memory>
#include <tuple>
#include <utility>
#include <vector>

#include "base/error.h"
#include "bindings/bindings.h"
#include "driver/sim_driver.h"

namespace py = pybind11;

namespace vmm {
namespace {

using Ranges = std::vector<std::pair<std::uintptr_t, std::uint64_t>>;

std::vector<MemoryRange> memory_ranges(const Ranges& ranges) {
  std::vector<MemoryRange> out;
  for (const auto& [start, size] : ranges) out.push_back({{start}, {size}});
  return out;
}

std::shared_ptr<SimDriver> make(std::uint64_t capacity, std::uint64_t granularity, std::size_t actors,
                                std::int64_t reserve, std::int64_t create, std::int64_t map,
                                std::int64_t set_access, std::int64_t unmap, std::int64_t release,
                                std::int64_t event, std::uint64_t seed, std::uint32_t failures,
                                std::uint32_t delays, std::int64_t longest_delay) {
  if (actors == 0) throw InvalidArgument("actors is 0; expected at least one");
  return ends_without_gil(std::make_shared<SimDriver>(
      std::make_shared<SimClock>(actors),
      SimOptions{
          .capacity = {capacity},
          .granularity = {granularity},
          .times = {Nanoseconds{reserve}, Nanoseconds{create}, Nanoseconds{map}, Nanoseconds{set_access},
                    Nanoseconds{unmap}, Nanoseconds{release}, Nanoseconds{event}},
          .faults = {seed, failures, delays, Nanoseconds{longest_delay}}}));
}

void turn(SimDriver& driver, std::size_t actor) {
  if (actor >= driver.clock().actors()) throw InvalidArgument("actor: there is none of this number");
  driver.clock().turn(actor);
}

void advance(SimDriver& driver, std::int64_t ns) {
  if (ns < 0) throw InvalidArgument("ns: time does not go back");
  driver.clock().advance(Nanoseconds{ns});
}

auto touch(SimDriver& driver, const Ranges& ranges, std::int64_t called) {
  const auto touched = driver.touch(memory_ranges(ranges), Nanoseconds{called});
  return std::tuple(touched.waited.count(), touched.first_use, touched.late);
}

}  // namespace

void bind_sim_driver(py::module_& m) {
  const SimOptions options;
  const CallTimes& times = options.times;
  py::class_<SimDriver, Driver, std::shared_ptr<SimDriver>>(m, "SimDriver")
      .def(py::init(&make), py::arg("capacity") = options.capacity.count,
           py::arg("granularity") = options.granularity.count, py::kw_only(), py::arg("actors") = 1,
           py::arg("reserve_ns") = times.reserve.count(), py::arg("create_ns") = times.create.count(),
           py::arg("map_ns") = times.map.count(), py::arg("set_access_ns") = times.set_access.count(),
           py::arg("unmap_ns") = times.unmap.count(), py::arg("release_ns") = times.release.count(),
           py::arg("event_ns") = times.event.count(), py::arg("seed") = 0,
           py::arg("failures_per_million") = 0, py::arg("delays_per_million") = 0,
           py::arg("longest_delay_ns") = 0)
      .def_property_readonly("now_ns", [](SimDriver& d) { return d.clock().now().count(); })
      .def_property_readonly("created_bytes", no_gil([](const SimDriver& d) { return d.created().count; }))
      .def_property_readonly("failures", [](SimDriver& d) { return d.faults().failures(); })
      .def("stop_faults", [](SimDriver& d) { d.faults().stop(); })
      .def("turn", &turn, py::arg("actor"))
      .def("advance", &advance, py::arg("ns"))
      .def(
          "run",
          [](SimDriver& d, std::uint64_t stream, std::int64_t ns, const Ranges& uses) {
            d.run({stream}, Nanoseconds{ns}, memory_ranges(uses));
          },
          py::arg("stream"), py::arg("ns"), py::arg("uses") = Ranges{}, NoGil())
      .def(
          "over_at_ns", [](const SimDriver& d, std::uint64_t stream) { return d.over_at({stream}).count(); },
          py::arg("stream"), NoGil())
      .def("touch", &touch, py::arg("ranges"), py::arg("called_ns"), NoGil())
      .def("check", &SimDriver::check, NoGil());
}

}  // namespace vmm
