// Extents that grow in lockstep, counted in tokens: what a sequence, or one layer of a cache, is made of.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "engine/growing.h"
#include "memory/pool.h"

namespace vmm {

class Pager;

/// `extents` pieces of one lease, each holding one record of `record_bytes` per token.
struct GrowthPart {
  std::shared_ptr<Lease> lease;
  std::uint64_t first_extent = 0;
  std::uint64_t extents = 1;
  Bytes record_bytes;
};

/// Calls by the owner are serialised; different growths are advanced in parallel.
class Growth final : public Growing {
 public:
  /// When the last owner lets go, the leases end there and then, even if the pager is at work on the growth.
  static std::shared_ptr<Growth> make(std::shared_ptr<Pager> pager, std::vector<GrowthPart> parts);
  Growth(std::shared_ptr<Pager> pager, std::vector<GrowthPart> parts);  // for make()

  /// Makes tokens [0, to) usable and tells the pager. The caller is about to write [frontier, to).
  /// Returns the limit: up to there the caller may write without calling again.
  /// Throws InvalidArgument past max_tokens, or what Pool::map throws; then nothing has changed.
  Tokens advance(Tokens to);
  /// Tells the pager that tokens up to `to` will be needed soon. Waits for nothing.
  void announce(Tokens to);
  /// Tokens from `to` on are needed no more; their pages stay mapped until memory is short. Returns the
  /// limit.
  Tokens truncate(Tokens to);
  /// Zeroes tokens [from, to) on `stream`: a write that was announced by advance() and failed.
  void scrub(Tokens from, Tokens to, StreamHandle stream = {});

  /// Bytes that advance(to) would have to map.
  Bytes missing(Tokens to) const;
  /// Throws InvalidArgument, naming the argument, past max_tokens.
  void check_length(const char* argument, Tokens tokens) const;
  Tokens max_tokens() const noexcept { return max_tokens_; }
  Tokens frontier() const noexcept { return {frontier_.load()}; }
  Pool& pool() const noexcept override;

  /// What is announced first, then the look-ahead.
  bool map_ahead(Bytes batch, Pages lookahead) override;

 private:
  struct Part {
    explicit Part(GrowthPart part_) : part(std::move(part_)) {}
    GrowthPart part;
    std::atomic<std::uint64_t> kept_pages{0};  // of each extent, from its start

    Pages pages_for(Tokens tokens) const;
    std::vector<PageRange> ranges(Pages from, Pages to) const;
    std::vector<ByteRange> bytes(Tokens from, Tokens to) const;
  };

  void close() noexcept override;
  Tokens limit() const;
  MapResult map_parts(Tokens to, std::size_t& done);

  std::shared_ptr<Pager> pager_;
  std::deque<Part> parts_;  // a deque, because an atomic cannot be moved
  Tokens max_tokens_;
  std::mutex owner_mutex_;
  std::atomic<std::uint64_t> frontier_{0};
  std::atomic<std::uint64_t> announced_{0};
  std::mutex ahead_mutex_;  // held while the pager works on it
};

/// Throws OutOfPages unless all growths together could advance to `to`; then announces it to each.
void admit(std::span<const std::shared_ptr<Growth>> growths, Tokens to);

}  // namespace vmm
