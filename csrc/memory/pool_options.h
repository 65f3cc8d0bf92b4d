// What a pool is told, and what it tells.
#pragma once

#include <cstdint>
#include <span>

#include "base/types.h"
#include "memory/virtual_page.h"

namespace vmm {

struct Reservation;

struct PoolOptions {
  Bytes arena_bytes;  // 0: 256 times the budget, but at least 2 TiB and at most 16, so that many pools fit
  Bytes run_bytes;    // 0: the larger of 1 MiB and budget ÷ 16,384, so that a full budget is ≤ 16,384 runs
};

struct PoolStats {
  Bytes budget, created, free, mapped, kept, reclaimable, peak_created;
  Bytes saved;  // by mapping pages at several addresses: each counts once in the others
  std::uint64_t reservations_leased, reservations_idle, runs, retirements_waiting;
};

/// Bytes [offset, offset + size) of a reservation.
struct ByteRange {
  Bytes offset;
  Bytes size;
};

/// Pages of a reservation whose memory other pages are to have, too.
struct SourcePages {
  const Reservation* reservation;
  std::span<const PageRange> ranges;
};

struct MapOptions {
  Need need = Need::kept;            // until unkept. What is needed less may be taken when the budget is
                                     // used up; for Need::none nothing is
  bool wait = true;                  // for pages that others are mapping or unmapping
  Pages at_most{~std::uint64_t{0}};  // stop after so many pages that were missing
  std::span<const ByteRange> overwritten;  // write intent, in order: the caller overwrites these, so they
                                           // need no zeroing; should the write fail, it calls zero()
  SourcePages source{};  // the pages get no memory of their own, but share that of these, one by one. They
                         // are of the same kind and size, and kept by somebody who goes on keeping them
};

struct MapResult {
  Pages mapped;         // that were missing
  bool waited = false;  // for another thread
};

}  // namespace vmm
