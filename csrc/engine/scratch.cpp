#include "engine/scratch.h"

#include <algorithm>
#include <string>
#include <utility>

#include "base/error.h"
#include "base/undo.h"
#include "engine/pager.h"

namespace vmm {
namespace {

constexpr Nanoseconds recheck = std::chrono::microseconds(100);  // work ends without telling anybody

/// Each page once, in order.
std::vector<PageRange> merged(std::vector<PageRange> ranges) {
  std::ranges::sort(ranges, {}, &PageRange::first);
  std::vector<PageRange> out;
  for (const PageRange& range : ranges) {
    const std::uint64_t first = range.first.value, end = first + range.count.count;
    const std::uint64_t last = out.empty() ? 0 : out.back().first.value + out.back().count.count;
    if (out.empty() || first > last)
      out.push_back(range);
    else if (end > last)
      out.back().count = {end - out.back().first.value};
  }
  return out;
}

void await(Pool& pool, const Fence& work) {
  for (;; pool.clock().sleep(recheck)) {
    pool.epochs().poll();
    if (pool.epochs().complete(work)) return;
    if (pool.epochs().waits_for_open_epoch(work))
      throw Error("the scratch cannot end while an epoch is open whose work may write there: end it first");
  }
}

}  // namespace

std::shared_ptr<Scratch> Scratch::open(std::shared_ptr<Range> range, std::vector<PageRange> pages) {
  range->pool().fork_guard().require_parent("this range");
  range->pool().reclaiming().drain_retired(true);
  auto scratch = std::make_shared<Scratch>(*range);
  std::lock_guard keeping(range->keeping());
  std::lock_guard ahead(range->ahead());
  range->scratches().reserve(range->scratches().size() + 1);
  scratch->claim(merged(std::move(pages)));
  try {
    scratch->alias();
  } catch (...) {
    scratch->release();
    throw;
  }
  range->scratches().push_back(scratch);
  scratch->open_ = true;
  return {scratch.get(), [range, scratch](Scratch* self) {
            if (range->pool().fork_guard().in_child()) return;
            try {
              self->end();
            } catch (const std::exception& error) {  // the range's end tries again
              range->pool().log().write(LogLevel::error, std::string("ending a scratch: ") + error.what());
            }
          }};
}

/// From here on nobody else maps or unmaps any of these.
void Scratch::claim(std::vector<PageRange> pages) {
  std::lock_guard lock(range_.mutex());
  range_.require_open();
  std::vector<PageRange> first;
  std::size_t most = 0;
  for (const PageRange& each : pages) most += each.count.count;
  first.reserve(most);
  Pool::Needs needs(range_.pool());
  for (PageIndex page : each_page(pages)) {
    const PageRange one{page, {1}};
    const bool resident = needs.resident(range_.reservation(), one).count != 0;
    if (range_.in_scratch(one)) throw InvalidArgument("ids: some of these blocks are in a scratch already");
    if (!resident && !needs.unmapped(range_.reservation(), page))
      throw InvalidArgument("ids: a page of these blocks was given up and is not unmapped yet; try again");
    append_page(resident ? kept_ : aliased_, page.value);
  }
  if (!needs.may_keep(range_.reservation(), kept_)) throw needs.out_of_pages(range_.reservation(), kept_);
  // Nothing below throws.
  needs.set(range_.reservation(), kept_, Need::kept);
  for (const PageRange& each : kept_) range_.count(each, Use::kept, true, first);
  range_.set_in_scratch(aliased_, true);
}

void Scratch::alias() {
  if (aliased_.empty()) return;
  Pool& pool = range_.pool();
  const Bytes page_bytes = range_.page_bytes();
  lease_ = pool.reserve({.page_bytes = page_bytes,
                         .extent_bytes = page_bytes,
                         .kind = {0},
                         .tenant = range_.reservation().tenant.id});
  const PageRange only{{0}, {1}};
  pool.map(lease_->reservation(), std::span(&only, 1), {});
  const PageHandle handle = Pool::Needs(pool).physical(lease_->base());
  for (PageIndex page : each_page(aliased_))
    mappings_.push_back({range_.reservation().address_of(page), handle, page_bytes});
  Driver& driver = pool.driver();
  driver.together([&] {
    driver.map(mappings_);
    try {
      driver.set_access(mappings_);
    } catch (...) {
      std::size_t unmapped = 0;
      undo_or_leak([&] { driver.unmap(std::span(mappings_).subspan(unmapped), unmapped); });
      throw;
    }
  });
}

/// Gives up what claim() has taken.
void Scratch::release() {
  const Fence until = range_.pool().epochs().fence();
  {
    std::lock_guard lock(range_.mutex());
    range_.set_in_scratch(aliased_, false);
    std::vector<PageRange> last;
    std::size_t most = 0;
    for (const PageRange& each : kept_) most += each.count.count;
    last.reserve(most);
    for (const PageRange& each : kept_) range_.count(each, Use::kept, false, last);
    if (!range_.ended()) range_.give_up(last, until, false);
  }
  lease_.reset();
  range_.pager().wake();  // what was announced meanwhile has waited
}

void Scratch::end() {
  range_.pool().fork_guard().require_parent("this range");
  {
    std::lock_guard keeping(range_.keeping());
    end_locked();
  }
  range_.give_back_if_closed();
}

void Scratch::end_locked() {
  if (!open_) return;
  Pool& pool = range_.pool();
  await(pool, pool.epochs().fence());
  std::size_t unmapped = 0;
  try {
    pool.driver().unmap(mappings_, unmapped);
  } catch (...) {  // the rest stays, for another try
    mappings_.erase(mappings_.begin(), mappings_.begin() + static_cast<std::ptrdiff_t>(unmapped));
    throw;
  }
  open_ = false;
  std::erase_if(range_.scratches(), [&](const auto& each) { return each.get() == this; });
  release();
}

}  // namespace vmm
