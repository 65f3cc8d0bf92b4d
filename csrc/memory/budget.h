// How many bytes of physical memory may be created.
#pragma once

#include <cstdint>
#include <functional>
#include <map>

#include "base/lock.h"
#include "base/types.h"

namespace vmm {

/// Safe from any thread. An interface, because a budget may later span processes.
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
  virtual Bytes limit() const = 0;
  virtual Bytes taken() const = 0;
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
  /// A limit below what is taken asks everybody to give back the difference; nothing is torn away.
  void set_limit(Bytes limit);

 private:
  void ask(Bytes size, ListenerId except);
  void tell_of_room();

  mutable Mutex mutex_{LockRank::budget};
  Bytes limit_;
  Bytes taken_;
  bool refused_ = false;  // somebody, since that was last told
  ListenerId next_id_ = 1;
  std::map<ListenerId, Listener> listeners_;
};

}  // namespace vmm
