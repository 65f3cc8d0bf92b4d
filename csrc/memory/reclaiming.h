// Says how much memory may be had, and gets it back from those who need it less: first free pages that help
// nobody, then idle reservations, then free pages in the windows of others, and last what leased reservations
// need less. The victim policy says which mapped pages go first.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "memory/ground.h"
#include "memory/quotas.h"
#include "memory/streams.h"
#include "memory/tables.h"
#include "memory/unmapping.h"
#include "memory/waiting.h"
#include "policy/borrowed_first.h"
#include "policy/victim_policy.h"

namespace vmm {

/// What a call that maps lacked.
struct Shortage {
  Bytes to_create;
  Bytes lacking;  // so much of that the budget does not have
  // Free pages at places where they do not help this call: in runs that no window owns and that are too
  // empty, and in the windows of others.
  std::vector<PhysicalPageId> nobodys, strays;
  std::uint64_t freed;  // how many pages had become free by then: see PhysicalPages
};

/// Safe from any thread; called without the pool's lock, but where it says otherwise.
class Reclaiming {
 public:
  Reclaiming(Ground& ground, Tables& tables, Streams& streams)
      : ground_(ground), tables_(tables), quotas_(tables), streams_(streams), unmapping_(ground, tables) {}

  // What may be had.
  /// Throws OutOfPages unless the tenant can have `asked` more bytes, if need be by reclaiming. Where they
  /// are to be kept, it first waits for memory that calls under way, or retired pages, are about to give up.
  void require_obtainable(Bytes asked, TenantId tenant = Tenants::nobody, Need whose = Need::kept) {
    require_obtainable(asked, asked, tenant, whose);
  }
  /// The same where the tenant would be charged another amount, `price`. With nothing asked, only that
  /// counts.
  void require_obtainable(Bytes asked, Bytes price, TenantId tenant, Need whose);
  /// How much the tenant could keep besides what it keeps now, once the next epoch of `stream` has begun. It
  /// is negative while the budget is exceeded.
  std::int64_t obtainable(StreamHandle stream, TenantId tenant = Tenants::nobody) const;
  /// Whether keeping pages that are mapped uses some of that up, too: tenants are charged for it.
  bool charges_for_mapped() const;
  /// How much of that would be used up by keeping these ranges.
  std::int64_t cost(const Reservation& reservation, std::span<const PageRange> ranges,
                    std::optional<StreamHandle> stream) const;
  /// What may be created, is free, or is mapped and needed less than `whose`; as much of it as the tenant may
  /// have.
  Bytes available(const Tenant& tenant, Need whose) const;
  /// How much cannot be had yet, but will come by itself: what is being unmapped, or work that ends uses.
  Bytes coming() const;
  /// The figures of an OutOfPages. Called under the lock.
  MemoryFigures figures(Bytes asked, const Tenant& tenant) const;
  /// Who may have how much. Called under the lock.
  const Quotas& quotas() const noexcept { return quotas_; }
  /// Waits until the tenant may be charged `price` more. The caller holds the lock, which this lets go of
  /// meanwhile. Throws OutOfPages where nothing that ends by itself would help, or where the pages are not
  /// for Need::kept: whoever maps ahead waits for nobody.
  void await_room(std::unique_lock<Mutex>& lock, const Tenant& tenant, Bytes price, Need whose, Wait& wait);
  /// How much the pool can give back to a budget that was lowered below what is taken of it.
  Bytes owed() const;
  /// A number that changes when memory is given up, or when what was given up may be had at last.
  std::uint64_t given_up();
  /// Somebody waits for that number to change, and will be told. Returns when to look by oneself, if it may
  /// change without anybody's doing.
  std::optional<Nanoseconds> await_given_up();
  /// The device may have more memory now than when it refused, so it is to be asked again.
  void forget_device_limit();

  // Making room.
  /// Frees something, or waits until others have. Where it throws OutOfPages it has touched nothing.
  void make_room(Bytes asked, const Tenant& tenant, const Shortage& shortage, Need whose, Wait& wait);
  /// Is called where the process has run out of mappings. It does the first of these that helps, and returns
  /// false when none does: it unmaps what was given up and is over; it ends idle reservations, the longest
  /// idle first, until a sixteenth of the mappings is free, so that this is not done for each call; it unmaps
  /// an eighth of what is needed less than `whose`; it waits for work that is ending.
  bool relieve_mappings(Need whose, Wait& wait);
  /// Ends an idle reservation, to get its addresses back. False when none may end now.
  bool end_an_idle_reservation();
  /// Gives free pages back to the driver. Returns how much; throws only when it was nothing.
  Bytes release_free(Bytes wanted) { return unmapping_.release_free(wanted); }
  /// Lets go of the lock, which the caller holds, for a moment, and unmaps what was retired and is over by
  /// then.
  void pause(std::unique_lock<Mutex>& lock, Wait& wait);

  // Giving back.
  /// Gives at least `wanted` bytes back to the budget if it can: free memory, and what is needed less than
  /// `whose`. With `wait` it waits for memory that work which is ending still uses. Returns how much it gave
  /// back.
  Bytes trim(Bytes wanted, bool wait, Need whose);
  /// Unmaps what was retired and is over; with `refused_too` also what the driver has refused before, which
  /// may cost calls that fail again. Returns true when something is left that only has to be waited for.
  bool drain_retired(bool refused_too = false);
  /// Does that, and waits a moment for other threads that are unmapping these pages, or releasing any.
  /// Returns whether all of these are unmapped.
  bool finish_unmapping(const Reservation& reservation, std::span<const PageRange> ranges);
  /// Whether the driver has refused to unmap something, so that drain_retired must try again.
  bool refused() const;
  /// So much memory is to stay free, however long nobody needs it. Called under the lock.
  void spare(Bytes wanted) noexcept { spare_ = std::max(spare_, wanted); }
  /// Is called when a while has passed. What was mapped or free for all of it, and needed by nobody, has
  /// aged, except what is to stay free.
  void age();
  /// Gives back about `at_most` of what has aged. Returns true when there is more.
  bool give_back_aged(Bytes at_most);

 private:
  struct View;  // the policy's, and whose reservations it shows

  View view(bool only_those_that_may_end = false);
  Retirements begin_retiring(const View& view, std::vector<Victim> victims);
  Bytes reclaim(Bytes wanted, Need whose);
  bool await_coming(Need whose, Wait& wait);
  bool await_moment(Wait& wait);

  Ground& ground_;
  Tables& tables_;
  const Quotas quotas_;
  Streams& streams_;
  Unmapping unmapping_;
  const VictimPolicy policy_{};
  Bytes spare_;      // guarded by the pool's lock, as what follows
  Bytes aged_free_;  // of the free, what is to be given back
};

}  // namespace vmm
