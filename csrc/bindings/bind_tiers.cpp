// Stores of tiers, by themselves, for `vmm bench swap` and tests. A slot is a pair of its index and its
// generation.
#include <pybind11/stl.h>

#include <array>
#include <cstring>
#include <exception>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "bindings/bindings.h"
#include "bindings/pool_handle.h"
#include "tier/device_link.h"
#include "tier/host_store.h"
#include "tier/slot_file.h"

namespace py = pybind11;

namespace vmm {
namespace {

using SlotPair = std::pair<std::uint32_t, std::uint32_t>;
using StorePointer = std::unique_ptr<TierStore, DeleteWithoutGil>;

/// The driver of the pool whose pages a store is for, where the CPU does not reach them.
std::shared_ptr<Driver> device_of(const PoolHandle* pool) {
  if (pool == nullptr) return nullptr;
  pool->require_parent();
  return copying_device(pool->engine->pool());
}

StorePointer bound_host_store(std::uint64_t capacity, std::uint64_t slot, const PoolHandle* pool) {
  const std::shared_ptr<Driver> device = device_of(pool);
  return StorePointer(make_host_store({.capacity = {capacity}, .slot = {slot}, .device = device},
                                      device ? pinned_slabs(device) : plain_slabs(),
                                      std::make_shared<RealClock>(), std::make_shared<Log>())
                          .release());
}

StorePointer bound_slot_file(const std::string& directory, std::uint64_t capacity, std::uint64_t slot,
                             unsigned threads, const PoolHandle* pool) {
  return StorePointer(make_slot_file({.directory = directory,
                                      .capacity = {capacity},
                                      .slot = {slot},
                                      .threads = threads,
                                      .device = device_of(pool)},
                                     std::make_shared<SlotCalls>(), std::make_shared<RealClock>(),
                                     std::make_shared<Log>())
                          .release());
}

std::vector<SlotPair> take_slots(TierStore& store, std::uint32_t count) {
  std::vector<SlotPair> out;
  for (const TierSlot slot : store.take(count)) out.emplace_back(slot.index, slot.generation);
  return out;
}

void give_slots_back(TierStore& store, const std::vector<SlotPair>& slots) {
  for (const auto& [index, generation] : slots) store.give_back({index, generation});
}

/// Moves pages that lie side by side from `address` on, and returns when all have ended.
void transfer_all(TierStore& store, TransferKind kind, const std::vector<SlotPair>& slots,
                  std::uintptr_t address) {
  std::vector<Transfer> all;
  for (const auto& [index, generation] : slots) {
    const std::uintptr_t page = address + all.size() * store.slot_bytes().count;
    all.push_back({kind, {index, generation}, reinterpret_cast<std::byte*>(page), all.size()});
  }
  std::size_t submitted = 0;
  std::size_t failed = 0;
  std::exception_ptr refused;  // of those after the first: the memory must outlive what has begun
  std::array<Completion, 64> ends;
  for (std::size_t ended = 0; ended < (refused ? submitted : all.size());) {
    try {
      if (!refused) submitted += store.submit(std::span(all).subspan(submitted));
    } catch (...) {
      refused = std::current_exception();
      continue;
    }
    const std::size_t got = store.wait(ends, std::chrono::seconds(60));
    for (std::size_t i = 0; i < got; ++i) failed += ends[i].outcome != Outcome::done;
    ended += got;
  }
  if (refused) std::rethrow_exception(refused);
  if (failed > 0) throw DriverError(std::to_string(failed) + " pages could not be moved to or from a tier");
}

/// What a store of memory is compared with: the system's copies, one for each page.
void memcpy_pages(std::uintptr_t to, std::uintptr_t from, std::size_t page, std::size_t count) {
  for (std::size_t at = 0; at < page * count; at += page)
    std::memcpy(reinterpret_cast<void*>(to + at), reinterpret_cast<const void*>(from + at), page);
}

py::dict dict_of(const TierFigures& f) {
  using namespace py::literals;
  return py::dict("slots"_a = f.slots, "free"_a = f.free, "quarantined"_a = f.quarantined,
                  "pending"_a = f.pending, "calls"_a = f.calls, "written_bytes"_a = f.written.count,
                  "read_bytes"_a = f.read.count, "verified"_a = f.verified,
                  "write_failures"_a = f.write_failures, "read_failures"_a = f.read_failures,
                  "corrupt"_a = f.corrupt, "timed_out"_a = f.timed_out, "read_only"_a = f.read_only,
                  "longest_running_ns"_a = f.longest_running.count());
}

}  // namespace

std::optional<py::dict> tier_stats(const PoolHandle& handle) {
  handle.require_parent();
  if (!handle.parking) return std::nullopt;
  ParkingFigures figures;
  std::vector<std::pair<const char*, TierFigures>> tiers;
  {
    const ReleaseGil released;
    figures = handle.parking->figures();
    const Tiers& all = handle.parking->tiers();
    for (std::uint32_t tier = 0; tier < all.count(); ++tier)
      tiers.emplace_back(all.name(tier), all.figures(tier));
  }
  py::dict out;
  out["parked_sequences"] = figures.parked;
  out["dirty_pages"] = figures.dirty;
  out["cleaned_pages"] = figures.cleaned;
  out["loaded_pages"] = figures.loaded;
  out["lost_pages"] = figures.lost;
  out["loads"] = figures.loads;
  out["loading_ns"] = figures.loading.count();
  out["waited_ns"] = figures.waited.count();
  out["page_bytes"] = figures.page_bytes.count;
  for (const auto& [name, tier] : tiers) out[name] = dict_of(tier);
  return out;
}

void bind_tiers(py::module_& m) {
  py::class_<TierStore, StorePointer>(m, "TierStore")
      .def_static("host", &bound_host_store, py::kw_only(), py::arg("capacity"), py::arg("slot"),
                  py::arg("pool") = nullptr, NoGil())
      .def_static("file", &bound_slot_file, py::arg("directory"), py::kw_only(), py::arg("capacity"),
                  py::arg("slot"), py::arg("threads") = 4, py::arg("pool") = nullptr, NoGil())
      .def_property_readonly("alignment", no_gil(&TierStore::alignment))
      .def("take", &take_slots, py::arg("count"), NoGil())
      .def("give_back", &give_slots_back, py::arg("slots"), NoGil())
      .def(
          "write",
          [](TierStore& store, const std::vector<SlotPair>& slots, std::uintptr_t address) {
            transfer_all(store, TransferKind::write, slots, address);
          },
          py::arg("slots"), py::arg("address"), NoGil())
      .def(
          "read",
          [](TierStore& store, const std::vector<SlotPair>& slots, std::uintptr_t address) {
            transfer_all(store, TransferKind::read, slots, address);
          },
          py::arg("slots"), py::arg("address"), NoGil())
      .def("figures", [](const TierStore& store) { return dict_of(store.figures()); })
      .def("close", [](TierStore& store) { return store.close(std::chrono::seconds(5)); }, NoGil());
  m.def("memcpy_pages", &memcpy_pages, py::arg("to"), py::arg("source"), py::kw_only(), py::arg("page"),
        py::arg("count"), NoGil());
}

}  // namespace vmm
