// What every store of a tier promises, on each of them.
#include <algorithm>

#include "tier_fixture.h"

using namespace vmm;

namespace {

std::vector<Transfer> transfers_of(TransferKind kind, const std::vector<TierSlot>& slots, TestPages& pages) {
  std::vector<Transfer> out;
  for (std::size_t i = 0; i < slots.size(); ++i) out.push_back({kind, slots[i], pages.at(i), i});
  return out;
}

bool are_neighbours(const std::vector<TierSlot>& slots) {
  for (std::size_t i = 1; i < slots.size(); ++i)
    if (slots[i].index != slots[i - 1].index + 1) return false;
  return true;
}

void require_all_done(const std::vector<Completion>& ends) {
  for (const Completion& end : ends) CHECK(end.outcome == Outcome::done && end.error == 0);
}

}  // namespace

TEST(pages_come_back_as_they_were) {
  on_each_store(10, [](StoreUnderTest& made) {
    TierStore& store = *made.store;
    TestPages pages(10);
    for (std::size_t i = 0; i < 10; ++i) pages.fill(i, 100 + i);
    const auto slots = store.take(10);
    const auto writes = transfers_of(TransferKind::write, slots, pages);
    CHECK(store.submit(writes) == 10);
    require_all_done(collect(store, 10));
    for (std::size_t i = 0; i < 10; ++i) pages.fill(i, 0);
    std::vector<Transfer> reads = transfers_of(TransferKind::read, slots, pages);
    std::ranges::reverse(reads);
    CHECK(store.submit(reads) == 10);
    const auto ends = collect(store, 10);
    require_all_done(ends);
    std::vector<std::uint64_t> tags;
    for (const Completion& end : ends) tags.push_back(end.transfer.tag);
    std::ranges::sort(tags);
    for (std::size_t i = 0; i < 10; ++i) CHECK(tags[i] == i && pages.is(i, 100 + i));
    const TierFigures figures = store.figures();
    CHECK(figures.slots == 10 && figures.free == 0 && figures.pending == 0);
    CHECK(figures.written == page_bytes * 10 && figures.read == page_bytes * 10);
    CHECK(figures.verified == (made.checks() ? 10 : 0));
    CHECK(figures.corrupt + figures.read_failures + figures.write_failures + figures.timed_out == 0);
    CHECK(figures.longest_running == Nanoseconds{0});
  });
}

TEST(slots_are_taken_all_or_none_and_side_by_side) {
  on_each_store(10, [](StoreUnderTest& made) {
    TierStore& store = *made.store;
    CHECK(store.take(11).empty());
    CHECK(store.take(0).empty());
    const auto all = store.take(10);
    CHECK(all.size() == 10 && are_neighbours(all) && store.figures().free == 0);
    CHECK(store.take(1).empty());
    for (std::size_t i : {1, 3, 5, 6, 7, 9}) store.give_back(all[i]);
    const auto three = store.take(3);
    CHECK(three.size() == 3 && are_neighbours(three) && three[0].index == 5);
    CHECK(store.take(4).empty());
    const auto rest = store.take(3);
    CHECK(rest.size() == 3 && store.figures().free == 0);
    CHECK(rest[0].generation == 2);
  });
}

TEST(a_slot_of_somebody_else_is_refused) {
  on_each_store(4, [](StoreUnderTest& made) {
    TierStore& store = *made.store;
    TestPages pages(1);
    const TierSlot slot = store.take(1)[0];
    CHECK_THROWS(InvalidArgument, "slot: 9", store.give_back({9, 1}));
    CHECK_THROWS(InvalidArgument, "given back", store.give_back({3, 0}));
    CHECK(write(store, slot, pages.at(0)) == Outcome::done);
    store.give_back(slot);
    CHECK_THROWS(InvalidArgument, "given back", store.give_back(slot));
    CHECK_THROWS(InvalidArgument, "given back", read(store, slot, pages.at(0)));
    std::vector<TierSlot> others = store.take(4);
    CHECK_THROWS(InvalidArgument, "given back", read(store, slot, pages.at(0)));
    CHECK(store.figures().pending == 0);
  });
}

TEST(a_slot_is_written_once_and_read_when_that_is_over) {
  on_each_store(4, [](StoreUnderTest& made) {
    TierStore& store = *made.store;
    TestPages pages(2);
    pages.fill(0, 5);
    const auto slots = store.take(2);
    CHECK_THROWS(InvalidArgument, "cannot be read", read(store, slots[0], pages.at(1)));
    // One of them is wrong: none begins.
    const std::array both{Transfer{TransferKind::write, slots[0], pages.at(0), 0},
                          Transfer{TransferKind::read, slots[1], pages.at(1), 1}};
    CHECK_THROWS(InvalidArgument, "cannot be read", store.submit(both));
    const std::array twice{both[0], both[0]};
    CHECK_THROWS(InvalidArgument, "once", store.submit(twice));
    CHECK(store.figures().pending == 0);
    CHECK(write(store, slots[0], pages.at(0)) == Outcome::done);
    CHECK_THROWS(InvalidArgument, "once", write(store, slots[0], pages.at(0)));
    CHECK(read(store, slots[0], pages.at(1)) == Outcome::done && pages.is(1, 5));
  });
}

TEST(memory_must_be_there_and_aligned) {
  on_each_store(4, [](StoreUnderTest& made) {
    TierStore& store = *made.store;
    TestPages pages(2);
    const TierSlot slot = store.take(1)[0];
    CHECK_THROWS(InvalidArgument, "memory", write(store, slot, nullptr));
    pages.fill(0, 3);
    std::byte* odd = pages.at(0) + 8;
    if (store.alignment() > 1) {
      CHECK_THROWS(InvalidArgument, "memory", write(store, slot, odd));
    } else {
      const std::vector<std::byte> before(odd, odd + page_bytes.count);
      CHECK(write(store, slot, odd) == Outcome::done);
      std::memset(odd, 0, page_bytes.count);
      CHECK(read(store, slot, odd) == Outcome::done);
      CHECK(std::memcmp(before.data(), odd, page_bytes.count) == 0);
    }
  });
}

TEST(a_damaged_slot_is_corrupt_and_never_used_again) {
  on_each_store(4, [](StoreUnderTest& made) {
    if (!made.checks()) return;
    TierStore& store = *made.store;
    TestPages pages(2);
    pages.fill(0, 8);
    const auto slots = store.take(2);
    for (const TierSlot slot : slots) CHECK(write(store, slot, pages.at(0)) == Outcome::done);
    made.damage(slots[0]);
    CHECK(read(store, slots[0], pages.at(1)) == Outcome::corrupt);
    CHECK(read(store, slots[1], pages.at(1)) == Outcome::done && pages.is(1, 8));
    CHECK(store.figures().corrupt == 1 && store.figures().verified == 1);
    for (const TierSlot slot : slots) store.give_back(slot);
    CHECK(store.figures().quarantined == 1 && store.figures().free == 3);
    const auto rest = store.take(3);
    CHECK(rest.size() == 3 &&
          std::ranges::none_of(rest, [&](TierSlot s) { return s.index == slots[0].index; }));
    CHECK_THROWS(InvalidArgument, "given back", store.give_back(slots[0]));
  });
}

TEST(damage_that_is_mended_is_read_again) {
  on_each_store(4, [](StoreUnderTest& made) {
    if (!made.checks()) return;
    TierStore& store = *made.store;
    TestPages pages(2);
    pages.fill(0, 8);
    const TierSlot slot = store.take(1)[0];
    CHECK(write(store, slot, pages.at(0)) == Outcome::done);
    made.damage(slot);
    CHECK(read(store, slot, pages.at(1)) == Outcome::corrupt);
    made.damage(slot);
    CHECK(read(store, slot, pages.at(1)) == Outcome::done && pages.is(1, 8));
  });
}

TEST(a_closed_store_takes_nothing_and_its_ends_are_collected) {
  on_each_store(4, [](StoreUnderTest& made) {
    TierStore& store = *made.store;
    TestPages pages(4);
    const auto slots = store.take(3);
    CHECK(store.submit(transfers_of(TransferKind::write, slots, pages)) == 3);
    CHECK(store.close(std::chrono::seconds(20)) == 0);
    const auto ends = collect(store, 3);
    for (const Completion& end : ends) CHECK(end.outcome == Outcome::done || end.outcome == Outcome::closed);
    CHECK(store.take(1).empty());
    CHECK_THROWS(Closed, "closed", write(store, slots[0], pages.at(0)));
    std::array<Completion, 2> none;
    CHECK(store.poll(none) == 0 && store.wait(none, std::chrono::hours(1)) == 0);
    for (const TierSlot slot : slots) store.give_back(slot);
    CHECK(store.figures().free == 4);
    CHECK(store.close(std::chrono::seconds(20)) == 0);
  });
}

TEST(no_more_is_pending_than_was_allowed) {
  on_each_store(1100, [](StoreUnderTest& made) {
    TierStore& store = *made.store;
    TestPages page(1);
    page.fill(0, 4);
    std::vector<Transfer> writes;
    for (const TierSlot slot : store.take(1100)) writes.push_back({TransferKind::write, slot, page.at(0), 0});
    CHECK(store.submit(writes) == 1024);
    CHECK(store.submit(writes) == 0);  // or the first one would be refused
    require_all_done(collect(store, 1024));
    CHECK(store.submit(std::span(writes).subspan(1024)) == 76);
    require_all_done(collect(store, 76));
  });
}

TEST(a_device_that_fails_costs_no_slot_and_no_byte) {
  for (const char* kind : {"device host", "device file"})
    for (const char* call : {"create_stream", "copy_out", "copy_in", "finish"})
      for (int times = 1; times < 20; times += 6) {
        StoreUnderTest made = make_store(kind, 4);
        TierStore& store = *made.store;
        TestPages pages(2);
        pages.fill(0, 8);
        std::atomic<int> left = 0;
        made.device->before = [&](const std::string& name) {
          if (name == call && left > 0 && left-- > 0) throw DriverError("injected");
        };
        const TierSlot slot = store.take(1)[0];
        for (TransferKind way : {TransferKind::write, TransferKind::read}) {
          left = times;
          Outcome outcome = Outcome::device;
          for (int i = 0; i <= times && outcome == Outcome::device; ++i)
            outcome = transfer(store, way, slot, pages.at(way == TransferKind::read)).outcome;
          CHECK(outcome == Outcome::done);
        }
        CHECK(pages.is(1, 8) && !store.figures().read_only);
        CHECK(store.figures().write_failures + store.figures().read_failures == 0);
        store.give_back(slot);
        CHECK(store.figures().free == 4 && store.figures().quarantined == 0);
      }
}

TEST(a_device_that_is_lost_ends_what_is_under_way) {
  StoreUnderTest made = make_store("device host", 4);
  TestPages pages(1);
  const TierSlot slot = made.store->take(1)[0];
  made.device->before = [](const std::string& name) {
    if (name == "finish") throw DeviceLost("injected");
  };
  CHECK(write(*made.store, slot, pages.at(0)) == Outcome::device);
  made.device->before = [](const std::string&) {};
}

TEST(nothing_is_left_behind) {
  auto count_files = [] {
    const std::filesystem::directory_iterator all("/proc/self/fd");
    return std::distance(begin(all), end(all));
  };
  const auto files = count_files();
  on_each_store(9, [](StoreUnderTest& made) {
    CHECK(made.directory->is_empty());
    made.store.reset();
    CHECK(made.slabs->live == 0);
    CHECK(made.device == nullptr || made.device->live == 0);
  });
  CHECK(count_files() == files);
}
