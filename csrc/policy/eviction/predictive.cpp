#include "policy/eviction/predictive.h"

#include <algorithm>
#include <bit>

namespace vmm {
namespace {

/// Which question about a unit a step of its path answers.
enum class Question : std::uint8_t { label, guess, partial, uses, new_blocks, output_tokens };

/// The labels that are told apart, and numbers by their order of magnitude, so that categories stay few.
constexpr std::uint32_t most_labels = 64;
constexpr std::uint32_t most_uses_class = 15;
constexpr std::uint32_t most_magnitude = 4;
constexpr std::uint32_t most_guess_class = 12;  // from 2,048 s on

/// ⌊⌊log2 n⌋ / 2⌋, and no more than 4: 0 for n < 4, 1 for n < 16, …
std::uint32_t magnitude(std::uint64_t n) {
  const auto log2 = static_cast<std::uint32_t>(std::bit_width(std::max<std::uint64_t>(n, 1)) - 1);
  return std::min(most_magnitude, log2 / 2);
}

/// 0 for 1, 1 for 2, 2 for 3 and 4, 3 for 5 to 8, …
std::uint32_t uses_class(std::uint64_t n) {
  return std::min(most_uses_class, static_cast<std::uint32_t>(std::bit_width(n - 1)));
}

/// 0 below a second, 1 below two, 2 below four, …
std::uint32_t guess_class(Nanoseconds guess) {
  const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(guess).count();
  return std::min(most_guess_class,
                  static_cast<std::uint32_t>(std::bit_width(static_cast<std::uint64_t>(seconds))));
}

ReuseRates::Category category_of(ReuseRates& rates, const UnitAccess& access, std::uint64_t use_count) {
  std::array<ReuseRates::Step, 6> path;
  std::size_t steps = 0;
  const auto answer = [&](Question question, std::uint32_t with) {
    path[steps++] = {static_cast<std::uint8_t>(question), with};
  };
  if (access.label != 0) answer(Question::label, std::min(access.label, most_labels));
  if (access.guess.count() > 0) answer(Question::guess, guess_class(access.guess));
  if (!access.whole_sequence) {
    answer(Question::partial, access.partial);
    answer(Question::uses, uses_class(use_count));
  }
  answer(Question::new_blocks, magnitude(access.new_blocks));
  answer(Question::output_tokens, magnitude(std::uint64_t{access.output_tokens} + 1));
  return rates.find(std::span(path).first(steps));
}

}  // namespace

void Predictive::access(UnitId id, const UnitAccess& access) {
  advance(access.at);
  Unit& unit = known(id);
  if (unit.uses != 0) rates_.returned(unit.category, unit.bin);
  withdraw(unit);
  by_age_[0].splice(by_age_[0].end(), by_age_[unit.bin], places_.at(id));
  unit.used_at = access.at;
  unit.used = ++accesses_;
  unit.size = access.size;
  unit.category = category_of(rates_, access, ++unit.uses);
  unit.bin = 0;
  rates_.entered(unit.category, 0);
  tree_.used(id, access.parent);
  most_held_ = std::max(most_held_, tree_.count());
  if (const auto parent = access.parent; parent && tree_.holds(*parent) && !tree_.is_leaf(*parent))
    withdraw(*places_.at(*parent));
  offer(id);
}

std::optional<UnitId> Predictive::victim(Nanoseconds now) {
  advance(now);
  if (order_.empty()) return std::nullopt;
  return std::get<Bucket*>(*order_.begin())->units.begin()->second->id;
}

void Predictive::evicted(UnitId id) {
  if (!tree_.holds(id)) return;
  withdraw(*places_.at(id));
  const std::optional<UnitId> parent = tree_.left(id);
  if (parent) offer(*parent);
  ghosts_.push_back(id, {});
  while (ghosts_.count() > std::max(least_ghosts, ghosts_factor * most_held_)) drop(ghosts_.front().unit);
}

void Predictive::forget(UnitId id) {
  evicted(id);
  if (ghosts_.contains(id)) drop(id);
}

void Predictive::drop(UnitId ghost) {
  const auto place = places_.at(ghost);
  by_age_[place->bin].erase(place);
  places_.erase(ghost);
  ghosts_.take(ghost);
}

/// The unit, on the way to being held, with a place among those that are known.
Predictive::Unit& Predictive::known(UnitId id) {
  const auto [found, added] = places_.emplace(id, Units::iterator());
  if (added) found->second = by_age_[0].insert(by_age_[0].end(), Unit{.id = id});
  ghosts_.take(id);
  return *found->second;
}

/// Every unit whose age has passed the end of its bin goes on to the next, ghosts too: those show how long
/// others of their kind would have been idle.
void Predictive::advance(Nanoseconds now) {
  for (std::size_t bin = 1; bin < ReuseRates::bins; ++bin) {
    Units& younger = by_age_[bin - 1];
    while (!younger.empty() && now - younger.front().used_at >= ReuseRates::edge(bin)) {
      Unit& unit = younger.front();
      const bool offered = unit.bucket != nullptr;
      withdraw(unit);
      by_age_[bin].splice(by_age_[bin].end(), younger, younger.begin());
      unit.bin = bin;
      rates_.entered(unit.category, bin);
      if (offered) offer(unit.id);
    }
  }
  if (!refreshed_at_ || now - *refreshed_at_ >= refreshed_every) refresh(now);
}

void Predictive::refresh(Nanoseconds now) {
  refreshed_at_ = now;
  rates_.refresh();
  order_.clear();
  std::erase_if(buckets_, [](const auto& bucket) { return bucket.second.units.empty(); });
  for (auto& [key, bucket] : buckets_) {
    bucket.rank.reset();
    rank(bucket);
  }
}

/// From now on the unit may be chosen, if it is held and a leaf.
void Predictive::offer(UnitId id) {
  if (!tree_.holds(id) || !tree_.is_leaf(id)) return;
  Unit& unit = *places_.at(id);
  const BucketKey key{unit.category, unit.bin, std::bit_width(unit.size.count)};
  unit.bucket = &buckets_.try_emplace(key, Bucket{unit.category, unit.bin}).first->second;
  unit.bucket->units.emplace(unit.used, &unit);
  rank(*unit.bucket);
}

void Predictive::withdraw(Unit& unit) {
  if (unit.bucket == nullptr) return;
  unit.bucket->units.erase(unit.used);
  rank(*unit.bucket);
  unit.bucket = nullptr;
}

/// Puts the bucket where its first unit belongs.
void Predictive::rank(Bucket& bucket) {
  std::optional<Rank> rank;
  if (!bucket.units.empty()) rank = {score(bucket), bucket.units.begin()->first, &bucket};
  if (rank == bucket.rank) return;
  if (bucket.rank) order_.erase(*bucket.rank);
  if (rank) order_.insert(*rank);
  bucket.rank = rank;
}

double Predictive::score(const Bucket& bucket) const {
  const double bytes =
      static_cast<double>(std::max<std::uint64_t>(bucket.units.begin()->second->size.count, 1));
  const double seconds_back =
      std::chrono::duration<double>(options_.fixed).count() + bytes / options_.bytes_per_second;
  return rates_.worth(bucket.category, bucket.bin) * seconds_back / bytes;
}

}  // namespace vmm
