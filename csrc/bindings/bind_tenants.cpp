// Tenants of a pool.
#include <atomic>
#include <memory>
#include <string>
#include <utility>

#include "bindings/bindings.h"
#include "bindings/pool_handle.h"

namespace py = pybind11;

namespace vmm {
namespace {

/// A tenant that ends with this.
class OwnTenant {
 public:
  OwnTenant(const std::shared_ptr<Pool>& pool, const TenantTerms& terms)
      : pool_(pool), id_(pool->tenancies().add(terms)), terms_(terms) {}
  ~OwnTenant() { close(); }
  OwnTenant(const OwnTenant&) = delete;
  OwnTenant& operator=(const OwnTenant&) = delete;

  void close() noexcept {
    if (!closed_.exchange(true)) pool_->tenancies().end(id_);
  }
  /// Of a closed one only its terms are known: the pool may have forgotten it.
  TenantFigures figures() const {
    if (closed_) throw Closed("tenant '" + terms_.name + "' is closed");
    return pool_->tenancies().figures(id_);
  }
  TenantId id() const noexcept { return id_; }
  bool closed() const noexcept { return closed_; }

 private:
  const std::shared_ptr<Pool> pool_;
  const TenantId id_;
  const TenantTerms terms_;
  std::atomic<bool> closed_{false};
};

py::dict tenant_figures(const OwnTenant& tenant) {
  TenantFigures f;
  {
    const ReleaseGil released;
    f = tenant.figures();
  }
  using namespace py::literals;
  return py::dict("charged_bytes"_a = f.charged.count, "kept_bytes"_a = f.kept.count,
                  "held_bytes"_a = f.held.count, "guaranteed_bytes"_a = f.guaranteed.count,
                  "room_bytes"_a = f.room.count);
}

}  // namespace

void bind_tenants(py::module_& m) {
  py::class_<OwnTenant, std::unique_ptr<OwnTenant, DeleteWithoutGil>>(m, "Tenant")
      .def(py::init([](PoolHandle& h, std::string name, std::uint64_t guaranteed, std::uint64_t limit,
                       int priority) {
             return std::unique_ptr<OwnTenant, DeleteWithoutGil>(
                 new OwnTenant(h.engine->pool(), {std::move(name), {guaranteed}, {limit}, priority}));
           }),
           py::arg("pool"), py::kw_only(), py::arg("name"), py::arg("guaranteed_bytes"),
           py::arg("limit_bytes"), py::arg("priority"), NoGil())
      .def("close", &OwnTenant::close, NoGil())
      .def("figures", &tenant_figures)
      .def_property_readonly("closed", &OwnTenant::closed)
      .def_property_readonly("id", [](const OwnTenant& tenant) { return tenant.id().value; });
}

}  // namespace vmm
