#include "engine/region.h"

#include <algorithm>

namespace vmm {
namespace {

/// Goes on to the next place. Returns false after the last one.
bool count_up(std::vector<std::uint64_t>& at, const std::vector<Dimension>& places) {
  for (std::size_t i = places.size(); i-- > 0; at[i] = 0)
    if (++at[i] < places[i].size) return true;
  return false;
}

/// Removes the innermost dimensions whose steps leave less than `gap`. Returns the bytes that they span.
Bytes take_run(Region& region, Bytes gap) {
  auto& dimensions = region.dimensions;
  std::erase_if(dimensions, [](const Dimension& d) { return d.size == 1 || d.stride.count == 0; });
  std::ranges::sort(dimensions, {}, [](const Dimension& d) { return d.stride.count; });
  Bytes run = region.item;
  auto outer = dimensions.begin();
  for (; outer != dimensions.end() && outer->stride < run + gap; ++outer)
    run += outer->stride * (outer->size - 1);
  dimensions.erase(dimensions.begin(), outer);
  return run;
}

bool empty(const Region& region) {
  return std::ranges::any_of(region.dimensions, [](const Dimension& d) { return d.size == 0; });
}

}  // namespace

std::vector<ByteRange> spans(Region region, Bytes gap) {
  if (empty(region)) return {};
  const Bytes run = take_run(region, gap);
  auto& places = region.dimensions;
  std::ranges::reverse(places);  // the smallest steps are counted fastest
  std::vector<std::uint64_t> at(places.size(), 0);
  std::vector<ByteRange> out;
  do {
    Bytes offset = region.offset;
    for (std::size_t i = 0; i < places.size(); ++i) offset += places[i].stride * at[i];
    out.push_back({offset, run});
  } while (count_up(at, places));
  return merged(std::move(out));
}

std::vector<ByteRange> merged(std::vector<ByteRange> ranges) {
  std::ranges::sort(ranges, {}, [](const ByteRange& r) { return r.offset.count; });
  std::vector<ByteRange> out;
  for (const ByteRange& range : ranges) {
    if (out.empty() || out.back().offset + out.back().size < range.offset) {
      out.push_back(range);
    } else {
      ByteRange& last = out.back();
      last.size = std::max(last.offset + last.size, range.offset + range.size) - last.offset;
    }
  }
  return out;
}

bool dense(Region region, Bytes gap) {
  Region exact = region;
  return empty(region) || take_run(region, gap) == take_run(exact, Bytes{1});
}

}  // namespace vmm
