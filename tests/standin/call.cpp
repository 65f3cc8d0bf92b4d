#include "call.h"

namespace standin {

CUresult begin(Call& call, unsigned traits) {
  State& s = call.s;
  s.faults.log(call.name);
  if (!s.initialised && (traits & before_init) == 0) return CUDA_ERROR_NOT_INITIALIZED;
  if ((traits & cannot_fail) == 0) {
    if (s.sticky != CUDA_SUCCESS) return s.sticky;
    if (const CUresult fault = s.faults.pass(call.name, call.from)) return fault;
  }
  if ((traits & needs_context) != 0) {
    if (call.context == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
    if (!call.context->alive()) return CUDA_ERROR_CONTEXT_IS_DESTROYED;
  }
  if ((traits & unsafe) != 0) return s.captures.unsafe_call();
  return CUDA_SUCCESS;
}

CUresult Call::undefined(const std::string& what, CUresult result) const {
  report(std::string(name) + ": " + what, from);
  return result;
}

CUresult Call::find(CUstream handle, StreamPtr& stream) const {
  const auto id = reinterpret_cast<std::uint64_t>(handle);
  if (id > 2) {
    const auto found = s.streams.streams.find(id);
    if (found == s.streams.streams.end())
      return undefined("no such stream; destroyed already?", CUDA_ERROR_INVALID_HANDLE);
    stream = found->second;
    return !stream->context->alive() ? CUDA_ERROR_CONTEXT_IS_DESTROYED : CUDA_SUCCESS;
  }
  if (context == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
  if (!context->alive()) return CUDA_ERROR_CONTEXT_IS_DESTROYED;
  if (id == 1 || (id == 0 && !per_thread_default())) {
    stream = context->legacy;
    return CUDA_SUCCESS;
  }
  StreamPtr& own = context->per_thread[std::this_thread::get_id()];
  if (own == nullptr) {
    own = std::make_shared<Stream>();
    own->id = s.streams.new_stream_id();
    own->context = context;
  }
  stream = own;
  return CUDA_SUCCESS;
}

CUresult Call::find(CUevent handle, EventPtr& event) const {
  const auto found = s.streams.events.find(reinterpret_cast<std::uint64_t>(handle));
  if (found == s.streams.events.end())
    return undefined("no such event; destroyed already?", CUDA_ERROR_INVALID_HANDLE);
  event = found->second;
  return CUDA_SUCCESS;
}

CUresult Call::find(CUmemGenericAllocationHandle handle, std::shared_ptr<Handle>& found) const {
  const auto it = s.ledger.handles.find(handle);
  if (it == s.ledger.handles.end() || it->second->references == 0)
    return undefined("no such allocation handle; released already?");
  found = it->second;
  return CUDA_SUCCESS;
}

CUresult submit(Call& call, const StreamPtr& stream, const OperationPtr& operation) {
  State& s = call.s;
  operation->stream = stream->id;
  operation->device = stream->context->device;
  if (operation->from.count == 0) operation->from = call.from;
  if (stream->capture != 0) {
    Capture* capture = s.captures.of(*stream);
    if (capture->invalid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    capture->nodes.push_back(*operation);
    ++capture->positions[stream->id];
    return CUDA_SUCCESS;
  }
  if (stream->legacy)
    if (const CUresult refused = s.captures.legacy_use(*stream->context, true)) return refused;
  for (OperationPtr& earlier : s.streams.predecessors(*stream))
    operation->before.push_back(std::move(earlier));
  check_races(call, operation);
  stream->last = operation;
  s.work.enqueue(operation, call.lock);
  return CUDA_SUCCESS;
}

CUresult submit_touching(Call& call, const StreamPtr& stream, const OperationPtr& operation) {
  for (Touch& touch : operation->touches) {
    Located located = call.s.ledger.locate(touch.start, touch.size, stream->context->device, touch.write);
    if (located.result != CUDA_SUCCESS) return located.result;
    touch.spans = std::move(located.spans);
  }
  return submit(call, stream, operation);
}

}  // namespace standin
