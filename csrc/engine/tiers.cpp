#include "engine/tiers.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <string>
#include <utility>

#include "base/error.h"
#include "base/lock.h"
#include "base/log.h"
#include "driver/slab_memory.h"
#include "memory/pool.h"
#include "tier/device_link.h"
#include "tier/host_store.h"
#include "tier/slot_file.h"

namespace vmm {

namespace {

/// Tiers that are stores of bytes.
class StoredTiers final : public Tiers {
 public:
  /// Where the pages are those of a `device`, it copies them from and to `memory`.
  StoredTiers(TiersOptions options, std::shared_ptr<Driver> device, std::shared_ptr<SlabMemory> memory,
              std::shared_ptr<SlotCalls> calls, std::shared_ptr<Clock> clock, std::shared_ptr<Log> log)
      : options_(std::move(options)),
        device_(std::move(device)),
        memory_(std::move(memory)),
        calls_(std::move(calls)),
        clock_(std::move(clock)),
        log_(std::move(log)) {
    check_host_capacity(options_.host, *memory_);
  }

  void serve(Bytes page_bytes, const std::function<void()>& on_end) override;
  bool write_through() const noexcept override { return options_.write_through; }
  std::vector<TierPlace> take(std::uint32_t count) override;
  void give_back(const TierPlace& place) override { stores_[place.tier]->give_back(place.slot); }
  std::uint64_t free_places() const override;
  bool submit(TransferKind kind, const TierPlace& place, std::byte* memory, std::uint64_t tag) override;
  std::size_t poll(std::span<Ended> out) override;
  std::uint32_t count() const noexcept override { return static_cast<std::uint32_t>(stores().size()); }
  const char* name(std::uint32_t tier) const override { return names_.at(tier); }
  TierFigures figures(std::uint32_t tier) const override { return stores_.at(tier)->figures(); }
  bool close(Nanoseconds patience) override;

 private:
  bool serves() const noexcept { return serves_.load(std::memory_order_acquire); }
  /// The fastest first; none before serve().
  std::span<const std::unique_ptr<TierStore>> stores() const noexcept {
    return serves() ? std::span(stores_) : std::span<const std::unique_ptr<TierStore>>{};
  }

  const TiersOptions options_;
  const std::shared_ptr<Driver> device_;
  const std::shared_ptr<SlabMemory> memory_;
  const std::shared_ptr<SlotCalls> calls_;
  const std::shared_ptr<Clock> clock_;
  const std::shared_ptr<Log> log_;
  Mutex serving_{LockRank::tiers};  // guards what follows until it serves; then that never changes
  Bytes page_bytes_;
  std::vector<std::unique_ptr<TierStore>> stores_;
  std::vector<const char*> names_;
  std::atomic<bool> serves_{false};
};

void StoredTiers::serve(Bytes page_bytes, const std::function<void()>& on_end) {
  const std::lock_guard lock(serving_);
  if (serves() && page_bytes != page_bytes_)
    throw InvalidArgument("page_bytes is " + std::to_string(page_bytes.count) +
                          "; the pool's tiers have pages of " + std::to_string(page_bytes_.count) +
                          " bytes, as the first cache that used them");
  if (serves()) return;
  std::vector<std::unique_ptr<TierStore>> stores;
  std::vector<const char*> names;
  if (options_.host.count != 0) {
    stores.push_back(make_host_store({.capacity = options_.host,
                                      .slot = page_bytes,
                                      .device = device_,
                                      .verify_device = options_.verify_host,
                                      .on_end = on_end},
                                     memory_, clock_, log_));
    names.push_back("host");
  }
  if (options_.file.count != 0) {
    stores.push_back(make_slot_file({.directory = options_.directory,
                                     .capacity = options_.file,
                                     .slot = page_bytes,
                                     .device = device_,
                                     .on_end = on_end},
                                    calls_, clock_, log_));
    names.push_back("file");
  }
  stores_ = std::move(stores);
  names_ = std::move(names);
  page_bytes_ = page_bytes;
  serves_.store(true, std::memory_order_release);
}

std::vector<TierPlace> StoredTiers::take(std::uint32_t count) {
  std::vector<TierPlace> out;
  for (std::uint32_t tier = 0; tier < stores().size() && out.empty(); ++tier) {
    TierStore& store = *stores_[tier];
    // Others may take some meanwhile; then the next tier will do.
    const auto some = static_cast<std::uint32_t>(std::min<std::uint64_t>(count, store.figures().free));
    if (some == 0) continue;
    for (const TierSlot& slot : store.take(some)) out.push_back({tier, slot});
  }
  return out;
}

std::uint64_t StoredTiers::free_places() const {
  std::uint64_t sum = 0;
  for (const auto& store : stores()) {
    const TierFigures figures = store->figures();
    if (!figures.read_only) sum += figures.free;
  }
  return sum;
}

bool StoredTiers::submit(TransferKind kind, const TierPlace& place, std::byte* memory, std::uint64_t tag) {
  const Transfer transfer{kind, place.slot, memory, tag};
  return stores_[place.tier]->submit(std::span(&transfer, 1)) == 1;
}

std::size_t StoredTiers::poll(std::span<Ended> out) {
  std::array<Completion, 64> ends;
  std::size_t count = 0;
  for (const auto& store : stores())
    for (;;) {
      const std::size_t got = store->poll(std::span(ends).first(std::min(ends.size(), out.size() - count)));
      for (std::size_t i = 0; i < got; ++i) out[count++] = {ends[i].transfer.tag, ends[i].outcome};
      if (got == 0) break;
    }
  return count;
}

bool StoredTiers::close(Nanoseconds patience) {
  const Nanoseconds until = clock_->now() + patience;
  bool all = true;
  for (const auto& store : stores())
    all &= store->close(std::max(until - clock_->now(), Nanoseconds{0})) == 0;
  return all;
}

}  // namespace

std::shared_ptr<Driver> copying_device(const std::shared_ptr<Pool>& pool) {
  if (pool->driver().host_copies() == nullptr) return nullptr;
  return std::shared_ptr<Driver>(pool, &pool->driver());
}

std::unique_ptr<Tiers> make_tiers(const std::shared_ptr<Pool>& pool, TiersOptions options,
                                  std::shared_ptr<SlotCalls> calls, std::shared_ptr<Clock> clock) {
  const std::shared_ptr<Log> log(pool, &pool->log());
  std::shared_ptr<Driver> device = copying_device(pool);
  std::shared_ptr<SlabMemory> memory = device ? pinned_slabs(device) : plain_slabs();
  return std::make_unique<StoredTiers>(std::move(options), std::move(device), std::move(memory),
                                       std::move(calls), std::move(clock), log);
}

}  // namespace vmm
