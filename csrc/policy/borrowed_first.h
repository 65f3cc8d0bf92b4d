// In which order tenants give up memory: what is borrowed first.
#pragma once

#include <algorithm>
#include <cstdint>
#include <tuple>
#include <utility>
#include <vector>

#include "policy/victim_policy.h"

namespace vmm {

/// What tenants hold beyond their guarantees goes before all other memory. Of that, as everywhere, what is
/// needed least goes first, and of what is needed alike that of the tenant with the lowest priority, then of
/// the one that has borrowed most. Within one tenant VictimPolicy decides. Pure.
class BorrowedFirst {
 public:
  /// Pages worth at least `wanted`, or all there are, that are needed less than `whose`.
  static std::vector<Victim> choose(const Snapshot& snapshot, Bytes wanted, Need whose) {
    if (snapshot.owners.size() < 2) return VictimPolicy{}.choose(snapshot, wanted, whose);
    BorrowedFirst chosen(snapshot, wanted);
    for (const bool borrowed : {true, false}) {
      chosen.take(borrowed,
                  [](const Snapshot& shown, Bytes most) { return VictimPolicy::idle(shown, most); });
      for (Need need : reclaimable_needs)
        if (need < whose)
          chosen.take(borrowed, [&](const Snapshot& shown, Bytes most) {
            return VictimPolicy::leased(shown, need, most);
          });
    }
    return std::move(chosen.victims_);
  }

 private:
  BorrowedFirst(const Snapshot& snapshot, Bytes wanted)
      : snapshot_(snapshot), lacking_(wanted), taken_(snapshot.holdings.size()) {
    for (std::size_t i = 0; i < snapshot.owners.size(); ++i) {
      borrowed_.push_back(snapshot.owners[i].borrowed);
      turns_.push_back(i);
    }
    std::ranges::sort(turns_, {}, [&](std::size_t i) {
      const Owner& owner = snapshot.owners[i];
      return std::tuple(owner.priority, ~owner.borrowed.count, i);
    });
  }

  /// Each owner in its turn gives what `choose` takes of it; of what is borrowed no more than it has
  /// borrowed.
  template <class Choose>
  void take(bool borrowed, Choose choose) {
    for (std::size_t owner : turns_) {
      const Bytes most = borrowed ? std::min(lacking_, borrowed_[owner]) : lacking_;
      if (most.count == 0) continue;
      std::vector<std::size_t> places;
      for (Victim& victim : choose(only(owner, places), most)) {
        victim.holding = places[victim.holding];
        const Bytes size = snapshot_.holdings[victim.holding].page_bytes * victim.pages.size();
        lacking_ = saturating_sub(lacking_, size);
        borrowed_[owner] = saturating_sub(borrowed_[owner], size);
        add(std::move(victim));
      }
    }
  }

  /// What one owner holds and has not given up yet. `places` are where its holdings are in the snapshot.
  Snapshot only(std::size_t owner, std::vector<std::size_t>& places) const {
    Snapshot shown;
    shown.reclaimable = snapshot_.reclaimable;
    for (std::size_t i = 0; i < snapshot_.holdings.size(); ++i) {
      if (snapshot_.holdings[i].owner != owner) continue;
      places.push_back(i);
      Holding& holding = shown.holdings.emplace_back(snapshot_.holdings[i]);
      if (taken_[i].empty()) continue;
      holding.over = [this, i](PageIndex page) {
        return !std::ranges::binary_search(taken_[i], page) && snapshot_.holdings[i].over(page);
      };
    }
    return shown;
  }

  /// The victims of one holding are one, because one driver call unmaps neighbours.
  void add(Victim victim) {
    std::vector<PageIndex>& pages = taken_[victim.holding];
    pages.insert(pages.end(), victim.pages.begin(), victim.pages.end());
    std::ranges::sort(pages);
    const auto found = std::ranges::find(victims_, victim.holding, &Victim::holding);
    if (found == victims_.end())
      victims_.push_back(std::move(victim));
    else
      found->pages = pages;
  }

  const Snapshot& snapshot_;
  Bytes lacking_;
  std::vector<std::vector<PageIndex>> taken_;  // by holding
  std::vector<Bytes> borrowed_;                // by owner, and not given up yet
  std::vector<std::size_t> turns_;
  std::vector<Victim> victims_;
};

}  // namespace vmm
