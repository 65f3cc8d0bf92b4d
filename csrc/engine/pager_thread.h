// The thin thread that drives a pager in real time.
#pragma once

#include <memory>
#include <thread>

#include "base/lock.h"
#include "engine/pager.h"

namespace vmm {

class PagerThread {
 public:
  explicit PagerThread(std::shared_ptr<Pager> pager);
  /// Stops and joins. Not to be called in a forked child, where the thread does not exist.
  ~PagerThread();
  /// Whether it has stopped within `patience`; else it is in a call of the driver's that does not come back.
  bool stop(Nanoseconds patience);
  PagerThread(const PagerThread&) = delete;
  PagerThread& operator=(const PagerThread&) = delete;

 private:
  void ask_to_stop();
  void run();
  void poll_until_stopped();

  std::shared_ptr<Pager> pager_;
  Mutex mutex_{LockRank::pager_thread};  // guards what follows
  Condition wake_;
  Condition ended_;
  bool over_ = false;
  bool woken_ = false;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace vmm
