// A page of a sequence that is parked.
#pragma once

#include "memory/reservation.h"

namespace vmm {

struct ParkedPage {
  Reservation* reservation = nullptr;
  PageIndex page{};
  Tokens first{};     // that has bytes in it
  Tokens complete{};  // when the sequence has so many tokens, nothing is written to the page any more
};

}  // namespace vmm
