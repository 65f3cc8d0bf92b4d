// The pager: keeps memory mapped ahead of what grows, unmaps what was retired, answers pressure.
#pragma once

#include <deque>
#include <functional>
#include <list>
#include <memory>
#include <optional>

#include "base/lock.h"
#include "engine/growing.h"
#include "memory/pool.h"
#include "policy/batch_size.h"
#include "policy/creation_predictor.h"

namespace vmm {

struct PagerOptions {
  Pages lookahead{1};                                // mapped beyond the frontier, in every growing extent
  Bytes batch_bytes = 2_MiB;                         // mapped at once, at first: see BatchSize
  Nanoseconds idle_time = std::chrono::seconds(60);  // until what nobody needs is given back: up to twice as
                                                     // long; 0: for ever
};

/// A state machine that a thread, or a simulator, drives by poll(). It touches only the driver and the clock.
/// notify() and wake-ups are safe from any thread; poll() belongs to one at a time.
class Pager {
 public:
  struct Next {
    bool now = false;                 // there is more to do at once
    std::optional<Nanoseconds> at{};  // or at this time; neither: when woken
  };

  Pager(std::shared_ptr<Pool> pool, PagerOptions options);
  ~Pager();
  Pager(const Pager&) = delete;
  Pager& operator=(const Pager&) = delete;

  /// There may be something to map ahead for it. Costs one atomic when it is known already.
  void notify(Growing& growing);
  /// Does one bounded piece of work. Never throws: what goes wrong is logged, and is the caller's to meet.
  Next poll(Nanoseconds now) noexcept;
  /// Calls its age() after each while, until that returns false.
  void age(Growing& growing);
  /// There may be something retired to unmap.
  void nudge() { wake(); }
  /// Called, from any thread, whenever poll() may have something to do.
  void set_waker(std::function<void()> wake);

  const PagerOptions& options() const noexcept { return options_; }
  Pool& pool() const noexcept { return *pool_; }

 private:
  void give_up(Nanoseconds now);
  void ask_again(Nanoseconds now);
  void retry_failed();
  void map_one_batch();
  bool create_ahead();
  template <class Work>
  bool guarded(Work work) noexcept;
  std::shared_ptr<Growing> take_due();
  void put_back(const std::shared_ptr<Growing>& growing);
  bool anything_due();
  std::optional<Nanoseconds> look_for_idle(Nanoseconds now);
  bool may_idle();
  void age_all();
  void wake();

  std::shared_ptr<Pool> pool_;
  const PagerOptions options_;
  // poll()'s own, as they are:
  BatchSize batch_;
  std::optional<Nanoseconds> idle_at_;  // when to look for what idles
  bool aged_ = false;                   // there may be something that has aged
  std::vector<std::weak_ptr<Growing>> starved_;
  std::uint64_t given_up_ = 0;         // the pool's number before they starved
  std::optional<Nanoseconds> ask_at_;  // for them, even if that is the same
  std::vector<std::weak_ptr<Growing>> failed_;
  bool rested_ = true;  // since the last poll
  Nanoseconds refused_recheck_{200'000};
  Nanoseconds refused_at_{0};  // when to try again what the driver refused
  CreationPredictor creations_;
  Bytes page_bytes_;      // of what was created last
  bool reserve_ = false;  // it may lack something

  Mutex inbox_mutex_{LockRank::pager_inbox};  // guards what follows
  std::deque<std::weak_ptr<Growing>> due_;
  std::list<std::weak_ptr<Growing>> ageing_;
  std::function<void()> wake_ = [] {};
};

}  // namespace vmm
