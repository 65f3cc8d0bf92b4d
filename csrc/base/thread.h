// Threads of our own, inside somebody else's process.
#pragma once

#include <functional>
#include <thread>

namespace vmm {

/// Runs `body` on a new thread that shows as `name` (at most 15 characters) and receives no signals: those
/// are for the application's threads, and Ctrl-C must reach Python's main thread. It is scheduled as
/// SCHED_BATCH (sched(7)): waking it must not preempt whoever wakes it, in the middle of an iteration. Throws
/// std::system_error.
std::thread start_thread(const char* name, std::function<void()> body);

}  // namespace vmm
