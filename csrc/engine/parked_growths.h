// The layers of one Transformers cache while its conversation is idle.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "engine/growth.h"
#include "engine/parking.h"

namespace vmm {

/// Growths that are parked together: one unit of Parking. From its beginning until wake() returns they have
/// no tokens, and nobody calls them. Its owner makes one call at a time. When it ends before that, the
/// growths must end, too.
class ParkedGrowths {
 public:
  struct Layer {
    std::shared_ptr<Growth> growth;
    Tokens length;  // at least 1
  };

  /// Any work of the pool may still write to the pages: a growth does not know who does. Throws
  /// InvalidArgument where the pages have another size than the tiers'; then nothing is parked.
  ParkedGrowths(std::shared_ptr<Parking> parking, std::vector<Layer> layers, const ParkHint& hint);
  ~ParkedGrowths();
  ParkedGrowths(const ParkedGrowths&) = delete;
  ParkedGrowths& operator=(const ParkedGrowths&) = delete;

  /// They will be wanted so soon. Waits for nothing.
  void want_in(Nanoseconds time) { parking_->want(unit_, pool().clock().now() + time, false); }
  /// Whether wake() would not have to wait.
  bool ready() const { return parking_->there(unit_); }
  std::optional<Nanoseconds> load_time() const { return parking_->load_time(unit_); }
  /// Brings the growths back, and waits for that; they have their tokens again. Returns the first token that
  /// was lost in any of them, if any was: only those before it are good. Throws OutOfPages, Closed, or what
  /// the driver throws; then they are parked still.
  std::optional<Tokens> wake();

 private:
  Pool& pool() const noexcept { return layers_.front().growth->pool(); }
  void await_all();
  void adopt_all();

  const std::shared_ptr<Parking> parking_;
  const std::vector<Layer> layers_;
  Fence until_;
  UnitId unit_{};
  bool parked_ = true;
};

}  // namespace vmm
