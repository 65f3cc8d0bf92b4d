// The streams that a pool has made. A stream is in use until its owner ends it; it is destroyed when the work
// on it is over.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "memory/ground.h"
#include "memory/tables.h"

namespace vmm {

/// Safe from any thread, and called without the pool's lock. Streams that are left when this is destroyed
/// stay with the driver, which leaves them to the process.
class Streams {
 public:
  Streams(Ground& ground, Tables& tables) : ground_(ground), tables_(tables) {}
  Streams(const Streams&) = delete;
  Streams& operator=(const Streams&) = delete;

  /// Makes a stream. Throws Closed.
  StreamHandle create();
  /// Its owner puts no more work on the stream. This waits for nobody: a later sweep() destroys the stream
  /// when its work is over. It does nothing with a handle that is no stream of these, or no longer.
  void end(StreamHandle stream);
  void end_all();
  /// Ends the stream, waits for its work and destroys it. Throws InvalidArgument for a handle that is no
  /// stream of these, unless the pool is closed.
  void destroy(StreamHandle stream);
  /// Copies on `stream`; whatever is released from here on waits for that copy. Throws Closed if the stream
  /// has ended.
  void copy(Address to, Address from, Bytes size, StreamHandle stream);
  /// Waits for the work on a stream, whoever made it. Throws Closed if it has ended.
  void synchronize(StreamHandle stream);
  /// Is called when an epoch was closed: memory that was given up in it may be had soon.
  void epoch_closed();

  /// Destroys the streams that have ended and whose work is over. Returns how many others have ended and will
  /// be over by themselves.
  std::uint64_t sweep() noexcept;
  bool empty() const;
  bool any_ended() const { return !ended().empty(); }

 private:
  /// While this lives the stream is not destroyed, if it is one of these.
  class Use {
   public:
    /// Throws Closed if its owner has ended it, unless that does not matter.
    Use(Streams& streams, StreamHandle stream, bool ended_too = false);
    ~Use();
    Use(const Use&) = delete;
    Use& operator=(const Use&) = delete;
    bool ours() const noexcept { return ours_; }

   private:
    Streams& streams_;
    const StreamHandle stream_;
    bool ours_ = false;
  };

  struct Own {
    bool ended = false;
    std::uint32_t users = 0;
  };

  bool end_own(StreamHandle stream);
  bool await_and_destroy(StreamHandle stream);
  void wait_for(StreamHandle stream);
  void destroy_if_unused(StreamHandle stream);
  std::vector<StreamHandle> ended() const;

  Ground& ground_;
  Tables& tables_;
  mutable Mutex mutex_{LockRank::streams};
  std::map<std::uint64_t, Own> own_;
};

}  // namespace vmm
