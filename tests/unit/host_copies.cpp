// Copies between a device's pages and host memory, where the CPU does not reach the pages.
#include <cstring>
#include <memory>

#include "check.h"
#include "driver_under_test.h"

using namespace vmm;

namespace {

constexpr Bytes page = 64_KiB;

/// Two pages at neighbouring addresses, and as much host memory.
struct Copying {
  Copying()
      : base(driver->reserve(page * 2, page)),
        copies(*driver->host_copies()),
        stream(driver->create_stream()) {
    for (PageMapping& each : pages) {
      each = {base + page * (&each - pages), driver->create(page, {}), page};
      driver->map(std::span(&each, 1));
    }
    driver->set_access(pages);
    host = copies.allocate_host(page * 2);
  }
  ~Copying() {
    copies.release_host(host);
    driver->destroy_stream(stream);
    std::size_t done = 0;
    driver->unmap(pages, done);
    for (const PageMapping& each : pages) driver->release(each.page);
    driver->free_reservation(base, page * 2);
  }
  Copying(const Copying&) = delete;
  Copying& operator=(const Copying&) = delete;

  const std::unique_ptr<Driver> driver = make_driver();
  const Address base;
  HostCopies& copies;
  const StreamHandle stream;
  PageMapping pages[2];
  std::byte* host = nullptr;
};

}  // namespace

TEST(who_can_be_read_by_the_cpu_needs_no_copies) {
  if (!on_cuda()) CHECK(make_driver()->host_copies() == nullptr);
}

TEST(bytes_go_out_and_come_back_to_other_places) {
  if (!on_cuda()) return;
  Copying test;
  std::memset(test.host, 1, page.count);
  std::memset(test.host + page.count, 2, page.count);
  test.copies.copy_in(test.base, test.host, page * 2, test.stream);
  test.copies.finish(test.stream);
  std::memset(test.host, 0, 2 * page.count);
  test.copies.copy_out(test.host + page.count, test.base, page, test.stream);
  test.copies.copy_out(test.host, test.base + page, page, test.stream);
  test.copies.finish(test.stream);
  for (std::size_t i = 0; i < page.count; ++i)
    CHECK(test.host[i] == std::byte{2} && test.host[page.count + i] == std::byte{1});
}

TEST(what_is_no_page_or_no_memory_of_ours_is_refused) {
  if (!on_cuda()) return;
  Copying test;
  std::byte foreign[16];
  CHECK_THROWS(InvalidArgument, "to:", test.copies.copy_out(foreign, test.base, {16}, test.stream));
  CHECK_THROWS(InvalidArgument, "from:", test.copies.copy_in(test.base, foreign, {16}, test.stream));
  CHECK_THROWS(InvalidArgument,
               "to:", test.copies.copy_out(test.host + page.count, test.base, page * 2, test.stream));
  CHECK_THROWS(InvalidArgument,
               "from:", test.copies.copy_out(test.host, test.base + page, page * 2, test.stream));
  CHECK_THROWS(InvalidArgument,
               "to:", test.copies.copy_in(test.base + page * 2, test.host, page, test.stream));
  CHECK_THROWS(InvalidArgument, "memory", test.copies.release_host(test.host + 1));
  CHECK_THROWS(DriverOutOfMemory, "cuMemHostAlloc", test.copies.allocate_host(Bytes{std::uint64_t{1} << 60}));
}
