// Stream capture, and the graphs it makes.
#include <algorithm>

#include "api.h"
#include "call.h"

using namespace standin;

namespace {

std::uint64_t number(const void* handle) { return reinterpret_cast<std::uint64_t>(handle); }

/// Streams that took part are ordinary again.
void leave(State& s, std::uint64_t capture) {
  const auto clear = [&](Stream& stream) {
    if (stream.capture == capture) stream.capture = 0;
  };
  for (const auto& [id, stream] : s.streams.streams) clear(*stream);
  for (Context& context : s.contexts)
    for (const auto& [thread, stream] : context.per_thread) clear(*stream);
}

bool all_joined(const Capture& capture) {
  return std::ranges::all_of(capture.positions, [&](const auto& entry) {
    const auto joined = capture.joined.find(entry.first);
    return entry.first == capture.origin ||
           (joined != capture.joined.end() && joined->second >= entry.second);
  });
}

}  // namespace

STANDIN_API cuThreadExchangeStreamCaptureMode(int* mode) {
  return enter("cuThreadExchangeStreamCaptureMode", plain, [&](Call&) -> CUresult {
    if (mode == nullptr || *mode < CU_STREAM_CAPTURE_MODE_GLOBAL || *mode > CU_STREAM_CAPTURE_MODE_RELAXED)
      return CUDA_ERROR_INVALID_VALUE;
    std::swap(*mode, capture_mode());
    return CUDA_SUCCESS;
  });
}

STANDIN_API cuStreamBeginCapture_v2(CUstream handle, int mode) {
  return enter("cuStreamBeginCapture", plain, [&](Call& call) -> CUresult {
    StreamPtr stream;
    if (const CUresult refused = call.find(handle, stream)) return refused;
    if (mode < CU_STREAM_CAPTURE_MODE_GLOBAL || mode > CU_STREAM_CAPTURE_MODE_RELAXED)
      return CUDA_ERROR_INVALID_VALUE;
    if (stream->legacy) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    if (stream->capture != 0) return CUDA_ERROR_ILLEGAL_STATE;
    Captures& captures = call.s.captures;
    Capture& capture = captures.active[captures.next];
    capture.id = captures.next++;
    capture.origin = stream->id;
    capture.context = stream->context;
    capture.blocking = stream->blocking();
    capture.mode = mode;
    capture.thread = std::this_thread::get_id();
    capture.positions[stream->id] = 0;
    stream->capture = capture.id;
    return CUDA_SUCCESS;
  });
}

STANDIN_API cuStreamEndCapture(CUstream handle, CUgraph* graph) {
  return enter("cuStreamEndCapture", plain, [&](Call& call) -> CUresult {
    StreamPtr stream;
    if (const CUresult refused = call.find(handle, stream)) return refused;
    if (graph == nullptr) return CUDA_ERROR_INVALID_VALUE;
    *graph = nullptr;
    Captures& captures = call.s.captures;
    Capture* capture = captures.of(*stream);
    if (capture == nullptr) return CUDA_ERROR_ILLEGAL_STATE;
    if (capture->mode != CU_STREAM_CAPTURE_MODE_RELAXED && capture->thread != std::this_thread::get_id())
      return CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD;
    if (capture->origin != stream->id) {
      capture->invalid = true;
      return CUDA_ERROR_STREAM_CAPTURE_UNMATCHED;
    }
    const Capture ended = std::move(*capture);
    captures.active.erase(ended.id);
    leave(call.s, ended.id);
    if (ended.invalid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    if (!all_joined(ended)) return CUDA_ERROR_STREAM_CAPTURE_UNJOINED;
    const std::uint64_t id = 0x6A000000 + 16 * captures.next++;
    captures.graphs[id] = {ended.nodes, call.from};
    *graph = reinterpret_cast<CUgraph>(id);
    return CUDA_SUCCESS;
  });
}

STANDIN_API cuStreamIsCapturing(CUstream handle, int* status) {
  return enter("cuStreamIsCapturing", plain, [&](Call& call) -> CUresult {
    StreamPtr stream;
    if (status == nullptr) return CUDA_ERROR_INVALID_VALUE;
    if (const CUresult refused = call.find(handle, stream)) return refused;
    if (stream->legacy)
      if (const CUresult refused = call.s.captures.legacy_use(*stream->context, false)) return refused;
    const Capture* capture = call.s.captures.of(*stream);
    *status = capture == nullptr ? CU_STREAM_CAPTURE_STATUS_NONE
              : capture->invalid ? CU_STREAM_CAPTURE_STATUS_INVALIDATED
                                 : CU_STREAM_CAPTURE_STATUS_ACTIVE;
    return CUDA_SUCCESS;
  });
}

STANDIN_API cuGraphInstantiateWithFlags(CUgraphExec* executable, CUgraph graph, unsigned long long) {
  return enter("cuGraphInstantiate", plain, [&](Call& call) -> CUresult {
    Captures& captures = call.s.captures;
    if (executable == nullptr) return CUDA_ERROR_INVALID_VALUE;
    const auto found = captures.graphs.find(number(graph));
    if (found == captures.graphs.end()) return call.undefined("no such graph; destroyed already?");
    const std::uint64_t id = 0x6E000000 + 16 * captures.next++;
    captures.executables[id] = {found->second.nodes, call.from};
    *executable = reinterpret_cast<CUgraphExec>(id);
    return CUDA_SUCCESS;
  });
}

STANDIN_API cuGraphLaunch(CUgraphExec executable, CUstream handle) {
  return enter("cuGraphLaunch", plain, [&](Call& call) -> CUresult {
    StreamPtr stream;
    if (const CUresult refused = call.find(handle, stream)) return refused;
    const auto found = call.s.captures.executables.find(number(executable));
    if (found == call.s.captures.executables.end())
      return call.undefined("no such executable graph; destroyed already?");
    if (stream->capture != 0) return CUDA_ERROR_NOT_SUPPORTED;  // a graph in a graph: nobody here needs it
    for (const Operation& node : std::vector<Operation>(found->second.nodes)) {
      const CUresult result = submit_touching(call, stream, std::make_shared<Operation>(node));
      if (result == CUDA_ERROR_INVALID_VALUE)
        return call.undefined("a graph whose " + node.what + " touches what is not mapped or not accessible",
                              CUDA_ERROR_ILLEGAL_ADDRESS);
      if (result != CUDA_SUCCESS) return result;
    }
    return CUDA_SUCCESS;
  });
}

STANDIN_API cuGraphExecDestroy(CUgraphExec executable) {
  return enter("cuGraphExecDestroy", plain, [&](Call& call) -> CUresult {
    if (call.s.captures.executables.erase(number(executable)) == 0)
      return call.undefined("no such executable graph; destroyed already?");
    return CUDA_SUCCESS;
  });
}

STANDIN_API cuGraphDestroy(CUgraph graph) {
  return enter("cuGraphDestroy", plain, [&](Call& call) -> CUresult {
    if (call.s.captures.graphs.erase(number(graph)) == 0)
      return call.undefined("no such graph; destroyed already?");
    return CUDA_SUCCESS;
  });
}
