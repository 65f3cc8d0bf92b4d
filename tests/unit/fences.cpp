// Fences, and pages that wait for them.
#include "memory/fences.h"

#include <atomic>
#include <thread>

#include "base/error.h"
#include "check.h"
#include "fixtures.h"

using namespace vmm;

TEST(a_fence_covers_open_and_unfinished_epochs) {
  FaultDriver driver(make_bare_driver());
  Epochs epochs(driver);
  CHECK(epochs.fence().empty() && epochs.complete({}));
  epochs.step({});  // opens the first
  const Fence open = epochs.fence();
  CHECK(open.size() == 1 && !epochs.complete(open));
  driver.hold_events(true);
  epochs.step({});  // closes it, opens the second
  epochs.poll();
  CHECK(!epochs.complete(open));
  driver.hold_events(false);
  finish_work();
  epochs.poll();
  CHECK(epochs.complete(open));
  CHECK(!epochs.complete(epochs.fence()));
  epochs.end({});
  finish_work();
  epochs.poll();
  CHECK(epochs.fence().empty());
}

TEST(a_fence_of_the_device_waits_for_work_that_nobody_has_told_of) {
  FaultDriver driver(make_bare_driver());
  Epochs epochs(driver);
  const StreamHandle stream = driver.create_stream();
  epochs.step({});  // an iteration of somebody else's, which may go on for long
  driver.hold_events(true);
  const Fence all = epochs.device_fence();
  CHECK(all.size() == 1 && all[0].stream == whole_device);
  CHECK(!epochs.complete(all) && !epochs.waits_for_open_epoch(all));
  CHECK(epochs.fence().size() == 1);  // other fences have nothing to do with it
  driver.hold_events(false);
  finish_work();
  epochs.poll();
  CHECK(epochs.complete(all));
  const Fence later = epochs.device_fence();
  finish_work();
  epochs.poll();
  CHECK(epochs.complete(later));
  driver.fail_at(1, 1, Fault::error);
  CHECK_THROWS(DriverError, "record", epochs.device_fence());
  driver.destroy_stream(stream);
}

TEST(a_failing_event_leaves_the_epoch_open) {
  FaultDriver driver(make_bare_driver());
  Epochs epochs(driver);
  epochs.step({});
  driver.fail_at(1, 1, Fault::error);
  CHECK_THROWS(DriverError, "record", epochs.end({}));
  CHECK(epochs.fence().size() == 1);
  epochs.end({});
  finish_work();
  epochs.poll();
  CHECK(epochs.fence().empty());
}

TEST(retired_pages_wait_for_their_fence) {
  TestPool test(4_MiB);
  auto lease = test.reserve(1_MiB);
  map(*lease, 0, 4);
  test.faults->hold_events(true);
  test.pool->epochs().step({});
  retire(*lease, 0, 4);
  CHECK(test.pool->reclaiming().drain_retired());  // the epoch is open
  test.pool->epochs().end({});
  CHECK(test.pool->reclaiming().drain_retired());  // closed, but unfinished
  CHECK(test.pool->stats().free == Bytes{});
  test.faults->hold_events(false);
  finish_work();
  CHECK(!test.pool->reclaiming().drain_retired());
  CHECK(test.pool->stats().free == 256_KiB);
  test.pool->check();
}

TEST(what_is_retired_and_over_counts_as_obtainable) {
  TestPool test(1_MiB);
  auto lease = test.reserve(1_MiB);
  map(*lease, 0, 16);
  retire(*lease, 0, 16);
  auto other = test.reserve(1_MiB);
  test.pool->reclaiming().require_obtainable(1_MiB);
  map(*other, 0, 16);
  test.pool->check();
}

TEST(a_retired_page_that_is_wanted_again_comes_back_with_its_bytes) {
  TestPool test(4_MiB);
  auto lease = test.reserve(1_MiB);
  map(*lease, 0, 4);
  *bytes_at(*lease, 64_KiB) = 5;
  test.pool->epochs().step({});
  retire(*lease, 0, 4);
  map(*lease, 1, 1);  // would wait for ever: only this thread can close the epoch
  CHECK(*bytes_at(*lease, 64_KiB) == 5);
  test.pool->epochs().end({});
  finish_work();
  CHECK(!test.pool->reclaiming().drain_retired());
  CHECK(test.pool->mapped(lease->reservation()) == 64_KiB);
  test.pool->check();
}

TEST(a_retirement_that_was_called_off_leaves_no_trace) {
  TestPool test(4_MiB);
  auto lease = test.reserve(1_MiB);
  map(*lease, 0, 4);
  test.pool->epochs().step({});
  retire(*lease, 0, 4);
  map(*lease, 0, 4);
  CHECK(test.pool->stats().retirements_waiting == 0);
  test.pool->epochs().end({});
  finish_work();
  test.pool->epochs().poll();
  lease.reset();
  CHECK(test.pool->trim(4_MiB) == 256_KiB);  // ends the reservation
  test.pool->reclaiming().drain_retired();
  test.pool->check();
}

TEST(a_page_that_came_back_for_a_map_that_failed_is_still_fenced) {
  TestPool test(1_MiB);
  auto lease = test.reserve(1_MiB);
  map(*lease, 0, 4);
  test.pool->epochs().step({});
  retire(*lease, 0, 4);
  test.faults->fail_at(1, 1, Fault::error);
  CHECK_THROWS(DriverError, "injected", map(*lease, 0, 5));  // four come back, the fifth fails
  CHECK(test.pool->mapped(lease->reservation()) == 256_KiB);
  CHECK(test.pool->trim(256_KiB) == Bytes{});  // the epoch that may read them is open
  test.pool->epochs().end({});
  finish_work();
  test.pool->epochs().poll();
  CHECK(test.pool->trim(256_KiB) == 256_KiB);
  test.pool->check();
}

TEST(a_retired_page_that_must_be_zero_waits_or_refuses) {
  TestPool test(4_MiB);
  auto lease = test.reserve(1_MiB, 1, 0, true);
  map(*lease, 0, 1);
  *bytes_at(*lease, {}) = 5;
  test.pool->epochs().step({});
  retire(*lease, 0, 1);
  CHECK_THROWS(Error, "still open", map(*lease, 0, 1));
  test.pool->epochs().end({});
  map(*lease, 0, 1);
  CHECK(*bytes_at(*lease, {}) == 0);
  test.pool->check();
}

TEST(idle_memory_is_not_reused_while_work_may_touch_it) {
  TestPool test(1_MiB);
  auto lease = test.reserve(1_MiB);
  map(*lease, 0, 16);
  const Address base = lease->base();
  test.faults->hold_events(true);
  test.pool->epochs().step({});
  lease.reset();
  test.pool->epochs().end({});
  auto other = test.reserve(1_MiB);
  CHECK(other->base() != base);  // not adopted
  std::atomic<bool> mapped{false};
  std::thread waiting([&] {
    map(*other, 0, 16);
    mapped = true;
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(10));
  CHECK(!mapped);
  test.faults->hold_events(false);
  waiting.join();
  test.pool->check();
}

TEST(memory_that_an_open_epoch_holds_is_not_waited_for) {
  TestPool test(1_MiB);
  auto lease = test.reserve(1_MiB);
  map(*lease, 0, 16);
  test.pool->epochs().step({});
  lease.reset();
  auto other = test.reserve(1_MiB);
  CHECK_THROWS(OutOfPages, "unfinished work", map(*other, 0, 16));
  auto third = test.reserve(64_KiB);
  test.pool->epochs().end({});
  map(*other, 0, 16);
  CHECK_THROWS(OutOfPages, "out of pages", map(*third, 0, 1));
  retire(*other, 0, 8);
  map(*third, 0, 1);
  test.pool->check();
}

TEST(retired_memory_is_waited_for_but_not_in_an_open_epoch) {
  TestPool test(1_MiB);
  auto lease = test.reserve(1_MiB);
  auto other = test.reserve(1_MiB);
  map(*lease, 0, 16);
  test.faults->delay_events(20);
  test.pool->epochs().mark({});
  retire(*lease, 0, 8);
  map(*other, 0, 8);
  test.pool->epochs().step({});
  retire(*lease, 8, 8);
  CHECK_THROWS(OutOfPages, "out of pages", map(*other, 8, 8));
  test.pool->epochs().end({});
  map(*other, 8, 8);
  test.pool->check();
}

TEST(marked_work_holds_back_what_is_released_after_it) {
  TestPool test(4_MiB);
  Epochs& epochs = test.pool->epochs();
  test.faults->hold_events(true);
  auto lease = test.reserve(1_MiB);
  map(*lease, 0, 4);
  retire(*lease, 0, 1);
  epochs.mark({});
  retire(*lease, 1, 1);
  CHECK(test.pool->reclaiming().drain_retired());
  CHECK(test.pool->stats().free == 64_KiB);
  test.faults->hold_events(false);
  finish_work();
  CHECK(!test.pool->reclaiming().drain_retired());
  CHECK(test.pool->stats().free == 128_KiB);
  CHECK(epochs.fence().empty());
}

TEST(an_open_epoch_covers_marked_work) {
  TestPool test(4_MiB);
  Epochs& epochs = test.pool->epochs();
  epochs.step({});
  epochs.mark({});
  const Fence fence = epochs.fence();
  epochs.poll();
  CHECK(!epochs.complete(fence));
  epochs.end({});
  finish_work();
  epochs.poll();
  CHECK(epochs.complete(fence));
}

TEST(work_that_could_not_be_marked_is_waited_for) {
  TestPool test(4_MiB);
  Epochs& epochs = test.pool->epochs();
  const StreamHandle stream = test.pool->streams().create();
  test.faults->fail_at(1, 1, Fault::error);
  CHECK_THROWS(DriverError, "record", epochs.mark(stream));
  const Fence fence = epochs.fence();
  CHECK(fence.size() == 1 && !epochs.complete(fence));
  epochs.poll();
  finish_work();
  epochs.poll();
  CHECK(epochs.complete(fence));
  CHECK(epochs.fence().empty());
  test.pool->streams().destroy(stream);
}

TEST(where_no_epoch_is_open_a_step_marks_what_is_on_the_stream) {
  TestPool test(4_MiB);
  Epochs& epochs = test.pool->epochs();
  test.faults->hold_events(true);
  epochs.end({});
  const Fence fence = epochs.fence();
  CHECK(fence.size() == 1 && !epochs.waits_for_open_epoch(fence));
  epochs.step({});
  CHECK(epochs.waits_for_open_epoch(epochs.fence()));
  CHECK(!epochs.complete(fence));
  test.faults->hold_events(false);
  finish_work();
  epochs.poll();
  CHECK(epochs.complete(fence));
  if (test.pool->driver().capabilities().foreign_streams) return;  // there, no such stream cannot be told
  const StreamHandle none{12345};
  CHECK_THROWS(InvalidArgument, "stream", epochs.step(none));
  CHECK(epochs.fence().size() == 1);
}

TEST(a_stream_that_is_gone_ends_its_open_epoch) {
  TestPool test(4_MiB);
  Epochs& epochs = test.pool->epochs();
  const StreamHandle stream = test.pool->streams().create();
  epochs.step(stream);
  epochs.step(stream);
  const Fence fence = epochs.fence();
  CHECK(epochs.waits_for_open_epoch(fence));
  test.pool->streams().destroy(stream);
  CHECK(epochs.complete(fence));
  CHECK(epochs.fence().empty());
}

TEST(a_stream_that_is_gone_holds_nothing_back) {
  TestPool test(4_MiB);
  Epochs& epochs = test.pool->epochs();
  const StreamHandle stream = test.pool->driver().create_stream();
  epochs.mark(stream);
  const Fence fence = epochs.fence();
  test.pool->driver().destroy_stream(stream);
  epochs.poll();
  CHECK(epochs.complete(fence));
  if (!test.pool->driver().capabilities().foreign_streams)  // where a handle that is none can be told
    CHECK_THROWS(InvalidArgument, "stream", epochs.mark(stream));
}
