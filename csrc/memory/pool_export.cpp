// Pages that another process has, too.
#include <unistd.h>

#include <optional>
#include <string>
#include <utility>

#include "base/error.h"
#include "memory/pool.h"

namespace vmm {

/// The page that is mapped there, and whose it is.
std::optional<std::pair<PhysicalPageId, Reservation*>> Pool::page_at(Address address) {
  for (auto& [id, reservation] : reservations_) {
    if (address < reservation->base || address >= reservation->base + reservation->size()) continue;
    const std::uint64_t at = (address - reservation->base) / reservation->shape.page_bytes;
    const VirtualPage& page = reservation->table[{static_cast<std::uint32_t>(at)}];
    if (page.state != VirtualState::resident) return std::nullopt;
    return std::pair(contents_[page.content].page, reservation.get());
  }
  return std::nullopt;
}

ExportedPage Pool::export_page(Address address) {
  fork_guard_.require_parent("this pool");
  Exports* const exports = driver_->exports();
  if (exports == nullptr) throw InvalidArgument("export: the pool was made without shareable=True");
  // 1. The page gets no other owner, before anybody can have it.
  PhysicalPageId marked;
  {
    std::lock_guard lock(mutex_);
    require_open();
    const auto found = page_at(address);
    if (!found) throw InvalidArgument("address: nothing of this pool is mapped there");
    marked = found->first;
    physical_[marked].exported = found->second->exported = true;
  }
  // 2. The driver makes the descriptor.
  const ExportedPage page = exports->export_page(address);
  // 3. Meanwhile the page may have been unmapped, and another mapped there.
  std::lock_guard lock(mutex_);
  const auto now = page_at(address);
  if (now && now->first == marked && physical_[marked].exported) return page;
  ::close(page.file);
  throw InvalidArgument("address: its page was given up meanwhile");
}

/// Once more what the driver refuses; what it refuses again is a free page like any other, until it goes.
void Pool::release_exported(Releasing what) noexcept {
  const std::vector<PhysicalPageId> pages = what.pages;
  for (int attempt = 0; attempt < 2 && !what.pages.empty(); ++attempt) {
    try {
      release(std::move(what));
    } catch (const Error& error) {
      log_.write(LogLevel::warning, std::string("release of an exported page: ") + error.what());
    }
    std::vector<PhysicalPageId> left;
    std::lock_guard lock(mutex_);
    for (PhysicalPageId page : pages)
      if (physical_[page].exported && physical_[page].state == PhysicalState::free) left.push_back(page);
    what = attempt == 0 ? begin_release(std::move(left)) : Releasing{};
  }
}

}  // namespace vmm
