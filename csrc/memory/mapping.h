// Makes pages Resident, and creates memory before anybody needs it.
#pragma once

#include <optional>
#include <span>

#include "memory/claims.h"
#include "memory/ground.h"
#include "memory/pool_options.h"
#include "memory/reclaiming.h"
#include "memory/tables.h"

namespace vmm {

/// How much memory was created, and the size of the last page of it.
struct Created {
  Bytes size, page_bytes;
};

/// Safe from any thread; called without the pool's lock.
class Mapping {
 public:
  Mapping(Ground& ground, Tables& tables, Reclaiming& reclaiming)
      : ground_(ground), tables_(tables), reclaiming_(reclaiming) {}

  /// Makes the pages Resident. Throws OutOfPages or what the driver threw, with no page claimed or kept.
  MapResult map(Reservation& reservation, std::span<const PageRange> ranges, const MapOptions& options);

  /// Creates pages of this size, in whole runs, until `wanted` bytes of them lie free, or `at_most` bytes
  /// have been created, or the budget or the device has no more. Returns how much it created. Throws
  /// InvalidArgument, Closed, or what the driver throws for another reason than a lack of memory.
  Bytes warm(Bytes wanted, Bytes page_bytes, Bytes at_most);
  /// How much map() has had to create since this was last called.
  Created take_created();

  /// Gives another process the page that is mapped at the address. The page's memory gets no other owner in
  /// this pool from now on: when its reservation no longer needs it, it goes back to the driver. Throws
  /// InvalidArgument where nothing is mapped, or where the driver cannot export.
  ExportedPage export_page(Address address);

 private:
  /// What one attempt to map came to.
  struct Attempt {
    Bytes asked{}, to_create{};
    Bytes created{};  // before it failed
    Pages mapped{};
    bool blocked = false;                   // others are mapping or unmapping some of the pages
    std::optional<Shortage> shortage = {};  // if there is one, nothing was claimed
    std::optional<Bytes> over_quota = {};   // the same: the tenant may not be charged so much more
  };
  class CreatedInVain;
  using Lock = std::unique_lock<Mutex>;

  void attempt(Lock&, std::span<const PageRange>, const MapOptions&, Reservation&, RaisedNeeds&, Attempt&);
  bool claim(std::span<const PageRange>, const MapOptions&, RaisedNeeds&, Claims&);
  bool claim_aliases(std::span<const PageRange>, const MapOptions&, RaisedNeeds&, Claims&);
  std::optional<Bytes> over_quota(const Reservation&, std::span<const PageRange>, const MapOptions&);
  Shortage shortage(const Claims&, Need) const;
  void drive(Claims&, const MapOptions&, Attempt&);
  void zero_claims(const Claims&, const MapOptions&);
  void note_refusal(const Tenant&, const Attempt&, const DriverOutOfMemory&);
  void make_room(Lock&, const Tenant&, const Attempt&, Need, bool ask_device_again, Wait&);
  void await_others(Lock&, const Reservation&, std::span<const PageRange>, Wait&);
  std::optional<Filling> begin_filling(Bytes wanted, Bytes page_bytes);
  void end_filling(Filling&);

  Ground& ground_;
  Tables& tables_;
  Reclaiming& reclaiming_;
  Created created_;  // guarded by the pool's lock
};

}  // namespace vmm
