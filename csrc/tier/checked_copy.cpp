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

/// Four lanes beside one another: the instruction has its result three cycles later and could begin another
/// one in each, and memory answers several requests at once.
template <bool copies>
__attribute__((target("sse4.2"))) std::uint32_t four_streams(std::byte* to, const std::byte* from,
                                                             std::size_t lane, std::uint32_t state) {
  std::array<std::uint64_t, lanes> states{state, 0, 0, 0};
  for (std::size_t at = 0; at < lane; at += cache_line) {
    for (std::size_t i = 0; i < lanes; ++i) fetch_ahead(from + i * lane + at);
    if constexpr (copies)
      for (std::size_t i = 0; i < lanes; ++i) stream_line(to + i * lane + at, from + i * lane + at);
    for (std::size_t word = 0; word < cache_line; word += 8)
      for (std::size_t i = 0; i < lanes; ++i)
        states[i] = _mm_crc32_u64(states[i], eight_bytes(from + i * lane + at + word));
  }
  const std::uint32_t power = crc32c::power_of(lane);
  state = static_cast<std::uint32_t>(states[0]);
  for (std::size_t i = 1; i < lanes; ++i)
    state = crc32c::product(power, state) ^ static_cast<std::uint32_t>(states[i]);
  return state;
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
    if (to != nullptr) {
      state = four_streams<true>(to + done, from + done, lane, state);
      _mm_sfence();  // whoever learns that the copy is over must see it
    } else {
      state = four_streams<false>(nullptr, from + done, lane, state);
    }
    done += lanes * lane;
  }
  return one_stream(to == nullptr ? nullptr : to + done, from + done, size - done, state);
}

#else

bool has_crc_instruction() { return false; }

std::uint32_t copy_by_instruction(std::byte* to, const std::byte* from, std::size_t size,
                                  std::uint32_t state) {
  return copy_by_table(to, from, size, state);
}

#endif

}  // namespace vmm
