// The slots of a serving engine.
#include <pybind11/stl.h>

#include <memory>
#include <span>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/bindings.h"
#include "bindings/full_device.h"
#include "bindings/pool_handle.h"
#include "engine/kv_cache.h"

namespace py = pybind11;

namespace vmm {
namespace {

/// The numbers at this address, which Python keeps alive during the call.
std::span<const std::int32_t> numbers(std::uintptr_t address, std::size_t count) {
  return {reinterpret_cast<const std::int32_t*>(address), count};
}

}  // namespace

void bind_kv_cache(py::module_& m) {
  using Part = std::tuple<std::shared_ptr<Lease>, std::uint64_t, std::uint64_t, std::uint64_t>;
  using Held = std::unique_ptr<KvCache, DeleteWithoutGil>;
  py::class_<KvCache, Held>(m, "KvCache")
      .def(
          py::init([](PoolHandle& h, const std::vector<Part>& parts, std::uint32_t count, std::uint64_t tail,
                      std::uint64_t tokens_per_step, std::uint64_t max_tokens, std::uint64_t first_tokens) {
            std::vector<SlotPart> out;
            for (const auto& [lease, extents, record_bytes, window] : parts)
              out.push_back({lease, 0, extents, {record_bytes}, {window}});
            return Held(new KvCache(h.engine->pager(), std::move(out), count,
                                    KvCacheOptions{{tail}, {tokens_per_step}, {max_tokens}, {first_tokens}}));
          }),
          py::arg("pool"), py::arg("parts"), py::arg("count"), py::kw_only(), py::arg("tail") = 0,
          py::arg("tokens_per_step") = 1, py::arg("max_tokens") = 0, py::arg("first_tokens") = 0, NoGil())
      .def(
          "open",
          [](KvCache& c, std::uint64_t prompt, std::uint64_t announced, std::uint64_t stream) {
            return c.open({prompt}, {announced}, {stream});
          },
          py::arg("prompt"), py::arg("announced"), py::arg("stream") = 0, NoGil())
      .def(
          "step",
          [](KvCache& c, std::uintptr_t slots, std::size_t slot_count, std::uintptr_t lengths,
             std::size_t length_count, std::uint64_t stream) {
            with_full_device(c.slots().pool(), [&] {
              c.step(numbers(slots, slot_count), numbers(lengths, length_count), {stream});
            });
          },
          py::arg("slots"), py::arg("slot_count"), py::arg("lengths"), py::arg("length_count"),
          py::arg("stream") = 0)
      .def(
          "end", [](KvCache& c, std::uint64_t stream) { c.end({stream}); }, py::arg("stream") = 0, NoGil())
      .def(
          "announce", [](KvCache& c, std::uint32_t slot, std::uint64_t to) { c.announce_tokens(slot, {to}); },
          py::arg("slot"), py::arg("to"), NoGil())
      .def(
          "fork",
          [](KvCache& c, std::uint32_t slot, std::uint32_t count, std::uint64_t stream) {
            std::vector<std::uint32_t> out;
            with_full_device(c.slots().pool(), [&] { out = c.fork(slot, count, {stream}); });
            return out;
          },
          py::arg("slot"), py::arg("count"), py::arg("stream") = 0)
      .def(
          "truncate",
          [](KvCache& c, std::uint32_t slot, std::uint64_t to, std::uint64_t stream) {
            with_full_device(c.slots().pool(), [&] { c.truncate(slot, {to}, {stream}); });
          },
          py::arg("slot"), py::arg("to"), py::arg("stream") = 0)
      .def(
          "close", [](KvCache& c, std::uint32_t slot, std::uint64_t stream) { c.close(slot, {stream}); },
          py::arg("slot"), py::arg("stream") = 0, NoGil())
      .def(
          "previous_length",
          [](const KvCache& c, std::uint32_t slot) { return c.previous_length(slot).count; }, py::arg("slot"),
          NoGil())
      .def(
          "length", [](const KvCache& c, std::uint32_t slot) { return c.length(slot).count; },
          py::arg("slot"), NoGil())
      .def_property_readonly("open_slots", no_gil(&KvCache::open_slots))
      .def_property_readonly("held_bytes", no_gil([](const KvCache& c) { return c.held().count; }))
      .def_property_readonly("live_bytes", no_gil([](const KvCache& c) { return c.live().count; }))
      .def_property_readonly("horizon", no_gil(&KvCache::horizon))
      .def_property_readonly("max_tokens", [](KvCache& c) { return c.slots().max_tokens().count; })
      .def_property_readonly_static("bytes_per_slot",
                                    [](const py::object&) { return KvCache::bytes_per_slot(); });
}

}  // namespace vmm
