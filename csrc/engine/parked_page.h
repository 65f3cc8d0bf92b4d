// What is told of a sequence when it is parked.
#pragma once

#include <cstdint>
#include <string>

#include "base/clock.h"
#include "memory/reservation.h"

namespace vmm {

/// A page of it.
struct ParkedPage {
  Reservation* reservation = nullptr;
  PageIndex page{};
  Tokens first{};     // that has bytes in it
  Tokens complete{};  // when the sequence has so many tokens, nothing is written to the page any more
};

/// What is known about a sequence when it is parked.
struct ParkHint {
  std::uint64_t new_tokens = 0;  // since it was last parked
  std::string category = {};     // what its user calls its kind
  int priority = 0;              // the higher, the longer it stays
  Nanoseconds idle{};            // a guess of how long; 0: none
};

}  // namespace vmm
