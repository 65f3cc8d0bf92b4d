#include "memory/claims.h"

#include <span>
#include <utility>

#include "base/error.h"

namespace vmm {

bool Claims::add(PageIndex page) {
  claims_.push_back({});  // This comes first: a page that is claimed must not be lost for want of memory.
  std::optional<Claim> claim = tables_.claim(reservation_, page);
  if (!claim) {
    claims_.pop_back();
    return false;
  }
  if (claim->create) to_create_ += page_bytes();
  claims_.back() = std::move(*claim);
  unmapped_ = claims_.size();
  return true;
}

void Claims::add_alias(PageIndex page, const Alias& source) {
  if (claims_.size() == claims_.capacity()) claims_.reserve(2 * claims_.size() + 1);
  claims_.push_back(tables_.claim_alias(reservation_, page, source));
  unmapped_ = claims_.size();
}

bool Claims::pay(Need need) {
  if (empty()) return true;
  mappings_.reserve(claims_.size());
  std::vector<PageIndex> none;
  none.reserve(claims_.size());
  room_.emplace_back(reservation_, std::move(none));
  tables_.contents().reserve(claims_.size());
  // The budget presses its other owners for what will be used, but not for a guess. For a look-ahead it is
  // not even asked for more than it has, because it would then tell when there is more.
  Allowance& allowance = tables_.allowance();
  const Bytes left = need == Need::none ? allowance.left() : allowance.device_left();
  paid_ = to_create_.count == 0 || (to_create_ <= left && allowance.take(to_create_, need > Need::guess));
  if (paid_) {
    if (need != Need::kept) soon_reclaimable_ = size();
    tables_.add_in_transit(reservation_.tenant, soon_reclaimable_);
  } else {
    tables_.contents().give_up(claims_.size());
  }
  return paid_;
}

void Claims::map() {
  Driver& driver = *ground_.driver;
  for (Claim& claim : claims_) {
    if (claim.create) {
      claim.made = CreatedPage(driver, page_bytes(), claim.place);
      claim.handle = claim.made.get();
      created_ += page_bytes();
    }
    mappings_.push_back({reservation_.address_of(claim.page), claim.handle, page_bytes()});
  }
  driver.map(mappings_);
  unmapped_ = 0;
  driver.set_access(mappings_);
}

void Claims::unmap() noexcept {
  if (unmapped_ == claims_.size()) return;
  try {
    ground_.driver->unmap(mappings_, unmapped_);
  } catch (const std::exception& error) {
    ground_.log.write(LogLevel::warning, "undoing a failed map: ", error.what());
  }
}

void Claims::commit(Need need) {
  for (Claim& claim : claims_) tables_.become_resident(reservation_, claim, need);
  end();
}

void Claims::end() noexcept {
  claims_.clear();
  tables_.leave_transit(reservation_.tenant, std::exchange(soon_reclaimable_, {}));
  ground_.changed.notify_all();
}

void Claims::put_back() noexcept {
  if (empty()) return;
  try {
    const std::span<Claim> claims(claims_);
    for (Claim& claim : claims.first(unmapped_)) tables_.unclaim(reservation_, claim);
    if (paid_) {
      tables_.contents().give_up(unmapped_);
      tables_.allowance().give_back(to_create_ - created_);
    }
    if (unmapped_ != claims.size()) {
      tables_.become_refused(reservation_, claims.subspan(unmapped_), std::move(room_));
      ground_.signals.wake();  // The pager tries again to unmap these.
    }
  } catch (const std::exception& error) {
    ground_.log.write(LogLevel::error, "putting back what was to be mapped: ", error.what());
  }
  end();
}

void RaisedNeeds::raise(PageIndex page) {
  if (need_ == Need::kept) pages_.push_back(page);
  reservation_.table.set_need(page, need_);
}

void RaisedNeeds::add(const std::vector<Claim>& claims) {
  if (need_ != Need::kept) return;
  for (const Claim& claim : claims) pages_.push_back(claim.page);
}

RaisedNeeds::~RaisedNeeds() {
  if (stay_) return;
  for (PageIndex page : pages_)
    if (reservation_.table[page].state == VirtualState::resident)
      reservation_.table.set_need(page, Need::none);
  if (need_ == Need::kept) ground_.signals.given_up(true);  // What was created may be had, too.
  ground_.signals.note_idle();
}

}  // namespace vmm
