// A cache whose sequences begin with what others have computed, and what each token's bytes must be.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/error.h"
#include "engine/kv_cache.h"
#include "engine/pager_thread.h"
#include "engine/parking.h"
#include "sharing_fixture.h"

namespace vmm {

using TokenList = std::vector<PrefixIndex::Token>;

/// A driver that lets the test do something before it maps, or unmaps, so many pages.
class HookedMaps final : public DriverDecorator {
 public:
  using Hook = std::function<void(std::size_t pages)>;
  HookedMaps(std::unique_ptr<Driver> inner, Hook before_map, Hook before_unmap = {})
      : DriverDecorator(std::shared_ptr<Driver>(std::move(inner))),
        before_map_(std::move(before_map)),
        before_unmap_(std::move(before_unmap)) {}
  void map(std::span<const PageMapping> pages) override {
    if (before_map_) before_map_(pages.size());
    inner().map(pages);
  }
  void unmap(std::span<const PageMapping> pages, std::size_t& done) override {
    if (before_unmap_) before_unmap_(pages.size());
    inner().unmap(pages, done);
  }

 private:
  const Hook before_map_, before_unmap_;
};

/// Mapping takes time, and nothing else does.
inline std::unique_ptr<Driver> with_slow_maps(std::unique_ptr<Driver> inner, ManualClock& clock) {
  return std::make_unique<HookedMaps>(std::move(inner), [&clock](std::size_t pages) {
    clock.advance(Nanoseconds{static_cast<std::int64_t>(1'000 * pages)});
  });
}

struct PrefixOptions {
  Bytes budget = 16_MiB;
  Bytes limit{};        // of the tenant whose cache it is; 0: of the default tenant, who has none
  Bytes record{1'024};  // 64 tokens a page
  std::uint32_t slots = 4;
  std::uint64_t extents = 1;  // of each slot in each lease
  std::size_t leases = 1;
  Tokens window{};  // of the first lease's layers
  Tokens tail{};
  bool slow_maps = false;  // then copies are cheaper
  HookedMaps::Hook before_map = {}, before_unmap = {};
  Bytes host{}, file{};  // tiers, where sequences can be parked
  std::string policy = "predictive";
  bool write_through = false;
  std::shared_ptr<SlotCalls> calls = std::make_shared<SlotCalls>();  // of the file
};

/// Where pages move while the test waits: a pager's thread, and time that goes on.
class Background {
 public:
  Background(std::shared_ptr<Pager> pager, ManualClock& clock)
      : pager_(std::move(pager)), ticks_([this, &clock] {
          while (!stop_) {
            clock.advance(std::chrono::microseconds(100));
            std::this_thread::sleep_for(std::chrono::microseconds(100));
          }
        }) {}
  ~Background() {
    stop_ = true;
    ticks_.join();
  }
  Background(const Background&) = delete;
  Background& operator=(const Background&) = delete;

 private:
  PagerThread pager_;
  std::atomic<bool> stop_{false};
  std::thread ticks_;
};

/// Numbers that nobody else begins with.
inline TokenList tokens_from(PrefixIndex::Token first, std::size_t count) {
  TokenList out(count);
  for (std::size_t i = 0; i < count; ++i) out[i] = first + static_cast<PrefixIndex::Token>(i);
  return out;
}
inline TokenList joined(TokenList head, const TokenList& tail) {
  head.insert(head.end(), tail.begin(), tail.end());
  return head;
}
inline TokenList first_of(const TokenList& all, std::size_t count) {
  return {all.begin(), all.begin() + static_cast<std::ptrdiff_t>(count)};
}

struct Sequence {
  std::uint32_t slot;
  TokenList tokens;  // those that it has computed, or found
  std::uint64_t cached = 0;
  bool restored = false;  // what is cached may be in a tier still
};

/// The K and V of a token depend on all tokens before it, as in a model.
struct PrefixCache : TestPool {
  explicit PrefixCache(const PrefixOptions& options_ = {})
      : TestPool(options_.budget, nullptr, wrap(options_)), options(options_) {
    std::vector<SlotPart> parts;
    TenantId tenant = Tenants::nobody;
    if (options.limit.count != 0) tenant = pool->tenancies().add({"limited", {}, options.limit, 0});
    for (std::size_t i = 0; i < options.leases; ++i) {
      leases.push_back(pool->reserve({.page_bytes = 64_KiB,
                                      .extent_bytes = 1_MiB,
                                      .extents = options.slots * options.extents,
                                      .tenant = tenant}));
      parts.push_back({leases[i], 0, options.extents, options.record, i == 0 ? options.window : Tokens{}});
    }
    if (options.host.count + options.file.count != 0) {
      auto tiers = make_tiers(pool, TiersOptions{options.host, "/tmp", options.file, options.write_through},
                              options.calls, clock);
      parking = Parking::make(pager, std::move(tiers), options.policy);
      background = std::make_unique<Background>(pager, *clock);
    }
    cache = std::make_unique<KvCache>(pager, parts, options.slots,
                                      KvCacheOptions{.tail = options.tail, .parking = parking});
  }
  ~PrefixCache() {
    cache.reset();
    parking.reset();
    background.reset();
    leases.clear();
    finish_work();
    require_nothing_left(*this);
  }
  PrefixCache(const PrefixCache&) = delete;
  PrefixCache& operator=(const PrefixCache&) = delete;

  static WrapDriver wrap(const PrefixOptions& options) {
    if (options.slow_maps) return with_slow_maps;
    if (!options.before_map && !options.before_unmap) return {};
    return [=](std::unique_ptr<Driver> inner, ManualClock&) {
      return std::make_unique<HookedMaps>(std::move(inner), options.before_map, options.before_unmap);
    };
  }
  unsigned char* token(std::size_t lease, std::uint64_t extent, std::uint64_t at) const {
    return bytes_at(*leases[lease], 1_MiB * extent + options.record * at);
  }
  /// Visits the bytes of tokens [from, to), and what they must be, with that of which lease they are.
  template <class Visit>
  void each_record(const Sequence& of, std::uint64_t from, std::uint64_t to, Visit visit) const {
    std::uint32_t state = 17;
    for (std::uint64_t at = 0; at < to; ++at) {
      state = (state ^ static_cast<std::uint32_t>(of.tokens[at])) * 2'654'435'761U + 12'345U;
      if (at < from) continue;
      for (std::size_t i = 0; i < leases.size(); ++i)
        for (std::uint64_t e = 0; e < options.extents; ++e)
          visit(i, token(i, of.slot * options.extents + e, at), static_cast<int>((state >> 24) + i * 3 + e));
    }
  }
  void write(const Sequence& of, std::uint64_t from, std::uint64_t to) const {
    each_record(of, from, to, [&](std::size_t, unsigned char* bytes, int value) {
      std::memset(bytes, value, options.record.count);
    });
  }
  /// Whether all tokens that the sequence may still attend to are right.
  bool intact(const Sequence& of) const {
    const std::uint64_t length = of.tokens.size();
    const std::uint64_t window = options.window.count == 0 ? length : std::min(length, options.window.count);
    bool right = true;
    std::uint64_t at = 0;
    each_record(of, 0, length, [&](std::size_t lease, const unsigned char* bytes, int value) {
      const std::uint64_t number = at++ / (leases.size() * options.extents);
      if (lease == 0 && number + window <= length && options.window.count != 0) return;
      right &= std::all_of(bytes, bytes + options.record.count,
                           [&](unsigned char byte) { return byte == static_cast<unsigned char>(value); });
    });
    return right;
  }

  /// What was copied is there.
  void finish(StreamHandle stream) {
    finish_work();
    if (stream.value != 0) pool->streams().synchronize(stream);
    pool->check();
  }
  /// It has those of its tokens that others have committed, and they are right.
  Sequence open(const TokenList& tokens, const std::string& salt = "", StreamHandle stream = {}) {
    const std::uint64_t restored = stats().restored;
    const KvCache::Opened opened = cache->open_prompt({tokens, salt}, {}, stream);
    finish(stream);
    Sequence made{opened.slot, first_of(tokens, opened.cached.count), opened.cached.count,
                  stats().restored != restored};
    CHECK(opened.cached.count < std::max<std::size_t>(tokens.size(), 1) && opened.cached.count % 16 == 0);
    CHECK(opened.cached.count == 0 || cache->length(opened.slot) == opened.cached);
    CHECK(made.restored || intact(made));
    return made;
  }
  /// A step computes these tokens.
  void step(Sequence& sequence, const TokenList& more, StreamHandle stream = {}) {
    const std::uint64_t before = sequence.tokens.size();
    const std::int32_t slots[] = {static_cast<std::int32_t>(sequence.slot)};
    const std::int32_t lengths[] = {static_cast<std::int32_t>(before + more.size())};
    cache->step(slots, lengths, stream);
    pool->check();
    sequence.tokens = joined(std::move(sequence.tokens), more);
    write(sequence, before, sequence.tokens.size());
  }
  void commit(const Sequence& sequence, std::uint64_t from, std::uint64_t to) {
    cache->commit(sequence.slot, std::span(sequence.tokens).subspan(from, to - from));
  }
  /// Opens a sequence, computes what it has not found, and commits all.
  Sequence serve(const TokenList& tokens, const std::string& salt = "", StreamHandle stream = {}) {
    Sequence made = open(tokens, salt, stream);
    step(made, {tokens.begin() + static_cast<std::ptrdiff_t>(made.cached), tokens.end()}, stream);
    commit(made, made.cached, tokens.size());
    return made;
  }
  Sequence fork(const Sequence& from, StreamHandle stream = {}) {
    const std::uint32_t slot = cache->fork(from.slot, 1, stream)[0];
    finish(stream);
    return {slot, from.tokens};
  }
  void truncate(Sequence& sequence, std::uint64_t to, StreamHandle stream = {}) {
    cache->truncate(sequence.slot, {to}, stream);
    finish(stream);
    sequence.tokens.resize(to);
  }
  void close(const Sequence& sequence, StreamHandle stream = {}) {
    cache->close(sequence.slot, stream);
    pool->check();
  }
  /// Waits for the work, too, and unmaps what was given up.
  void end(StreamHandle stream = {}) {
    cache->end(stream);
    finish_work();
    const Fence work = pool->epochs().fence([named = pool->epochs().named(stream)](StreamHandle each) {
      return each == named ? Work::all : Work::marked;
    });
    while (!pool->epochs().complete(work)) pool->epochs().poll();
    drain(*this);
  }
  /// Leaves a closed sequence with these tokens.
  void leave(const TokenList& tokens, const std::string& salt = "") {
    close(serve(tokens, salt));
    end();
  }
  /// Leaves so many free slots whose pages hold as many tokens, which nobody can find.
  void leave_pages(std::size_t tokens, std::size_t count) {
    std::vector<Sequence> made;
    for (std::size_t i = 0; i < count; ++i) {
      const TokenList own = tokens_from(static_cast<PrefixIndex::Token>(20'000 + 1'000 * i), tokens);
      made.push_back(open(own));
      step(made.back(), own);
    }
    for (const Sequence& each : made) close(each);
    end();
  }
  /// How many tokens a sequence would find. Afterwards the same can be found as before.
  std::uint64_t found(const TokenList& tokens, const std::string& salt = "") {
    const std::uint64_t adopted = stats().adopted;
    Sequence probe = open(tokens, salt);
    const std::uint64_t cached = probe.cached;
    if (stats().adopted == adopted) truncate(probe, 0);  // else a slot more would have these tokens
    close(probe);
    end();
    return cached;
  }
  PrefixStats stats() const { return cache->prefix_stats(); }

  const PrefixOptions options;
  std::shared_ptr<Parking> parking;
  std::unique_ptr<Background> background;
  std::vector<std::shared_ptr<Lease>> leases;
  std::unique_ptr<KvCache> cache;
};

}  // namespace vmm
