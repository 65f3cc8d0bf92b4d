// The pager: what is done for a pool in the background, so that callers need not wait for the driver.
//
// It maps pages before their owners need them (map_ahead of each Growing that notified it), unmaps what was
// retired when the work on it is over, gives memory back when others of the budget lack it or nobody has
// needed it for a while, and on a GPU creates pages ahead of need.
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
  Pages lookahead{1};         // so many are mapped beyond what is in use, in every extent that grows
  Bytes batch_bytes = 2_MiB;  // so much is mapped at once in the beginning: see BatchSize
  // What nobody needs for so long is given back, at the latest after twice that; 0: never.
  Nanoseconds idle_time = std::chrono::seconds(60);
};

/// A state machine without a thread of its own: a PagerThread, or a simulator, calls poll(), one at a time.
/// All other methods are safe from any thread.
class Pager {
 public:
  struct Next {
    bool now = false;                 // poll again at once
    std::optional<Nanoseconds> at{};  // or at this time, or when woken before; without a time, when woken
  };

  Pager(std::shared_ptr<Pool> pool, PagerOptions options);
  ~Pager();
  Pager(const Pager&) = delete;
  Pager& operator=(const Pager&) = delete;

  /// Tells that map_ahead() of this may have something to do. Costs one atomic when that is known already.
  void notify(Growing& growing);
  /// Does one piece of work that takes about a millisecond. Never throws: what fails is logged, and whoever
  /// needs what could not be mapped meets the error himself.
  Next poll(Nanoseconds now) noexcept;
  /// From now on its age() is called after each idle time, until that returns false.
  void age(Growing& growing);
  /// Tells that poll() may have something to do, for example because something retired may be over now.
  void wake();
  /// Called, from any thread, whenever poll() may have something to do.
  void set_waker(std::function<void()> wake);

  const PagerOptions& options() const noexcept { return options_; }
  Pool& pool() const noexcept { return *pool_; }

 private:
  void give_up(Nanoseconds now);
  void ask_again(Nanoseconds now);
  void retry_failed();
  void retry_later(Nanoseconds now);
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
  std::vector<std::weak_ptr<Growing>> later_;
  Nanoseconds later_at_{0};  // when to try those again
  bool rested_ = true;       // since the last poll
  Nanoseconds refused_recheck_;
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
