// The slots of a serving engine.
#include <pybind11/stl.h>

#include <memory>
#include <span>
#include <string>
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

/// The salt, and the tokens as the bytes of int32.
py::tuple known(const KvCache::Known& found) {
  const auto* bytes = reinterpret_cast<const char*>(found.tokens.data());
  return py::make_tuple(py::bytes(found.salt),
                        py::bytes(bytes, found.tokens.size() * sizeof(PrefixIndex::Token)));
}

}  // namespace

void bind_kv_cache(py::module_& m) {
  using Part = std::tuple<std::shared_ptr<Lease>, std::uint64_t, std::uint64_t, std::uint64_t>;
  using Held = std::unique_ptr<KvCache, DeleteWithoutGil>;
  py::class_<KvCache, Held>(m, "KvCache")
      .def(py::init([](PoolHandle& h, const std::vector<Part>& parts, std::uint32_t count, std::uint64_t tail,
                       std::uint64_t tokens_per_step, std::uint64_t max_tokens, std::uint64_t first_tokens) {
             std::vector<SlotPart> out;
             for (const auto& [lease, extents, record_bytes, window] : parts)
               out.push_back({lease, 0, extents, {record_bytes}, {window}});
             return Held(new KvCache(
                 h.engine->pager(), std::move(out), count,
                 KvCacheOptions{{tail}, {tokens_per_step}, {max_tokens}, {first_tokens}, h.parking}));
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
          "open_prompt",
          [](KvCache& c, std::uintptr_t tokens, std::size_t count, std::string salt, std::uint64_t announced,
             std::uint64_t stream) {
            KvCache::Opened out{};
            with_full_device(c.slots().pool(), [&] {
              out = c.open_prompt({numbers(tokens, count), std::move(salt)}, {announced}, {stream});
            });
            return std::pair(out.slot, out.cached.count);
          },
          py::arg("tokens"), py::arg("count"), py::arg("salt"), py::arg("announced"), py::arg("stream") = 0)
      .def(
          "commit",
          [](KvCache& c, std::uint32_t slot, std::uintptr_t tokens, std::size_t count) {
            c.commit(slot, numbers(tokens, count));
          },
          py::arg("slot"), py::arg("tokens"), py::arg("count"), NoGil())
      .def("prefix_stats",
           [](const KvCache& c) {
             const PrefixStats stats = (py::gil_scoped_release(), c.prefix_stats());
             py::dict out;
             out["adopted"] = stats.adopted;
             out["aliased"] = stats.aliased;
             out["copied"] = stats.copied;
             out["restored"] = stats.restored;
             out["prompt_tokens"] = stats.looked_up.count;
             out["cached_tokens"] = stats.found.count;
             out["cached_sequences"] = stats.cached_slots;
             return out;
           })
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
          "park",
          [](KvCache& c, std::uint32_t slot, std::string category, int priority, std::int64_t idle_ns,
             std::uint64_t stream) {
            c.park(slot,
                   {.category = std::move(category), .priority = priority, .idle = Nanoseconds{idle_ns}},
                   {stream});
          },
          py::arg("slot"), py::arg("category"), py::arg("priority"), py::arg("idle_ns"),
          py::arg("stream") = 0, NoGil())
      .def(
          "prefetch",
          [](KvCache& c, const std::vector<std::int32_t>& slots, std::int64_t in_ns) {
            c.prefetch(slots, c.slots().pool().clock().now() + Nanoseconds{in_ns});
          },
          py::arg("slots"), py::arg("in_ns"), NoGil())
      .def("ready", &KvCache::ready, py::arg("slot"), NoGil())
      .def(
          "load_ns",
          [](KvCache& c, std::uint32_t slot) {
            const std::optional<Nanoseconds> time = c.load_time(slot);
            return time ? std::optional(time->count()) : std::nullopt;
          },
          py::arg("slot"), NoGil())
      .def("parked", &KvCache::parked, NoGil())
      .def("cached",
           [](const KvCache& c) {
             const std::vector<KvCache::Known> all = (py::gil_scoped_release(), c.cached());
             py::list out;
             for (const KvCache::Known& each : all) out.append(known(each));
             return out;
           })
      .def(
          "known",
          [](const KvCache& c, std::uint32_t slot) {
            const KvCache::Known found = (py::gil_scoped_release(), c.known(slot));
            return known(found);
          },
          py::arg("slot"))
      .def(
          "pin",
          [](KvCache& c, std::uint32_t slot) {
            return with_full_device(c.slots().pool(), [&] { return c.pin(slot).count; });
          },
          py::arg("slot"))
      .def("unpin", &KvCache::unpin, py::arg("slot"), NoGil())
      .def(
          "lost", [](const KvCache& c, std::uint32_t slot) { return c.lost(slot).count; }, py::arg("slot"),
          NoGil())
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
