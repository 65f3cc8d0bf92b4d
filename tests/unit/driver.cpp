// What only the host driver does, and how far a failed unmap came. tests/contract tests the contract, which
// every driver keeps.
#include <cstring>
#include <random>
#include <vector>

#include "base/error.h"
#include "check.h"
#include "driver/checked_driver.h"
#include "driver/fault_driver.h"
#include "driver/host_calls.h"
#include "driver/host_driver.h"
#include "driver/sim_driver.h"

using namespace vmm;

namespace {

constexpr Bytes page = 64_KiB;

std::vector<PageMapping> create_pages(Driver& driver, Address base, std::uint64_t count) {
  std::vector<PageMapping> out;
  for (std::uint64_t i = 0; i < count; ++i)
    out.push_back({base + page * i, driver.create(page, {page.count * i}), page});
  return out;
}

unsigned char* at(Address address) { return reinterpret_cast<unsigned char*>(address.value); }

}  // namespace

TEST(neighbours_in_both_spaces_cost_one_mapping) {
  HostDriver driver("vmm-test");
  const Address base = driver.reserve(16_MiB, page);
  const auto pages = create_pages(driver, base, 64);
  std::size_t done = 0;
  driver.map(pages);  // once before it is counted, so that the heap has its mappings
  driver.unmap(pages, done);
  const std::uint64_t before = *host::count_process_mappings();
  for (const PageMapping& one : pages) {  // one by one, and out of order
    driver.map(std::span(&one, 1));
    driver.set_access(std::span(&one, 1));
  }
  CHECK(*host::count_process_mappings() <= before + 2);
  driver.unmap(pages, done);
  CHECK(done == 64);
  CHECK(*host::count_process_mappings() <= before);
  for (const PageMapping& one : pages) driver.release(one.page);
  driver.free_reservation(base, 16_MiB);
}

TEST(memory_is_committed_by_create_and_freed_by_release) {
  HostDriver driver("vmm-test");
  const Address base = driver.reserve(1_MiB, page);
  const auto pages = create_pages(driver, base, 4);
  CHECK(driver.committed_bytes() == 4 * page.count);
  driver.map(pages);
  driver.set_access(pages);
  CHECK(driver.committed_bytes() == 4 * page.count);
  std::memset(at(base), 7, page.count);
  std::size_t done = 0;
  driver.unmap(pages, done);
  CHECK(driver.committed_bytes() == 4 * page.count);
  driver.map(pages);
  driver.set_access(pages);
  CHECK(*at(base) == 7);  // the page kept its bytes while it was unmapped
  driver.unmap(pages, done);
  driver.release(pages[0].page);
  CHECK(driver.committed_bytes() == 3 * page.count);
  for (std::size_t i = 1; i < 4; ++i) driver.release(pages[i].page);
  driver.free_reservation(base, 1_MiB);
}

TEST(an_injected_failure_of_unmap_says_how_far_it_came) {
  FaultDriver driver(std::make_unique<HostDriver>("vmm-test"));
  const Address base = driver.reserve(1_MiB, page);
  const auto pages = create_pages(driver, base, 4);
  driver.map(pages);
  driver.set_access(pages);
  driver.fail_at(1, 1, Fault::error);
  std::size_t done = 0;
  CHECK_THROWS(DriverError, "injected failure of unmap #1", driver.unmap(pages, done));
  CHECK(done == 2);
  driver.unmap(std::span(pages).subspan(2), done);
  for (const PageMapping& one : pages) driver.release(one.page);
  driver.free_reservation(base, 1_MiB);
}

TEST(an_injected_failure_of_the_simulated_unmap_says_how_far_it_came) {
  const auto sim = std::make_shared<SimDriver>(
      std::make_shared<SimClock>(1),
      SimOptions{.granularity = page, .faults = {.seed = 1, .failures_per_million = 700'000}});
  CheckedDriver driver(sim);
  const auto insist = [](auto call) {
    for (;;) try {
        return call();
      } catch (const DriverError&) {
      }
  };
  const Address base = insist([&] { return driver.reserve(1_MiB, page); });
  std::vector<PageMapping> pages;
  for (std::uint64_t i = 0; i < 16; ++i)
    pages.push_back({base + page * i, insist([&] { return driver.create(page, {}); }), page});
  insist([&] { driver.map(pages); });
  const std::uint64_t failed_before = sim->faults().failures();
  for (std::span<const PageMapping> left(pages); !left.empty();) {
    const std::uint64_t failures = sim->faults().failures();
    std::size_t done = 99;
    try {
      driver.unmap(left, done);
    } catch (const DriverError&) {
    }
    CHECK(done == (sim->faults().failures() == failures ? left.size() : left.size() / 2));
    for (const PageMapping& one : left.first(done)) driver.release(one.page);  // refused, were one mapped
    left = left.subspan(done);
    if (!left.empty()) CHECK_THROWS(InvalidArgument, "still mapped", driver.release(left[0].page));
  }
  CHECK(sim->faults().failures() != failed_before && sim->created() == Bytes{});
  driver.free_reservation(base, 1_MiB);
}

TEST(held_events_complete_when_they_are_let_go) {
  FaultDriver driver(std::make_unique<HostDriver>("vmm-test"));
  driver.hold_events(true);
  const EventHandle event = driver.record({});
  CHECK(!driver.query(event));
  driver.hold_events(false);
  CHECK(driver.query(event));
  driver.destroy_event(event);
}

TEST(address_ranges_are_a_set_of_addresses) {
  std::mt19937 random(3);
  AddressRanges ranges;
  std::vector<bool> model(100, false);
  for (int i = 0; i < 3000; ++i) {
    const unsigned start = random() % 90, size = 1 + random() % 10;
    const bool add = random() % 2 == 0;
    add ? ranges.add({start}, {size}) : ranges.remove({start}, {size});
    std::fill_n(model.begin() + start, size, add);
    std::vector<bool> seen;
    ranges.for_each_piece({0}, {100}, [&](Address at, Bytes bytes, bool contained) {
      CHECK(at.value == seen.size() && bytes.count != 0);
      seen.insert(seen.end(), bytes.count, contained);
    });
    CHECK(seen == model);
    std::size_t part = 0;
    ranges.for_each_piece({start}, {size}, [&](Address, Bytes bytes, bool) { part += bytes.count; });
    CHECK(part == size);
  }
}

TEST(what_work_in_flight_touches_is_not_unmapped) {
  HostDriver driver("vmm-test");
  const Address base = driver.reserve(64_MiB, page);
  const auto pages = create_pages(driver, base, 512);
  driver.map(pages);
  driver.set_access(pages);
  const StreamHandle stream = driver.create_stream();
  const Bytes half = 16_MiB;
  // Enough to be at it still when unmap comes; another try where the machine was faster than that.
  bool refused = false;
  for (int i = 0; i < 20 && !refused; ++i) {
    for (int j = 0; j < 16; ++j) driver.copy(base, base + half, half, stream);
    const EventHandle event = driver.record(stream);
    std::size_t done = 0;
    try {
      driver.unmap(std::span(pages).first(1), done);
      driver.map(std::span(pages).first(1));
      driver.set_access(std::span(pages).first(1));
    } catch (const InvalidArgument&) {
      refused = true;
      CHECK(done == 0);
    }
    driver.wait(event);
    driver.destroy_event(event);
  }
  CHECK(refused);
  std::size_t done = 0;
  driver.unmap(pages, done);
  CHECK(done == 512);
  driver.destroy_stream(stream);
}

TEST(a_driver_that_dies_lets_its_streams_end) {
  HostDriver driver("vmm-test");
  const Address base = driver.reserve(1_MiB, page);
  const auto pages = create_pages(driver, base, 16);
  driver.map(pages);
  driver.set_access(pages);
  for (std::uint64_t i = 0; i < 4; ++i) {
    const StreamHandle stream = driver.create_stream();
    const MemoryRange part{base + page * (4 * i), page * 4};
    for (int j = 0; j < 32; ++j) driver.zero(std::span(&part, 1), stream);
  }
}
