#include "memory/claims.h"

#include <span>
#include <utility>

#include "base/error.h"

namespace vmm {

bool Claims::add(PageIndex page) {
  claims_.push_back({});  // first: a page that is claimed must not be lost for want of memory
  const std::optional<Claim> claim = tables_.claim(reservation_, page);
  if (!claim) {
    claims_.pop_back();
    return false;
  }
  claims_.back() = *claim;
  if (claim->create) to_create_ += page_bytes();
  return true;
}

bool Claims::pay(Need need) {
  if (empty()) return true;
  created_.reserve(claims_.size());
  mappings_.reserve(claims_.size());
  std::vector<PageIndex> none;
  none.reserve(claims_.size());
  room_.emplace_back(reservation_, std::move(none));
  tables_.contents().reserve(claims_.size());
  // The budget's other owners are pressed for what will be used, not for a guess; and for a look-ahead the
  // budget is not even asked for more than it has, or it would tell when there is more.
  Allowance& allowance = tables_.allowance();
  const Bytes left = need == Need::none ? allowance.left() : allowance.device_left();
  paid_ = to_create_.count == 0 || (to_create_ <= left && allowance.take(to_create_, need > Need::guess));
  if (!paid_) tables_.contents().give_up(claims_.size());
  return paid_;
}

void Claims::commit(Need need) {
  auto created = created_.begin();
  for (const Claim& claim : claims_)
    tables_.become_resident(reservation_, claim, claim.create ? std::move(*created++) : CreatedPage(), need);
  claims_.clear();
  ground_.changed.notify_all();
}

void Claims::put_back() noexcept {
  if (empty()) return;
  try {
    put_back_all();
  } catch (const std::exception& error) {
    ground_.log.write(LogLevel::error, "putting back what was to be mapped: ", error.what());
  }
  claims_.clear();
  ground_.changed.notify_all();
}

void Claims::put_back_all() {
  const std::span<const Claim> claims(claims_);
  const std::size_t unmapped = mappings_.empty() ? claims.size() : unmapped_;
  std::span<CreatedPage> created(created_);
  Bytes not_created;
  for (const Claim& claim : claims.first(unmapped)) {
    CreatedPage made;
    if (claim.create && !created.empty()) {
      made = std::move(created.front());
      created = created.subspan(1);
    } else if (claim.create) {
      not_created += page_bytes();
    }
    tables_.unclaim(reservation_, claim, std::move(made));
  }
  if (paid_) {
    tables_.contents().give_up(unmapped);
    tables_.allowance().give_back(not_created);
  }
  if (unmapped == claims.size()) return;
  tables_.become_refused(reservation_, claims.subspan(unmapped), created, std::move(room_));
  ground_.signals.wake();  // the pager tries again
}

void DriverMappings::make() {
  Driver& driver = *claims_.ground_.driver;
  for (Claim& claim : claims_.claims_) {
    if (!claim.create) continue;
    claims_.created_.emplace_back(driver, claims_.page_bytes(), claim.place);
    claim.handle = claims_.created_.back().get();
  }
  std::vector<PageMapping>& mappings = claims_.mappings_;
  for (const Claim& claim : claims_.claims_)
    mappings.push_back({claims_.reservation_.address_of(claim.page), claim.handle, claims_.page_bytes()});
  claims_.unmapped_ = mappings.size();
  driver.map(mappings);
  made_ = true;
  driver.set_access(mappings);
}

DriverMappings::~DriverMappings() {
  if (!made_) return;
  try {
    claims_.ground_.driver->unmap(claims_.mappings_, claims_.unmapped_);
  } catch (const std::exception& error) {
    claims_.ground_.log.write(LogLevel::warning, "undoing a failed map: ", error.what());
  }
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
  if (need_ == Need::kept) ground_.signals.given_up(true);  // what was created, too
  ground_.signals.note_idle();
}

}  // namespace vmm
