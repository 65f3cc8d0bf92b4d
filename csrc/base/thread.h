// Threads of our own, inside somebody else's process.
#pragma once

#include <cstdint>
#include <functional>
#include <thread>

namespace vmm {

/// What a thread does when it wakes and another one has the processor.
enum class Waking : std::uint8_t {
  yields,    // SCHED_BATCH (sched(7)): waking it must not preempt whoever wakes it, in the middle of an
             // iteration
  preempts,  // the usual: for one that waits for a disk, which is idle until the thread has run
};

/// Runs `body` on a new thread that shows as `name` (at most 15 characters) and receives no signals: those
/// are for the application's threads, and Ctrl-C must reach Python's main thread. Throws std::system_error.
std::thread start_thread(const char* name, std::function<void()> body, Waking waking = Waking::yields);

}  // namespace vmm
