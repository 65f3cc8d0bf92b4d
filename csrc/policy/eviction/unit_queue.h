// Units in the order in which they came.
#pragma once

#include <cstddef>
#include <list>
#include <unordered_map>
#include <utility>

#include "policy/eviction/eviction_policy.h"

namespace vmm {

struct Nothing {};

/// A queue from which a unit can be taken at any place, with something noted beside each.
template <class Note = Nothing>
class UnitQueue {
 public:
  struct Entry {
    UnitId unit;
    Bytes size;
    Note note;
  };

  bool empty() const { return order_.empty(); }
  std::size_t count() const { return order_.size(); }
  Bytes bytes() const { return bytes_; }
  bool contains(UnitId unit) const { return places_.contains(unit); }
  Entry& front() { return order_.front(); }
  const Entry& front() const { return order_.front(); }

  /// The unit's entry, or none.
  Entry* find(UnitId unit) {
    const auto found = places_.find(unit);
    return found == places_.end() ? nullptr : &*found->second;
  }

  /// The unit is not here yet.
  void push_back(UnitId unit, Bytes size, Note note = {}) {
    order_.push_back({unit, size, std::move(note)});
    places_.emplace(unit, std::prev(order_.end()));
    bytes_ += size;
  }

  /// Behind all others, if it is here.
  void move_to_back(UnitId unit) {
    if (const auto found = places_.find(unit); found != places_.end())
      order_.splice(order_.end(), order_, found->second);
  }

  void resize(UnitId unit, Bytes size) {
    Entry& entry = *places_.at(unit);
    bytes_ = bytes_ - entry.size + size;
    entry.size = size;
  }

  /// What was noted beside the unit; nothing where it is not here.
  std::optional<Entry> take(UnitId unit) {
    const auto found = places_.find(unit);
    if (found == places_.end()) return std::nullopt;
    Entry taken = std::move(*found->second);
    bytes_ -= taken.size;
    order_.erase(found->second);
    places_.erase(found);
    return taken;
  }

 private:
  std::list<Entry> order_;
  std::unordered_map<UnitId, typename std::list<Entry>::iterator> places_;
  Bytes bytes_{};
};

/// Units that left and may come back: the oldest are dropped, so that all together, while they were on the
/// device, had at most `limit` bytes.
template <class Note = Nothing>
class GhostQueue {
 public:
  explicit GhostQueue(Bytes limit) : limit_(limit) {}

  std::size_t count() const { return queue_.count(); }
  /// What was noted beside the unit, which is no ghost any more.
  std::optional<typename UnitQueue<Note>::Entry> take(UnitId unit) { return queue_.take(unit); }
  void remember(UnitId unit, Bytes size, Note note = {}) {
    queue_.push_back(unit, size, std::move(note));
    while (queue_.bytes() > limit_) queue_.take(queue_.front().unit);
  }

 private:
  const Bytes limit_;
  UnitQueue<Note> queue_;
};

}  // namespace vmm
