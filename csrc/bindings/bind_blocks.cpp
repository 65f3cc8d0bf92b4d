// Ranges and their blocks.
#include <pybind11/stl.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "bindings/bindings.h"
#include "bindings/full_device.h"
#include "bindings/pool_handle.h"
#include "engine/blocks.h"

namespace py = pybind11;

namespace vmm {
namespace {

/// Block ids, as they lie in the caller's buffer where they lie in one. By hand, because pybind11's buffers
/// take longer than the call that they are for.
class IdsArgument {
 public:
  explicit IdsArgument(py::handle ids) {
    if (PyObject_CheckBuffer(ids.ptr()) != 0)
      view(ids);
    else
      copy(ids);
  }
  ~IdsArgument() {
    if (viewed_) PyBuffer_Release(&buffer_);
  }
  IdsArgument(const IdsArgument&) = delete;
  IdsArgument& operator=(const IdsArgument&) = delete;

  Blocks::Ids get() const {
    if (!viewed_) return copied_;
    return {static_cast<const std::int32_t*>(buffer_.buf),
            static_cast<std::size_t>(buffer_.len) / sizeof(std::int32_t)};
  }

 private:
  [[noreturn]] static void refuse(const std::string& found) {
    throw InvalidArgument("ids: found " + found +
                          "; expected a contiguous array of int32 on the CPU, or a list of integers");
  }

  void view(py::handle ids) {
    if (PyObject_GetBuffer(ids.ptr(), &buffer_, PyBUF_FORMAT | PyBUF_C_CONTIGUOUS) != 0) {
      PyErr_Clear();
      refuse("an array that is not contiguous");
    }
    viewed_ = true;
    const std::string format = buffer_.format == nullptr ? "B" : buffer_.format;
    if (buffer_.itemsize == sizeof(std::int32_t) && (format == "i" || format == "@i" || format == "<i"))
      return;
    PyBuffer_Release(&buffer_);
    refuse("an array of format '" + format + "'");
  }

  void copy(py::handle ids) {
    if (!PyList_Check(ids.ptr()) && !PyTuple_Check(ids.ptr()) && !PyRange_Check(ids.ptr()))
      refuse(std::string("a ") + Py_TYPE(ids.ptr())->tp_name);
    for (py::handle id : ids) {
      int overflow = 0;
      const bool number = PyIndex_Check(id.ptr()) != 0 && !PyBool_Check(id.ptr());
      const auto index = py::reinterpret_steal<py::object>(number ? PyNumber_Index(id.ptr()) : nullptr);
      const long value = index ? PyLong_AsLongAndOverflow(index.ptr(), &overflow) : 0;
      PyErr_Clear();
      if (!index || overflow != 0 || value != static_cast<std::int32_t>(value))
        refuse(py::repr(id).cast<std::string>());
      copied_.push_back(static_cast<std::int32_t>(value));
    }
  }

  Py_buffer buffer_{};
  bool viewed_ = false;
  std::vector<std::int32_t> copied_;
};

/// The GIL is kept where nothing needs to be mapped: to give it away could cost a switch interval.
void keep(Blocks& blocks, py::handle ids) {
  const IdsArgument wanted(ids);
  if (!blocks.keep_if_ready(wanted.get()))
    with_full_device(blocks.pool(), [&] { blocks.keep(wanted.get()); });
}

void drop(Blocks& blocks, py::handle ids, bool unmap, bool whole_device) {
  const IdsArgument unwanted(ids);
  const ReleaseGil released;
  Epochs& epochs = blocks.pool().epochs();
  blocks.pool().fork_guard().require_parent("this range");
  blocks.drop(unwanted.get(), whole_device ? epochs.device_fence() : epochs.fence(), unmap);
}

py::bytes ready(Blocks& blocks, py::handle ids) {
  const std::vector<std::uint8_t> flags = blocks.ready(IdsArgument(ids).get());
  return {reinterpret_cast<const char*>(flags.data()), flags.size()};
}

std::shared_ptr<Scratch> scratch(Blocks& blocks, py::handle ids) {
  const IdsArgument wanted(ids);
  return with_full_device(blocks.pool(), [&] { return ends_without_gil(blocks.scratch(wanted.get())); });
}

std::shared_ptr<Range> make_range(PoolHandle& pool, std::uint64_t size, std::uint64_t page, bool zeroed,
                                  std::uint32_t tenant) {
  auto lease = pool.pool().reserve({.page_bytes = {page},
                                    .extent_bytes = round_up({size}, {page}),
                                    .kind = {0},
                                    .zeroed = zeroed,
                                    .tenant = {tenant}});
  return ends_without_gil(std::make_shared<Range>(pool.engine->pager(), ends_without_gil(std::move(lease))));
}

}  // namespace

void bind_blocks(py::module_& m) {
  py::class_<Range, std::shared_ptr<Range>>(m, "Range")
      .def(py::init(&make_range), py::arg("pool"), py::kw_only(), py::arg("size"), py::arg("page_bytes"),
           py::arg("zeroed"), py::arg("tenant") = 0, NoGil())
      .def(
          "blocks",
          [](const std::shared_ptr<Range>& range, const std::vector<std::uint64_t>& starts,
             std::uint64_t stride, std::uint64_t count) {
            BlocksShape shape{{}, {stride}, count};
            for (std::uint64_t start : starts) shape.starts.push_back({start});
            return ends_without_gil(Blocks::make(range, shape));
          },
          py::arg("starts"), py::arg("stride"), py::arg("count"), NoGil())
      .def("end", &Range::end, NoGil())
      .def_property_readonly("lease", &Range::lease)
      .def_property_readonly("ended", &Range::ended);
  py::class_<Scratch, std::shared_ptr<Scratch>>(m, "Scratch").def("end", &Scratch::end, NoGil());
  py::class_<Blocks, std::shared_ptr<Blocks>>(m, "Blocks")
      .def("keep", &keep, py::arg("ids"))
      .def(
          "keep_ready",
          [](Blocks& blocks, py::handle ids) { return blocks.keep_ready(IdsArgument(ids).get()); },
          py::arg("ids"))
      .def(
          "announce", [](Blocks& blocks, py::handle ids) { blocks.announce(IdsArgument(ids).get()); },
          py::arg("ids"))
      .def("drop", &drop, py::arg("ids"), py::arg("unmap") = false, py::arg("whole_device") = false)
      .def("ready", &ready, py::arg("ids"))
      .def("scratch", &scratch, py::arg("ids"))
      .def_property_readonly("kept", &Blocks::kept)
      .def_property_readonly("announced", &Blocks::announced);
}

}  // namespace vmm
