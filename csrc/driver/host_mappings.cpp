#include "driver/host_mappings.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <fstream>

#include "base/error.h"

namespace vmm::host {
namespace {

constexpr std::int64_t kept_back_fraction = 16;
constexpr int count_attempts = 4;
constexpr std::uint64_t most_countable = std::uint64_t{1} << 62;
constexpr std::size_t reserved = 64;  // enough: undoing replaces two mappings by three at most

std::size_t system_page() { return static_cast<std::size_t>(sysconf(_SC_PAGESIZE)); }

}  // namespace

std::string MostMappings::advice() const {
  return by_variable() ? ": raise or unset VMM_MAX_MAPPINGS, or use larger pages"
                       : ": raise vm.max_map_count (sysctl -w vm.max_map_count=...) or use larger pages";
}

MostMappings most_mappings() {
  MostMappings most;
  std::ifstream("/proc/sys/vm/max_map_count") >> most.of_system;
  most.count = most.of_system;
  const char* text = std::getenv("VMM_MAX_MAPPINGS");
  if (text == nullptr) return most;
  const char* end = text + std::strlen(text);
  std::uint64_t wanted = 0;
  const auto [read_to, error] = std::from_chars(text, end, wanted);
  if (error != std::errc{} || read_to != end || wanted == 0 || wanted > most_countable)
    throw InvalidArgument("VMM_MAX_MAPPINGS is '" + std::string(text) +
                          "'; expected a whole number of memory mappings, 1 or more");
  if (most.of_system == 0 || wanted < most.of_system) most.count = wanted;
  return most;
}

std::optional<std::uint64_t> count_process_mappings() {
  char buffer[16 * 1024];  // not on the heap: there may be no mapping left for it to grow
  const int maps = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
  if (maps < 0) return std::nullopt;  // the process may have no file left to open
  std::uint64_t lines = 0;
  ssize_t got = 0;
  while ((got = read(maps, buffer, sizeof buffer)) > 0)
    lines += static_cast<std::uint64_t>(std::count(buffer, buffer + got, '\n'));
  close(maps);
  if (got < 0) return std::nullopt;
  return lines;
}

MappingCount& MappingCount::of_process() {
  static MappingCount the_one;
  return the_one;
}

MappingCount::MappingCount()
    : most_(most_mappings()),
      limit_(static_cast<std::int64_t>(most_.count)),
      kept_back_(limit_ / kept_back_fraction) {
  MappingReserve::of_process();  // fills the reserve while there are mappings left
  count();
}

void MappingCount::require(std::int64_t more) {
  if (fits(more) && ours_ - counted_at_ <= kept_back_) return;
  count();  // others have come or gone since
  if (fits(more)) return;
  throw MappingLimit("this process has " + std::to_string(used()) + " memory mappings of at most " +
                     std::to_string(most_.count) + ", some of which are kept back" + most_.advice());
}

void MappingCount::count() {
  std::int64_t ours = 0, planned = 0, all = 0;
  for (int attempt = 0; attempt < count_attempts; ++attempt) {
    ours = ours_;
    planned = planned_;
    const auto counted = count_process_mappings();
    if (!counted) return;
    all = static_cast<std::int64_t>(*counted);
    if (ours == ours_ && planned == planned_) break;  // no other thread has mapped or unmapped meanwhile
  }
  others_ = all - (ours - planned);
  counted_at_ = ours;
}

std::uint64_t MappingCount::left() const noexcept {
  if (limit_ == 0) return ~std::uint64_t{0};
  return static_cast<std::uint64_t>(std::max<std::int64_t>(0, limit_ - kept_back_ - ours_ - others_));
}

MappingReserve& MappingReserve::of_process() {
  static MappingReserve the_one;
  return the_one;
}

void MappingReserve::fill() noexcept {
  constexpr int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  const std::size_t page = system_page();
  void* start = mmap(nullptr, reserved * page, PROT_NONE, flags, -1, 0);
  if (start == MAP_FAILED) return;
  start_ = start;
  // Every other page is readable, or the system would make one mapping of all pages.
  for (std::size_t i = 1; i < reserved; i += 2)
    if (mprotect(static_cast<char*>(start) + i * page, page, PROT_READ) != 0) return;
}

void MappingReserve::give_up() noexcept {
  if (start_ != nullptr && munmap(start_, reserved * system_page()) == 0) start_ = nullptr;
}

}  // namespace vmm::host
