// Tiers in simulated time, without any memory: they know what is in their slots as far as the simulated
// driver knows what is in its pages.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "driver/sim_faults.h"
#include "engine/tiers.h"
#include "simulate/world.h"
#include "tier/slot_table.h"

namespace vmm {

struct SimTierOptions {
  const char* name = "host";
  std::uint32_t slots = 0;
  double written_bytes_per_second = 20e9;
  double read_bytes_per_second = 20e9;
  std::size_t pending = 1024;  // transfers that may be under way
};

struct SimTiersOptions {
  std::vector<SimTierOptions> tiers{};  // the fastest first
  bool write_through = false;
  SimFaultOptions writes{}, reads{};  // those that fail, and those that take long
  SimFaultOptions copies{};           // reads that find something else than was written, and say so
};

/// For one thread. Whatever touches a page while it is copied is a violation.
class SimTiers final : public Tiers {
 public:
  /// The world's driver must know contents. The world lives longer.
  SimTiers(World& world, SimTiersOptions options);

  void serve(Bytes page_bytes, const std::function<void()>& on_end) override;
  bool write_through() const noexcept override { return options_.write_through; }
  std::vector<TierPlace> take(std::uint32_t count) override;
  void give_back(const TierPlace& place) override;
  std::uint64_t free_places() const override;
  bool submit(TransferKind kind, const TierPlace& place, std::byte* memory, std::uint64_t tag) override;
  std::size_t poll(std::span<Ended> out) override;
  std::uint32_t count() const noexcept override { return static_cast<std::uint32_t>(tiers_.size()); }
  const char* name(std::uint32_t tier) const override { return options_.tiers.at(tier).name; }
  TierFigures figures(std::uint32_t tier) const override;
  /// Waits for all that is under way, however long that takes.
  bool close(Nanoseconds patience) override;

  /// Throws InvariantViolation if anybody has ever broken a rule.
  void check() const;
  /// Of all tiers: slots that are somebody's, and transfers that were submitted and not collected.
  std::uint64_t used() const;
  std::uint64_t pending() const;
  Bytes page_bytes() const { return page_bytes_; }
  /// Whether a read to that page has failed since this was last asked.
  bool take_failure(Address page) { return unread_.erase(page) != 0; }
  std::uint64_t failures() const { return writes_.failures() + reads_.failures() + copies_.failures(); }
  /// No transfer that begins now fails, or takes long, until go_on().
  void stop();
  void go_on();
  /// Slots that have failed are like new. No slot is anybody's.
  void mend();

 private:
  struct Moving {
    TransferKind kind;
    TierSlot slot;
    Address address;
    std::uint64_t tag;
    Outcome outcome;
    SimDriver::Seen seen;  // at its beginning
    Nanoseconds over_at;
  };
  /// Transfers of one direction, which follow each other.
  struct Lane {
    StreamHandle stream;
    double bytes_per_second;
    std::deque<Moving> moving{};
  };
  struct Tier {
    SlotTable table;
    std::vector<SimPage> contents;
    Lane writes, reads;
    Bytes written{}, read{};
  };

  Outcome fate(TransferKind kind);
  void finish(Tier& tier, const Moving& moving);
  void require_untouched(const Moving& moving);
  void note(const std::string& violation);
  template <class Action>
  auto noting(Action action);

  World& world_;
  const SimTiersOptions options_;
  SimFaults writes_, reads_, copies_;
  Bytes page_bytes_;
  std::function<void()> on_end_;
  std::vector<Tier> tiers_;
  std::set<Address> unread_;
  std::uint64_t garbage_ = 0;  // numbers for what a read that failed leaves
  std::string violation_;      // the first
  bool closed_ = false;
};

}  // namespace vmm
