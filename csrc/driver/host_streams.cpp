#include "driver/host_streams.h"

#include <string>
#include <system_error>

#include "base/error.h"
#include "base/thread.h"

namespace vmm {
namespace {

bool overlap(const MemoryRange& a, const MemoryRange& b) {
  return a.start < b.start + b.size && b.start < a.start + a.size;
}

}  // namespace

HostStreams::~HostStreams() {
  if (fork_guard_.in_child()) {
    (void)signals_.release();
    for (auto& [id, stream] : streams_) (void)stream.release();  // a joinable std::thread must not die
    return;
  }
  while (!streams_.empty()) destroy(StreamHandle{streams_.begin()->first});
}

StreamHandle HostStreams::create() {
  auto stream = std::make_unique<Stream>();
  Stream& made = *stream;
  std::lock_guard lock(mutex_);
  try {
    made.worker = start_thread("vmm-stream", [this, &made] { work_off(made); });
  } catch (const std::system_error& error) {
    throw DriverError(std::string("create_stream: ") + error.what());
  }
  streams_[next_stream_] = std::move(stream);
  return {next_stream_++};
}

HostStreams::Stream& HostStreams::find(StreamHandle stream) const {
  const auto found = streams_.find(stream.value);
  if (found == streams_.end() || found->second->stop)
    throw InvalidArgument("stream: not a stream of this driver");
  return *found->second;
}

void HostStreams::destroy(StreamHandle handle) {
  std::thread worker;
  {
    std::lock_guard lock(mutex_);
    Stream& stream = find(handle);
    stream.stop = true;
    signals_->submitted.notify_all();
    worker = std::move(stream.worker);
  }
  worker.join();
  std::lock_guard lock(mutex_);
  streams_.erase(handle.value);
  signals_->completed.notify_all();
}

void HostStreams::run(StreamHandle handle, std::pair<MemoryRange, MemoryRange> touches,
                      std::function<void()> work) {
  if (handle.value == 0) return work();
  std::lock_guard lock(mutex_);
  Stream& stream = find(handle);
  stream.queue.push_back({touches, std::move(work)});
  ++stream.submitted;
  signals_->submitted.notify_all();
}

void HostStreams::work_off(Stream& stream) {
  std::unique_lock lock(mutex_);
  for (;;) {
    signals_->submitted.wait(lock, [&] { return stream.stop || !stream.queue.empty(); });
    if (stream.queue.empty()) return;
    const auto& work = stream.queue.front().work;  // a deque's front stays where it is
    lock.unlock();
    work();
    lock.lock();
    stream.queue.pop_front();
    ++stream.completed;
    signals_->completed.notify_all();
  }
}

EventHandle HostStreams::record(StreamHandle stream) {
  std::lock_guard lock(mutex_);
  events_[next_event_] = {stream.value, stream.value == 0 ? 0 : find(stream).submitted};
  return {next_event_++};
}

const HostStreams::Event& HostStreams::find(EventHandle event) const {
  const auto found = events_.find(event.value);
  if (found == events_.end()) throw InvalidArgument("event: not an event of this driver");
  return found->second;
}

/// A stream that is gone has done its work.
bool HostStreams::over(const Event& event) const {
  const auto found = streams_.find(event.stream);
  return found == streams_.end() || found->second->completed >= event.after;
}

bool HostStreams::query(EventHandle event) const {
  std::lock_guard lock(mutex_);
  return over(find(event));
}

void HostStreams::wait(EventHandle event) {
  std::unique_lock lock(mutex_);
  const Event waited = find(event);
  signals_->completed.wait(lock, [&] { return over(waited); });
}

void HostStreams::destroy(EventHandle event) {
  std::lock_guard lock(mutex_);
  if (events_.erase(event.value) == 0) throw InvalidArgument("event: not an event of this driver");
}

bool HostStreams::in_use(MemoryRange range) const {
  std::lock_guard lock(mutex_);
  for (const auto& [id, stream] : streams_)
    for (const Task& task : stream->queue)
      if (overlap(task.touches.first, range) || overlap(task.touches.second, range)) return true;
  return false;
}

}  // namespace vmm
