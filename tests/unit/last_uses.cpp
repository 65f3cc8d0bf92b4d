// LastUses, which says until when pages that nobody needs may still be in use.
#include "memory/last_uses.h"

#include <vector>

#include "check.h"
#include "fixtures.h"

using namespace vmm;

namespace {

struct Uses {
  FaultDriver driver{std::make_unique<HostDriver>("vmm-test")};
  Epochs epochs{driver};
  MappedBytes mapped;
  LastUses uses{epochs, mapped};

  /// Of all work until now.
  std::uint16_t now() { return uses.number(epochs.fence()); }
  void poll() {
    epochs.poll();
    uses.refresh();
  }
};

}  // namespace

TEST(without_work_nothing_is_waited_for) {
  Uses test;
  CHECK(test.now() == LastUses::none);
  CHECK(test.uses.over(LastUses::none));
  CHECK(test.uses.ends(LastUses::none, {}));
  CHECK(!test.uses.refresh());
}

TEST(a_use_is_over_when_its_epochs_are) {
  Uses test;
  test.epochs.step({});
  const std::uint16_t first = test.now();
  CHECK(first != LastUses::none && !test.uses.over(first));
  CHECK(!test.uses.refresh());  // open: only its stream can end it
  test.driver.hold_events(true);
  test.epochs.step({});
  const std::uint16_t second = test.now();
  test.poll();
  CHECK(second != first && !test.uses.over(first) && !test.uses.over(second));
  CHECK(test.uses.refresh());  // the first ends by itself
  test.driver.hold_events(false);
  test.poll();
  CHECK(test.uses.over(first) && !test.uses.over(second));
  test.epochs.end({});
  test.poll();
  CHECK(test.uses.over(second));
  CHECK(test.now() == LastUses::none);
}

TEST(uses_in_the_same_epochs_share_a_number) {
  Uses test;
  test.epochs.step({});
  const std::uint16_t first = test.now();
  CHECK(test.now() == first);
  test.epochs.step({});
  CHECK(test.now() != first);
}

TEST(what_ends_without_anybody_s_doing) {
  Uses test;
  const StreamHandle other = test.driver.create_stream();
  test.driver.hold_events(true);
  test.epochs.step({});
  const std::uint16_t of_one = test.now();
  test.epochs.step(other);
  const std::uint16_t of_both = test.now();
  CHECK(test.uses.ends(of_one, {}) && !test.uses.ends(of_one, other));
  CHECK(!test.uses.ends(of_both, {}) && !test.uses.ends(of_both, other));
  test.epochs.end(other);
  CHECK(test.uses.ends(of_both, {}) && !test.uses.over(of_both));
  test.epochs.end({});
  CHECK(test.uses.ends(of_both, other) && test.uses.refresh());
  test.driver.hold_events(false);
  test.poll();
  CHECK(test.uses.over(of_one) && test.uses.over(of_both));
  test.epochs.destroy(other);
}

TEST(with_too_many_the_last_waits_for_the_work_of_all_that_share_it) {
  Uses test;
  const StreamHandle one = test.driver.create_stream(), other = test.driver.create_stream();
  const auto number = [&](StreamHandle stream) {
    test.epochs.step(stream);
    Fence fence = test.epochs.fence();
    std::erase_if(fence, [&](const StreamEpoch& entry) { return entry.stream != stream; });
    return test.uses.number(fence);
  };
  for (int i = 0; i < 300; ++i) number(one);
  const std::uint16_t shared = number(one);
  CHECK(number(other) == shared);
  test.epochs.end(one);
  test.poll();
  CHECK(!test.uses.over(shared));
  test.epochs.end(other);
  finish_work();
  test.poll();
  CHECK(test.uses.over(shared));
  for (StreamHandle stream : {one, other}) test.epochs.destroy(stream);
}

TEST(with_too_many_the_last_is_shared_and_is_the_later) {
  Uses test;
  test.driver.hold_events(true);
  std::vector<std::uint16_t> numbers;
  for (int i = 0; i < 400; ++i) {
    test.epochs.step({});
    numbers.push_back(test.now());
  }
  CHECK(numbers[255] != numbers[254]);
  CHECK(numbers[256] == numbers[255] && numbers.back() == numbers[255]);
  test.driver.hold_events(false);
  test.poll();  // all but the last, which is open
  CHECK(test.uses.over(numbers[254]));
  CHECK(!test.uses.over(numbers[255]));
  test.epochs.end({});
  test.poll();
  CHECK(test.uses.over(numbers[255]));
}

TEST(each_fence_is_over_by_itself) {
  Uses test;
  const StreamHandle other = test.driver.create_stream();
  test.epochs.step(other);
  const Fence of_other = test.epochs.fence();
  const std::uint16_t first = test.uses.number(of_other);
  test.epochs.step({});
  Fence of_default = test.epochs.fence();
  std::erase_if(of_default, [&](const StreamEpoch& entry) { return entry.stream == other; });
  const std::uint16_t second = test.uses.number(of_default);
  CHECK(second != first && test.uses.number(of_other) == first && test.uses.number(of_default) == second);
  test.epochs.end({});
  test.poll();
  CHECK(test.uses.over(second) && !test.uses.over(first));
  CHECK(test.uses.ended() == 1);
  test.epochs.end(other);
  CHECK(test.uses.refresh());  // the front ends by itself, too
  test.epochs.destroy(other);
  test.poll();
  CHECK(test.uses.over(first));
}

TEST(a_number_that_a_page_has_is_not_used_again_as_long_as_there_are_others) {
  Uses test;
  const auto next = [&] {
    test.epochs.step({});
    const std::uint16_t number = test.now();
    test.epochs.end({});
    test.poll();
    return number;
  };
  VirtualPage old{.content = {}, .state = VirtualState::resident, .last_use = next()};
  test.mapped.count(old, 64_KiB, true);
  for (int i = 0; i < 66'000; ++i)
    if (next() == old.last_use) {
      CHECK(!"a page has this number");
      return;
    }
  for (std::uint32_t number = 1; number <= 65'535; ++number) {
    old.last_use = static_cast<std::uint16_t>(number);
    test.mapped.count(old, 64_KiB, true);
  }
  const std::uint16_t one = next(), other = next();
  CHECK(one != LastUses::none && other != LastUses::none && one != other);
}

TEST(numbers_come_round_again) {
  Uses test;
  std::uint16_t last = LastUses::none;
  for (int i = 0; i < 70'000; ++i) {
    test.epochs.step({});
    const std::uint16_t number = test.now();
    if (number == LastUses::none || number == last || test.uses.over(number)) {
      CHECK(!"a number is none's, or its neighbour's, or over while its epoch is open");
      return;
    }
    last = number;
    test.epochs.end({});
    test.poll();
    if (!test.uses.over(number)) {
      CHECK(!"not over");
      return;
    }
  }
}
