#include "simulate/vmm_memory.h"

#include <utility>

#include "base/error.h"

namespace vmm {
namespace {

Bytes extent_bytes(const VmmMemoryOptions& options, Bytes record) {
  return round_up(record * options.max_tokens.count, options.page_bytes);
}

std::uint32_t slots(const VmmMemoryOptions& options) {
  return options.places + options.places / 16 + options.cached;
}

VmmMemoryOptions completed(VmmMemoryOptions options) {
  options.world.driver.capacity = options.world.budget;
  options.world.arena_bytes = 1_GiB;
  for (Bytes record : options.records)
    options.world.arena_bytes += extent_bytes(options, record) * slots(options);
  return options;
}

}  // namespace

VmmMemory::VmmMemory(VmmMemoryOptions options)
    : options_(completed(options)), world_(options_.world), lengths_(slots(options_)) {
  for (Bytes record : options_.records) {
    auto lease = world_.pool()->reserve({.page_bytes = options_.page_bytes,
                                         .extent_bytes = extent_bytes(options_, record),
                                         .extents = slots(options_)});
    parts_.push_back({std::move(lease), 0, 1, record});
  }
  cache_ = std::make_unique<KvCache>(
      world_.pager(), parts_, slots(options_),
      KvCacheOptions{.max_tokens = options_.max_tokens, .first_tokens = options_.first_tokens});
  stream_ = world_.driver().create_stream();
  world_.pool()->mapping().warm(options_.warm, options_.page_bytes, options_.warm);
  // The engine starts before its first request, but not so early that the pager gives ready slots back.
  world_.settle(PagerOptions{}.idle_time / 2);
}

VmmMemory::~VmmMemory() {
  cache_.reset();
  parts_.clear();
}

Bytes VmmMemory::capacity() const {
  return options_.page_bytes * (options_.world.budget / options_.page_bytes);
}

Bytes VmmMemory::bytes_for(Tokens tokens) const {
  Bytes all{};
  for (Bytes record : options_.records) all += round_up(record * tokens.count, options_.page_bytes);
  return all;
}

std::uint32_t VmmMemory::open(Tokens prompt, Tokens announced) {
  return cache_->open(prompt, announced, stream_);
}

KvMemory::Opened VmmMemory::open_prompt(std::span<const Token> prompt, Tokens announced) {
  const KvCache::Opened opened = cache_->open_prompt({prompt, ""}, announced, stream_);
  lengths_[opened.slot] = opened.cached.count;
  return {opened.slot, opened.cached};
}

MemoryRange VmmMemory::tokens(const SlotPart& part, std::uint64_t place, std::uint64_t from,
                              std::uint64_t to) const {
  const Address start = part.lease->base() + part.lease->shape().extent_bytes * place;
  return {start + part.record_bytes * from, part.record_bytes * (to - from)};
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
    for (const SlotPart& part : parts_) {
      uses_.push_back(tokens(part, place, 0, to));
      if (in_new_pages) new_pages_.push_back(tokens(part, place, from, to));
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
