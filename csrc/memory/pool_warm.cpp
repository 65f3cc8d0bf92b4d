// Creating physical memory before anybody needs it.
#include <algorithm>
#include <exception>
#include <string>
#include <utility>

#include "base/error.h"
#include "memory/pool.h"

namespace vmm {

Bytes Pool::warm(Bytes wanted, Bytes page_bytes, Bytes at_most) {
  fork_guard_.require_parent("this pool");
  check_page_size(page_bytes);
  Bytes made;
  while (made < at_most) {
    Filling filling;
    if (!plan_filling(wanted, page_bytes, filling)) break;
    std::exception_ptr failure;
    try {
      driver_->together([&] {
        for (const auto& [page, place] : filling.pages)
          filling.created.emplace_back(*driver_, page_bytes, place);
      });
    } catch (const DriverOutOfMemory& error) {  // as much as there is
      log_.write(LogLevel::info, std::string("warm: ") + error.what());
      at_most = {};
    } catch (...) {
      failure = std::current_exception();
    }
    made += page_bytes * filling.created.size();
    commit_filling(filling);
    if (failure) std::rethrow_exception(failure);
  }
  return made;
}

/// Claims the pages of an empty run, or as many of them as the budget has: a window takes a run as it is, and
/// would create the rest when it is mapped. False when none lacks or none can be had. The budget's other
/// owners are not pressed.
bool Pool::plan_filling(Bytes wanted, Bytes page_bytes, Filling& filling) {
  std::lock_guard lock(mutex_);
  require_open();
  warmed_ = std::max(warmed_, wanted);
  const Bytes ready = physical_.recycled(page_bytes);
  const std::uint64_t per_run = physical_.pages_per_run(page_bytes).count;
  const bool lacking = ready < wanted;
  const std::uint64_t count = lacking ? std::min(budget_left() / page_bytes, per_run) : 0;
  if (count == 0) return false;
  filling.pages.reserve(count);
  filling.created.reserve(count);
  filling_.reserve(filling_.size() + 1);
  filling.run = physical_.take_empty_run(page_bytes);
  for (std::uint64_t i = 0; i < physical_.run(filling.run).pages && filling.pages.size() < count; ++i) {
    const PhysicalPageId page = physical_.page_at(filling.run, i);
    if (physical_[page].state == PhysicalState::absent)
      filling.pages.emplace_back(page, physical_.place_of(page));
  }
  const Bytes taken = page_bytes * filling.pages.size();
  if (!budget_->take(taken, listener_, false)) {
    physical_.give_back_run(filling.run);
    return false;
  }
  taken_ += taken;
  peak_taken_ = std::max(peak_taken_, taken_);
  in_transit_ += taken;
  for (const auto& [page, place] : filling.pages) physical_.move(page, PhysicalState::busy);
  filling_.push_back(filling.run);
  return true;
}

void Pool::commit_filling(Filling& filling) {
  std::lock_guard lock(mutex_);
  const Bytes page_bytes = physical_.run(filling.run).page_bytes;
  for (std::size_t i = 0; i < filling.pages.size(); ++i) {
    const PhysicalPageId page = filling.pages[i].first;
    const bool made = i < filling.created.size();
    if (made) physical_[page].handle = std::move(filling.created[i]);
    physical_.move(page, made ? PhysicalState::free : PhysicalState::absent);
    if (!made) give_back(page_bytes);
  }
  physical_.give_back_run(filling.run);
  std::erase(filling_, filling.run);
  in_transit_ -= page_bytes * filling.pages.size();
  counters_.pages_created.add(filling.created.size());
  changed_.notify_all();
  note_given_up(true);
}

Pool::Created Pool::take_created() {
  std::lock_guard lock(mutex_);
  return std::exchange(created_, {});
}

}  // namespace vmm
