// Everything there is, behind one lock. It is leaked on purpose: calls come until the process is gone.
#pragma once

#include <array>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <random>
#include <set>
#include <string>
#include <utility>

#include "capture.h"
#include "faults.h"
#include "ledger.h"
#include "memory.h"
#include "streams.h"
#include "work.h"

namespace standin {

/// From the environment, VMM_STANDIN_ and the name in capitals, and from standin_set.
struct Settings {
  std::uint64_t seed = 1;
  Size capacity = Size{1} << 30;  // of each device
  Size others = 0;                // of that, what other processes have
  Size granularity = Size{2} << 20;
  int version = 13000;         // of the driver
  bool low_alignment = false;  // a reservation without alignment is aligned to 64 KiB and no better
  int devices = 2;
  int report_fd = 2;              // where misuse that aborts is told
  bool undefined_counts = false;  // misuse is counted; otherwise it aborts
  int site_depth = 2;
  std::size_t queue_limit = 1024;
  CUresult missing_result = CUDA_ERROR_NOT_FOUND;  // of cuGetProcAddress_v2 for what there is not
  bool fill = true;                                // fresh pages hold 0xFF
  std::set<std::pair<int, int>> strangers;  // (device, peer): the device cannot reach the peer's memory
  Size peer_granularity = 0;                // of every device but the first; 0: as the first's
  int rdma = 1;  // attribute 110: 0 says no; 2 says yes, but such pages cannot be opened (WSL2)
  int compute_capability = 90;
  bool posix_fd = true;        // attribute 103
  bool hang = false;           // kernels that are launched do not end before it is false again
  bool reuse_handles = false;  // of pages, events, streams: the last ended is the next given

  bool reaches(int device, int peer) const { return !strangers.contains({device, peer}); }
  Size granularity_of(int device) const {
    return device == 0 || peer_granularity == 0 ? granularity : peer_granularity;
  }
  /// False for an unknown name.
  bool set(const std::string& name, std::int64_t value);
};

struct State {
  State();
  std::mutex mutex;  // guards everything
  std::condition_variable progress;
  Settings settings;
  bool initialised = false;
  CUresult sticky = CUDA_SUCCESS;
  std::mt19937_64 random;
  Memory memory;
  Ledger ledger;
  Work work;
  Streams streams;
  Captures captures;
  Faults faults;
  std::array<Context, Memory::devices> contexts;
  std::array<Context, Memory::devices> green_contexts;  // one of each device
  std::int64_t reports = 0;
  std::string last_report;

  std::size_t pick(std::size_t count) { return static_cast<std::size_t>(random() % count); }
  bool chance(std::uint64_t in) { return random() % in == 0; }
  void seed(std::uint64_t value);
};

State& state();

/// This process was forked from one that had loaded us.
bool forked();
/// This thread runs a queued host function or kernel, which must not call CUDA.
bool& in_host_code();
/// This thread called through a function got for the per-thread default stream.
bool& per_thread_default();

/// The contexts this thread made current, the last one is.
struct ContextStack {
  std::array<Context*, 16> entries{};
  int count = 0;
  Context* current() const { return count == 0 ? nullptr : entries[static_cast<std::size_t>(count - 1)]; }
};
ContextStack& context_stack();

/// Something no correct program does. Aborts, or counts and goes on.
void report(const std::string& what, const Trace& now);
void report(const std::string& what, const Trace& now, const std::string& then_what, const Trace& then);

/// What is live, as JSON; `count` without the retained contexts.
std::string live(std::size_t& count);
std::string quoted(const std::string& text);

}  // namespace standin
