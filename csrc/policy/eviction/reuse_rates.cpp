#include "policy/eviction/reuse_rates.h"

#include <algorithm>
#include <cmath>

namespace vmm {
namespace {

constexpr double longest_s = 3600;

/// Where the bins begin, in seconds: a ratio of √2 apart, so that a bin says when to within a third.
const ReuseRates::PerBin& edges_s() {
  static const ReuseRates::PerBin edges = [] {
    ReuseRates::PerBin out{};
    for (std::size_t bin = 1; bin < out.size(); ++bin)
      out[bin] = std::min(longest_s, std::exp2((static_cast<double>(bin) - 1) / 2));
    return out;
  }();
  return edges;
}

/// Of each bin, from the chance to be used again in each: the best ratio of uses to seconds. A unit that is
/// used within a bin is taken to have waited for half of it.
ReuseRates::PerBin worths(const ReuseRates::PerBin& chance) {
  ReuseRates::PerBin out{};
  const ReuseRates::PerBin& edges = edges_s();
  for (std::size_t bin = 0; bin + 1 < out.size(); ++bin) {
    double still_idle = 1, uses = 0, seconds = 0;
    for (std::size_t end = bin; end + 1 < out.size(); ++end) {
      uses += still_idle * chance[end];
      seconds += still_idle * (edges[end + 1] - edges[end]) * (1 - chance[end] / 2);
      still_idle *= 1 - chance[end];
      out[bin] = std::max(out[bin], uses / seconds);
    }
  }
  return out;
}

}  // namespace

ReuseRates::ReuseRates() : nodes_(1) { refresh(); }

Nanoseconds ReuseRates::edge(std::size_t bin) {
  return std::chrono::duration_cast<Nanoseconds>(std::chrono::duration<double>(edges_s()[bin]));
}

ReuseRates::Category ReuseRates::find(std::span<const Step> path) {
  Category category = root;
  for (const Step& step : path) {
    const auto found = children_.find({category, step});
    if (found != children_.end()) {
      category = found->second;
      continue;
    }
    if (nodes_.size() == most_categories) break;
    const auto child = static_cast<Category>(nodes_.size());
    Node node = nodes_[category];  // it is worth what its parent is
    node.parent = category;
    node.entered = node.returned = {};
    nodes_.push_back(node);
    children_.emplace(std::pair(category, step), child);
    category = child;
  }
  return category;
}

void ReuseRates::entered(Category category, std::size_t bin) {
  nodes_[category].entered[bin] += 1;
  if (bin == 0 && ++uses_ >= most_uses) halve();
}

void ReuseRates::halve() {
  uses_ /= 2;
  for (Node& node : nodes_)
    for (std::size_t bin = 0; bin < bins; ++bin) {
      node.entered[bin] /= 2;
      node.returned[bin] /= 2;
    }
}

void ReuseRates::refresh() {
  std::vector<PerBin> entered(nodes_.size()), returned(nodes_.size());
  for (std::size_t i = nodes_.size(); i-- > 0;) {
    const Node& node = nodes_[i];
    for (std::size_t bin = 0; bin < bins; ++bin) {
      entered[i][bin] += node.entered[bin];
      returned[i][bin] += node.returned[bin];
      if (i == root) continue;
      entered[node.parent][bin] += entered[i][bin];
      returned[node.parent][bin] += returned[i][bin];
    }
  }
  for (std::size_t i = 0; i < nodes_.size(); ++i) learn(static_cast<Category>(i), entered[i], returned[i]);
}

void ReuseRates::learn(Category category, const PerBin& entered, const PerBin& returned) {
  Node& node = nodes_[category];
  for (std::size_t bin = 0; bin + 1 < bins; ++bin) {  // of what is older than all bins nothing is expected
    const double chance =
        category == root ? (returned[bin] + .01) / (entered[bin] + 1)
                         : (returned[bin] + prior * nodes_[node.parent].chance[bin]) / (entered[bin] + prior);
    node.chance[bin] = std::min(chance, 1.0);  // more can come back than came, since the counts were halved
  }
  node.worth = worths(node.chance);
}

}  // namespace vmm
