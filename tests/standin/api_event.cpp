// Events.
#include "api.h"
#include "call.h"

using namespace standin;

namespace {

constexpr unsigned event_flags = CU_EVENT_BLOCKING_SYNC | CU_EVENT_DISABLE_TIMING | CU_EVENT_INTERPROCESS;

OperationPtr marker(std::string what) {
  auto made = std::make_shared<Operation>();
  made->what = std::move(what);
  return made;
}

CUresult record(const char* name, CUevent event_name, CUstream stream_name) {
  return enter(name, plain, [&](Call& call) -> CUresult {
    EventPtr event;
    StreamPtr stream;
    if (const CUresult refused = call.find(event_name, event)) return refused;
    if (const CUresult refused = call.find(stream_name, stream)) return refused;
    if (event->context != stream->context) return CUDA_ERROR_INVALID_HANDLE;
    const OperationPtr operation = marker("an event's record");
    if (const CUresult refused = submit(call, stream, operation)) return refused;
    event->recorded = true;
    event->capture = stream->capture;
    event->operation = stream->capture != 0 ? nullptr : operation;
    event->patience = static_cast<int>(call.s.pick(most_patience));
    if (Capture* capture = call.s.captures.of(*stream)) {
      event->capture_stream = stream->id;
      event->capture_position = capture->positions[stream->id];
    }
    return CUDA_SUCCESS;
  });
}

/// 907 for an event recorded in a capture, which it breaks.
CUresult refuse_captured(Call& call, const Event& event) {
  if (event.capture == 0) return CUDA_SUCCESS;
  const auto found = call.s.captures.active.find(event.capture);
  if (found != call.s.captures.active.end()) found->second.invalid = true;
  return CUDA_ERROR_CAPTURED_EVENT;
}

/// A capturing stream waits for an event, or a stream for an event of a capture, which it joins by that.
CUresult wait_in_capture(Call& call, Stream& stream, const Event& event) {
  auto& active = call.s.captures.active;
  Capture* of_stream = call.s.captures.of(stream);
  const auto found = active.find(event.capture);
  if (of_stream != nullptr && of_stream->invalid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
  if (event.capture != 0 && found == active.end()) return CUDA_ERROR_CAPTURED_EVENT;
  if (event.capture == 0) {
    if (!event.recorded) return CUDA_SUCCESS;
    of_stream->invalid = true;
    return CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
  }
  Capture& capture = found->second;
  if (capture.invalid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
  if (stream.legacy) {
    capture.invalid = true;
    return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
  }
  if (of_stream != nullptr && of_stream != &capture) {
    of_stream->invalid = capture.invalid = true;
    return CUDA_ERROR_STREAM_CAPTURE_MERGE;
  }
  stream.capture = capture.id;
  capture.positions.try_emplace(stream.id, 0);
  capture.blocking = capture.blocking || stream.blocking();
  if (stream.id != event.capture_stream) {
    ++capture.positions[stream.id];  // it must be waited for anew
    std::uint64_t& joined = capture.joined[event.capture_stream];
    joined = std::max(joined, event.capture_position);
  }
  return CUDA_SUCCESS;
}

CUresult elapsed(float* milliseconds, CUevent start_name, CUevent end_name) {
  return enter("cuEventElapsedTime", plain, [&](Call& call) -> CUresult {
    EventPtr start;
    EventPtr end;
    if (milliseconds == nullptr) return CUDA_ERROR_INVALID_VALUE;
    if (const CUresult refused = call.find(start_name, start)) return refused;
    if (const CUresult refused = call.find(end_name, end)) return refused;
    for (const EventPtr& event : {start, end})
      if (const CUresult refused = refuse_captured(call, *event)) return refused;
    for (const EventPtr& event : {start, end})
      if ((event->flags & CU_EVENT_DISABLE_TIMING) != 0 || event->operation == nullptr)
        return CUDA_ERROR_INVALID_HANDLE;
    if (!start->operation->done || !end->operation->done) return CUDA_ERROR_NOT_READY;
    *milliseconds =
        std::chrono::duration<float, std::milli>(end->operation->done_at - start->operation->done_at).count();
    return CUDA_SUCCESS;
  });
}

}  // namespace

STANDIN_API cuEventCreate(CUevent* handle, unsigned flags) {
  return enter("cuEventCreate", needs_context, [&](Call& call) -> CUresult {
    const bool shared_with_timing =
        (flags & CU_EVENT_INTERPROCESS) != 0 && (flags & CU_EVENT_DISABLE_TIMING) == 0;
    if (handle == nullptr || (flags & ~event_flags) != 0 || shared_with_timing)
      return CUDA_ERROR_INVALID_VALUE;
    auto event = std::make_shared<Event>();
    event->id = call.s.streams.event_names.take(call.s.settings.reuse_handles);
    event->context = call.context;
    event->flags = flags;
    event->from = call.from;
    *handle = event_handle(event->id);
    call.s.streams.events[event->id] = std::move(event);
    return CUDA_SUCCESS;
  });
}

STANDIN_API cuEventDestroy_v2(CUevent handle) {
  bool again = false;
  const CUresult result = enter("cuEventDestroy", plain, [&](Call& call) -> CUresult {
    EventPtr event;
    if (const CUresult refused = call.find(handle, event)) return refused;
    again = call.s.settings.reuse_handles;
    call.s.streams.events.erase(event->id);
    call.s.streams.event_names.end(event->id, again);
    return CUDA_SUCCESS;
  });
  linger(again);
  return result;
}

STANDIN_API cuEventRecord(CUevent event, CUstream stream) { return record("cuEventRecord", event, stream); }

STANDIN_API cuEventRecordWithFlags(CUevent event, CUstream stream, unsigned flags) {
  return flags > 1 ? CUDA_ERROR_INVALID_VALUE : record("cuEventRecordWithFlags", event, stream);
}

STANDIN_API cuEventQuery(CUevent handle) {
  return enter("cuEventQuery", unsafe, [&](Call& call) -> CUresult {
    EventPtr event;
    if (const CUresult refused = call.find(handle, event)) return refused;
    if (const CUresult refused = refuse_captured(call, *event)) return refused;
    const OperationPtr operation = event->operation;
    if (operation == nullptr) return CUDA_SUCCESS;
    if (!operation->done) {
      if (event->patience-- > 0)
        call.s.chance(4) ? call.s.work.wander(call.lock) : void();
      else
        call.s.work.advance(operation, call.lock);
      return CUDA_ERROR_NOT_READY;
    }
    call.s.work.observe(operation);
    return CUDA_SUCCESS;
  });
}

STANDIN_API cuEventSynchronize(CUevent handle) {
  return enter("cuEventSynchronize", unsafe, [&](Call& call) -> CUresult {
    EventPtr event;
    if (const CUresult refused = call.find(handle, event)) return refused;
    if (const CUresult refused = refuse_captured(call, *event)) return refused;
    if (const OperationPtr operation = event->operation) call.s.work.finish(operation, call.lock);
    return CUDA_SUCCESS;
  });
}

STANDIN_API cuEventElapsedTime(float* milliseconds, CUevent start, CUevent end) {
  return elapsed(milliseconds, start, end);
}
STANDIN_API cuEventElapsedTime_v2(float* milliseconds, CUevent start, CUevent end) {
  return elapsed(milliseconds, start, end);
}

STANDIN_API cuStreamWaitEvent(CUstream stream_name, CUevent event_name, unsigned flags) {
  return enter("cuStreamWaitEvent", plain, [&](Call& call) -> CUresult {
    StreamPtr stream;
    EventPtr event;
    if (flags > 1) return CUDA_ERROR_INVALID_VALUE;
    if (const CUresult refused = call.find(stream_name, stream)) return refused;
    if (const CUresult refused = call.find(event_name, event)) return refused;
    if (stream->capture != 0 || event->capture != 0) return wait_in_capture(call, *stream, *event);
    if (event->operation == nullptr || event->operation->observed) return CUDA_SUCCESS;
    const OperationPtr operation = marker("a wait for an event");
    operation->before.push_back(event->operation);
    return submit(call, stream, operation);
  });
}
