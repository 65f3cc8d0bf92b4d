// Streams on the CPU: each is a queue of work with a thread that does it in order. Events tell how far a
// stream is.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <thread>
#include <utility>

#include "base/fork.h"
#include "base/lock.h"
#include "driver/driver.h"

namespace vmm {

/// Safe from any thread. Stream 0 is the calling thread itself: its work is over when the call returns.
class HostStreams {
 public:
  HostStreams() = default;
  /// Waits for nobody. A queue that is not empty is left to its thread, and that thread to the process. In a
  /// forked child, which does not have the threads, nothing is done at all.
  ~HostStreams();
  HostStreams(const HostStreams&) = delete;
  HostStreams& operator=(const HostStreams&) = delete;

  StreamHandle create();
  /// Waits for the work on the stream.
  void destroy(StreamHandle stream);
  /// Puts work on the stream, which touches the two ranges of memory: see in_use().
  void run(StreamHandle stream, std::pair<MemoryRange, MemoryRange> touches, std::function<void()> work);

  /// Also of whole_device.
  EventHandle record(StreamHandle stream);
  bool query(EventHandle event) const;
  void wait(EventHandle event);
  void destroy(EventHandle event);

  /// Whether any work that is queued or under way touches the range.
  bool in_use(MemoryRange range) const;

 private:
  struct Task {
    std::pair<MemoryRange, MemoryRange> touches;
    std::function<void()> work;
  };
  struct Stream {
    std::deque<Task> queue;       // the front one is being done
    std::uint64_t completed = 0;  // so many tasks have left the queue
    bool stop = false;            // the thread is to end when the queue is empty
    std::thread worker;
  };
  /// For each stream, how many of its tasks must be done until the event completes.
  using Event = std::map<std::uint64_t, std::uint64_t>;
  /// What the threads use, too. It lives as long as the last of them.
  struct Shared {
    Condition submitted;
    Condition completed;
    Mutex mutex{LockRank::host_streams};  // guards what follows
    std::map<std::uint64_t, std::shared_ptr<Stream>> streams;
    std::map<std::uint64_t, Event> events;
    std::uint64_t next_stream = 1;
    std::uint64_t next_event = 1;

    Stream& find(StreamHandle stream) const;
    const Event& find(EventHandle event) const;
    bool over(const Event& event) const;
  };

  static void work_off(Shared& shared, Stream& stream);

  ForkGuard fork_guard_;
  std::shared_ptr<Shared> shared_ = std::make_shared<Shared>();
};

}  // namespace vmm
