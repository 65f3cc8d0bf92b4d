// Scratch: pages of a range without memory of their own, which all show one and the same physical page.
//
// An engine's warm-up writes into blocks that nobody has kept, gigabytes of them. While a scratch is open it
// may. What it writes there is lost, and what it reads is anybody's.
#pragma once

#include <memory>
#include <vector>

#include "engine/range.h"

namespace vmm {

/// Its methods are safe from any thread.
class Scratch {
 public:
  /// Pages among these that have memory keep it, for as long as this is open; the others show the one page.
  /// Throws InvalidArgument where a page is another scratch's, or is being unmapped for work under way;
  /// MappingLimit, or what Pool::map or the driver throws; then nothing has changed.
  /// Whoever has what this returns has the range, too; when the last lets go, this ends.
  static std::shared_ptr<Scratch> open(std::shared_ptr<Range> range, std::vector<PageRange> pages);
  explicit Scratch(Range& range) : range_(range) {}  // for open()
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  /// Waits for the work until now, and takes the page away. A second call does nothing. Throws Error where an
  /// open epoch may still write there, or what the driver throws; then this is open still.
  void end();

 private:
  friend class Range;
  void claim(std::vector<PageRange> pages);
  void alias();
  void release();
  void end_locked();

  Range& range_;
  // The range's keeping mutex guards what follows.
  bool open_ = false;
  std::shared_ptr<Lease> lease_;           // of the page
  std::vector<PageRange> kept_, aliased_;  // of the range
  std::vector<PageMapping> mappings_;
};

}  // namespace vmm
