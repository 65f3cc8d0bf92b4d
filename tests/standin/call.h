// What every entry point has in common: the lock, the order of refusals, the log, faults, and looking up
// handles.
#pragma once

#include <optional>
#include <string>

#include "state.h"

#define STANDIN_API extern "C" __attribute__((visibility("default"))) CUresult

namespace standin {

enum Trait : unsigned {
  plain = 0,
  before_init = 1,  // may be called before cuInit
  cannot_fail = 2,  // knows no errors but wrong arguments: no faults are injected
  unsafe = 4,       // breaks a capture
  needs_context = 8,
};

struct Call {
  State& s;
  Lock& lock;
  const char* name;
  Trace from;
  Context* context;  // the current one, or null

  /// For what is undefined in the real driver: fails the test, or in count mode returns `result`.
  CUresult undefined(const std::string& what, CUresult result = CUDA_ERROR_INVALID_VALUE) const;
  /// The stream of a handle, default streams included.
  CUresult find(CUstream handle, StreamPtr& stream) const;
  CUresult find(CUevent handle, EventPtr& event) const;
  CUresult find(CUmemGenericAllocationHandle handle, std::shared_ptr<Handle>& found) const;
  bool is_device(int ordinal) const { return ordinal >= 0 && ordinal < s.settings.devices; }
};

CUresult begin(Call& call, unsigned traits);
/// Runs what standin_before put before this call. Without the lock: it may call CUDA.
void run_before(const char* name);

/// Runs `body(Call&)` as one call of the driver.
template <class Body>
CUresult enter(const char* name, unsigned traits, Body&& body) {
  if (forked()) return CUDA_ERROR_NOT_INITIALIZED;  // before the lock: a thread of the parent may hold it
  if (in_host_code()) return CUDA_ERROR_NOT_PERMITTED;
  const Trace from = here();
  run_before(name);
  State& s = state();
  Lock lock(s.mutex);
  Call call{s, lock, name, from, context_stack().current()};
  const CUresult refused = begin(call, traits);
  return refused != CUDA_SUCCESS ? refused : body(call);
}

/// Queues an operation on a stream, or records it where the stream captures. Reports what it races with.
CUresult submit(Call& call, const StreamPtr& stream, const OperationPtr& operation);
/// The same with the touched memory looked up first; INVALID_VALUE where it may not be touched.
CUresult submit_touching(Call& call, const StreamPtr& stream, const OperationPtr& operation);

// hazards.cpp
/// Reports queued work that touches addresses which are about to go away.
void check_addresses(const Call& call, const std::string& what, Address start, Size size);
/// Reports queued work that uses memory itself, under whatever address.
void check_physical(const Call& call, const std::string& what, const Physical& physical);
/// Reports queued work that the operation conflicts with and is not ordered after.
void check_races(const Call& call, const OperationPtr& operation);

}  // namespace standin
