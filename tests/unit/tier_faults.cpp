// What a store does when its medium throws, hangs, or keeps failing.
#include <condition_variable>
#include <new>
#include <set>

#include "manual_clock.h"
#include "tier/tier_store.h"
#include "tier_fixture.h"

using namespace vmm;

namespace {

/// Holds the bytes itself, does as it is told, and can be made to wait.
class ToldMedium final : public SlotMedium {
 public:
  explicit ToldMedium(std::uint32_t slots) : pages_(slots) {}
  ~ToldMedium() override { ended = true; }

  void write(std::span<SlotCopy> copies) override {
    for (SlotCopy& copy : enter(copies)) {
      std::memcpy(pages_.at(copy.slot), copy.memory, page_bytes.count);
      copy.checksum = pages_.at(copy.slot)[0] == std::byte{0} ? 0 : 1;
    }
  }
  void read(std::span<SlotCopy> copies) override {
    for (SlotCopy& copy : enter(copies)) {
      std::memcpy(copy.memory, pages_.at(copy.slot), page_bytes.count);
      copy.checksum = pages_.at(copy.slot)[0] == std::byte{0} ? 0 : 1;
    }
  }

  void hold() { set_open(false); }
  void let_go() { set_open(true); }
  /// Until so many calls are inside.
  void await(int calls) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return inside_ >= calls; });
  }

  std::function<void(std::uint32_t slot)> before = [](std::uint32_t) {};  // may throw
  std::vector<std::size_t> sizes;                                         // of the calls
  static inline std::atomic<bool> ended{false};

 private:
  std::span<SlotCopy> enter(std::span<SlotCopy> copies) {
    std::unique_lock lock(mutex_);
    sizes.push_back(copies.size());
    ++inside_;
    changed_.notify_all();
    changed_.wait(lock, [&] { return open_; });
    --inside_;
    for (const SlotCopy& copy : copies) before(copy.slot);
    return copies;
  }
  void set_open(bool open) {
    const std::lock_guard lock(mutex_);
    open_ = open;
    changed_.notify_all();
  }

  TestPages pages_;
  std::mutex mutex_;
  std::condition_variable changed_;
  int inside_ = 0;
  bool open_ = true;
};

struct Scene {
  explicit Scene(TierStoreOptions options = {}) {
    options.slot = page_bytes;
    options.slots = 12;
    store = std::make_unique<TierStore>(options, medium, clock, log);
    for (std::size_t i = 0; i < 12; ++i) pages.fill(i, i + 1);
  }
  std::size_t submit(TransferKind kind, const std::vector<TierSlot>& slots) {
    std::vector<Transfer> all;
    for (const TierSlot slot : slots) all.push_back({kind, slot, pages.at(slot.index), slot.index});
    return store->submit(all);
  }

  std::shared_ptr<ToldMedium> medium = std::make_shared<ToldMedium>(12);
  std::shared_ptr<ManualClock> clock = std::make_shared<ManualClock>();
  std::shared_ptr<Log> log = std::make_shared<Log>();
  TestPages pages{12};
  std::unique_ptr<TierStore> store;
};

}  // namespace

TEST(a_worker_survives_whatever_is_thrown) {
  Scene scene;
  int thrown = 0;
  scene.medium->before = [&](std::uint32_t) {
    switch (++thrown) {
      case 1:
        throw std::system_error(ENOSPC, std::generic_category(), "pwritev");
      case 2:
        throw std::bad_alloc();
      case 3:
        throw 3;
      case 4:
        throw Error("four");
      default:
        return;
    }
  };
  const auto slots = scene.store->take(5);
  for (int i = 0; i < 4; ++i) {
    const Completion end =
        transfer(*scene.store, TransferKind::write, slots[static_cast<std::size_t>(i)], scene.pages.at(0));
    CHECK(end.outcome == Outcome::failed && end.error == (i == 0 ? ENOSPC : 0) && end.transfer.tag == 77);
  }
  CHECK(write(*scene.store, slots[4], scene.pages.at(0)) == Outcome::done);
  CHECK(scene.store->figures().write_failures == 4 && scene.store->figures().quarantined == 4);
  const auto said = scene.log->drain();  // once, or a broken disk fills the log
  CHECK(said.size() == 1 && said[0].text.find("pwritev") != std::string::npos);
}

TEST(a_slot_whose_write_failed_is_given_to_nobody) {
  Scene scene;
  scene.medium->before = [](std::uint32_t slot) {
    if (slot == 1) throw std::bad_alloc();
  };
  const auto slots = scene.store->take(12);
  CHECK(scene.submit(TransferKind::write, slots) == 12);
  for (const Completion& end : collect(*scene.store, 12))
    CHECK((end.outcome == Outcome::failed) == (end.transfer.slot.index == 1));
  CHECK_THROWS(InvalidArgument, "cannot be read", read(*scene.store, slots[1], scene.pages.at(0)));
  for (const TierSlot slot : slots) scene.store->give_back(slot);
  CHECK_THROWS(InvalidArgument, "given back", scene.store->give_back(slots[1]));
  CHECK(scene.store->figures().free == 11 && scene.store->take(12).empty());
  for (const TierSlot slot : scene.store->take(11)) CHECK(slot.index != 1);
}

TEST(neighbours_are_merged_and_one_that_fails_takes_none_with_it) {
  Scene scene({.merged = 4});
  scene.medium->before = [](std::uint32_t slot) {
    if (slot == 6) throw std::system_error(EIO, std::generic_category(), "pwritev");
  };
  scene.medium->hold();
  const auto slots = scene.store->take(12);
  CHECK(scene.submit(TransferKind::write, {slots[0]}) == 1);
  scene.medium->await(1);
  CHECK(scene.submit(TransferKind::write,
                     {slots[1], slots[2], slots[3], slots[4], slots[5], slots[6], slots[7], slots[9]}) == 8);
  scene.medium->let_go();
  for (const Completion& end : collect(*scene.store, 9)) {
    CHECK((end.outcome == Outcome::failed) == (end.transfer.slot.index == 6));
    CHECK(end.error == (end.transfer.slot.index == 6 ? EIO : 0));
  }
  const std::vector<std::size_t> sizes{1, 4, 3, 1, 1, 1, 1};  // three once more, each by itself
  CHECK(scene.medium->sizes == sizes);
  CHECK(scene.store->figures().calls == 4);
}

TEST(a_store_that_keeps_failing_becomes_read_only) {
  Scene scene({.failures = 3});
  const auto slots = scene.store->take(10);
  CHECK(write(*scene.store, slots[0], scene.pages.at(0)) == Outcome::done);
  scene.medium->before = [](std::uint32_t slot) {
    if (slot >= 1 && slot != 3) throw std::bad_alloc();
  };
  // Two failures, then a success, then three failures.
  for (std::size_t i = 1; i < 6; ++i) write(*scene.store, slots[i], scene.pages.at(0));
  CHECK(!scene.store->figures().read_only);
  CHECK(write(*scene.store, slots[6], scene.pages.at(0)) == Outcome::failed);
  CHECK(scene.store->figures().read_only);
  scene.medium->before = [](std::uint32_t) {};
  CHECK(write(*scene.store, slots[7], scene.pages.at(0)) == Outcome::read_only);
  CHECK(scene.store->take(1).empty());
  CHECK(read(*scene.store, slots[0], scene.pages.at(1)) == Outcome::done && scene.pages.is(1, 1));
  for (const TierSlot slot : slots) scene.store->give_back(slot);
  CHECK(scene.store->figures().free == 7 && scene.store->figures().quarantined == 5);
  CHECK(scene.log->drain().back().text.find("only read") != std::string::npos);
}

TEST(a_slot_given_back_in_a_transfer_is_free_when_it_ends) {
  Scene scene;
  const auto slots = scene.store->take(12);
  CHECK(write(*scene.store, slots[0], scene.pages.at(0)) == Outcome::done);
  scene.medium->hold();
  CHECK(scene.submit(TransferKind::read, {slots[0]}) == 1);
  scene.medium->await(1);
  CHECK(scene.submit(TransferKind::read, {slots[0]}) == 1);
  CHECK(scene.submit(TransferKind::write, {slots[1]}) == 1);
  scene.store->give_back(slots[0]);
  scene.store->give_back(slots[1]);
  CHECK_THROWS(InvalidArgument, "given back", scene.submit(TransferKind::read, {slots[0]}));
  CHECK_THROWS(InvalidArgument, "given back", scene.store->give_back(slots[0]));
  CHECK(scene.store->take(1).empty() && scene.store->figures().free == 0);
  scene.medium->let_go();
  for (const Completion& end : collect(*scene.store, 3)) CHECK(end.outcome == Outcome::done);
  CHECK(scene.store->take(2).size() == 2);
}

TEST(what_waits_for_a_worker_too_long_ends_and_can_be_tried_again) {
  Scene scene({.patience = std::chrono::seconds(2)});
  const auto slots = scene.store->take(3);
  scene.medium->hold();
  CHECK(scene.submit(TransferKind::write, {slots[0]}) == 1);
  scene.medium->await(1);
  CHECK(scene.submit(TransferKind::write, {slots[1]}) == 1);
  scene.clock->advance(std::chrono::milliseconds(1999));
  std::array<Completion, 3> ends;
  CHECK(scene.store->poll(ends) == 0);
  CHECK(scene.store->figures().longest_running == std::chrono::milliseconds(1999));
  scene.clock->advance(std::chrono::milliseconds(1));
  CHECK(scene.store->poll(ends) == 1 && ends[0].outcome == Outcome::timed_out);
  CHECK(ends[0].transfer.slot == slots[1] && scene.store->figures().timed_out == 1);
  scene.medium->let_go();
  CHECK(collect(*scene.store, 1)[0].outcome == Outcome::done);
  CHECK(write(*scene.store, slots[1], scene.pages.at(1)) == Outcome::done);
  CHECK(scene.store->figures().quarantined == 0);
}

TEST(waiting_is_over_at_its_time_though_nothing_has_ended) {
  Scene scene;
  const auto slots = scene.store->take(1);
  scene.medium->hold();
  CHECK(scene.submit(TransferKind::write, slots) == 1);
  scene.medium->await(1);
  std::atomic<bool> over{false};
  std::thread time_passes([&] {
    while (!over) {
      scene.clock->advance(std::chrono::milliseconds(1));
      std::this_thread::yield();
    }
  });
  std::array<Completion, 1> end;
  CHECK(scene.store->wait(end, std::chrono::milliseconds(20)) == 0);
  over = true;
  time_passes.join();
  CHECK(scene.store->wait(std::span(end).first(0), std::chrono::hours(1)) == 0);
  scene.medium->let_go();
  CHECK(collect(*scene.store, 1)[0].outcome == Outcome::done);
}

TEST(a_medium_that_hangs_does_not_keep_a_store_from_closing) {
  ToldMedium::ended = false;
  {
    Scene scene;
    const auto slots = scene.store->take(3);
    scene.medium->hold();
    CHECK(scene.submit(TransferKind::write, {slots[0]}) == 1);
    scene.medium->await(1);
    CHECK(scene.submit(TransferKind::write, {slots[1]}) == 1);
    CHECK(scene.store->close(std::chrono::milliseconds(20)) == 1);
    CHECK(scene.store->close(std::chrono::milliseconds(20)) == 1);
    const Completion never_begun = collect(*scene.store, 1)[0];
    CHECK(never_begun.outcome == Outcome::closed && never_begun.transfer.slot == slots[1]);
    // Its page is the transfer's until that is collected, after closing, too.
    scene.medium->let_go();
    CHECK(collect(*scene.store, 1)[0].outcome == Outcome::done);
    CHECK(scene.store->close(std::chrono::seconds(20)) == 0);
  }
  while (!ToldMedium::ended) std::this_thread::yield();  // the worker that was left had the last of it
}

TEST(options_that_make_no_store_are_refused) {
  auto make = [](TierStoreOptions options) {
    TierStore store(options, std::make_shared<ToldMedium>(1), std::make_shared<ManualClock>(),
                    std::make_shared<Log>());
  };
  CHECK_THROWS(InvalidArgument, "slot:", make({.slot = {}, .slots = 1}));
  CHECK_THROWS(InvalidArgument, "slots:", make({.slot = page_bytes, .slots = 0}));
  CHECK_THROWS(InvalidArgument, "slots:", make({.slot = page_bytes, .slots = std::uint64_t{1} << 32}));
  CHECK_THROWS(InvalidArgument, "threads:", make({.slot = page_bytes, .slots = 1, .threads = 0}));
  CHECK_THROWS(InvalidArgument, "merged:", make({.slot = page_bytes, .slots = 1, .merged = 0}));
  CHECK_THROWS(InvalidArgument, "pending:", make({.slot = page_bytes, .slots = 1, .pending = 0}));
  CHECK_THROWS(InvalidArgument, "failures:", make({.slot = page_bytes, .slots = 1, .failures = 0}));
}
