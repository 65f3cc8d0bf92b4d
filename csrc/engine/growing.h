// What the pager maps ahead for.
#pragma once

#include <atomic>
#include <memory>

#include "memory/pool.h"

namespace vmm {

/// What became of mapping ahead. Starved: there was not enough memory for what was asked for; it is still
/// wanted, but there is no use in trying before something is given up. Failed: it is still wanted, too, but
/// there is no use in trying at once.
enum class Ahead : std::uint8_t { done, more, starved, failed };

class Growing {
 public:
  Growing() = default;
  virtual ~Growing() = default;
  Growing(const Growing&) = delete;
  Growing& operator=(const Growing&) = delete;

  /// For the pager: maps up to `batch` of what will be needed, `lookahead` pages beyond the frontier
  /// included.
  virtual Ahead map_ahead(Bytes batch, Pages lookahead) = 0;
  /// For the pager, where it was asked to age(): called after each while. True while there is something to
  /// age.
  virtual bool age() { return false; }
  virtual Pool& pool() const noexcept = 0;

 protected:
  /// The owners are gone.
  virtual void close() noexcept = 0;

  /// Two counts: the owners', which closes, and one that others may hold a little longer.
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
};

/// Calls map() -> MapResult and counts what its caller had to wait for, in vain too.
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
