// Sequences that share pages, in a course.
#include <algorithm>

#include "base/error.h"
#include "simulate/course.h"

namespace vmm {

/// The same as tried(), for a call that may find memory short, or open epochs of other streams in its way.
template <class Action>
bool Course::tried_beside_others(Action action) {
  const auto open = std::ranges::count_if(streams_, &Stream::open);
  try {
    return tried(action);
  } catch (const OutOfPages&) {
    ++totals_.refused;
    return false;
  } catch (const InvalidArgument&) {
    throw;
  } catch (const InvariantViolation&) {
    throw;
  } catch (const Error&) {
    if (open == 0 && std::ranges::all_of(streams_, [&](const Stream& each) {
          return world_.driver().over_at(each.handle) <= world_.now();
        }))
      throw;
    return false;
  }
}

void Course::fork(std::size_t i) {
  const std::uint64_t free = free_slots(running_[i].cache);
  if (free == 0) return;
  const auto count = static_cast<std::uint32_t>(1 + pick(std::min<std::uint64_t>(free, 3)));
  const StreamHandle stream = streams_[running_[i].stream].handle;
  finish_epoch(running_[i].stream);  // what is copied has been launched
  std::vector<std::uint32_t> made;
  if (!tried_beside_others([&] { made = cache_of(running_[i]).fork(running_[i].slot, count, stream); }))
    return;
  totals_.forks += count;
  for (std::uint32_t slot : made) {
    note_shared(running_[i]);
    Sequence child = running_[i];
    child.slot = slot;
    child.text.go_on_alone(child.length, ++sources_);
    running_.push_back(std::move(child));
  }
}

/// Others may have this sequence's whole pages, too, from now on.
void Course::note_shared(Sequence& sequence) {
  const std::vector<SlotPart>& parts = parts_of(sequence);
  sequence.shared.resize(parts.size());
  for (std::size_t p = 0; p < parts.size(); ++p) {
    const SlotPart& part = parts[p];
    const Address start = part.lease->base() + part.lease->shape().extent_bytes * part.first(sequence.slot);
    std::vector<std::uint64_t>& pages = sequence.shared[p];
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
  const bool done = tried_beside_others([&] {
    if (to <= length()) cache_of(sequence).truncate(sequence.slot, {to}, stream);
  });
  to = length();
  if (!done && to == sequence.length) return;
  sequence.length = to;
  sequence.committed = std::min(sequence.committed, to);
  sequence.text.go_on_alone(to, ++sources_);
  sequence.computed = std::min(sequence.computed, to);
  for (std::size_t p = 0; p < sequence.shared.size(); ++p) {
    std::vector<std::uint64_t>& pages = sequence.shared[p];
    pages.resize(std::min<std::size_t>(pages.size(), parts_of(sequence)[p].whole_pages({to}).count));
  }
}

/// Nobody may write to a page that others have, too. (Where the driver refuses to unmap the page's copy at
/// the address where it was made, that is still there, but nobody reads it.)
void Course::check_shared(const Sequence& sequence) {
  if (!world_.pool()->reclaiming().refused() &&
      cache_of(sequence).slots().shares_pages_beyond(sequence.slot, {sequence.length}))
    throw InvariantViolation("a page that will be written is shared");
}

}  // namespace vmm
