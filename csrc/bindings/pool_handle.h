// What a vmm.Pool holds.
#pragma once

#include <memory>

#include "base/error.h"
#include "driver/checked_driver.h"
#include "driver/cuda_driver.h"
#include "driver/fault_driver.h"
#include "driver/host_driver.h"
#include "engine/engine.h"

namespace vmm {

/// The engine, with handles on the parts of it that Python configures.
struct PoolHandle {
  std::shared_ptr<LocalBudget> budget;
  HostDriver* host = nullptr;     // null on another device
  CudaDriver* cuda = nullptr;     // null on another device
  FaultDriver* faults = nullptr;  // null unless asked for
  std::unique_ptr<Engine> engine;

  Pool& pool() const { return *engine->pool(); }
  const Capabilities& capabilities() const { return pool().driver().capabilities(); }
  HostDriver& require_host() const {
    if (host == nullptr) throw InvalidArgument("only the host driver has this");
    return *host;
  }
  const CudaDriver& require_cuda() const {
    if (cuda == nullptr) throw InvalidArgument("only the CUDA driver has this");
    return *cuda;
  }
  FaultDriver& require_faults() const {
    if (faults == nullptr) throw InvalidArgument("the pool was made without faults=True");
    return *faults;
  }
  void require_parent() const { pool().fork_guard().require_parent("this pool"); }
};

}  // namespace vmm
