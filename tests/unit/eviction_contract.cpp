// What every eviction policy promises, on random courses of each, as it is and leaf first.
#include <algorithm>
#include <map>
#include <optional>
#include <random>
#include <string>

#include "base/error.h"
#include "check.h"
#include "eviction_fixture.h"

using namespace vmm;

namespace {

constexpr Bytes capacity{40};

struct Kind {
  std::string name;
  bool leaf_first;

  std::unique_ptr<EvictionPolicy> make() const {
    return leaf_first ? make_leaf_first_policy(name, capacity) : make_eviction_policy(name, capacity);
  }
};

std::vector<Kind> kinds() {
  std::vector<Kind> out;
  for (const std::string_view name : eviction_policy_names())
    for (const bool leaf_first : {false, true}) out.push_back({std::string(name), leaf_first});
  return out;
}

/// A course of uses, evictions and endings over a tree in which block n follows block n / 3, beside what must
/// be true of it.
class Course {
 public:
  Course(const Kind& kind, std::uint64_t seed) : kind_(kind), random_(seed), policy_(kind.make()) {}

  void run(int steps) {
    for (int i = 0; i < steps; ++i) {
      now_ += Nanoseconds{std::chrono::milliseconds{below(4) == 0 ? below(20'000) : 0}};
      const std::uint64_t which = below(200) * below(200) / 200 + 1;
      switch (below(10)) {
        case 0:
          forget(unit(which));
          break;
        case 1:
          if (sizes_.contains(unit(which))) left(unit(which));  // which was not chosen
          break;
        default:
          use(which);
      }
      check();
    }
  }
  const Numbers& victims() const { return victims_; }

 private:
  std::uint64_t below(std::uint64_t n) { return random_() % n; }

  void use(std::uint64_t which) {
    UnitAccess access{.at = now_,
                      .size = {1 + below(3)},
                      .priority = static_cast<int>(below(3)),
                      .label = static_cast<std::uint32_t>(below(3)),
                      .whole_sequence = which % 5 == 0,
                      .partial = which % 7 == 0,
                      .new_blocks = static_cast<std::uint32_t>(below(100)),
                      .output_tokens = static_cast<std::uint32_t>(below(1000))};
    if (which / 3 != 0) access.parent = unit(which / 3);
    in_use_ += access.size;
    if (const auto found = sizes_.find(unit(which)); found != sizes_.end()) in_use_ -= found->second;
    sizes_[unit(which)] = access.size;
    policy_->access(unit(which), access);
    while (in_use_ > capacity) {
      const auto victim = policy_->victim(now_);
      CHECK(victim && victim == policy_->victim(now_));  // asked again, it says the same
      CHECK(sizes_.contains(*victim) && policy_->holds(*victim));
      if (follows_first()) CHECK(is_leaf(*victim));
      victims_.push_back(static_cast<std::uint64_t>(*victim));
      left(*victim);
    }
  }
  bool follows_first() const { return kind_.leaf_first || kind_.name == "predictive"; }
  bool is_leaf(UnitId which) const {
    return std::ranges::none_of(sizes_, [&](const auto& held) {
      return static_cast<std::uint64_t>(held.first) / 3 == static_cast<std::uint64_t>(which);
    });
  }
  void left(UnitId which) {
    policy_->evicted(which);
    remove(which);
  }
  void forget(UnitId which) {
    policy_->forget(which);
    remove(which);
    const std::size_t ghosts = policy_->ghosts();
    policy_->forget(which);  // nothing is left of it
    CHECK(policy_->ghosts() == ghosts);
  }
  void remove(UnitId which) {
    if (const auto found = sizes_.find(which); found != sizes_.end()) {
      in_use_ -= found->second;
      sizes_.erase(found);
    }
    CHECK(!policy_->holds(which));
  }
  void check() const {
    CHECK(in_use_ <= capacity);
    for (std::uint64_t which = 0; which <= 200; ++which)
      CHECK(policy_->holds(unit(which)) == sizes_.contains(unit(which)));
    CHECK(policy_->ghosts() <= 200 - sizes_.size());  // nothing is held and a ghost
  }

  const Kind& kind_;
  std::mt19937_64 random_;
  const std::unique_ptr<EvictionPolicy> policy_;
  std::map<UnitId, Bytes> sizes_;  // of what is held
  Bytes in_use_{};
  Nanoseconds now_{};
  Numbers victims_;
};

}  // namespace

TEST(random_courses_keep_the_contract_and_are_the_same_each_time) {
  for (const Kind& kind : kinds())
    for (const std::uint64_t seed : {1, 2}) {
      Course course(kind, seed), again(kind, seed);
      const int before = check::failures();
      course.run(1'500);
      again.run(1'500);
      CHECK(course.victims().size() > 300);
      CHECK(course.victims() == again.victims());
      if (check::failures() != before) std::fprintf(stderr, "in %s, seed %lu\n", kind.name.c_str(), seed);
    }
}

TEST(nothing_held_means_no_victim) {
  for (const Kind& kind : kinds()) {
    const auto policy = kind.make();
    CHECK(!policy->victim(0s));
    use(*policy, {1});
    policy->forget(unit(1));
    CHECK(!policy->victim(1h) && policy->ghosts() == 0);
    policy->evicted(unit(2));  // which it never held
    CHECK(!policy->victim(1h) && policy->ghosts() == 0);
  }
}

TEST(all_that_is_held_leaves_in_the_end_once_each) {
  for (const Kind& kind : kinds()) {
    const auto policy = kind.make();
    use(*policy, {5, 3, 4, 3, 3, 4, 1, 2, 1});
    for (const std::uint64_t which : {6, 7, 8})  // each follows the one before
      policy->access(unit(which), {.parent = unit(which - 1)});
    policy->access(unit(8), {.parent = unit(1)});  // what was said first stays
    Numbers left = evict(*policy, 100, 10s);
    std::ranges::sort(left);
    CHECK((left == Numbers{1, 2, 3, 4, 5, 6, 7, 8}));
  }
}

TEST(of_units_that_differ_in_nothing_the_one_used_longest_ago_goes_first) {
  for (const Kind& kind : kinds()) {
    const auto policy = kind.make();
    use(*policy, {5, 3, 4, 1, 2});
    CHECK((evict(*policy, 5, 1s) == Numbers{5, 3, 4, 1, 2}));
  }
}

TEST(what_is_remembered_of_what_left_is_bounded) {
  for (const Kind& kind : kinds()) {
    const auto policy = kind.make();
    std::size_t most = 0;
    for (std::uint64_t i = 0; i < 100'000; ++i) {
      policy->access(unit(i), {.at = Nanoseconds{i * 1'000'000}});
      if (i >= capacity.count) evict(*policy, 1, Nanoseconds{i * 1'000'000});
      most = std::max(most, policy->ghosts());
    }
    CHECK(most <= (kind.name == "predictive" ? 65'536 : 4 * capacity.count));
    CHECK(most == policy->ghosts());
  }
}

TEST(a_name_that_is_unknown_is_refused_with_those_that_are_not) {
  CHECK_THROWS(InvalidArgument, "policy is 'fifo'; expected one of: lru, lfu, 2q, mq, s3-fifo, priority, ",
               make_eviction_policy("fifo", capacity));
}
