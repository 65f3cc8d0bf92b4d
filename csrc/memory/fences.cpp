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
  handle = named(handle);
  std::lock_guard recording(record_mutex_);
  // Where no epoch is open, this marks what is on the stream, so that a stream that cannot be waited for is
  // refused now. An open epoch is recorded before anything changes: when that throws, it is still open.
  std::optional<EventHandle> event;
  if (!mark_if(handle, false)) event = driver_.record(handle);
  std::lock_guard lock(mutex_);
  Stream& stream = streams_[handle.value];
  if (event) {
    stream.wanted = false;  // This event serves a fence from before the epoch, too.
    recorded(stream, {stream.current, *event, open_next});
  }
  stream.open = open_next;
  if (open_next) ++stream.current;
}

/// Keeps an event that tells when all that is on the stream now is over. The caller holds the lock.
void Epochs::recorded(Stream& stream, const Unfinished& entry) {
  stream.unfinished.push_back(entry);
  if (stream.owners == 0 || stream.watched || stream.owed) stream.last_outside_steps = stream.current;
  stream.owed = stream.capturing = false;
  if (stream.given_up) stream.watched = false;
}

void Epochs::join(StreamHandle handle) {
  handle = named(handle);
  std::lock_guard lock(mutex_);
  ++streams_[handle.value].owners;
}

void Epochs::leave(StreamHandle handle) {
  handle = named(handle);
  {
    std::lock_guard lock(mutex_);
    Stream& stream = streams_[handle.value];
    if (--stream.owners != 0 || !stream.open) return;
  }
  end(handle);
}

void Epochs::mark(StreamHandle handle) {
  poll();  // Otherwise events that are over would pile up.
  handle = named(handle);
  std::lock_guard recording(record_mutex_);
  mark_if(handle, false);
  std::lock_guard lock(mutex_);
  Stream& stream = streams_[handle.value];
  stream.last_marked = stream.current;
}

void Epochs::cover(StreamHandle handle) {
  poll();
  std::lock_guard recording(record_mutex_);
  mark_if(named(handle), false);
}

Fence Epochs::device_fence() {
  if (!driver_.capabilities().device_events)
    throw InvalidArgument("the driver has no events of the whole device: CUDA 12.5 or later is needed");
  cover(whole_device);
  std::lock_guard lock(mutex_);
  const std::uint64_t epoch = last_epoch(streams_[whole_device.value], Work::all);
  return epoch == 0 ? Fence{} : Fence{{whole_device, epoch}};
}

/// Makes an epoch of what is on the stream, unless an open one covers it; returns whether it did. The epoch
/// has its number before its event is recorded, so a fence that is made in between waits for the next. The
/// caller holds record_mutex_.
bool Epochs::mark_if(StreamHandle handle, bool only_wanted) {
  std::unique_lock lock(mutex_);
  Stream& stream = streams_[handle.value];  // It stays where it is, also without the lock.
  if (stream.open || (only_wanted && !stream.wanted)) return false;
  const bool wanted = std::exchange(stream.wanted, false);
  const std::uint64_t epoch = ++stream.current;
  lock.unlock();
  EventHandle event;
  try {
    event = driver_.record(handle);
  } catch (const Error& error) {
    lock.lock();
    stream.wanted |= wanted;
    stream.owed |= dynamic_cast<const DriverError*>(&error) != nullptr;
    throw;
  }
  lock.lock();
  recorded(stream, {epoch, event, false});
  return true;
}

/// Returns the streams for which `is` is true.
template <class Is>
std::vector<StreamHandle> Epochs::those(Is is) const {
  std::lock_guard lock(mutex_);
  std::vector<StreamHandle> out;
  for (const auto& [handle, stream] : streams_)
    if (is(stream)) out.push_back({handle});
  return out;
}

void Epochs::mark_wanted() {
  for (StreamHandle stream : those([](const Stream& each) { return each.wanted; })) {
    try {
      std::lock_guard recording(record_mutex_);
      if (driver_.capturing(stream)) throw StreamCapturing("");
      mark_if(stream, true);
    } catch (const StreamCapturing&) {  // It stays wanted, so the next poll asks again.
      std::lock_guard lock(mutex_);
      streams_[stream.value].capturing = true;
    } catch (const InvalidArgument&) {  // Somebody else ended it, and its work with it.
      forget(stream);
    }
  }
}

void Epochs::watch(StreamHandle handle) {
  handle = named(handle);
  try {
    std::lock_guard recording(record_mutex_);
    mark_if(handle, false);
  } catch (const StreamCapturing&) {
  }
  std::lock_guard lock(mutex_);
  Stream& stream = streams_[handle.value];
  if (!stream.given_up) stream.watched = true;
}

void Epochs::give_up(StreamHandle handle) {
  std::lock_guard lock(mutex_);
  Stream& stream = streams_[handle.value];
  stream.given_up = stream.watched = stream.wanted = true;
  if (stream.owners == 0) stream.open = false;
}

Epochs::Ending Epochs::ending(StreamHandle handle) const {
  std::lock_guard lock(mutex_);
  const auto found = streams_.find(handle.value);
  if (found == streams_.end()) return Ending::over;
  const Stream& stream = found->second;
  if (stream.open || stream.owners != 0 || stream.capturing) return Ending::held;
  const bool over = !stream.watched && !stream.owed && stream.unfinished.empty();
  return over ? Ending::over : Ending::coming;
}

void Epochs::destroy(StreamHandle handle) {
  std::lock_guard nobody_asks(poll_mutex_);
  std::lock_guard nobody_records(record_mutex_);
  // This comes first, because the driver may give the same handle to somebody at once.
  const bool watched = forget(handle);
  try {
    driver_.destroy_stream(handle);
  } catch (...) {
    std::lock_guard lock(mutex_);
    streams_[handle.value].watched = watched;
    throw;
  }
}

/// Forgets a stream whose work is over, and returns whether it was watched. The caller holds poll_mutex_.
bool Epochs::forget(StreamHandle handle) {
  std::deque<Unfinished> over;
  bool watched;
  {
    std::lock_guard lock(mutex_);
    Stream& stream = streams_[handle.value];  // it stays: another stream may get the same handle
    stream.completed = ++stream.current;      // fences may wait for an epoch that nobody has marked yet
    watched = stream.watched;
    stream.open = stream.watched = stream.given_up = false;
    stream.owed = stream.wanted = stream.capturing = false;
    over.swap(stream.unfinished);
  }
  ++ended_;
  for (const Unfinished& entry : over) undo_or_leak([&] { driver_.destroy_event(entry.event); });
  return watched;
}

/// Returns the epoch that must be over before so much of the stream's work is; 0 where all of it is. The
/// caller holds the lock.
std::uint64_t Epochs::last_epoch(Stream& stream, Work work) {
  const bool more_to_come = stream.owed || (stream.watched && work != Work::marked);
  if (stream.open && (more_to_come || work == Work::all || (stream.owners == 0 && work != Work::marked)))
    return stream.current;
  if (!stream.open && more_to_come) {
    stream.wanted = true;
    return stream.current + 1;
  }
  std::uint64_t last = stream.last_marked;
  if (work != Work::marked) last = std::max(last, stream.last_outside_steps);
  if (work == Work::all && !stream.unfinished.empty()) last = stream.unfinished.back().epoch;
  return last > stream.completed ? last : 0;
}

void Epochs::poll() {
  std::unique_lock polling(poll_mutex_, std::try_to_lock);
  if (!polling) return;
  mark_wanted();
  for (StreamHandle stream : those([](const Stream& each) { return !each.unfinished.empty(); }))
    while (pop_finished(stream)) {
    }
}

/// Finds the last event that is over, by halves, because a stream's events complete in order. It looks only
/// at those that are surely on one stream. Returns false when the oldest is not over. The caller holds
/// poll_mutex_.
bool Epochs::pop_finished(StreamHandle handle) {
  std::vector<Unfinished> run;
  {
    std::lock_guard lock(mutex_);
    for (const Unfinished& entry : streams_[handle.value].unfinished) {
      run.push_back(entry);
      if (!entry.goes_on) break;
    }
  }
  std::size_t over = 0, unknown = run.size();
  for (std::size_t next = run.size(); over < unknown; next = (over + unknown + 1) / 2) {
    const Unfinished& entry = run[next - 1];
    try {
      if (driver_.query(entry.event))
        over = next;
      else
        unknown = next - 1;
    } catch (const StreamCapturing&) {
      drop(handle, entry);
      return true;
    }
  }
  if (over == 0) return false;
  {
    std::lock_guard lock(mutex_);
    Stream& stream = streams_[handle.value];
    for (std::size_t i = 0; i < over; ++i) stream.unfinished.pop_front();
    stream.completed = run[over - 1].epoch;
  }
  for (std::size_t i = 0; i < over; ++i) undo_or_leak([&] { driver_.destroy_event(run[i].event); });
  return true;
}

/// Drops an event that will never complete, because a capture began between looking and recording. A later
/// event covers its work, or else the work is marked anew.
void Epochs::drop(StreamHandle handle, const Unfinished& entry) {
  {
    std::lock_guard lock(mutex_);
    Stream& stream = streams_[handle.value];
    std::erase_if(stream.unfinished, [&](const Unfinished& each) { return each.epoch == entry.epoch; });
    const bool covered = !stream.unfinished.empty() && stream.unfinished.back().epoch > entry.epoch;
    if (!covered && !stream.open) stream.wanted = stream.owed = true;
  }
  undo_or_leak([&] { driver_.destroy_event(entry.event); });
}

bool Epochs::complete(const Fence& fence, std::optional<StreamHandle> but_for) const {
  if (but_for) but_for = named(*but_for);
  std::lock_guard lock(mutex_);
  return std::ranges::all_of(fence, [&](const StreamEpoch& entry) {
    auto found = streams_.find(entry.stream.value);
    return entry.stream == but_for || (found != streams_.end() && found->second.completed >= entry.epoch);
  });
}

bool Epochs::waits_for_open_epoch(const Fence& fence, std::optional<StreamHandle> but_for) const {
  if (but_for) but_for = named(*but_for);
  std::lock_guard lock(mutex_);
  return std::ranges::any_of(fence, [&](const StreamEpoch& entry) {
    const auto found = streams_.find(entry.stream.value);
    if (entry.stream == but_for || found == streams_.end()) return false;
    const Stream& stream = found->second;
    return (stream.open && stream.current == entry.epoch) ||
           (stream.capturing && stream.completed < entry.epoch);
  });
}

}  // namespace vmm
