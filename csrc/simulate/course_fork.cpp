// Sequences that share pages, in a course.
#include <algorithm>

#include "base/error.h"
#include "simulate/course_tries.h"

namespace vmm {

void Course::fork(std::size_t i) {
  const std::uint64_t free = free_slots(running_[i].cache);
  if (free == 0) return;
  const auto count = static_cast<std::uint32_t>(1 + pick(std::min<std::uint64_t>(free, 3)));
  const StreamHandle stream = streams_[running_[i].stream].handle;
  finish_epoch(running_[i].stream);  // what is copied has been launched
  const std::vector<std::uint32_t> named = parked_among(std::span(&i, 1));
  std::vector<std::uint32_t> made;
  const bool done = tried_beside_others(
      running_[i].cache, [&] { made = cache_of(running_[i]).fork(running_[i].slot, count, stream); });
  note_awake(running_[i].cache, named);
  if (!done) return;
  totals_.forks += count;
  for (std::uint32_t slot : made) {
    note_shared(running_[i]);
    Sequence child = running_[i];
    child.slot = slot;
    forget_unread(child.cache, slot);
    child.text.go_on_alone(child.length, ++sources_);
    running_.push_back(std::move(child));
  }
}

/// Others may have this sequence's whole pages, too, from now on.
void Course::note_shared(Sequence& sequence) {
  sequence.shared.clear();
  for (const SlotPart& part : parts_of(sequence))
    for (std::uint64_t extent = 0; extent < part.extents; ++extent) {
      const std::uint64_t number = part.first(sequence.slot) + extent;
      const Address start = part.lease->base() + part.lease->shape().extent_bytes * number;
      std::vector<std::uint64_t>& pages = sequence.shared.emplace_back();
      pages.resize(part.whole_pages({sequence.length}).count);
      for (std::uint64_t page = part.behind_window({sequence.computed}).count; page < pages.size(); ++page)
        pages[page] = world_.driver().page_at(start + part.page_bytes() * page).value;
    }
}

void Course::truncate(std::size_t i, std::uint64_t to) {
  Sequence& sequence = running_[i];
  finish_epoch(sequence.stream);
  const StreamHandle stream = streams_[sequence.stream].handle;
  // If the driver fails at the last moment, the sequence has lost tokens.
  const auto length = [&] { return cache_of(sequence).length(sequence.slot).count; };
  const std::vector<std::uint32_t> named = parked_among(std::span(&i, 1));
  const bool done = tried_beside_others(sequence.cache, [&] {
    if (to <= length()) cache_of(sequence).truncate(sequence.slot, {to}, stream);
  });
  if (done || length() != sequence.length) cut(sequence, length());
  note_awake(sequence.cache, named);
}

/// The model's sequence has only so many tokens, and goes on alone.
void Course::cut(Sequence& sequence, std::uint64_t to) {
  sequence.length = to;
  sequence.committed = std::min(sequence.committed, to);
  sequence.text.go_on_alone(to, ++sources_);
  sequence.computed = std::min(sequence.computed, to);
  cut_shared(sequence);
}

/// What comes after its tokens it shares with nobody.
void Course::cut_shared(Sequence& sequence) {
  auto extent = sequence.shared.begin();
  for (const SlotPart& part : parts_of(sequence))
    for (std::uint64_t i = 0; i < part.extents && extent != sequence.shared.end(); ++i, ++extent)
      extent->resize(std::min<std::size_t>(extent->size(), part.whole_pages({sequence.length}).count));
}

/// Nobody may write to a page that others have, too. (Where the driver refuses to unmap the page's copy at
/// the address where it was made, that is still there, but nobody reads it.)
void Course::check_shared(const Sequence& sequence) {
  if (!world_.pool()->reclaiming().refused() &&
      cache_of(sequence).slots().shares_pages_beyond(sequence.slot, {sequence.length}))
    throw InvariantViolation("a page that will be written is shared");
}

}  // namespace vmm
