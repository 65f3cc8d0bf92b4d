// Places in which sequences grow, counted in tokens: the same few extents for each, growing in lockstep.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "engine/growing.h"
#include "engine/slot_part.h"
#include "memory/pool.h"

namespace vmm {

class Pager;

struct SlotsOptions {
  Tokens tail{};             // past each length, mapped, too
  Tokens max_tokens{};       // 0: what there is room for
  bool look_ahead = true;    // map the pager's look-ahead beyond what is announced
  bool write_intent = true;  // what advance() makes usable will be written, or scrubbed
};

/// The length that a slot is to have.
struct SlotLength {
  std::uint32_t slot;
  Tokens length;
  Tokens computed{};  // of these; where there are windows, what they no longer reach is needed no more
};

/// Calls by the owner are serialised; the pager works beside them.
class Slots final : public Growing {
 public:
  /// Throws InvalidArgument when the slots do not fit into the leases. When the last owner lets go, the
  /// leases end there and then.
  static std::shared_ptr<Slots> make(std::shared_ptr<Pager> pager, std::vector<SlotPart> parts,
                                     std::uint32_t count, const SlotsOptions& options);
  Slots(std::shared_ptr<Pager> pager, std::vector<SlotPart> parts, std::uint32_t count,
        const SlotsOptions& options);  // for make()

  /// Makes tokens [0, length) of each of these different slots usable, all or nothing, and tells the pager
  /// about those that came into new pages. What windows have left is given up until `readers` is complete.
  /// Throws InvalidArgument past max_tokens, or what Pool::map throws.
  void advance(std::span<const SlotLength> wanted, const Fence& readers = {});
  /// Tells the pager that these lengths will be needed soon. Waits for nothing.
  void announce(std::span<const SlotLength> coming);
  void announce(std::uint32_t slot, Tokens to);
  /// A slot that nobody is in: tokens up to `to` might be needed soon. Waits for nothing. Returns how many
  /// tokens their pages will hold. Where neither this nor touch() is called for the pager's idle time,
  /// nothing is prepared any more.
  Tokens prepare(std::uint32_t slot, Tokens to);
  /// The slots are in use. True when this is news: what was prepared may be so no more.
  bool touch() noexcept { return !touched_.load(std::memory_order_relaxed) && !touched_.exchange(true); }
  /// Of `at_most`, how many tokens can be used from the slot's start without mapping anything.
  Tokens ready(std::uint32_t slot, Tokens at_most) const;
  /// Somebody is in the slot now, and will need tokens up to `announced` soon, and none that were prepared
  /// beyond.
  void take(std::uint32_t slot, Tokens announced);
  /// The longest time since the last call from an announcement until all was mapped; 0 if there was none.
  Nanoseconds take_delay() { return Nanoseconds{delay_.exchange(0)}; }
  /// Tokens from `to` on are needed no more; their pages stay mapped until memory is short and `readers` is
  /// complete. Throws InvalidArgument for more than there are, or where a window before `to` has been given
  /// up; 0 is all right.
  void truncate(std::uint32_t slot, Tokens to, const Fence& readers);
  /// Zeroes tokens [from, to) on `stream`: a write that was announced by advance() and failed.
  void scrub(std::uint32_t slot, Tokens from, Tokens to, StreamHandle stream);

  /// Bytes that advance() would have to map.
  Bytes missing(std::uint32_t slot, Tokens to) const;
  /// What advance() would take of Pool::obtainable().
  std::int64_t cost(std::uint32_t slot, Tokens to, StreamHandle stream) const;
  /// Bytes of the pages that are kept for a slot, or announced.
  Bytes held(std::uint32_t slot) const;
  /// Bytes of K and V of so many tokens, as far as windows reach.
  Bytes live(Tokens length) const;
  /// Tokens that the pages hold which were announced last.
  Tokens covered(std::uint32_t slot) const;
  /// Tokens that may be in use without another call.
  Tokens limit(std::uint32_t slot) const { return {slots_.at(slot).limit}; }
  Tokens frontier(std::uint32_t slot) const { return {slots_.at(slot).frontier}; }
  std::uint32_t count() const noexcept { return static_cast<std::uint32_t>(slots_.size()); }
  Tokens max_tokens() const noexcept { return max_tokens_; }
  bool has_windows() const noexcept { return has_windows_; }
  /// Throws InvalidArgument, naming the argument, past max_tokens.
  void check_length(const char* argument, Tokens tokens) const;
  Pool& pool() const noexcept override;
  /// Of bookkeeping, for each slot.
  static constexpr std::size_t bytes_per_slot();
  /// Work that may still use the slots' memory from when it was another's.
  Fence earlier_work() const;

  /// What is announced first, then the look-ahead.
  Ahead map_ahead(Bytes batch, Pages lookahead) override;
  /// Ends the need for what is prepared, unless the slots have been used since it was last called.
  bool age() override;

 private:
  struct Slot {
    std::uint64_t frontier = 0;               // the largest length so far
    std::uint64_t computed = 0;               // tokens, when windows were last moved on
    std::uint64_t limit = 0;                  // tokens that the kept pages hold, less the tail
    std::atomic<std::uint64_t> kept{0};       // tokens, with the tail, whose pages are kept
    std::atomic<std::uint64_t> announced{0};  // tokens, with the tail
    std::atomic<std::uint64_t> prepared{0};   // tokens, with the tail, of a slot that nobody is in
    // Under due_mutex_:
    std::uint64_t covered = 0;  // tokens that the pages of `announced` hold
    Nanoseconds asked = never;  // when what is announced and not known to be mapped was asked for
    bool due = false;           // among due_
  };
  static constexpr Nanoseconds never = Nanoseconds::min();

  void close() noexcept override;
  Tokens reach(Tokens length) const { return length.count == 0 ? length : length + tail_; }
  Tokens held_by_pages_for(Tokens tokens) const;
  void move_windows(std::uint32_t slot, Tokens computed, const Fence& readers);
  std::vector<PageRange> missing_ranges(const SlotPart& part, std::span<const SlotLength> wanted) const;
  MapResult map_parts(std::span<const SlotLength> wanted, std::size_t& done);
  void take_due();
  void put_back(bool can_be_mapped);
  bool map_wanted(std::span<const std::uint32_t> slots, Pages& at_most);
  bool map_ahead(std::span<const std::uint32_t> slots, Need need, Pages lookahead, Pages& at_most);
  std::size_t mappable(std::span<const std::uint32_t> slots, Pages at_most) const;
  void note_mapped(std::span<const std::uint32_t> slots);
  void put_due(std::uint32_t slot);
  MapResult map_what_fits(Lease& lease, std::span<const PageRange> ranges, MapOptions& options,
                          Pages& at_most);
  void set_need(std::uint32_t slot, Tokens from, Tokens to, Need need);

  std::shared_ptr<Pager> pager_;
  std::vector<SlotPart> parts_;
  const Tokens tail_;
  const bool look_ahead_;
  const bool write_intent_;
  Tokens max_tokens_;
  bool has_windows_ = false;
  std::mutex owner_mutex_;
  std::vector<Slot> slots_;
  std::vector<SlotLength> crossing_;    // scratch of advance()
  std::mutex ahead_mutex_;              // held while the pager works on it
  std::vector<std::uint32_t> at_hand_;  // what the pager works on
  mutable std::mutex due_mutex_;
  std::vector<std::uint32_t> due_;  // the pager has something to map for these. Both with room for all slots
  std::atomic<std::int64_t> delay_{0};
  std::atomic<bool> touched_{false};  // since age() was last called
  std::mutex prepared_mutex_;         // guards `prepared` and its pages' need, but for the pager's mapping
  bool ageing_ = false;               // the pager knows that something is prepared
};

constexpr std::size_t Slots::bytes_per_slot() { return sizeof(Slot) + 2 * sizeof(std::uint32_t); }

}  // namespace vmm
