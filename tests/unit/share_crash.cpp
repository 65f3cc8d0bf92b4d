// A share whose members die or whose calls fail: at every call, and at random.
#include <sys/wait.h>

#include <atomic>
#include <fstream>
#include <random>
#include <thread>

#include "base/error.h"
#include "check.h"
#include "memory/share_watcher.h"
#include "share_fixtures.h"

using namespace vmm;
using namespace std::chrono_literals;

namespace {

const ShareTerms all_of_it{{}, 64_MiB, 0};

/// Fails from the n-th call on for so many calls; or ends the process there.
class FailingCalls : public FileCalls {
 public:
  FailingCalls(int first, int count, int error) : first_(first), count_(count), error_(error) {}
  static constexpr int dies = -1;
  static inline bool reached = false;

 protected:
  int fails(const char*) override {
    const int call = ++calls_;
    if (call < first_ || call >= first_ + count_) return 0;
    if (error_ == dies) _exit(7);
    reached = true;
    return error_;
  }

 private:
  const int first_, count_, error_;
  int calls_ = 0;
};

/// A process that dies: from then on it does nothing more, and its locks are gone.
class MortalCalls : public FileCalls {
 public:
  explicit MortalCalls(const bool& dead) : dead_(dead) {}

 protected:
  int fails(const char*) override { return dead_ ? EIO : 0; }

 private:
  const bool& dead_;
};

/// What a member does in its life: it makes or joins, raises, wants, gives back, changes its budget, leaves.
void live(const std::string& path, std::unique_ptr<FileCalls> calls) {
  Member member(path, {2_MiB, 64_MiB, 0}, std::move(calls));
  member.take(10_MiB);
  member.take(60_MiB);
  member.budget->poll();
  try {
    member.budget->set_limit(60_MiB);
  } catch (const Error&) {  // nothing has changed, then
    CHECK(member.budget->maximum() == 64_MiB);
  }
  member.budget->give_back(member.budget->taken());
  CHECK(member.budget->taken() == Bytes{});
  member.budget->poll();
  member.budget->poll();
}

Bytes sum_of_grants(const std::string& path) {
  Bytes sum;
  for (const ShareGuest& guest : look_at_share(path)) sum += Bytes{guest.record.grant};
  return sum;
}

}  // namespace

TEST(any_call_may_fail) {
  for (const int error : {EIO, EMFILE, ENOSPC, EINTR}) {
    for (const int count : {1, 2}) {
      for (int n = 1;; ++n) {
        ShareFolder folder;
        FailingCalls::reached = false;
        try {
          live(folder.file(), std::make_unique<FailingCalls>(n, count, error));
        } catch (const Error& failed) {
          CHECK(std::string(failed.what()).find(folder.file()) != std::string::npos);
        }
        if (!FailingCalls::reached) break;
        Member next(folder.file(), all_of_it);
        CHECK(next.take(64_MiB));
        CHECK(n < 500);
      }
    }
  }
}

TEST(a_survivor_is_not_hurt_by_others_failures) {
  for (int n = 1;; ++n) {
    ShareFolder folder;
    Member survivor(folder.file(), all_of_it);
    CHECK(survivor.take(50_MiB));
    FailingCalls::reached = false;
    try {
      live(folder.file(), std::make_unique<FailingCalls>(n, 1, EIO));
    } catch (const Error&) {
    }
    if (!FailingCalls::reached) break;
    CHECK(survivor.take(14_MiB) && survivor.budget->log().drain().empty());
  }
}

TEST(a_process_may_die_at_any_call) {
  int deaths = 0;
  for (const bool with_survivor : {false, true}) {
    for (int n = 1;; ++n) {
      ShareFolder folder;
      std::unique_ptr<Member> survivor;
      if (with_survivor) {
        survivor = std::make_unique<Member>(folder.file(), all_of_it);
        CHECK(survivor->take(50_MiB));
      }
      const pid_t child = fork();
      if (child == 0) {
        live(folder.file(), std::make_unique<FailingCalls>(n, 1, FailingCalls::dies));
        _exit(0);
      }
      int status = -1;
      CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status));
      if (!survivor) survivor = std::make_unique<Member>(folder.file(), all_of_it);
      CHECK(survivor->take(with_survivor ? 14_MiB : 64_MiB));
      CHECK(look_at_share(folder.file()).size() == 1);
      CHECK(sum_of_grants(folder.file()) == 64_MiB);
      if (WEXITSTATUS(status) == 0) break;
      CHECK(WEXITSTATUS(status) == 7);
      ++deaths;
    }
  }
  std::printf("       died at %d calls\n", deaths);
  CHECK(deaths > 50);
}

/// As far as it came, the copy that a dying process was writing is not the valid one.
TEST(a_torn_copy_is_not_read) {
  ShareFolder folder;
  Member one(folder.file(), all_of_it);
  CHECK(one.take(10_MiB));
  for (int i = 0; i < 4; ++i) {
    std::uint64_t valid = 9;
    std::fstream file(folder.file(), std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(offsetof(ShareHeader, valid)).read(reinterpret_cast<char*>(&valid), sizeof valid);
    const std::string noise(500, '\5');
    const std::size_t other = sizeof(ShareHeader) + (1 - valid) * sizeof(ShareTable);
    file.seekp(static_cast<std::streamoff>(other)).write(noise.data(), 500);
    file.close();
    CHECK(one.take(1_MiB) && look_at_share(folder.file()).size() == 1);
  }
  CHECK(one.budget->log().drain().empty());
}

TEST(a_file_that_was_deleted_is_said_once) {
  ShareFolder folder;
  Member one(folder.file(), all_of_it);
  std::filesystem::remove(folder.file());
  one.budget->poll();
  one.budget->poll();
  CHECK(one.budget->log().drain().size() == 1);
  CHECK(one.take(10_MiB));
}

TEST(without_inotify_it_looks_by_itself) {
  ShareFolder folder;
  Member holder(folder.file(), all_of_it);
  CHECK(holder.take(60_MiB));
  SharedBudget other(folder.file(), all_of_it, std::make_shared<RealClock>());
  std::atomic<int> rooms{0};
  const auto id = other.listen([&](Bytes wanted) { rooms += wanted == Bytes{}; });
  FailingCalls no_event(1, 1, EMFILE), no_inotify(2, 1, EMFILE), no_watch(3, 1, ENOSPC);
  CHECK_THROWS(DriverError, "eventfd", ShareWatcher(other, no_event));
  for (FileCalls* calls : {static_cast<FileCalls*>(&no_inotify), static_cast<FileCalls*>(&no_watch)}) {
    const ShareWatcher watcher(other, *calls);
    CHECK(other.log().drain().size() == 1);
    CHECK(!other.take(20_MiB, id, true));
    rooms = 0;
    holder.budget->give_back(holder.budget->taken());
    holder.budget->poll();
    for (int i = 0; i < 1000 && rooms == 0; ++i) std::this_thread::sleep_for(5ms);
    CHECK(rooms != 0 && other.take(20_MiB, id, true));
    other.give_back(20_MiB);
    other.poll();
    CHECK(holder.take(60_MiB));
  }
}

namespace {

/// Members that come, go and die, in one random course.
class Course {
 public:
  explicit Course(std::uint64_t seed) : seed_(seed), random_(seed) {}

  void run() {
    for (int step = 0; step < 150; ++step) {
      const std::vector<ShareGuest> before = guests();
      const std::size_t actor = one_step();
      check(before, actor);
    }
  }

 private:
  struct One {
    bool dead = false;
    std::unique_ptr<Member> member;
    std::uint32_t name = 0;  // its priority tells it
  };

  std::uint64_t upto(std::uint64_t most) {
    return std::uniform_int_distribution<std::uint64_t>(0, most)(random_);
  }

  /// Returns the number of who did something: the priorities of members differ from all others'.
  std::size_t one_step() {
    if (members_.size() < 2 || (members_.size() < 6 && upto(9) == 0)) return join();
    const std::size_t i = upto(members_.size() - 1);
    One& one = *members_[i];
    const std::size_t name = one.name;
    SharedBudget& budget = *one.member->budget;
    one.member->clock->advance(std::chrono::milliseconds(upto(300)));
    switch (upto(11)) {
      case 0:
        one.dead = upto(1) == 0;
        members_.erase(members_.begin() + static_cast<std::ptrdiff_t>(i));
        break;
      case 1:
      case 2:
        budget.give_back({upto(budget.taken().count)});
        break;
      case 3:
        budget.give_back(saturating_sub(budget.taken(), budget.limit()));
        budget.poll();
        break;
      case 4:
      case 5:
      case 6:
        budget.poll();
        break;
      default: {
        const Bytes size{1 + upto(20) * 100'000};
        one.member->take(size, upto(3) != 0);
      }
    }
    return name;
  }

  std::size_t join() {
    auto one = std::make_unique<One>();
    one->name = ++names_;
    const Bytes minimum{upto(2) == 0 ? upto(4'000'000) : 0};
    one->member = std::make_unique<Member>(
        path(), ShareTerms{minimum, {20'000'000}, static_cast<std::int32_t>(names_ % 3 * 1000 + names_)},
        std::make_unique<MortalCalls>(one->dead));
    members_.push_back(std::move(one));
    return names_;
  }

  std::vector<ShareGuest> guests() const {
    return std::filesystem::exists(path()) ? look_at_share(path()) : std::vector<ShareGuest>{};
  }

  static std::size_t name_of(const ShareGuest& guest) {
    return static_cast<std::size_t>(guest.record.priority % 1000);
  }

  void check(const std::vector<ShareGuest>& before, std::size_t actor) {
    Bytes grants, taken;
    for (const ShareGuest& guest : guests()) {
      grants += Bytes{guest.record.grant};
      for (const ShareGuest& old : before)
        if (name_of(old) == name_of(guest) && name_of(old) != actor)
          require(old.record.grant == guest.record.grant, "a grant is changed by its owner only");
    }
    for (const auto& one : members_) {
      taken += one->member->budget->taken();
      const ShareStanding standing = one->member->budget->standing();
      require(one->member->budget->taken() <= standing.grant, "what is taken was granted");
    }
    require(grants <= Bytes{20'000'000}, "all grants are no more than there is");
    require(taken <= grants, "and so is what is taken");
  }

  void require(bool holds, const char* what) {
    if (!holds) check::report("course", 0, std::string(what) + ", seed " + std::to_string(seed_));
  }

  std::string path() const { return folder_.file(); }

  const std::uint64_t seed_;
  std::mt19937_64 random_;
  ShareFolder folder_;
  std::vector<std::unique_ptr<One>> members_;
  std::uint32_t names_ = 0;
};

}  // namespace

TEST(random_courses_of_members) {
  for (std::uint64_t seed = 0; seed < 60; ++seed) Course(seed).run();
}

/// Each thread is as good as a process. Whatever they do, together they never hold more than there is.
TEST(members_side_by_side) {
  ShareFolder folder;
  std::atomic<std::int64_t> held{0};
  std::atomic<bool> too_much{false};
  std::vector<std::thread> threads;
  for (std::uint64_t seed = 0; seed < 4; ++seed)
    threads.emplace_back([&, seed] {
      std::mt19937_64 random(seed);
      for (int life = 0; life < 3; ++life) {
        Member member(folder.file(), {4_MiB, 64_MiB, static_cast<std::int32_t>(seed % 2)});
        for (int step = 0; step < 300; ++step) {
          const Bytes size{1 + random() % (8 << 20)};
          if (random() % 2 == 0 && member.take(size)) {
            if (held += static_cast<std::int64_t>(size.count); held > (64 << 20)) too_much = true;
          } else {
            const Bytes back{random() % (member.budget->taken().count + 1)};
            held -= static_cast<std::int64_t>(back.count);
            member.budget->give_back(back);
            member.budget->poll();
          }
        }
        held -= static_cast<std::int64_t>(member.budget->taken().count);
        member.budget->give_back(member.budget->taken());
        if (!member.budget->log().drain().empty()) too_much = true;
      }
    });
  for (std::thread& thread : threads) thread.join();
  CHECK(!too_much && held == 0);
}
