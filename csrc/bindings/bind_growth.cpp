// Leases and what grows in them.
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/bindings.h"
#include "bindings/dlpack.h"
#include "bindings/full_device.h"
#include "bindings/pool_handle.h"
#include "engine/growth.h"
#include "engine/parked_growths.h"

namespace py = pybind11;

namespace vmm {
namespace {

using Ranges = std::vector<std::pair<std::uint32_t, std::uint64_t>>;  // (first page, pages)
using RowNumbers = std::vector<std::uint32_t>;
// (lease, first extent, extents, bytes of a record)
using GrowthPart = std::tuple<std::shared_ptr<Lease>, std::uint64_t, std::uint64_t, std::uint64_t>;

std::vector<PageRange> to_ranges(const Ranges& ranges) {
  std::vector<PageRange> out;
  out.reserve(ranges.size());
  for (auto [first, count] : ranges) out.push_back({{first}, {count}});
  return out;
}

void bind_lease(py::module_& m) {
  py::class_<Lease, std::shared_ptr<Lease>>(m, "Lease")
      .def_property_readonly("address", [](const Lease& l) { return l.base().value; })
      .def_property_readonly("size", [](const Lease& l) { return l.size().count; })
      .def_property_readonly("page_bytes", [](const Lease& l) { return l.shape().page_bytes.count; })
      .def_property_readonly("extent_bytes", [](const Lease& l) { return l.shape().extent_bytes.count; })
      .def_property_readonly("extents", &Lease::extents)
      .def_property_readonly("mapped_bytes",
                             no_gil([](const Lease& l) { return l.pool().mapped(l.reservation()).count; }))
      .def(
          "map",
          [](Lease& l, const Ranges& ranges, bool keep) {
            MapOptions options;
            options.need = keep ? Need::kept : Need::announced;
            return with_full_device(l.pool(), [&] {
              return l.pool().map(l.reservation(), to_ranges(ranges), options).mapped.count;
            });
          },
          py::arg("ranges"), py::arg("keep") = true)
      .def(
          "unkeep",
          [](Lease& l, const Ranges& r) {
            l.pool().unkeep(l.reservation(), to_ranges(r), l.pool().epochs().fence());
          },
          py::arg("ranges"), NoGil())
      // Which memory is mapped at each page: a number that two pages have in common only where they share it.
      .def(
          "memory_of",
          [](const Lease& l, const Ranges& ranges) {
            const std::vector<PageRange> pages = to_ranges(ranges);
            const Pool::Needs needs(l.pool());
            std::vector<std::uint64_t> out;
            for (PageIndex page : each_page(pages))
              out.push_back(needs.physical(l.reservation().address_of(page)).value);
            return out;
          },
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
          [](const std::shared_ptr<Lease>& lease, std::uint64_t offset_bytes, std::vector<std::int64_t> shape,
             std::vector<std::int64_t> strides, std::uint8_t type_code, std::uint8_t type_bits) {
            return export_tensor(*lease, lease,
                                 {offset_bytes, std::move(shape), std::move(strides), type_code, type_bits});
          },
          py::kw_only(), py::arg("offset_bytes"), py::arg("shape"), py::arg("strides"), py::arg("type_code"),
          py::arg("type_bits"));
}

std::shared_ptr<Growth> make_growth(PoolHandle& handle, const std::vector<GrowthPart>& parts,
                                    std::uint64_t window) {
  std::vector<SlotPart> out;
  for (const auto& [lease, first_extent, extents, record_bytes] : parts)
    out.push_back({lease, first_extent, extents, {record_bytes}, {window}});
  return ends_without_gil(Growth::make(handle.engine->pager(), std::move(out)));
}

void bind_growth_rows(py::class_<Growth, std::shared_ptr<Growth>>& growth) {
  growth
      .def(
          "advance_alike",
          [](Growth& g, const RowNumbers& like, std::uint64_t to) {
            return with_full_device(g.pool(), [&] { return g.advance_alike(like, {to}).count; });
          },
          py::arg("like"), py::arg("to"))
      .def(
          "take_rows",
          [](Growth& g, const Growth& from, const RowNumbers& rows, std::uint64_t length) {
            return with_full_device(g.pool(), [&] { return g.take_rows(from, rows, {length}).count; });
          },
          py::arg("source"), py::arg("rows"), py::arg("length"))
      .def(
          "prepare_move",
          [](Growth& g, const RowNumbers& rows, std::uint64_t length) {
            return with_full_device(g.pool(), [&] {
              return ends_without_gil(std::make_shared<GrowthMove>(g.prepare_move(rows, {length})));
            });
          },
          py::arg("rows"), py::arg("length"));
}

void bind_parked_growths(py::module_& m) {
  py::class_<ParkedGrowths, std::unique_ptr<ParkedGrowths, DeleteWithoutGil>>(m, "ParkedGrowths")
      .def(py::init([](const PoolHandle& pool,
                       const std::vector<std::pair<std::shared_ptr<Growth>, std::uint64_t>>& layers,
                       std::string category, int priority, std::int64_t idle_ns, std::uint64_t new_tokens) {
             std::vector<ParkedGrowths::Layer> all;
             for (const auto& [growth, length] : layers) all.push_back({growth, {length}});
             return std::unique_ptr<ParkedGrowths, DeleteWithoutGil>(
                 new ParkedGrowths(pool.parking, std::move(all),
                                   {.new_tokens = new_tokens,
                                    .category = std::move(category),
                                    .priority = priority,
                                    .idle = Nanoseconds{idle_ns}}));
           }),
           py::arg("pool"), py::arg("layers"), py::kw_only(), py::arg("category"), py::arg("priority"),
           py::arg("idle_ns"), py::arg("new_tokens"), NoGil())
      .def(
          "want", [](ParkedGrowths& p, std::int64_t in_ns) { p.want_in(Nanoseconds{in_ns}); },
          py::arg("in_ns"), NoGil())
      .def_property_readonly("ready", no_gil(&ParkedGrowths::ready))
      .def_property_readonly("load_ns", no_gil([](const ParkedGrowths& p) {
                               const std::optional<Nanoseconds> time = p.load_time();
                               return time ? std::optional(time->count()) : std::nullopt;
                             }))
      .def(
          "wake",
          [](ParkedGrowths& p) -> std::optional<std::uint64_t> {
            const std::optional<Tokens> lost = p.wake();
            return lost ? std::optional(lost->count) : std::nullopt;
          },
          NoGil());
}

void bind_growths(py::module_& m) {
  py::class_<GrowthMove, std::shared_ptr<GrowthMove>>(m, "GrowthMove")
      .def("finish", &GrowthMove::finish, NoGil());
  py::class_<Growth, std::shared_ptr<Growth>> growth(m, "Growth");
  bind_growth_rows(growth);
  growth.def(py::init(&make_growth), py::arg("pool"), py::arg("parts"), py::arg("window") = 0, NoGil())
      .def(
          "advance",
          [](Growth& g, std::uint64_t to) {
            return with_full_device(g.pool(), [&] { return g.advance({to}).count; });
          },
          py::arg("to"))
      .def(
          "announce", [](Growth& g, std::uint64_t to) { g.announce({to}); }, py::arg("to"), NoGil())
      .def(
          "truncate",
          [](Growth& g, std::uint64_t to, std::uint64_t stream) { return g.truncate({to}, {stream}).count; },
          py::arg("to"), py::arg("stream") = 0, NoGil())
      .def(
          "make_private",
          [](Growth& g, std::uint64_t to, std::uint64_t stream) {
            with_full_device(g.pool(), [&] { g.make_private({to}, {stream}); });
          },
          py::arg("to"), py::arg("stream") = 0)
      .def(
          "slide",
          [](Growth& g, std::uint64_t first, std::uint64_t length) {
            return g.slide({first}, {length}).count;
          },
          py::arg("first"), py::arg("length"), NoGil())
      .def(
          "scrub",
          [](Growth& g, std::uint64_t from, std::uint64_t to, std::uint64_t stream) {
            g.scrub({from}, {to}, {stream});
          },
          py::arg("start"), py::arg("stop"), py::arg("stream") = 0, NoGil())
      .def(
          "missing", [](const Growth& g, std::uint64_t to) { return g.missing({to}).count; }, py::arg("to"),
          NoGil())
      .def_property_readonly("max_tokens", [](const Growth& g) { return g.max_tokens().count; })
      .def_property_readonly("frontier", [](const Growth& g) { return g.frontier().count; })
      .def_property_readonly("limit", [](const Growth& g) { return g.limit().count; });
  m.def(
      "admit",
      [](const std::vector<std::shared_ptr<Growth>>& growths, std::uint64_t to) {
        if (!growths.empty()) with_full_device(growths.front()->pool(), [&] { admit(growths, {to}); });
      },
      py::arg("growths"), py::arg("to"));
  m.def(
      "admit_alike",
      [](const std::vector<std::shared_ptr<Growth>>& growths, const RowNumbers& like, std::uint64_t to) {
        if (growths.empty()) return;
        with_full_device(growths.front()->pool(), [&] { admit_alike(growths, like, {to}); });
      },
      py::arg("growths"), py::arg("like"), py::arg("to"));
}

}  // namespace

void bind_growth(py::module_& m) {
  bind_lease(m);
  bind_growths(m);
  bind_parked_growths(m);
}

}  // namespace vmm
