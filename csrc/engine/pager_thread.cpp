#include "engine/pager_thread.h"

#include <string>

#include "base/error.h"
#include "base/thread.h"

namespace vmm {

PagerThread::PagerThread(std::shared_ptr<Pager> pager) : pager_(std::move(pager)) {
  pager_->set_waker([this] {
    {
      std::lock_guard lock(mutex_);
      woken_ = true;
    }
    wake_.notify_one();
  });
  try {
    thread_ = start_thread("vmm-pager", [this] { run(); });
  } catch (...) {
    pager_->set_waker([] {});
    throw;
  }
}

PagerThread::~PagerThread() {
  ask_to_stop();
  thread_.join();
}

void PagerThread::ask_to_stop() {
  pager_->set_waker([] {});
  std::lock_guard lock(mutex_);
  stop_ = true;
  wake_.notify_one();
}

bool PagerThread::stop(Nanoseconds patience) {
  ask_to_stop();
  std::unique_lock lock(mutex_);
  return ended_.wait_for(lock, patience, [this] { return over_; });
}

void PagerThread::run() {
  poll_until_stopped();
  std::lock_guard lock(mutex_);
  over_ = true;
  ended_.notify_all();
}

void PagerThread::poll_until_stopped() {
  Pool& pool = pager_->pool();
  try {
    pool.driver().bind_thread();
  } catch (const Error& error) {
    pool.log().write(LogLevel::error, std::string("the pager cannot run: ") + error.what());
    return;
  }
  Pager::Next next;
  for (;;) {
    {
      std::unique_lock lock(mutex_);
      auto called = [this] { return woken_ || stop_; };
      if (!next.now && next.at)
        wake_.wait_for(lock, *next.at - pool.clock().now(), called);
      else if (!next.now)
        wake_.wait(lock, called);
      if (stop_) return;
      woken_ = false;
    }
    next = pager_->poll(pool.clock().now());
  }
}

}  // namespace vmm
