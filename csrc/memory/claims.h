// What a call that maps has in its hands. Whatever it has not committed goes back where it came from when
// these die, so a call that fails unwinds by itself.
#pragma once

#include <vector>

#include "memory/ground.h"
#include "memory/tables.h"

namespace vmm {

/// Pages that one attempt to map has claimed, and the budget for those whose memory it creates. When this
/// dies they are Unmapped again and the budget goes back, but for memory that was created: that is paid for,
/// and the next attempt needs it, so it stays, free. Everything here needs the pool's lock, but for map() and
/// unmap(), which must not have it.
class Claims {
 public:
  Claims(Ground& ground, Tables& tables, Reservation& reservation)
      : ground_(ground), tables_(tables), reservation_(reservation) {}
  ~Claims() { put_back(); }
  Claims(const Claims&) = delete;
  Claims& operator=(const Claims&) = delete;

  /// False while the page's place is still being released.
  bool add(PageIndex page);
  /// A page that shares the memory of `source`.
  void add_alias(PageIndex page, const Alias& source);
  /// Reserves all the memory that is needed from here on, to commit or to put back: where mappings run out,
  /// so may the heap. Then takes what is to be created from the budget; false where that has not enough.
  bool pay(Need need);
  /// Creates the memory that lacks, and maps all in the driver. Throws what the driver throws.
  void map();
  /// The driver unmaps what map() has mapped. What it refuses to unmap, put_back() retires.
  void unmap() noexcept;
  /// The pages are Resident, and needed so much. Ends what this holds.
  void commit(Need need);
  void put_back() noexcept;

  bool empty() const noexcept { return claims_.empty(); }
  const std::vector<Claim>& pages() const noexcept { return claims_; }
  Reservation& reservation() const noexcept { return reservation_; }
  Bytes size() const { return page_bytes() * claims_.size(); }
  /// Of that, what is to be created, and what has been.
  Bytes to_create() const noexcept { return to_create_; }
  Bytes created() const noexcept { return created_; }

 private:
  Bytes page_bytes() const { return reservation_.shape.page_bytes; }
  void end() noexcept;

  Ground& ground_;
  Tables& tables_;
  Reservation& reservation_;
  std::vector<Claim> claims_;
  Bytes to_create_;
  Bytes created_;
  bool paid_ = false;
  std::vector<PageMapping> mappings_;  // of the claims, once they are created
  std::size_t unmapped_ = 0;           // of the claims, from the first; the driver has mapped the others
  Bytes soon_reclaimable_;             // counts as in transit
  Retirements room_;                   // one without pages, for those that the driver does not unmap again
};

/// Pages whose need a call has raised. When this dies they are needed by nobody, unless they stay so. Made,
/// used and destroyed under the pool's lock.
class RaisedNeeds {
 public:
  RaisedNeeds(Ground& ground, Reservation& reservation, Need need)
      : ground_(ground), reservation_(reservation), need_(need) {}
  ~RaisedNeeds();
  RaisedNeeds(const RaisedNeeds&) = delete;
  RaisedNeeds& operator=(const RaisedNeeds&) = delete;

  /// A Resident page that is needed less.
  void raise(PageIndex page);
  void reserve(std::uint64_t more) { pages_.reserve(pages_.size() + more); }
  /// Pages that were mapped with the need. There is room for them: see reserve().
  void add(const std::vector<Claim>& claims);
  void stay() noexcept { stay_ = true; }

 private:
  Ground& ground_;
  Reservation& reservation_;
  const Need need_;
  std::vector<PageIndex> pages_;  // only kept ones: others may be taken by whoever keeps
  bool stay_ = false;
};

}  // namespace vmm
