// Blocks: the memory of a paged engine, which says by number which blocks it uses.
//
// A block lies in each of a few stretches of a range, for example in the keys and in the values of every
// layer. Its engine keeps blocks that are in use, announces those that soon will be, and drops them. Pages
// follow: each is needed as much as the most needed block that touches it (range.h and lane.h count).
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "base/bounded_ring.h"
#include "engine/growing.h"
#include "engine/lane.h"
#include "engine/range.h"
#include "engine/scratch.h"

namespace vmm {

struct BlocksShape {
  std::vector<Bytes> starts;  // of the stretches, from the range's start on
  Bytes stride;               // of a block in each stretch: block i begins at its start + i × stride
  std::uint64_t count;
};

/// Every method is safe from any thread. Ids may be in any order and more than once in a call; to keep what
/// is kept, to announce what is announced or kept and to drop what is neither changes nothing. Methods throw
/// InvalidArgument for an id that is none, Closed and Forked, with nothing done.
class Blocks final : public Growing {
 public:
  using Ids = std::span<const std::int32_t>;

  /// Throws InvalidArgument when the blocks do not fit into the range. When the last owner lets go, all of
  /// them are dropped.
  static std::shared_ptr<Blocks> make(std::shared_ptr<Range> range, const BlocksShape& shape);
  Blocks(std::shared_ptr<Range> range, const BlocksShape& shape);  // for make()

  /// Keeps the blocks: all their pages are there when this returns, and nobody takes them. What is missing is
  /// mapped by the caller, which counts as a stall. Throws what Pool::map throws; then nothing has changed.
  void keep(Ids ids);
  /// The same if nothing needs to be mapped or waited for; else returns false, and nothing has changed.
  bool keep_if_ready(Ids ids);
  /// Keeps those whose pages are all there. Maps nothing and waits for nothing. Returns the ids that are
  /// kept.
  std::vector<std::int32_t> keep_ready(Ids ids);
  /// The pager maps the pages of these soon, where nothing that is needed more has the memory.
  void announce(Ids ids);
  /// Ends all need for these. A page that no block needs stays mapped until somebody needs its memory, who
  /// has it once `until` is complete; with `unmap` it is unmapped then.
  void drop(Ids ids, const Fence& until, bool unmap = false);
  /// For each id, whether its pages are all there.
  std::vector<std::uint8_t> ready(Ids ids);

  /// What these blocks lie in may be written until the scratch ends, although nobody keeps it: see Scratch.
  /// To keep a block there that is not ready is refused meanwhile; what is announced is mapped afterwards.
  std::shared_ptr<Scratch> scratch(Ids ids) const;

  std::uint64_t kept() const;
  /// Announced, and not kept.
  std::uint64_t announced() const;
  const std::shared_ptr<Range>& range() const noexcept { return range_; }
  Pool& pool() const noexcept override { return range_->pool(); }

  Ahead map_ahead(Bytes batch, Pages lookahead) override;

 private:
  // Bits of a block's state: those of its uses, and
  static constexpr std::uint8_t due = 4;   // the pager has something to map for it
  static constexpr std::uint8_t used = 3;  // either use
  static constexpr std::uint8_t bit(Use use) { return use == Use::kept ? 1 : 2; }

  void close() noexcept override;
  std::unique_lock<Mutex> lock() const;
  std::unique_lock<Mutex> lock(Ids ids) const;
  bool has(std::int32_t id, Use use) const { return (states_[static_cast<std::size_t>(id)] & bit(use)) != 0; }
  template <class Visit>
  void for_each_range(std::uint32_t id, Visit visit) const {
    for (const Lane& lane : lanes_) lane.for_each_range(id, visit);
  }
  bool touches_flying(Ids ids) const;
  void refuse_in_scratch(Ids ids) const;
  bool resident(Pool::Needs& needs, std::uint32_t id) const;
  void set_use(std::int32_t id, Use use, bool in) noexcept;
  void change(Ids ids, Use use, bool in);
  void revert(Use use);
  bool try_keep(Ids ids);
  void drop_locked(Ids ids, const Fence& until, bool unmap);

  // The pager's side.
  bool paused() const;
  bool take_due(Pages at_most);
  void put_back();
  bool settle();

  const std::shared_ptr<Range> range_;
  std::vector<Lane> lanes_;
  // The range's mutex guards what follows.
  std::vector<std::uint8_t> states_;
  std::uint64_t kept_ = 0;
  std::uint64_t announced_ = 0;  // and not kept
  BoundedRing<std::uint32_t> due_;
  std::vector<std::int32_t> changed_, reverted_;  // what change() has changed last, and scratch
  std::vector<PageRange> pages_;                  // those that it has changed with that
  std::vector<PageRange> ended_;                  // scratch of drop()
  // The pager's own:
  std::vector<std::uint32_t> at_hand_;
  std::vector<PageRange> ahead_;
};

}  // namespace vmm
