// What CheckedDriver takes for true after a call has failed, in the driver inside it or in one around it.
// tests/contract tests what it refuses.
#include "driver/checked_driver.h"

#include <array>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "base/error.h"
#include "check.h"
#include "driver/fault_driver.h"
#include "driver/host_driver.h"
#include "driver/mapped_pages.h"
#include "driver/sim_driver.h"

using namespace vmm;

namespace {

constexpr Bytes page = 64_KiB;

/// A checked driver whose calls can be made to fail, before or behind the checks.
struct Checked {
  Checked(std::shared_ptr<Driver> bare, bool faults_within) {
    if (faults_within) {
      faults = std::make_shared<FaultDriver>(std::move(bare));
      driver = std::make_shared<CheckedDriver>(faults);
    } else {
      driver = faults = std::make_shared<FaultDriver>(std::make_shared<CheckedDriver>(std::move(bare)));
    }
  }

  /// The call fails once; what it returns when it is made again.
  template <class Call>
  auto again(Call call) {
    faults->fail_at(1, 1, Fault::error);
    CHECK_THROWS(DriverError, "injected", call());
    return call();
  }

  std::shared_ptr<FaultDriver> faults;
  std::shared_ptr<Driver> driver;
};

std::shared_ptr<Driver> make_host() { return std::make_shared<HostDriver>("vmm-test"); }
std::shared_ptr<Driver> make_simulation() {
  return std::make_shared<SimDriver>(std::make_shared<SimClock>(1), SimOptions{.granularity = page});
}

void for_each_order(const std::function<void(Checked&)>& body) {
  for (const auto make : {make_host, make_simulation})
    for (const bool faults_within : {false, true}) {
      Checked checked(make(), faults_within);
      body(checked);
    }
}

/// What goes up to a failed call and what comes after it must fit together on any driver.
void fail_every_call_once(Checked& checked) {
  Driver& driver = *checked.driver;
  const Address base = checked.again([&] { return driver.reserve(page * 8, page); });
  std::vector<PageMapping> pages;
  for (std::uint64_t i = 0; i < 4; ++i)
    pages.push_back(
        {base + page * i, checked.again([&] { return driver.create(page, {page.count * i}); }), page});
  if (driver.gaps() != nullptr)
    checked.again([&] { driver.gaps()->set_gap(base + page * 4, page, Gap::zeros); });
  checked.again([&] { driver.map(pages); });
  const MemoryRange all{base, page * 4};
  checked.faults->fail_at(1, 1, Fault::error);
  CHECK_THROWS(DriverError, "injected", driver.set_access(pages));
  CHECK_THROWS(InvalidArgument, "accessible", driver.zero(std::span(&all, 1), {}));
  driver.set_access(pages);
  checked.again([&] { driver.zero(std::span(&all, 1), {}); });
  CHECK_THROWS(InvalidArgument, "still has a page", driver.free_reservation(base, page * 8));

  std::size_t done = 99;
  checked.faults->fail_at(1, 1, Fault::error);
  CHECK_THROWS(DriverError, "injected", driver.unmap(pages, done));
  CHECK(done == 2);
  const std::span<const PageMapping> left = std::span(pages).subspan(2);
  CHECK_THROWS(InvalidArgument, "no mapping", driver.unmap(pages, done));
  CHECK(done == 0);
  CHECK_THROWS(InvalidArgument, "still mapped", driver.release(pages[2].page));
  driver.unmap(left, done);
  CHECK(done == 2);

  for (const PageMapping& one : pages) checked.again([&] { driver.release(one.page); });
  CHECK_THROWS(InvalidArgument, "no such page", driver.release(pages[0].page));
  checked.again([&] { driver.free_reservation(base, page * 8); });
  CHECK_THROWS(InvalidArgument, "not one whole", driver.free_reservation(base, page * 8));
}

}  // namespace

TEST(a_call_that_failed_has_not_happened) { for_each_order(fail_every_call_once); }

TEST(a_refused_call_does_not_reach_the_driver_within) {
  Checked checked(make_host(), true);
  Driver& driver = *checked.driver;
  const Address base = driver.reserve(page * 2, page);
  const PageMapping outside{base + page * 2, driver.create(page, {}), page};
  const MemoryRange hole{base, page};
  std::size_t done = 0;
  checked.faults->fail_at(0, 0, Fault::error);
  const std::array<std::function<void()>, 10> refused{
      [&] { driver.reserve(page + Bytes{1}, page); },
      [&] { driver.free_reservation(base, page); },
      [&] { driver.gaps()->set_gap(base + page * 2, page, Gap::zeros); },
      [&] { driver.create(page, {}); },
      [&] { driver.release({outside.page.value + page.count}); },
      [&] { driver.map(std::span(&outside, 1)); },
      [&] { driver.set_access(std::span(&outside, 1)); },
      [&] { driver.unmap(std::span(&outside, 1), done); },
      [&] { driver.copy(base, base + page, page, {}); },
      [&] { driver.zero(std::span(&hole, 1), {}); }};
  for (const auto& call : refused) CHECK_THROWS(InvalidArgument, "", call());
  CHECK(checked.faults->calls() == 0);
  driver.release(outside.page);
  driver.free_reservation(base, page * 2);
}

TEST(what_a_driver_cannot_do_the_checked_one_cannot) {
  for_each_order([](Checked& checked) {
    const bool on_host = std::string(checked.driver->capabilities().name) == "host";
    CHECK((checked.driver->gaps() != nullptr) == on_host);
    CHECK(checked.driver->exports() == nullptr);
  });
}

TEST(mapped_pages_are_counted_as_the_system_merges_them) {
  constexpr std::uint64_t addresses = 24;
  std::mt19937 random(5);
  MappedPages mapped;
  std::array<std::uint64_t, addresses> place{};  // 0: nothing is mapped there
  std::int64_t count = 1;
  for (int i = 0; i < 5000; ++i) {
    const std::uint64_t at = 1 + random() % (addresses - 2);
    const bool add = place[at] == 0;
    if (add) place[at] = 1 + (random() % 2 == 0 ? at : random() % addresses);  // mostly with its neighbours
    const PageMapping entry{{page.count * at}, {page.count * place[at]}, page};
    count += add ? mapped.add(std::span(&entry, 1)) : mapped.remove(std::span(&entry, 1));
    if (!add) place[at] = 0;
    std::int64_t pieces = 1;
    for (std::uint64_t j = 1; j < addresses; ++j)
      pieces += place[j] != (place[j - 1] == 0 ? 0 : place[j - 1] + 1);
    CHECK(count == pieces);
  }
}
