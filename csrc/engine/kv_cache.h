// KvCache: which sequence of a serving engine is in which slot, and an iteration of those that run.
//
// Sequences come (open), grow by an iteration of the engine at a time (step) and go (close). KvCache gives
// each a slot of Slots, makes the pages of its next tokens usable in step(), and tells the pager early enough
// what the iterations after that will need. A slot that is closed keeps its pages, for the next sequence that
// fits; nobody gets them while work on a stream may still read them. If it was told which tokens they are
// (commit), a sequence that begins with the same finds them there.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/lock.h"
#include "engine/cached_slots.h"
#include "engine/free_slots.h"
#include "engine/parked_page.h"
#include "engine/prompt.h"
#include "engine/sequence_lost.h"
#include "engine/slots_needs.h"
#include "policy/arrival_predictor.h"
#include "policy/attach_costs.h"
#include "policy/eviction/eviction_policy.h"
#include "policy/growth_predictor.h"
#include "policy/prefix_index.h"

namespace vmm {

class Parking;

struct KvCacheOptions {
  Tokens tail{};              // so many more are mapped past each length
  Tokens tokens_per_step{1};  // a decoding sequence grows by so many
  Tokens max_tokens{};        // that a sequence may have; 0: as many as a slot has room for
  Tokens first_tokens{};      // the most that a sequence's first step computes; 0: the cache learns it
  std::shared_ptr<Parking> parking{};  // where sequences are parked; without, none can be
};

/// What a slot is doing.
enum class SlotState : std::uint8_t {
  free,     // nobody is in it
  ready,    // nobody is in it, and it is prepared for a sequence that nobody has announced
  cached,   // nobody is in it, and a sequence may begin with the tokens that it holds
  leaving,  // its sequence has ended, but a tier still copies its pages
  parked,   // a sequence is in it that is idle
  fresh,    // a sequence is in it that has not been stepped
  running,  // a sequence is in it that has been stepped
};

/// Safe from any thread.
class KvCache {
 public:
  struct Opened {
    std::uint32_t slot;
    Tokens cached;  // so many of its tokens are there
  };

  /// Throws as Slots::make.
  KvCache(std::shared_ptr<Pager> pager, std::vector<SlotPart> parts, std::uint32_t count,
          const KvCacheOptions& options);
  /// Ends the epochs that only this cache would have ended.
  ~KvCache();
  KvCache(const KvCache&) = delete;
  KvCache& operator=(const KvCache&) = delete;

  /// Gives a sequence the free slot whose pages fit `prompt` tokens best, and announces the first `announced`
  /// tokens, or at least those of one step. Its first step will be on `stream`, so it may have a slot whose
  /// last work is there and not over. Throws InvalidArgument when every slot is taken, or past max_tokens.
  std::uint32_t open(Tokens prompt, Tokens announced, StreamHandle stream);

  /// Does the same for a sequence that begins with these tokens. Those that other sequences with the same
  /// beginning have had committed it has at once, but at least one is left to compute. Where the only slots
  /// that it could have are still read, it waits for that. Where the tokens are in a tier, it is parked, and
  /// on its way back already. It may have fewer than there are, where there is no memory for them, or where
  /// work of another stream that writes them is not over. Throws what open() and the driver throw; then
  /// nothing is open that was not before.
  Opened open_prompt(const Prompt& prompt, Tokens announced, StreamHandle stream);
  /// These are the tokens of the sequence that follow those of which it was said before, and work that
  /// computes them is under way, or done, on the streams that step it. From now on others can begin with
  /// them, in whole blocks (PrefixIndex::block_tokens). Throws InvalidArgument for a slot that is not open,
  /// and for more tokens than the sequence has.
  void commit(std::uint32_t slot, std::span<const PrefixIndex::Token> tokens);
  PrefixStats prefix_stats() const;

  /// The next iteration on `stream` begins: after it, these sequences have so many tokens each, and from here
  /// on those may be written. It closes the stream's epoch, opens the next, maps what is missing, and
  /// announces what comes due. Where work of another stream may still read a slot for the sequence before, it
  /// waits for that, without the cache's lock. Throws
  /// InvalidArgument for a slot that is not open or named twice and for a length that is less than before or
  /// past max_tokens; OutOfPages, naming which of the slots would fit; Error for a slot that an open epoch of
  /// another stream may still read for the sequence before; or what the driver throws. Then nothing has
  /// changed, but that the stream's next epoch is open.
  void step(std::span<const std::int32_t> slots, std::span<const std::int32_t> lengths, StreamHandle stream);
  /// Closes the stream's epoch and opens none: the engine goes idle.
  void end(StreamHandle stream);

  /// Tells the pager that tokens up to `to` will be needed soon: those of a prompt that waits, or of its next
  /// chunk. Waits for nothing. Throws InvalidArgument for a slot that is not open, or past max_tokens.
  void announce_tokens(std::uint32_t slot, Tokens to);
  /// Opens `count` sequences with the same tokens as that in `slot`. They share its whole pages; what lies
  /// beyond is copied on `stream`, on which the sequence was last stepped. Throws InvalidArgument for a slot
  /// that is not open, or when fewer than `count` are free; Error where work of another stream on the slot is
  /// not over; OutOfPages, MappingLimit or what the driver throws. Then nothing is open that was not before.
  std::vector<std::uint32_t> fork(std::uint32_t slot, std::uint32_t count, StreamHandle stream);
  /// Tokens from `to` on are needed no more. As in close(), their pages stay mapped, and the same work may
  /// still read them. Throws InvalidArgument for more than there are; and where layers have windows for less
  /// than before the last step, unless it is 0. Where the page of token `to` is
  /// shared, it is copied, which waits for the work that reads it; so this may throw what fork() throws. If
  /// the driver fails when the copy takes the page's place, this throws DriverError, and the sequence has no
  /// tokens any more.
  void truncate(std::uint32_t slot, Tokens to, StreamHandle stream);
  /// The slot is free. Its pages stay mapped until memory is short, and until nothing reads them any more:
  /// the epochs that it was stepped in, what is on `stream` as far as an epoch covers it (Epochs::cover), and
  /// what no step has told of (Work::outside_steps) may. What other batches and caches do may not, unless it
  /// was marked. Throws InvalidArgument for a slot that is not open.
  void close(std::uint32_t slot, StreamHandle stream);

  // Idle sequences, whose memory others may have meanwhile: see parking.h (kv_cache_park.cpp).

  /// The sequence is idle from now on. It keeps its slot and its addresses. A step that names it, and
  /// truncate() and fork(), bring it back; what its windows have left is gone then. For a sequence that has
  /// no tokens this does nothing. Throws InvalidArgument for a slot that is not open, or parked already, and
  /// where the cache has no tiers.
  void park(std::uint32_t slot, const ParkHint& hint, StreamHandle stream);
  /// These will be wanted back, the parked ones among them, by then, by the pool's clock. Waits for nothing.
  /// Throws InvalidArgument for a slot that is not open.
  void prefetch(std::span<const std::int32_t> slots, Nanoseconds by);
  /// Whether a step that names the sequence would not have to wait for its tokens.
  bool ready(std::uint32_t slot);
  /// How long that would be: see Parking::load_time.
  std::optional<Nanoseconds> load_time(std::uint32_t slot);
  /// How many of its tokens the sequence has lost for ever, because no copy was good when it came back.
  Tokens lost(std::uint32_t slot) const;

  // For whoever writes the cache down (kv_cache_save.cpp).

  /// Tokens that are found, and the salt of those who find them.
  struct Known {
    std::string salt;
    std::vector<PrefixIndex::Token> tokens;
  };
  /// The slots of parked sequences.
  std::vector<std::uint32_t> parked() const;
  /// What closed sequences have left that is found in whole blocks, the one used longest ago first.
  std::vector<Known> cached() const;
  /// What was committed of the sequence. Throws InvalidArgument for a slot that is not open.
  Known known(std::uint32_t slot) const;
  /// All tokens of the sequence are on the device until unpin(), or until somebody uses the sequence; where
  /// it is parked it stays so, and this waits until they have come. Returns how many are as they were, which
  /// are fewer where a copy was not good. Throws as step() does, but not SequenceLost.
  Tokens pin(std::uint32_t slot);
  void unpin(std::uint32_t slot);

  Tokens length(std::uint32_t slot) const;
  /// Tokens before the last step. Where layers have windows, what they did not need is gone.
  Tokens previous_length(std::uint32_t slot) const;
  std::uint32_t open_slots() const;
  /// Slots that are not free yet, although their sequences have ended: a tier still copied their pages when
  /// somebody last looked.
  std::uint32_t leaving_slots() const;
  /// Bytes of the K and V of all open sequences, as far as windows reach.
  Bytes live() const;
  /// Bytes of the pages that are kept for open sequences, or announced.
  Bytes held() const;
  /// How many iterations ahead pages are announced.
  std::uint64_t horizon() const;
  Slots& slots() noexcept { return *slots_; }
  /// Of bookkeeping, for each slot.
  static constexpr std::size_t bytes_per_slot();

 private:
  static constexpr std::uint32_t no_slot = ~std::uint32_t{0};
  /// Tokens of a prompt that a slot has.
  struct Prefix {
    std::uint32_t slot = no_slot;
    Tokens length{};
    bool whole = false;  // nobody is in the slot, and it holds nothing else that could be found
    bool away = false;   // not all of it is on the device
    Tokens coming{};     // of the prompt, in a slot whose sequence has ended but which a tier still copies
  };
  struct Parked {
    UnitId unit{};
    Tokens since{};   // tokens when it was last parked
    Tokens length{};  // tokens of which tiers know the pages
    Tokens lost{};
  };
  void require_open(std::uint32_t slot) const;
  void require_awake(std::uint32_t slot) const;
  void wake(std::unique_lock<Mutex>& lock, std::uint32_t slot);
  bool all_there(std::unique_lock<Mutex>& lock, std::span<const std::int32_t> slots);
  bool bring_back(std::unique_lock<Mutex>& lock, std::span<const std::int32_t> slots);
  bool resume(std::span<const std::int32_t> slots);
  void resume(std::uint32_t slot, std::vector<SequenceLost::Loss>& losses);
  void unwant(std::span<const std::int32_t> slots);
  [[noreturn]] void refuse_to_wake(std::span<const std::int32_t> slots);
  bool end_parked(std::uint32_t slot);
  Need need_of_left() const { return options_.parking ? Need::guess : Need::none; }  // until it has a copy
  bool tiers_know(std::uint32_t slot, Tokens length) const;
  void leave_to_tiers(std::uint32_t slot, Tokens held);
  Parked& unit_of(std::uint32_t slot);
  void forget_unit(std::uint32_t slot);
  bool hold(std::uint32_t slot);
  void release(std::uint32_t slot);
  void take_unit(std::uint32_t slot, Tokens length);
  Tokens saved(std::uint32_t slot, Tokens length, bool on_device);
  std::optional<std::uint32_t> restore(const Prefix& prefix);
  bool copies_of(const Prefix& prefix, std::uint32_t slot);
  bool await_tier(std::unique_lock<Mutex>& lock, Nanoseconds until);
  void reap();
  bool map_or_ask(std::span<const std::int32_t> slots, std::span<const std::int32_t> lengths,
                  StreamHandle stream, bool again);
  bool map_or_wait(std::unique_lock<Mutex>& lock, std::span<const std::int32_t> slots,
                   std::span<const std::int32_t> lengths, StreamHandle stream, bool again);
  bool check(std::span<const std::int32_t> slots, std::span<const std::int32_t> lengths);
  void map(std::span<const std::int32_t> slots, std::span<const std::int32_t> lengths, StreamHandle stream);
  void announce(std::span<const std::int32_t> slots);
  std::uint32_t users_bit(StreamHandle stream);
  Fence readers(std::uint32_t users, StreamHandle stream) const;
  std::uint32_t known_bit(StreamHandle stream) const;
  void require_over_elsewhere(std::uint32_t slot, StreamHandle stream) const;
  std::uint32_t slots_for_fork(StreamHandle stream, std::uint32_t& coming) const;
  void close_if_awaited(const Fence& fence, StreamHandle stream);
  void await_slots_for_fork(std::unique_lock<Mutex>& lock, std::uint32_t slot, std::uint32_t count,
                            StreamHandle stream);
  std::uint32_t fork_one(std::uint32_t slot, StreamHandle stream);
  std::uint32_t open_anew(std::unique_lock<Mutex>& lock, Tokens prompt, Tokens announced,
                          StreamHandle stream);
  bool over_elsewhere(std::uint32_t slot, StreamHandle stream) const;
  void note_copier(std::uint32_t slot, StreamHandle stream);
  void require_copied(std::uint32_t slot);
  Prefix find(const Prompt& prompt, StreamHandle stream);
  std::optional<Opened> attach(std::unique_lock<Mutex>& lock, const Prompt& prompt, StreamHandle stream);
  std::optional<bool> keep(const Prefix& prefix);
  void put_back(const Prefix& prefix);
  bool adopt(const Prefix& prefix);
  struct Target;
  std::optional<Target> target_for(const Prefix& prefix);
  bool fill(const Prefix& prefix, const Target& target, StreamHandle stream);
  void measure_copy();
  bool await_a_slot(std::unique_lock<Mutex>& lock, std::uint32_t but, StreamHandle stream);
  std::optional<std::uint32_t> slot_to_fill(Tokens length = {}, std::uint32_t but = no_slot);
  void evict(std::uint32_t slot);
  void make_way(std::unique_lock<Mutex>& lock, Tokens first, StreamHandle stream);
  bool evict_oldest(const std::function<bool(std::uint32_t)>& is_over);
  bool make_private(std::uint32_t slot, Tokens to, StreamHandle stream);
  void close_slot(std::uint32_t slot, StreamHandle stream);
  bool is_read(std::span<const std::int32_t> slots, StreamHandle stream);
  static constexpr Nanoseconds patience = std::chrono::seconds(2);  // with a tier, for a slot
  static constexpr Tokens block{PrefixIndex::block_tokens};
  /// Slots that a sequence could have.
  std::uint32_t not_open() const { return free_.count() + cached_.count(); }
  /// Nobody else can have the slot.
  bool is_taken(std::uint32_t slot) const { return states_[slot] >= SlotState::leaving; }
  /// A sequence is in it.
  bool is_open(std::uint32_t slot) const { return states_[slot] >= SlotState::parked; }
  bool is_cached(std::uint32_t slot) const { return states_[slot] == SlotState::cached; }
  bool is_awake(std::uint32_t slot) const { return states_[slot] >= SlotState::fresh; }
  std::uint32_t choose(Slots::Needs& needs, std::uint32_t prompt, StreamHandle stream);
  void prepare();
  void prepare(Slots::Needs& needs);
  Tokens first_tokens() const { return std::min(options_.tokens_per_step, slots_->max_tokens()); }

  std::shared_ptr<Slots> slots_;
  const KvCacheOptions options_;
  mutable Mutex mutex_{LockRank::kv_cache};
  GrowthPredictor predictor_;
  ArrivalPredictor arrivals_;
  FreeSlots free_;
  std::vector<std::uint32_t> ready_;  // those of the free ones that are ready
  CachedSlots cached_;                // those that nobody is in, but are not free
  PrefixIndex index_;
  AttachCosts costs_;
  PrefixStats prefixes_{};
  // By slot; what every step looks at is in arrays of its own.
  std::vector<SlotState> states_;
  std::vector<std::uint32_t> lengths_;
  std::vector<std::uint32_t> previous_;  // lengths before the last step
  std::vector<std::uint32_t> seen_;      // the number of the last step that named it
  std::vector<std::uint32_t> users_;     // a bit for each of streams_ that stepped its sequence, or copied it
  std::vector<std::uint32_t> copiers_;   // and for those among them that only copied it
  std::vector<Fence> fences_;            // the work that may read it for the last sequence, until the next
                                         // one's first step
  std::vector<StreamHandle> streams_;    // all that this cache has stepped
  std::vector<SlotLength> crossing_;     // scratch of step(): those that need pages which are not kept
  std::vector<SlotLength> coming_;       // scratch of announce()
  std::uint32_t steps_ = 0;
  std::uint32_t fresh_ = 0;  // slots that are fresh
  // Of slots that have been parked, or whose tokens are left to others:
  std::map<std::uint32_t, Parked> parked_;
  std::vector<std::uint32_t> leaving_;  // slots
};

constexpr std::size_t KvCache::bytes_per_slot() {
  return 5 * sizeof(std::uint32_t) + sizeof(SlotState) + sizeof(Fence) + FreeSlots::bytes_per_slot() +
         CachedSlots::bytes_per_slot() + PrefixIndex::bytes_per_slot() + Slots::bytes_per_slot();
}

}  // namespace vmm
