// The streams that a pool has made: in use, or ended by their owner and destroyed when their work is over.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "memory/ground.h"
#include "memory/tables.h"

namespace vmm {

/// Safe from any thread, called without the pool's lock. What is left when this ends is the driver's, and
/// left by that to the process.
class Streams {
 public:
  Streams(Ground& ground, Tables& tables) : ground_(ground), tables_(tables) {}
  Streams(const Streams&) = delete;
  Streams& operator=(const Streams&) = delete;

  /// Throws Closed.
  StreamHandle create();
  /// There will be no more work on it. Waits for nobody: it is destroyed by the sweep() after its work.
  /// Nothing for what is no stream of these (any more).
  void end(StreamHandle stream);
  void end_all();
  /// end(), and waits for its work. Throws InvalidArgument for what is no stream of these, unless the pool is
  /// closed.
  void destroy(StreamHandle stream);
  /// Copies on `stream`: what is released from here on waits for it. Throws Closed on one that has ended.
  void copy(Address to, Address from, Bytes size, StreamHandle stream);
  /// Waits for what is on a stream, whoever made it. Throws Closed on one that has ended.
  void synchronize(StreamHandle stream);
  /// An epoch was closed, and what was given up in it may be had soon.
  void epoch_closed();

  /// Destroys those that have ended and are over. How many others have ended, and will be over without
  /// anybody's doing.
  std::uint64_t sweep() noexcept;
  bool empty() const;
  bool any_ended() const { return !ended().empty(); }

 private:
  /// For the time of a call: the stream is not destroyed meanwhile, if it is one of these. Throws Closed
  /// where its owner has ended it.
  class Use {
   public:
    Use(Streams& streams, StreamHandle stream);
    ~Use();
    Use(const Use&) = delete;
    Use& operator=(const Use&) = delete;

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
  void release(StreamHandle stream);
  void destroy_if_unused(StreamHandle stream);
  std::vector<StreamHandle> ended() const;

  Ground& ground_;
  Tables& tables_;
  mutable Mutex mutex_{LockRank::streams};
  std::map<std::uint64_t, Own> own_;
};

}  // namespace vmm
