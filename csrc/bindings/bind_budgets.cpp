// Budgets, of this process and across processes.
#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "bindings/bindings.h"
#include "memory/shares.h"

namespace py = pybind11;

namespace vmm {
namespace {

/// pid, start, command, minimum, maximum, priority, grant, wanted, asked.
using Guest = std::tuple<std::uint32_t, std::uint64_t, std::string, std::uint64_t, std::uint64_t,
                         std::int32_t, std::uint64_t, std::uint64_t, std::uint64_t>;

std::vector<Guest> guests(const std::string& path) {
  std::vector<Guest> out;
  for (const auto& [record, answer] : look_at_share(path))
    out.emplace_back(record.pid, record.started, record.command.data(), record.minimum, record.maximum,
                     record.priority, record.grant, record.wanted, answer.asked.count);
  return out;
}

/// For the benchmark: Python's calls cost more than what is measured. Nanoseconds.
std::int64_t time_takes(Budget& budget, std::uint64_t count) {
  const RealClock clock;
  const Nanoseconds start = clock.now();
  for (std::uint64_t i = 0; i < count; ++i)
    if (budget.take(64_KiB, 0, false)) budget.give_back(64_KiB);
  return (clock.now() - start).count();
}

}  // namespace

void bind_budgets(py::module_& m) {
  // What a pool may have at most; how much of that it may have now is its stats' to say.
  py::class_<Budget, std::shared_ptr<Budget>>(m, "Budget")
      .def(py::init([](std::uint64_t limit) -> std::shared_ptr<Budget> {
             return std::make_shared<LocalBudget>(Bytes{limit});
           }),
           py::arg("limit_bytes"))
      .def_property_readonly("limit_bytes", no_gil([](const Budget& b) { return b.maximum().count; }))
      .def_property_readonly("taken_bytes", no_gil([](const Budget& b) { return b.taken().count; }))
      .def(
          "set_limit", [](Budget& b, std::uint64_t limit) { b.set_limit({limit}); }, py::arg("limit_bytes"),
          NoGil());

  py::class_<SharedBudget, Budget, std::shared_ptr<SharedBudget>>(m, "SharedBudget")
      .def(py::init([](const std::string& path, std::uint64_t maximum, std::uint64_t minimum,
                       std::int32_t priority) {
             return ends_without_gil(part_of_share(path, {{minimum}, {maximum}, priority}));
           }),
           py::arg("path"), py::arg("maximum_bytes"), py::arg("minimum_bytes"), py::arg("priority"), NoGil())
      .def("detach", &SharedBudget::detach, NoGil())
      .def_property_readonly("pressure_bytes",
                             no_gil([](const SharedBudget& b) { return b.standing().pressure.count; }));

  m.def("time_takes", &time_takes, py::arg("budget"), py::arg("count"), NoGil());
  m.def("look_at_share", &guests, py::arg("path"), NoGil());
}

}  // namespace vmm
