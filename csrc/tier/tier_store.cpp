#include "tier/tier_store.h"

#include <limits>
#include <string>
#include <system_error>

#include "base/error.h"
#include "tier/tier_state.h"

namespace vmm {
namespace {

constexpr const char* store_of_tier = "a tier's store";

void require_positive(std::uint64_t value, const char* name) {
  if (value == 0) throw InvalidArgument(std::string(name) + ": must be positive");
}

const TierStoreOptions& checked_options(const TierStoreOptions& options) {
  require_positive(options.slot.count, "slot");
  require_positive(options.slots, "slots");
  require_positive(options.threads, "threads");
  require_positive(options.merged, "merged");
  require_positive(options.pending, "pending");
  require_positive(options.failures, "failures");
  if (options.slots >= std::numeric_limits<std::uint32_t>::max())
    throw InvalidArgument("slots: " + std::to_string(options.slots) + " are more than a store can number");
  return options;
}

}  // namespace

TierStore::TierStore(const TierStoreOptions& options, std::shared_ptr<SlotMedium> medium,
                     std::shared_ptr<Clock> clock, std::shared_ptr<Log> log)
    : state_(std::make_shared<TierState>(checked_options(options), std::move(medium), std::move(clock),
                                         std::move(log))),
      threads_(std::make_unique<std::vector<std::thread>>()) {
  threads_->reserve(options.threads);
  try {
    for (std::size_t i = 0; i < options.threads; ++i)
      threads_->push_back(
          start_thread(options.thread_name, [state = state_, i] { state->work(i); }, options.waking));
  } catch (const std::system_error& error) {
    state_->close();
    for (std::thread& each : *threads_) each.join();  // none has had anything to do
    throw DriverError(std::string("a thread for a tier's store could not be started: ") + error.what());
  }
}

TierStore::~TierStore() {
  if (fork_guard_.in_child()) {
    static_cast<void>(threads_.release());  // the child has no such threads to wait for
    return;
  }
  close(std::chrono::seconds(5));
}

Bytes TierStore::slot_bytes() const { return state_->slot_bytes(); }

std::size_t TierStore::alignment() const { return state_->alignment(); }

std::vector<TierSlot> TierStore::take(std::uint32_t count) {
  fork_guard_.require_parent(store_of_tier);
  return state_->take(count);
}

void TierStore::give_back(TierSlot slot) {
  fork_guard_.require_parent(store_of_tier);
  state_->give_back(slot);
}

std::size_t TierStore::submit(std::span<const Transfer> transfers) {
  fork_guard_.require_parent(store_of_tier);
  return state_->submit(transfers);
}

std::size_t TierStore::poll(std::span<Completion> out) { return wait(out, Nanoseconds{0}); }

std::size_t TierStore::wait(std::span<Completion> out, Nanoseconds at_most) {
  fork_guard_.require_parent(store_of_tier);
  return state_->wait(out, at_most);
}

TierFigures TierStore::figures() const {
  fork_guard_.require_parent(store_of_tier);
  return state_->figures();
}

std::size_t TierStore::close(Nanoseconds patience) {
  fork_guard_.require_parent(store_of_tier);
  const bool first = state_->close();
  const bool ended = state_->await_workers(patience);
  if (first) {
    for (std::thread& each : *threads_)
      if (ended)
        each.join();
      else
        each.detach();
  }
  return state_->running();
}

}  // namespace vmm
