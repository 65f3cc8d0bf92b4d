#include "driver/sim_page.h"

#include <algorithm>

namespace vmm {

void SimPage::write(Bytes from, Bytes to, std::optional<std::uint64_t> number) {
  if (from >= to) return;
  ++changes_;
  std::vector<Run> now;
  now.reserve(runs_.size() + 2);
  for (const Run& run : runs_)
    if (run.from < from) now.push_back({run.from, std::min(run.to, from), run.number});
  if (number) now.push_back({from, to, *number});
  for (const Run& run : runs_)
    if (run.to > to) now.push_back({std::max(run.from, to), run.to, run.number});
  runs_ = std::move(now);
}

void SimPage::copy(Bytes at, const SimPage& source, Bytes from, Bytes size) {
  const std::vector<Run> runs = source.runs_;
  write(at, at + size, {});
  for (const Run& run : runs) {
    const Bytes first = std::max(run.from, from), end = std::min(run.to, from + size);
    if (first < end) write(at + (first - from), at + (end - from), run.number);
  }
}

void SimPage::take(const SimPage& source) {
  runs_ = source.runs_;
  ++changes_;
}

Bytes SimPage::first_other(Bytes from, Bytes to, std::uint64_t number) const {
  for (const Run& run : runs_) {
    if (from >= to || run.from > from) break;
    if (run.to <= from) continue;
    if (run.number != number) break;
    from = run.to;
  }
  return std::min(from, to);
}

std::optional<std::uint64_t> SimPage::at(Bytes offset) const {
  for (const Run& run : runs_)
    if (run.from <= offset && offset < run.to) return run.number;
  return std::nullopt;
}

}  // namespace vmm
