// vmm._core: what Python sees of the engine. Sizes cross as plain integers of bytes, pages or tokens.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <tuple>

#include "base/error.h"
#include "bindings/dlpack.h"
#include "driver/fault_driver.h"
#include "driver/host_driver.h"
#include "engine/engine.h"

namespace py = pybind11;

namespace vmm {
namespace {

using NoGil = py::call_guard<py::gil_scoped_release>;
using Ranges = std::vector<std::pair<std::uint32_t, std::uint64_t>>;  // (first page, pages)

std::vector<PageRange> to_ranges(const Ranges& ranges) {
  std::vector<PageRange> out;
  out.reserve(ranges.size());
  for (auto [first, count] : ranges) out.push_back({{first}, {count}});
  return out;
}

struct Options {
  std::uint64_t budget_bytes;
  std::string name;
  std::uint64_t arena_bytes;
  std::uint64_t run_bytes;
  std::uint64_t lookahead_pages;
  bool pager_thread;
  bool faults;
};

/// The engine with handles on the parts of it that Python configures.
struct PoolHandle {
  std::shared_ptr<LocalBudget> budget;
  HostDriver* host;
  FaultDriver* faults;  // null unless asked for
  std::unique_ptr<Engine> engine;

  Pool& pool() const { return *engine->pool(); }
  void require_parent() const { pool().fork_guard().require_parent("this pool"); }
};

std::unique_ptr<PoolHandle> make_pool(const Options& options, std::shared_ptr<LocalBudget> budget) {
  auto handle = std::make_unique<PoolHandle>();
  handle->budget = budget ? std::move(budget) : std::make_shared<LocalBudget>(Bytes{options.budget_bytes});
  auto host = std::make_unique<HostDriver>(options.name.c_str());
  handle->host = host.get();
  std::unique_ptr<Driver> driver = std::move(host);
  if (options.faults) {
    auto faults = std::make_unique<FaultDriver>(std::move(driver));
    handle->faults = faults.get();
    driver = std::move(faults);
  }
  PoolOptions pool_options;
  if (options.arena_bytes != 0) pool_options.arena_bytes = {options.arena_bytes};
  pool_options.run_bytes = {options.run_bytes};
  PagerOptions pager_options;
  pager_options.lookahead = {options.lookahead_pages};
  auto pool = Pool::make(std::move(driver), handle->budget, std::make_shared<RealClock>(), pool_options);
  handle->engine = std::make_unique<Engine>(std::move(pool), pager_options, options.pager_thread);
  return handle;
}

py::dict stats(const PoolHandle& handle) {
  const PoolStats s = handle.pool().stats();
  const Counters& c = handle.pool().counters();
  py::dict out;
  out["budget_bytes"] = s.budget.count;
  out["created_bytes"] = s.created.count;
  out["peak_created_bytes"] = s.peak_created.count;
  out["free_bytes"] = s.free.count;
  out["mapped_bytes"] = s.mapped.count;
  out["kept_bytes"] = s.kept.count;
  out["reclaimable_bytes"] = s.reclaimable.count;
  out["reservations_leased"] = s.reservations_leased;
  out["reservations_idle"] = s.reservations_idle;
  out["retirements_waiting"] = s.retirements_waiting;
  out["runs"] = s.runs;
  out["stalls"] = c.stalls.get();
  out["stall_ns"] = c.stall_ns.get();
  out["pages_mapped_ahead"] = c.pages_mapped_ahead.get();
  out["pages_mapped_waiting"] = c.pages_mapped_waiting.get();
  out["pages_created"] = c.pages_created.get();
  out["pages_released"] = c.pages_released.get();
  out["pages_unmapped"] = c.pages_unmapped.get();
  out["pages_zeroed"] = c.pages_zeroed.get();
  out["reservations_adopted"] = c.reservations_adopted.get();
  out["reservations_made"] = c.reservations_made.get();
  out["driver_failures"] = c.driver_failures.get();
  return out;
}

std::vector<std::pair<int, std::string>> drain_log(const PoolHandle& handle) {
  handle.require_parent();
  std::vector<std::pair<int, std::string>> out;
  for (LogRecord& record : handle.pool().log().drain())
    out.emplace_back(static_cast<int>(record.level), std::move(record.text));
  return out;
}

void register_errors() {
  // The classes live in Python (vmm/errors.py), where they have docstrings; this maps ours onto them.
  py::register_exception_translator([](std::exception_ptr thrown) {
    auto raise = [](const char* name, const Error& error) {
      const py::object type = py::module_::import("vmm.errors").attr(name);
      PyErr_SetString(type.ptr(), error.what());
    };
    try {
      std::rethrow_exception(thrown);
    } catch (const OutOfPages& error) {
      const MemoryFigures& f = error.figures();
      const py::object type = py::module_::import("vmm.errors").attr("OutOfPages");
      const py::object value =
          type(error.what(), f.asked.count, f.free.count, f.reclaimable.count, f.budget.count);
      PyErr_SetObject(type.ptr(), value.ptr());
    } catch (const InvalidArgument& error) {
      raise("InvalidArgument", error);
    } catch (const Closed& error) {
      raise("Closed", error);
    } catch (const Forked& error) {
      raise("Forked", error);
    } catch (const DriverOutOfMemory& error) {
      raise("DriverOutOfMemory", error);
    } catch (const MappingLimit& error) {
      raise("MappingLimit", error);
    } catch (const DriverError& error) {
      raise("DriverError", error);
    } catch (const InvariantViolation& error) {
      raise("InvariantViolation", error);
    } catch (const Error& error) {
      raise("Error", error);
    }
  });
}

void bind_pool(py::module_& m) {
  py::class_<LocalBudget, std::shared_ptr<LocalBudget>>(m, "Budget")
      .def(py::init([](std::uint64_t limit) { return std::make_shared<LocalBudget>(Bytes{limit}); }),
           py::arg("limit_bytes"))
      .def_property_readonly("limit_bytes", [](const LocalBudget& b) { return b.limit().count; })
      .def_property_readonly("taken_bytes", [](const LocalBudget& b) { return b.taken().count; })
      .def(
          "set_limit", [](LocalBudget& b, std::uint64_t limit) { b.set_limit({limit}); },
          py::arg("limit_bytes"), NoGil());

  py::class_<PoolHandle>(m, "Pool")
      .def(py::init([](std::uint64_t budget, const std::string& name, std::uint64_t arena, std::uint64_t run,
                       std::uint64_t lookahead, bool pager_thread, bool faults,
                       std::shared_ptr<LocalBudget> shared_budget) {
             return make_pool({budget, name, arena, run, lookahead, pager_thread, faults},
                              std::move(shared_budget));
           }),
           py::arg("budget_bytes"), py::kw_only(), py::arg("name") = "vmm", py::arg("arena_bytes") = 0,
           py::arg("run_bytes") = 0, py::arg("lookahead_pages") = 1, py::arg("pager_thread") = true,
           py::arg("faults") = false, py::arg("shared_budget") = nullptr)
      .def(
          "reserve",
          [](PoolHandle& h, std::uint64_t page_bytes, std::uint64_t extent_bytes, std::uint64_t extents,
             std::uint32_t tenant, bool zeroed) {
            return h.pool().reserve({.page_bytes = {page_bytes},
                                     .extent_bytes = {extent_bytes},
                                     .extents = extents,
                                     .tenant = {tenant},
                                     .zeroed = zeroed});
          },
          py::kw_only(), py::arg("page_bytes"), py::arg("extent_bytes"), py::arg("extents") = 1,
          py::arg("tenant") = 0, py::arg("zeroed") = false, NoGil())
      .def("stats", &stats)
      .def(
          "check", [](PoolHandle& h) { h.pool().check(); }, NoGil())
      .def(
          "trim", [](PoolHandle& h, std::uint64_t bytes) { return h.pool().trim({bytes}).count; },
          py::arg("bytes"), NoGil())
      .def(
          "poll", [](PoolHandle& h) { return h.engine->pager()->poll(h.pool().clock().now()).now; }, NoGil())
      .def(
          "step", [](PoolHandle& h, std::uint64_t stream) { h.pool().epochs().step({stream}); },
          py::arg("stream") = 0, NoGil())
      .def(
          "end", [](PoolHandle& h, std::uint64_t stream) { h.pool().epochs().end({stream}); },
          py::arg("stream") = 0, NoGil())
      .def(
          "close", [](PoolHandle& h) { h.engine->close(); }, NoGil())
      .def_property_readonly("closed", [](PoolHandle& h) { return h.pool().closed(); })
      .def_property_readonly("budget", [](PoolHandle& h) { return h.budget; })
      .def_property_readonly("in_child", [](PoolHandle& h) { return h.pool().fork_guard().in_child(); })
      .def_property_readonly("granularity",
                             [](PoolHandle& h) { return h.host->capabilities().granularity.count; })
      .def_property_readonly("default_page_bytes",
                             [](PoolHandle& h) { return h.host->capabilities().default_page_bytes.count; })
      .def_property_readonly("max_mappings",
                             [](PoolHandle& h) { return h.host->capabilities().max_mappings; })
      .def_property_readonly("run_bytes", [](PoolHandle& h) { return h.pool().run_bytes().count; })
      .def_property_readonly("memfd", [](PoolHandle& h) { return h.host->memfd(); })
      .def("drain_log", &drain_log)
      .def(
          "fail_at",
          [](PoolHandle& h, std::int64_t n, std::int64_t times, bool out_of_memory) {
            if (h.faults == nullptr) throw InvalidArgument("fail_at: the pool was made without faults=True");
            h.faults->fail_at(n, times, out_of_memory ? Fault::out_of_memory : Fault::error);
          },
          py::arg("n"), py::arg("times") = 1, py::arg("out_of_memory") = false)
      .def(
          "hold_events",
          [](PoolHandle& h, bool hold) {
            if (h.faults == nullptr)
              throw InvalidArgument("hold_events: the pool was made without faults=True");
            h.faults->hold_events(hold);
          },
          py::arg("hold"))
      .def_property_readonly("last_failed",
                             [](PoolHandle& h) { return h.faults ? h.faults->last_failed() : ""; });
}

void bind_lease(py::module_& m) {
  py::class_<Lease, std::shared_ptr<Lease>>(m, "Lease")
      .def_property_readonly("address", [](const Lease& l) { return l.base().value; })
      .def_property_readonly("size", [](const Lease& l) { return l.size().count; })
      .def_property_readonly("page_bytes", [](const Lease& l) { return l.shape().page_bytes.count; })
      .def_property_readonly("extent_bytes", [](const Lease& l) { return l.shape().extent_bytes.count; })
      .def_property_readonly("extents", &Lease::extents)
      .def_property_readonly("mapped_bytes",
                             [](const Lease& l) { return l.pool().mapped(l.reservation()).count; })
      .def(
          "map",
          [](Lease& l, const Ranges& ranges, bool keep) {
            MapOptions options;
            options.keep = keep;
            return l.pool().map(l.reservation(), to_ranges(ranges), options).mapped.count;
          },
          py::arg("ranges"), py::arg("keep") = true, NoGil())
      .def(
          "unkeep", [](Lease& l, const Ranges& r) { l.pool().unkeep(l.reservation(), to_ranges(r)); },
          py::arg("ranges"), NoGil())
      .def(
          "retire",
          [](Lease& l, const Ranges& r) {
            l.pool().retire(l.reservation(), to_ranges(r), l.pool().epochs().fence());
          },
          py::arg("ranges"), NoGil())
      .def(
          "missing",
          [](Lease& l, const Ranges& r) { return l.pool().missing(l.reservation(), to_ranges(r)).count; },
          py::arg("ranges"), NoGil())
      .def(
          "dlpack",
          [](std::shared_ptr<Lease> lease, std::uint64_t offset_bytes, std::vector<std::int64_t> shape,
             std::vector<std::int64_t> strides, std::uint8_t type_code, std::uint8_t type_bits) {
            return export_tensor(std::move(lease),
                                 {offset_bytes, std::move(shape), std::move(strides), type_code, type_bits});
          },
          py::kw_only(), py::arg("offset_bytes"), py::arg("shape"), py::arg("strides"), py::arg("type_code"),
          py::arg("type_bits"));
}

void bind_growth(py::module_& m) {
  using Part = std::tuple<std::shared_ptr<Lease>, std::uint64_t, std::uint64_t, std::uint64_t>;
  py::class_<Growth, std::shared_ptr<Growth>>(m, "Growth")
      .def(py::init([](PoolHandle& h, const std::vector<Part>& parts) {
             std::vector<GrowthPart> out;
             for (const auto& [lease, first_extent, extents, record_bytes] : parts)
               out.push_back({lease, first_extent, extents, {record_bytes}});
             return std::make_shared<Growth>(h.engine->pager(), std::move(out));
           }),
           py::arg("pool"), py::arg("parts"))
      .def(
          "advance", [](Growth& g, std::uint64_t to) { return g.advance({to}).count; }, py::arg("to"),
          NoGil())
      .def(
          "announce", [](Growth& g, std::uint64_t to) { g.announce({to}); }, py::arg("to"), NoGil())
      .def(
          "truncate", [](Growth& g, std::uint64_t to) { return g.truncate({to}).count; }, py::arg("to"),
          NoGil())
      .def(
          "scrub", [](Growth& g, std::uint64_t from, std::uint64_t to) { g.scrub({from}, {to}); },
          py::arg("start"), py::arg("stop"), NoGil())
      .def(
          "missing", [](const Growth& g, std::uint64_t to) { return g.missing({to}).count; }, py::arg("to"),
          NoGil())
      .def_property_readonly("max_tokens", [](const Growth& g) { return g.max_tokens().count; })
      .def_property_readonly("frontier", [](const Growth& g) { return g.frontier().count; });
  m.def(
      "admit",
      [](const std::vector<std::shared_ptr<Growth>>& growths, std::uint64_t to) { admit(growths, {to}); },
      py::arg("growths"), py::arg("to"), NoGil());
}

/// The raw driver, for the contract suite and for measuring single calls.
void bind_driver(py::module_& m) {
  using Entries = std::vector<std::tuple<std::uintptr_t, std::uint64_t, std::uint64_t>>;
  auto mappings = [](const Entries& entries) {
    std::vector<PageMapping> out;
    out.reserve(entries.size());
    for (auto [address, page, page_bytes] : entries) out.push_back({{address}, {page}, {page_bytes}});
    return out;
  };
  py::class_<Driver>(m, "Driver")
      .def_property_readonly("name", [](const Driver& d) { return d.capabilities().name; })
      .def_property_readonly("granularity",
                             [](const Driver& d) { return d.capabilities().granularity.count; })
      .def_property_readonly("default_page_bytes",
                             [](const Driver& d) { return d.capabilities().default_page_bytes.count; })
      .def_property_readonly("merges_neighbours",
                             [](const Driver& d) { return d.capabilities().merges_neighbours; })
      .def_property_readonly("fresh_pages_are_zero",
                             [](const Driver& d) { return d.capabilities().fresh_pages_are_zero; })
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
            d.zero({at}, {size}, {stream});
          },
          py::arg("address"), py::arg("size"), py::arg("stream") = 0, NoGil())
      .def("create_stream", [](Driver& d) { return d.create_stream().value; })
      .def(
          "destroy_stream", [](Driver& d, std::uint64_t stream) { d.destroy_stream({stream}); },
          py::arg("stream"))
      .def(
          "record", [](Driver& d, std::uint64_t stream) { return d.record({stream}).value; },
          py::arg("stream") = 0)
      .def(
          "query", [](Driver& d, std::uint64_t event) { return d.query({event}); }, py::arg("event"))
      .def(
          "wait", [](Driver& d, std::uint64_t event) { d.wait({event}); }, py::arg("event"), NoGil())
      .def(
          "destroy_event", [](Driver& d, std::uint64_t event) { d.destroy_event({event}); },
          py::arg("event"));
  py::class_<HostDriver, Driver>(m, "HostDriver")
      .def(py::init([](const std::string& name) { return std::make_unique<HostDriver>(name.c_str()); }),
           py::arg("name") = "vmm")
      .def_property_readonly("committed_bytes", &HostDriver::committed_bytes);
}

}  // namespace
}  // namespace vmm

PYBIND11_MODULE(_core, m) {
  m.doc() = "The engine of vmm. Not a public interface: use the vmm package.";
  vmm::register_errors();
  vmm::bind_driver(m);
  vmm::bind_pool(m);
  vmm::bind_lease(m);
  vmm::bind_growth(m);
  m.def("count_process_mappings", &vmm::count_process_mappings);
}
