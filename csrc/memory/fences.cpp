#include "memory/fences.h"

#include "base/undo.h"

namespace vmm {

Epochs::~Epochs() {
  for (auto& [handle, stream] : streams_)
    for (const Unfinished& entry : stream.unfinished)
      undo_or_leak([&] { driver_.destroy_event(entry.event); });
}

void Epochs::close(StreamHandle handle, bool open_next) {
  bool open;
  {
    std::lock_guard lock(mutex_);
    open = streams_[handle.value].open;
  }
  // Recorded before anything changes: when it throws, the epoch is simply still open.
  const EventHandle event = open ? driver_.record(handle) : EventHandle{};
  std::lock_guard lock(mutex_);
  Stream& stream = streams_[handle.value];
  if (open) stream.unfinished.push_back({stream.current, event});
  stream.open = open_next;
  if (open_next) ++stream.current;
}

void Epochs::mark(StreamHandle handle) {
  poll();  // so that what is over does not pile up
  {
    std::lock_guard lock(mutex_);
    if (streams_[handle.value].open) return;
  }
  const EventHandle event = driver_.record(handle);
  std::lock_guard lock(mutex_);
  Stream& stream = streams_[handle.value];
  stream.unfinished.push_back({++stream.current, event});
}

void Epochs::forget(StreamHandle handle) {
  std::lock_guard polling(poll_mutex_);
  std::deque<Unfinished> over;
  {
    std::lock_guard lock(mutex_);
    Stream& stream = streams_[handle.value];  // it stays: another stream may get the same handle
    stream.completed = stream.current;
    stream.open = false;
    over.swap(stream.unfinished);
  }
  for (const Unfinished& entry : over) undo_or_leak([&] { driver_.destroy_event(entry.event); });
}

Fence Epochs::fence() const {
  std::lock_guard lock(mutex_);
  Fence fence;
  for (const auto& [handle, stream] : streams_)
    if (stream.open || !stream.unfinished.empty()) fence.push_back({{handle}, stream.current});
  return fence;
}

void Epochs::poll() {
  std::unique_lock polling(poll_mutex_, std::try_to_lock);
  if (!polling) return;
  struct Oldest {
    std::uint64_t stream;
    Unfinished entry;
  };
  for (bool progress = true; progress;) {
    progress = false;
    std::vector<Oldest> oldest;
    {
      std::lock_guard lock(mutex_);
      for (const auto& [handle, stream] : streams_)
        if (!stream.unfinished.empty()) oldest.push_back({handle, stream.unfinished.front()});
    }
    for (const Oldest& next : oldest) {
      if (!driver_.query(next.entry.event)) continue;
      {
        std::lock_guard lock(mutex_);
        Stream& stream = streams_[next.stream];
        stream.unfinished.pop_front();
        stream.completed = next.entry.epoch;
      }
      driver_.destroy_event(next.entry.event);
      progress = true;
    }
  }
}

bool Epochs::complete(const Fence& fence) const {
  std::lock_guard lock(mutex_);
  for (const StreamEpoch& entry : fence) {
    auto found = streams_.find(entry.stream.value);
    if (found == streams_.end() || found->second.completed < entry.epoch) return false;
  }
  return true;
}

bool Epochs::waits_for_open_epoch(const Fence& fence) const {
  std::lock_guard lock(mutex_);
  for (const StreamEpoch& entry : fence) {
    auto found = streams_.find(entry.stream.value);
    if (found != streams_.end() && found->second.open && found->second.current == entry.epoch) return true;
  }
  return false;
}

}  // namespace vmm
