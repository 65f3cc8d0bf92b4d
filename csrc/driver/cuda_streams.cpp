// The CUDA driver's streams and events, and the work that it puts on them.
#include <utility>

#include "base/undo.h"
#include "driver/cuda_driver.h"

namespace vmm {
namespace {

constexpr StreamHandle per_thread{2};  // CU_STREAM_PER_THREAD
bool is_default(StreamHandle stream) { return stream.value <= 1; }

/// 0 and 1 are two names of the legacy default stream. 2 means another stream in every thread.
void require_one_stream(StreamHandle stream) {
  if (stream == per_thread)
    throw InvalidArgument(
        "stream: 2 (CU_STREAM_PER_THREAD) is another stream in every thread, and events are recorded by "
        "several: name a stream of its own");
}

[[noreturn]] void refuse_capturing() {
  throw StreamCapturing("stream: it is being captured into a graph; call this before or after");
}

}  // namespace

CudaDriver::~CudaDriver() {
  if (fork_guard_.in_child()) return;
  events_.insert(spare_events_.begin(), spare_events_.end());
  events_.insert(stuck_events_.begin(), stuck_events_.end());
  for (std::uint64_t event : events_)
    undo_or_leak([&] {
      const cuda::Calls::Scope scope = enter();
      cuda_("cuEventDestroy", cuda_.api().cuEventDestroy, to_cuda(EventHandle{event}));
    });
  // We wait for nobody. Work goes on after its stream is destroyed, but not without its context.
  for (std::uint64_t stream : streams_)
    if (!is_over({stream})) cuda_.keep_context();
  streams_.insert(reinterpret_cast<std::uint64_t>(own_stream_));
  for (std::uint64_t stream : streams_)
    undo_or_leak([&] {
      const cuda::Calls::Scope scope = enter();
      cuda_("cuStreamDestroy", cuda_.api().cuStreamDestroy, to_cuda(StreamHandle{stream}));
    });
}

/// Whether we know that the work on a stream of ours is over.
bool CudaDriver::is_over(StreamHandle stream) const noexcept {
  bool over = false;
  undo_or_leak([&] {
    const cuda::Calls::Scope scope = enter();
    const cuda::Result result = cuda_.ask(cuda_.api().cuStreamQuery, to_cuda(stream));
    over = result == cuda::success;
    if (!over && result != cuda::not_ready)
      cuda_.fail("cuStreamQuery", result, cuda::text(stream.value) + ", ");
  });
  return over;
}

void CudaDriver::bind_thread() {
  fork_guard_.require_parent(this_driver);
  cuda_.bind_thread();
}

void CudaDriver::together(const std::function<void()>& work) {
  const cuda::Calls::Scope scope = enter();
  work();
}

bool CudaDriver::is_capturing(StreamHandle stream) const {
  int status = cuda::capture_none;
  const cuda::Result result = cuda_.ask(cuda_.api().cuStreamIsCapturing, to_cuda(stream), &status);
  if (result == cuda::capture_implicit) return true;  // the default stream would wait for a stream that is
  if (result != cuda::success) cuda_.fail("cuStreamIsCapturing", result, cuda::text(stream.value) + ", ");
  return status != cuda::capture_none;
}

bool CudaDriver::capturing(StreamHandle stream) {
  if (stream == whole_device) return false;  // nobody can know
  const cuda::Calls::Scope scope = enter();
  require_one_stream(stream);
  return is_capturing(stream);
}

/// This cannot find out that a handle is no stream at all: CUDA does not define what happens then.
void CudaDriver::check_stream(StreamHandle stream) const {
  require_one_stream(stream);
  if (is_capturing(stream)) refuse_capturing();
  if (!is_default(stream)) context_of(stream);
}

/// Returns the context of a stream: ours, or another one of our device, for example a green context. Not to
/// be asked of a default stream.
cuda::Context CudaDriver::context_of(StreamHandle stream) const {
  cuda::Context context = nullptr;
  cuda_("cuStreamGetCtx", cuda_.api().cuStreamGetCtx, to_cuda(stream), &context);
  if (context == cuda_.context()) return context;
  cuda::Device device = 0;
  const cuda::Calls::Current current(cuda_, context);
  cuda_("cuCtxGetDevice", cuda_.api().cuCtxGetDevice, &device);
  if (device != cuda_.device())
    throw InvalidArgument("stream: of another device than cuda:" + std::to_string(cuda_.ordinal()));
  return context;
}

template <class Work>
void CudaDriver::on_stream(StreamHandle stream, Work work) {
  if (stream.value != 0) {
    check_stream(stream);
    return work(to_cuda(stream));
  }
  try {
    work(own_stream_);
    cuda_("cuStreamSynchronize", cuda_.api().cuStreamSynchronize, own_stream_);
  } catch (...) {
    // A part of the work may be queued already, and the caller is about to take its memory away.
    for (int i = 0; i < 10 && cuda_.api().cuStreamSynchronize(own_stream_) != cuda::success; ++i) continue;
    throw;
  }
}

void CudaDriver::copy(Address to, Address from, Bytes size, StreamHandle stream) {
  const cuda::Calls::Scope scope = enter();
  on_stream(stream, [&](cuda::Stream on) {
    cuda_("cuMemcpyAsync", cuda_.api().cuMemcpyAsync, to.value, from.value, size.count, on);
  });
}

void CudaDriver::zero(std::span<const MemoryRange> ranges, StreamHandle stream) {
  const cuda::Calls::Scope scope = enter();
  on_stream(stream, [&](cuda::Stream on) {
    for (const MemoryRange& range : ranges)
      cuda_("cuMemsetD8Async", cuda_.api().cuMemsetD8Async, range.start.value, 0u, range.size.count, on);
  });
}

StreamHandle CudaDriver::create_stream() {
  const cuda::Calls::Scope scope = enter();
  cuda::Stream stream = nullptr;
  cuda_("cuStreamCreate", cuda_.api().cuStreamCreate, &stream, cuda::stream_non_blocking);
  std::lock_guard lock(mutex_);
  const auto value = reinterpret_cast<std::uint64_t>(stream);
  streams_.insert(value);
  return {value};
}

void CudaDriver::destroy_stream(StreamHandle stream) {
  const cuda::Calls::Scope scope = enter();
  {
    std::lock_guard lock(mutex_);
    if (streams_.erase(stream.value) == 0)
      throw InvalidArgument("stream: not a stream that was created here");
  }
  try {
    cuda_("cuStreamSynchronize", cuda_.api().cuStreamSynchronize, to_cuda(stream));
    cuda_("cuStreamDestroy", cuda_.api().cuStreamDestroy, to_cuda(stream));
  } catch (...) {
    std::lock_guard lock(mutex_);
    streams_.insert(stream.value);
    throw;
  }
}

/// Returns an event that is in use from now on. Where an old one is spare this makes no call.
EventHandle CudaDriver::take_event() {
  {
    std::lock_guard lock(mutex_);
    if (!spare_events_.empty()) {
      const std::uint64_t event = spare_events_.back();
      spare_events_.pop_back();
      events_.insert(event);
      return {event};
    }
  }
  const cuda::Calls::Scope scope = enter();
  return create_event(false);
}

/// Makes an event of the context that is current.
EventHandle CudaDriver::create_event(bool foreign) {
  cuda::Event event = nullptr;
  cuda_("cuEventCreate", cuda_.api().cuEventCreate, &event, cuda::event_no_timing);
  const EventHandle made{reinterpret_cast<std::uint64_t>(event)};
  std::lock_guard lock(mutex_);
  events_.insert(made.value);
  if (foreign) foreign_events_.insert(made.value);
  return made;
}

/// Records in the context that is current. A record on the default stream could break a capture, so there
/// this asks before. On any other stream it asks afterwards, because a capture could begin between the
/// question and the record. An event that got into a capture never completes, and a query of it would break
/// the capture, but the event by itself does no harm there.
cuda::Result CudaDriver::record(EventHandle event, StreamHandle stream) const {
  if (stream == whole_device) {
    const auto result = cuda_.ask(cuda_.api().cuCtxRecordEvent, cuda_.context(), to_cuda(event));
    return result == cuda::capture_unsupported ? cuda::capture_implicit : result;
  }
  int status = cuda::capture_none;
  if (is_default(stream)) {
    const cuda::Result result = cuda_.ask(cuda_.api().cuStreamIsCapturing, to_cuda(stream), &status);
    if (result != cuda::success) return result;
  }
  const cuda::Result result = cuda_.ask(cuda_.api().cuEventRecord, to_cuda(event), to_cuda(stream));
  if (result != cuda::success) return result;
  return !is_default(stream) && is_capturing(stream) ? cuda::capture_implicit : cuda::success;
}

EventHandle CudaDriver::record(StreamHandle stream) {
  fork_guard_.require_parent(this_driver);
  require_one_stream(stream);
  if (stream == whole_device && !capabilities_.device_events)
    throw InvalidArgument("stream: this CUDA driver has no events of the whole device; CUDA 12.5 has");
  EventHandle event = take_event();
  try {
    // The first attempt does without a Scope, which costs three calls. Where another context is current CUDA
    // refuses, because the event belongs to ours.
    cuda::Result result = record(event, stream);
    if (stream != whole_device && (result == cuda::invalid_context || result == cuda::invalid_handle ||
                                   (result == cuda::capture_implicit && is_default(stream)))) {
      const cuda::Calls::Scope scope = enter();
      const cuda::Context context = is_default(stream) ? cuda_.context() : context_of(stream);
      if (context != cuda_.context() && result == cuda::invalid_handle) {
        const cuda::Calls::Current current(cuda_, context);
        destroy_event(std::exchange(event, create_event(true)));
      }
      result = record(event, stream);
    }
    if (result == cuda::capture_implicit || result == cuda::capture_invalidated) refuse_capturing();
    if (result != cuda::success)
      cuda_.fail(stream == whole_device ? "cuCtxRecordEvent" : "cuEventRecord", result,
                 cuda::text(event.value) + ", " + cuda::text(stream.value) + ", ");
  } catch (...) {
    destroy_event(event);
    throw;
  }
  return event;
}

void CudaDriver::check_event(EventHandle event) {
  std::lock_guard lock(mutex_);
  if (!events_.contains(event.value)) throw InvalidArgument("event: not an event of this driver");
}

bool CudaDriver::query(EventHandle event) {
  fork_guard_.require_parent(this_driver);
  check_event(event);
  const cuda::Calls::Relaxed relaxed(cuda_);
  const cuda::Result result = cuda_.ask(cuda_.api().cuEventQuery, to_cuda(event));
  if (result == cuda::not_ready) return false;
  if (result == cuda::captured_event)
    throw StreamCapturing("event: it was recorded into a capture that has ended");
  if (result != cuda::success) cuda_.fail("cuEventQuery", result, cuda::text(event.value) + ", ");
  return true;
}

void CudaDriver::wait(EventHandle event) {
  const cuda::Calls::Scope scope = enter();
  check_event(event);
  cuda_("cuEventSynchronize", cuda_.api().cuEventSynchronize, to_cuda(event));
}

/// Keeps the event for the next record. We keep as many as were ever in use at once, which the device's own
/// queues bound. An event of another context is not kept, because that context may end before us.
void CudaDriver::destroy_event(EventHandle event) {
  fork_guard_.require_parent(this_driver);
  {
    std::lock_guard lock(mutex_);
    if (events_.erase(event.value) == 0) throw InvalidArgument("event: not an event of this driver");
    if (foreign_events_.erase(event.value) == 0) return spare_events_.push_back(event.value);
  }
  bool destroyed = false;
  undo_or_leak([&] {
    const cuda::Calls::Scope scope = enter();
    cuda_("cuEventDestroy", cuda_.api().cuEventDestroy, to_cuda(event));
    destroyed = true;
  });
  if (destroyed) return;
  std::lock_guard lock(mutex_);
  stuck_events_.push_back(event.value);
}

std::size_t CudaDriver::events_in_use() const {
  std::lock_guard lock(mutex_);
  return events_.size();
}

}  // namespace vmm
