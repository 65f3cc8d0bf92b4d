// The driver that a suite runs on: the host driver, or with VMM_TEST_DRIVER=cuda the CUDA driver on the
// stand-in libcuda. Nothing may be left in the stand-in when a test is over.
#pragma once

#include <cstdlib>
#include <memory>
#include <string>

#include "check.h"
#include "driver/checked_driver.h"
#include "driver/cuda_driver.h"
#include "driver/fault_driver.h"
#include "driver/host_driver.h"
#include "standin.h"

namespace vmm {

inline bool on_cuda() {
  const char* name = std::getenv("VMM_TEST_DRIVER");
  return name != nullptr && std::string(name) == "cuda";
}

inline std::unique_ptr<Driver> make_bare_driver() {
  if (!on_cuda()) return std::make_unique<HostDriver>("vmm-test");
  standin_set("granularity", (4_KiB).count);  // the host's, which these tests are written for
  return std::make_unique<CudaDriver>(CudaOptions{.host_accessible = true});
}

/// As the engine uses it.
inline std::unique_ptr<Driver> make_driver() { return std::make_unique<CheckedDriver>(make_bare_driver()); }

/// Everything that was queued is over; on the host's default stream it always is.
inline void finish_work() {
  if (on_cuda()) standin_sync_all();
}

inline std::string live_in_standin() {
  std::string text(standin_live(nullptr, 0), '\0');
  standin_live(text.data(), text.size());
  return text;
}

inline const check::AfterEach nothing_is_left([] {
  if (!on_cuda()) return;
  standin_fail_at(0, 0, 0);
  if (standin_reset(1) == 0) return;
  check::report(__FILE__, __LINE__, "left in the stand-in: " + live_in_standin());
  standin_abandon();
});

}  // namespace vmm
