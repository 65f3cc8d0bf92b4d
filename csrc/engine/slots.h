// Slots: equal places in a few leases, in each of which one sequence of tokens grows.
//
// A slot is a few extents: stretches of address space that begin without pages and get them from the start
// on, as far as the sequence has tokens (slot_part.h says which bytes a token takes of each). All extents of
// a slot grow together. The owner of the slots speaks of tokens, and Slots turns them into pages of the pool.
//
// The pages at the start of a slot are needed in three ways. They are *kept* as far as the owner has advanced
// the slot: nobody takes those away. They are *announced* as far as the owner has said that it will advance
// soon: the pager maps them before. In a slot that nobody is in they may be *prepared*, for a sequence that
// may come: the pager maps them where nobody needs the memory more.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/lock.h"
#include "engine/growing.h"
#include "engine/parked_page.h"
#include "engine/slot_part.h"
#include "memory/pool.h"

namespace vmm {

class Pager;

struct SlotsOptions {
  Tokens tail{};             // so many more are mapped past each length
  Tokens max_tokens{};       // that a slot may have; 0: as many as there is room for
  bool look_ahead = true;    // the pager maps its look-ahead beyond what is announced
  bool write_intent = true;  // whoever advances a slot will write, or scrub, all its new tokens
};

/// The length that a slot is to have, and the one that it has had before.
struct SlotLength {
  std::uint32_t slot;
  Tokens length;
  Tokens before{};
};

/// Its owner makes one call at a time, but that announce() may be called beside others; the pager works
/// beside them in its own thread.
class Slots final : public Growing {
 public:
  class Needs;

  /// Throws InvalidArgument when the slots do not fit into the leases. When the last owner lets go, the
  /// leases end there and then.
  static std::shared_ptr<Slots> make(std::shared_ptr<Pager> pager, std::vector<SlotPart> parts,
                                     std::uint32_t count, const SlotsOptions& options);
  Slots(std::shared_ptr<Pager> pager, std::vector<SlotPart> parts, std::uint32_t count,
        const SlotsOptions& options);  // for make()

  /// Makes tokens [0, length) of each of these different slots usable, all or nothing, and tells the pager
  /// about those that came into new pages. The tokens from `before` on will be written. Where a layer has a
  /// window, pages that are too far behind `before` for it are given up until `readers` is complete. Throws
  /// InvalidArgument past max_tokens, or what Pool::map throws.
  void advance(std::span<const SlotLength> wanted, const Fence& readers);
  /// Tells the pager that these lengths will be needed soon. Waits for nothing.
  void announce(std::span<const SlotLength> coming);
  void announce(std::uint32_t slot, Tokens to);
  /// Tokens from `to` on are needed no more; their pages stay mapped until memory is short and `readers` is
  /// complete. Throws InvalidArgument where a window before `to` has been given up; 0 is always possible.
  void truncate(std::uint32_t slot, Tokens to, const Fence& readers);
  /// Gives `to`, a slot that nobody is in and no work uses, the first tokens of another: `from` says of which
  /// and how many, and how many of them were there before the last step. Whole pages of them are shared,
  /// unless all is to be copied; what lies beyond is copied on `stream`, into the pages of `to` that are
  /// there already and others. What is shared must be kept. Throws what Pool::map and Driver::copy throw;
  /// then `to` has no tokens.
  void fork(const SlotLength& from, std::uint32_t to, StreamHandle stream, bool share = true);
  /// How many tokens had been there before the step after which the slot's windows were last moved.
  Tokens passed(std::uint32_t slot) const { return {slots_.at(slot).passed}; }
  /// A fence over all work until now, with what fork() and make_private() copy on the stream, for where they
  /// have failed after some copies.
  Fence fence_after(StreamHandle stream);
  /// Whether the slot, cut back to `to`, would keep a page that is shared and that later tokens go to.
  bool shares_pages_beyond(std::uint32_t slot, Tokens to) const;
  /// The most tokens, but no more than `to`, to which the slot can be cut back and would keep none.
  Tokens before_shared(std::uint32_t slot, Tokens to) const;
  /// Copies such pages, on `stream`, so that token `to` may be written. When the copies are under way it asks
  /// for the fence of all who read the slot, and waits for that. Throws OutOfPages or what the driver throws,
  /// and nothing has changed. False when the driver failed after the shared pages had gone: then the slot
  /// must be cut back to 0.
  bool make_private(std::uint32_t slot, Tokens to, const std::function<Fence()>& readers,
                    StreamHandle stream);
  /// Whether the slot still has what a sequence of only `to` tokens would need, as far as windows go.
  bool can_go_back(std::uint32_t slot, Tokens to) const;
  /// Whether the windows of a sequence with `length` tokens reach no page before those of one with `longer`.
  bool reaches_no_further(Tokens length, Tokens longer) const;
  /// Nobody is in the slot any more, but a sequence that begins with its first `held` tokens may come: the
  /// pages of these are needed to the degree `need`; they stay mapped, shared ones too, until memory is short
  /// or let_go() is called. The others are given up as truncate() does.
  void set_aside(std::uint32_t slot, Tokens held, const Fence& readers, Need need);
  /// Other tokens will be written to the slot. Nobody finds those that were set aside any more.
  void let_go(std::uint32_t slot, const Fence& readers);
  /// A sequence is in the slot again, with the first `length` of the tokens that were set aside: they
  /// are kept (Needs::keep), and later ones may be written. Throws what Pool::map throws for the tail.
  void adopt(std::uint32_t slot, Tokens length, const Fence& readers);
  /// The first `length` tokens of a slot that nobody is in are not kept any more, but needed to that degree.
  void put_back(std::uint32_t slot, Tokens length, const Fence& readers, Need need);
  /// The pages that the next step of a sequence with so many tokens will read.
  std::vector<ParkedPage> pages_of(std::uint32_t slot, Tokens length) const;
  /// The sequence in the slot is parked: these pages stay kept, and all others are given up until `readers`
  /// are complete. The slot has no tokens then, until adopt() or resume().
  void park(std::uint32_t slot, Tokens length, const Fence& readers);
  /// The slot has the tokens again that it was parked with, although not all of their pages may be there:
  /// so only to end them.
  void resume(std::uint32_t slot, Tokens length);
  /// Zeroes tokens [from, to) on `stream`: a write that was announced by advance() and failed.
  void scrub(std::uint32_t slot, Tokens from, Tokens to, StreamHandle stream);

  // A slot whose extents belong to several rows of one length, each row to as many neighbouring extents
  // (slots_rows.cpp, slots_alike.cpp). It must be the only slot.

  /// Gives this slot, which has no tokens and which no work uses, in its row i the first `length` tokens of
  /// row rows[i] of `from`. Whole pages are shared. Where the rest goes there are pages, and the caller
  /// copies it. Throws InvalidArgument where the two differ in more than the number of rows, or what
  /// Pool::map throws; then it has no tokens.
  void take_rows(const Slots& from, std::span<const std::uint32_t> rows, Tokens length);
  /// Whole pages of rows on their way to other rows.
  class RowMove;
  /// Prepares that row i gets the whole pages among the first `length` tokens of row rows[i], as far as it
  /// does not share them already. Nothing has changed yet. Throws what Pool::map throws.
  RowMove prepare_move(std::span<const std::uint32_t> rows, Tokens length);
  /// Does it once `readers`, all who read these pages, are complete. False when the driver failed after pages
  /// had gone: then the slot must be cut back to 0.
  bool finish_move(const RowMove& move, const Fence& readers);
  /// As advance(), where row i is about to be written what row like[i], which is like itself, is written,
  /// too: pages that hold nothing else are mapped once.
  void advance_alike(std::span<const std::uint32_t> like, const SlotLength& wanted, const Fence& earlier);
  /// Bytes of the pages that advance_alike() would have to map, or to keep although they are there.
  Bytes not_kept_alike(std::span<const std::uint32_t> like, Tokens to) const;
  /// What it would take of what the tenant may have.
  Bytes price_alike(std::span<const std::uint32_t> like, Tokens to) const;
  /// Gives up, for others or for the system, what no window reaches any more once `before` tokens are there.
  /// The pager unmaps it when `readers` are complete; what it has not after some more tokens is unmapped
  /// here. Returns the next `before` at which there is something to do.
  Tokens slide(std::uint32_t slot, Tokens before, const Fence& readers);
  /// Of the first part.
  Tokens window() const noexcept { return parts_.front().window; }

  /// The owner uses its slots. True when nobody has since the pager ended all that was prepared, or last
  /// asked whether to: then it must be prepared anew.
  bool touch() noexcept { return !touched_.load(std::memory_order_relaxed) && !touched_.exchange(true); }
  /// The longest time since the last call from an announcement until all was mapped; 0 if there was none.
  Nanoseconds take_delay() { return Nanoseconds{delay_.exchange(0)}; }

  /// Bytes that advance() would have to map.
  Bytes missing(std::uint32_t slot, Tokens to) const;
  /// Bytes of the pages that advance() would have to map, or to keep although they are there.
  Bytes not_kept(std::uint32_t slot, Tokens to) const;
  /// What advance() would take of Reclaiming::obtainable().
  std::int64_t cost(std::uint32_t slot, Tokens to, std::optional<StreamHandle> stream) const;
  /// How much more than can be had advance() would need: nothing, where it may succeed.
  Bytes lacking(std::span<const SlotLength> wanted, StreamHandle stream) const;
  /// Bytes of the pages that are kept for a slot, or announced.
  Bytes held(std::uint32_t slot) const;
  /// Bytes of K and V of so many tokens, as far as windows reach.
  Bytes live(Tokens length) const;
  /// The length that was asked for when pages were last kept.
  Tokens kept(std::uint32_t slot) const;
  /// By slot: tokens that may be used without another call, because the kept pages hold them; and tokens that
  /// need not be announced, because the announced pages hold them.
  std::span<const Tokens> limits() const noexcept { return limits_; }
  std::span<const Tokens> covered() const noexcept { return covered_; }

  Bytes page_bytes() const { return parts_.front().page_bytes(); }
  /// Pages of a slot that hold nothing but its first `length` tokens, as far as windows reach.
  Pages whole_pages(Tokens length) const;
  /// How many of them are not mapped in this slot.
  Pages whole_pages_missing(std::uint32_t slot, Tokens length) const;
  std::uint32_t count() const noexcept { return static_cast<std::uint32_t>(slots_.size()); }
  Tokens max_tokens() const noexcept { return max_tokens_; }
  bool has_windows() const noexcept { return has_windows_; }
  /// Throws InvalidArgument, naming the argument, past max_tokens.
  void check_length(const char* argument, Tokens tokens) const;
  Pool& pool() const noexcept override;
  /// The one that all parts belong to.
  const Tenant& tenant() const noexcept { return parts_.front().lease->reservation().tenant; }
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
    std::atomic<std::uint64_t> aside{0};      // tokens that were set aside when nobody was in it any more
    std::uint64_t passed = 0;                 // tokens when what windows do not reach was last given up
    std::atomic<std::uint64_t> kept{0};       // tokens, with the tail, whose pages are kept
    std::atomic<std::uint64_t> announced{0};  // tokens, with the tail
    std::atomic<std::uint64_t> prepared{0};   // tokens, with the tail, of a slot that nobody is in
    std::uint64_t mapped_to = 0;              // tokens, with the tail: the pager has just mapped these
    // Under due_mutex_:
    Nanoseconds asked = never;  // when what is announced and not known to be mapped was asked for
    bool due = false;           // among due_
  };
  static constexpr Nanoseconds never = Nanoseconds::min();

  void close() noexcept override;
  Tokens reach(Tokens length) const { return length.count == 0 ? length : length + options_.tail; }
  Tokens without_tail(Tokens reach) const { return reach - std::min(reach, options_.tail); }
  Tokens room_in_pages_for(Tokens tokens) const;
  void set_length(std::uint32_t slot, Tokens length, Tokens before);
  void let_go_beyond(std::uint32_t slot, Tokens length, const Fence& readers);
  /// Copies of pages of one part, in a lease of their own.
  struct Copies {
    const SlotPart* part;
    std::vector<PageRange> pages;
    std::shared_ptr<Lease> lease;
    PageRange all;  // in that lease
  };
  std::vector<Copies> copy_shared(std::uint32_t slot, Tokens to, StreamHandle stream);
  std::vector<PageRange> shared_pages_of(const SlotPart& part, std::uint32_t slot, Tokens to) const;
  void share_pages(const SlotLength& from, std::uint32_t to);
  void copy_rest(const SlotLength& from, std::uint32_t to, StreamHandle stream, bool share);
  bool map_after_all(Reservation& reservation, std::span<const PageRange> pages, const MapOptions& options);
  void move_windows(std::uint32_t slot, Tokens before, const Fence& readers);
  void require_rows(std::size_t rows) const;
  std::vector<PageRange> own_pages_alike(const SlotPart& part, std::span<const std::uint32_t> like,
                                         Tokens to) const;
  void keep_rows(Tokens length);
  void call_off_ahead(std::uint32_t slot);
  Tokens next_slide(Tokens before) const;
  Tokens patience() const;
  bool finish_slide(std::uint32_t slot);
  std::vector<PageRange> missing_ranges(const SlotPart& part, std::span<const SlotLength> wanted) const;
  MapResult map_parts(std::span<const SlotLength> wanted, std::size_t& done);
  void take_due();
  void put_back(bool can_be_mapped);
  bool map_wanted(std::span<const std::uint32_t> slots, Pages& at_most);
  bool map_ahead(std::span<const std::uint32_t> slots, Need need, Pages lookahead, Pages& at_most);
  /// Tokens, with the tail, that are needed so much; for no need at all what is announced.
  static Tokens wanted_for(const Slot& slot, Need need) {
    return {need == Need::guess ? slot.prepared.load() : slot.announced.load()};
  }
  Pages not_kept(const Slot& slot, Tokens wanted) const;
  bool have_memory(std::span<const std::uint32_t> slots, Need need) const;
  std::size_t mappable(std::span<const std::uint32_t> slots, Pages at_most) const;
  void note_mapped(std::span<const std::uint32_t> slots);
  void settle();
  Tokens announce_no_more(std::uint32_t slot);
  void announce_kept(std::uint32_t slot);
  void put_due(std::uint32_t slot);

  std::shared_ptr<Pager> pager_;
  std::vector<SlotPart> parts_;
  const SlotsOptions options_;
  Tokens max_tokens_;
  bool has_windows_ = false;
  Mutex owner_mutex_{LockRank::slots_owner};
  std::vector<Slot> slots_;
  std::vector<Tokens> limits_;
  std::vector<Tokens> covered_;                   // written under due_mutex_
  std::vector<SlotLength> crossing_;              // scratch of advance()
  FairMutex ahead_mutex_{LockRank::slots_ahead};  // held while the pager works on it
  std::vector<std::uint32_t> at_hand_;            // what the pager works on
  std::optional<std::uint64_t> slid_from_;        // `passed` before pages that may be mapped yet slid out
  int slide_attempts_ = 0;                        // to have these unmapped
  mutable Mutex due_mutex_{LockRank::slots_due};
  std::vector<std::uint32_t> due_;  // the pager has something to map for these. Both with room for all slots
  std::atomic<std::int64_t> delay_{0};
  std::atomic<bool> touched_{false};  // since age() was last called
  // Guards what follows, and the slots' `prepared` with the need of its pages, but for the pager's mapping.
  Mutex prepared_mutex_{LockRank::slots_prepared};
  bool ageing_ = false;  // the pager knows that something is prepared
};

constexpr std::size_t Slots::bytes_per_slot() {
  return sizeof(Slot) + 2 * sizeof(Tokens) + 2 * sizeof(std::uint32_t);
}

}  // namespace vmm
