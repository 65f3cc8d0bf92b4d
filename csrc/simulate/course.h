// A random course of one pool in simulated time. Requests come, grow, are truncated, preempted and closed;
// driver calls fail or take long; the pager wakes up late; tenants come, share the pool, and go; idle
// sequences go to tiers, which fail, too, and come back. All of it follows from one seed, so that a failure
// can be replayed.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "engine/kv_cache.h"
#include "engine/parking.h"
#include "simulate/sim_tiers.h"
#include "simulate/world.h"

namespace vmm {

struct CoursePart {
  Bytes page_bytes = 2_MiB;
  Bytes record_bytes = 128_KiB;  // of a token in each extent: Llama-3.1-8B's
  std::uint64_t extents = 1;
  Tokens window{};
};

/// Where sequences are parked.
struct CourseTiers {
  SimTiersOptions sim{};
  std::string policy = "predictive";
  std::uint32_t parks_per_million = 0;  // of iterations, which may park a sequence
};

/// The defaults make a plain course of one cache, in which sequences come, are decoded to their end, and go.
struct CourseOptions {
  std::uint64_t seed = 0;
  std::uint32_t slots = 64;  // of each cache
  std::uint32_t streams = 1;
  Bytes budget = 40_GiB;
  std::vector<CoursePart> parts{{}};
  KvCacheOptions cache{.max_tokens = {4096}};
  std::vector<TenantTerms> tenants{};
  std::vector<std::size_t> owners{0};  // of each cache: 0 for nobody, else the number of a tenant, from 1
  bool prefixes = false;               // sequences begin with tokens of others
  std::uint32_t arrivals_per_million = 300'000;  // of iterations
  Nanoseconds longest_wake{};              // that the pager takes to wake up; 0: it always takes the same
  std::uint32_t failures_per_million = 0;  // of the driver's calls
  std::uint32_t delays_per_million = 0;
  Nanoseconds longest_delay{};
  bool plain = true;   // nobody truncates, preempts at random, calls off an announcement, lowers the budget
                       // or ends a tenant
  bool check = false;  // everything is checked after every iteration
  bool contents = false;  // the driver knows what is in its pages, and what sequences may read is compared
  std::optional<CourseTiers> tiers{};  // needs contents
};

Bytes extent_bytes(const CourseOptions& options, const CoursePart& part);
WorldOptions world_options(const CourseOptions& options);
/// Options that are all drawn from the seed.
CourseOptions drawn_options(std::uint64_t seed);

struct CourseTotals {
  std::uint64_t iterations = 0, steps = 0, opens = 0, forks = 0, attached = 0, refused = 0, preempted = 0,
                rests = 0;
  std::uint64_t tenants = 0;   // that were added
  std::uint64_t within = 0;    // steps after which a tenant kept no more than its guarantee
  std::uint64_t failures = 0;  // injected ones
  // Sequences that were parked, that came back, that began with what was in the tiers, and that lost tokens.
  std::uint64_t parked = 0, woken = 0, restored = 0, lost = 0;
  std::uint64_t tier_failures = 0;              // injected ones
  std::uint64_t pages_out = 0, pages_back = 0;  // to the tiers, and from there
  std::uint64_t pages_mapped = 0;
  Nanoseconds stalled{0};
  std::uint64_t digest = 0;  // of all times and lengths
};

class Course {
 public:
  explicit Course(CourseOptions options);
  ~Course();
  Course(const Course&) = delete;
  Course& operator=(const Course&) = delete;

  /// Runs one iteration. Throws InvariantViolation, which names the seed and the iteration, when anything is
  /// not as it should be.
  void iterate();
  /// Closes everything and gives it back, after which nothing may be left. Throws like iterate().
  void rest();
  CourseTotals totals() const;
  bool has_tiers() const { return tiers_ != nullptr; }

 private:
  /// The tokens of a sequence: of several sources, each from some token on. What two sequences have of the
  /// same sources is the same.
  struct Text {
    std::vector<std::pair<std::uint64_t, std::uint64_t>> sources = {};  // first token and number
    PrefixIndex::Token token(std::uint64_t at) const;
    void go_on_alone(std::uint64_t from, std::uint64_t source);
  };
  /// A model of what the engine knows of a sequence.
  struct Sequence {
    std::size_t cache;
    std::uint32_t slot;
    std::size_t stream;
    std::uint64_t prompt;
    std::uint64_t length = 0;
    std::uint64_t previous = 0;  // length before its last step
    std::uint64_t computed = 0;  // tokens when it last came into a new page, which moved its windows on
    // Of each extent, those of the first part first, by page: which memory others may have, too; 0: none.
    std::vector<std::vector<std::uint64_t>> shared = {};
    Text text = {};
    std::uint64_t committed = 0;  // tokens that others may begin with
    bool parked = false;
  };
  /// Memory of a sequence that ended while it was parked: kept as long as a tier copies it, and until
  /// somebody calls the cache, if that is still there.
  struct Left {
    std::optional<std::size_t> cache;
    Bytes size;
  };
  struct Stream {
    StreamHandle handle;
    bool open = false;              // its epoch
    std::vector<MemoryRange> uses;  // by the second half of the open epoch, which is not launched yet
  };
  struct Owner {
    TenantTerms terms{};
    TenantId id = Tenants::nobody;  // also while others keep too much for it to be added
  };
  struct Cache {
    std::size_t owner;
    std::vector<SlotPart> parts{};
    std::unique_ptr<KvCache> kv{};
  };
  enum class Stepped : std::uint8_t { yes, refused, failed, blocked };

  std::uint64_t pick(std::uint64_t n) { return random_() % n; }
  bool chance(std::uint32_t per_million) { return pick(1'000'000) < per_million; }
  bool sometimes(std::uint64_t one_in) { return !options_.plain && pick(one_in) == 0; }

  template <class Action>
  void guarded(Action action);
  void arrive();
  void step(std::size_t stream, std::size_t cache);
  void choose_batch(std::size_t stream, std::size_t cache);
  Stepped try_step(std::size_t stream);
  void commit(std::size_t stream, Nanoseconds called);
  void settle_for(std::span<const std::uint32_t> fitting);
  void preempt(std::size_t i);
  void finish_epoch(std::size_t stream);
  void end(std::size_t stream);
  bool close(std::size_t i);
  // course_fork.cpp
  void fork(std::size_t i);
  void truncate(std::size_t i, std::uint64_t to);
  void cut(Sequence& sequence, std::uint64_t to);
  template <class Action>
  bool tried_beside_others(std::size_t cache, Action action);
  void note_shared(Sequence& sequence);
  void cut_shared(Sequence& sequence);
  void check_shared(const Sequence& sequence);
  // course_prefix.cpp
  void open_with_text(std::size_t cache, std::uint64_t prompt, std::uint64_t announced);
  Text another_text(std::size_t cache);
  void commit_text(Sequence& sequence);
  void remember(const Sequence& sequence);
  // course_park.cpp
  void change_what_is_parked();
  void park(std::size_t i);
  void prefetch();
  void lose(std::size_t cache, const SequenceLost& error);
  std::vector<std::uint32_t> parked_among(std::span<const std::size_t> places) const;
  void note_awake(std::size_t cache, std::span<const std::uint32_t> named);
  void wake_up(Sequence& sequence);
  Tokens first_unread(const Sequence& sequence);
  void forget_unread(std::size_t cache, std::uint32_t slot);
  void give_up_prefixes(Cache& cache);
  void call(Cache& cache);
  void rest_tiers();
  Bytes parked_bytes(const Sequence& sequence) const;
  Bytes kept_at_most() const;
  Bytes kept_at_most(TenantId tenant) const;
  Bytes moving() const;
  void forget_what_has_ended();
  void check_parked(std::size_t cache);
  template <class Action>
  bool tried_to_open(Action action);
  // course_contents.cpp
  template <class Visit>
  void for_each_record(const Sequence& sequence, const SlotPart& part, std::uint64_t from, std::uint64_t to,
                       Visit visit) const;
  void write_contents(const Sequence& sequence, std::uint64_t from, std::uint64_t to);
  void check_contents(const Sequence& sequence);
  void change_a_sequence();
  void change_the_world();
  void pass_time(std::size_t stream);
  template <class Action>
  bool tried(Action action);
  std::uint64_t failures() { return world_.driver().faults().failures(); }

  // course_tenants.cpp
  void open_cache(Cache& cache);
  void begin_tenant(std::size_t owner);
  void end_tenant(std::size_t owner);
  Bytes kept(TenantId tenant) const;
  Bytes guaranteed() const;
  Bytes promised(const Owner* but = nullptr) const;
  bool may_keep(const Owner& owner, Bytes size) const;
  std::vector<MemoryRange> memory_in_use(const Owner& owner);
  void check_tenants();
  void check_guarantee(const OutOfPages& error) const;
  TenantFigures figures(const Owner& owner) const { return world_.pool()->tenancies().figures(owner.id); }
  const Owner& owner_of(std::size_t cache) const { return owners_[caches_[cache].owner]; }

  // course_check.cpp
  void check();
  void check_cache(std::size_t cache);
  void check_sequences();
  void check_refusal(const OutOfPages& error) const;
  void check_writes(std::size_t stream);
  void rest_unguarded();
  Bytes kept_for(const Sequence& sequence, std::uint64_t length) const;
  Bytes kept_by(std::size_t cache) const;
  Bytes kept() const;
  Bytes grown_by_step() const;

  // Appends the memory of tokens [from, to) in every extent of the part.
  static void append(const SlotPart& part, std::uint32_t slot, std::uint64_t from, std::uint64_t to,
                     std::vector<MemoryRange>& out);
  /// Appends what a step that begins with `before` tokens may read of the tokens before `to`.
  void append_reachable(const Sequence& sequence, std::uint64_t before, std::uint64_t to,
                        std::vector<MemoryRange>& out) const;
  std::uint64_t reach(std::uint64_t length) const { return length == 0 ? 0 : length + tail(); }
  bool comes_into_a_page(const Sequence& sequence, std::uint64_t from, std::uint64_t to) const;
  KvCache& cache_of(const Sequence& sequence) const { return *caches_[sequence.cache].kv; }
  const std::vector<SlotPart>& parts_of(const Sequence& sequence) const {
    return caches_[sequence.cache].parts;
  }
  std::uint32_t free_slots(std::size_t cache) const {
    return options_.slots - caches_[cache].kv->open_slots() - caches_[cache].kv->leaving_slots();
  }
  std::uint64_t tail() const { return options_.cache.tail.count; }
  std::uint64_t max_tokens() const { return options_.cache.max_tokens.count; }

  const CourseOptions options_;
  std::mt19937_64 random_;
  World world_;
  SimTiers* tiers_ = nullptr;  // owned by:
  std::shared_ptr<Parking> parking_;
  std::vector<Owner> owners_;  // the first is nobody
  std::vector<Cache> caches_;
  std::vector<Stream> streams_;
  std::vector<Sequence> running_;
  std::vector<std::uint64_t> preempted_;  // the lengths of sequences that are to be computed again
  std::vector<Left> left_;
  Bytes ceiling_;  // no more than this may be created: the budget, or what was taken when it was lowered
  Bytes promised_ceiling_;  // the same for what the budget has to cover for all tenants
  CourseTotals totals_;
  std::uint64_t sources_ = 0;                        // of text, so far
  std::vector<std::pair<std::size_t, Text>> texts_;  // of some sequences that have ended, and their caches
  std::size_t stepped_ = 0;                          // the cache of the next step, or of the last
  std::vector<std::size_t> batch_;                   // the next step's places in running_
  std::vector<std::int32_t> slots_, lengths_;
  std::vector<MemoryRange> new_pages_, writes_;
  std::vector<std::uint32_t> fitting_;  // what the last step said would fit, if it was refused
  bool sure_ = false;  // only its own demands can explain why the last step was refused: no call failed, and
                       // no other epoch was open
  bool undisturbed_ = false;  // no call failed in it
};

}  // namespace vmm
