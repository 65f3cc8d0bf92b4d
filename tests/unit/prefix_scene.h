// A cache with a sequence that others may begin with, made so that they get its tokens in a certain way; and
// two that have nothing to do with it, and must not change whatever fails.
#pragma once

#include "check.h"
#include "prefix_fixture.h"

namespace vmm {

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

}  // namespace vmm
