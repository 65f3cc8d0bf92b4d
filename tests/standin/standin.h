// Control of the stand-in libcuda.so.1: what a test can set, make fail and ask. Every function is exported
// with C linkage and safe from any thread; none counts as a CUDA call.
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct {
  uint64_t start;
  uint64_t size;
} standin_range;

/// Starts afresh: counters, faults, reports, poison and the random order. Returns how many things are still
/// live (then nothing is done). cuInit and retained contexts stay.
int standin_reset(uint64_t seed);
/// Ends everything that is live, so that one test's leak is not the next one's.
void standin_abandon(void);
/// "capacity", "others" (bytes of each device that other processes have), "granularity", "version",
/// "low_alignment", "devices", "undefined_counts", "report_fd" (where misuse that aborts is told, too),
/// "site_depth", "queue_limit", "missing_result", "fill", "reuse_handles",
/// "hang" (1: kernels launched from now on do not end before it is 0), "no_peer" (device *
/// 16 + peer; -1: all reach all again), "peer_granularity", "rdma", "posix_fd", "compute_capability": see
/// Settings. Returns 0, or -1 for an unknown name.
int standin_set(const char* name, int64_t value);

/// The n-th call from now (1 is the next) that can fail for real, and the times-1 after it, return `code` and
/// do nothing. n = 0 switches it off.
void standin_fail_at(int64_t n, int code, int64_t times);
/// Only calls whose caller's file name contains this are made to fail, and only they count; "" is all.
void standin_fail_only(const char* module);
/// How many calls that can be made to fail there were since the last reset.
int64_t standin_calls(void);
/// How many calls failed by standin_fail_at since it was last called.
int64_t standin_failed(void);
/// "cuMemMap #12": the last call that was made to fail, and the how-many-th call it was. "" if none.
const char* standin_last_failed(void);
/// From now on every call returns `code`, as after a fault on the GPU; 0 ends it.
void standin_poison(int code);

/// The next call of `function`, on whatever thread, first runs `callback(arg)`, which may itself call CUDA.
/// Of several for one function each call takes one, the first first.
void standin_before(const char* function, void (*callback)(void*), void* arg);

/// How often a function was called (also when it failed) since the last reset. NULL: all of them.
int64_t standin_count(const char* function);
/// What was reported in count mode: misuse, and memory taken away from queued work.
int64_t standin_reports(void);
/// JSON texts. Each returns the size of the text with its terminator; nothing is written unless it fits.
size_t standin_last_report(char* buffer, size_t size);
size_t standin_log(char* buffer, size_t size);    // {"cuMemMap": 3, ...}
size_t standin_live(char* buffer, size_t size);   // {"reservations": [...], "handles": [...], ...}
size_t standin_sites(char* buffer, size_t size);  // [{"function", "site", "reached", "failed"}, ...]

/// A stream of a green context of the device, whose primary context must be retained. As there, its context
/// is another than the primary one, and events of the one cannot be recorded on streams of the other (cuda.h
/// on cuEventRecord; the real driver may be less strict).
int standin_green_stream(int device, void** stream);
/// Queues a "kernel" on a stream: `fn` is called when its turn comes, and touches nothing but what is
/// declared. Returns a CUresult.
int standin_launch(void* stream, void (*fn)(void*), void* arg, const standin_range* reads, size_t n_reads,
                   const standin_range* writes, size_t n_writes);
/// Runs everything that is queued, on all streams of all contexts.
void standin_sync_all(void);
/// How much work is queued.
int64_t standin_queued(void);

#ifdef __cplusplus
}
#endif
