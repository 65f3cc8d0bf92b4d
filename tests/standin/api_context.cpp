// Primary contexts, and which one a thread uses.
#include "api.h"
#include "call.h"

using namespace standin;

namespace {

/// Null for what is no context of ours.
Context* known(State& s, CUcontext handle) {
  for (Context& context : s.contexts)
    if (context.handle() == handle) return &context;
  for (Context& context : s.green_contexts)
    if (context.handle() == handle) return &context;
  return nullptr;
}

}  // namespace

STANDIN_API cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
  return enter("cuDevicePrimaryCtxRetain", plain, [&](Call& call) -> CUresult {
    if (context == nullptr) return CUDA_ERROR_INVALID_VALUE;
    if (!call.is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
    Context& primary = call.s.contexts[static_cast<std::size_t>(device)];
    ++primary.retained;
    *context = primary.handle();
    return CUDA_SUCCESS;
  });
}

STANDIN_API cuDevicePrimaryCtxRelease_v2(CUdevice device) {
  return enter("cuDevicePrimaryCtxRelease", plain, [&](Call& call) -> CUresult {
    State& s = call.s;
    if (!call.is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
    Context& primary = s.contexts[static_cast<std::size_t>(device)];
    if (primary.retained == 0) return CUDA_ERROR_INVALID_CONTEXT;
    if (primary.retained > 1) {
      --primary.retained;
      return CUDA_SUCCESS;
    }
    // The real driver destroys what is left. Whoever relied on that would use it after its end.
    std::size_t left = 0;
    for (const auto& [id, stream] : s.streams.streams) left += stream->context == &primary;
    for (const auto& [id, event] : s.streams.events) left += event->context == &primary;
    for (const auto& [start, allocation] : s.ledger.allocations) left += allocation.device == device;
    if (left > 0)
      call.undefined("the last release, with " + std::to_string(left) +
                     " streams, events and allocations of the context still there");
    s.work.finish_all(call.lock);
    --primary.retained;
    return CUDA_SUCCESS;
  });
}

STANDIN_API cuDevicePrimaryCtxSetFlags_v2(CUdevice device, unsigned flags) {
  return enter("cuDevicePrimaryCtxSetFlags", plain, [&](Call& call) -> CUresult {
    if (!call.is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
    if ((flags & ~0xFFU) != 0) return CUDA_ERROR_INVALID_VALUE;
    call.s.contexts[static_cast<std::size_t>(device)].flags = flags;
    return CUDA_SUCCESS;
  });
}

STANDIN_API cuDevicePrimaryCtxGetState(CUdevice device, unsigned* flags, int* active) {
  return enter("cuDevicePrimaryCtxGetState", plain, [&](Call& call) -> CUresult {
    if (flags == nullptr || active == nullptr) return CUDA_ERROR_INVALID_VALUE;
    if (!call.is_device(device)) return CUDA_ERROR_INVALID_DEVICE;
    const Context& primary = call.s.contexts[static_cast<std::size_t>(device)];
    *flags = primary.flags;
    *active = primary.retained > 0;
    return CUDA_SUCCESS;
  });
}

STANDIN_API cuCtxGetCurrent(CUcontext* context) {
  return enter("cuCtxGetCurrent", plain, [&](Call& call) -> CUresult {
    if (context == nullptr) return CUDA_ERROR_INVALID_VALUE;
    *context = call.context == nullptr ? nullptr : call.context->handle();
    return CUDA_SUCCESS;
  });
}

STANDIN_API cuCtxSetCurrent(CUcontext handle) {
  return enter("cuCtxSetCurrent", plain, [&](Call& call) -> CUresult {
    ContextStack& stack = context_stack();
    Context* context = known(call.s, handle);
    if (handle != nullptr && context == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
    if (stack.count > 0) --stack.count;
    if (context != nullptr) stack.entries[static_cast<std::size_t>(stack.count++)] = context;
    return CUDA_SUCCESS;
  });
}

STANDIN_API cuCtxPushCurrent_v2(CUcontext handle) {
  return enter("cuCtxPushCurrent", plain, [&](Call& call) -> CUresult {
    ContextStack& stack = context_stack();
    Context* context = known(call.s, handle);
    if (context == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
    if (stack.count == static_cast<int>(stack.entries.size()))
      return call.undefined("pushed for the " + std::to_string(stack.count) + "th time without a pop");
    stack.entries[static_cast<std::size_t>(stack.count++)] = context;
    return CUDA_SUCCESS;
  });
}

STANDIN_API cuCtxPopCurrent_v2(CUcontext* handle) {
  return enter("cuCtxPopCurrent", plain, [&](Call& call) -> CUresult {
    if (call.context == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
    if (handle != nullptr) *handle = call.context->handle();
    --context_stack().count;
    return CUDA_SUCCESS;
  });
}

STANDIN_API cuCtxGetDevice(CUdevice* device) {
  return enter("cuCtxGetDevice", plain, [&](Call& call) -> CUresult {
    if (device == nullptr) return CUDA_ERROR_INVALID_VALUE;
    if (call.context == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
    *device = call.context->device;
    return CUDA_SUCCESS;
  });
}

STANDIN_API cuCtxGetFlags(unsigned* flags) {
  return enter("cuCtxGetFlags", needs_context, [&](Call& call) -> CUresult {
    if (flags == nullptr) return CUDA_ERROR_INVALID_VALUE;
    *flags = call.context->flags;
    return CUDA_SUCCESS;
  });
}

STANDIN_API cuCtxGetApiVersion(CUcontext handle, unsigned* version) {
  return enter("cuCtxGetApiVersion", plain, [&](Call& call) -> CUresult {
    if (version == nullptr) return CUDA_ERROR_INVALID_VALUE;
    if (handle != nullptr && known(call.s, handle) == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
    if (handle == nullptr && call.context == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
    *version = 3020;
    return CUDA_SUCCESS;
  });
}

STANDIN_API cuCtxGetStreamPriorityRange(int* least, int* greatest) {
  return enter("cuCtxGetStreamPriorityRange", needs_context, [&](Call&) -> CUresult {
    if (least != nullptr) *least = 0;
    if (greatest != nullptr) *greatest = -5;
    return CUDA_SUCCESS;
  });
}

/// An event of all work of the context, and of the device's green contexts where it is the primary one: here,
/// of the device.
STANDIN_API cuCtxRecordEvent(CUcontext handle, CUevent event_name) {
  return enter("cuCtxRecordEvent", plain, [&](Call& call) -> CUresult {
    Context* context = handle == nullptr ? call.context : known(call.s, handle);
    EventPtr event;
    if (context == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
    if (!context->alive()) return CUDA_ERROR_CONTEXT_IS_DESTROYED;
    if (const CUresult refused = call.find(event_name, event)) return refused;
    if (event->context != context) return CUDA_ERROR_INVALID_HANDLE;
    if (call.s.captures.break_all_of(*context)) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    const auto operation = std::make_shared<Operation>();
    operation->what = "an event's record of a whole context";
    operation->from = call.from;
    operation->device = context->device;
    for (const auto& [id, earlier] : call.s.work.unobserved())
      if (earlier->device == context->device) operation->before.push_back(earlier);
    event->recorded = true;
    event->capture = 0;
    event->operation = operation;
    event->patience = static_cast<int>(call.s.pick(most_patience));
    call.s.work.enqueue(operation, call.lock);
    return CUDA_SUCCESS;
  });
}

STANDIN_API cuCtxSynchronize() {
  return enter("cuCtxSynchronize", needs_context | unsafe, [&](Call& call) -> CUresult {
    for (const auto& [id, capture] : call.s.captures.active)
      if (capture.context == call.context) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    call.s.work.finish_all(call.lock);  // of other devices too: they may run when they like
    return CUDA_SUCCESS;
  });
}
