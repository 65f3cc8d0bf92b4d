// Contexts, streams and events, and which work waits for which.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <thread>

#include "cuda_abi.h"
#include "names.h"
#include "work.h"

namespace standin {

struct Stream {
  std::uint64_t id = 0;  // never one twice: it tells which work is in order
  std::uint64_t handle = 0;
  struct Context* context = nullptr;
  unsigned flags = 0;
  int priority = 0;
  bool legacy = false;
  OperationPtr last;
  std::uint64_t capture = 0;  // 0: none
  Trace from;

  bool blocking() const { return !legacy && (flags & CU_STREAM_NON_BLOCKING) == 0; }
};
using StreamPtr = std::shared_ptr<Stream>;

/// A device's primary context, or a green context of its: a part of the device, that lives as long. It is
/// never destroyed, only not retained.
struct Context {
  int device = 0;
  Context* primary = nullptr;  // of a green one
  long retained = 0;
  unsigned flags = 0;
  StreamPtr legacy;
  std::map<std::thread::id, StreamPtr> per_thread;
  std::vector<OperationPtr> orphans;  // the last work of destroyed streams that the legacy stream waits for

  bool alive() const { return (primary != nullptr ? primary : this)->retained > 0; }
  CUcontext handle() { return reinterpret_cast<CUcontext>(this); }
};

/// So many queries of an event may be in vain although nothing hinders it.
constexpr std::size_t most_patience = 4;

struct Event {
  std::uint64_t id = 0;
  Context* context = nullptr;
  unsigned flags = 0;
  bool recorded = false;
  OperationPtr operation;     // null where it never was recorded
  std::uint64_t capture = 0;  // recorded last in that capture, after so much of that stream
  std::uint64_t capture_stream = 0;
  std::uint64_t capture_position = 0;
  int patience = 0;  // so many queries before one helps
  Trace from;
};
using EventPtr = std::shared_ptr<Event>;

struct Streams {
  std::map<std::uint64_t, StreamPtr> streams;  // by handle
  std::map<std::uint64_t, EventPtr> events;
  std::uint64_t next_stream = 0x1000;
  Names stream_names{0x57000000, 16};
  Names event_names{0xE7000000, 16};

  std::uint64_t new_stream_id() { return next_stream += 16; }
  /// What the next operation on the stream must wait for.
  std::vector<OperationPtr> predecessors(const Stream& stream) const;
};

inline CUstream stream_handle(std::uint64_t id) { return reinterpret_cast<CUstream>(id); }
inline CUevent event_handle(std::uint64_t id) { return reinterpret_cast<CUevent>(id); }

}  // namespace standin
