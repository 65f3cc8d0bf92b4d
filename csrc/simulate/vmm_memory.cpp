#include "simulate/vmm_memory.h"

#include <utility>

#include "base/error.h"

namespace vmm {
namespace {

Bytes extent_bytes(const VmmMemoryOptions& options) {
  return round_up(options.record_bytes * options.max_tokens.count, options.page_bytes);
}

std::uint32_t slots(const VmmMemoryOptions& options) { return options.places + options.places / 16; }

VmmMemoryOptions completed(VmmMemoryOptions options) {
  options.world.driver.capacity = options.world.budget;
  options.world.arena_bytes = extent_bytes(options) * options.extents * slots(options) + 1_GiB;
  return options;
}

}  // namespace

VmmMemory::VmmMemory(VmmMemoryOptions options)
    : options_(completed(options)), world_(options_.world), lengths_(slots(options_)) {
  const std::uint64_t extents = options_.extents * slots(options_);
  lease_ = world_.pool()->reserve(
      {.page_bytes = options_.page_bytes, .extent_bytes = extent_bytes(options_), .extents = extents});
  cache_ = std::make_unique<KvCache>(
      world_.pager(), std::vector<SlotPart>{{lease_, 0, options_.extents, options_.record_bytes}},
      slots(options_),
      KvCacheOptions{.max_tokens = options_.max_tokens, .first_tokens = options_.first_tokens});
  stream_ = world_.driver().create_stream();
  world_.pool()->warm(options_.warm, options_.page_bytes, options_.warm);
  // The engine is up before its first request, but not so long that what lies ready is given back.
  world_.settle(PagerOptions{}.idle_time / 2);
}

VmmMemory::~VmmMemory() {
  cache_.reset();
  lease_.reset();
}

Bytes VmmMemory::capacity() const {
  return options_.page_bytes * (options_.world.budget / options_.page_bytes);
}

Bytes VmmMemory::bytes_for(Tokens tokens) const {
  return round_up(options_.record_bytes * tokens.count, options_.page_bytes) * options_.extents;
}

std::uint32_t VmmMemory::open(Tokens prompt, Tokens announced) {
  return cache_->open(prompt, announced, stream_);
}

MemoryRange VmmMemory::tokens(std::uint64_t extent, std::uint64_t from, std::uint64_t to) const {
  const Address start = lease_->base() + lease_->shape().extent_bytes * extent;
  return {start + options_.record_bytes * from, options_.record_bytes * (to - from)};
}

bool VmmMemory::step(std::span<const std::int32_t> places, std::span<const std::int32_t> lengths) {
  const Nanoseconds called = now();
  const std::uint64_t stalled = world_.pool()->counters().stall_ns.get();
  auto count_stalls = [&] {
    counts_.stalled +=
        Nanoseconds{static_cast<Nanoseconds::rep>(world_.pool()->counters().stall_ns.get() - stalled)};
  };
  try {
    cache_->step(places, lengths, stream_);
  } catch (const OutOfPages&) {
    count_stalls();
    return false;
  }
  count_stalls();
  uses_.clear();
  new_pages_.clear();
  for (std::size_t i = 0; i < places.size(); ++i) {
    const auto place = static_cast<std::uint64_t>(places[i]);
    const auto to = static_cast<std::uint64_t>(lengths[i]);
    const std::uint64_t from = std::exchange(lengths_[place], to);
    const bool in_new_pages = bytes_for({to}) > bytes_for({from});
    for (std::uint64_t j = place * options_.extents; j < (place + 1) * options_.extents; ++j) {
      uses_.push_back(tokens(j, 0, to));
      if (in_new_pages) new_pages_.push_back(tokens(j, from, to));
    }
  }
  const SimDriver::Touched touched = world_.driver().touch(new_pages_, called);
  counts_.stalled += touched.waited;
  counts_.pages_first_used += touched.first_use;
  counts_.pages_late += touched.late;
  return true;
}

Nanoseconds VmmMemory::run(Nanoseconds takes) {
  world_.driver().run(stream_, takes, uses_);
  return world_.driver().over_at(stream_);
}

void VmmMemory::close(std::uint32_t place) {
  cache_->close(place, stream_);
  lengths_[place] = 0;
}

KvUsage VmmMemory::usage() const {
  const PoolStats stats = world_.pool()->stats();
  return {cache_->live(), cache_->held(), stats.mapped, stats.reclaimable};
}

KvCounts VmmMemory::counts() const {
  KvCounts counts = counts_;
  const Counters& counters = world_.pool()->counters();
  counts.pages_mapped = counters.pages_mapped_ahead.get() + counters.pages_mapped_waiting.get();
  return counts;
}

}  // namespace vmm
