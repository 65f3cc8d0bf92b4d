// A strided region of a reservation, as the bytes that it spans.
#pragma once

#include <cstdint>
#include <vector>

#include "memory/pool.h"

namespace vmm {

struct Dimension {
  std::uint64_t size;
  Bytes stride;
};

/// The elements of `item` bytes at offset + Σ iₖ·strideₖ, 0 ≤ iₖ < sizeₖ.
struct Region {
  Bytes offset;
  Bytes item;
  std::vector<Dimension> dimensions;
};

/// The region as ranges in ascending order that do not overlap. Elements less than `gap` apart are in one
/// range: with gap = the page size, the ranges touch exactly the pages that the elements do.
std::vector<ByteRange> spans(Region region, Bytes gap);
/// Ranges in any order, made ascending and without overlaps.
std::vector<ByteRange> merged(std::vector<ByteRange> ranges);
/// Whether spans(region, gap) holds nothing but elements of the region.
bool dense(Region region, Bytes gap);

}  // namespace vmm
