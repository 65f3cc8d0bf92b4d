// The raw driver, for the contract suite and for measuring single calls.
#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "base/error.h"
#include "bindings/bindings.h"
#include "driver/checked_driver.h"
#include "driver/cuda_driver.h"
#include "driver/host_driver.h"
#include "driver/host_mappings.h"

namespace py = pybind11;

namespace vmm {

void bind_driver(py::module_& m) {
  using Entries = std::vector<std::tuple<std::uintptr_t, std::uint64_t, std::uint64_t>>;
  auto mappings = [](const Entries& entries) {
    std::vector<PageMapping> out;
    out.reserve(entries.size());
    for (auto [address, page, page_bytes] : entries) out.push_back({{address}, {page}, {page_bytes}});
    return out;
  };
  m.attr("WHOLE_DEVICE") = whole_device.value;
  py::class_<Driver, std::shared_ptr<Driver>>(m, "Driver")
      .def_property_readonly("name", [](const Driver& d) { return d.capabilities().name; })
      .def_property_readonly("granularity",
                             [](const Driver& d) { return d.capabilities().granularity.count; })
      .def_property_readonly("default_page_bytes",
                             [](const Driver& d) { return d.capabilities().default_page_bytes.count; })
      .def_property_readonly("merges_neighbours",
                             [](const Driver& d) { return d.capabilities().merges_neighbours; })
      .def_property_readonly("fresh_pages_are_zero",
                             [](const Driver& d) { return d.capabilities().fresh_pages_are_zero; })
      .def_property_readonly("zero_gaps", [](Driver& d) { return d.gaps() != nullptr; })
      .def_property_readonly("foreign_streams",
                             [](const Driver& d) { return d.capabilities().foreign_streams; })
      .def_property_readonly("device_events", [](const Driver& d) { return d.capabilities().device_events; })
      .def_property_readonly("host_accessible",
                             [](const Driver& d) { return d.capabilities().host_accessible; })
      .def(
          "reserve",
          [](Driver& d, std::uint64_t size, std::uint64_t align) { return d.reserve({size}, {align}).value; },
          py::arg("size"), py::arg("alignment"), NoGil())
      .def(
          "free_reservation",
          [](Driver& d, std::uintptr_t base, std::uint64_t size) { d.free_reservation({base}, {size}); },
          py::arg("base"), py::arg("size"), NoGil())
      .def(
          "set_gap",
          [](Driver& d, std::uintptr_t start, std::uint64_t size, bool zeros) {
            if (d.gaps() == nullptr)
              throw InvalidArgument(std::string("set_gap: not a capability of the ") + d.capabilities().name +
                                    " driver");
            d.gaps()->set_gap({start}, {size}, zeros ? Gap::zeros : Gap::faults);
          },
          py::arg("start"), py::arg("size"), py::arg("zeros"), NoGil())
      .def(
          "create",
          [](Driver& d, std::uint64_t page_bytes, std::uint64_t place) {
            return d.create({page_bytes}, {place}).value;
          },
          py::arg("page_bytes"), py::arg("place"), NoGil())
      .def(
          "release", [](Driver& d, std::uint64_t page) { d.release({page}); }, py::arg("page"), NoGil())
      .def(
          "map", [mappings](Driver& d, const Entries& entries) { d.map(mappings(entries)); },
          py::arg("pages"), NoGil())
      .def(
          "set_access", [mappings](Driver& d, const Entries& entries) { d.set_access(mappings(entries)); },
          py::arg("pages"), NoGil())
      .def(
          "unmap",
          [mappings](Driver& d, const Entries& entries) {
            std::size_t done = 0;
            d.unmap(mappings(entries), done);
          },
          py::arg("pages"), NoGil())
      .def(
          "copy",
          [](Driver& d, std::uintptr_t to, std::uintptr_t from, std::uint64_t size, std::uint64_t stream) {
            d.copy({to}, {from}, {size}, {stream});
          },
          py::arg("to"), py::arg("source"), py::arg("size"), py::arg("stream") = 0, NoGil())
      .def(
          "zero",
          [](Driver& d, std::uintptr_t at, std::uint64_t size, std::uint64_t stream) {
            const MemoryRange range{{at}, {size}};
            d.zero(std::span(&range, 1), {stream});
          },
          py::arg("address"), py::arg("size"), py::arg("stream") = 0, NoGil())
      .def(
          "create_stream", [](Driver& d) { return d.create_stream().value; }, NoGil())
      .def(
          "destroy_stream", [](Driver& d, std::uint64_t stream) { d.destroy_stream({stream}); },
          py::arg("stream"), NoGil())
      .def(
          "record", [](Driver& d, std::uint64_t stream) { return d.record({stream}).value; },
          py::arg("stream") = 0, NoGil())
      .def(
          "query", [](Driver& d, std::uint64_t event) { return d.query({event}); }, py::arg("event"), NoGil())
      .def(
          "wait", [](Driver& d, std::uint64_t event) { d.wait({event}); }, py::arg("event"), NoGil())
      .def(
          "destroy_event", [](Driver& d, std::uint64_t event) { d.destroy_event({event}); }, py::arg("event"),
          NoGil());
  m.def("cuda_free_bytes", [](int device) { return cuda::free_bytes(device); }, py::arg("device"), NoGil());
  py::class_<cuda::Calls>(m, "CudaContext")
      .def(py::init([](int device) { return std::make_unique<cuda::Calls>(device); }), py::arg("device"),
           NoGil())
      .def("free_bytes", [](const cuda::Calls& calls) { return cuda::free_bytes(calls); }, NoGil());
  m.def("mapping_limit", [] {
    const host::MostMappings& most = host::MappingCount::of_process().most();
    return std::pair(most.count, most.by_variable() ? "VMM_MAX_MAPPINGS" : "vm.max_map_count (sysctl)");
  });
  m.def("cuda_name", [](int device) { return cuda::name(device); }, py::arg("device"), NoGil());
  py::class_<CudaDriver, Driver, std::shared_ptr<CudaDriver>>(m, "CudaDriver")
      .def(py::init([](int device, bool host_accessible) {
             return ends_without_gil(std::make_shared<CudaDriver>(
                 CudaOptions{.device = device, .host_accessible = host_accessible}));
           }),
           py::arg("device") = 0, py::arg("host_accessible") = false, NoGil());
  py::class_<CheckedDriver, Driver, std::shared_ptr<CheckedDriver>>(m, "CheckedDriver")
      .def(py::init([](std::shared_ptr<Driver> inner) {
             return ends_without_gil(std::make_shared<CheckedDriver>(std::move(inner)));
           }),
           py::arg("driver"));
  py::class_<HostDriver, Driver, std::shared_ptr<HostDriver>>(m, "HostDriver")
      .def(py::init([](const std::string& name) {
             return ends_without_gil(std::make_shared<HostDriver>(name.c_str()));
           }),
           py::arg("name") = "vmm", NoGil())
      .def_property_readonly("committed_bytes", &HostDriver::committed_bytes);
}

}  // namespace vmm
