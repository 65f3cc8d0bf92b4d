// Which unit leaves the device when memory is short: what every eviction policy is told and asked.
#pragma once

#include <cstdint>
#include <optional>

#include "base/clock.h"
#include "base/types.h"

namespace vmm {

/// A block of a shared prefix, or a whole parked sequence. Its number is its owner's choice, and stays its
/// own until it is forgotten.
enum class UnitId : std::uint64_t {};

/// One use of a unit. Whoever has no answer to a question leaves it as it is here.
struct UnitAccess {
  Nanoseconds at{};                 // never earlier than that of the access before, whatever unit that was of
  Bytes size{1};                    // of the unit from now on
  std::optional<UnitId> parent{};   // the block before it in a tree of prompts; stays as first told
  int priority = 0;                 // the higher, the longer it should stay
  std::uint32_t label = 0;          // what the user calls its kind; 0 is none
  bool whole_sequence = false;      // not a block
  bool partial = false;             // a prompt's last block, which its tokens did not fill
  std::uint32_t new_blocks = 0;     // of the turn that used it: the blocks that no turn before had
  std::uint32_t output_tokens = 0;  // of the same turn
  Nanoseconds guess{};              // its user's, of how long it will not be used; 0: none
};

/// Pure: no driver, no clock and no threads. Whoever holds the memory tells the policy of every use, asks for
/// a victim when there is too little room, and says which units left. Only units whose memory may be taken
/// should be held here: one that is running is told of when it is parked.
class EvictionPolicy {
 public:
  EvictionPolicy() = default;
  EvictionPolicy(const EvictionPolicy&) = delete;
  EvictionPolicy& operator=(const EvictionPolicy&) = delete;
  virtual ~EvictionPolicy() = default;

  /// The unit was used, and is on the device from now on, if it was not before.
  virtual void access(UnitId unit, const UnitAccess& access) = 0;
  /// The unit that should leave next; nothing where none is held. It stays until evicted() says that it left,
  /// and whoever asks again at the same time is told the same.
  virtual std::optional<UnitId> victim(Nanoseconds now) = 0;
  /// The unit, which is held, has left the device and may come back. It need not have been the victim.
  virtual void evicted(UnitId unit) = 0;
  /// The unit will never be used again: nothing is known of it from now on. It need not be held.
  virtual void forget(UnitId unit) = 0;

  virtual bool holds(UnitId unit) const = 0;
  /// How many units it remembers that are not on the device.
  virtual std::size_t ghosts() const { return 0; }
};

}  // namespace vmm
