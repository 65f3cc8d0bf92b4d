// Memory for those who need it: what may be had, and getting it back from those who need it less.
//
// In order: free pages that help nobody, idle reservations, free pages in others' windows, and what leased
// reservations need less. Which mapped pages go first is the victim policy's to say.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "memory/ground.h"
#include "memory/streams.h"
#include "memory/tables.h"
#include "memory/unmapping.h"
#include "memory/waiting.h"
#include "policy/victim_policy.h"

namespace vmm {

/// What a call lacked.
struct Shortage {
  Bytes to_create;
  Bytes lacking;  // of the budget, for that
  // Free pages at places where they do not help: of runs that are too empty, and of others' windows.
  std::vector<PhysicalPageId> nobodys, strays;
  std::uint64_t freed;  // by then: see PhysicalPages
};

/// Safe from any thread; called without the pool's lock, but where it says otherwise.
class Reclaiming {
 public:
  Reclaiming(Ground& ground, Tables& tables, Streams& streams)
      : ground_(ground), tables_(tables), streams_(streams), unmapping_(ground, tables) {}

  // What may be had.
  /// Throws OutOfPages unless `asked` more bytes could be had, by reclaiming if need be. Where what is
  /// lacking may be in the hands of calls under way, or retired, it waits for that; but only for what is to
  /// be kept.
  void require_obtainable(Bytes asked, Need whose = Need::kept);
  /// What could be kept beside what is, once `stream` has gone on; negative while the budget is exceeded.
  std::int64_t obtainable(StreamHandle stream) const;
  /// What keeping these ranges would take of that.
  std::int64_t cost(const Reservation& reservation, std::span<const PageRange> ranges,
                    StreamHandle stream) const;
  /// What may be created, is free, or is mapped and needed less than `whose`.
  Bytes available(Need whose) const;
  /// Under the lock.
  MemoryFigures figures(Bytes asked) const;
  /// What there is to give back of a budget that was lowered below what is taken of it.
  Bytes owed() const;
  /// A number that changes when memory is given up, or when what was given up may be had at last.
  std::uint64_t given_up();
  /// Somebody waits for that number to change. Returns when to look, if it may without anybody's doing.
  std::optional<Nanoseconds> await_given_up();
  /// Something was done that the device may have more now than when it refused: let it be asked again.
  void forget_device_limit();

  // Making room.
  /// Frees something, or waits until others have; throws OutOfPages before anything is touched.
  void make_room(Bytes asked, const Shortage& shortage, Need whose, Wait& wait);
  /// Where mappings have run out: unmaps what was given up and is over; or ends idle reservations, the
  /// longest idle first, until mappings are plentiful again, so that this is not done for each; or unmaps an
  /// eighth of what is needed less than `whose`; or waits for work that is ending. False when there was
  /// nothing of these.
  bool relieve_mappings(Need whose, Wait& wait);
  /// Ends an idle reservation, to get its addresses back. False when none may end now.
  bool end_an_idle_reservation();
  /// Gives free pages back to the driver. Returns how much; throws only when it was nothing.
  Bytes release_free(Bytes wanted) { return unmapping_.release_free(wanted); }
  /// Lets go of the lock, which the caller holds, for a moment, and drains what is over by then.
  void pause(std::unique_lock<Mutex>& lock, Wait& wait);

  // Giving back.
  /// Gives at least `wanted` bytes back to the budget if it can, reclaimable ones included, and what work
  /// that is ending still uses if it may wait for that; but only what is needed less than `whose`. Returns
  /// what it gave back.
  Bytes trim(Bytes wanted, bool wait, Need whose);
  /// Unmaps what was retired and is over; with `refused_too`, also what the driver has refused before: that
  /// costs calls that fail. True when something is left that only has to be waited for.
  bool drain_retired(bool refused_too = false);
  /// Whether the driver has refused to unmap something, so that drain_retired must try again.
  bool refused() const;
  /// So much shall lie free, however long. Under the lock.
  void spare(Bytes wanted) noexcept { spare_ = std::max(spare_, wanted); }
  /// A while has passed: what has been mapped or free for all of it, and needed by nobody, has aged. Not what
  /// shall lie free.
  void age();
  /// Gives back what has aged: about `at_most` of it. True when there is more.
  bool give_back_aged(Bytes at_most);

 private:
  struct View;  // the policy's, and whose reservations it shows

  View view(bool only_those_that_may_end = false);
  Retirements begin_retiring(const View& view, std::vector<Victim> victims);
  Bytes reclaim(Bytes wanted, Need whose);
  bool anything_free() const;
  bool await_coming(Need whose, Wait& wait);
  bool await_moment(Wait& wait);

  Ground& ground_;
  Tables& tables_;
  Streams& streams_;
  Unmapping unmapping_;
  const VictimPolicy policy_{};
  Bytes spare_;      // guarded by the pool's lock, as what follows
  Bytes aged_free_;  // of the free, what is to be given back
  std::uint64_t device_limits_ended_ = 0;
};

}  // namespace vmm
