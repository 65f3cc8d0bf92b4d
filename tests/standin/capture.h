// Stream capture: what is recorded instead of run, and which calls break it.
#pragma once

#include <cstdint>
#include <map>
#include <thread>
#include <vector>

#include "streams.h"

namespace standin {

struct Capture {
  std::uint64_t id = 0;
  std::uint64_t origin = 0;  // stream
  Context* context = nullptr;
  bool blocking = false;  // a stream that waits for the legacy stream takes part
  int mode = CU_STREAM_CAPTURE_MODE_GLOBAL;
  std::thread::id thread;
  bool invalid = false;
  // By stream that takes part: how much it recorded, and how much of that another one waited for.
  std::map<std::uint64_t, std::uint64_t> positions;
  std::map<std::uint64_t, std::uint64_t> joined;
  std::vector<Operation> nodes;
};

/// What a capture leaves: its operations, in an order in which they can run.
struct Graph {
  std::vector<Operation> nodes;
  Trace from;
};

struct Captures {
  std::map<std::uint64_t, Capture> active;
  std::map<std::uint64_t, Graph> graphs;
  std::map<std::uint64_t, Graph> executables;
  std::uint64_t next = 1;

  /// 900 and every capture it breaks made invalid, where this thread may not make an unsafe call now.
  CUresult unsafe_call();
  /// Makes every capture of the context invalid. Whether there was one.
  bool break_all_of(const Context& context);
  Capture* of(const Stream& stream);
  /// 906 where work on the legacy stream would wait for a capturing one.
  CUresult legacy_use(const Context& context, bool invalidates);
};

/// Of this thread: cuThreadExchangeStreamCaptureMode.
int& capture_mode();

}  // namespace standin
