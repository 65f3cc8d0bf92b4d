// Growing: whatever the pager maps pages ahead for: the slots of a cache, a layer, a tensor.
//
// Its owner says what will be needed and notifies the pager, which calls map_ahead() from its own thread. The
// pager holds it only weakly, so that its owner can end it at any time.
#pragma once

#include <atomic>
#include <memory>
#include <span>

#include "base/error.h"
#include "memory/pool.h"

namespace vmm {

/// What became of mapping ahead.
enum class Ahead : std::uint8_t {
  done,
  more,     // the batch was full, and there is more to map
  later,    // it waits for what tells nobody: to be tried again in a moment
  starved,  // there was not enough memory; it is of no use to try again before somebody gives some up
  failed,   // the driver refused; it is of no use to try again at once
};

class Growing {
 public:
  Growing() = default;
  virtual ~Growing() = default;
  Growing(const Growing&) = delete;
  Growing& operator=(const Growing&) = delete;

  /// The pager calls this to map up to `batch` of what will be needed, and of every extent `lookahead` pages
  /// beyond that.
  virtual Ahead map_ahead(Bytes batch, Pages lookahead) = 0;
  /// The pager calls this after each idle time, once it was asked to (Pager::age). Ends the need for what has
  /// not been used for so long. False when there is nothing left to age: then it is called no more.
  virtual bool age() { return false; }
  virtual Pool& pool() const noexcept = 0;

 protected:
  /// The last owner has let go.
  virtual void close() noexcept = 0;

  /// Gives `growing` to its owners. Two counts are kept: when the owners' ends, close() is called at once;
  /// the object itself lives on while the pager is at work on it.
  template <class T>
  static std::shared_ptr<T> share(std::shared_ptr<T> growing) {
    growing->self_ = growing;
    return {growing.get(), [growing](T* self) mutable {
              if (Growing& base = *self; !base.pool().fork_guard().in_child()) base.close();
              growing.reset();
            }};
  }

  std::weak_ptr<Growing> self_;

 private:
  friend class Pager;
  std::atomic<bool> due_{false};  // in the pager's inbox
  bool starved_ = false;          // among the pager's starved
  unsigned turns_ = 0;            // that the pager has given it one after the other
};

/// Maps up to `at_most` pages of the ranges. Where there is no memory for so many, it lowers `at_most`;
/// throws OutOfPages where there is none for one.
inline MapResult map_what_fits(Pool& pool, Reservation& reservation, std::span<const PageRange> ranges,
                               MapOptions options, Pages& at_most) {
  for (;;) {
    options.at_most = at_most;
    try {
      return pool.map(reservation, ranges, options);
    } catch (const OutOfPages&) {
      if (at_most.count == 1) throw;
      at_most = {at_most.count / 2};
    }
  }
}

/// What became of `map`, which is an engine's work ahead of need. Where that throws, `put_back` notes what is
/// still to be done.
template <class Map, class PutBack>
Ahead ahead_of_need(Pool& pool, Map map, PutBack put_back) {
  auto not_mapped = [&](Ahead why, LogLevel level, const std::exception& error) {
    pool.log().write(level, error.what());
    put_back();
    return why;
  };
  try {
    return map();
  } catch (const OutOfPages& error) {
    return not_mapped(Ahead::starved, LogLevel::debug, error);
  } catch (const MappingLimit& error) {
    return not_mapped(Ahead::starved, LogLevel::warning, error);
  } catch (const Closed&) {
    return Ahead::done;
  } catch (const std::exception& error) {
    return not_mapped(Ahead::failed, LogLevel::warning, error);
  }
}

/// Calls map() -> MapResult. Where it had to map or to wait, or threw, this is counted as a stall.
template <class Map>
MapResult map_counting_stalls(Pool& pool, Map map) {
  const Nanoseconds start = pool.clock().now();
  Counters& counters = pool.counters();
  auto count = [&] {
    counters.stalls.add();
    counters.stall_ns.add(static_cast<std::uint64_t>((pool.clock().now() - start).count()));
  };
  try {
    const MapResult result = map();
    if (result.mapped.count != 0 || result.waited) count();
    counters.pages_mapped_waiting.add(result.mapped.count);
    return result;
  } catch (...) {
    count();
    throw;
  }
}

}  // namespace vmm
