// Evicts what is least likely to be used again soon, as learnt from how soon others of its kind were.
#pragma once

#include <array>
#include <list>
#include <map>
#include <optional>
#include <set>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "policy/eviction/eviction_policy.h"
#include "policy/eviction/resident_tree.h"
#include "policy/eviction/reuse_rates.h"

namespace vmm {

/// Units are of a kind by what was known at their last use: the label, its user's guess, whether a block is
/// partial, how often it was used, how many blocks were new in that turn, and how long its output was; a
/// parked sequence by its label, the guess, and the last two. A guess is not believed: it is learnt how long
/// units are idle of which the same was guessed. `ReuseRates` learns from every use how long units of each
/// kind are idle. The unit goes whose expected uses a second, times what loading a byte of it again would
/// cost, are fewest; among equals the one used longest ago. A block goes before all blocks that it follows.
///
/// The index that decides is Gittins'; that a cache should keep what is likeliest to be used again in the
/// time it takes up is also the idea of N. Beckmann, H. Chen and A. Cidon, "LHD: improving cache hit rate by
/// maximizing hit density", NSDI 2018. Nothing is scored anew at each use: units of one kind in one bin of
/// ages are in the order of their uses, so that only the first of each are compared.
class Predictive final : public EvictionPolicy {
 public:
  struct Options {
    Nanoseconds fixed{std::chrono::microseconds{10}};  // that any load takes, however small
    double bytes_per_second = 20e9;
  };
  static constexpr Nanoseconds refreshed_every{std::chrono::seconds{3}};
  /// So many ghosts, or four times as many as there were ever units at once, whichever is more.
  static constexpr std::size_t least_ghosts = 65'536;
  static constexpr std::size_t ghosts_factor = 4;

  Predictive() : Predictive(Options()) {}
  explicit Predictive(const Options& options) : options_(options) {}

  void access(UnitId unit, const UnitAccess& access) override;
  std::optional<UnitId> victim(Nanoseconds now) override;
  void evicted(UnitId unit) override;
  void forget(UnitId unit) override;
  bool holds(UnitId unit) const override { return tree_.holds(unit); }
  std::size_t ghosts() const override { return ghosts_.count(); }

 private:
  struct Bucket;
  struct Unit {
    UnitId id;
    Nanoseconds used_at{};
    std::uint64_t used = 0;  // which of all uses was its last
    std::uint64_t uses = 0;
    Bytes size{};
    ReuseRates::Category category = ReuseRates::root;
    std::size_t bin = 0;       // of its age
    Bucket* bucket = nullptr;  // in which it may be chosen: of a leaf that is held
  };
  using Units = std::list<Unit>;
  /// Units of about one size, because small ones cost more a byte.
  using BucketKey = std::tuple<ReuseRates::Category, std::size_t, int>;
  using Rank = std::tuple<double, std::uint64_t, Bucket*>;  // the score, and the use, of a bucket's first
  struct Bucket {
    ReuseRates::Category category;
    std::size_t bin;
    std::map<std::uint64_t, Unit*> units{};  // by their last uses
    std::optional<Rank> rank{};              // its entry in order_
  };

  void advance(Nanoseconds now);
  void refresh(Nanoseconds now);
  Unit& known(UnitId unit);
  void offer(UnitId unit);
  void withdraw(Unit& unit);
  void rank(Bucket& bucket);
  void drop(UnitId ghost);
  double score(const Bucket& bucket) const;

  const Options options_;
  ReuseRates rates_;
  std::optional<Nanoseconds> refreshed_at_;
  std::uint64_t accesses_ = 0;
  std::size_t most_held_ = 0;
  std::array<Units, ReuseRates::bins> by_age_;  // all that are known, the one used longest ago in front
  std::unordered_map<UnitId, Units::iterator> places_;
  ResidentTree tree_;   // of what is held
  UnitQueue<> ghosts_;  // in the order in which they were evicted
  std::map<BucketKey, Bucket> buckets_;
  std::set<Rank> order_;
};

}  // namespace vmm
