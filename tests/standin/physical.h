// The end of memory: when nothing refers to it any more.
#pragma once

#include "call.h"

namespace standin {

/// Forgets a handle that is neither referenced nor mapped, and gives memory back that no handle is left for.
void drop_if_unused(const Call& call, const std::shared_ptr<Handle>& handle);

/// A file for memory of `device` that other processes may have, or -1.
int shareable_file(int device, Size size);

}  // namespace standin
