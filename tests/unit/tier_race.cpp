// Threads that share a store: for ThreadSanitizer.
#include <map>

#include "tier_fixture.h"

using namespace vmm;

namespace {

/// Ends that any thread may have collected, by their tags.
class Ends {
 public:
  explicit Ends(TierStore& store) : store_(store) {}

  Completion await(std::uint64_t tag) {
    for (;;) {
      std::array<Completion, 4> some;
      const std::size_t got = store_.wait(some, std::chrono::milliseconds(1));
      const std::lock_guard lock(mutex_);
      for (std::size_t i = 0; i < got; ++i) ends_[some[i].transfer.tag] = some[i];
      const auto found = ends_.find(tag);
      if (found == ends_.end()) continue;
      const Completion end = found->second;
      ends_.erase(found);
      return end;
    }
  }

 private:
  TierStore& store_;
  std::mutex mutex_;
  std::map<std::uint64_t, Completion> ends_;
};

/// Takes, writes, reads and gives back; counts what went wrong, for CHECK is for one thread.
void use_store(TierStore& store, Ends& ends, std::uint64_t who, std::atomic<int>& wrong) {
  TestPages pages(2);
  for (std::uint64_t round = 0; round < 60; ++round) {
    const auto slots = store.take(1);
    if (slots.empty()) continue;
    const std::uint64_t tag = who << 32 | round << 1;
    pages.fill(0, tag);
    const Transfer write{TransferKind::write, slots[0], pages.at(0), tag};
    while (store.submit({&write, 1}) == 0) std::this_thread::yield();
    wrong += ends.await(tag).outcome != Outcome::done;
    const Transfer read{TransferKind::read, slots[0], pages.at(1), tag + 1};
    while (store.submit({&read, 1}) == 0) std::this_thread::yield();
    if (round % 2 == 0) store.give_back(slots[0]);
    wrong += ends.await(tag + 1).outcome != Outcome::done || !pages.is(1, tag);
    if (round % 2 == 1) store.give_back(slots[0]);
    wrong += store.figures().quarantined != 0;
  }
}

}  // namespace

TEST(threads_share_a_store) {
  on_each_store(5, [](StoreUnderTest& made) {
    Ends ends(*made.store);
    std::atomic<int> wrong{0};
    std::vector<std::thread> threads;
    for (std::uint64_t who = 0; who < 3; ++who)
      threads.emplace_back([&, who] { use_store(*made.store, ends, who, wrong); });
    for (std::thread& thread : threads) thread.join();
    CHECK(wrong == 0);
    CHECK(made.store->figures().free == 5 && made.store->figures().pending == 0);
  });
}

TEST(closing_beside_transfers) {
  for (int round = 0; round < 10; ++round)
    on_each_store(8, [](StoreUnderTest& made) {
      TestPages pages(8);
      std::vector<Transfer> all;
      for (const TierSlot slot : made.store->take(8))
        all.push_back({TransferKind::write, slot, pages.at(slot.index), slot.index});
      CHECK(made.store->submit(all) == 8);
      std::vector<Completion> ends;
      std::thread collector([&] { ends = collect(*made.store, 8); });
      CHECK(made.store->close(std::chrono::seconds(20)) == 0);
      collector.join();
      for (const Completion& end : ends)
        CHECK(end.outcome == Outcome::done || end.outcome == Outcome::closed);
    });
}
