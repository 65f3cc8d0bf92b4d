// Every lock of the engine has a rank, and a thread takes locks in the order of their ranks only. So no two
// threads can wait for each other. Where VMM_CHECK_LOCKS is defined (debug builds, and the C++ tests in any
// build) the order is checked whenever a lock is taken; elsewhere a Mutex is a std::mutex and nothing more.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <utility>

namespace vmm {

/// All locks, the outermost first; docs/architecture.md says what each guards. Python's GIL comes before all
/// of them: who holds one of these does not wait for it. The names in lock.cpp are in the same order.
enum class LockRank : std::uint8_t {
  // While one of these is held the driver may be called.
  shares,
  engine,
  kv_cache,
  slots_owner,
  slots_ahead,
  keeping,
  range_ahead,
  epochs_poll,
  epochs_record,
  tiers,
  // While one of these is held it must not be.
  parking,
  slots_prepared,
  rows,
  range,
  pool,
  slots_due,
  streams,
  epochs,
  budget,
  pool_wake,
  pager_inbox,
  pager_thread,
  tier_store,
  device_link,
  log,
  // These are the drivers' own.
  fault_driver,
  checked_driver,
  sim_driver,
  cuda_driver,
  host_driver,
  host_streams,
  mapping_reserve,
  count,
};

namespace locks {

#ifdef VMM_CHECK_LOCKS

/// Knows the rank of a lock, and each thread which ranks it holds.
class Ranked {
 public:
  explicit Ranked(LockRank rank) : rank_(rank) {}
  /// Ends the process, with both names, where this thread holds a lock of this rank or of a later one.
  void take() const noexcept;
  void give() const noexcept;

 private:
  const LockRank rank_;
};

/// These end the process, with the lock's name, where this thread holds a lock under which the driver must
/// not be called; or any lock at all, when it is about to wait for the GIL.
void before_driver_call() noexcept;
void before_gil() noexcept;

#else

class Ranked {
 public:
  explicit Ranked(LockRank) {}
  void take() const noexcept {}
  void give() const noexcept {}
};

inline void before_driver_call() noexcept {}
inline void before_gil() noexcept {}

#endif

}  // namespace locks

/// As std::mutex.
class Mutex : private locks::Ranked {
 public:
  explicit Mutex(LockRank rank) : Ranked(rank) {}

  void lock() {
    take();
    native_.lock();
  }
  bool try_lock() {
    if (!native_.try_lock()) return false;
    take();
    return true;
  }
  void unlock() {
    native_.unlock();
    give();
  }

 private:
  friend class Condition;
  std::mutex native_;
};

/// Whoever has waited longest is next. For a lock that one thread takes again and again: from a Mutex, which
/// it gives up for a moment only, somebody who waits could be kept for as long as it goes on.
class FairMutex : private locks::Ranked {
 public:
  explicit FairMutex(LockRank rank) : Ranked(rank) {}

  void lock() {
    take();
    std::unique_lock native(native_);
    turn_.wait(native, [this, mine = last_++] { return mine == served_; });
  }
  void unlock() {
    {
      const std::lock_guard native(native_);
      ++served_;
    }
    turn_.notify_all();
    give();
  }
  /// Threads that have it or wait for it.
  std::uint64_t in_line() {
    const std::lock_guard native(native_);
    return last_ - served_;
  }

 private:
  std::mutex native_;
  std::condition_variable turn_;
  std::uint64_t last_ = 0;
  std::uint64_t served_ = 0;
};

/// As std::condition_variable.
class Condition {
 public:
  void notify_one() noexcept { native_.notify_one(); }
  void notify_all() noexcept { native_.notify_all(); }

  template <class Until>
  void wait(std::unique_lock<Mutex>& lock, Until until) {
    Waiting waiting(*lock.mutex());
    native_.wait(waiting.lock, std::move(until));
  }
  void wait_for(std::unique_lock<Mutex>& lock, std::chrono::nanoseconds at_most) {
    Waiting waiting(*lock.mutex());
    native_.wait_for(waiting.lock, at_most);
  }
  template <class Until>
  bool wait_for(std::unique_lock<Mutex>& lock, std::chrono::nanoseconds at_most, Until until) {
    Waiting waiting(*lock.mutex());
    return native_.wait_for(waiting.lock, at_most, std::move(until));
  }

 private:
  /// The lock as std::condition_variable wants it.
  struct Waiting {
    explicit Waiting(Mutex& mutex) : lock(mutex.native_, std::adopt_lock) {
      mutex.give();
      mutex.take();  // waiting takes it again: all others that are held must come before it
    }
    ~Waiting() { lock.release(); }
    Waiting(const Waiting&) = delete;
    Waiting& operator=(const Waiting&) = delete;

    std::unique_lock<std::mutex> lock;
  };

  std::condition_variable native_;
};

}  // namespace vmm
