// The layers of a Transformers cache, parked together: what fails, hangs, or ends in the middle.
#include "engine/parked_growths.h"

#include <atomic>
#include <functional>
#include <memory>
#include <vector>

#include "check.h"
#include "prefix_fixture.h"
#include "tier_fixture.h"

using namespace vmm;

namespace {

constexpr Bytes record{1'024};  // 64 tokens a page
constexpr Tokens length{150};   // three pages of each extent
constexpr std::uint64_t pages = 2 * 2 * 3;

/// Two layers with two rows each, in a pool with memory for little more.
struct Idle : TestPool {
  explicit Idle(std::shared_ptr<SlotCalls> calls = std::make_shared<SlotCalls>(), bool in_a_file = false)
      : TestPool(64_KiB * (pages + 2)) {
    parking =
        Parking::make(pager,
                      make_tiers(pool, {in_a_file ? Bytes{} : 8_MiB, "/tmp", in_a_file ? 8_MiB : Bytes{}},
                                 std::move(calls), clock),
                      "predictive");
    background = std::make_unique<Background>(pager, *clock);
    for (int i = 0; i < 2; ++i) {
      leases.push_back(reserve(1_MiB, 2));
      layers.push_back({Growth::make(pager, {{leases.back(), 0, 2, record}}), length});
      layers.back().growth->advance(length);
    }
    each_token([](unsigned char* bytes, int value) { std::memset(bytes, value, record.count); });
  }
  ~Idle() {
    idle.reset();
    layers.clear();
    leases.clear();
    parking->shut(std::chrono::seconds(1));
    parking.reset();
    background.reset();
    finish_work();
    require_nothing_left(*this);
  }
  Idle(const Idle&) = delete;
  Idle& operator=(const Idle&) = delete;

  void each_token(const std::function<void(unsigned char*, int)>& visit) const {
    for (std::size_t layer = 0; layer < 2; ++layer)
      for (std::uint64_t row = 0; row < 2; ++row)
        for (std::uint64_t at = 0; at < length.count; ++at)
          visit(bytes_at(*leases[layer], 1_MiB * row + record * at),
                static_cast<int>(1 + (layer * 2 + row) * 50 + at % 50));
  }
  bool intact() const {
    bool right = true;
    each_token([&](const unsigned char* bytes, int value) {
      right &= bytes[0] == static_cast<unsigned char>(value) && bytes[record.count - 1] == bytes[0];
    });
    return right;
  }
  void park() { idle = std::make_unique<ParkedGrowths>(parking, layers, ParkHint{}); }
  /// All of it is in the tier only.
  void push_out() {
    while (parking->make_room(1_GiB)) parking->await();
    pool->trim(1_GiB);
  }
  std::optional<Tokens> wake() {
    const std::optional<Tokens> lost = idle->wake();
    idle.reset();
    return lost;
  }

  std::shared_ptr<Parking> parking;
  std::unique_ptr<Background> background;
  std::vector<std::shared_ptr<Lease>> leases;
  std::vector<ParkedGrowths::Layer> layers;
  std::unique_ptr<ParkedGrowths> idle;
};

}  // namespace

TEST(layers_go_and_come_back_and_grow_on) {
  Idle test;
  for (int round = 0; round < 3; ++round) {
    test.park();
    CHECK(test.idle->ready());
    test.push_out();
    CHECK(!test.idle->ready() && test.pool->stats().kept == Bytes{});
    CHECK(!test.wake() && test.intact());
    test.pool->check();
    for (const auto& each : test.layers) {
      CHECK(each.growth->limit() >= length && each.growth->frontier() == length);
      each.growth->advance(length + Tokens{1});
      each.growth->truncate(length);
    }
  }
  CHECK(test.parking->figures().loaded == 3 * pages && test.parking->figures().parked == 0);
}

TEST(a_driver_that_fails_while_layers_are_parked_or_come_back_loses_nothing) {
  for (const std::int64_t times : {1, 20})
    for (std::int64_t n = 1; n < 200; ++n) {
      Idle test;
      test.park();
      test.push_out();
      test.faults->fail_at(n, times, Fault::error);
      bool failed = false;
      try {
        test.wake();
      } catch (const Error&) {
        failed = true;
      }
      const bool reached = !test.faults->last_failed().empty();
      test.faults->fail_at(0, 0, Fault::error);
      while (failed) try {
          CHECK(!test.wake());
          failed = false;
        } catch (const OutOfPages&) {  // what the driver has refused to unmap comes soon
          std::this_thread::sleep_for(std::chrono::microseconds(100));
        }
      CHECK(test.intact());
      if (!reached) break;
      CHECK(n < 199);
    }
}

TEST(layers_may_end_while_a_tier_that_hangs_copies_them) {
  std::atomic<bool> hangs = false;
  const auto calls = std::make_shared<TestCalls>();
  calls->refuse = [&hangs](const std::string& call, int) {
    while (call == "pwritev" && hangs) std::this_thread::sleep_for(std::chrono::microseconds(100));
    return 0;
  };
  Idle test(calls, true);
  test.parking->serve(64_KiB);
  hangs = true;
  test.park();
  CHECK(test.parking->make_room(64_KiB));
  while (test.parking->tiers().figures(0).pending == 0) test.parking->await();
  test.idle.reset();
  test.layers.clear();
  test.leases.clear();
  test.pool->trim(1_GiB);
  CHECK(test.pool->stats().kept != Bytes{});  // what is copied must be there
  hangs = false;
  while (test.pool->stats().kept != Bytes{}) test.parking->await();
}

TEST(pages_of_another_size_are_refused_and_nothing_is_parked) {
  Idle test;
  test.parking->serve(128_KiB);
  CHECK_THROWS(InvalidArgument, "page_bytes", test.park());
  CHECK(test.intact() && test.layers[0].growth->limit() >= length);
  CHECK(test.parking->figures().parked == 0);
}
