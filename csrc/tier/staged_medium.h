// A medium that reaches the host's memory only, for pages that the CPU does not reach.
#pragma once

#include <memory>

#include "base/types.h"
#include "driver/driver.h"
#include "tier/slot_medium.h"

namespace vmm {

/// Every page goes through pinned memory, of which each of `workers` has as much as one call moves: `merged`
/// slots. The memory of a copy is an address of the device. Throws what DeviceLink's memory throws.
std::shared_ptr<SlotMedium> staged_medium(std::shared_ptr<SlotMedium> inner,
                                          const std::shared_ptr<Driver>& device, Bytes slot,
                                          std::size_t merged, unsigned workers);

}  // namespace vmm
