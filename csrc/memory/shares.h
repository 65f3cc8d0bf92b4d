// The shares that this process is in, by their files.
#pragma once

#include <memory>
#include <string>

#include "memory/shared_budget.h"

namespace vmm {

/// This process's part of the share in the file `path`; pools that name the same share have it together. Each
/// caller detaches from it once. Throws InvalidArgument for other terms than the process has there already,
/// and what joining does.
std::shared_ptr<SharedBudget> part_of_share(const std::string& path, const ShareTerms& terms);

}  // namespace vmm
