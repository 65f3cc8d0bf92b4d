// The simulated driver's streams, events, and work.
#include <algorithm>
#include <utility>
#include <vector>

#include "base/error.h"
#include "driver/sim_driver.h"

namespace vmm {
namespace {

template <class Streams>
auto& find_stream(Streams& streams, StreamHandle stream) {
  const auto found = streams.find(stream.value);
  if (found == streams.end()) throw InvalidArgument("stream: not a stream of this driver");
  return found->second;
}

}  // namespace

bool overlap(std::span<const MemoryRange> a, std::span<const MemoryRange> b) {
  return std::ranges::any_of(a, [&](const MemoryRange& x) {
    return std::ranges::any_of(b, [&](const MemoryRange& y) { return overlap(x, y); });
  });
}

/// Copying and zeroing wait for what is on the stream before them, but take no simulated time: it is short
/// beside an iteration.
void SimDriver::copy(Address to, Address from, Bytes size, StreamHandle stream) {
  std::lock_guard lock(mutex_);
  const double rate = options_.copied_bytes_per_second;
  const double seconds = rate == 0 ? 0 : static_cast<double>(size.count) / rate;
  queue(stream, Nanoseconds{static_cast<Nanoseconds::rep>(1e9 * seconds)}, {{to, size}, {from, size}});
  if (options_.contents) copy_contents(to, from, size);
}

void SimDriver::zero(std::span<const MemoryRange> ranges, StreamHandle stream) {
  std::lock_guard lock(mutex_);
  queue(stream, {}, {ranges.begin(), ranges.end()});
  if (!options_.contents) return;
  for (const MemoryRange& range : ranges)
    for (const Piece& each : pieces(range)) contents_[each.page].write(each.from, each.to, {});
}

StreamHandle SimDriver::create_stream() {
  std::lock_guard lock(mutex_);
  const StreamHandle stream{next_handle_++};
  streams_[stream.value];
  return stream;
}

void SimDriver::destroy_stream(StreamHandle stream) {
  std::lock_guard lock(mutex_);
  if (stream.value == 0) throw InvalidArgument("stream: the default stream cannot be destroyed");
  wait_until(find_stream(streams_, stream).over_at);
  streams_.erase(stream.value);
}

EventHandle SimDriver::record(StreamHandle stream) {
  std::lock_guard lock(mutex_);
  Nanoseconds over_at{0};
  if (stream == whole_device)
    for (const auto& [handle, each] : streams_) over_at = std::max(over_at, each.over_at);
  else
    over_at = find_stream(streams_, stream).over_at;
  take(options_.times.event);
  maybe_fail("record");
  events_[next_handle_] = over_at;
  return {next_handle_++};
}

bool SimDriver::query(EventHandle event) {
  std::lock_guard lock(mutex_);
  asked_at_ = std::max(asked_at_, clock_->now());
  return find(event) <= clock_->now();
}

void SimDriver::learn_what_is_over() {
  std::lock_guard lock(mutex_);
  asked_at_ = std::max(asked_at_, clock_->now());
}

void SimDriver::wait(EventHandle event) {
  std::lock_guard lock(mutex_);
  wait_until(find(event));
}

void SimDriver::destroy_event(EventHandle event) {
  std::lock_guard lock(mutex_);
  find(event);
  events_.erase(event.value);
}

/// Calls visit(page) for each page in the range. Throws where nothing is mapped, or nobody has access.
template <class Map, class Visit>
void SimDriver::for_each_mapped(Map& mapped, const MemoryRange& range, Visit visit) {
  const std::uintptr_t end = (range.start + range.size).value;
  if (end < range.start.value) throw InvariantViolation("touch: beyond the end of all addresses");
  auto page = mapped.upper_bound(range.start.value);
  if (page != mapped.begin()) --page;
  for (std::uintptr_t at = range.start.value; at < end; ++page) {
    if (page == mapped.end() || page->first > at || page->first + page->second.size.count <= at ||
        !page->second.accessible)
      throw InvariantViolation("touch: not mapped, or not accessible");
    visit(page->second);
    at = page->first + page->second.size.count;
  }
}

SimDriver::Touched SimDriver::touch(std::span<const MemoryRange> ranges, Nanoseconds called) {
  std::lock_guard lock(mutex_);
  const Nanoseconds before = clock_->now();
  Touched out;
  for (const MemoryRange& range : ranges)
    for_each_mapped(mapped_, range, [&](Mapped& page) {
      if (!std::exchange(page.touched, true)) {
        ++out.first_use;
        out.late += page.ready_at > called;
      }
      wait_until(page.ready_at);
    });
  out.waited = clock_->now() - before;
  return out;
}

void SimDriver::require_accessible(std::span<const MemoryRange> ranges) const {
  std::lock_guard lock(mutex_);
  for (const MemoryRange& range : ranges) for_each_mapped(mapped_, range, [](const Mapped&) {});
}

void SimDriver::require_unused(std::span<const MemoryRange> ranges, StreamHandle writer) const {
  std::lock_guard lock(mutex_);
  const Nanoseconds now = known_until();
  for (const auto& [handle, stream] : streams_)
    for (const Work& work : stream.under_way)
      if (handle != writer.value && work.over_at > now && overlap(work.uses, ranges))
        throw InvariantViolation("work under way on another stream uses what is about to be written");
}

void SimDriver::run(StreamHandle stream, Nanoseconds takes, std::vector<MemoryRange> uses) {
  std::lock_guard lock(mutex_);
  if (takes.count() < 0) throw InvalidArgument("takes: expected a time, 0 or more");
  queue(stream, takes, std::move(uses));
}

void SimDriver::queue(StreamHandle handle, Nanoseconds takes, std::vector<MemoryRange> uses) {
  Stream& stream = find_stream(streams_, handle);
  const Nanoseconds now = clock_->now();
  std::erase_if(stream.under_way, [&](const Work& work) { return work.over_at <= now; });
  stream.over_at = std::max(stream.over_at, now) + takes;
  if (handle.value == 0) wait_until(stream.over_at);  // the contract says that it is over then
  if (stream.over_at > clock_->now()) stream.under_way.push_back({stream.over_at, std::move(uses)});
}

Nanoseconds SimDriver::over_at(StreamHandle stream) const {
  std::lock_guard lock(mutex_);
  return find_stream(streams_, stream).over_at;
}

void SimDriver::check() const {
  std::lock_guard lock(mutex_);
  if (unmapped_in_use_) throw InvariantViolation("pages were to be unmapped that work under way used");
}

PageHandle SimDriver::page_at(Address address) const {
  std::lock_guard lock(mutex_);
  const MemoryRange one{address, {1}};
  PageHandle found;
  for_each_mapped(mapped_, one, [&](const Mapped& page) { found = page.page; });
  return found;
}

std::vector<MemoryRange> SimDriver::used() const {
  std::lock_guard lock(mutex_);
  std::vector<MemoryRange> out;
  for (const auto& [handle, stream] : streams_)
    for (const Work& work : stream.under_way)
      if (work.over_at > known_until()) out.insert(out.end(), work.uses.begin(), work.uses.end());
  return out;
}

Bytes SimDriver::bytes_under(std::vector<MemoryRange> ranges) const {
  std::lock_guard lock(mutex_);
  std::ranges::sort(ranges, {}, [](const MemoryRange& range) { return range.start; });
  std::vector<std::pair<PageHandle, Bytes>> pages;
  Address seen{0};  // all pages before it
  for (const MemoryRange& range : ranges) {
    auto page = mapped_.upper_bound(std::max(range.start, seen).value);
    if (page != mapped_.begin()) --page;
    for (; page != mapped_.end() && page->first < (range.start + range.size).value; ++page) {
      const Address start{page->first}, end = start + page->second.size;
      if (end <= range.start || start < seen) continue;
      pages.emplace_back(page->second.page, page->second.size);
      seen = end;
    }
  }
  std::ranges::sort(pages);
  pages.erase(std::unique(pages.begin(), pages.end()), pages.end());
  Bytes sum;
  for (const auto& [page, size] : pages) sum += size;
  return sum;
}

void SimDriver::require_sole(std::span<const MemoryRange> ranges) const {
  std::lock_guard lock(mutex_);
  std::vector<PageHandle> pages, twice;
  pages.reserve(mapped_.size());
  for (const auto& [address, mapped] : mapped_) pages.push_back(mapped.page);
  std::ranges::sort(pages);
  for (std::size_t i = 1; i < pages.size(); ++i)
    if (pages[i] == pages[i - 1]) twice.push_back(pages[i]);
  if (twice.empty()) return;
  for (const auto& [address, mapped] : mapped_) {
    const MemoryRange page{address, mapped.size};
    if (std::ranges::binary_search(twice, mapped.page) && overlap(std::span(&page, 1), ranges))
      throw InvariantViolation("a page that is about to be written is mapped at two addresses");
  }
}

Nanoseconds SimDriver::find(EventHandle event) const {
  const auto found = events_.find(event.value);
  if (found == events_.end()) throw InvalidArgument("event: not an event of this driver");
  return found->second;
}

void SimDriver::refuse_in_use(std::span<const PageMapping> pages) {
  const Nanoseconds now = known_until();
  for (auto& [handle, stream] : streams_) {
    std::erase_if(stream.under_way, [&](const Work& work) { return work.over_at <= now; });
    for (const Work& work : stream.under_way)
      for (const PageMapping& page : pages) {
        const MemoryRange range{page.address, page.page_bytes};
        if (!overlap(work.uses, std::span(&range, 1))) continue;
        unmapped_in_use_ = true;
        throw InvalidArgument("unmap: work under way still uses these pages");
      }
  }
}

}  // namespace vmm
