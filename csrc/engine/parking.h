// Parking: sequences that are idle, whose memory others may have meanwhile.
//
// What is parked keeps its place and its addresses. Where memory is short its pages are *cleaned*: copied to
// a tier below the device (tiers.h), from which each can be had again. A page that is clean is needed by
// nobody: the pool takes it as it takes any surplus. Nobody maps that place after that, but what was to be
// mapped there ahead, before, may come so late. So a page that is Resident, and has been kept since it became
// so, holds what the sequence left there, and one that is not must be *loaded* before the sequence goes on.
// Until a page has been cleaned it is kept.
//
// The pager does the work, in small pieces, and threads of the tiers copy. Nobody waits for a tier but
// whoever wants a sequence back now.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <exception>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "base/lock.h"
#include "engine/growing.h"
#include "engine/parked_page.h"
#include "engine/tiers.h"
#include "policy/eviction/eviction_policy.h"
#include "policy/load_rate.h"

namespace vmm {

class Pager;

/// Whether a sequence is on the device again.
enum class Presence : std::uint8_t { coming, there, no_memory };

struct ParkingFigures {
  Bytes page_bytes;           // 0: nothing has been parked yet
  std::uint64_t parked = 0;   // sequences
  std::uint64_t dirty = 0;    // pages of what is idle that are to be copied when memory is short
  std::uint64_t cleaned = 0;  // pages, in all
  std::uint64_t loaded = 0;
  std::uint64_t lost = 0;
  std::uint64_t loads = 0;  // of sequences of which something was away
  Nanoseconds loading{};    // from when a load began until it ended, summed over these
  Nanoseconds waited{};     // of it, while somebody waited for the sequence
};

/// Safe from any thread. A sequence, or whatever else is parked as one, is a unit: it is parked, wanted back,
/// taken, and parked again.
class Parking final : public Growing {
 public:
  /// Throws InvalidArgument for a policy that is unknown.
  static std::shared_ptr<Parking> make(std::shared_ptr<Pager> pager, std::unique_ptr<Tiers> tiers,
                                       const std::string& policy);
  Parking(std::shared_ptr<Pager> pager, std::unique_ptr<Tiers> tiers,
          const std::string& policy);  // for make()

  /// Pages of this size are going to be parked. Throws as Tiers::serve.
  void serve(Bytes page_bytes);

  /// The unit's pages will be parts of what `owner` owns, which lives until no transfer touches them.
  UnitId add(std::shared_ptr<void> owner);
  /// The pages, which are kept and Resident, belong to a unit that is idle from now on. When `until` is
  /// complete nothing writes to them any more.
  void park(UnitId unit, std::vector<ParkedPage> pages, Fence until, const ParkHint& hint);
  /// The unit should be there by then. What is there by now is kept where it is `urgent`, and else goes only
  /// when others need it for what they keep. Says how far that is. `no_memory` is said once, to whom it was
  /// urgent: nothing more will come, for the unit is not wanted any more. In the same way it throws what the
  /// driver threw. Throws Closed where it is urgent and the tiers are shut.
  Presence want(UnitId unit, Nanoseconds by, bool urgent);
  /// Whether all of the unit is on the device now.
  bool there(UnitId unit);
  /// How long it takes until all of the unit is there, at the rate at which tiers were read lately: what of
  /// it is away, and what is loaded before it. None where nothing has been read yet from a tier that has
  /// some.
  std::optional<Nanoseconds> load_time(UnitId unit);
  /// Nobody wants it back any more.
  void unwant(UnitId unit);
  /// The unit's owner has kept its pages, all of which were there: it has `length` tokens, and will write to
  /// what comes after them. Copies stay of what will not be written. Returns the first token that was lost,
  /// if any was.
  std::optional<Tokens> take(UnitId unit, Tokens length);
  /// A unit that is not parked will write to what comes after its first `to` tokens.
  void cut(UnitId unit, Tokens to);

  // Units that nobody is in, but whose tokens others may begin with: *spare* ones. What of them is on the
  // device may be taken at any time: what has a copy by anybody, because it can be had again, and the rest by
  // whoever does not only guess. Where nobody has taken it for a while, it is copied and given back.

  /// The unit, which is not parked, is spare from now on. Of its pages nobody keeps any; as those of a spare
  /// unit they are needed as a guess is until they have copies, and this ends that for those that do.
  void leave(UnitId unit, std::vector<ParkedPage> pages, Fence until);
  /// From now on the spare unit is its owner's, who may do with its pages what he likes, until release() or
  /// take(). False, and nothing has changed, while a transfer touches one of them.
  bool hold(UnitId unit);
  /// It is spare again. Work until then may still read its pages.
  void release(UnitId unit, Fence until);
  /// How many of the first `length` tokens of a unit that is parked or spare can be had again: those before
  /// the first page that has no good copy and, where what is `on_device` counts, is not there, either. None
  /// of a unit that was forgotten.
  Tokens saved(UnitId unit, Tokens length, bool on_device);
  /// A spare unit, which its owner holds, is parked from now on, with so many tokens. False, and nothing has
  /// changed, where some cannot be had any more, or the tenant may not keep them.
  bool adopt(UnitId unit, Tokens length);
  /// `to`, which is new, is parked: its pages, of which none is on the device, have the copies of the first
  /// `length` tokens of `from`. False, and nothing has changed, where one of these has none.
  bool share_copies(UnitId from, Tokens length, UnitId to, std::vector<ParkedPage> pages);

  /// The unit, which is parked, is nobody's from now on, although not all of it may be there; but copies of
  /// its first `held` tokens stay, for leave(). False as of forget().
  bool wind_up(UnitId unit, Tokens held);

  /// The unit will not come back. False where transfers still touch its pages, which must be left alone
  /// until it is true: then this must be called again, unless the unit's owner ends, too.
  bool forget(UnitId unit);

  /// An epoch has ended, or memory has become less: there may be something to clean.
  void look() {
    if (any_parked_.load(std::memory_order_relaxed)) notify();
  }
  /// So many bytes are lacking. True where pages are being cleaned, or will be: then await() and try again.
  /// Else they may have been cleaned since somebody looked.
  bool make_room(Bytes wanted);
  /// Waits until something has moved, or for a moment.
  void await();
  /// Somebody has waited so long.
  void waited(Nanoseconds time);

  ParkingFigures figures();
  Tiers& tiers() noexcept { return *tiers_; }
  /// Ends the tiers: see Tiers::close.
  bool shut(Nanoseconds patience);

  Pool& pool() const noexcept override;
  /// Does a piece of what is to be done: collects, loads, cleans.
  Ahead map_ahead(Bytes batch, Pages lookahead) override;
  bool age() override;

 private:
  struct Page {
    ParkedPage at;
    TierPlace place{};
    std::uint8_t failures = 0;
    bool copied = false;  // the copy at `place` is good
    bool moving = false;
    bool away = false;     // to be loaded
    bool mapped = false;   // for that
    bool cleaned = false;  // lately: it is kept still
    bool foreign = false;  // what is there now is not the unit's: its bytes have never been there
    bool gone = false;     // of a spare unit: somebody took it before it was copied
  };
  enum class Phase : std::uint8_t { running, idle, wanted, loading, there, forgotten };
  struct Unit {
    std::shared_ptr<void> owner;
    std::vector<Page> pages{};
    Fence until{};
    Phase phase = Phase::running;
    bool spare = false;
    bool cleaning = false;  // it is among cleaning_
    bool stuck = false;     // its pages cannot be cleaned: a tier failed too often, or is full
    bool old = false;       // it is spare, and has been since age() was called
    bool urgent = false;
    bool no_memory = false;  // for a load that was urgent
    bool reads = false;      // it has read something since it was wanted
    bool mapping = false;    // the pager maps pages of it, without the lock
    std::uint32_t next = 0;  // the page to clean, or to load, next
    std::uint32_t moving = 0;
    std::uint32_t dirty = 0;  // pages without a copy
    Nanoseconds by{};
    Nanoseconds began{};
    std::uint64_t use = 0;  // of a spare unit: the last, among all of these
    std::optional<Tokens> lost{};
    std::exception_ptr failure{};  // of the driver, which ends the load
  };
  using Lock = std::unique_lock<Mutex>;
  using Units = std::map<UnitId, Unit>;
  /// What a piece of work leaves to be done.
  struct Left {
    bool more = false;     // at once
    bool later = false;    // in a moment
    bool starved = false;  // when somebody gives memory up
  };

  void close() noexcept override;
  void notify();
  Unit& unit(UnitId id) { return units_.at(id); }
  std::uint32_t label_of(const std::string& category);
  static bool mapped(const Pool::Needs& needs, const Page& page);
  static bool resident(const Pool::Needs& needs, const Page& page);
  bool away(const Unit& unit);
  std::shared_ptr<void> erase(UnitId id);
  static std::uint64_t key_of(const TierPlace& place);
  void give_back(const TierPlace& place);
  void forget_copy(Page& page);
  bool forget_copies(Unit& unit);
  void carry_copies(Unit& unit, std::vector<ParkedPage>&& pages);
  void rest(UnitId id, Unit& unit, Fence until);
  void enter_policy(UnitId id, const Unit& unit, const ParkHint& hint);
  using Ranges = Pool::Needs::Ranges;
  template <class Is>  // these are in parking_needs.h
  static Ranges ranges(const Unit& unit, Is is);
  template <class Is>
  void set_aside(const Unit& unit, Is is, Need need = Need::none);
  template <class Is>
  void set_need(const Unit& unit, Is is, Need need);
  template <class Is>
  void unmap(const Unit& unit, Is is);
  static bool every(const Page&) { return true; }
  void put_back(Unit& unit);
  void unmap_foreign(const Unit& unit);
  enum class Kept : std::uint8_t { all, some, refused };
  Kept keep_resident(Unit& unit);

  void collect();
  void written(Unit& unit, Page& page, Outcome outcome);
  void read(Unit& unit, Page& page, Outcome outcome);
  void end_of_transfer(UnitId id, Unit& unit);
  void begin_load(Unit& unit);
  static std::tuple<bool, bool, Nanoseconds> turn(const Unit& unit);
  Units::iterator next_wanted();
  void add_what_is_away(const Unit& unit, std::vector<Bytes>& by_tier) const;
  void load(Lock& lock, Bytes batch, Left& left);
  bool map_some(Lock& lock, UnitId id, Bytes batch, Left& left);
  bool await_memory(Unit& unit, Left& left);
  bool displace(const Unit& unit, Bytes lacking);
  Bytes given_up_by(const Unit& unit);
  void starve(Unit& unit, Bytes lacking, Left& left);
  static bool cleanable(const Unit& unit);
  void read_mapped(UnitId id, Unit& unit);
  void finish_load(Unit& unit);
  void give_up(Unit& unit);
  void choose_victims();
  std::optional<UnitId> next_victim();
  void choose_to_clean(UnitId id, Unit& unit);
  void leave_policy(UnitId unit);
  void clean(Left& left);
  bool clean(UnitId id, Unit& unit, Left& left);
  bool begin_to_clean(UnitId id, Unit& unit);
  bool submit(TransferKind kind, UnitId id, std::uint32_t page);
  bool take_places(const Unit& unit);
  void give_back_places();
  bool take_copies_of_running();
  bool take_copies_of_spare(const Unit& other);
  bool keep_to_clean(Unit& unit, Page& page);
  void give_up_cleaning(Unit& unit);
  bool can_clean(const Unit& unit) const;
  Bytes unsaved() const;
  Bytes in_danger(const Tenant& tenant);
  bool any_to_clean() const;
  bool hangs() const;
  void demand(Bytes wanted);
  std::uint32_t room() const { return most_in_flight_ - std::min(most_in_flight_, in_flight_); }

  const std::shared_ptr<Pager> pager_;
  const std::unique_ptr<Tiers> tiers_;
  mutable Mutex mutex_{LockRank::parking};  // guards what follows
  Condition moved_;
  std::unique_ptr<EvictionPolicy> policy_;
  std::map<std::string, std::uint32_t> labels_;
  Units units_;
  std::deque<UnitId> cleaning_;                    // chosen by the policy
  std::vector<std::shared_ptr<void>> orphans_;     // owners of units that are gone, to end without the lock
  std::vector<LoadRate> rates_;                    // by tier
  std::vector<TierPlace> places_;                  // taken, for what is cleaned next
  std::map<std::uint64_t, std::uint32_t> shared_;  // places that other pages have, too, and how many
  std::uint64_t last_unit_ = 0;
  std::uint64_t last_use_ = 0;
  Bytes page_bytes_;
  Bytes demanded_;  // to be cleaned, because somebody waits for it
  std::uint32_t in_flight_ = 0;
  std::uint32_t most_in_flight_ = 0;
  Nanoseconds moved_at_{};  // when a transfer last ended, or was first asked for
  bool shut_ = false;
  bool ageing_ = false;                  // the pager calls age()
  std::exception_ptr failure_{};         // of the driver, for the log: nobody waits for what it ended
  std::atomic<bool> any_parked_{false};  // since all were gone
  ParkingFigures figures_;
};

}  // namespace vmm
