// Two pools under one budget. What one of them lacks the other gives up, except what it needs as much.
#include "check.h"
#include "engine/slots.h"
#include "fixtures.h"

using namespace vmm;

namespace {

constexpr Bytes record{1'024};  // 64 tokens in a page of 64 KiB
constexpr std::uint32_t slot_count = 2;

struct Side : TestPool {
  explicit Side(std::shared_ptr<LocalBudget> shared, Bytes page = 64_KiB)
      : TestPool({}, std::move(shared)),
        lease(pool->reserve({.page_bytes = page, .extent_bytes = 2_MiB, .extents = slot_count})),
        slots(Slots::make(pager, {{lease, 0, 1, record}}, slot_count, {.look_ahead = false})) {
    pager->set_waker([this] { woken = true; });
  }
  ~Side() {
    pager->set_waker([] {});
  }

  Bytes mapped() const { return pool->mapped(lease->reservation()); }
  /// Bytes of a slot, in tokens.
  static Tokens tokens(Bytes bytes) { return {bytes / record}; }

  bool woken = false;
  std::shared_ptr<Lease> lease;
  std::shared_ptr<Slots> slots;
};

struct Both {
  std::shared_ptr<LocalBudget> budget = std::make_shared<LocalBudget>(1_MiB);  // 16 pages
  Side one{budget}, two{budget};

  /// As their threads would poll, in turns, until both sleep; false if that never comes.
  bool settle() { return in_turns(one, two); }

  static bool in_turns(Side& one, Side& two) {
    for (int polls = 0; polls < 200; ++polls) {
      bool asleep = true;
      for (Side* side : {&one, &two}) {
        if (!std::exchange(side->woken, false)) continue;
        asleep = false;
        side->woken |= side->pager->poll(side->clock->now()).now;
      }
      if (asleep) return true;
    }
    return false;
  }
};

}  // namespace

TEST(what_is_announced_here_is_not_taken_for_what_is_announced_there) {
  Both test;
  test.one.slots->announce(std::vector<SlotLength>{{0, Side::tokens(1_MiB)}, {1, {64}}});
  CHECK(test.settle());
  CHECK(test.one.mapped() == 1_MiB);
  const auto calls = test.one.faults->calls();
  test.two.slots->announce(0, {64});
  CHECK(test.settle());
  CHECK(test.one.mapped() == 1_MiB && test.two.mapped() == Bytes{});
  CHECK(test.one.faults->calls() == calls);
  truncate(*test.one.slots, 0, {});
  CHECK(test.settle());
  CHECK(Slots::Needs(*test.one.slots).ready(1, {64}) == Tokens{64});
}

TEST(a_guess_here_is_given_up_for_what_is_announced_there) {
  Both test;
  Slots::Needs(*test.one.slots).prepare(0, Side::tokens(1_MiB));
  Slots::Needs(*test.one.slots).prepare(1, {64});
  CHECK(test.settle());
  CHECK(test.one.mapped() == 1_MiB);
  test.two.slots->announce(0, Side::tokens(256_KiB));
  CHECK(test.settle());
  CHECK(test.two.mapped() == 256_KiB);
  CHECK(test.one.mapped() <= 768_KiB);
  test.one.pool->check();
  test.two.pool->check();
}

/// … and stays given up, although the other starves as before.
TEST(all_guesses_may_not_be_enough) {
  Both test;
  Slots::Needs(*test.one.slots).prepare(0, Side::tokens(1_MiB));
  Slots::Needs(*test.one.slots).prepare(1, {64});
  CHECK(test.settle());
  test.two.slots->announce(0, Side::tokens(2_MiB));
  CHECK(test.settle());
  CHECK(test.two.mapped() == 1_MiB && test.one.mapped() == Bytes{});
  truncate(*test.two.slots, 0, {});
  test.two.pool->trim(1_MiB);
  CHECK(test.settle());
  CHECK(test.one.mapped() == 1_MiB);
}

/// What was given up is too little for a page of the other, and is not given up again and again.
TEST(a_guess_is_not_traded_for_what_does_not_fit) {
  const auto budget = std::make_shared<LocalBudget>(1_MiB);
  Side one{budget}, two{budget, 2_MiB};
  budget->set_limit(2_MiB);
  auto used = one.reserve(1_MiB);
  map(*used, 0, 1);
  Slots::Needs(*one.slots).prepare(0, Side::tokens(2_MiB));
  CHECK(Both::in_turns(one, two));
  CHECK(one.mapped() == 2_MiB - 64_KiB);
  two.slots->announce(0, {64});
  CHECK(Both::in_turns(one, two));
  CHECK(two.mapped() == Bytes{});
  used.reset();
}

TEST(a_guess_here_costs_nobody_there_anything) {
  Both test;
  auto idle = test.two.reserve(1_MiB);
  map(*idle, 0, 16);
  idle.reset();
  CHECK(test.settle());
  Slots::Needs(*test.one.slots).prepare(0, {64});
  CHECK(test.settle());
  CHECK(test.two.pool->stats().mapped == 1_MiB && test.one.mapped() == Bytes{});
  test.two.pool->trim(1_MiB);
  CHECK(test.settle());
  CHECK(test.one.mapped() == 64_KiB);  // who waits for room is told of it
}

TEST(what_is_owed_is_given_back_of_what_is_announced_too) {
  Both test;
  test.one.slots->announce(0, Side::tokens(1_MiB));
  CHECK(test.settle());
  test.budget->set_limit(512_KiB);
  CHECK(test.settle());
  CHECK(test.one.mapped() == 512_KiB);
  CHECK(test.budget->taken() == 512_KiB);
}
