// Creating physical memory before anybody needs it, and showing it to other processes.
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "memory/mapping.h"
#include "memory/waiting.h"

namespace vmm {
Bytes Mapping::warm(Bytes wanted, Bytes page_bytes, Bytes at_most) {
  check_page_size(ground_.driver->capabilities(), page_bytes);
  Bytes made;
  Lock lock = ground_.locked();
  while (made < at_most) {
    std::optional<Filling> filling = begin_filling(wanted, page_bytes);
    if (!filling) break;
    try {
      const Unlocked outside(lock);
      ground_.driver->together([&] {
        for (const auto& [page, place] : filling->pages)
          filling->created.emplace_back(*ground_.driver, page_bytes, place);
      });
    } catch (const DriverOutOfMemory& error) {  // It creates as much as there is.
      ground_.log.write(LogLevel::info, "warm: ", error.what());
      at_most = {};
    } catch (...) {
      end_filling(*filling);
      throw;
    }
    end_filling(*filling);
    made += page_bytes * filling->created.size();
  }
  return made;
}

/// Claims the pages of an empty run, or as many of them as the budget has: a window takes a run as it is, and
/// creates the rest when it is mapped. Returns none when no memory lacks or none can be had. It does not
/// press the budget's other owners.
std::optional<Filling> Mapping::begin_filling(Bytes wanted, Bytes page_bytes) {
  ground_.require_open();
  reclaiming_.spare(wanted);
  if (tables_.physical().recycled(page_bytes) >= wanted) return std::nullopt;
  const std::uint64_t per_run = tables_.physical().pages_per_run(page_bytes).count;
  const std::uint64_t count = std::min(tables_.allowance().left() / page_bytes, per_run);
  if (count == 0) return std::nullopt;
  return tables_.begin_filling(page_bytes, count);
}

/// What was created is free from here on.
void Mapping::end_filling(Filling& filling) {
  ground_.counters.pages_created.add(filling.created.size());
  tables_.end_filling(filling);
  ground_.changed.notify_all();
  ground_.signals.given_up(true);
}

Created Mapping::take_created() {
  std::lock_guard lock(ground_.mutex);
  return std::exchange(created_, {});
}

ExportedPage Mapping::export_page(Address address) {
  ground_.require_parent();
  Exports* const exports = ground_.driver->exports();
  if (exports == nullptr) throw InvalidArgument("export: the pool was made without shareable=True");
  // 1. The page gets no other owner, before anybody can have it.
  Lock lock(ground_.mutex);
  ground_.require_open();
  const std::optional<PhysicalPageId> marked = tables_.mark_exported(address);
  if (!marked) throw InvalidArgument("address: nothing of this pool is mapped there");
  // 2. The driver makes the descriptor.
  ExportedPage page;
  {
    const Unlocked outside(lock);
    page = exports->export_page(address);
  }
  // 3. Meanwhile the page may have been unmapped, and another mapped there.
  if (tables_.page_at(address) == marked && tables_.physical()[*marked].exported) return page;
  ::close(page.file);
  throw InvalidArgument("address: its page was given up meanwhile");
}

}  // namespace vmm
