// Tiers and drivers that fail under sequences that are parked.
#include <unistd.h>

#include <atomic>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "check.h"
#include "parked_fixture.h"

using namespace vmm;

namespace {

/// Somebody writes to the file where the copy of a page lies.
void spoil(const TestCalls& calls, std::uint64_t slot) {
  alignas(4096) static const char other[4096] = {1};
  CHECK(::pwrite(calls.file, other, sizeof(other), static_cast<off_t>((64_KiB * slot).count)) ==
        static_cast<ssize_t>(sizeof(other)));
}

/// The first token that the sequence has lost when it comes back, if any.
std::optional<Tokens> lost_by(Parked& test, Sequence& sequence) {
  try {
    test.more(sequence);
  } catch (const SequenceLost& error) {
    return error.losses().front().first;
  }
  return std::nullopt;
}

}  // namespace

TEST(tokens_whose_copies_are_not_good_are_lost_by_name_and_all_else_goes_on) {
  auto calls = std::make_shared<TestCalls>();
  Parked test({.file = 8_MiB, .calls = calls});
  Sequence good = test.idle(2), bad = test.idle(3);
  test.push_out();
  test.more(good);
  std::atomic<int> left = 1;
  calls->refuse = [&](const std::string& call, int) { return call == "preadv" && left > 0 ? EIO : 0; };
  std::optional<std::vector<SequenceLost::Loss>> losses;
  try {
    test.more(bad);
  } catch (const SequenceLost& error) {
    losses = error.losses();
  }
  left = 0;
  CHECK(losses && losses->size() == 1 && losses->front().slot == bad.slot);
  const std::uint64_t first = losses ? losses->front().first.count : 0;
  CHECK(first % tokens_a_page == 0 && first < bad.tokens.size());
  CHECK(test.cache->length(bad.slot) == Tokens{first});
  CHECK(test.cache->lost(bad.slot) == Tokens{bad.tokens.size() - first});
  bad.tokens.resize(first);
  test.step(bad, tokens_from(321, 100));
  test.park(bad);
  test.push_out(5);
  test.more(bad);
  test.more(good);
  CHECK(test.intact(bad) && test.intact(good));
}

TEST(a_sequence_with_windows_that_lost_tokens_has_no_copy_of_those_before_either) {
  auto calls = std::make_shared<TestCalls>();
  Parked test({.budget = 64_KiB * 20, .leases = 2, .window = {65}, .file = 8_MiB, .calls = calls});
  Sequence bad = test.idle(3);
  test.push_out(9);
  spoil(*calls, test.figures().cleaned - 1);  // its last page: of those before it the copies are good
  CHECK(lost_by(test, bad) == Tokens{});
  bad.tokens.clear();
  test.step(bad, tokens_from(321, 3 * tokens_a_page));
  test.park(bad);
  test.push_out(9);
  test.more(bad);
  CHECK(test.intact(bad));
}

TEST(who_lost_tokens_does_not_write_to_a_page_that_others_have_too) {
  auto calls = std::make_shared<TestCalls>();
  Parked test({.record = Bytes{1'000}, .file = 8_MiB, .calls = calls});  // token 65 lies in two pages
  const TokenList tokens = tokens_from(1, 140);
  const Sequence other = test.serve(tokens);
  Sequence bad = test.open(joined(tokens, tokens_from(500, 1)));
  CHECK(test.stats().aliased == 1);
  test.step(bad, tokens_from(500, 200 - bad.tokens.size()));
  test.park(bad);
  test.push_out(5);
  spoil(*calls, 1);  // its second page: the first, which it shares, is there
  const std::optional<Tokens> first = lost_by(test, bad);
  CHECK(first && first->count <= 65);
  bad.tokens.resize(first ? first->count : 0);
  test.step(bad, tokens_from(700, 66 - bad.tokens.size()));
  CHECK(test.intact(other) && test.intact(bad));
}

TEST(tokens_that_are_lost_are_told_also_when_another_sequence_cannot_come_back) {
  bool told = false;
  for (std::int64_t n = 1; n < 50; ++n) {
    auto calls = std::make_shared<TestCalls>();
    Parked test({.tail = {30}, .file = 8_MiB, .calls = calls});
    const Sequence bad = test.idle(1), good = test.idle(1);
    test.push_out(6);
    spoil(*calls, 0);
    CHECK(test.is_prefetched(bad) && test.is_prefetched(good));
    const std::int32_t slots[] = {static_cast<std::int32_t>(bad.slot), static_cast<std::int32_t>(good.slot)};
    const std::int32_t lengths[] = {tokens_a_page, tokens_a_page};
    bool is_told = false;
    test.faults->fail_at(n, 1, Fault::error);
    try {
      test.cache->step(slots, lengths, {});
    } catch (const SequenceLost& error) {
      is_told = error.losses().front().slot == bad.slot;
    } catch (const DriverError&) {
    }
    const bool reached = !test.faults->last_failed().empty();
    test.faults->fail_at(0, 0, Fault::error);
    CHECK(is_told == (test.cache->length(bad.slot) != Tokens{tokens_a_page}));
    told |= is_told && reached;
    if (!reached) break;
  }
  CHECK(told);
}

TEST(nobody_finds_tokens_whose_copies_were_not_good) {
  auto calls = std::make_shared<TestCalls>();
  Parked test({.file = 8_MiB, .calls = calls});
  const TokenList tokens = tokens_from(1, 3 * tokens_a_page);
  const Sequence bad = test.serve(tokens);
  test.park(bad);
  test.push_out(8);
  calls->refuse = [](const std::string& call, int) { return call == "preadv" ? EIO : 0; };
  CHECK(test.is_prefetched(bad) && test.figures().lost == 3);
  test.close(bad);
  test.end();
  CHECK(test.open(tokens).cached == 0);
}

TEST(nobody_finds_tokens_of_a_sequence_that_ended_while_its_pages_were_mapped) {
  std::atomic<bool> held = false, mapping = false;
  const auto before_map = [&](std::size_t) {
    mapping = true;
    while (held) std::this_thread::sleep_for(std::chrono::microseconds(100));
  };
  Parked test({.slots = 2, .before_map = before_map});
  const TokenList tokens = tokens_from(1, 3 * tokens_a_page);
  const Sequence idle = test.serve(tokens);
  test.park(idle);
  test.push_out(8);
  held = true;
  mapping = false;
  const auto slot = static_cast<std::int32_t>(idle.slot);
  test.cache->prefetch(std::span(&slot, 1), test.clock->now());
  CHECK(comes([&] { return mapping.load(); }));
  test.cache->close(idle.slot, {});
  held = false;
  test.open({});
  CHECK(test.open(tokens).cached == 0);  // waits until its only slot is free
}

TEST(a_tier_that_cannot_be_written_loses_nothing_and_says_that_there_is_no_memory) {
  auto calls = std::make_shared<TestCalls>();
  Parked test({.file = 8_MiB, .calls = calls});
  calls->refuse = [](const std::string& call, int) { return call == "pwritev" ? ENOSPC : 0; };
  Sequence idle = test.idle(5), other = test.open({});
  CHECK_THROWS(OutOfPages, "out of pages", test.step(other, tokens_from(7, 5 * tokens_a_page)));
  test.more(idle);
  CHECK(test.intact(idle) && test.figures().lost == 0);
}

TEST(where_the_tiers_are_full_the_rest_stays_where_it_is) {
  Parked test({.host = 64_KiB * 3});
  Sequence idle = test.idle(5), other = test.open({});
  CHECK_THROWS(OutOfPages, "out of pages", test.step(other, tokens_from(7, 7 * tokens_a_page)));
  test.step(other, tokens_from(7, 5 * tokens_a_page));
  CHECK(test.intact(other));
  test.close(other);
  test.more(idle);
  CHECK(test.intact(idle));
}

TEST(a_step_for_which_there_is_no_memory_names_those_that_fit) {
  Parked test;
  Sequence first = test.idle(5), second = test.idle(5);
  const std::int32_t slots[] = {static_cast<std::int32_t>(first.slot),
                                static_cast<std::int32_t>(second.slot)};
  const std::int32_t lengths[] = {5 * tokens_a_page, 5 * tokens_a_page};
  try {
    test.cache->step(slots, lengths, {});
    CHECK(!"there is memory for both");
  } catch (const OutOfPages& error) {
    CHECK(error.fitting().size() <= 1);
  }
  test.more(first);
  CHECK(test.intact(first));
  test.park(first);
  test.more(second);
  CHECK(test.intact(second));
}

TEST(a_sequence_may_end_while_a_tier_that_hangs_copies_it) {
  std::atomic<bool> hangs = true;
  const auto calls = std::make_shared<TestCalls>();
  Parked test({.slots = 2, .file = 8_MiB, .calls = calls});
  hang(*calls, "pwritev", hangs);
  Sequence idle = test.idle(5), other = test.open({});
  test.end();
  CHECK(test.parking->make_room(64_KiB));
  CHECK(comes([&] { return calls->made > 0 && test.is_moving(); }));
  test.close(idle);
  CHECK(test.cache->open_slots() == 1);
  CHECK_THROWS(InvalidArgument, "max_sequences", test.open({}));  // its pages must not be another's yet
  hangs = false;
  CHECK(test.opens_at_last());
  test.step(other, tokens_from(7, 7 * tokens_a_page));
  CHECK(test.intact(other));
}

TEST(who_needs_memory_does_not_wait_for_a_tier_that_hangs) {
  std::atomic<bool> hangs = true;
  const auto calls = std::make_shared<TestCalls>();
  Parked test({.file = 8_MiB, .calls = calls});
  hang(*calls, "pwritev", hangs);
  Sequence idle = test.idle(5), other = test.open({});
  test.end();
  std::atomic<bool> refused = false;
  std::thread step([&] {
    CHECK_THROWS(OutOfPages, "out of pages", test.step(other, tokens_from(7, 7 * tokens_a_page)));
    refused = true;
  });
  CHECK(comes([&] { return test.is_moving(); }));
  test.clock->advance(std::chrono::seconds(4));
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  CHECK(!refused);  // it may be slow only
  test.clock->advance(std::chrono::seconds(2));
  CHECK(comes([&] { return refused.load(); }));
  step.join();
  hangs = false;
  CHECK(comes([&] { return !test.is_moving(); }));
  test.step(other, tokens_from(7, 7 * tokens_a_page));
  CHECK(test.intact(other));
  test.close(other);
  test.end();
  test.more(idle);
  CHECK(test.intact(idle));
}

TEST(a_cache_may_end_while_a_tier_that_hangs_copies_its_pages) {
  std::atomic<bool> hangs = true;
  const auto calls = std::make_shared<TestCalls>();
  Parked test({.file = 8_MiB, .calls = calls});
  hang(*calls, "pwritev", hangs);
  test.idle(5);
  test.end();
  CHECK(test.parking->make_room(64_KiB));
  CHECK(comes([&] { return test.is_moving(); }));
  test.cache.reset();
  test.leases.clear();
  test.pool->trim(1_GiB);
  CHECK(test.pool->stats().kept >= 64_KiB * 5);  // what is copied must be there
  hangs = false;
  CHECK(comes([&] { return test.pool->stats().kept == Bytes{}; }));
}

TEST(a_driver_that_fails_while_a_sequence_comes_back_loses_nothing) {
  // A worker whose wait for a device fails tries again, and whoever waits for it waits as long.
  for (const std::int64_t times : {1, on_cuda() ? 20 : 1'000})
    for (std::int64_t n = 1; n < 100; ++n) {
      Parked test;
      Sequence idle = test.idle(4);
      test.push_out();
      test.faults->fail_at(n, times, Fault::error);
      bool failed = false;
      try {
        test.more(idle);
      } catch (const SequenceLost&) {
        throw;
      } catch (const Error&) {
        failed = true;
      }
      const bool reached = !test.faults->last_failed().empty();
      test.faults->fail_at(0, 0, Fault::error);
      CHECK(comes([&] { return !test.pool->reclaiming().refused(); }));
      if (failed)
        CHECK(comes([&] {
          try {
            test.more(idle);
            return true;
          } catch (const OutOfPages&) {  // what the driver has refused to unmap comes soon
            return false;
          }
        }));
      CHECK(test.intact(idle) && test.figures().lost == 0);
      test.close(idle);
      test.end();
      CHECK(comes([&] { return !test.pool->reclaiming().refused(); }));
      if (!reached) break;
      CHECK(n < 99);
    }
}
