// Every driver call of open_prompt() is made to fail, once and for good, in each of the ways in which a
// sequence gets the tokens of another. Nothing may be half done, and nobody else's tokens may change.
#include <memory>
#include <optional>

#include "check.h"
#include "prefix_scene.h"

using namespace vmm;

namespace {

/// Returns how many calls there are to fail.
std::int64_t try_all(Way way, Tokens tail, std::int64_t times, Fault fault) {
  const bool exact = fault == Fault::error;
  for (std::int64_t n = 1; n < 200; ++n) {
    Scene test(way, tail);
    const Bytes kept = test.pool->stats().kept;
    const std::uint32_t open = test.cache->open_slots();
    const std::uint64_t done = test.done();
    std::optional<KvCache::Opened> opened;
    test.faults->fail_at(n, times, fault);
    try {
      opened = test.cache->open_prompt({test.prompt(), ""}, {}, {});
    } catch (const Error&) {  // of the driver, or of its lack of mappings
    }
    const bool reached = !test.faults->last_failed().empty();
    test.faults->fail_at(0, 0, fault);
    finish_work();
    test.pool->check();
    CHECK(reached || (opened && test.done() == done + 1));
    Sequence made;
    if (opened && opened->cached.count != 0) {
      CHECK(!exact || opened->cached == Tokens{test.expected()});
      made = {opened->slot, first_of(test.prompt(), opened->cached.count), opened->cached.count};
    } else {
      if (opened) test.close({opened->slot, {}});
      test.end();
      test.require_nothing_done(kept, open, exact);
      made = test.open(test.prompt());
      CHECK(!exact || made.cached == test.expected());
    }
    test.reclaim_refused();
    test.require_all_goes_on(made, exact);
    if (!reached) return n - 1;
  }
  CHECK(!"it fails for ever");
  return 0;
}

}  // namespace

TEST(a_lost_driver_call_while_adopting_changes_nothing) {
  CHECK(try_all(Way::adopt, {}, 1, Fault::error) == 0);  // it calls no driver
  for (const std::int64_t times : {1, 1'000}) CHECK(try_all(Way::adopt, {70}, times, Fault::error) > 1);
}

TEST(a_lost_driver_call_while_aliasing_a_running_sequence_changes_nothing) {
  for (const std::int64_t times : {1, 1'000}) {
    CHECK(try_all(Way::alias, {}, times, Fault::error) > 8);
    CHECK(try_all(Way::alias, {10}, times, Fault::error) > 8);
  }
}

TEST(a_lost_driver_call_while_aliasing_a_closed_sequence_changes_nothing) {
  for (const std::int64_t times : {1, 1'000})
    CHECK(try_all(Way::alias_closed, {10}, times, Fault::error) > 8);
}

TEST(a_lost_driver_call_while_copying_changes_nothing) {
  for (const std::int64_t times : {1, 1'000}) CHECK(try_all(Way::copy, {10}, times, Fault::error) > 3);
}

TEST(a_device_without_memory_or_mappings_changes_nothing) {
  for (const Fault fault : {Fault::out_of_memory, Fault::mapping_limit})
    for (const Way way : {Way::adopt, Way::alias, Way::alias_closed, Way::copy})
      CHECK(try_all(way, {70}, 1, fault) > 1);
}
