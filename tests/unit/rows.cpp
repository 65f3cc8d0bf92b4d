// Regions, and rows that are mapped where they are touched.
#include "engine/rows.h"

#include <cstring>
#include <random>
#include <set>
#include <thread>

#include "base/error.h"
#include "check.h"
#include "fixtures.h"

using namespace vmm;

namespace {

constexpr Bytes page = 64_KiB;

std::shared_ptr<Rows> make_rows(TestPool& test, std::uint64_t rows, std::uint64_t tokens, Bytes record) {
  const Bytes size = round_up(record * tokens * rows, page);
  return Rows::make(test.pager, test.reserve(size, 1, 0, true), {rows, {tokens}, record});
}

Region tokens(const Rows& rows, std::uint64_t row, std::uint64_t from, std::uint64_t to) {
  const RowsShape& shape = rows.shape();
  return {shape.record_bytes * (shape.tokens.count * row + from),
          Bytes{1},
          {{to - from, shape.record_bytes}, {shape.record_bytes.count, Bytes{1}}}};
}

void touch(Rows& rows, std::uint64_t row, std::uint64_t from, std::uint64_t to) {
  rows.touch(rows.spans_of(tokens(rows, row, from, to)));
}

unsigned char& byte_at(const Rows& rows, std::uint64_t row, std::uint64_t token) {
  return *bytes_at(rows.lease(), tokens(rows, row, token, token + 1).offset);
}

Bytes mapped(const Rows& rows) { return rows.pool().mapped(rows.lease().reservation()); }

}  // namespace

TEST(spans_touch_exactly_the_pages_that_the_elements_do) {
  std::mt19937 random(7);
  auto below = [&](unsigned n) { return random() % n; };
  for (int round = 0; round < 2000; ++round) {
    Region region{Bytes{below(300)}, Bytes{1 + below(8)}, {}};
    for (unsigned i = below(4); i-- > 0;) region.dimensions.push_back({below(6), Bytes{below(200)}});
    std::set<std::uint64_t> wanted, found, exact;
    std::vector<std::uint64_t> starts{region.offset.count};
    for (const Dimension& d : region.dimensions) {
      std::vector<std::uint64_t> next;
      for (std::uint64_t start : starts)
        for (std::uint64_t i = 0; i < d.size; ++i) next.push_back(start + i * d.stride.count);
      starts = next;
    }
    const Bytes small_page{64};
    std::set<std::uint64_t> bytes;
    for (std::uint64_t start : starts)
      for (std::uint64_t i = 0; i < region.item.count; ++i) bytes.insert(start + i);
    for (std::uint64_t byte : bytes) wanted.insert(byte / small_page.count);
    std::uint64_t before = 0, total = 0;
    for (const ByteRange& span : spans(region, small_page)) {
      CHECK(span.offset.count >= before);
      before = (span.offset + span.size).count;
      total += span.size.count;
      for (std::uint64_t b = span.offset.count; b < before; ++b) found.insert(b / small_page.count);
    }
    CHECK(found == wanted);
    if (dense(region, small_page)) CHECK(total == bytes.size());
  }
}

TEST(only_what_is_touched_is_mapped) {
  TestPool test(8_MiB);
  auto rows = make_rows(test, 4, 1000, 1_KiB);  // 15.6 pages each: neighbours share one
  touch(*rows, 0, 0, 1);
  CHECK(mapped(*rows) == page);
  touch(*rows, 2, 500, 501);
  CHECK(mapped(*rows) == page * 2);
  touch(*rows, 1, 0, 24);  // in the page where row 0 ends
  CHECK(mapped(*rows) == page * 3);
  touch(*rows, 0, 960, 1000);
  CHECK(mapped(*rows) == page * 3);
  CHECK(rows->mark(0) == Tokens{1000});
  CHECK(rows->mark(1) == Tokens{24});
  CHECK(rows->mark(2) == Tokens{501});
  CHECK(rows->mark(3) == Tokens{0});
  test.pool->check();
}

TEST(rows_refuse_what_is_not_theirs) {
  TestPool test(1_MiB);
  auto rows = make_rows(test, 2, 100, 1_KiB);
  CHECK_THROWS(InvalidArgument, "region", rows->spans_of(tokens(*rows, 1, 90, 101)));
  CHECK_THROWS(InvalidArgument, "tokens", rows->reserve({101}));
  CHECK_THROWS(InvalidArgument, "start, end", rows->release({2}, {1}));
  CHECK_THROWS(InvalidArgument, "start, end", rows->release({0}, {101}));
  CHECK_THROWS(InvalidArgument, "rows", Rows::make(test.pager, test.reserve(64_KiB), {2, {100}, 1_KiB}));
}

TEST(without_memory_nothing_changes) {
  TestPool test(256_KiB);
  auto rows = make_rows(test, 2, 1024, 1_KiB);
  touch(*rows, 0, 0, 64);
  CHECK_THROWS(OutOfPages, "out of pages", touch(*rows, 1, 0, 256));
  CHECK(rows->mark(1) == Tokens{0});
  CHECK(mapped(*rows) == page);
  touch(*rows, 1, 0, 192);
  test.pool->check();
}

TEST(release_spares_what_others_use) {
  TestPool test(8_MiB);
  auto rows = make_rows(test, 3, 100, 1_KiB);  // 1.6 pages each
  for (std::uint64_t row = 0; row < 3; ++row) {
    touch(*rows, row, 0, 100);
    for (std::uint64_t t = 0; t < 100; ++t) byte_at(*rows, row, t) = static_cast<unsigned char>(1 + row);
  }
  test.settle();
  CHECK(mapped(*rows) == page * 5);
  rows->release({10}, {100});
  test.settle();
  CHECK(mapped(*rows) == page * 3);  // KiB 110-200 hold page 2, and 210-300 page 4
  for (std::uint64_t row = 0; row < 3; ++row) {
    CHECK(rows->mark(row) == Tokens{10});
    for (std::uint64_t t = 0; t < 10; ++t) CHECK(byte_at(*rows, row, t) == 1 + row);
  }
  rows->release({0}, {10});
  test.settle();
  CHECK(mapped(*rows) == Bytes{});
  touch(*rows, 0, 0, 100);
  for (std::uint64_t t = 0; t < 100; ++t) CHECK(byte_at(*rows, 0, t) == 0);
  test.pool->check();
}

TEST(release_in_the_middle_keeps_both_ends) {
  TestPool test(8_MiB);
  auto rows = make_rows(test, 1, 1024, 1_KiB);
  touch(*rows, 0, 0, 1024);
  byte_at(*rows, 0, 0) = 1;
  byte_at(*rows, 0, 1023) = 2;
  rows->release({1}, {1023});
  test.settle();
  CHECK(mapped(*rows) == page * 2);
  CHECK(rows->mark(0) == Tokens{1024});
  CHECK(byte_at(*rows, 0, 0) == 1 && byte_at(*rows, 0, 1023) == 2);
  const auto used = rows->in_use();
  CHECK(used.size() == 2 && used[0].size == page && used[1].offset == page * 15);
}

TEST(a_sliding_window_gives_pages_back_step_by_step) {
  TestPool test(8_MiB);
  auto rows = make_rows(test, 2, 1000, 1_KiB);
  touch(*rows, 0, 0, 1000);
  touch(*rows, 1, 0, 1000);
  for (std::uint64_t t = 0; t < 960; t += 8) rows->release({t}, {t + 8});  // never a whole page at once
  test.settle();
  CHECK(mapped(*rows) <= page * 4);
  CHECK(rows->mark(0) == Tokens{1000});
  touch(*rows, 0, 900, 901);  // in use again, and so is what follows
  rows->release({960}, {1000});
  test.settle();
  touch(*rows, 0, 900, 901);
  rows->release({0}, {1000});
  test.settle();
  CHECK(mapped(*rows) == Bytes{});
}

TEST(a_closed_pool_gets_back_what_tensors_release) {
  TestPool test(8_MiB);
  auto rows = make_rows(test, 1, 1024, 1_KiB);
  auto pin = rows->pin(rows->spans_of(tokens(*rows, 0, 0, 1)));
  touch(*rows, 0, 500, 1024);
  test.pool->close();
  rows->release({600}, {1024});
  CHECK(test.pool->stats().created == page * 4);
  rows.reset();
  CHECK(test.pool->stats().created == page);
  pin.reset();
  CHECK(test.pool->stats().created == Bytes{});
}

TEST(what_is_pinned_outlives_its_release) {
  TestPool test(8_MiB);
  auto rows = make_rows(test, 2, 1024, 1_KiB);
  auto first = rows->pin(rows->spans_of(tokens(*rows, 0, 0, 100)));
  auto second = rows->pin(rows->spans_of(tokens(*rows, 0, 64, 200)));
  byte_at(*rows, 0, 70) = 7;
  rows->release({0}, {1024});
  test.settle();
  CHECK(mapped(*rows) == page * 4);
  first.reset();
  test.settle();
  CHECK(mapped(*rows) == page * 3);  // page 1 is pinned by the second, too
  CHECK(byte_at(*rows, 0, 70) == 7);
  touch(*rows, 0, 130, 131);  // in use again
  second.reset();
  test.settle();
  CHECK(mapped(*rows) == page * 2);  // with one ahead
  test.pool->check();
}

TEST(a_pin_outlives_the_owners_and_the_end) {
  TestPool test(8_MiB);
  auto rows = make_rows(test, 2, 1024, 1_KiB);
  auto pin = rows->pin(rows->spans_of(tokens(*rows, 1, 0, 1)));
  touch(*rows, 0, 0, 1024);
  unsigned char& byte = byte_at(*rows, 1, 0);
  byte = 9;
  rows->end();
  rows->end();
  CHECK_THROWS(Closed, "closed", touch(*rows, 0, 0, 1));
  rows.reset();
  test.settle();
  CHECK(test.pool->stats().mapped == page);
  CHECK(byte == 9);
  pin.reset();
  test.settle();
  CHECK(test.pool->stats().mapped == Bytes{});
  CHECK(test.pool->stats().reservations_leased == 0);
  test.pool->check();
}

TEST(released_pages_wait_for_work_in_flight) {
  TestPool test(8_MiB);
  auto rows = make_rows(test, 1, 1024, 1_KiB);
  touch(*rows, 0, 0, 1024);
  test.faults->hold_events(true);
  test.pool->epochs().mark({});
  rows->release({0}, {1024});
  test.settle();
  CHECK(test.pool->stats().retirements_waiting == 1);
  test.faults->hold_events(false);
  finish_work();
  test.settle();
  CHECK(test.pool->stats().retirements_waiting == 0);
  CHECK(test.pool->stats().mapped == Bytes{});
}

TEST(the_pager_maps_ahead_of_rows_that_grow) {
  TestPool test(8_MiB);
  auto rows = make_rows(test, 2, 1000, 1_KiB);
  touch(*rows, 0, 0, 1);
  test.settle();
  CHECK(mapped(*rows) == page * 2);
  const auto stalls = test.pool->counters().stalls.get();
  for (std::uint64_t t = 1; t < 1000; ++t) {
    touch(*rows, 0, t, t + 1);
    test.settle();
  }
  CHECK(test.pool->counters().stalls.get() == stalls);
  CHECK(mapped(*rows) == page * 16);  // not beyond the end of the row
}

TEST(reserved_tokens_are_mapped_but_not_in_use) {
  TestPool test(8_MiB);
  auto rows = make_rows(test, 2, 1024, 1_KiB);
  rows->reserve({100});
  CHECK(mapped(*rows) == page * 4);
  CHECK(rows->mark(0) == Tokens{0});
  CHECK(rows->in_use().empty());
  CHECK(test.pool->trim(8_MiB) == Bytes{});  // it was promised
  rows->release({0}, {1024});
  test.settle();
  CHECK(mapped(*rows) == Bytes{});
}

TEST(zeroing_touches_what_is_mapped_only) {
  TestPool test(8_MiB);
  auto rows = make_rows(test, 2, 1024, 1_KiB);
  touch(*rows, 0, 0, 100);
  touch(*rows, 1, 200, 300);
  byte_at(*rows, 0, 99) = 1;
  byte_at(*rows, 1, 200) = 1;
  const Bytes before = mapped(*rows);
  rows->zero_mapped(rows->spans_of(tokens(*rows, 0, 0, 1024)));
  CHECK(byte_at(*rows, 0, 99) == 0);
  CHECK(byte_at(*rows, 1, 200) == 1);
  CHECK(mapped(*rows) == before);
}

/// One of the calls fails later, for want of memory: it must not end the other's need.
TEST(who_touches_a_page_has_it_although_another_call_that_wanted_it_too_fails) {
  TestPool test(256_KiB);  // 4 pages
  auto rows = make_rows(test, 1, 64, 64_KiB);
  touch(*rows, 0, 0, 1);
  test.settle();  // the next page is there, as look-ahead
  auto other = test.reserve(128_KiB);
  map(*other, 0, 2);
  test.faults->hold_events(true);
  test.pool->epochs().mark({});
  retire(*other, 0, 2);
  std::atomic<bool> failed{false};
  std::thread loser([&] {  // it waits for what was retired
    try {
      touch(*rows, 0, 1, 4);
    } catch (const OutOfPages&) {
      failed = true;
    }
  });
  while (test.pool->stats().kept < 128_KiB) std::this_thread::yield();
  std::thread winner([&] { touch(*rows, 0, 1, 2); });
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  test.budget->set_limit(128_KiB);
  loser.join();
  winner.join();
  CHECK(failed);
  CHECK(test.pool->stats().kept == 128_KiB);
  test.faults->hold_events(false);
  test.settle();
  test.pool->check();
}
