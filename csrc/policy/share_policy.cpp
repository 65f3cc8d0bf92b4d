#include "policy/share_policy.h"

#include <algorithm>
#include <map>
#include <numeric>

namespace vmm {
namespace {

/// The table as it would be if everybody gave what he is asked for, and had what he wants.
class Plan {
 public:
  Plan(Bytes total, std::span<const ShareMember> members)
      : total_(total), members_(members), answers_(members.size()), served_(members.size()) {
    for (const ShareMember& member : members) levels_.push_back(member.grant);
  }

  std::vector<ShareAnswer> answers() {
    const Bytes free = saturating_sub(total_, sum()), room = saturating_sub(total_, spoken_for());
    press_for_excess();
    for (std::size_t i = 0; i < members_.size(); ++i) serve_minimum(i);
    for (std::size_t i : by_precedence()) serve_rest(i);
    for (std::size_t i = 0; i < members_.size(); ++i) {
      const Bytes grant = members_[i].grant;
      const Bytes at_least = std::max(grant, members_[i].minimum);
      // What has been asked for is not there yet.
      Bytes reach = std::min({answers_[i].reach, grant + free, at_least + room, members_[i].maximum});
      if (answers_[i].asked.count != 0) reach = grant;
      answers_[i].reach = std::max(grant, reach);
    }
    return std::move(answers_);
  }

 private:
  using Victims = std::vector<std::size_t>;

  Bytes sum() const { return std::accumulate(levels_.begin(), levels_.end(), Bytes{}); }
  /// With what is set aside for minima that nobody has asked for yet.
  Bytes spoken_for() const {
    Bytes out;
    for (std::size_t i = 0; i < levels_.size(); ++i) out += std::max(levels_[i], members_[i].minimum);
    return out;
  }
  Bytes wanted(std::size_t i) const { return std::min(members_[i].wanted, members_[i].maximum); }

  /// What whoever had the largest budget has taken with him, or someone with a lowered budget still has.
  void press_for_excess() {
    for (std::size_t i = 0; i < levels_.size(); ++i) {
      const Bytes over = saturating_sub(levels_[i], members_[i].maximum);
      levels_[i] -= over;
      answers_[i].asked += over;
    }
    press(by_priority(members_.size()), saturating_sub(sum(), total_));
  }

  void serve_minimum(std::size_t i) {
    const ShareMember& member = members_[i];
    const Bytes free = saturating_sub(total_, sum());
    answers_[i].reach = levels_[i] + std::min(free, saturating_sub(member.minimum, levels_[i]));
    const Bytes target = std::min(wanted(i), member.minimum);
    if (target <= levels_[i]) return;
    const Bytes lacking = saturating_sub(target - levels_[i], free);
    press(by_priority(i), lacking);
    levels_[i] = target;
  }

  void serve_rest(std::size_t i) {
    const ShareMember& member = members_[i];
    const Bytes base = std::max(levels_[i], member.minimum);
    const Bytes others = spoken_for() - base;
    // Who lacks a part of his minimum gets that first.
    if (answers_[i].reach >= member.minimum)
      answers_[i].reach = std::max(answers_[i].reach, saturating_sub(total_, others));
    const Bytes target = wanted(i);
    if (target <= base || answers_[i].asked.count != 0) return;
    const Bytes lacking = saturating_sub(others + target, total_);
    if (lacking.count != 0 && !press_all(i, target, lacking)) return;
    levels_[i] = target;
    served_[i] = true;
  }

  /// For a want beyond a minimum: all that it lacks, or nothing.
  bool press_all(std::size_t i, Bytes target, Bytes lacking) {
    Bytes lower, equal;
    for (std::size_t j = 0; j < members_.size(); ++j) {
      if (j == i || served_[j]) continue;
      if (members_[j].priority < members_[i].priority) lower += spare(j, {});
      if (members_[j].priority == members_[i].priority) equal += spare(j, target);
    }
    if (lower + equal < lacking) return false;
    const Bytes of_equals = saturating_sub(lacking, lower);
    press(by_priority(i, members_[i].priority), lacking - of_equals);
    Victims equals;
    for (std::size_t j = 0; j < members_.size(); ++j)
      if (j != i && !served_[j] && members_[j].priority == members_[i].priority) equals.push_back(j);
    shave(equals, of_equals, target);
    return true;
  }

  /// All but `i`, in groups of one priority below `limit`, the lowest first.
  std::vector<Victims> by_priority(std::size_t i, std::int64_t limit = INT64_MAX) const {
    std::map<std::int32_t, Victims> groups;
    for (std::size_t j = 0; j < members_.size(); ++j)
      if (j != i && !served_[j] && members_[j].priority < limit) groups[members_[j].priority].push_back(j);
    std::vector<Victims> out;
    for (auto& [priority, group] : groups) out.push_back(std::move(group));
    return out;
  }

  void press(const std::vector<Victims>& groups, Bytes lacking) {
    for (const Victims& group : groups) lacking -= shave(group, lacking, {});
  }

  /// What the member can be asked for if it is to keep `least`.
  Bytes spare(std::size_t j, Bytes least) const {
    return saturating_sub(levels_[j], std::max(least, members_[j].minimum));
  }

  /// Takes `wanted` of those who have most, evenly, down to `least` or their minima. Returns how much it was.
  Bytes shave(const Victims& group, Bytes wanted, Bytes least) {
    const auto yield = [&](Bytes down_to) {
      Bytes out;
      for (std::size_t j : group) out += spare(j, std::max(least, down_to));
      return out;
    };
    // The highest water line above which there is enough.
    std::uint64_t low = 0, high = sum().count;
    while (low < high) {
      const std::uint64_t middle = high - (high - low) / 2;
      if (yield({middle}) >= wanted)
        low = middle;
      else
        high = middle - 1;
    }
    Bytes taken;
    for (std::size_t j : group) {
      const Bytes part = std::min(spare(j, std::max(least, Bytes{low})), wanted - taken);
      levels_[j] -= part;
      answers_[j].asked += part;
      taken += part;
    }
    return taken;
  }

  std::vector<std::size_t> by_precedence() const {
    std::vector<std::size_t> order(members_.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
      const ShareMember &one = members_[a], &other = members_[b];
      if (one.priority != other.priority) return one.priority > other.priority;
      return one.grant < other.grant;
    });
    return order;
  }

  const Bytes total_;
  const std::span<const ShareMember> members_;
  std::vector<Bytes> levels_;
  std::vector<ShareAnswer> answers_;
  std::vector<bool> served_;  // beyond their minima: what they get is not asked of them
};

}  // namespace

Bytes share_total(std::span<const ShareMember> members) {
  Bytes largest, minima;
  for (const ShareMember& member : members) {
    largest = std::max(largest, member.maximum);
    minima += member.minimum;
  }
  return std::max(largest, minima);
}

std::vector<ShareAnswer> share_answers(Bytes total, std::span<const ShareMember> members) {
  return Plan(total, members).answers();
}

}  // namespace vmm
