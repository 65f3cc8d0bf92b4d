// The tables of a pool: virtual pages, contents, physical pages, and what is on its way between them.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "memory/allowance.h"
#include "memory/contents.h"
#include "memory/last_uses.h"
#include "memory/physical_pages.h"
#include "memory/reservation.h"
#include "memory/retirement.h"
#include "memory/sharing.h"
#include "memory/tenants.h"

namespace vmm {

/// A page that is to be mapped: it is Mapping, and its memory Busy.
struct Claim {
  PageIndex page;
  PhysicalPageId physical;
  Place place;
  PageHandle handle;  // none yet where the memory is to be created
  bool create;
  bool zero;           // it holds bytes that may not be seen here
  CreatedPage made;    // the memory, once it has been created
  bool alias = false;  // the memory is that of another virtual page, too
};

/// What became free when pages were unmapped.
struct Unmapped {
  Bytes size;
  std::vector<PhysicalPageId> to_release;  // those of it that go back to the driver
};

/// Every change of state is a method here. Nothing here calls the driver or waits, and everything requires
/// the pool's lock. What throws has changed nothing.
class Tables {
 public:
  using Reservations = std::map<std::uint32_t, std::unique_ptr<Reservation>>;

  Tables(const Capabilities& driver, Bytes run_bytes, Epochs& epochs, Allowance allowance);

  // Reservations.
  /// Throws Closed where the shape's tenant has ended.
  Reservation& add(AddressRange addresses, const ReservationShape& shape);
  /// The reservation's lease has ended, and nothing of it is needed any more. Returns whether no work uses it
  /// either.
  bool recycle(Reservation& reservation);
  /// The physical page that is mapped at the address; none where no page is Resident.
  std::optional<PhysicalPageId> page_at(Address address) const;
  /// The same, but from now on neither the page nor its reservation gets another owner.
  std::optional<PhysicalPageId> mark_exported(Address address);

  // Into mappings: Unmapped → Mapping → Resident.
  /// Claims an Unmapped page: it is Mapping, and its memory Busy. Returns none while that memory is still
  /// being released. Once contents() has reserved room for all claims, nothing that is done with a claim can
  /// fail for want of memory.
  std::optional<Claim> claim(Reservation& reservation, PageIndex page);
  /// Claims an Unmapped page for the memory of another page, `source`, which is Resident.
  Claim claim_alias(Reservation& reservation, PageIndex page, const Alias& source);
  /// Takes a claim back.
  void unclaim(Reservation& reservation, Claim& claim);
  void become_resident(Reservation& reservation, Claim& claim, Need need);
  /// These pages were mapped in vain, and the driver refuses to unmap them: they are Retiring, as refused.
  /// `room` is a retirement without pages, but with memory for these.
  void become_refused(Reservation& reservation, std::span<Claim> claims, Retirements room);

  // Out of mappings: Resident → Retiring → Unmapped.
  /// The Resident pages among these become Retiring, and wait for `fence`.
  void retire(Reservation& reservation, std::span<const PageRange> ranges, Fence fence,
              bool to_system = false);
  /// Lowers the need for the page, if it is greater. If it was kept, the work of `last_use` may still use it.
  void unkeep(Reservation& reservation, PageIndex page, std::uint16_t last_use, Need need = Need::none);
  /// A Retiring page that its owner wants back becomes Resident again, with its bytes, where that is still
  /// possible: not where others share them, because the owner may write. Whoever ordered the old reads orders
  /// the new writes, too. Throws what Retired::fence_of throws.
  void rescue(Reservation& reservation, PageIndex page);
  /// These pages become Retiring, and count as in transit.
  void begin_retiring(Retirements& batch);
  /// The same as Retired::take_over, but the pages count as in transit.
  Retirements take_over(bool refused_too);
  void begin_unmapping(Retirement& what);
  /// The pages that the driver has unmapped are Unmapped now, and their memory is free. The others are
  /// retired again, as refused. All of them leave transit. Returns what became free.
  Unmapped end_unmapping(Retirements& batch);

  // Physical pages without a mapping.
  /// Takes these free pages, so that nobody else can have them.
  Releasing begin_releasing(std::vector<PhysicalPageId> pages);
  /// Pages that the driver did not take back are free again. Returns how many bytes it did take back.
  Bytes end_releasing(Releasing& what);
  /// Claims at most `count` pages of an empty run, for a caller who creates them. Returns none if the budget
  /// has not enough for them.
  std::optional<Filling> begin_filling(Bytes page_bytes, std::uint64_t count);
  void end_filling(Filling& what);
  /// A while has passed. Returns the bytes that lay free for all of it.
  Bytes age();

  /// How much memory cannot be had yet, but will come by itself.
  Bytes coming() const;
  /// The part of that which is in the tenant's reservations.
  Bytes coming(const Tenant& tenant) const;
  /// The part of that which no work uses any more.
  Bytes on_its_way(const Tenant& tenant) const;
  void add_in_transit(Tenant& tenant, Bytes size) noexcept {
    in_transit_ += size;
    tenant.in_transit += size;
  }
  void leave_transit(Tenant& tenant, Bytes size) noexcept {
    in_transit_ -= size;
    tenant.in_transit -= size;
  }
  /// How much of what is reclaimable may still be in use by unfinished work.
  Bytes waiting() const;
  /// Whether no work uses the page any more, nor any other that has its content, as far as LastUses has seen.
  bool over(const Reservation& reservation, PageIndex page) const;
  /// A use of extents, which may be of several reservations: of what is needed as little, theirs goes after
  /// that of all uses before.
  std::uint64_t new_use() noexcept { return ++uses_; }
  void note_use(Reservation& reservation, std::uint64_t first_extent, std::uint64_t count, std::uint64_t use);
  /// They may go first again.
  void forget_use(Reservation& reservation, std::uint64_t first_extent, std::uint64_t count);
  /// Whether the page is Resident, or Retiring and its own, so that it would become Resident again as it is.
  bool may_come_back(const Reservation& reservation, PageIndex page) const;
  /// What the page's content counts as: this page, or the one that stands for it.
  const VirtualPage& counted(const Reservation& reservation, PageIndex page) const;
  /// How much memory the sharing of contents saves.
  Bytes saved() const noexcept { return saved_; }

  const Reservations& reservations() const noexcept { return reservations_; }
  const PhysicalPages& physical() const noexcept { return physical_; }
  const MappedBytes& mapped() const noexcept { return mapped_; }
  Contents& contents() noexcept { return contents_; }
  const Sharing& sharing() const noexcept { return sharing_; }
  const Retired& retired() const noexcept { return retired_; }
  Tenants& tenants() noexcept { return tenants_; }
  const Tenants& tenants() const noexcept { return tenants_; }
  LastUses& last_uses() noexcept { return last_uses_; }
  const LastUses& last_uses() const noexcept { return last_uses_; }
  Allowance& allowance() noexcept { return allowance_; }
  const Allowance& allowance() const noexcept { return allowance_; }

  /// A tenant was charged more, or promised more, because a budget of this size covered it.
  void note_admission(Bytes budget) noexcept { admitted_under_ = budget; }
  Bytes admitted_under() const noexcept { return admitted_under_; }

  /// Throws InvariantViolation when the tables contradict each other or the budget.
  void check() const;

 private:
  /// Ends the reservation, and gives back its addresses, if nobody leases it and it has no pages.
  void erase_if_empty(Reservation& reservation);
  bool must_zero(const Reservation& reservation, const PhysicalPage& page) const;
  Reservation* reservation_at(Address address) const;
  PhysicalPageId place_for(Reservation& reservation, PageIndex page);
  void drop_run_if_unused(RunId run);
  void settle(ContentId content);
  void share_last_use(ContentId content);
  bool drop_content(Reservation& reservation, PageIndex page);
  bool all_retiring(ContentId content) const;
  Bytes will_free(const Retirement& what, const std::function<bool(const Retirement&)>& too) const;
  Bytes waiting_to_be_free(const Tenant* tenant, const std::function<bool(const Retirement&)>& are) const;
  void set_use(Reservation& reservation, std::uint64_t first_extent, std::uint64_t count, std::uint64_t use);
  void count_as_in_transit(Retirements& batch);
  void end_unmapping(Retirement& what, Unmapped& freed);
  struct Census;
  void check_reservation(const Reservation& reservation, Census& census) const;
  void check_shared(ContentId id, std::uint64_t holders) const;
  void check_page(const Reservation& reservation, PageIndex page, Census& census) const;
  void check_tenants(Census& census) const;
  void check_run(RunId run, Census& census) const;

  const bool fresh_pages_are_zero_;
  Epochs& epochs_;
  Allowance allowance_;
  LastUses last_uses_;
  PhysicalPages physical_;
  std::vector<RunId> filling_;  // runs that no window owns, being filled
  Contents contents_;
  Sharing sharing_;
  Bytes saved_;
  MappedBytes mapped_;
  Tenants tenants_;
  Reservations reservations_;
  std::uint32_t next_reservation_ = 0;
  std::uint64_t recyclings_ = 0;
  std::uint64_t uses_ = 0;
  Retired retired_;
  Bytes admitted_under_;  // the budget when a tenant was last admitted something: it may have been lowered
                          // since
  Bytes in_transit_;      // neither free nor reclaimable while a driver call is under way, but soon to be
};

}  // namespace vmm
