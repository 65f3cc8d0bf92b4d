// Rows of one slot that share pages: a batch whose rows are repeated, selected or put into another order.
//
// All rows have one length and grow together. Of what they share only the page that the next token goes to
// could ever be written, so that page is never shared; what of it has tokens the owner of the rows copies.
#include <algorithm>
#include <string>

#include "base/error.h"
#include "engine/slots_needs.h"

namespace vmm {
namespace {

PageRange one(PageIndex page) { return {page, Pages{1}}; }

void require_row(std::span<const std::uint32_t> rows, std::uint64_t count) {
  for (std::uint32_t row : rows)
    if (row >= count)
      throw InvalidArgument("rows has " + std::to_string(row) + "; expected less than " +
                            std::to_string(count));
}

}  // namespace

/// Throws InvalidArgument where the only slot's extents cannot belong to so many rows.
void Slots::require_rows(std::size_t rows) const {
  if (slots_.size() != 1) throw InvalidArgument("rows: expected a single slot");
  for (const SlotPart& part : parts_)
    if (rows == 0 || part.extents % rows != 0)
      throw InvalidArgument("rows: " + std::to_string(rows) + " of them do not divide the " +
                            std::to_string(part.extents) + " extents");
}

/// Notes that the pages of so many tokens are kept, and none beyond are announced.
void Slots::keep_rows(Tokens length) {
  Slot& slot = slots_.front();
  slot.kept = reach(length).count;
  limits_.front() = without_tail(room_in_pages_for(reach(length)));
  std::lock_guard lock(due_mutex_);
  slot.announced = slot.kept.load();
  covered_.front() = limits_.front();
}

void Slots::take_rows(const Slots& from, std::span<const std::uint32_t> rows, Tokens length) {
  check_length("length", length);
  require_rows(rows.size());
  if (parts_.size() != from.parts_.size() || length > from.limits_.front())
    throw InvalidArgument("from: expected the same parts, and at least so many tokens");
  std::lock_guard owner(owner_mutex_);
  const Slot& origin = from.slots_.front();
  std::vector<std::vector<PageRange>> all(parts_.size());
  try {
    for (std::size_t i = 0; i < parts_.size(); ++i) {
      const SlotPart &part = parts_[i], &other = from.parts_[i];
      const std::uint64_t each = part.extents / rows.size();
      if (part.record_bytes != other.record_bytes || part.window != other.window || other.extents % each != 0)
        throw InvalidArgument("from: expected parts that differ in the number of rows alone");
      require_row(rows, other.extents / each);
      const Pages first = other.behind_window({origin.passed}), whole = other.whole_pages(length);
      std::vector<PageRange> source, target, own;
      for (std::size_t row = 0; row < rows.size(); ++row)
        for (std::uint64_t extent = 0; extent < each; ++extent) {
          other.append_pages_of(0, rows[row] * each + extent, first, whole, source);
          part.append_pages_of(0, row * each + extent, first, whole, target);
        }
      part.append_pages(0, std::max(first, whole), part.pages_for(reach(length)), own);
      // What lies there is from when the addresses were another's.
      pool().retire(part.lease->reservation(), target, part.lease->reservation().idle_fence);
      all[i] = target;
      all[i].insert(all[i].end(), own.begin(), own.end());
      other.lease->end_without_shared();
      part.lease->end_without_shared();
      MapOptions options;
      options.source = {&other.lease->reservation(), source};
      if (!target.empty()) pool().map(part.lease->reservation(), target, options);
      pool().map(part.lease->reservation(), own, {});
    }
  } catch (...) {
    for (std::size_t i = 0; i < parts_.size(); ++i) pool().unkeep(parts_[i].lease->reservation(), all[i], {});
    throw;
  }
  slots_.front().passed = origin.passed;
  keep_rows(length);
}

Slots::RowMove Slots::prepare_move(std::span<const std::uint32_t> rows, Tokens length) {
  require_rows(rows.size());
  require_row(rows, rows.size());
  std::lock_guard owner(owner_mutex_);
  RowMove move;
  for (const SlotPart& part : parts_) {
    Reservation& reservation = part.lease->reservation();
    const std::uint64_t each = part.extents / rows.size();
    const Pages first = part.behind_window({slots_.front().passed}), whole = part.whole_pages(length);
    std::vector<PageRange> extents;
    part.append_pages(0, first, whole, extents);
    if (extents.empty()) continue;
    RowMove::Piece piece{&part, {}, {}, {}};
    std::vector<PageRange> to_park;
    {
      // 1. Which pages have other memory than they are to get?
      const Pool::Needs needs(pool());
      const auto page_of = [&](std::uint32_t row, std::uint64_t extent, std::uint64_t page) {
        return PageIndex{static_cast<std::uint32_t>(extents[row * each + extent].first.value + page)};
      };
      const auto changes = [&](std::uint32_t row, std::uint64_t extent, std::uint64_t page) {
        return rows[row] != row &&
               !needs.same_content(reservation, page_of(row, extent, page), page_of(rows[row], extent, page));
      };
      for (std::uint32_t row = 0; row < rows.size(); ++row)
        for (std::uint64_t extent = 0; extent < each && rows[row] != row; ++extent)
          for (std::uint64_t page = 0; page < extents.front().count.count; ++page) {
            if (!changes(row, extent, page)) continue;
            const bool parks = changes(rows[row], extent, page);
            (parks ? piece.parked : piece.direct).push_back(one(page_of(row, extent, page)));
            (parks ? to_park : piece.direct_sources).push_back(one(page_of(rows[row], extent, page)));
          }
    }
    if (piece.parked.empty() && piece.direct.empty()) continue;
    // 2. Hold on to memory that would lose its page before it gets another.
    if (!to_park.empty()) {
      piece.lease = pool().reserve({.page_bytes = part.page_bytes(),
                                    .extent_bytes = part.page_bytes(),
                                    .extents = to_park.size(),
                                    .kind = part.lease->shape().kind,
                                    .longest = {},
                                    .tenant = tenant().id});
      const PageRange places{{0}, {to_park.size()}};
      Reservation& park = piece.lease->reservation();
      pool().retire(park, std::span(&places, 1), park.idle_fence);
      MapOptions options;
      options.source = {&reservation, to_park};
      pool().map(park, std::span(&places, 1), options);
    }
    part.lease->end_without_shared();
    move.pieces_.push_back(std::move(piece));
  }
  return move;
}

bool Slots::finish_move(const RowMove& move, const Fence& readers) {
  std::lock_guard owner(owner_mutex_);
  bool all_there = true;
  for (const RowMove::Piece& piece : move.pieces_) {
    Reservation& reservation = piece.part->lease->reservation();
    pool().retire(reservation, piece.direct, readers);
    pool().retire(reservation, piece.parked, readers);
    MapOptions options;
    options.source = {&reservation, piece.direct_sources};
    if (!piece.direct.empty()) all_there &= map_after_all(reservation, piece.direct, options);
    if (piece.parked.empty()) continue;
    const PageRange places{{0}, {piece.parked.size()}};
    options.source = {&piece.lease->reservation(), std::span(&places, 1)};
    all_there &= map_after_all(reservation, piece.parked, options);
    pool().unkeep(piece.lease->reservation(), std::span(&places, 1), {});
  }
  return all_there;
}

}  // namespace vmm
