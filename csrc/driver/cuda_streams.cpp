// The CUDA driver's streams and events, and what it does on them.
#include "base/undo.h"
#include "driver/cuda_driver.h"

namespace vmm {
namespace {

cuda::Stream to_cuda(StreamHandle stream) { return reinterpret_cast<cuda::Stream>(stream.value); }
cuda::Event to_cuda(EventHandle event) { return reinterpret_cast<cuda::Event>(event.value); }

}  // namespace

CudaDriver::~CudaDriver() {
  if (fork_guard_.in_child()) return;
  for (std::uint64_t event : std::set(events_)) undo_or_leak([&] { destroy_event({event}); });
  for (std::uint64_t stream : std::set(streams_)) undo_or_leak([&] { destroy_stream({stream}); });
  undo_or_leak([this] {
    const Scope scope(*this);
    cuda_("cuStreamDestroy", cuda_.api().cuStreamDestroy, own_stream_);
  });
}

void CudaDriver::bind_thread() {
  fork_guard_.require_parent("this CUDA device's driver");
  cuda_.bind_thread();
}

void CudaDriver::check_accessible(const char* argument, Address address, Bytes size) {
  std::lock_guard lock(mutex_);
  ledger_.check_accessible(argument, address, size);
}

/// A handle that is no stream at all cannot be told: CUDA does not define what happens then.
void CudaDriver::check_stream(StreamHandle stream) const {
  int status = cuda::capture_none;
  const cuda::Result result = cuda_.ask(cuda_.api().cuStreamIsCapturing, to_cuda(stream), &status);
  if (result == cuda::capture_implicit || (result == cuda::success && status != cuda::capture_none))
    throw StreamCapturing("stream: it is being captured into a graph; call this before or after");
  if (result != cuda::success) cuda_.fail("cuStreamIsCapturing", result, cuda::text(stream.value) + ", ");
  if (stream.value == 0) return;
  cuda::Context context = nullptr;
  cuda_("cuStreamGetCtx", cuda_.api().cuStreamGetCtx, to_cuda(stream), &context);
  if (context != cuda_.context())
    throw InvalidArgument("stream: of another device than cuda:" + std::to_string(cuda_.ordinal()));
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
    // A part may be queued already, and the caller is about to take the memory away.
    for (int i = 0; i < 10 && cuda_.api().cuStreamSynchronize(own_stream_) != cuda::success; ++i) continue;
    throw;
  }
}

void CudaDriver::copy(Address to, Address from, Bytes size, StreamHandle stream) {
  const Scope scope(*this);
  check_accessible("to", to, size);
  check_accessible("from", from, size);
  on_stream(stream, [&](cuda::Stream on) {
    cuda_("cuMemcpyAsync", cuda_.api().cuMemcpyAsync, to.value, from.value, size.count, on);
  });
}

void CudaDriver::zero(std::span<const MemoryRange> ranges, StreamHandle stream) {
  const Scope scope(*this);
  for (const MemoryRange& range : ranges) check_accessible("ranges", range.start, range.size);
  on_stream(stream, [&](cuda::Stream on) {
    for (const MemoryRange& range : ranges)
      cuda_("cuMemsetD8Async", cuda_.api().cuMemsetD8Async, range.start.value, 0u, range.size.count, on);
  });
}

StreamHandle CudaDriver::create_stream() {
  const Scope scope(*this);
  cuda::Stream stream = nullptr;
  cuda_("cuStreamCreate", cuda_.api().cuStreamCreate, &stream, cuda::stream_non_blocking);
  std::lock_guard lock(mutex_);
  const auto value = reinterpret_cast<std::uint64_t>(stream);
  streams_.insert(value);
  return {value};
}

void CudaDriver::destroy_stream(StreamHandle stream) {
  const Scope scope(*this);
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

EventHandle CudaDriver::record(StreamHandle stream) {
  const Scope scope(*this);
  check_stream(stream);
  cuda::Event event = nullptr;
  cuda_("cuEventCreate", cuda_.api().cuEventCreate, &event, cuda::event_no_timing);
  const EventHandle made{reinterpret_cast<std::uint64_t>(event)};
  {
    std::lock_guard lock(mutex_);
    events_.insert(made.value);  // first: where the undoing fails too, it is destroyed with the driver
  }
  try {
    cuda_("cuEventRecord", cuda_.api().cuEventRecord, event, to_cuda(stream));
  } catch (...) {
    undo_or_leak([&] { destroy_event(made); });
    throw;
  }
  return made;
}

void CudaDriver::check_event(EventHandle event) {
  std::lock_guard lock(mutex_);
  if (!events_.contains(event.value)) throw InvalidArgument("event: not an event of this driver");
}

bool CudaDriver::query(EventHandle event) {
  const Scope scope(*this);
  check_event(event);
  const cuda::Result result = cuda_.ask(cuda_.api().cuEventQuery, to_cuda(event));
  if (result == cuda::not_ready) return false;
  if (result != cuda::success) cuda_.fail("cuEventQuery", result, cuda::text(event.value) + ", ");
  return true;
}

void CudaDriver::wait(EventHandle event) {
  const Scope scope(*this);
  check_event(event);
  cuda_("cuEventSynchronize", cuda_.api().cuEventSynchronize, to_cuda(event));
}

void CudaDriver::destroy_event(EventHandle event) {
  const Scope scope(*this);
  {
    std::lock_guard lock(mutex_);
    // First: the driver may give the same handle to somebody at once.
    if (events_.erase(event.value) == 0) throw InvalidArgument("event: not an event of this driver");
  }
  try {
    cuda_("cuEventDestroy", cuda_.api().cuEventDestroy, to_cuda(event));
  } catch (...) {
    std::lock_guard lock(mutex_);
    events_.insert(event.value);
    throw;
  }
}

}  // namespace vmm
