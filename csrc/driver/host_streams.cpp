#include "driver/host_streams.h"

#include <algorithm>
#include <string>
#include <system_error>
#include <utility>

#include "base/error.h"
#include "base/thread.h"

namespace vmm {

HostStreams::~HostStreams() {
  if (fork_guard_.in_child()) {
    // Here nobody may destroy a condition variable that the parent's threads wait on, nor a joinable thread.
    (void)new std::shared_ptr<Shared>(shared_);
    return;
  }
  for (auto& [id, stream] : shared_->streams) {
    bool idle = false;
    {
      std::lock_guard lock(shared_->mutex);
      stream->stop = true;
      idle = stream->queue.empty();
      shared_->submitted.notify_all();
    }
    if (idle)
      stream->worker.join();
    else
      stream->worker.detach();
  }
}

StreamHandle HostStreams::create() {
  const auto made = std::make_shared<Stream>();
  std::lock_guard lock(shared_->mutex);
  try {
    made->worker = start_thread("vmm-stream", [shared = shared_, made] { work_off(*shared, *made); });
  } catch (const std::system_error& error) {
    throw DriverError(std::string("create_stream: ") + error.what());
  }
  shared_->streams[shared_->next_stream] = made;
  return {shared_->next_stream++};
}

HostStreams::Stream& HostStreams::Shared::find(StreamHandle stream) const {
  const auto found = streams.find(stream.value);
  if (found == streams.end() || found->second->stop)
    throw InvalidArgument("stream: not a stream of this driver");
  return *found->second;
}

void HostStreams::destroy(StreamHandle handle) {
  std::thread worker;
  {
    std::lock_guard lock(shared_->mutex);
    Stream& stream = shared_->find(handle);
    stream.stop = true;
    shared_->submitted.notify_all();
    worker = std::move(stream.worker);
  }
  worker.join();
  std::lock_guard lock(shared_->mutex);
  shared_->streams.erase(handle.value);
  shared_->completed.notify_all();
}

void HostStreams::run(StreamHandle handle, std::pair<MemoryRange, MemoryRange> touches,
                      std::function<void()> work) {
  if (handle.value == 0) return work();
  std::lock_guard lock(shared_->mutex);
  shared_->find(handle).queue.push_back({touches, std::move(work)});
  shared_->submitted.notify_all();
}

void HostStreams::work_off(Shared& shared, Stream& stream) {
  std::unique_lock lock(shared.mutex);
  for (;;) {
    shared.submitted.wait(lock, [&] { return stream.stop || !stream.queue.empty(); });
    if (stream.queue.empty()) return;
    const auto& work = stream.queue.front().work;  // a deque's front stays where it is
    lock.unlock();
    work();
    lock.lock();
    stream.queue.pop_front();
    ++stream.completed;
    shared.completed.notify_all();
  }
}

EventHandle HostStreams::record(StreamHandle stream) {
  std::lock_guard lock(shared_->mutex);
  Event event;
  const auto add = [&](std::uint64_t id, const Stream& on) { event[id] = on.completed + on.queue.size(); };
  if (stream == whole_device) {
    for (const auto& [id, on] : shared_->streams) add(id, *on);
  } else if (stream.value != 0) {
    add(stream.value, shared_->find(stream));
  }
  shared_->events[shared_->next_event] = std::move(event);
  return {shared_->next_event++};
}

const HostStreams::Event& HostStreams::Shared::find(EventHandle event) const {
  const auto found = events.find(event.value);
  if (found == events.end()) throw InvalidArgument("event: not an event of this driver");
  return found->second;
}

/// A stream that was destroyed has done its work.
bool HostStreams::Shared::over(const Event& event) const {
  return std::ranges::all_of(event, [&](const auto& entry) {
    const auto found = streams.find(entry.first);
    return found == streams.end() || found->second->completed >= entry.second;
  });
}

bool HostStreams::query(EventHandle event) const {
  std::lock_guard lock(shared_->mutex);
  return shared_->over(shared_->find(event));
}

void HostStreams::wait(EventHandle event) {
  std::unique_lock lock(shared_->mutex);
  const Event waited = shared_->find(event);
  shared_->completed.wait(lock, [&] { return shared_->over(waited); });
}

void HostStreams::destroy(EventHandle event) {
  std::lock_guard lock(shared_->mutex);
  if (shared_->events.erase(event.value) == 0) throw InvalidArgument("event: not an event of this driver");
}

bool HostStreams::in_use(MemoryRange range) const {
  std::lock_guard lock(shared_->mutex);
  for (const auto& [id, stream] : shared_->streams)
    for (const Task& task : stream->queue)
      if (overlap(task.touches.first, range) || overlap(task.touches.second, range)) return true;
  return false;
}

}  // namespace vmm
