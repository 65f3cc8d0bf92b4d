// Streams.
#include "api.h"
#include "call.h"

using namespace standin;

namespace {

void create(Call& call, Context* context, CUstream* handle, unsigned flags, int priority) {
  auto stream = std::make_shared<Stream>();
  stream->id = call.s.streams.new_stream_id();
  stream->context = context;
  stream->flags = flags;
  stream->priority = priority;
  stream->from = call.from;
  stream->handle = call.s.streams.stream_names.take(call.s.settings.reuse_handles);
  *handle = stream_handle(stream->handle);
  call.s.streams.streams[stream->handle] = std::move(stream);
}

CUresult create(const char* name, CUstream* handle, unsigned flags, int priority) {
  return enter(name, needs_context, [&](Call& call) -> CUresult {
    if (handle == nullptr || (flags & ~unsigned{CU_STREAM_NON_BLOCKING}) != 0)
      return CUDA_ERROR_INVALID_VALUE;
    create(call, call.context, handle, flags, priority);
    return CUDA_SUCCESS;
  });
}

/// What only tells of a stream.
template <class Answer>
CUresult tell(const char* name, CUstream handle, const void* out, Answer answer) {
  return enter(name, plain, [&](Call& call) -> CUresult {
    if (out == nullptr) return CUDA_ERROR_INVALID_VALUE;
    StreamPtr stream;
    if (const CUresult refused = call.find(handle, stream)) return refused;
    answer(*stream);
    return CUDA_SUCCESS;
  });
}

/// 900 for a stream whose work is recorded: nobody can wait for it.
CUresult refuse_capturing(Call& call, const Stream& stream) {
  if (stream.legacy) return call.s.captures.legacy_use(*stream.context, true);
  Capture* capture = call.s.captures.of(stream);
  if (capture == nullptr) return CUDA_SUCCESS;
  capture->invalid = true;
  return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
}

}  // namespace

STANDIN_API cuStreamCreate(CUstream* stream, unsigned flags) {
  return create("cuStreamCreate", stream, flags, 0);
}

STANDIN_API cuStreamCreateWithPriority(CUstream* stream, unsigned flags, int priority) {
  return create("cuStreamCreateWithPriority", stream, flags, priority);
}

extern "C" __attribute__((visibility("default"))) int standin_green_stream(int device, void** stream) {
  return enter("standin_green_stream", cannot_fail, [&](Call& call) -> CUresult {
    if (!call.is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
    Context& context = call.s.green_contexts[static_cast<std::size_t>(device)];
    if (!context.alive()) return CUDA_ERROR_CONTEXT_IS_DESTROYED;
    CUstream made = nullptr;
    create(call, &context, &made, CU_STREAM_NON_BLOCKING, 0);
    *stream = made;
    return CUDA_SUCCESS;
  });
}

STANDIN_API cuStreamDestroy_v2(CUstream handle) {
  return enter("cuStreamDestroy", plain, [&](Call& call) -> CUresult {
    if (reinterpret_cast<std::uintptr_t>(handle) <= 2)
      return call.undefined("a default stream cannot be destroyed", CUDA_ERROR_INVALID_HANDLE);
    StreamPtr stream;
    if (const CUresult refused = call.find(handle, stream)) return refused;
    if (const CUresult refused = refuse_capturing(call, *stream)) return refused;
    auto& orphans = stream->context->orphans;
    std::erase_if(orphans, [](const OperationPtr& operation) { return operation->observed; });
    if (stream->blocking() && stream->last != nullptr) orphans.push_back(stream->last);
    call.s.streams.streams.erase(stream->handle);  // its work goes on
    call.s.streams.stream_names.end(stream->handle, call.s.settings.reuse_handles);
    return CUDA_SUCCESS;
  });
}

STANDIN_API cuStreamSynchronize(CUstream handle) {
  return enter("cuStreamSynchronize", unsafe, [&](Call& call) -> CUresult {
    StreamPtr stream;
    if (const CUresult refused = call.find(handle, stream)) return refused;
    if (const CUresult refused = refuse_capturing(call, *stream)) return refused;
    if (const OperationPtr last = stream->last) call.s.work.finish(last, call.lock);
    return CUDA_SUCCESS;
  });
}

STANDIN_API cuStreamQuery(CUstream handle) {
  return enter("cuStreamQuery", unsafe, [&](Call& call) -> CUresult {
    StreamPtr stream;
    if (const CUresult refused = call.find(handle, stream)) return refused;
    if (const CUresult refused = refuse_capturing(call, *stream)) return refused;
    const OperationPtr last = stream->last;
    if (last == nullptr) return CUDA_SUCCESS;
    if (!last->done) {
      if (call.s.chance(3)) call.s.work.advance(last, call.lock);
      return CUDA_ERROR_NOT_READY;
    }
    call.s.work.observe(last);
    return CUDA_SUCCESS;
  });
}

STANDIN_API cuStreamGetCtx(CUstream handle, CUcontext* context) {
  return tell("cuStreamGetCtx", handle, context,
              [&](Stream& stream) { *context = stream.context->handle(); });
}
STANDIN_API cuStreamGetFlags(CUstream handle, unsigned* flags) {
  return tell("cuStreamGetFlags", handle, flags, [&](const Stream& stream) { *flags = stream.flags; });
}
STANDIN_API cuStreamGetPriority(CUstream handle, int* priority) {
  return tell("cuStreamGetPriority", handle, priority,
              [&](const Stream& stream) { *priority = stream.priority; });
}
STANDIN_API cuStreamGetId(CUstream handle, unsigned long long* id) {
  return tell("cuStreamGetId", handle, id, [&](const Stream& stream) { *id = stream.id; });
}
STANDIN_API cuStreamGetDevice(CUstream handle, CUdevice* device) {
  return tell("cuStreamGetDevice", handle, device,
              [&](const Stream& stream) { *device = stream.context->device; });
}
