// Random courses of both stores, with calls that fail, beside a model of dictionaries.
#include <algorithm>
#include <map>
#include <optional>
#include <set>

#include "tier_fixture.h"

using namespace vmm;

namespace {

constexpr std::uint32_t slot_count = 24;
constexpr std::size_t page_count = 12;

/// What the store is believed to hold. A page of memory is busy while a transfer has it.
class TierCourse {
 public:
  TierCourse(const std::string& kind, std::uint64_t seed)
      : made_(make_store(kind, slot_count)), random_(seed) {
    made_.calls->refuse = [this](const std::string& call, int) {
      if (call != "preadv" && call != "pwritev") return 0;
      return failing_ && call_dice_() % 20 == 0 ? (call_dice_() % 2 == 0 ? EIO : ENOSPC) : 0;
    };
    made_.calls->most = [this](int n) -> std::size_t { return failing_ && n % 9 == 0 ? 5000 : SIZE_MAX; };
  }

  void run(int operations) {
    for (int i = 0; i < operations; ++i) {
      switch (random_() % 6) {
        case 0:
          take();
          break;
        case 1:
        case 2:
          write_one();
          break;
        case 3:
          read_one();
          break;
        case 4:
          give_back();
          break;
        default:
          collect_some();
      }
      require_sums();
    }
    while (!busy_.empty()) collect_some();
    for (auto it = held_.begin(); it != held_.end(); it = held_.erase(it)) store().give_back(it->first);
    if (!failing_) CHECK(store().figures().free == slot_count);
    CHECK(store().figures().free + store().figures().quarantined == slot_count);
    CHECK(store().figures().verified == (made_.checks() ? verified_ : 0));
  }

  void fail_at_times() { failing_ = true; }

 private:
  struct Held {
    std::optional<std::uint64_t> version;  // what was written, when it is
    int transfers = 0;
    bool written = false;  // or being written
  };

  TierStore& store() { return *made_.store; }

  void take() {
    const auto count = static_cast<std::uint32_t>(random_() % 4);
    const TierFigures before = store().figures();
    const auto slots = store().take(count);
    if (!before.read_only && count <= before.free) CHECK(slots.size() == count);
    CHECK(slots.empty() || slots.size() == count);
    // A slot that was given back in the middle of a transfer is free when that has ended, so its end is
    // there.
    std::array<Completion, page_count> ends;
    const std::size_t got = store().poll(ends);
    for (std::size_t i = 0; i < got; ++i) ended(ends[i]);
    for (const TierSlot slot : slots) {
      for (const auto& [other, held] : held_) CHECK(other.index != slot.index);
      for (const auto& [page, transfer] : busy_) CHECK(transfer.second.index != slot.index);
      CHECK(!failed_.contains(slot.index));
      held_[slot];
    }
  }

  std::optional<std::size_t> idle_page() {
    for (std::size_t page = 0; page < page_count; ++page)
      if (!busy_.contains(page)) return page;
    return {};
  }

  std::optional<TierSlot> any_held(const std::function<bool(const Held&)>& fits) {
    std::vector<TierSlot> fitting;
    for (const auto& [slot, held] : held_)
      if (fits(held)) fitting.push_back(slot);
    if (fitting.empty()) return {};
    return fitting[random_() % fitting.size()];
  }

  void begin(TransferKind kind, TierSlot slot, std::size_t page) {
    const Transfer one{kind, slot, pages_.at(page), page};
    CHECK(store().submit({&one, 1}) == 1);
    busy_[page] = {kind, slot};
    ++held_[slot].transfers;
  }

  void write_one() {
    const auto page = idle_page();
    const auto slot = any_held([](const Held& held) { return !held.written; });
    if (!page || !slot) return;
    pages_.fill(*page, ++version_);
    versions_[*page] = version_;
    held_[*slot].written = true;
    begin(TransferKind::write, *slot, *page);
  }

  void read_one() {
    const auto page = idle_page();
    const auto slot = any_held([](const Held& held) { return held.version.has_value(); });
    if (!page || !slot) return;
    pages_.fill(*page, 0);
    versions_[*page] = *held_[*slot].version;
    begin(TransferKind::read, *slot, *page);
  }

  void give_back() {
    const auto slot = any_held([](const Held&) { return true; });
    if (!slot) return;
    store().give_back(*slot);
    if (held_[*slot].transfers > 0) doomed_.insert(*slot);
    held_.erase(*slot);
  }

  void collect_some() {
    std::array<Completion, 3> ends;
    const std::size_t got = store().wait(ends, std::chrono::seconds(20));
    CHECK(busy_.empty() == (got == 0));
    for (std::size_t i = 0; i < got; ++i) ended(ends[i]);
  }

  void ended(const Completion& end) {
    const std::size_t page = end.transfer.tag;
    CHECK(busy_.contains(page) && busy_[page].second == end.transfer.slot);
    const bool done = end.outcome == Outcome::done;
    CHECK(done || failing_);
    // Whatever happened, a page that leaves is as it was, and one that is said to have come is right.
    if (done || end.transfer.kind == TransferKind::write) CHECK(pages_.is(page, versions_[page]));
    verified_ += done && end.transfer.kind == TransferKind::read;
    busy_.erase(page);
    const auto held = held_.find(end.transfer.slot);
    if (!done && end.outcome != Outcome::read_only) failed_.insert(end.transfer.slot.index);
    if (held == held_.end()) return;
    --held->second.transfers;
    if (end.transfer.kind == TransferKind::read) return;
    if (done) held->second.version = versions_[page];
    if (end.outcome == Outcome::read_only) held->second.written = false;
  }

  /// Who has ended may be known to the store before it is to the model.
  void require_sums() {
    const TierFigures figures = store().figures();
    CHECK(figures.pending == busy_.size());
    const std::size_t taken = slot_count - figures.free;
    CHECK(taken >= held_.size());
    std::erase_if(doomed_, [&](TierSlot slot) {
      return std::ranges::none_of(busy_,
                                  [&](const auto& transfer) { return transfer.second.second == slot; });
    });
    CHECK(taken <= held_.size() + doomed_.size() + figures.quarantined);
  }

  std::atomic<bool> failing_{false};
  std::mt19937 call_dice_{7};  // under the lock of the calls
  StoreUnderTest made_;
  std::mt19937_64 random_;
  TestPages pages_{page_count};
  std::map<TierSlot, Held> held_;
  std::map<std::size_t, std::pair<TransferKind, TierSlot>> busy_;
  std::map<std::size_t, std::uint64_t> versions_;
  std::set<TierSlot> doomed_;  // given back in the middle of a transfer
  std::set<std::uint32_t> failed_;
  std::uint64_t version_ = 0;
  std::uint64_t verified_ = 0;
};

void run_courses(const char* kind, bool failing) {
  for (std::uint64_t seed = 1; seed <= 12; ++seed) {
    const int before = check::failures();
    TierCourse course(kind, seed);
    if (failing) course.fail_at_times();
    course.run(400);
    if (check::failures() != before) {
      std::fprintf(stderr, "  … in the course of seed %d on %s\n", static_cast<int>(seed), kind);
      return;
    }
  }
}

}  // namespace

TEST(random_courses_in_memory) { run_courses("host", false); }
TEST(random_courses_of_a_device_s_pages) {
  run_courses("device host", false);
  run_courses("device file", true);
}
TEST(random_courses_in_a_file) { run_courses("file", false); }
TEST(random_courses_in_a_file_whose_calls_fail) { run_courses("file", true); }
TEST(random_courses_in_a_buffered_file_whose_calls_fail) { run_courses("buffered file", true); }
