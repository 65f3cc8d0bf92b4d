// The streams that a pool has made: in use, or ended by their owner and destroyed when their work is over.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "base/lock.h"
#include "memory/fences.h"

namespace vmm {

/// Safe from any thread. What is left when this ends is the driver's, and left by that to the process.
class Streams {
 public:
  Streams(Driver& driver, Epochs& epochs) : driver_(driver), epochs_(epochs) {}
  Streams(const Streams&) = delete;
  Streams& operator=(const Streams&) = delete;

  StreamHandle create();
  /// There will be no more work on it. Waits for nobody: it is destroyed by the sweep() after its work. False
  /// where it is no stream of these.
  bool end(StreamHandle stream);
  void end_all();
  /// end(), and waits for its work. False where it is no stream of these.
  bool destroy(StreamHandle stream);
  /// Destroys those that have ended and are over. How many others have ended, and will be over without
  /// anybody's doing.
  std::uint64_t sweep() noexcept;
  bool empty() const;
  bool any_ended() const { return !ended().empty(); }

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

  /// Waits for what is on a stream, whoever made it.
  void synchronize(StreamHandle stream);

 private:
  struct Own {
    bool ended = false;
    std::uint32_t users = 0;
  };

  void release(StreamHandle stream);
  void destroy_if_unused(StreamHandle stream);
  std::vector<StreamHandle> ended() const;

  Driver& driver_;
  Epochs& epochs_;
  mutable Mutex mutex_{LockRank::streams};
  std::map<std::uint64_t, Own> own_;
};

}  // namespace vmm
