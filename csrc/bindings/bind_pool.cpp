// Pools and budgets.
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "base/error.h"
#include "bindings/bindings.h"
#include "bindings/pool_handle.h"

namespace py = pybind11;

namespace vmm {
namespace {

struct Options {
  std::uint64_t budget_bytes;
  std::string name;
  std::uint64_t arena_bytes;
  std::uint64_t run_bytes;
  std::uint64_t lookahead_pages;
  bool pager_thread;
  bool faults;
  std::int64_t idle_ns;
  CudaOptions cuda;  // device: -1 for none
  TiersOptions tiers;
  std::string eviction;  // the policy's name
};

std::unique_ptr<PoolHandle, DeleteWithoutGil> make_pool(const Options& options,
                                                        std::shared_ptr<Budget> budget) {
  std::unique_ptr<PoolHandle, DeleteWithoutGil> handle(new PoolHandle);
  handle->budget = budget ? std::move(budget) : std::make_shared<LocalBudget>(Bytes{options.budget_bytes});
  handle->share = std::dynamic_pointer_cast<SharedBudget>(handle->budget);
  std::unique_ptr<Driver> driver;
  if (options.cuda.device >= 0) {
    auto cuda = std::make_unique<CudaDriver>(options.cuda);
    handle->cuda = cuda.get();
    driver = std::move(cuda);
  } else {
    auto host = std::make_unique<HostDriver>(options.name.c_str());
    handle->host = host.get();
    driver = std::move(host);
  }
  if (options.faults) {
    auto faults = std::make_unique<FaultDriver>(std::move(driver));
    handle->faults = faults.get();
    driver = std::move(faults);
  }
  driver = std::make_unique<CheckedDriver>(std::move(driver));
  PoolOptions pool_options;
  if (options.arena_bytes != 0) pool_options.arena_bytes = {options.arena_bytes};
  pool_options.run_bytes = {options.run_bytes};
  PagerOptions pager_options;
  pager_options.lookahead = {options.lookahead_pages};
  pager_options.idle_time = Nanoseconds{options.idle_ns};
  auto pool = Pool::make(std::move(driver), handle->budget, std::make_shared<RealClock>(), pool_options);
  handle->engine = std::make_unique<Engine>(pool, pager_options, options.pager_thread);
  if (options.tiers.host.count != 0 || options.tiers.file.count != 0) {
    auto tiers =
        make_tiers(pool, options.tiers, std::make_shared<SlotCalls>(), std::make_shared<RealClock>());
    handle->parking = Parking::make(handle->engine->pager(), std::move(tiers), options.eviction);
  }
  return handle;
}

py::dict stats(const PoolHandle& handle) {
  PoolStats s{};
  ShareStanding standing{};
  {
    const ReleaseGil released;
    s = handle.pool().stats();
    standing.grant = s.budget;
    if (handle.share) {
      standing = handle.share->standing();
      s.budget = handle.share->maximum();
    }
  }
  const Counters& c = handle.pool().counters();
  py::dict out;
  out["budget_bytes"] = s.budget.count;
  out["granted_bytes"] = standing.grant.count;
  out["wanted_bytes"] = standing.wanted.count;
  out["pressure_bytes"] = standing.pressure.count;
  out["created_bytes"] = s.created.count;
  out["peak_created_bytes"] = s.peak_created.count;
  out["free_bytes"] = s.free.count;
  out["mapped_bytes"] = s.mapped.count;
  out["saved_bytes"] = s.saved.count;
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

/// So many bytes are lacking. Waits a moment for parked sequences to give them. False where none will.
bool await_room(const PoolHandle& handle, std::uint64_t bytes) {
  if (!handle.parking || !handle.parking->make_room({bytes})) return false;
  handle.parking->await();
  return true;
}

std::vector<std::pair<int, std::string>> drain_log(const PoolHandle& handle) {
  handle.require_parent();
  std::vector<std::pair<int, std::string>> out;
  const auto drain = [&](Log& log) {
    for (LogRecord& record : log.drain())
      out.emplace_back(static_cast<int>(record.level), std::move(record.text));
  };
  drain(handle.pool().log());
  if (handle.share) drain(handle.share->log());
  return out;
}

}  // namespace

void bind_pool(py::module_& m) {
  py::class_<PoolHandle, std::unique_ptr<PoolHandle, DeleteWithoutGil>>(m, "Pool")
      .def(py::init([](std::uint64_t budget, const std::string& name, std::uint64_t arena, std::uint64_t run,
                       std::uint64_t lookahead, bool pager_thread, bool faults,
                       std::shared_ptr<Budget> shared_budget, int cuda_device, bool cuda_host_accessible,
                       std::int64_t idle_ns, std::vector<int> peers, bool rdma, bool shareable,
                       std::uint64_t host_tier, std::string directory, std::uint64_t file_tier,
                       std::string eviction, bool write_through, bool verify_host) {
             CudaOptions cuda{cuda_device, cuda_host_accessible, std::move(peers), rdma, shareable};
             TiersOptions tiers{{host_tier}, std::move(directory), {file_tier}, write_through, verify_host};
             return make_pool({budget, name, arena, run, lookahead, pager_thread, faults, idle_ns,
                               std::move(cuda), std::move(tiers), std::move(eviction)},
                              std::move(shared_budget));
           }),
           py::arg("budget_bytes"), py::kw_only(), py::arg("name") = "vmm", py::arg("arena_bytes") = 0,
           py::arg("run_bytes") = 0, py::arg("lookahead_pages") = 1, py::arg("pager_thread") = true,
           py::arg("faults") = false, py::arg("shared_budget") = nullptr, py::arg("cuda_device") = -1,
           py::arg("cuda_host_accessible") = false, py::arg("idle_ns") = PagerOptions{}.idle_time.count(),
           py::arg("peers") = std::vector<int>{}, py::arg("rdma") = false, py::arg("shareable") = false,
           py::arg("host_tier_bytes") = 0, py::arg("tier_directory") = "", py::arg("file_tier_bytes") = 0,
           py::arg("eviction") = "predictive", py::arg("write_through") = false,
           py::arg("verify_host") = false, NoGil())
      .def(
          "reserve",
          [](PoolHandle& h, std::uint64_t page_bytes, std::uint64_t extent_bytes, std::uint64_t extents,
             std::uint32_t kind, bool zeroed, std::uint64_t longest_bytes,
             std::optional<std::uint64_t> stream, std::uint32_t tenant) {
            const ReservationShape shape{.page_bytes = {page_bytes},
                                         .extent_bytes = {extent_bytes},
                                         .extents = extents,
                                         .kind = {kind},
                                         .longest = {longest_bytes},
                                         .zeroed = zeroed,
                                         .tenant = {tenant}};
            return ends_without_gil(
                h.pool().reserve(shape, stream ? std::optional(StreamHandle{*stream}) : std::nullopt));
          },
          py::kw_only(), py::arg("page_bytes"), py::arg("extent_bytes"), py::arg("extents") = 1,
          py::arg("kind") = 0, py::arg("zeroed") = false, py::arg("longest_bytes") = 0,
          py::arg("stream") = py::none(), py::arg("tenant") = 0, NoGil())
      .def("stats", &stats)
      .def("tier_stats", &tier_stats)
      .def_property_readonly("has_tiers", [](const PoolHandle& h) { return h.parking != nullptr; })
      .def("await_room", &await_room, py::arg("bytes"), NoGil())
      .def(
          "check", [](PoolHandle& h) { h.pool().check(); }, NoGil())
      .def(
          "trim", [](PoolHandle& h, std::uint64_t bytes) { return h.pool().trim({bytes}, true).count; },
          py::arg("bytes"), NoGil())
      .def(
          "warm",
          [](PoolHandle& h, std::uint64_t wanted, std::uint64_t page_bytes, std::uint64_t at_most) {
            return h.pool().mapping().warm({wanted}, {page_bytes}, {at_most}).count;
          },
          py::arg("wanted"), py::arg("page_bytes"), py::arg("at_most"), NoGil())
      .def(
          "poll", [](PoolHandle& h) { return h.engine->pager()->poll(h.pool().clock().now()).now; }, NoGil())
      .def(
          "step",
          [](PoolHandle& h, std::uint64_t stream) {
            h.require_parent();
            h.pool().epochs().step({stream});
            h.pool().streams().epoch_closed();
          },
          py::arg("stream") = 0, NoGil())
      .def(
          "end",
          [](PoolHandle& h, std::uint64_t stream) {
            h.require_parent();
            h.pool().epochs().end({stream});
            h.pool().streams().epoch_closed();
          },
          py::arg("stream") = 0, NoGil())
      .def(
          "mark",
          [](PoolHandle& h, std::uint64_t stream) {
            h.require_parent();
            h.pool().epochs().mark({stream});
          },
          py::arg("stream"), NoGil())
      .def(
          "cover",
          [](PoolHandle& h, std::uint64_t stream) {
            h.require_parent();
            h.pool().epochs().cover({stream});
          },
          py::arg("stream"), NoGil())
      .def(
          "watch",
          [](PoolHandle& h, std::uint64_t stream) {
            h.require_parent();
            h.pool().epochs().watch({stream});
          },
          py::arg("stream"), NoGil())
      .def_property_readonly("streams_ended",
                             no_gil([](const PoolHandle& h) { return h.pool().epochs().streams_ended(); }))
      .def(
          "create_stream", [](PoolHandle& h) { return h.pool().streams().create().value; }, NoGil())
      .def(
          "end_stream", [](PoolHandle& h, std::uint64_t stream) { h.pool().streams().end({stream}); },
          py::arg("stream"))
      .def(
          "destroy_stream", [](PoolHandle& h, std::uint64_t stream) { h.pool().streams().destroy({stream}); },
          py::arg("stream"), NoGil())
      .def(
          "copy",
          [](PoolHandle& h, std::uintptr_t to, std::uintptr_t from, std::uint64_t size,
             std::uint64_t stream) { h.pool().streams().copy({to}, {from}, {size}, {stream}); },
          py::arg("to"), py::arg("source"), py::arg("size"), py::arg("stream"), NoGil())
      .def(
          "synchronize",
          [](PoolHandle& h, std::uint64_t stream) { h.pool().streams().synchronize({stream}); },
          py::arg("stream"), NoGil())
      .def(
          "close",
          [](PoolHandle& h, std::optional<double> patience_s) {
            const Nanoseconds patience =
                patience_s
                    ? std::chrono::duration_cast<Nanoseconds>(std::chrono::duration<double>(*patience_s))
                    : Nanoseconds::max();
            if (h.parking) h.parking->shut(std::min<Nanoseconds>(patience, std::chrono::seconds(5)));
            h.engine->close(patience);
            h.leave_share();
          },
          py::arg("patience_s") = py::none(), NoGil())
      .def(
          "export_page",
          [](PoolHandle& h, std::uintptr_t address) {
            const ExportedPage page = h.pool().mapping().export_page({address});
            return std::tuple(page.file, page.offset.count, page.page_bytes.count);
          },
          py::arg("address"), NoGil())
      .def(
          "holds", [](PoolHandle& h, std::uintptr_t address) { return h.pool().leases().holds({address}); },
          py::arg("address"))
      .def(
          "pressure_bytes",
          [](const PoolHandle& h) {
            h.require_parent();
            return h.share ? h.share->standing().pressure.count
                           : saturating_sub(h.budget->taken(), h.budget->limit()).count;
          },
          NoGil())
      .def(
          "await_pressure",
          [](PoolHandle& h, double timeout_s) {
            h.require_parent();
            const auto at_most =
                std::chrono::duration_cast<Nanoseconds>(std::chrono::duration<double>(timeout_s));
            return h.share->await_pressure(at_most, [&] { return h.closing.load(); }).count;
          },
          py::arg("timeout_s"), NoGil())
      .def_property_readonly("closed", no_gil([](PoolHandle& h) { return h.pool().closed(); }))
      .def_property_readonly("budget", [](PoolHandle& h) { return h.budget; })
      .def_property_readonly("in_child", [](PoolHandle& h) { return h.pool().fork_guard().in_child(); })
      .def_property_readonly("granularity", [](PoolHandle& h) { return h.capabilities().granularity.count; })
      .def_property_readonly("default_page_bytes",
                             [](PoolHandle& h) { return h.capabilities().default_page_bytes.count; })
      .def_property_readonly("gpu", [](PoolHandle& h) { return h.capabilities().gpu; })
      .def_property_readonly("device_events", [](PoolHandle& h) { return h.capabilities().device_events; })
      .def_property_readonly("compute_capability",
                             [](PoolHandle& h) { return h.capabilities().compute_capability; })
      .def_property_readonly("arena_bytes",
                             [](PoolHandle& h) { return h.pool().leases().arena_bytes().count; })
      .def_property_readonly("max_mappings", [](PoolHandle& h) { return h.capabilities().max_mappings; })
      .def_property_readonly("run_bytes", [](PoolHandle& h) { return h.pool().run_bytes().count; })
      .def(
          "device_free_bytes", [](const PoolHandle& h) { return h.require_cuda().free_bytes().count; },
          NoGil())
      .def(
          "events_in_use", [](const PoolHandle& h) { return h.require_cuda().events_in_use(); }, NoGil())
      .def_property_readonly("memfd", [](PoolHandle& h) { return h.require_host().memfd(); })
      .def("drain_log", &drain_log, NoGil())
      .def(
          "fail_at",
          [](PoolHandle& h, std::int64_t n, std::int64_t times, bool out_of_memory) {
            h.require_faults().fail_at(n, times, out_of_memory ? Fault::out_of_memory : Fault::error);
          },
          py::arg("n"), py::arg("times") = 1, py::arg("out_of_memory") = false, NoGil())
      .def(
          "hold_events", [](PoolHandle& h, bool hold) { h.require_faults().hold_events(hold); },
          py::arg("hold"), NoGil())
      .def(
          "delay_events", [](PoolHandle& h, std::uint64_t n) { h.require_faults().delay_events(n); },
          py::arg("queries"), NoGil())
      .def_property_readonly("last_failed", no_gil([](PoolHandle& h) -> std::string {
                               return h.faults ? h.faults->last_failed() : "";
                             }));
}

}  // namespace vmm
