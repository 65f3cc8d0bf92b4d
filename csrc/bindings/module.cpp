// vmm._core: what Python sees of the engine.
#include "bindings/bindings.h"

PYBIND11_MODULE(_core, m) {
  m.doc() = "The engine of vmm. Not a public interface: use the vmm package.";
  vmm::bind_errors();
  vmm::bind_driver(m);
  vmm::bind_sim_driver(m);
  vmm::bind_budgets(m);
  vmm::bind_pool(m);
  vmm::bind_tenants(m);
  vmm::bind_growth(m);
  vmm::bind_kv_cache(m);
  vmm::bind_rows(m);
  vmm::bind_blocks(m);
  vmm::bind_simulate(m);
  vmm::bind_policies(m);
  vmm::bind_tiers(m);
}
