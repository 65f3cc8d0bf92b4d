// What its owner says is worth more stays longer: a system prompt more than recent context, and that more
// than old context.
#pragma once

#include <map>
#include <unordered_map>

#include "policy/eviction/unit_queue.h"

namespace vmm {

/// The lowest priority leaves first, and of one priority the unit used longest ago. A unit has the priority
/// of its last use. (As the retention priorities of TensorRT-LLM's KV cache; there, as here, the order within
/// one is LRU's.)
class Priority final : public EvictionPolicy {
 public:
  static constexpr int old_context = 0;
  static constexpr int recent = 1;
  static constexpr int system_prompt = 2;

  /// What is above `recent` fills at most so much of what is held: beyond it the first of these leaves, or
  /// system prompts that nobody uses any more would fill the memory in the end.
  static constexpr std::uint64_t most_above_recent_divisor = 2;

  explicit Priority(Bytes capacity) : most_above_recent_(capacity / most_above_recent_divisor) {}

  void access(UnitId unit, const UnitAccess& access) override {
    forget(unit);
    queues_[access.priority].push_back(unit, access.size);
    priorities_.emplace(unit, access.priority);
    if (access.priority > recent) above_recent_ += access.size;
  }
  std::optional<UnitId> victim(Nanoseconds) override {
    if (queues_.empty()) return std::nullopt;
    const auto above = queues_.upper_bound(recent);
    const auto from = above_recent_ > most_above_recent_ ? above : queues_.begin();
    return from->second.front().unit;
  }
  void evicted(UnitId unit) override { forget(unit); }
  void forget(UnitId unit) override {
    const auto found = priorities_.find(unit);
    if (found == priorities_.end()) return;
    const auto queue = queues_.find(found->second);
    const Bytes size = queue->second.take(unit)->size;
    if (queue->first > recent) above_recent_ -= size;
    if (queue->second.empty()) queues_.erase(queue);
    priorities_.erase(found);
  }
  bool holds(UnitId unit) const override { return priorities_.contains(unit); }

 private:
  const Bytes most_above_recent_;
  Bytes above_recent_{};
  std::map<int, UnitQueue<>> queues_;
  std::unordered_map<UnitId, int> priorities_;
};

}  // namespace vmm
