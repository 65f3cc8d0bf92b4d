// The memory of a KVTensor. Offsets, sizes and strides cross in elements, as torch counts.
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "base/error.h"
#include "bindings/bindings.h"
#include "bindings/dlpack.h"
#include "bindings/full_device.h"
#include "bindings/pool_handle.h"
#include "engine/rows.h"

namespace py = pybind11;

namespace vmm {
namespace {

using Sizes = std::vector<std::int64_t>;

/// Converts by hand, because pybind11's conversion of eight numbers takes as long as the rest of a slice.
Sizes to_sizes(const py::tuple& numbers) {
  Sizes out(numbers.size());
  for (std::size_t i = 0; i < out.size(); ++i) {
    out[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(numbers.ptr(), static_cast<Py_ssize_t>(i)));
    if (out[i] == -1 && PyErr_Occurred() != nullptr) throw py::error_already_set();
  }
  return out;
}

/// Rows with the type of their elements.
class TypedRows {
 public:
  TypedRows(PoolHandle& pool, const RowsShape& shape, Bytes page, std::uint8_t code, std::uint8_t bits,
            TenantId tenant)
      : code_(code), bits_(bits), item_{std::uint64_t{bits} / 8u} {
    const Bytes size = shape.record_bytes * shape.tokens.count * shape.rows;
    auto lease = pool.pool().reserve({.page_bytes = page,
                                      .extent_bytes = round_up(size, page),
                                      .kind = {0},
                                      .zeroed = true,
                                      .tenant = tenant});
    rows_ = Rows::make(pool.engine->pager(), std::move(lease), shape);
  }

  Rows& rows() const { return *rows_; }

  /// A capsule over all rows, mapped or not.
  py::capsule base(Sizes sizes, Sizes strides) const {
    return export_tensor(rows_->lease(), ends_without_gil(rows_->observer()),
                         spec(0, std::move(sizes), std::move(strides)));
  }

  /// Maps and pins exactly these elements. Returns a capsule over them, and whether there are holes between
  /// them.
  std::pair<py::capsule, bool> slice(std::uint64_t offset, const py::tuple& shape,
                                     const py::tuple& steps) const {
    Sizes sizes = to_sizes(shape), strides = to_sizes(steps);
    Rows::Spans spans = rows_->spans_of(region(offset, sizes, strides));
    std::shared_ptr<Rows::Pin> pin;
    if (rows_->usable(spans)) {  // keeps the GIL: giving it away could cost a switch interval
      pin = rows_->pin(spans);
    } else {
      pin = with_full_device(rows_->pool(), [&] { return rows_->pin(spans); });
    }
    const bool holes = spans.size() > 1;  // the memory in them may be unmapped at any time
    std::shared_ptr<const void> keep(pin.get(), [pin](const void*) mutable {
      std::optional<ReleaseGilIfHeld> released;  // only where it must, for the same reason
      if (pin->gives_back()) released.emplace();
      pin.reset();
    });
    return {
        export_tensor(rows_->lease(), std::move(keep), spec(offset, std::move(sizes), std::move(strides))),
        holes};
  }

  void touch(std::uint64_t offset, const py::tuple& shape, const py::tuple& steps) const {
    const Rows::Spans spans = rows_->spans_of(region(offset, to_sizes(shape), to_sizes(steps)));
    if (rows_->usable(spans)) return rows_->touch(spans);
    with_full_device(rows_->pool(), [&] { rows_->touch(spans); });
  }

  /// Touches the same region at each of `count` offsets. `offsets` is the address of an array of int64.
  void touch_each(std::uintptr_t offsets, std::uint64_t count, const Sizes& sizes,
                  const Sizes& strides) const {
    const auto* first = reinterpret_cast<const std::int64_t*>(offsets);
    std::vector<std::int64_t> places(first, first + count);
    std::optional<ReleaseGil> released(std::in_place);
    std::ranges::sort(places);
    places.erase(std::unique(places.begin(), places.end()), places.end());
    Rows::Spans all;
    for (std::int64_t place : places)
      for (const ByteRange& span : rows_->spans_of(region(static_cast<std::uint64_t>(place), sizes, strides)))
        all.push_back(span);
    const Rows::Spans spans = merged(std::move(all));
    released.reset();
    with_full_device(rows_->pool(), [&] { rows_->touch(spans); });
  }

  /// Zeroes what is mapped of the region. Returns false, and does nothing, when the region is not dense.
  bool zero_mapped(std::uint64_t offset, const Sizes& sizes, const Sizes& strides,
                   std::uint64_t stream) const {
    const Region all = region(offset, sizes, strides);
    if (!dense(all, rows_->lease().shape().page_bytes)) return false;
    const ReleaseGil guard;
    rows_->zero_mapped(rows_->spans_of(all), {stream});
    return true;
  }

 private:
  Region region(std::uint64_t offset, const Sizes& sizes, const Sizes& strides) const {
    if (sizes.size() != strides.size()) throw InvalidArgument("strides: expected one for each size");
    Region out{item_ * offset, item_, {}};
    out.dimensions.reserve(sizes.size());
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      if (sizes[i] < 0 || strides[i] < 0) throw InvalidArgument("sizes, strides: expected none negative");
      out.dimensions.push_back(
          {static_cast<std::uint64_t>(sizes[i]), item_ * static_cast<std::uint64_t>(strides[i])});
    }
    return out;
  }

  TensorSpec spec(std::uint64_t offset, Sizes sizes, Sizes strides) const {
    return {(item_ * offset).count, std::move(sizes), std::move(strides), code_, bits_};
  }

  std::uint8_t code_;
  std::uint8_t bits_;
  Bytes item_;
  std::shared_ptr<Rows> rows_;
};

}  // namespace

void bind_rows(py::module_& m) {
  py::class_<TypedRows, std::unique_ptr<TypedRows, DeleteWithoutGil>>(m, "Rows")
      .def(py::init([](PoolHandle& pool, std::uint64_t rows, std::uint64_t tokens, std::uint64_t record_bytes,
                       std::uint64_t page_bytes, std::uint8_t type_code, std::uint8_t type_bits,
                       std::uint32_t tenant) {
             return std::unique_ptr<TypedRows, DeleteWithoutGil>(
                 new TypedRows(pool, RowsShape{rows, {tokens}, {record_bytes}}, Bytes{page_bytes}, type_code,
                               type_bits, {tenant}));
           }),
           py::arg("pool"), py::kw_only(), py::arg("rows"), py::arg("tokens"), py::arg("record_bytes"),
           py::arg("page_bytes"), py::arg("type_code"), py::arg("type_bits"), py::arg("tenant") = 0, NoGil())
      .def("base", &TypedRows::base, py::arg("sizes"), py::arg("strides"))
      .def("slice", &TypedRows::slice, py::arg("offset"), py::arg("sizes"), py::arg("strides"))
      .def("touch", &TypedRows::touch, py::arg("offset"), py::arg("sizes"), py::arg("strides"))
      .def("touch_each", &TypedRows::touch_each, py::arg("offsets"), py::arg("count"), py::arg("sizes"),
           py::arg("strides"))
      .def("zero_mapped", &TypedRows::zero_mapped, py::arg("offset"), py::arg("sizes"), py::arg("strides"),
           py::arg("stream") = 0)
      .def(
          "reserve",
          [](const TypedRows& t, std::uint64_t to) {
            with_full_device(t.rows().pool(), [&] { t.rows().reserve({to}); });
          },
          py::arg("to"))
      .def(
          "release",
          [](const TypedRows& t, std::uint64_t start, std::uint64_t end) {
            t.rows().release({start}, {end});
          },
          py::arg("start"), py::arg("end"), NoGil())
      .def(
          "end", [](const TypedRows& t) { t.rows().end(); }, NoGil())
      .def(
          "in_use",
          [](const TypedRows& t) {
            std::vector<std::pair<std::uint64_t, std::uint64_t>> out;
            for (const ByteRange& span : t.rows().in_use())
              out.emplace_back(span.offset.count, span.size.count);
            return out;
          },
          NoGil())
      .def(
          "mark", [](const TypedRows& t, std::uint64_t row) { return t.rows().mark(row).count; },
          py::arg("row"))
      .def_property_readonly("mapped_bytes", no_gil([](const TypedRows& t) {
                               return t.rows().pool().mapped(t.rows().lease().reservation()).count;
                             }))
      .def_property_readonly("page_bytes",
                             [](const TypedRows& t) { return t.rows().lease().shape().page_bytes.count; })
      .def_property_readonly("ended", [](const TypedRows& t) { return t.rows().ended(); });
}

}  // namespace vmm
