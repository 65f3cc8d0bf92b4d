#include "tier/checked_copy.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "tier/crc32c.h"

#if defined(__x86_64__)
#include <emmintrin.h>
#include <nmmintrin.h>
#endif

namespace vmm {
namespace {

static_assert(std::endian::native == std::endian::little, "the tables take eight bytes as one number");

std::uint64_t eight_bytes(const std::byte* from) {
  std::uint64_t word = 0;
  std::memcpy(&word, from, sizeof word);
  return word;
}

std::uint32_t after_byte(std::uint32_t state, std::byte byte) {
  return (state >> 8) ^ crc32c::tables[0][(state ^ std::to_integer<std::uint32_t>(byte)) & 0xFF];
}

std::uint32_t after_word(std::uint32_t state, std::uint64_t word) {
  word ^= state;
  std::uint32_t out = 0;
  for (std::size_t i = 0; i < 8; ++i) out ^= crc32c::tables[7 - i][word >> (8 * i) & 0xFF];
  return out;
}

std::uint32_t after_bytes(const std::byte* from, std::size_t size, std::uint32_t state) {
  for (; size >= 8; from += 8, size -= 8) state = after_word(state, eight_bytes(from));
  for (; size > 0; ++from, --size) state = after_byte(state, *from);
  return state;
}

using CopyChecked = std::uint32_t (*)(std::byte*, const std::byte*, std::size_t, std::uint32_t);

CopyChecked fastest_copy() {
  static const CopyChecked chosen = has_crc_instruction() ? copy_by_instruction : copy_by_table;
  return chosen;
}

std::uint32_t begun_with(std::uint64_t seed) { return after_word(crc32c::begin, seed); }

void one_by_one(std::span<CheckedCopy> copies, std::size_t size) {
  for (CheckedCopy& each : copies)
    each.checksum = crc32c::end(fastest_copy()(each.to, each.from, size, begun_with(each.seed)));
}

}  // namespace

std::uint32_t checksum(const std::byte* from, std::size_t size, std::uint64_t seed) {
  return crc32c::end(fastest_copy()(nullptr, from, size, begun_with(seed)));
}

std::uint32_t checked_copy(std::byte* to, const std::byte* from, std::size_t size, std::uint64_t seed) {
  return crc32c::end(fastest_copy()(to, from, size, begun_with(seed)));
}

std::uint32_t copy_by_table(std::byte* to, const std::byte* from, std::size_t size, std::uint32_t state) {
  constexpr std::size_t piece = 4096;  // stays in the first cache between the copy and the checksum
  for (std::size_t at = 0; at < size; at += piece) {
    const std::size_t length = std::min(piece, size - at);
    if (to != nullptr) std::memcpy(to + at, from + at, length);
    state = after_bytes(to != nullptr ? to + at : from + at, length, state);
  }
  return state;
}

#if defined(__x86_64__)

bool has_crc_instruction() { return __builtin_cpu_supports("sse4.2") != 0; }

namespace {

constexpr std::size_t cache_line = 64;
constexpr std::size_t lanes = 4;
constexpr std::size_t ahead = 1024;  // a short lane is over before the processor fetches ahead by itself
constexpr std::size_t worth_lanes = 1024;  // joining the lanes costs about as much as so many bytes

__attribute__((target("sse4.2"))) std::uint32_t one_stream(std::byte* to, const std::byte* from,
                                                           std::size_t size, std::uint32_t state) {
  if (to != nullptr && size > 0) std::memcpy(to, from, size);
  std::uint64_t wide = state;
  for (; size >= 8; from += 8, size -= 8) wide = _mm_crc32_u64(wide, eight_bytes(from));
  state = static_cast<std::uint32_t>(wide);
  for (; size > 0; ++from, --size) state = _mm_crc32_u8(state, std::to_integer<std::uint8_t>(*from));
  return state;
}

void stream_line(std::byte* to, const std::byte* from) {
  for (std::size_t at = 0; at < cache_line; at += 16)
    _mm_stream_si128(reinterpret_cast<__m128i*>(to + at),
                     _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + at)));
}

/// Past the end, too: a fetch of what is not there does nothing.
void fetch_ahead(const std::byte* from) {
  _mm_prefetch(reinterpret_cast<const char*>(reinterpret_cast<std::uintptr_t>(from) + ahead), _MM_HINT_T0);
}

using LaneStates = std::array<std::uint64_t, lanes>;

/// Four lanes beside one another: the instruction has its result three cycles later and could begin another
/// one in each, and memory answers several requests at once.
template <bool copies>
__attribute__((target("sse4.2"))) void move_lanes(const std::array<std::byte*, lanes> to,
                                                  const std::array<const std::byte*, lanes> from,
                                                  std::size_t lane, LaneStates& states) {
  LaneStates own = states;
  for (std::size_t at = 0; at < lane; at += cache_line) {
    for (std::size_t i = 0; i < lanes; ++i) fetch_ahead(from[i] + at);
    if constexpr (copies)
      for (std::size_t i = 0; i < lanes; ++i) stream_line(to[i] + at, from[i] + at);
    for (std::size_t word = 0; word < cache_line; word += 8)
      for (std::size_t i = 0; i < lanes; ++i)
        own[i] = _mm_crc32_u64(own[i], eight_bytes(from[i] + at + word));
  }
  if constexpr (copies) _mm_sfence();  // whoever learns that the copy is over must see it
  states = own;
}

/// Each lane is a cache line further along than the one before. Lanes at equal distances from a page's start
/// would have equal low bits in all their addresses, which the first cache of some processors cannot hold
/// apart: there (an EPYC) four lanes then took nine times as long.
void move_lanes_of(const std::array<std::byte*, lanes>& to, const std::array<const std::byte*, lanes>& from,
                   std::size_t lane, LaneStates& states) {
  const std::size_t together =
      lane - (lanes - 1) * cache_line;  // a lane has as many lines as there are lanes
  std::array<std::byte*, lanes> tos = to;
  std::array<const std::byte*, lanes> froms = from;
  const auto alone = [&](std::size_t i, std::size_t size) {
    states[i] = one_stream(tos[i], froms[i], size, static_cast<std::uint32_t>(states[i]));
    if (tos[i] != nullptr) tos[i] += size;
    froms[i] += size;
  };
  for (std::size_t i = 0; i < lanes; ++i) alone(i, i * cache_line);
  if (to[0] != nullptr)
    move_lanes<true>(tos, froms, together, states);
  else
    move_lanes<false>(tos, froms, together, states);
  for (std::size_t i = 0; i < lanes; ++i) {
    if (tos[i] != nullptr) tos[i] += together;
    froms[i] += together;
    alone(i, (lanes - 1 - i) * cache_line);
  }
}

/// The quarters of one stretch.
std::uint32_t four_streams(std::byte* to, const std::byte* from, std::size_t lane, std::uint32_t state) {
  std::array<std::byte*, lanes> tos{};
  std::array<const std::byte*, lanes> froms{};
  for (std::size_t i = 0; i < lanes; ++i) {
    if (to != nullptr) tos[i] = to + i * lane;
    froms[i] = from + i * lane;
  }
  LaneStates states{state, 0, 0, 0};
  move_lanes_of(tos, froms, lane, states);
  const std::uint32_t power = crc32c::power_of(lane);
  state = static_cast<std::uint32_t>(states[0]);
  for (std::size_t i = 1; i < lanes; ++i)
    state = crc32c::product(power, state) ^ static_cast<std::uint32_t>(states[i]);
  return state;
}

bool can_be_lanes(std::span<const CheckedCopy> copies, std::size_t size) {
  if (copies.size() < lanes || size % cache_line != 0 || size < lanes * cache_line) return false;
  for (const CheckedCopy& each : copies.first(lanes)) {
    if ((each.to == nullptr) != (copies[0].to == nullptr)) return false;
    if (reinterpret_cast<std::uintptr_t>(each.to) % 16 != 0) return false;
  }
  return true;
}

/// A page in each lane: longer lanes than a page's quarters, and no checksums to join.
void four_pages(std::span<CheckedCopy> copies, std::size_t size) {
  std::array<std::byte*, lanes> tos{};
  std::array<const std::byte*, lanes> froms{};
  LaneStates states{};
  for (std::size_t i = 0; i < lanes; ++i) {
    tos[i] = copies[i].to;
    froms[i] = copies[i].from;
    states[i] = begun_with(copies[i].seed);
  }
  move_lanes_of(tos, froms, size, states);
  for (std::size_t i = 0; i < lanes; ++i)
    copies[i].checksum = crc32c::end(static_cast<std::uint32_t>(states[i]));
}

}  // namespace

std::uint32_t copy_by_instruction(std::byte* to, const std::byte* from, std::size_t size,
                                  std::uint32_t state) {
  // A store past the caches wants 16-byte alignment.
  const std::size_t head =
      std::min(size, static_cast<std::size_t>(-reinterpret_cast<std::uintptr_t>(to) & 15));
  state = one_stream(to, from, head, state);
  std::size_t done = head;
  if (size - done >= worth_lanes) {
    const std::size_t lane = (size - done) / (lanes * cache_line) * cache_line;
    state = four_streams(to == nullptr ? nullptr : to + done, from + done, lane, state);
    done += lanes * lane;
  }
  return one_stream(to == nullptr ? nullptr : to + done, from + done, size - done, state);
}

void checked_copies(std::span<CheckedCopy> copies, std::size_t size) {
  if (has_crc_instruction())
    for (; can_be_lanes(copies, size); copies = copies.subspan(lanes)) four_pages(copies, size);
  one_by_one(copies, size);
}

#else

bool has_crc_instruction() { return false; }

std::uint32_t copy_by_instruction(std::byte* to, const std::byte* from, std::size_t size,
                                  std::uint32_t state) {
  return copy_by_table(to, from, size, state);
}

void checked_copies(std::span<CheckedCopy> copies, std::size_t size) { one_by_one(copies, size); }

#endif

}  // namespace vmm
