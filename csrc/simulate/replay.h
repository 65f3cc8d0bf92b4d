// A scheduler that serves a trace of requests by continuous batching: first come, first served, prompts in
// chunks, and preemption by computing again.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "simulate/kv_memory.h"
#include "simulate/request_tokens.h"
#include "simulate/roofline.h"

namespace vmm {

struct ReplayOptions {
  std::uint32_t batch_tokens = 2048;  // the most that an iteration computes
  std::uint32_t max_tokens = 0;       // of a sequence
  double watermark = 0.01;            // the part of memory that stays free when a sequence is admitted
  Nanoseconds sample_every{1'000'000'000};
};

/// The state at one moment.
struct ReplaySample {
  Nanoseconds at;
  KvUsage usage;
  std::uint32_t running, waiting;
  Nanoseconds stalled;  // so far
};

struct ReplayFigures {
  std::uint64_t completed = 0, rejected = 0, preempted = 0, iterations = 0;
  std::uint64_t prompt_tokens = 0, output_tokens = 0;  // of completed requests
  std::uint64_t computed_tokens = 0;                   // including those computed again after a preemption
  // Tokens of prompts that were looked up when they were first admitted, and of these the ones found.
  std::uint64_t looked_up_tokens = 0, found_tokens = 0;
  std::uint32_t most_running = 0;
  Nanoseconds over_at{};  // since the first request arrived
  Nanoseconds longest_stall{};
  double live_seconds = 0, held_seconds = 0, mapped_seconds = 0, reclaimable_seconds = 0;  // bytes × seconds
  double running_seconds = 0;      // sequences × seconds
  std::uint64_t bytes_opened = 0;  // of all closed sequences together: what would be mapped without reuse
  std::vector<Nanoseconds> to_first_token, to_last_token;  // of completed requests, from their arrival
  std::vector<ReplaySample> samples;
};

/// For one thread.
class Replay {
 public:
  /// `requests` are in the order of their arrival.
  Replay(std::vector<Request> requests, const Roofline& roofline, const ReplayOptions& options,
         std::shared_ptr<KvMemory> memory);

  /// Runs at most so many iterations. Returns false when every request is over.
  bool run(std::uint64_t iterations);
  const ReplayFigures& figures() const noexcept { return figures_; }
  const KvMemory& memory() const noexcept { return *memory_; }
  std::uint64_t over() const noexcept { return figures_.completed + figures_.rejected; }

 private:
  static constexpr std::uint32_t no_place = ~std::uint32_t{0};

  struct Sequence {
    std::uint32_t request;
    std::uint32_t target;      // tokens to compute before the next one is known
    std::uint32_t length = 0;  // computed, or found
    std::uint32_t generated = 0;
    std::uint32_t chunk = 0;  // tokens to compute in the iteration that is planned
    std::uint32_t announced = 0;
    std::uint32_t place = no_place;
    bool admitted = false;  // before, too
    Nanoseconds first_token{};
  };

  bool iterate();
  bool idle_until_arrival();
  void take_arrivals();
  std::size_t plan(bool may_admit);
  bool admit(std::size_t count);
  bool open(Sequence& sequence, std::uint32_t announced);
  void commit();
  bool step();
  bool step_or_preempt();
  void preempt_last();
  Nanoseconds launch();
  void foresee();
  bool announce(Sequence& sequence, std::uint32_t to);
  void wait_until(Nanoseconds over);
  void sample_tokens();
  void finish(Sequence& sequence);
  void account();

  std::vector<Request> requests_;
  const Roofline roofline_;
  const ReplayOptions options_;
  std::shared_ptr<KvMemory> memory_;
  std::size_t arrived_ = 0;  // requests
  std::deque<Sequence> waiting_;
  std::vector<Sequence> running_;  // in the order of their admission
  std::vector<std::int32_t> places_, lengths_;
  std::vector<std::int32_t> tokens_;  // scratch
  ReplayFigures figures_;
  KvUsage usage_{};
  Nanoseconds accounted_{}, next_sample_{};
};

}  // namespace vmm
