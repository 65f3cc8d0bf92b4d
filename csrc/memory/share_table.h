// What a share's file holds, byte for byte.
//
// A header, and two copies of the table. One word of the header says which copy is valid. Whoever changes the
// table writes the other copy whole and then that word, so at any moment, whoever dies, one of the two
// stands.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <type_traits>
#include <vector>

#include "policy/share_policy.h"

namespace vmm {

inline constexpr std::uint32_t share_places = 64;
inline constexpr std::uint64_t share_magic = 0x6572616873'6d6d76;  // "vmmshare"
inline constexpr std::uint32_t share_version = 1;
inline constexpr Bytes largest_share{std::uint64_t{1} << 56};  // so that sums do not overflow

struct ShareHeader {
  std::uint64_t magic = share_magic;
  std::uint32_t version = share_version;
  std::uint32_t places = share_places;
  std::uint64_t valid = 0;  // which copy: 0 or 1
  std::array<std::uint64_t, 5> reserved{};
};

/// One process. Bytes, but where it says otherwise.
struct ShareRecord {
  std::uint64_t minimum = 0, maximum = 0, grant = 0, wanted = 0;
  std::uint64_t started = 0;  // of the process: clock ticks after the machine's start
  std::uint64_t ticket = 0;   // differs for all that ever had this place
  std::uint32_t pid = 0;
  std::int32_t priority = 0;
  std::uint32_t used = 0;
  std::uint32_t reserved = 0;
  std::array<char, 16> command{};  // ends with 0
};

struct ShareTable {
  std::uint64_t checksum = 0;  // of all that follows, as far as it is used
  std::uint64_t tickets = 0;   // given out so far
  std::uint64_t count = 0;     // of places up to the last that is used
  std::array<ShareRecord, share_places> places{};

  std::span<ShareRecord> used() { return std::span(places).first(count); }
  std::span<const ShareRecord> used() const { return std::span(places).first(count); }
};

static_assert(sizeof(ShareHeader) == 64 && std::is_trivially_copyable_v<ShareHeader>);
static_assert(sizeof(ShareRecord) == 80 && std::is_trivially_copyable_v<ShareRecord>);
static_assert(std::is_trivially_copyable_v<ShareTable>);
static_assert(offsetof(ShareTable, places) == 24 && sizeof(ShareTable) == 24 + 80 * share_places);

inline constexpr std::size_t share_file_bytes = sizeof(ShareHeader) + 2 * sizeof(ShareTable);

inline std::size_t written_bytes(const ShareTable& table) {
  return offsetof(ShareTable, places) + table.count * sizeof(ShareRecord);
}

inline std::uint64_t checksum_of(const ShareTable& table) {
  // FNV-1a by words: it is to tell noise, not malice.
  std::uint64_t hash = 0xcbf29ce484222325;
  const char* bytes = reinterpret_cast<const char*>(&table);
  for (std::size_t at = sizeof table.checksum; at < written_bytes(table); at += sizeof hash) {
    std::uint64_t word;
    std::memcpy(&word, bytes + at, sizeof word);
    hash = (hash ^ word) * 0x100000001b3;
    hash ^= hash >> 32;
  }
  return hash;
}

/// Whether a table that was read makes sense.
inline bool is_sound(const ShareTable& table) {
  if (table.count > share_places || table.checksum != checksum_of(table)) return false;
  for (const ShareRecord& record : table.used()) {
    if (record.used > 1 || record.command.back() != 0) return false;
    if (record.minimum > record.maximum) return false;
    if (std::max(record.maximum, record.grant) >= largest_share.count) return false;
  }
  return true;
}

/// As the policy sees it; a place that is not used is a member without anything.
inline std::vector<ShareMember> members_of(const ShareTable& table) {
  std::vector<ShareMember> out;
  for (const ShareRecord& each : table.used())
    out.push_back(each.used == 0 ? ShareMember{}
                                 : ShareMember{.minimum = {each.minimum},
                                               .maximum = {each.maximum},
                                               .priority = each.priority,
                                               .grant = {each.grant},
                                               .wanted = {each.wanted}});
  return out;
}

}  // namespace vmm
