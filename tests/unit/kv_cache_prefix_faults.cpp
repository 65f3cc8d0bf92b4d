// Every driver call of open_prompt() is made to fail, once and for good, in each of the ways in which a
// sequence gets the tokens of another. Nothing may be half done, and nobody else's tokens may change.
#include <memory>
#include <optional>

#include "check.h"
#include "prefix_fixture.h"

using namespace vmm;

namespace {

enum class Way : std::uint8_t { adopt, alias, alias_closed, copy };

/// A sequence that others may begin with, and two that have nothing to do with it.
struct Scene : PrefixCache {
  Scene(Way way_, Tokens tail)
      : PrefixCache({.record = Bytes{1'000},
                     .slots = 6,
                     .extents = 2,
                     .leases = 2,
                     .tail = tail,
                     .slow_maps = way_ == Way::copy}),
        way(way_),
        source(serve(tokens)),
        running(serve(tokens_from(5'000, 200))) {
    if (way == Way::copy) {  // now it knows what mapping and copying cost
      const Sequence first = open(joined(tokens, {1}));
      truncate_and_close(first);
      CHECK(stats().aliased == 1);
    }
    if (!source_is_open()) close(source);
    end();
    leave(tokens_from(7'000, 150));
    if (way == Way::copy) leave_pages(210, 1);
    if (way != Way::adopt || tail.count == 0) return;
    pool->trim(1_MiB, false, Need::none);
    pool->trim(64_KiB * 4);  // the tail's pages, of those that are used longest ago
  }

  void truncate_and_close(Sequence sequence) {
    truncate(sequence, 0);
    close(sequence);
    end();
  }
  TokenList prompt() const { return way == Way::alias_closed ? first_of(tokens, 178) : joined(tokens, {1}); }
  std::uint64_t expected() const { return way == Way::alias_closed ? 176 : 208; }
  bool source_is_open() const { return way == Way::alias || way == Way::copy; }
  std::uint64_t done() const {
    const PrefixStats now = stats();
    return way == Way::adopt ? now.adopted : way == Way::copy ? now.copied : now.aliased;
  }
  /// All that was there before is there still, and nothing else is kept.
  void require_nothing_done(Bytes kept, std::uint32_t open_before, bool exact) {
    reclaim_refused();
    CHECK(cache->open_slots() == open_before && pool->stats().kept == kept);
    CHECK(pool->stats().saved == Bytes{});
    CHECK(!exact || stats().cached_slots == (source_is_open() ? 1 : 2));
    CHECK(intact(running) && (!source_is_open() || intact(source)));
  }
  void reclaim_refused() {
    pool->reclaiming().drain_retired(true);
    pool->check();
  }
  /// Whoever began goes on, beside all others.
  /// Where memory or mappings are short, closed ones may have lost theirs.
  void require_all_goes_on(Sequence& made, bool exact) {
    CHECK(intact(made));
    step(made, tokens_from(9'000, 70));
    if (source_is_open()) step(source, tokens_from(9'500, 30));
    step(running, tokens_from(9'700, 30));
    CHECK(intact(made) && intact(running) && (!source_is_open() || intact(source)));
    close(made);
    end();
    if (!exact) return;
    CHECK(found(joined(tokens_from(7'000, 150), {1})) == 144);
    CHECK(found(prompt()) == expected());
  }

  const TokenList tokens = tokens_from(0, 210);
  const Way way;
  Sequence source, running;
};

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
