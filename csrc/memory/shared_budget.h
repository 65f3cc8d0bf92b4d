// A budget across processes: this process's part of a share.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "base/clock.h"
#include "base/fork.h"
#include "memory/budget.h"
#include "memory/share_transaction.h"

namespace vmm {

/// What a process has of a share, at one moment.
struct ShareStanding {
  Bytes grant, wanted;
  Bytes pressure;  // of what is taken, what others ask for
};

/// A state machine without a thread of its own: a ShareWatcher calls poll(). Within the grant taking is a
/// lock and two numbers; beyond it one transaction on the file, of microseconds, raises the grant. It is done
/// under this budget's lock and, when a pool takes, under the pool's.
class SharedBudget final : public Budget {
 public:
  /// Joins. Throws what ShareFile does, and InvalidArgument for minima that are together more than the
  /// largest budget, and when all places are taken.
  SharedBudget(std::string path, const ShareTerms& terms, std::shared_ptr<const Clock> clock,
               std::unique_ptr<FileCalls> calls = std::make_unique<FileCalls>());
  ~SharedBudget() override;
  SharedBudget(const SharedBudget&) = delete;
  SharedBudget& operator=(const SharedBudget&) = delete;

  ListenerId listen(Listener listener) override;
  void stop_listening(ListenerId id) override;
  bool take(Bytes size, ListenerId taker, bool press) override;
  void give_back(Bytes size) noexcept override;
  Bytes limit() const override;
  Bytes maximum() const override;
  Bytes taken() const override;
  /// Changes the maximum. Throws InvalidArgument for less than the minimum or what is promised, and what the
  /// file's calls throw.
  void set_limit(Bytes limit) override;
  void promise(Bytes more) override;
  void end_promise(Bytes size) noexcept override;

  /// Does what has become due: gives back what others ask for and is not taken, and what lies unused; ends
  /// wants that nobody repeats; buries the dead; tells the listeners. Never throws: what fails is logged.
  void poll() noexcept;
  /// `wake` is called, from any thread and with the budget's lock held, when poll() is to be called at once.
  void set_waker(std::function<void()> wake);

  ShareTerms terms() const;
  ShareStanding standing() const;
  /// Waits until others ask for something that is taken, `stop` is true, or the time is over. Returns what
  /// they ask for.
  Bytes await_pressure(Nanoseconds at_most, const std::function<bool()>& stop);
  /// Looks at `stop` again, wherever it is waited for.
  void recheck();

  /// Counts who uses this, from one on. When nobody does, and nothing is taken, the process leaves the share.
  /// False when it has left already.
  bool attach();
  void detach() noexcept;
  bool has_left() const;

  Log& log() noexcept { return log_; }
  const std::string& path() const noexcept { return file_->path(); }
  int descriptor() const noexcept { return file_->descriptor(); }

 private:
  bool raise(Bytes size, bool press);
  bool settle(ShareTurn& turn) const;
  void transact_or_throw(const std::function<bool(ShareTurn&)>& change);
  bool transact(const std::function<bool(ShareTurn&)>& change) noexcept;
  void adopt(const ShareRecord& mine, const ShareAnswer& answer);
  Bytes chunk() const;
  void tell_pressure();
  void tell_of_room(bool again);
  void failed(const char* why) noexcept;
  void leave() noexcept;

  const ForkGuard fork_guard_;
  const std::shared_ptr<const Clock> clock_;
  const std::unique_ptr<FileCalls> calls_;
  Log log_;

  mutable Mutex mutex_{LockRank::budget};
  Condition pressed_;
  ShareTerms terms_;
  Promises promises_;
  std::unique_ptr<ShareFile> file_;
  std::uint32_t place_ = 0;
  std::uint64_t ticket_ = 0;
  Bytes taken_;
  Bytes grant_;
  Bytes wanted_;
  Bytes usable_;  // the grant, without what it is asked for
  Bytes limit_;   // so far the grant could be raised, when the table was last looked at
  Bytes total_;
  Bytes told_;  // of what is asked, what the listeners know of
  Nanoseconds wanted_at_{0};
  Nanoseconds refused_at_{0};
  bool refused_ = false;     // somebody, since that was last told
  bool letting_go_ = false;  // of what is unused: the waker knows
  bool failing_ = false;     // the file, since that was last logged
  bool left_ = false;
  bool gone_ = false;  // the file, and that is logged
  int users_ = 1;
  std::function<void()> wake_ = [] {};
  BudgetListeners listeners_;
};

}  // namespace vmm
