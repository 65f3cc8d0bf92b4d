// Sequences that come, begin with each other's tokens, grow, fork, are cut back, are parked and go, in random
// courses, against a naive model of what every token's bytes must be.
#pragma once

#include <cstdio>
#include <functional>
#include <memory>
#include <optional>
#include <random>
#include <thread>

#include "check.h"
#include "prefix_fixture.h"

namespace vmm {

struct CourseSequence {
  Sequence sequence;
  std::string salt;
  StreamHandle stream;
  TokenList prompt;  // to compute
  std::uint64_t committed = 0;
  std::uint64_t before = 0;  // tokens before the last step
  bool parked = false;
};

class PrefixCourse {
 public:
  PrefixCourse(unsigned seed, const PrefixOptions& options, bool two_streams)
      : random_(seed), plenty_(options.budget >= 16_MiB), test_(options), eaten_(test_.reserve(1_MiB)) {
    streams_.push_back({});
    if (two_streams) streams_.push_back(test_.pool->streams().create());
    if (options.slow_maps) test_.leave_pages(150, 2);
  }
  ~PrefixCourse() {
    for (const CourseSequence& each : running_) test_.close(each.sequence, each.stream);
    for (StreamHandle stream : streams_) test_.end(stream);
    if (streams_.size() > 1) test_.pool->streams().destroy(streams_[1]);
  }

  /// Returns after how many steps something was wrong.
  std::optional<int> wrong(int steps) {
    for (int i = 0; i < steps; ++i) {
      const int before = check::failures();
      change();
      test_.pool->check();
      for (const CourseSequence& each : running_)
        if (!each.parked && !test_.intact(each.sequence)) return i;
      if (check::failures() != before) return i;
    }
    return std::nullopt;
  }
  const PrefixCache& cache() const { return test_; }

 private:
  std::uint32_t pick(std::size_t n) { return static_cast<std::uint32_t>(random_() % n); }
  /// Few beginnings, which part in the middle of blocks, between them, and seldom.
  TokenList text() {
    TokenList out;
    for (std::size_t i = 0; i < 4; ++i) {
      const auto piece = static_cast<PrefixIndex::Token>(pick(2));
      const TokenList more = tokens_from(1'000 * piece, piece == 0 ? 64 : 70);
      out.insert(out.end(), more.begin(), more.end());
    }
    out.resize(1 + pick(out.size()));
    return out;
  }
  CourseSequence* any() { return running_.empty() ? nullptr : &running_[pick(running_.size())]; }

  /// Of tokens that are committed and run on the same stream, at least as many must be found.
  std::uint64_t least(const TokenList& prompt, const std::string& salt, StreamHandle stream) const {
    std::uint64_t best = 0;
    if (!plenty_ || test_.options.window.count != 0) return 0;
    for (const CourseSequence& each : running_) {
      if (each.salt != salt || each.stream != stream || each.parked) continue;
      std::uint64_t same = 0;
      while (same < each.committed && same + 1 < prompt.size() && each.sequence.tokens[same] == prompt[same])
        ++same;
      best = std::max(best, same / 16 * 16);
    }
    return best;
  }
  void open() {
    if (running_.size() + 1 >= test_.options.slots) return;
    CourseSequence made{{}, pick(4) == 0 ? "a" : "", streams_[pick(streams_.size())], text()};
    const std::uint64_t expected = least(made.prompt, made.salt, made.stream);
    const Bytes kept = test_.pool->stats().kept;
    made.sequence = test_.open(made.prompt, made.salt, made.stream);
    if (streams_.size() == 1) CHECK(made.sequence.cached >= expected);
    CHECK(test_.parking || test_.pool->stats().kept >= kept);
    made.committed = made.before = made.sequence.cached;
    made.parked = made.sequence.restored;
    running_.push_back(std::move(made));
  }
  void grow(CourseSequence& each) {
    const std::uint64_t length = each.sequence.tokens.size();
    TokenList more;
    if (length < each.prompt.size())
      more.assign(each.prompt.begin() + static_cast<std::ptrdiff_t>(length), each.prompt.end());
    else
      more = tokens_from(static_cast<PrefixIndex::Token>(pick(3)), 1 + pick(40));
    if (more.size() > 1 && pick(2) == 0) more.resize(1 + pick(more.size()));
    if (length + more.size() > test_.cache->slots().max_tokens().count) return;
    try {
      test_.step(each.sequence, more, each.stream);
      each.before = length;
      each.parked = false;
    } catch (const OutOfPages&) {
      if (!each.parked) leave(each);
    } catch (const InvalidArgument&) {
      throw;
    } catch (const Error&) {  // an open epoch of the other stream may read the slot, or hold the memory
      for (StreamHandle stream : streams_) test_.end(stream);
    }
  }
  void commit(CourseSequence& each) {
    const std::uint64_t to = each.committed + pick(each.sequence.tokens.size() - each.committed + 1);
    test_.commit(each.sequence, each.committed, to);
    each.committed = to;
  }
  /// Whether the work was not refused for want of memory, or because of another stream's work.
  template <class Work>
  static bool is_done(Work work) {
    try {
      work();
      return true;
    } catch (const InvalidArgument&) {
      throw;
    } catch (const Error&) {
      return false;
    }
  }
  void cut(CourseSequence& each) {
    const std::uint64_t length = each.sequence.tokens.size();
    std::uint64_t to = pick(length + 1);
    if (test_.options.window.count != 0) to = pick(8) == 0 ? 0 : std::max(to, each.before);
    if (!is_done([&] { test_.truncate(each.sequence, to, each.stream); })) return;
    each.parked = false;
    each.committed = std::min(each.committed, to);
    each.before = std::min(each.before, to);
  }
  void fork(CourseSequence& from) {
    if (running_.size() + 1 >= test_.options.slots) return;
    CourseSequence child = from;
    if (!is_done([&] { child.sequence = test_.fork(from.sequence, from.stream); })) return;
    from.parked = child.parked = false;
    running_.push_back(std::move(child));
  }
  /// It is idle; or, if it is that already, it may be wanted back.
  void park(CourseSequence& each) {
    const auto slot = static_cast<std::int32_t>(each.sequence.slot);
    if (each.parked) {
      test_.cache->prefetch(std::span(&slot, 1), test_.clock->now() + Nanoseconds{pick(1'000'000)});
      return;
    }
    const ParkHint hint{.category = pick(2) == 0 ? "tool" : "user"};
    if (!is_done([&] { test_.cache->park(each.sequence.slot, hint, each.stream); })) return;
    each.parked = !each.sequence.tokens.empty();
    each.before = each.sequence.tokens.size();
  }
  void leave(CourseSequence& each) {
    test_.close(each.sequence, each.stream);
    if (&each != &running_.back()) each = std::move(running_.back());
    running_.pop_back();
  }
  /// Somebody else needs memory, or gives it back.
  void eat() {
    try {
      const PageRange all{{0}, {16}};
      if (pick(2) == 0)
        map(*eaten_, pick(8), 1 + pick(8));
      else
        test_.pool->unkeep(eaten_->reservation(), std::span(&all, 1), {});
    } catch (const OutOfPages&) {
    }
  }

  void change() {
    CourseSequence* const one = any();
    const std::uint32_t what = pick(20);
    if (one != nullptr && test_.parking && pick(4) == 0) return park(*one);
    if (one == nullptr || what < 4) return open();
    if (what < 9) return grow(*one);
    if (what < 13) return commit(*one);
    if (what < 14) return cut(*one);
    if (what < 15) return fork(*one);
    if (what < 17) return leave(*one);
    if (what < 18) return test_.end(streams_[pick(streams_.size())]);
    if (what < 19) return test_.background ? std::this_thread::yield() : test_.settle();
    eat();
  }

  std::mt19937 random_;
  const bool plenty_;
  PrefixCache test_;
  std::shared_ptr<Lease> eaten_;
  std::vector<StreamHandle> streams_;
  std::vector<CourseSequence> running_;
};

struct CourseSums {
  std::uint64_t adopted = 0, aliased = 0, copied = 0, restored = 0, cleaned = 0, loaded = 0;
};

inline bool adopted_and_aliased(const CourseSums& sums) { return sums.adopted > 0 && sums.aliased > 0; }

/// Runs some courses, and more, up to a hundred, until they have done what is wanted of them.
inline CourseSums run_courses(
    const PrefixOptions& options, bool two_streams = false,
    const std::function<bool(const CourseSums&)>& wanted = [](const CourseSums&) { return true; }) {
#ifdef __SANITIZE_THREAD__
  constexpr bool slow = true;  // with a thread beside it, a course takes seconds
#else
  constexpr bool slow = false;
#endif
  const unsigned first = std::random_device{}() % 1'000'000, courses = slow ? 1 : on_cuda() ? 3 : 8;
  CourseSums sums;
  for (unsigned seed = first; seed < first + courses || (seed < first + 100 && !wanted(sums)); ++seed) {
    std::optional<int> wrong;
    try {
      PrefixCourse course(seed, options, two_streams);
      wrong = course.wrong(150);
      const PrefixStats stats = course.cache().stats();
      sums.adopted += stats.adopted;
      sums.aliased += stats.aliased;
      sums.copied += stats.copied;
      sums.restored += stats.restored;
      if (!course.cache().parking) continue;
      const ParkingFigures figures = course.cache().parking->figures();
      sums.cleaned += figures.cleaned;
      sums.loaded += figures.loaded;
      CHECK(figures.lost == 0);
    } catch (const std::exception& error) {
      check::report(__FILE__, __LINE__, error.what());
      wrong = -1;
    }
    if (!wrong) continue;
    check::report(__FILE__, __LINE__, "seed " + std::to_string(seed) + ", step " + std::to_string(*wrong));
    return sums;
  }
  CHECK(wanted(sums));
  return sums;
}

}  // namespace vmm
