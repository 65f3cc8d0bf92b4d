// What a tier's store shares with its workers.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/bounded_ring.h"
#include "base/lock.h"
#include "tier/tier_store.h"

namespace vmm {

/// The calls of TierStore (tier_store.h), and what a worker does. One lock, which nobody holds while the
/// medium works.
class TierState {
 public:
  /// A worker's memory, made before the worker is, so that none is lacking later.
  struct Worker {
    explicit Worker(std::size_t merged) : copies(merged), ends(merged) {}
    std::vector<SlotCopy> copies;
    std::vector<Completion> ends;
    std::size_t count = 0;
    std::optional<Nanoseconds> since;  // when the call under way began
  };

  TierState(const TierStoreOptions& options, std::shared_ptr<SlotMedium> medium, std::shared_ptr<Clock> clock,
            std::shared_ptr<Log> log);

  Bytes slot_bytes() const { return options_.slot; }
  std::size_t alignment() const { return medium_->alignment(); }
  std::vector<TierSlot> take(std::uint32_t count);
  void give_back(TierSlot slot);
  std::size_t submit(std::span<const Transfer> transfers);
  std::size_t wait(std::span<Completion> out, Nanoseconds at_most);
  TierFigures figures() const;

  /// A worker's life, until the store is closed.
  void work(std::size_t worker);
  /// Whether this was the first call.
  bool close();
  /// Whether all workers have ended by then.
  bool await_workers(Nanoseconds patience);
  std::size_t running() const;

 private:
  struct Job {
    Transfer transfer;
    Nanoseconds since{};
  };

  void require_memory(const Transfer& transfer) const;
  bool next_batch(Worker& worker);
  void perform(Worker& worker) noexcept;
  bool attempt(Worker& worker, std::size_t first, std::size_t count) noexcept;
  void finish(Worker& worker) noexcept;
  void count(const Completion& end) noexcept;
  void give_up(const Job& job, Outcome outcome) noexcept;
  void expire() noexcept;
  void log_first(const char* what, const char* why) noexcept;

  const TierStoreOptions options_;
  const std::shared_ptr<SlotMedium> medium_;
  const std::shared_ptr<Clock> clock_;
  const std::shared_ptr<Log> log_;

  mutable Mutex mutex_{LockRank::tier_store};
  Condition submitted_;
  Condition ended_;
  SlotTable slots_;
  BoundedRing<Job> queue_;
  BoundedRing<Completion> ends_;
  std::vector<Worker> workers_;
  std::size_t running_ = 0;  // transfers
  std::size_t workers_ended_ = 0;
  unsigned failures_in_a_row_ = 0;
  bool closed_ = false;
  bool has_logged_ = false;
  TierFigures figures_;
};

}  // namespace vmm
