// How much memory of the host this process could still have.
#pragma once

#include <optional>
#include <string>

#include "base/types.h"

namespace vmm {

/// Where the system says it.
struct MemoryFiles {
  std::string meminfo = "/proc/meminfo";
  std::string own_cgroups = "/proc/self/cgroup";
  std::string cgroups = "/sys/fs/cgroup";
};

struct MemoryLimits {
  std::optional<Bytes> available;  // MemAvailable: without swapping
  std::optional<Bytes> cgroup;     // what the tightest cgroup leaves; its file cache counts as used
  std::string cgroup_path;
  std::optional<Bytes> lockable;  // RLIMIT_MEMLOCK, where it binds

  /// The least of them. Nothing where none is known.
  std::optional<Bytes> least() const;
  /// All that are known, for a message.
  std::string described() const;
};

/// What cannot be read is no limit. `locks`: whether RLIMIT_MEMLOCK counts.
MemoryLimits memory_limits(const MemoryFiles& files, bool locks);

}  // namespace vmm
