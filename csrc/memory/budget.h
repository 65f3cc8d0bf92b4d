// How many bytes of physical memory may be created.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <utility>

#include "base/lock.h"
#include "base/types.h"

namespace vmm {

/// Safe from any thread. An interface, because a budget may span processes (shared_budget.h).
class Budget {
 public:
  /// Told how many bytes others lack; 0: there is more than when somebody lacked something. Called with the
  /// budget's lock held: note it, return at once.
  using Listener = std::function<void(Bytes)>;
  using ListenerId = std::uint64_t;

  virtual ~Budget() = default;
  virtual ListenerId listen(Listener listener) = 0;
  virtual void stop_listening(ListenerId id) = 0;
  /// All or nothing. When false, everybody but `taker` is asked to give back what lacks, if the taker is to
  /// `press`; and the taker, like all, is told when there is more.
  virtual bool take(Bytes size, ListenerId taker, bool press) = 0;
  virtual void give_back(Bytes size) noexcept = 0;
  /// What its owners may have together now, at most.
  virtual Bytes limit() const = 0;
  /// What that may become without set_limit.
  virtual Bytes maximum() const { return limit(); }
  virtual Bytes taken() const = 0;
  /// A limit below what is taken asks everybody to give back the difference; nothing is torn away. Throws
  /// InvalidArgument for less than what is promised.
  virtual void set_limit(Bytes limit) = 0;
  /// So much more is promised to tenants. Throws InvalidArgument where all promises would be more than the
  /// maximum.
  virtual void promise(Bytes more) = 0;
  virtual void end_promise(Bytes size) noexcept = 0;
};

/// What of a budget is promised to tenants. Not thread-safe: the budget's lock guards it.
class Promises {
 public:
  void add(Bytes more, Bytes maximum);
  void end(Bytes size) noexcept { sum_ -= size; }
  /// Throws InvalidArgument for a maximum that is less than these.
  void require_kept(Bytes maximum) const;

 private:
  Bytes sum_;
};

/// Who listens to a budget. Not thread-safe: the budget's lock guards it.
class BudgetListeners {
 public:
  Budget::ListenerId add(Budget::Listener listener) {
    listeners_.emplace(next_id_, std::move(listener));
    return next_id_++;
  }
  void remove(Budget::ListenerId id) { listeners_.erase(id); }
  void tell(Bytes size, Budget::ListenerId except = 0) const {
    for (const auto& [id, listener] : listeners_)
      if (id != except) listener(size);
  }

 private:
  Budget::ListenerId next_id_ = 1;
  std::map<Budget::ListenerId, Budget::Listener> listeners_;
};

/// A budget of this process; several pools may share one.
class LocalBudget final : public Budget {
 public:
  explicit LocalBudget(Bytes limit) : limit_(limit) {}

  ListenerId listen(Listener listener) override;
  void stop_listening(ListenerId id) override;
  bool take(Bytes size, ListenerId taker, bool press) override;
  void give_back(Bytes size) noexcept override;
  Bytes limit() const override;
  Bytes taken() const override;
  void set_limit(Bytes limit) override;
  void promise(Bytes more) override;
  void end_promise(Bytes size) noexcept override;

 private:
  void tell_of_room();

  mutable Mutex mutex_{LockRank::budget};
  Bytes limit_;
  Bytes taken_;
  Promises promises_;
  bool refused_ = false;  // somebody, since that was last told
  BudgetListeners listeners_;
};

}  // namespace vmm
