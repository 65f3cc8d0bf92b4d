#include "engine/growth.h"

#include <algorithm>
#include <string>

#include "base/error.h"
#include "engine/pager.h"

namespace vmm {

Pages Growth::Part::pages_for(Tokens tokens) const {
  const Bytes page = part.lease->shape().page_bytes;
  return {round_up(part.record_bytes * tokens.count, page) / page};
}

std::vector<PageRange> Growth::Part::ranges(Pages from, Pages to) const {
  std::vector<PageRange> out;
  if (from >= to) return out;
  const std::uint64_t extent_pages = part.lease->shape().extent_bytes / part.lease->shape().page_bytes;
  out.reserve(part.extents);
  for (std::uint64_t i = 0; i < part.extents; ++i) {
    const std::uint64_t first = (part.first_extent + i) * extent_pages + from.count;
    out.push_back({{static_cast<std::uint32_t>(first)}, to - from});
  }
  return out;
}

std::vector<ByteRange> Growth::Part::bytes(Tokens from, Tokens to) const {
  std::vector<ByteRange> out;
  if (from >= to) return out;
  out.reserve(part.extents);
  for (std::uint64_t i = 0; i < part.extents; ++i)
    out.push_back(
        {part.lease->shape().extent_bytes * (part.first_extent + i) + part.record_bytes * from.count,
         part.record_bytes * (to - from).count});
  return out;
}

Growth::Growth(std::shared_ptr<Pager> pager, std::vector<GrowthPart> parts)
    : pager_(std::move(pager)), max_tokens_{~std::uint64_t{0}} {
  if (parts.empty()) throw InvalidArgument("parts is empty; expected at least one");
  for (GrowthPart& part : parts) {
    if (part.record_bytes.count == 0) throw InvalidArgument("record_bytes is 0; expected at least 1");
    if (part.extents == 0 || part.first_extent + part.extents > part.lease->extents())
      throw InvalidArgument("first_extent, extents: not inside the lease, which has " +
                            std::to_string(part.lease->extents()) + " extents");
    if (&part.lease->pool() != &pool()) throw InvalidArgument("parts: of another pool");
    max_tokens_ = std::min(max_tokens_, Tokens{part.lease->shape().extent_bytes / part.record_bytes});
    parts_.emplace_back(std::move(part));
  }
}

std::shared_ptr<Growth> Growth::make(std::shared_ptr<Pager> pager, std::vector<GrowthPart> parts) {
  return share(std::make_shared<Growth>(std::move(pager), std::move(parts)));
}

Pool& Growth::pool() const noexcept { return pager_->pool(); }

void Growth::close() noexcept {
  std::lock_guard ahead(ahead_mutex_);
  parts_.clear();
  pager_->nudge();  // to find out when the work on them is over
}

void Growth::check_length(const char* argument, Tokens tokens) const {
  if (tokens > max_tokens_)
    throw InvalidArgument(std::string(argument) + " is " + std::to_string(tokens.count) +
                          " tokens; max_tokens is " + std::to_string(max_tokens_.count));
}

Tokens Growth::limit() const {
  Tokens limit = max_tokens_;
  for (const Part& part : parts_)
    limit = std::min(
        limit, Tokens{part.part.lease->shape().page_bytes * part.kept_pages.load() / part.part.record_bytes});
  return limit;
}

Bytes Growth::missing(Tokens to) const {
  Bytes sum;
  for (const Part& part : parts_)
    sum += part.part.lease->pool().missing(part.part.lease->reservation(),
                                           part.ranges({part.kept_pages.load()}, part.pages_for(to)));
  return sum;
}

MapResult Growth::map_parts(Tokens to, std::size_t& done) {
  MapResult sum;
  for (const Part& part : parts_) {
    const auto overwritten = part.bytes(frontier(), to);
    MapOptions options;
    options.overwritten = overwritten;
    const MapResult result = pool().map(part.part.lease->reservation(),
                                        part.ranges({part.kept_pages.load()}, part.pages_for(to)), options);
    sum.mapped += result.mapped;
    sum.waited |= result.waited;
    ++done;
  }
  return sum;
}

Tokens Growth::advance(Tokens to) {
  check_length("to", to);
  std::lock_guard owner(owner_mutex_);
  std::size_t done = 0;
  try {
    map_counting_stalls(pool(), [&] { return map_parts(to, done); });
  } catch (...) {
    for (std::size_t i = 0; i < done; ++i) {
      const Part& part = parts_[i];
      pool().unkeep(part.part.lease->reservation(),
                    part.ranges({part.kept_pages.load()}, part.pages_for(to)));
    }
    throw;
  }
  for (Part& part : parts_) part.kept_pages = std::max(part.kept_pages.load(), part.pages_for(to).count);
  frontier_ = std::max(frontier_.load(), to.count);
  announce(to);
  return limit();
}

void Growth::announce(Tokens to) {
  check_length("to", to);
  std::uint64_t before = announced_.load();
  while (before < to.count && !announced_.compare_exchange_weak(before, to.count)) {
  }
  pager_->notify(*this);
}

Tokens Growth::truncate(Tokens to) {
  check_length("to", to);
  std::lock_guard owner(owner_mutex_);
  if (to > frontier())
    throw InvalidArgument("to is " + std::to_string(to.count) +
                          " tokens, more than there are: " + std::to_string(frontier().count));
  frontier_ = to.count;
  announced_ = to.count;
  for (Part& part : parts_) {
    const Pages needed = part.pages_for(to);
    pool().unkeep(part.part.lease->reservation(), part.ranges(needed, {part.kept_pages.load()}));
    part.kept_pages = std::min(part.kept_pages.load(), needed.count);
  }
  return limit();
}

void Growth::scrub(Tokens from, Tokens to, StreamHandle stream) {
  std::lock_guard owner(owner_mutex_);
  if (from > to || to > limit())
    throw InvalidArgument("from, to: expected from <= to <= " + std::to_string(limit().count) + " tokens");
  for (const Part& part : parts_)
    for (const ByteRange& range : part.bytes(from, to))
      pool().zero(part.part.lease->reservation(), range.offset, range.size, stream);
}

bool Growth::map_ahead(Bytes batch, Pages lookahead) {
  std::lock_guard ahead(ahead_mutex_);
  if (parts_.empty()) return false;  // closed
  const Tokens announced{announced_.load()};
  Pages at_most{std::max<std::uint64_t>(1, batch / parts_.front().part.lease->shape().page_bytes)};
  MapOptions options;
  options.keep = false;
  options.wait = false;
  // What is announced will be used, so it may cost others what they do not need; a guess may not.
  for (const bool announced_only : {true, false}) {
    options.reclaim = announced_only;
    for (const Part& part : parts_) {
      const ReservationShape& shape = part.part.lease->shape();
      const Pages extent_pages{shape.extent_bytes / shape.page_bytes};
      const Pages target = part.pages_for(announced) + (announced_only ? Pages{0} : lookahead);
      options.at_most = at_most;
      const MapResult result =
          pool().map(part.part.lease->reservation(),
                     part.ranges({part.kept_pages.load()}, std::min(target, extent_pages)), options);
      pool().counters().pages_mapped_ahead.add(result.mapped.count);
      at_most -= result.mapped;
      if (at_most.count == 0) return true;
    }
  }
  return false;
}

void admit(std::span<const std::shared_ptr<Growth>> growths, Tokens to) {
  if (growths.empty()) return;
  Bytes missing;
  for (const auto& growth : growths) {
    growth->check_length("to", to);
    missing += growth->missing(to);
  }
  if (missing.count != 0) growths.front()->pool().require_obtainable(missing);
  for (const auto& growth : growths) growth->announce(to);
}

}  // namespace vmm
