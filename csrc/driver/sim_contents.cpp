// What is in the pages of the simulated driver.
#include <string>
#include <vector>

#include "base/error.h"
#include "driver/sim_driver.h"

namespace vmm {

std::vector<SimDriver::Piece> SimDriver::pieces(const MemoryRange& range) const {
  std::vector<Piece> out;
  const Address end = range.start + range.size;
  for (Address at = range.start; at < end;) {
    auto page = mapped_.upper_bound(at.value);
    if (page == mapped_.begin() || (--page)->first + page->second.size.count <= at.value)
      throw InvariantViolation("contents: nothing is mapped at " + std::to_string(at.value));
    const Address start{page->first}, next = std::min(start + page->second.size, end);
    out.push_back({page->second.page, at - start, next - start});
    at = next;
  }
  return out;
}

void SimDriver::copy_contents(Address to, Address from, Bytes size) {
  const std::vector<Piece> targets = pieces({to, size});
  std::vector<Piece> sources = pieces({from, size});
  auto source = sources.begin();
  for (const Piece& target : targets)
    for (Bytes at = target.from; at < target.to;) {
      const Bytes some = std::min(target.to - at, source->to - source->from);
      contents_[target.page].copy(at, contents_[source->page], source->from, some);
      at += some;
      source->from += some;
      if (source->from == source->to) ++source;
    }
}

void SimDriver::write(const MemoryRange& range, std::uint64_t number) {
  std::lock_guard lock(mutex_);
  for (const Piece& each : pieces(range)) contents_[each.page].write(each.from, each.to, number);
}

void SimDriver::require_contents(const MemoryRange& range, std::uint64_t number) const {
  std::lock_guard lock(mutex_);
  Address at = range.start;
  for (const Piece& each : pieces(range)) {
    const auto found = contents_.find(each.page);
    static const SimPage nothing;
    const SimPage& page = found == contents_.end() ? nothing : found->second;
    const Bytes other = page.first_other(each.from, each.to, number);
    if (other != each.to) {
      const std::optional<std::uint64_t> holds = page.at(other);
      throw InvariantViolation("byte " + std::to_string((at + (other - each.from)).value) + " should hold " +
                               std::to_string(number) + ", but holds " +
                               (holds ? std::to_string(*holds) : "nothing"));
    }
    at = at + (each.to - each.from);
  }
}

SimDriver::Seen SimDriver::look_at(Address address) const {
  std::lock_guard lock(mutex_);
  const PageHandle page = pieces({address, {1}}).front().page;
  const auto found = contents_.find(page);
  return {page, found == contents_.end() ? SimPage{} : found->second};
}

void SimDriver::fill(Address address, const SimPage& contents) {
  std::lock_guard lock(mutex_);
  contents_[pieces({address, {1}}).front().page].take(contents);
}

}  // namespace vmm
