// What a vmm.Pool holds.
#pragma once

#include <atomic>
#include <memory>

#include "base/error.h"
#include "driver/checked_driver.h"
#include "driver/cuda_driver.h"
#include "driver/fault_driver.h"
#include "driver/host_driver.h"
#include "engine/engine.h"
#include "engine/parking.h"
#include "memory/shares.h"

namespace vmm {

/// The engine, with handles on the parts of it that Python configures.
struct PoolHandle {
  PoolHandle() = default;
  ~PoolHandle() {
    if (engine && engine->pool()->fork_guard().in_child()) return;
    leave_share();
  }
  PoolHandle(const PoolHandle&) = delete;
  PoolHandle& operator=(const PoolHandle&) = delete;

  std::shared_ptr<Budget> budget;
  std::shared_ptr<SharedBudget> share;  // the same, if other processes share it; else null
  HostDriver* host = nullptr;           // of another device: null
  CudaDriver* cuda = nullptr;           // the same
  FaultDriver* faults = nullptr;        // null unless asked for
  std::unique_ptr<Engine> engine;
  std::shared_ptr<Parking> parking;  // null where the pool has no tiers
  std::atomic<bool> closing{false};

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
  /// This pool takes no more of it, and nobody waits on its behalf.
  void leave_share() noexcept {
    if (closing.exchange(true) || !share) return;
    share->recheck();
    share->detach();
  }
  void require_parent() const { pool().fork_guard().require_parent("this pool"); }
};

}  // namespace vmm
