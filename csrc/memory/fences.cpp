#include "memory/fences.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "base/undo.h"

namespace vmm {

Epochs::~Epochs() {
  for (auto& [handle, stream] : streams_)
    for (const Unfinished& entry : stream.unfinished)
      undo_or_leak([&] { driver_.destroy_event(entry.event); });
}

void Epochs::close(StreamHandle handle, bool open_next) {
  std::lock_guard recording(record_mutex_);
  // Where none is open, what is on the stream is marked: a stream that cannot be waited for is refused now.
  if (!mark_if(handle, false)) {
    // Recorded before anything changes: when it throws, the epoch is simply still open.
    const EventHandle event = driver_.record(handle);
    std::lock_guard lock(mutex_);
    Stream& stream = streams_[handle.value];
    stream.unfinished.push_back({stream.current, event});
    stream.wanted = stream.owed = stream.capturing = false;  // by a fence from before the epoch
  }
  std::lock_guard lock(mutex_);
  Stream& stream = streams_[handle.value];
  stream.open = open_next;
  if (open_next) ++stream.current;
}

void Epochs::join(StreamHandle handle) {
  std::lock_guard lock(mutex_);
  ++streams_[handle.value].owners;
}

void Epochs::leave(StreamHandle handle) {
  {
    std::lock_guard lock(mutex_);
    Stream& stream = streams_[handle.value];
    if (--stream.owners != 0 || !stream.open) return;
  }
  end(handle);
}

void Epochs::mark(StreamHandle handle) {
  poll();  // so that what is over does not pile up
  std::lock_guard recording(record_mutex_);
  mark_if(handle, false);
}

/// What is on the stream becomes an epoch, unless an open one covers it. The epoch has its number before its
/// event is recorded: a fence that is made in between waits for the next. Under record_mutex_.
bool Epochs::mark_if(StreamHandle handle, bool only_wanted) {
  std::uint64_t epoch;
  bool wanted;
  {
    std::lock_guard lock(mutex_);
    Stream& stream = streams_[handle.value];
    if (stream.open || (only_wanted && !stream.wanted)) return false;
    wanted = std::exchange(stream.wanted, false);
    epoch = ++stream.current;
  }
  try {
    const EventHandle event = driver_.record(handle);
    std::lock_guard lock(mutex_);
    Stream& stream = streams_[handle.value];
    stream.unfinished.push_back({epoch, event});
    stream.owed = stream.capturing = false;
  } catch (const Error& error) {
    std::lock_guard lock(mutex_);
    Stream& stream = streams_[handle.value];
    stream.wanted |= wanted;
    stream.owed |= dynamic_cast<const DriverError*>(&error) != nullptr;
    throw;
  }
  return true;
}

void Epochs::mark_wanted() {
  std::vector<StreamHandle> wanted;
  {
    std::lock_guard lock(mutex_);
    for (const auto& [handle, stream] : streams_)
      if (stream.wanted) wanted.push_back({handle});
  }
  for (StreamHandle stream : wanted) {
    try {
      std::lock_guard recording(record_mutex_);
      mark_if(stream, true);
    } catch (const StreamCapturing&) {  // what is on it will be asked for again
      std::lock_guard lock(mutex_);
      streams_[stream.value].capturing = true;
    } catch (const InvalidArgument&) {  // it was ended behind our back, and its work with it
      forget(stream);
    }
  }
}

void Epochs::watch(StreamHandle handle) {
  try {
    std::lock_guard recording(record_mutex_);
    mark_if(handle, false);
  } catch (const StreamCapturing&) {
  }
  std::lock_guard lock(mutex_);
  streams_[handle.value].watched = true;
}

void Epochs::destroy(StreamHandle handle) {
  std::scoped_lock nobody_asks(poll_mutex_, record_mutex_);
  driver_.destroy_stream(handle);
  forget(handle);
}

/// Under poll_mutex_.
void Epochs::forget(StreamHandle handle) {
  std::deque<Unfinished> over;
  {
    std::lock_guard lock(mutex_);
    Stream& stream = streams_[handle.value];  // it stays: another stream may get the same handle
    stream.completed = ++stream.current;      // fences may wait for an epoch that nobody has marked yet
    stream.open = stream.watched = stream.owed = stream.wanted = stream.capturing = false;
    over.swap(stream.unfinished);
  }
  for (const Unfinished& entry : over) undo_or_leak([&] { driver_.destroy_event(entry.event); });
}

Fence Epochs::fence() {
  std::lock_guard lock(mutex_);
  Fence fence;
  for (auto& [handle, stream] : streams_) {
    if (stream.open) {
      fence.push_back({{handle}, stream.current});
    } else if (stream.watched || stream.owed) {
      stream.wanted = true;
      fence.push_back({{handle}, stream.current + 1});
    } else if (!stream.unfinished.empty()) {
      fence.push_back({{handle}, stream.unfinished.back().epoch});
    }
  }
  return fence;
}

void Epochs::poll() {
  std::unique_lock polling(poll_mutex_, std::try_to_lock);
  if (!polling) return;
  mark_wanted();
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
      undo_or_leak([&] { driver_.destroy_event(next.entry.event); });
      progress = true;
    }
  }
}

bool Epochs::complete(const Fence& fence, std::optional<StreamHandle> but_for) const {
  std::lock_guard lock(mutex_);
  return std::ranges::all_of(fence, [&](const StreamEpoch& entry) {
    auto found = streams_.find(entry.stream.value);
    return entry.stream == but_for || (found != streams_.end() && found->second.completed >= entry.epoch);
  });
}

bool Epochs::waits_for_open_epoch(const Fence& fence, std::optional<StreamHandle> but_for) const {
  std::lock_guard lock(mutex_);
  for (const StreamEpoch& entry : fence) {
    if (entry.stream == but_for) continue;
    auto found = streams_.find(entry.stream.value);
    if (found == streams_.end()) continue;
    const Stream& stream = found->second;
    if (stream.open && stream.current == entry.epoch) return true;
    if (stream.capturing && stream.completed < entry.epoch) return true;
  }
  return false;
}

}  // namespace vmm
