// How soon units of a kind were used again, and what that says of one that has been idle for a while.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <span>
#include <utility>
#include <vector>

#include "base/clock.h"

namespace vmm {

/// Ages lie in bins, and kinds of units in a tree of categories: what is said of one leans on what is known
/// of the category that it is part of, the more the less has been seen of it. In each bin a unit is used
/// again with some chance (the hazard of survival analysis), and the worth of keeping it is the best ratio of
/// expected uses to expected time on the device, over all times until which it might be kept: the index of
/// J. C. Gittins, "Bandit processes and dynamic allocation indices", J. Royal Statistical Society B 41, 1979.
class ReuseRates {
 public:
  /// Of ages: from 0, 1 s, √2 s, 2 s, …, 2,896 s and 3,600 s on.
  static constexpr std::size_t bins = 26;
  using PerBin = std::array<double, bins>;
  using Category = std::uint32_t;
  static constexpr Category root = 0;

  /// What a category is thought to have seen, of what its parent has, before it has seen anything itself.
  static constexpr double prior = 64;
  /// All counts are halved when so many uses have been counted, so that the past fades.
  static constexpr double most_uses = 1 << 22;
  /// With so many a refresh takes 2 ms. Others count for their parents.
  static constexpr std::uint32_t most_categories = 1 << 12;

  ReuseRates();

  static Nanoseconds edge(std::size_t bin);

  /// The category that this path leads to from the root: of each step, which question it answers and how.
  using Step = std::pair<std::uint8_t, std::uint32_t>;
  Category find(std::span<const Step> path);
  /// A unit of the category came into the bin, by growing older or, into bin 0, by a use.
  void entered(Category category, std::size_t bin);
  /// A unit of the category that was in the bin was used again.
  void returned(Category category, std::size_t bin) { nodes_[category].returned[bin] += 1; }
  /// Makes the worths follow the counts.
  void refresh();
  /// Uses to be expected a second from a unit of the category with an age in the bin, if it is kept for as
  /// long as is best.
  double worth(Category category, std::size_t bin) const { return nodes_[category].worth[bin]; }
  std::size_t categories() const { return nodes_.size(); }

 private:
  struct Node {
    Category parent = root;
    PerBin entered{}, returned{};  // of the units whose path ends here
    PerBin chance{};               // to be used again within the bin
    PerBin worth{};
  };

  void learn(Category category, const PerBin& entered, const PerBin& returned);
  void halve();

  std::vector<Node> nodes_;  // parents before children
  std::map<std::pair<Category, Step>, Category> children_;
  double uses_ = 0;
};

}  // namespace vmm
