// Rows: the memory of one KVTensor, which has addresses for all its rows and pages only where they are
// touched.
//
// A row holds tokens, as one record of bytes each; rows lie side by side without padding. Whoever is about to
// use a part of the tensor touches or pins its bytes first, which maps their pages. Whoever needs tokens no
// more releases them; the pages that hold nothing else are unmapped when no pin and no work is on them any
// more.
#pragma once

#include <atomic>
#include <cstdint>
#include <list>
#include <memory>
#include <set>
#include <vector>

#include "base/lock.h"
#include "engine/growing.h"
#include "engine/page_set.h"
#include "engine/region.h"
#include "memory/pool.h"

namespace vmm {

class Pager;

struct RowsShape {
  std::uint64_t rows;
  Tokens tokens;  // of each row
  Bytes record_bytes;
};

/// Neighbouring rows may share a page. What has been touched stays mapped until it is released. A row is in
/// use from its floor, below which everything was released, up to its high-water mark, the end of what was
/// touched. Every method is safe from any thread. One thread must not release what another is touching; what
/// another has pinned it may.
class Rows final : public Growing {
 public:
  using Spans = std::vector<ByteRange>;  // ascending, without overlaps

  /// Keeps spans mapped while it lives, even where they are released meanwhile. It may outlive the owners.
  class Pin {
   public:
    Pin(std::shared_ptr<Rows> rows, Spans spans);
    ~Pin();
    Pin(const Pin&) = delete;
    Pin& operator=(const Pin&) = delete;

    /// Whether its end may call the driver, or wait for somebody who does.
    bool gives_back() const {
      if (rows_->pool().fork_guard().in_child()) return false;  // asking would throw, and nothing is undone
      return rows_->ended() || rows_->pool().closed();
    }

   private:
    friend class Rows;
    std::shared_ptr<Rows> rows_;
    Spans spans_;
    std::list<const Pin*>::iterator place_;
  };

  /// When the last owner lets go, everything is released. Throws InvalidArgument when the rows do not fit
  /// into the lease.
  static std::shared_ptr<Rows> make(std::shared_ptr<Pager> pager, std::shared_ptr<Lease> lease,
                                    const RowsShape& shape);
  Rows(std::shared_ptr<Pager> pager, std::shared_ptr<Lease> lease, const RowsShape& shape);  // for make()

  /// The bytes whose pages the region touches. Throws InvalidArgument when it is not inside the rows.
  Spans spans_of(const Region& region) const;
  /// Whether touch() would return at once.
  bool usable(const Spans& spans) const;
  /// Makes the spans usable and in use. Throws Closed, or what Pool::map throws; then nothing has
  /// changed.
  void touch(const Spans& spans);
  /// Does the same, and pins them.
  std::shared_ptr<Pin> pin(Spans spans);
  /// Maps tokens [0, to) of every row, which are not in use for that.
  void reserve(Tokens to);
  /// Ends the use of tokens [from, to) of every row: pages that hold nothing else in use are unmapped once no
  /// pin is on them and the work that may touch them is over.
  void release(Tokens from, Tokens to);
  /// Zeroes what is mapped of the spans, on `stream`.
  void zero_mapped(Spans spans, StreamHandle stream = {});
  /// Releases everything; from here on, other calls throw Closed. A second call does nothing.
  void end();

  /// The bytes that are mapped and in use.
  Spans in_use() const;
  /// One past the last token of the row that has been touched and not released.
  Tokens mark(std::uint64_t row) const { return {marks_.at(row).load()}; }

  const RowsShape& shape() const noexcept { return shape_; }
  const Lease& lease() const noexcept { return *lease_; }
  bool ended() const noexcept { return ended_.load(); }
  Pool& pool() const noexcept override { return lease_->pool(); }
  /// A reference that keeps the addresses reserved but does not count as an owner's.
  std::shared_ptr<Rows> observer() const;

  Ahead map_ahead(Bytes batch, Pages lookahead) override;

 private:
  void close() noexcept override;
  void require_open() const;
  Bytes row_bytes() const { return shape_.record_bytes * shape_.tokens.count; }
  ByteRange bytes_of(std::uint64_t row, Tokens from, Tokens to) const;
  std::uint64_t first_page(const ByteRange& span) const { return span.offset / page_; }
  std::uint64_t end_page(const ByteRange& span) const;
  std::vector<PageRange> pages_of(const Spans& spans) const;
  void map(const Spans& spans);
  template <class Visit>
  void for_each_row(const Spans& spans, Visit visit) const;
  void mark_used(const Spans& spans);
  void note_growth(const Spans& spans);
  void append_usable(Spans& out, const ByteRange& span) const;
  bool holds_others(std::uint64_t page, Tokens from, Tokens to) const;
  void give_back_if_closed();
  bool covers(const Spans& spans, std::uint64_t page) const;
  bool pinned(std::uint64_t page) const;
  void retire(const std::vector<std::uint64_t>& pages);
  void release_locked(Tokens from, Tokens to);
  void unpin(const Pin& pin) noexcept;

  std::shared_ptr<Pager> pager_;
  const std::shared_ptr<Lease> lease_;
  const RowsShape shape_;
  const Bytes page_;
  std::atomic<bool> ended_{false};
  PageSet usable_;  // touched or reserved, and not released since
  std::vector<std::atomic<std::uint64_t>> floors_;
  std::vector<std::atomic<std::uint64_t>> marks_;

  // One call at a time maps: one that fails ends the need for what it has raised, also for who came after it.
  Mutex keeping_{LockRank::keeping};
  mutable Mutex mutex_{LockRank::rows};  // guards what follows, and changes of usable_
  std::list<const Pin*> pins_;
  std::set<std::uint64_t> doomed_;    // released, but pinned
  std::vector<std::uint64_t> grown_;  // rows that have come into new pages since the pager looked
};

}  // namespace vmm
