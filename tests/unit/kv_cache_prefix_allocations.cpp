// Every allocation of open_prompt(), commit(), close() and fork() is refused once. Nothing may be half done:
// no sequence is open that its owner does not know of, no slot is lost, and nothing is found that is not
// there. (The stand-in's own books need memory, too, so this is for the host driver.)
#include <optional>

#include "check.h"
#include "prefix_scene.h"
#include "refused_allocations.h"

using namespace vmm;

namespace {

/// All of the cache's slots can be had: none is lost.
void require_all_slots(Scene& test) {
  std::vector<std::uint32_t> opened;
  while (test.cache->open_slots() < test.options.slots) opened.push_back(test.cache->open({1}, {1}, {}));
  for (std::uint32_t slot : opened) test.cache->close(slot, {});
  test.end();
}

/// Refuses each allocation of open_prompt() in turn. Returns how many there are.
int refuse_all_of_open(Way way, Tokens tail) {
  for (int n = 1; n < 1'000; ++n) {
    Scene test(way, tail);
    const TokenList tokens = test.prompt();
    const std::string salt;
    const Bytes kept = test.pool->stats().kept;
    const std::uint32_t open = test.cache->open_slots();
    std::optional<KvCache::Opened> opened;
    const int before = allocations;
    const bool refused = is_refused(n, [&] { opened = test.cache->open_prompt({tokens, salt}, {}, {}); });
    const bool over = !reached(before, n);
    finish_work();
    test.pool->check();
    CHECK(refused == !opened);
    Sequence made;
    if (opened) {
      made = {opened->slot, first_of(tokens, opened->cached.count), opened->cached.count};
    } else {
      test.end();
      // Whoever had the tokens already when more was refused has left them to others.
      CHECK(test.cache->open_slots() == open && test.pool->stats().kept == kept);
      CHECK(test.intact(test.running) && (!test.source_is_open() || test.intact(test.source)));
      made = test.open(tokens);
      CHECK(made.cached == test.expected());
    }
    test.reclaim_refused();
    test.require_all_goes_on(made, true);
    require_all_slots(test);
    if (over) return n - 1;
  }
  CHECK(!"it allocates for ever");
  return 0;
}

}  // namespace

TEST(an_open_without_memory_for_the_books_opens_nothing) {
  if (on_cuda()) return;
  CHECK(refuse_all_of_open(Way::adopt, {}) > 5);
  for (const Way way : {Way::adopt, Way::alias, Way::alias_closed, Way::copy})
    CHECK(refuse_all_of_open(way, {70}) > 5);
}

TEST(an_open_of_what_nobody_knows_opens_nothing_without_memory_for_the_books) {
  if (on_cuda()) return;
  const TokenList tokens = tokens_from(20'000, 100);
  bool over = false;
  for (int n = 1; !over && n < 1'000; ++n) {
    Scene test(Way::alias, {});
    const int before = allocations;
    KvCache::Opened opened{};
    const bool refused =
        is_refused(n, [&] { opened = test.cache->open_prompt({tokens, std::string(40, 's')}, {}, {}); });
    over = !reached(before, n);
    CHECK(test.cache->open_slots() == (refused ? 2 : 3));
    if (!refused) test.close({opened.slot, {}});
    CHECK(test.found(tokens, std::string(40, 's')) == 0);
    require_all_slots(test);
  }
  CHECK(over);
}

TEST(a_commit_without_memory_for_the_books_commits_nothing) {
  if (on_cuda()) return;
  const TokenList tokens = tokens_from(20'000, 100);
  bool over = false;
  int times = 0;
  for (int n = 1; !over && n < 1'000; ++n) {
    Scene test(Way::alias, {});
    Sequence made = test.open(tokens);
    test.step(made, tokens);
    test.commit(made, 0, 21);  // a block, and the beginning of another
    const int before = allocations;
    const auto rest = std::span(tokens).subspan(21);
    const bool refused = is_refused(n, [&] { test.cache->commit(made.slot, rest); });
    over = !reached(before, n);
    times += refused;
    CHECK(test.found(joined(tokens, {1})) == (refused ? 16 : 96));
    if (refused) test.cache->commit(made.slot, rest);
    CHECK(test.found(joined(tokens, {1})) == 96);
    test.close(made);
    test.end();
    CHECK(test.found(joined(tokens, {1})) == 96);
    require_all_slots(test);
  }
  CHECK(over && times > 5);
}

TEST(a_close_without_memory_for_the_books_can_be_tried_again) {
  if (on_cuda()) return;
  bool over = false;
  for (int n = 1; !over && n < 1'000; ++n) {
    Scene test(Way::alias, {});
    const int before = allocations;
    const bool refused = is_refused(n, [&] { test.cache->close(test.source.slot, {}); });
    over = !reached(before, n);
    test.pool->check();
    if (test.cache->open_slots() == 2) test.cache->close(test.source.slot, {});
    CHECK(test.cache->open_slots() == 1);
    CHECK(refused || test.stats().cached_slots == 2);
    test.end();
    CHECK(test.intact(test.running));
    require_all_slots(test);
  }
  CHECK(over);
}

TEST(a_fork_without_memory_for_the_books_opens_nothing) {
  if (on_cuda()) return;
  bool over = false;
  for (int n = 1; !over && n < 1'000; ++n) {
    Scene test(Way::alias, {});
    std::vector<std::uint32_t> forks;
    const int before = allocations;
    const bool refused = is_refused(n, [&] { forks = test.cache->fork(test.source.slot, 2, {}); });
    over = !reached(before, n);
    finish_work();
    test.pool->check();
    CHECK(test.cache->open_slots() == (refused ? 2 : 4));
    for (std::uint32_t slot : forks) {
      CHECK(test.intact({slot, test.source.tokens}));
      test.close({slot, {}});
    }
    test.end();
    CHECK(test.intact(test.source) && test.intact(test.running));
    require_all_slots(test);
  }
  CHECK(over);
}
