#include "engine/range.h"

#include <algorithm>
#include <string>
#include <utility>

#include "base/error.h"
#include "engine/pager.h"
#include "engine/scratch.h"

namespace vmm {

Range::Range(std::shared_ptr<Pager> pager, std::shared_ptr<Lease> lease)
    : pager_(std::move(pager)),
      lease_(std::move(lease)),
      users_(lease_->size() / page_bytes()),
      flying_(users_.size()),
      in_scratch_(users_.size()) {}

Range::~Range() {
  if (pool().fork_guard().in_child()) return;
  try {
    std::lock_guard keeping(keeping_);
    end_scratches();
  } catch (const std::exception& error) {
    pool().log().write(LogLevel::error, std::string("ending a scratch: ") + error.what());
  }
}

void Range::require_open() const {
  pool().fork_guard().require_parent("this range");
  if (ended_) throw Closed("this range is closed");
}

void Range::end() {
  pool().fork_guard().require_parent("this range");
  const Fence until = pool().epochs().fence();
  {
    std::lock_guard keeping(keeping_);
    if (ended_) return;
    end_scratches();
    std::lock_guard lock(mutex_);
    ended_ = true;
    const PageRange all{{0}, {users_.size()}};
    pool().retire(reservation(), std::span(&all, 1), until);
  }
  pager_->wake();
  give_back_if_closed();
}

void Range::count(const PageRange& pages, Use use, bool in, std::vector<PageRange>& changed) noexcept {
  const std::uint64_t end = pages.first.value + pages.count.count;
  for (std::uint64_t page = pages.first.value; page < end; ++page) {
    std::uint32_t& users = users_[page][use];
    if (in ? users++ == 0 : --users == 0) append_page(changed, static_cast<std::uint32_t>(page));
  }
}

bool Range::keep_resident(std::span<const PageRange> pages) {
  if (pages.empty()) return true;
  Pool::Needs needs(pool());
  for (const PageRange& range : pages)
    if (needs.resident(reservation(), range) != range.count) return false;
  if (!needs.may_keep(reservation(), pages)) return false;
  needs.set(reservation(), pages, Need::kept);
  return true;
}

void Range::give_up(std::span<const PageRange> pages, const Fence& until, bool unmap) {
  announced_.clear();
  unneeded_.clear();
  for (PageIndex page : each_page(pages)) {
    const Users& users = users_[page.value];
    if (!users.any(Use::kept)) append_page(users.any(Use::announced) ? announced_ : unneeded_, page.value);
  }
  if (!unneeded_.empty() && unmap)
    pool().retire(reservation(), unneeded_, until);
  else if (!unneeded_.empty())
    pool().unkeep(reservation(), unneeded_, until);
  if (announced_.empty()) return;
  pool().unkeep(reservation(), announced_, until, Need::announced);
  Pool::Needs(pool()).set(reservation(), announced_, Need::announced);  // also where a call was in vain
}

void Range::forget_unused(std::span<const PageRange> pages) {
  unneeded_.clear();
  for (PageIndex page : each_page(pages)) {
    const Users& users = users_[page.value];
    if (!users.any(Use::kept) && !users.any(Use::announced)) append_page(unneeded_, page.value);
  }
  if (ended_)
    pool().retire(reservation(), unneeded_, pool().epochs().fence());
  else
    Pool::Needs(pool()).set(reservation(), unneeded_, Need::none);
}

void Range::set_flying(std::span<const PageRange> pages, bool flying) noexcept {
  any_flying_ = flying && !pages.empty();
  for (PageIndex page : each_page(pages)) flying_[page.value] = flying;
}

bool Range::flying(const PageRange& pages) const noexcept {
  return std::ranges::any_of(each_page(std::span(&pages, 1)),
                             [&](PageIndex page) { return flying_[page.value]; });
}

void Range::set_in_scratch(std::span<const PageRange> pages, bool in) noexcept {
  for (PageIndex page : each_page(pages)) {
    if (in_scratch_[page.value] == in) continue;
    in_scratch_[page.value] = in;
    in ? ++in_scratch_count_ : --in_scratch_count_;
  }
}

bool Range::in_scratch(const PageRange& pages) const noexcept {
  return any_in_scratch() && std::ranges::any_of(each_page(std::span(&pages, 1)),
                                                 [&](PageIndex page) { return in_scratch_[page.value]; });
}

void Range::end_scratches() {
  while (!scratches_.empty()) {
    const std::shared_ptr<Scratch> scratch = scratches_.back();
    scratch->end_locked();  // takes itself off the list
  }
}

void Range::give_back_if_closed() const {
  if (pool().closed()) pool().trim({~std::uint64_t{0}}, true);
}

}  // namespace vmm
