// The proof that work is over. An epoch is one iteration on one stream; a fence names, for every stream, the
// last epoch that may touch something. What a fence covers may be reused when all of them have completed.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <vector>

#include "base/lock.h"
#include "driver/driver.h"

namespace vmm {

struct StreamEpoch {
  StreamHandle stream;
  std::uint64_t epoch;
  bool operator==(const StreamEpoch&) const = default;
};

/// An empty fence waits for nothing. Each stream is named once, in ascending order.
using Fence = std::vector<StreamEpoch>;

/// Which work of a stream a fence waits for.
enum class Work : std::uint8_t {
  all,
  outside_steps,  // only work that no cache's step has told of: what is on streams that are watched or that
                  // no cache steps, and what was marked
  marked,         // only work that was marked
};

/// Safe from any thread.
class Epochs {
 public:
  explicit Epochs(Driver& driver) : driver_(driver) {}
  ~Epochs();
  Epochs(const Epochs&) = delete;
  Epochs& operator=(const Epochs&) = delete;

  /// Closes the stream's open epoch, if any, by recording an event, and opens the next.
  void step(StreamHandle stream) { close(stream, true); }
  /// Closes the open epoch without opening another: the engine goes idle.
  void end(StreamHandle stream) { close(stream, false); }
  /// Whoever steps a stream joins it first. When the last one leaves, the open epoch ends, because nobody
  /// else would end it. Leaving throws what end() throws.
  void join(StreamHandle stream);
  void leave(StreamHandle stream);
  /// Makes every fence from now on wait for the work that is on the stream now, although no step has told of
  /// it: it counts as an epoch that was closed just here, unless an open epoch covers it anyway. Where the
  /// driver fails, fences wait for it all the same, as on a watched stream.
  void mark(StreamHandle stream);
  /// The same, but only fences that name all work of the stream (Work::all) wait for it, like the caller's
  /// next one; those of others need not.
  void cover(StreamHandle stream);

  /// From now on work may come onto the stream at any time without being announced: every fence also waits
  /// for what is on it then. The stream must live as long as this, or be ended by destroy(): work that no
  /// event covers cannot be waited for once its stream is gone, even where the handle is another's by then.
  /// Throws what mark() throws, but not because the stream is being captured.
  void watch(StreamHandle stream);

  /// The stream's owner puts no more work on it, and does not wait. Fences wait for what is on it as before,
  /// marked or not. An open epoch of a stream that nobody has joined ends here. Like fence(), this calls no
  /// driver.
  void give_up(StreamHandle stream);
  /// How far the work is on a stream that was given up. `coming` ends by itself; `held` may last until
  /// somebody closes an epoch, leaves the stream, or ends a capture.
  enum class Ending : std::uint8_t { over, coming, held };
  Ending ending(StreamHandle stream) const;

  /// Ends the stream, and with it its work: nothing waits for its epochs any more, the open one included.
  void destroy(StreamHandle stream);
  /// How many streams have ended so far: a handle that was watched before may be another stream's by now.
  std::uint64_t streams_ended() const noexcept { return ended_.load(); }

  /// The one name that is used here for a stream. CUDA's default stream has two.
  StreamHandle named(StreamHandle stream) const {
    return stream.value == 0 ? driver_.capabilities().default_stream : stream;
  }

  /// A fence over all work that is open or unfinished now. It calls no driver: the next poll() makes an epoch
  /// of what is on watched streams.
  Fence fence() {
    return fence([](StreamHandle) { return Work::all; });
  }
  /// The same, but of each stream only the work that `which(stream)` says. It is called under a lock.
  template <class Which>
  Fence fence(Which which) {
    std::lock_guard lock(mutex_);
    Fence fence;
    for (auto& [handle, stream] : streams_) {
      if (StreamHandle{handle} == whole_device) continue;  // its events are those of device_fence()
      if (const std::uint64_t epoch = last_epoch(stream, which(StreamHandle{handle})); epoch != 0)
        fence.push_back({{handle}, epoch});
    }
    return fence;
  }
  /// A fence over everything that the device has been given until now, also by others on streams of which
  /// nobody has told. It records an event: throws what cover() throws, StreamCapturing also where any stream
  /// of the device is being captured (which that breaks), and InvalidArgument where the driver has no such
  /// events.
  Fence device_fence();
  /// Asks the driver which epochs are over. This is cheap when none is unfinished.
  void poll();
  /// Whether all epochs of the fence are over. The stream `but_for`, if given, does not count: it is that of
  /// whoever asks, whose next work comes after everything on it.
  bool complete(const Fence& fence, std::optional<StreamHandle> but_for = {}) const;
  /// Whether an epoch of the fence is still open or its stream is being captured, so that it can complete
  /// only after somebody closes it or ends the capture. The stream `but_for`, if given, does not count: its
  /// next step() or end() is due.
  bool waits_for_open_epoch(const Fence& fence, std::optional<StreamHandle> but_for = {}) const;

 private:
  struct Unfinished {
    std::uint64_t epoch;
    EventHandle event;
    bool goes_on;  // the next epoch was opened at once: its event is on the same stream, not on a later one
                   // of the same handle
  };
  struct Stream {
    std::uint64_t current = 0;  // the last epoch opened
    std::uint64_t completed = 0;
    std::uint32_t owners = 0;  // that have joined
    bool open = false;
    bool watched = false;    // or given up, and its last work is not marked yet
    bool given_up = false;   // by its owner: there is no more work to come
    bool owed = false;       // work is on it that could not be marked
    bool wanted = false;     // a fence waits for what is on it, and no event has been recorded for that yet
    bool capturing = false;  // when that was last tried: nothing can be recorded until somebody ends it
    std::uint64_t last_outside_steps = 0;  // the last epoch with work that no cache's step has told of
    std::uint64_t last_marked = 0;         // the last epoch with work that was marked
    std::deque<Unfinished> unfinished;
  };

  void close(StreamHandle stream, bool open_next);
  static std::uint64_t last_epoch(Stream& stream, Work work);
  static void recorded(Stream& stream, const Unfinished& entry);
  template <class Is>
  std::vector<StreamHandle> those(Is is) const;
  bool mark_if(StreamHandle stream, bool only_wanted);
  void mark_wanted();
  bool forget(StreamHandle stream);
  bool pop_finished(StreamHandle stream);
  void drop(StreamHandle stream, const Unfinished& entry);

  Driver& driver_;
  Mutex poll_mutex_{LockRank::epochs_poll};  // one poller at a time, so that nobody queries a destroyed event
  Mutex record_mutex_{LockRank::epochs_record};  // events are recorded in the order of their epochs
  std::atomic<std::uint64_t> ended_{0};
  mutable Mutex mutex_{LockRank::epochs};
  std::map<std::uint64_t, Stream> streams_;
};

}  // namespace vmm
