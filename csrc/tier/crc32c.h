// CRC32C (RFC 3720): its polynomial, and the arithmetic that joins the checksums of neighbouring parts.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace vmm::crc32c {

// A state is the remainder so far, as the processor's crc32 instruction has it: the lowest bit belongs to the
// highest power of x. A checksum begins with all bits set and ends with all of them turned over.
inline constexpr std::uint32_t polynomial = 0x82F63B78;
inline constexpr std::uint32_t begin = 0xFFFFFFFF;
constexpr std::uint32_t end(std::uint32_t state) { return ~state; }

constexpr std::uint32_t times_x(std::uint32_t a) { return (a >> 1) ^ ((a & 1) != 0 ? polynomial : 0); }

/// a · b modulo the polynomial.
constexpr std::uint32_t product(std::uint32_t a, std::uint32_t b) {
  std::uint32_t sum = 0;
  for (std::uint32_t bit = 0x80000000; bit != 0; bit >>= 1) {
    if ((a & bit) != 0) sum ^= b;
    b = times_x(b);
  }
  return sum;
}

/// powers[k] is x to the 8 · 2^k: what 2^k more bytes multiply a state by.
inline constexpr auto powers = [] {
  std::array<std::uint32_t, 64> out{};
  std::uint32_t power = std::uint32_t{1} << 23;  // x^8
  for (auto& each : out) {
    each = power;
    power = product(power, power);
  }
  return out;
}();

/// What a state is multiplied by when so many bytes of zeros follow.
constexpr std::uint32_t power_of(std::size_t bytes) {
  std::uint32_t out = 0x80000000;  // x^0
  for (std::size_t k = 0; bytes != 0; bytes >>= 1, ++k)
    if ((bytes & 1) != 0) out = product(out, powers[k]);
  return out;
}

/// tables[k][b]: the state after the byte b and k bytes of zeros.
inline constexpr auto tables = [] {
  std::array<std::array<std::uint32_t, 256>, 8> out{};
  for (std::uint32_t byte = 0; byte < 256; ++byte) {
    std::uint32_t state = byte;
    for (int bit = 0; bit < 8; ++bit) state = times_x(state);
    out[0][byte] = state;
  }
  for (std::size_t k = 1; k < 8; ++k)
    for (std::size_t byte = 0; byte < 256; ++byte)
      out[k][byte] = (out[k - 1][byte] >> 8) ^ out[0][out[k - 1][byte] & 0xFF];
  return out;
}();

}  // namespace vmm::crc32c
