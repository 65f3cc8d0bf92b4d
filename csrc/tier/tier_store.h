// A bounded store of slots, each for one page, that is written and read by threads of its own.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "base/fork.h"
#include "base/log.h"
#include "base/thread.h"
#include "base/types.h"
#include "tier/slot_medium.h"
#include "tier/slot_table.h"

namespace vmm {

struct TierStoreOptions {
  Bytes slot{};             // of each, as large as a page
  std::uint64_t slots = 0;  // all there will ever be
  unsigned threads = 1;
  std::size_t merged = 1;      // transfers of slots side by side that one call of the medium may get
  std::size_t pending = 1024;  // transfers that may be submitted and not collected yet
  unsigned failures = 8;       // of writes, one after the other, until the store is read-only
  Nanoseconds patience = std::chrono::seconds(30);  // how long a transfer may wait for a worker
  const char* thread_name = "vmm-tier";
  Waking waking = Waking::yields;  // of the threads
  std::function<void()> on_end{};  // called by a worker, which holds no lock, when transfers can be collected
};

struct Transfer {
  TransferKind kind = TransferKind::write;
  TierSlot slot;
  std::byte* memory = nullptr;  // a page; until the transfer ends nobody else may write it, nor read a read's
  std::uint64_t tag = 0;        // the caller's own
};

struct Completion {
  Transfer transfer;
  Outcome outcome = Outcome::done;
  int error = 0;  // of what failed: an errno, or 0 where no system call did
};

struct TierFigures {
  std::uint64_t slots = 0;
  std::uint64_t free = 0;
  std::uint64_t quarantined = 0;
  std::uint64_t pending = 0;  // submitted and not collected
  std::uint64_t calls = 0;    // of the medium; fewer than transfers, where slots lay side by side
  Bytes written;
  Bytes read;
  std::uint64_t verified = 0;  // pages that came back, and were what was written
  std::uint64_t write_failures = 0;
  std::uint64_t read_failures = 0;
  std::uint64_t corrupt = 0;
  std::uint64_t timed_out = 0;
  bool read_only = false;
  Nanoseconds longest_running{};  // of the calls under way: a disk that hangs shows here
};

class TierState;

/// Every call is safe from any thread, and none waits for the medium but wait() and close(). A transfer that
/// is submitted ends exactly once, and is then collected exactly once; meanwhile its slot is not given to
/// anybody else, and its page belongs to it. In a forked child every call throws Forked.
class TierStore {
 public:
  /// Throws InvalidArgument, naming the option, and DriverError where no thread can be started.
  TierStore(const TierStoreOptions& options, std::shared_ptr<SlotMedium> medium, std::shared_ptr<Clock> clock,
            std::shared_ptr<Log> log);
  /// Closes it, with five seconds of patience.
  ~TierStore();
  TierStore(const TierStore&) = delete;
  TierStore& operator=(const TierStore&) = delete;

  Bytes slot_bytes() const;
  /// What addresses of pages must be multiples of.
  std::size_t alignment() const;

  /// So many slots, or none where fewer are free, or where the store is read-only or closed (figures() says
  /// how many there are). Side by side where possible, and in order: transfers submitted in that order are
  /// merged into larger calls.
  std::vector<TierSlot> take(std::uint32_t count);
  /// The slot is somebody else's as soon as no transfer touches it any more. Throws InvalidArgument for a
  /// slot that is not the caller's.
  void give_back(TierSlot slot);

  /// Begins as many of them as have room among the pending ones, in order, and returns how many. Throws
  /// InvalidArgument, having begun none, for a slot that is not the caller's, is written a second time, or is
  /// read before its write has ended well, and for memory that is null or not aligned. Throws Closed.
  std::size_t submit(std::span<const Transfer> transfers);
  /// Collects what has ended, at most as many as fit, and returns how many.
  std::size_t poll(std::span<Completion> out);
  /// The same, but waits for one at least, as long as any is under way.
  std::size_t wait(std::span<Completion> out, Nanoseconds at_most);

  TierFigures figures() const;

  /// Ends what has not begun, as closed, and waits for the rest, for `patience` at most. Returns how many
  /// transfers go on nevertheless (a disk hangs): their pages must be left alone until they have been
  /// collected, which is possible after closing.
  std::size_t close(Nanoseconds patience);

 private:
  const ForkGuard fork_guard_;
  const std::shared_ptr<TierState> state_;  // the workers', too: one that hangs outlives the store
  std::unique_ptr<std::vector<std::thread>> threads_;
};

}  // namespace vmm
