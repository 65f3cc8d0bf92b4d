#include "capture.h"

namespace standin {

int& capture_mode() {
  thread_local int mode = CU_STREAM_CAPTURE_MODE_GLOBAL;
  return mode;
}

CUresult Captures::unsafe_call() {
  if (capture_mode() == CU_STREAM_CAPTURE_MODE_RELAXED) return CUDA_SUCCESS;
  bool refused = false;
  for (auto& [id, capture] : active) {
    const bool own =
        capture.thread == std::this_thread::get_id() && capture.mode != CU_STREAM_CAPTURE_MODE_RELAXED;
    const bool others =
        capture_mode() == CU_STREAM_CAPTURE_MODE_GLOBAL && capture.mode == CU_STREAM_CAPTURE_MODE_GLOBAL;
    if (!own && !others) continue;
    capture.invalid = true;
    refused = true;
  }
  return refused ? CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED : CUDA_SUCCESS;
}

bool Captures::break_all_of(const Context& context) {
  bool any = false;
  for (auto& [id, capture] : active)
    if (capture.context == &context) any = capture.invalid = true;
  return any;
}

Capture* Captures::of(const Stream& stream) {
  const auto found = active.find(stream.capture);
  return found == active.end() ? nullptr : &found->second;
}

CUresult Captures::legacy_use(const Context& context, bool invalidates) {
  CUresult result = CUDA_SUCCESS;
  for (auto& [id, capture] : active) {
    if (capture.context != &context || !capture.blocking) continue;
    capture.invalid = capture.invalid || invalidates;
    result = CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
  }
  return result;
}

}  // namespace standin
