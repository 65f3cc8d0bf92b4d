// C++ exceptions as Python's: the classes live in vmm/errors.py, where they have docstrings.
#include <pybind11/stl.h>

#include "base/error.h"
#include "bindings/bindings.h"
#include "engine/kv_cache.h"

namespace py = pybind11;

namespace vmm {

void bind_errors() {
  // Local, or another extension made with pybind11, imported later, could translate them first: libcachesim
  // makes a RuntimeError of every std::runtime_error.
  py::register_local_exception_translator([](std::exception_ptr thrown) {
    auto raise = [](const char* name, const Error& error) {
      const py::object type = py::module_::import("vmm.errors").attr(name);
      PyErr_SetString(type.ptr(), error.what());
    };
    try {
      std::rethrow_exception(thrown);
    } catch (const OutOfPages& error) {
      const MemoryFigures& f = error.figures();
      const py::object make = py::module_::import("vmm.errors").attr("out_of_pages");
      const py::object value = make(f.of_gpu, error.what(), f.asked.count, f.free.count, f.reclaimable.count,
                                    f.budget.count, !f.refused.empty());
      if (const auto& t = f.tenant)
        value.attr("tenant") =
            py::module_::import("vmm.errors")
                .attr("TenantFigures")(t->name, t->charged.count, t->kept.count, t->held.count,
                                       t->guaranteed.count, t->limit.count, t->room.count);
      if (!error.fitting().empty()) value.attr("fitting") = py::tuple(py::cast(error.fitting()));
      PyErr_SetObject(py::type::of(value).ptr(), value.ptr());
    } catch (const SequenceLost& error) {
      const py::object type = py::module_::import("vmm.errors").attr("SequenceLost");
      py::list sequences, first;
      for (const SequenceLost::Loss& each : error.losses()) {
        sequences.append(each.slot);
        first.append(each.first.count);
      }
      const py::object value = type(error.what(), py::tuple(sequences), py::tuple(first));
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

}  // namespace vmm
