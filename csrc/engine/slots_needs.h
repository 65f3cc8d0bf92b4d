// Two things that live for a moment only: a look at many slots, and rows on their way to other rows.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "engine/slots.h"

namespace vmm {

/// One look at slots, most of which nobody is in: which hold pages, and for whom they should. All calls are
/// made under one lock of the pool's, which nobody else has while this lives: so it must be short, and no
/// other method of Slots or Pool may be called meanwhile.
class Slots::Needs {
 public:
  explicit Needs(Slots& slots);
  /// Tells the pager where something that is prepared must be mapped.
  ~Needs();
  Needs(const Needs&) = delete;
  Needs& operator=(const Needs&) = delete;

  /// Of `at_most`, how many tokens can be used from the slot's start without mapping anything.
  Tokens ready(std::uint32_t slot, Tokens at_most) const;
  /// Of `at_most` tokens that a sequence begins with, how many this slot has of which nothing is missing that
  /// the sequence would need.
  Tokens holds(std::uint32_t slot, Tokens at_most) const;
  /// Keeps what a sequence of so many tokens needs, and the slot holds. False where the tenant may not keep
  /// so much: then only a part is kept.
  bool keep(std::uint32_t slot, Tokens length);
  /// Where memory is short, the pages of this slot go after those that were used before it; or, again, as
  /// those of which nobody knows when they were used.
  void note_use(std::uint32_t slot);
  void forget_use(std::uint32_t slot);
  /// A slot that nobody is in: tokens up to `to` might be needed soon. Returns how many tokens their pages
  /// will hold. Where neither this nor touch() is called for the pager's idle time, nothing is prepared any
  /// more.
  Tokens prepare(std::uint32_t slot, Tokens to);
  /// Somebody is in the slot now, and will announce tokens up to `announced`: none that were prepared beyond
  /// are needed.
  void take(std::uint32_t slot, Tokens announced);

 private:
  friend class Slots;
  void set(std::uint32_t slot, Tokens from, Tokens to, Need need);

  Slots& slots_;
  std::unique_lock<Mutex> lock_;
  std::optional<Pool::Needs> pages_;
  std::vector<PageRange> ranges_;  // scratch
  bool lacking_ = false;
};

/// While it lives, what the rows will get cannot be lost.
class Slots::RowMove {
 public:
  bool empty() const noexcept { return pieces_.empty(); }

 private:
  friend class Slots;
  /// The pages of one part that get other memory, one by one. Some get that of pages that go on being where
  /// they are. Others get that of pages which themselves get other memory; it is parked meanwhile.
  struct Piece {
    const SlotPart* part;
    std::vector<PageRange> direct, direct_sources;
    std::vector<PageRange> parked;
    std::shared_ptr<Lease> lease{};  // where they are parked, one by one
  };
  std::vector<Piece> pieces_;
};

}  // namespace vmm
