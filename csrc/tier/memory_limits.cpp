#include "tier/memory_limits.h"

#include <sys/resource.h>

#include <filesystem>
#include <fstream>
#include <sstream>
#include <vector>

namespace vmm {
namespace {

constexpr std::uint64_t no_cgroup_limit = std::uint64_t{1} << 62;  // version 1 writes a huge number

/// The number that a file begins with: "max" is none.
std::optional<Bytes> number_in(const std::filesystem::path& path) {
  std::ifstream file(path);
  std::uint64_t number = 0;
  if (!(file >> number)) return {};
  return Bytes{number};
}

std::optional<Bytes> available_memory(const std::string& meminfo) {
  std::ifstream file(meminfo);
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::string name;
    std::uint64_t kibibytes = 0;
    if (words >> name >> kibibytes && name == "MemAvailable:") return Bytes{kibibytes << 10};
  }
  return {};
}

/// The paths of the process's cgroups of one hierarchy: its own, and all around it, which bind it, too.
std::vector<std::filesystem::path> cgroups_around(const std::filesystem::path& root, std::string path) {
  path.erase(0, path.find_first_not_of('/'));
  std::vector<std::filesystem::path> out;
  for (std::filesystem::path inner = path; !inner.empty(); inner = inner.parent_path())
    out.push_back(root / inner);
  out.push_back(root);
  return out;
}

void lower_to_cgroup(MemoryLimits& limits, const std::filesystem::path& folder, const char* limit_name,
                     const char* used_name) {
  const auto limit = number_in(folder / limit_name);
  const auto used = number_in(folder / used_name);
  if (!limit || !used || limit->count >= no_cgroup_limit) return;
  const Bytes left = saturating_sub(*limit, *used);
  if (limits.cgroup && *limits.cgroup <= left) return;
  limits.cgroup = left;
  limits.cgroup_path = folder.string();
}

/// A line is ID:CONTROLLERS:PATH; version 2 has no controllers there. A container sees its own cgroup as the
/// root, but may be told the host's path: what is not there is passed over.
void lower_to_cgroups(MemoryLimits& limits, const MemoryFiles& files) {
  std::ifstream own(files.own_cgroups);
  const std::filesystem::path root = files.cgroups;
  for (std::string line; std::getline(own, line);) {
    const std::size_t first = line.find(':');
    const std::size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    const std::string path = line.substr(second + 1);
    if (controllers == ",,")
      for (const auto& folder : cgroups_around(root, path))
        lower_to_cgroup(limits, folder, "memory.max", "memory.current");
    else if (controllers.find(",memory,") != std::string::npos)
      for (const auto& folder : cgroups_around(root / "memory", path))
        lower_to_cgroup(limits, folder, "memory.limit_in_bytes", "memory.usage_in_bytes");
  }
}

}  // namespace

std::optional<Bytes> MemoryLimits::least() const {
  std::optional<Bytes> out;
  for (const auto& each : {available, cgroup, lockable})
    if (each && (!out || *each < *out)) out = each;
  return out;
}

std::string MemoryLimits::described() const {
  std::string out;
  auto add = [&](const std::string& name, const std::optional<Bytes>& bytes) {
    if (bytes) out += (out.empty() ? "" : ", ") + name + " " + std::to_string(bytes->count);
  };
  add("MemAvailable is", available);
  add("the cgroup " + cgroup_path + " leaves", cgroup);
  add("RLIMIT_MEMLOCK is", lockable);
  return out;
}

MemoryLimits memory_limits(const MemoryFiles& files, bool locks) {
  MemoryLimits out;
  out.available = available_memory(files.meminfo);
  lower_to_cgroups(out, files);
  rlimit limit{};
  if (locks && getrlimit(RLIMIT_MEMLOCK, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY)
    out.lockable = Bytes{limit.rlim_cur};
  return out;
}

}  // namespace vmm
