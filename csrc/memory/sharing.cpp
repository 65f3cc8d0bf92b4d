#include "memory/sharing.h"

#include <algorithm>
#include <utility>

#include "memory/reservation.h"

namespace vmm {
namespace {

constexpr int most = 1 + static_cast<int>(Need::kept);

/// How much a page speaks for its content; 0: not at all.
int weight(const Alias& alias) {
  const VirtualPage& page = alias.reservation->table[alias.page];
  return page.state == VirtualState::resident ? 1 + static_cast<int>(page.need) : 0;
}

/// The greatest of these stands for the content.
std::pair<int, std::uint64_t> rank(const Alias& alias) {
  return {weight(alias), alias.reservation->use_of(alias.page)};
}

}  // namespace

void Sharing::add(ContentId content, const Alias& first, const Alias& more) {
  auto entry = aliases_.find(content.value);
  if (entry == aliases_.end()) {
    std::vector<Alias> all;
    all.reserve(2);  // Nothing below fails then, or leaves an entry that nobody is in.
    all.push_back(first);
    entry = aliases_.emplace(content.value, std::move(all)).first;
    first.reservation->table.set_shared(first.page, true);
  }
  entry->second.push_back(more);
  more.reservation->table.set_shared(more.page, true);
  more.reservation->table.set_counted(more.page, false);
}

void Sharing::remove(ContentId content, const Alias& gone) {
  const auto entry = aliases_.find(content.value);
  if (entry == aliases_.end()) return;
  auto& all = entry->second;
  all.erase(std::ranges::find(all, gone));
  gone.reservation->table.set_shared(gone.page, false);
  gone.reservation->table.set_counted(gone.page, true);
  if (all.size() > 1) return recount(content);
  const Alias last = all.front();
  aliases_.erase(entry);
  last.reservation->table.set_shared(last.page, false);
  last.reservation->table.set_counted(last.page, true);
}

void Sharing::recount(ContentId content) {
  auto& all = aliases_.at(content.value);
  Alias& first = all.front();
  if (weight(first) != most) {
    // The first of those that rank highest: so whoever stood for all goes on.
    const auto best = std::ranges::max_element(all, {}, rank);
    if (best != all.begin()) {
      first.reservation->table.set_counted(first.page, false);
      std::swap(first, *best);
    }
  }
  first.reservation->table.set_counted(first.page, true);
}

}  // namespace vmm
