// A budget across processes: what one member sees, and what several do to each other.
#include <fcntl.h>
#include <sys/wait.h>

#include <fstream>

#include "base/error.h"
#include "check.h"
#include "memory/shares.h"
#include "share_fixtures.h"

using namespace vmm;
using namespace std::chrono_literals;

namespace {

const ShareTerms all_of_it{{}, 64_MiB, 0};

// One contract: a budget of one process, and a share that only one process is in.
struct Local {
  LocalBudget budget{64_MiB};
};
struct Shared {
  ShareFolder folder;
  SharedBudget budget{folder.file(), all_of_it, std::make_shared<ManualClock>()};
};

template <class Kind>
void taking_is_all_or_nothing() {
  Kind kind;
  Budget& budget = kind.budget;
  CHECK(budget.limit() == 64_MiB && budget.maximum() == 64_MiB && budget.taken() == Bytes{});
  CHECK(budget.take(40_MiB, 0, true));
  CHECK(!budget.take(30_MiB, 0, true));
  CHECK(budget.taken() == 40_MiB);
  CHECK(budget.take(24_MiB, 0, false));
  CHECK(!budget.take({1}, 0, false));
  budget.give_back(64_MiB);
  CHECK(budget.taken() == Bytes{} && budget.take(64_MiB, 0, true));
}

template <class Kind>
void the_others_are_pressed_and_all_are_told_of_room() {
  Kind kind;
  Budget& budget = kind.budget;
  std::vector<Bytes> one, other;
  const auto first = budget.listen([&](Bytes wanted) { one.push_back(wanted); });
  const auto second = budget.listen([&](Bytes wanted) { other.push_back(wanted); });
  CHECK(budget.take(60_MiB, first, true));
  CHECK(!budget.take(10_MiB, second, true));
  CHECK(one == std::vector{6_MiB} && other.empty());
  CHECK(!budget.take(10_MiB, second, false) && one.size() == 1);
  CHECK(!budget.take(65_MiB, second, true) && one.size() == 1);  // nobody could give so much
  budget.give_back(10_MiB);
  CHECK((one == std::vector{6_MiB, Bytes{}} && other == std::vector{Bytes{}}));
  budget.give_back(1_MiB);
  CHECK(one.size() == 2);  // nobody was refused since
  budget.stop_listening(first);
  CHECK(!budget.take(40_MiB, second, true) && one.size() == 2);
}

template <class Kind>
void a_lowered_limit_is_asked_for_and_a_raised_one_is_told() {
  Kind kind;
  Budget& budget = kind.budget;
  Bytes asked;
  int rooms = 0;
  const auto id = budget.listen([&](Bytes wanted) { asked += wanted, rooms += wanted == Bytes{}; });
  CHECK(budget.take(40_MiB, id, true));
  budget.set_limit(30_MiB);
  CHECK(budget.limit() == 30_MiB && budget.taken() == 40_MiB && asked == 10_MiB);
  CHECK(!budget.take({1}, id, true));
  budget.set_limit(50_MiB);
  CHECK(rooms == 1 && budget.limit() == 50_MiB && budget.take(10_MiB, id, true));
}

}  // namespace

TEST(contract) {
  taking_is_all_or_nothing<Local>();
  taking_is_all_or_nothing<Shared>();
  the_others_are_pressed_and_all_are_told_of_room<Local>();
  the_others_are_pressed_and_all_are_told_of_room<Shared>();
  a_lowered_limit_is_asked_for_and_a_raised_one_is_told<Local>();
  a_lowered_limit_is_asked_for_and_a_raised_one_is_told<Shared>();
}

TEST(idle_grants_go_to_who_wants_them) {
  ShareFolder folder;
  Member one(folder.file(), all_of_it), other(folder.file(), all_of_it);
  CHECK(one.take(60_MiB));
  CHECK(!other.take(10_MiB));
  one.budget->give_back(60_MiB);
  CHECK(one.grant() == 60_MiB);  // until it is asked for, or nobody has used it for a while
  one.budget->poll();
  CHECK(one.grant() == 54_MiB);
  other.budget->poll();
  CHECK(other.rooms == 1 && other.take(10_MiB));
  one.budget->poll();
  CHECK(one.grant() == Bytes{});
}

TEST(what_was_much_and_is_not_used_any_more_is_let_go_at_once) {
  ShareFolder folder;
  Member one(folder.file(), {4_MiB, 64_MiB, 0});
  int woken = 0;
  CHECK(one.take(60_MiB));
  one.budget->set_waker([&] { ++woken; });
  one.budget->give_back(1_MiB);
  CHECK(woken == 0);  // it may well need that again
  for (int i = 0; i < 59; ++i) one.budget->give_back(1_MiB);
  CHECK(woken == 1);
  one.budget->poll();
  CHECK(one.grant() == 4_MiB);
  CHECK(one.take(4_MiB));
  one.budget->give_back(4_MiB);  // within the minimum there is nothing to let go of
  CHECK(woken == 1);
}

TEST(whoever_wants_lets_the_others_look_once) {
  struct Counted final : FileCalls {
    explicit Counted(int& to) : rings(to) {}
    int fails(const char* call) override {
      rings += std::string(call) == "futimens";
      return 0;
    }
    int& rings;
  };
  ShareFolder folder;
  int rings = 0;
  Member one(folder.file(), {16_MiB, 64_MiB, 0});
  Member other(folder.file(), all_of_it, std::make_unique<Counted>(rings));
  CHECK(one.take(24_MiB) && other.take(40_MiB));
  one.budget->give_back(4_MiB);
  rings = 0;
  CHECK(!other.take(8_MiB) && rings == 1);  // more than all others could leave to it: nobody is asked
  CHECK(!other.take(8_MiB) && rings == 1);
  one.budget->poll();
  CHECK(one.grant() == 20_MiB && other.take(4_MiB));
}

TEST(what_is_used_is_asked_for_once_and_given_back_page_by_page) {
  ShareFolder folder;
  Member one(folder.file(), all_of_it), other(folder.file(), all_of_it);
  CHECK(one.take(60_MiB) && !other.take(20_MiB));
  for (int i = 0; i < 3; ++i) one.budget->poll();
  CHECK(one.pressed == 16_MiB && one.pressure() == 16_MiB && one.budget->limit() == 44_MiB);
  CHECK(!one.take({1}));
  int woken = 0;
  one.budget->set_waker([&] { ++woken; });
  for (int i = 0; i < 16; ++i) {
    one.budget->give_back(1_MiB);
    one.budget->poll();
  }
  CHECK(woken == 16 && one.pressure() == Bytes{} && one.grant() == 44_MiB);
  other.budget->poll();
  CHECK(other.rooms == 1 && other.take(20_MiB));
  CHECK(!one.take(1_MiB));
  other.budget->poll();
  CHECK(other.presses == 0);  // they are not even, but `other` has less
}

TEST(a_guess_presses_nobody) {
  ShareFolder folder;
  Member one(folder.file(), all_of_it), other(folder.file(), all_of_it);
  CHECK(one.take(60_MiB) && !other.take(20_MiB, false));
  one.budget->poll();
  CHECK(one.pressed == Bytes{} && one.budget->limit() == 64_MiB);
}

TEST(a_want_that_nobody_repeats_ends) {
  ShareFolder folder;
  Member one(folder.file(), all_of_it), other(folder.file(), all_of_it);
  CHECK(one.take(60_MiB) && !other.take(20_MiB));
  one.budget->poll();
  CHECK(one.pressure() == 16_MiB);
  other.clock->advance(1100ms);
  other.budget->poll();  // tells its listeners, who do not ask again
  CHECK(other.rooms == 1);
  one.budget->poll();
  CHECK(one.pressure() == Bytes{} && one.take(4_MiB));
}

TEST(a_minimum_comes_by_itself) {
  ShareFolder folder;
  Member one(folder.file(), {{}, 64_MiB, 100});
  CHECK(one.take(64_MiB));
  Member late(folder.file(), {16_MiB, 32_MiB, -100});
  CHECK(late.grant() == Bytes{});
  one.budget->poll();
  CHECK(one.pressed == 16_MiB);
  for (int i = 0; i < 4; ++i) {
    late.clock->advance(600ms);
    late.budget->poll();
  }
  one.budget->give_back(20_MiB);
  one.budget->poll();
  late.budget->poll();
  CHECK(late.grant() == 16_MiB && late.take(16_MiB));
  CHECK(!late.take(8_MiB));  // 4 MiB are free
  one.budget->poll();
  CHECK(one.pressure() == Bytes{});  // it has the higher priority
  CHECK(late.take(4_MiB));
}

TEST(the_dead_leave_what_they_had) {
  ShareFolder folder;
  Member one(folder.file(), all_of_it);
  {
    const pid_t child = fork();
    if (child == 0) {
      Member dying(folder.file(), all_of_it);
      _exit(dying.take(50_MiB) ? 0 : 1);
    }
    int status = -1;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
  }
  CHECK(one.take(64_MiB));
  CHECK(look_at_share(folder.file()).size() == 1);
}

TEST(a_child_does_not_keep_its_parents_part) {
  ShareFolder folder;
  Member one(folder.file(), all_of_it);
  int ready[2], end[2];
  CHECK(pipe(ready) == 0 && pipe(end) == 0);
  const pid_t parent = fork();
  if (parent == 0) {
    Member dying(folder.file(), all_of_it);
    const bool took = dying.take(50_MiB);
    if (fork() == 0) {  // lives on
      char byte = 0;
      ::close(end[1]);
      _exit(write(ready[1], "x", 1) == 1 && read(end[0], &byte, 1) == 0 ? 0 : 1);
    }
    char byte = 0;
    _exit(took && read(ready[0], &byte, 1) == 1 ? 0 : 1);
  }
  int status = -1;
  CHECK(waitpid(parent, &status, 0) == parent && status == 0);
  CHECK(one.take(64_MiB));
  ::close(end[1]);
  ::close(end[0]);
  ::close(ready[0]);
  ::close(ready[1]);
}
