#include "memory/tenancies.h"

#include <algorithm>
#include <string>

#include "base/error.h"
#include "memory/waiting.h"

namespace vmm {

TenantId Tenancies::add(const TenantTerms& terms) {
  ground_.require_parent();
  ground_.epochs.poll();
  if (terms.name.empty()) throw InvalidArgument("name is empty; expected one");
  if (terms.limit < terms.guaranteed)
    throw InvalidArgument("limit is " + std::to_string(terms.limit.count) +
                          " bytes; expected at least what is guaranteed, " +
                          std::to_string(terms.guaranteed.count));
  std::unique_lock lock(ground_.mutex);
  const Quotas& quotas = reclaiming_.quotas();
  for (Wait wait(ground_, "work that uses what others no longer keep ends");; reclaiming_.pause(lock, wait)) {
    ground_.require_open();
    tables_.tenants().require_addable(terms);
    tables_.last_uses().refresh();
    const auto covered = [&](Bytes promised) {
      return promised + terms.guaranteed <= tables_.allowance().maximum();
    };
    if (terms.guaranteed.count == 0 || covered(quotas.promised())) break;
    // A guarantee that could never be given is a mistake of the caller, whatever others keep now.
    ground_.budget->promise(terms.guaranteed);
    ground_.budget->end_promise(terms.guaranteed);
    if (!covered(quotas.promised(true)))
      throw OutOfPages(reclaiming_.figures(terms.guaranteed, tables_.tenants()[Tenants::nobody]),
                       "others keep what tenant '" + terms.name + "' is to be guaranteed");
  }
  ground_.budget->promise(terms.guaranteed);
  const TenantId id = tables_.tenants().add(terms).id;
  // What others keep may be more than a budget that was lowered.
  tables_.note_admission(std::max(tables_.allowance().maximum(), quotas.promised()));
  return id;
}

void Tenancies::end(TenantId id) noexcept {
  if (ground_.fork_guard.in_child()) return;
  {
    std::lock_guard lock(ground_.mutex);
    ground_.budget->end_promise(tables_.tenants().close(id));
  }
  ground_.signals.given_up(true);  // Whoever starved because of the guarantee may go on.
}

TenantFigures Tenancies::figures(TenantId id) const {
  const auto lock = ground_.locked();
  tables_.last_uses().refresh();
  return reclaiming_.quotas().figures(tables_.tenants()[id]);
}

}  // namespace vmm
