// A file of a fixed size that has no name.
#pragma once

#include <memory>
#include <string>

#include "base/closed_in_child.h"
#include "base/log.h"
#include "base/types.h"
#include "tier/slot_calls.h"

namespace vmm {

struct UnnamedFile {
  ClosedInChild file;
  bool direct = false;  // whether calls go past the page cache
};

/// Makes one of `size` bytes, with room set aside for all of them, where the file system can do that.
/// `direct` is tried by reading and writing, not believed: some file systems take the flag and then refuse
/// the calls. Throws and warns as make_slot_file does (slot_file.h).
UnnamedFile make_unnamed_file(const std::string& directory, Bytes size, bool direct, SlotCalls& calls,
                              Log& log);

}  // namespace vmm
