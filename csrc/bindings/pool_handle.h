// What a vmm.Pool holds.
#pragma once

#include <memory>

#include "driver/fault_driver.h"
#include "driver/host_driver.h"
#include "engine/engine.h"

namespace vmm {

/// The engine, with handles on the parts of it that Python configures.
struct PoolHandle {
  std::shared_ptr<LocalBudget> budget;
  HostDriver* host;
  FaultDriver* faults;  // null unless asked for
  std::unique_ptr<Engine> engine;

  Pool& pool() const { return *engine->pool(); }
  void require_parent() const { pool().fork_guard().require_parent("this pool"); }
};

}  // namespace vmm
