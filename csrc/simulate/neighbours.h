// Three engines on one device, in simulated time: one with a steady load, one that is idle and then gets many
// requests at once, and one that takes whatever it can get. Each has a cache of its own, over one pool; with
// `isolated` each is a tenant.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "engine/kv_cache.h"
#include "simulate/world.h"

namespace vmm {

struct NeighboursOptions {
  std::uint64_t seed = 0;
  bool isolated = true;
  bool check = false;  // everything is checked after every iteration
};

/// What came of one engine.
struct NeighbourFigures {
  std::string name;
  Bytes guaranteed;
  std::uint64_t steps = 0;
  std::uint64_t refused = 0;     // steps
  std::uint64_t violations = 0;  // of these, steps after which it would have kept no more than its guarantee
  std::uint64_t preempted = 0;
  std::uint64_t completed = 0;      // sequences
  std::uint64_t useful_tokens = 0;  // of completed sequences
  // How long it took until it had new pages, within its guarantee, from when a step first asked for them.
  std::vector<Nanoseconds> to_guarantee{};
};

class Neighbours {
 public:
  static constexpr std::size_t count = 3;

  explicit Neighbours(const NeighboursOptions& options);
  ~Neighbours();
  Neighbours(const Neighbours&) = delete;
  Neighbours& operator=(const Neighbours&) = delete;

  /// One iteration of every engine. Throws InvariantViolation where anything is not as it should be.
  void iterate();
  Nanoseconds now() const { return world_.now(); }
  std::vector<NeighbourFigures> figures() const;
  std::uint64_t pages_zeroed() const { return world_.pool()->counters().pages_zeroed.get(); }

 private:
  struct Sequence {
    std::uint32_t prompt, target;  // tokens
    std::uint32_t length = 0;
    std::int32_t slot = -1;
  };
  struct Engine {
    NeighbourFigures figures;
    std::shared_ptr<Lease> lease;
    std::unique_ptr<KvCache> cache;
    StreamHandle stream{};
    TenantId tenant = Tenants::nobody;
    std::vector<Sequence> running;
    std::deque<Sequence> waiting{};
    std::uint64_t rests = 0;  // iterations in which it admits nobody, after a refusal
    Nanoseconds asked{};      // when it first asked for what it has not got yet
    bool asks = false;
  };

  std::uint64_t pick(std::uint64_t n) { return random_() % n; }
  void open_engine(std::size_t number);
  Sequence draw();
  void arrive(std::size_t number);
  void admit(Engine& engine, bool announced);
  void step(Engine& engine);
  bool try_step(Engine& engine, const std::vector<std::size_t>& batch, std::vector<std::uint32_t>& fitting);
  void refused(Engine& engine, bool promised, const std::vector<std::uint32_t>& fitting);
  void preempt_last(Engine& engine);
  void finish(Engine& engine);
  void check() const;

  const NeighboursOptions options_;
  std::mt19937_64 random_;
  World world_;
  std::array<Engine, count> engines_;
  std::uint64_t iterations_ = 0;
};

}  // namespace vmm
